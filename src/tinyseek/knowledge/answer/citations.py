"""Citations: read in an answer while it is written, and kept only where the cited passage says what their sentence says.

A model cites as [1], [1, 3], 【1】, or as DeepSeek-R1 learnt it, [citation:1]. What a marker vouches for, its claim, is the text
before it: back to the last marker, or else to the beginning of the sentence; where there is none yet ("According to [1], ..."),
the sentence after it. A claim is held against the sentences of the cited passage, in three steps:

    numbers    every figure of the claim stands in the passage; units and ways of writing count for nothing (800k, 800,000, 80万)
    words      some of the claim's words stand there, in the claim's language or by the dictionary in the other; of each part
               of it one at least: a made-up reason after a true statement is seen by that
    meaning    one of its sentences comes near the claim; across languages, nearer than any of the other passages'

A marker that fails is taken out of the text and counted; one that holds is shown as [n] and carries the sentences that hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tinyseek.knowledge.answer.support import Passage, Support, Supporter
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import StoredDocument
from tinyseek.knowledge.segment import spans, words

_NUMBER = r"\d{1,3}"
_LIST = rf"{_NUMBER}(?:\s*[,，、;；]\s*(?:citation\s*[:：]\s*)?{_NUMBER}){{0,9}}"
_WORD = r"(?:(?:citation|passage|source|webpage|引用|来源|文档|段落)\s*[:：#]?\s*|\^)?"
_MARKER = re.compile(rf"[\[【［]\s*{_WORD}(?P<numbers>{_LIST})(?:†[^\]】］]{{0,40}})?\s*[\]】］](?!\()", re.IGNORECASE)
_BEGUN = re.compile(r"[\[【［][^\]】］\n]{0,79}\Z")  # what may become a marker
_LONGEST_WAIT = 600  # characters of a sentence that is waited for
_FENCE = re.compile(r"`+|~{3,}")


@dataclass(frozen=True)
class Citation:
    """A sentence's evidence.

    Attributes:
        number: as it stands in the answer, [number].
        document: the file.
        places: of the quote in it, best first; empty where the file's format knows none.
        quote: the sentences of the passage that say it, word for word.
        claim: the answer's own words that they hold.
    """

    number: int
    document: StoredDocument
    places: tuple[Place, ...]
    quote: str
    claim: str = ""
    score: float = 0.0


@dataclass
class Checked:
    """What became of a piece of an answer: text to be shown, and the citations in it."""

    text: str = ""
    citations: list[Citation] = field(default_factory=list)


class Checker:
    """Takes an answer piece by piece, and gives it back with the markers that hold.

    Args:
        passages: what the answer was written from; marker n means the n-th.
        supporter: says whether a passage holds a claim.
    Attributes:
        dropped: markers taken out so far: unsupported, or of no passage.
        text: all that was given back.
    """

    def __init__(self, passages: Sequence[Passage], supporter: Supporter) -> None:
        self._passages, self._supporter = passages, supporter
        self._waiting = ""  # not given back yet
        self._sentence = ""  # what was given back since the last few sentences began, without markers
        self._since = 0  # where in it the last marker stood
        self._claimed = ""  # what the last marker vouches for: [1][2] share it
        self._code = ""  # the fence that opened code: what closes it; inline code ends with its line too
        self.dropped = 0
        self.citations: list[Citation] = []
        self.text = ""

    def push(self, text: str) -> Checked:
        """More of the answer."""
        self._waiting += text
        return self._take(ended=False)

    def finish(self) -> Checked:
        """The answer is over: what waited comes out."""
        return self._take(ended=True)

    def _take(self, ended: bool) -> Checked:
        out = Checked()
        while self._waiting:
            if self._code:
                if not self._through_code(out, ended):
                    break
                continue
            marker = _MARKER.search(self._waiting)
            fence = _FENCE.search(self._waiting)
            if fence and (marker is None or fence.start() < marker.start()):
                if fence.end() == len(self._waiting) and not ended:  # it may grow
                    self._give(out, self._waiting[: self._blank_before(fence.start())])
                    self._waiting = self._waiting[self._blank_before(fence.start()) :]
                    break
                self._give(out, self._waiting[: fence.end()])
                self._waiting = self._waiting[fence.end() :]
                self._code = fence[0]
                continue
            if marker is None:
                held = 0 if ended else self._held()
                cut = len(self._waiting) - held
                self._give(out, self._waiting[:cut])
                self._waiting = self._waiting[cut:]
                break
            if not ended and marker.end() == len(self._waiting):  # a parenthesis may follow: then it is a link
                self._give(out, self._waiting[: self._blank_before(marker.start())])
                self._waiting = self._waiting[self._blank_before(marker.start()) :]
                break
            before = self._waiting[: self._blank_before(marker.start())]
            self._give(out, before)
            self._waiting = self._waiting[len(before) :]
            marker = _MARKER.search(self._waiting)
            assert marker is not None
            claims = self._claims(self._waiting[marker.end() :], ended)
            if claims is None:
                break  # the sentence that the marker opens is not there yet
            self._judge(out, marker, claims)
            self._waiting = self._waiting[marker.end() :]
        return out

    def _through_code(self, out: Checked, ended: bool) -> bool:
        """Give back code up to its end. False: its end is not there yet."""
        sign = self._code[0]
        pattern = rf"(?<!{sign}){self._code}(?!{sign})"
        close = re.search(pattern if len(self._code) > 2 else rf"{pattern}|\n", self._waiting)
        if close is not None and (ended or close.end() < len(self._waiting) or close[0] == "\n"):
            self._give(out, self._waiting[: close.end()])
            self._waiting = self._waiting[close.end() :]
            self._code = ""
            return True
        held = 0 if ended else len(self._waiting) - len(self._waiting.rstrip("`~"))
        cut = len(self._waiting) - held
        self._give(out, self._waiting[:cut])
        self._waiting = self._waiting[cut:]
        return False

    def _held(self) -> int:
        """How many of the last characters may yet belong to a marker or to the blank before one."""
        begun = _BEGUN.search(self._waiting)
        start = begun.start() if begun else len(self._waiting)
        if not begun and self._waiting[-1:] in "`~":
            start = len(self._waiting.rstrip("`~"))
        return len(self._waiting) - self._blank_before(start)

    def _blank_before(self, at: int) -> int:
        while at > 0 and self._waiting[at - 1] in " \u3000\u00a0":
            at -= 1
        return at

    def _give(self, out: Checked, text: str) -> None:
        out.text += text
        self.text += text
        self._sentence += text
        if len(self._sentence) > 4000:
            self._since = max(0, self._since - (len(self._sentence) - 2000))
            self._sentence = self._sentence[-2000:]

    def _claims(self, after: str, ended: bool) -> list[str] | None:
        """What a marker here may vouch for, the likelier first. None: more text is needed."""
        sentence = _last_sentence(self._sentence)
        part = self._sentence[max(self._since, len(self._sentence) - len(sentence)) :]
        if not part.strip(" ,，、;；.。") and self._claimed:
            return [self._claimed]
        found = [text for text in (part, sentence) if len(words(text)) >= 4]
        if found:
            return list(dict.fromkeys(text.strip() for text in found))
        following = _MARKER.sub("", after)
        ends = spans(following)
        complete = len(ends) > 1 or "\n" in following.strip(" ") or len(following) > _LONGEST_WAIT
        if not complete and not ended:
            return None
        first = following[ends[0][0] : ends[0][1]] if ends else ""
        return [f"{sentence.strip()} {first.strip()}".strip()]

    def _judge(self, out: Checked, marker: re.Match[str], claims: Sequence[str]) -> None:
        blank = self._waiting[: marker.start()]
        if marker["numbers"].strip("0") == "" and not blank and self._sentence[-1:].isidentifier():  # a[0] is code
            self._give(out, marker[0])
            return
        kept: list[str] = []
        for number in dict.fromkeys(int(found) for found in re.findall(_NUMBER, marker["numbers"])):
            support = self._support(number, claims)
            if support is None:
                self.dropped += 1
                continue
            kept.append(f"[{number}]")
            passage = self._passages[number - 1]
            citation = Citation(
                number, passage.document, passage.places(support.span), support.quote, support.claim, support.score
            )
            out.citations.append(citation)
            self.citations.append(citation)
        if kept:
            text = blank + "".join(kept)
            out.text += text
            self.text += text
        self._since, self._claimed = len(self._sentence), claims[0]

    def _support(self, number: int, claims: Sequence[str]) -> Support | None:
        if not 1 <= number <= len(self._passages):
            return None
        for claim in claims:
            support = self._supporter.support(claim, number - 1)
            if support is not None:
                return support
        return None


def _last_sentence(text: str) -> str:
    found = spans(text.rstrip() + " ") if text.strip() else []
    return text[found[-1][0] :] if found else ""


def cited_numbers(text: str) -> Iterator[int]:
    """The numbers of all markers of a text, in order."""
    for marker in _MARKER.finditer(text):
        yield from (int(number) for number in re.findall(_NUMBER, marker["numbers"]))
