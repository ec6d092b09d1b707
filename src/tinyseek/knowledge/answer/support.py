"""Whether a passage holds a claim: figures, words and meaning, sentence by sentence. See citations.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tinyseek.knowledge.answer.confidence import FITTED
from tinyseek.knowledge.chunks import joined
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import StoredChunk, StoredDocument
from tinyseek.knowledge.segment import spans, words
from tinyseek.knowledge.stopwords import content_words, is_chinese, stopwords
from tinyseek.knowledge.translate import meanings

Span = tuple[int, int, int]  # number of a chunk in its passage, from and to of its text

Groups = list[tuple[frozenset[str], float]]

_PARTS = re.compile(
    r"[,，;；:：.。!！?？](?=\D|$)|\b(?:because|since|so that|therefore|but|although|while|due to)\b|因为|由于|但是?|因此|所以"
)
_OF_A_PART = 3  # words: a part of a claim that has so many, and none that its passage has, is not held by it
_OF_WORDS = 0.1  # what a sentence's cosine gains if it has all of a claim's words
# Chosen by every second of 30 claims in two languages, the others in sight; benchmarks/cite.py prints the errors on both.
_LEAST_WORDS, _LEAST_WORDS_ACROSS = 0.2, 0.15  # of a claim's words, by weight, that its passage must have
_NEAR, _NEAR_ACROSS = 0.90, 0.85  # that a sentence must come, in one language and across two
_WORDS_ALONE, _WORDS_ALONE_ACROSS = 0.6, 0.4  # of the words, with an embedder whose cosines nothing is known of
_BEHIND = 0.01  # the cited passage may come this much less near than the nearest one


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage, or a row of a table in it."""

    text: str
    span: Span
    head: str = ""  # of a row: the table's header


class Passage:
    """What an answer is written from, [1] or [2] in it: chunks in a row of one document."""

    def __init__(self, document: StoredDocument, chunks: Sequence[StoredChunk]) -> None:
        if not chunks:
            raise ValueError("a passage has at least one chunk")
        self.document, self.chunks = document, tuple(chunks)

    @cached_property
    def text(self) -> str:
        """Without what neighbouring chunks repeat."""
        return joined([stored.chunk for stored in self.chunks])

    @cached_property
    def heading(self) -> str:
        """The headings above it."""
        return " > ".join(self.chunks[0].chunk.path)

    @cached_property
    def sentences(self) -> list[Sentence]:
        """In order, each once."""
        found: list[Sentence] = []
        for number, stored in enumerate(self.chunks):
            text = stored.chunk.text
            follows = number > 0 and self.chunks[number - 1].chunk.section == stored.chunk.section
            begin = stored.chunk.overlap if follows else 0
            if stored.chunk.kind == "table":
                found += _rows(text, number)
                continue
            for start, end in spans(text[begin:]):
                whole = text[begin + start : begin + end]
                if whole.strip():
                    at = begin + start + len(whole) - len(whole.lstrip())
                    found.append(Sentence(whole.strip(), (number, at, at + len(whole.strip()))))
        return found

    @cached_property
    def words(self) -> frozenset[str]:
        """Of its text, its headings and its document's title."""
        return frozenset(words("\n".join((self.document.title, self.document.name, self.heading, self.text))))

    @cached_property
    def sentence_words(self) -> list[frozenset[str]]:
        """Of each sentence, a row's header among them."""
        return [frozenset(words(f"{s.head} {s.text}")) for s in self.sentences]

    @cached_property
    def figures(self) -> frozenset[float]:
        """The numbers in it."""
        return frozenset(figures(f"{self.document.title}\n{self.heading}\n{self.text}", told=True))

    def places(self, span: Span) -> tuple[Place, ...]:
        """Where a part of it stands in the file: the places that the part touches, or, where chunks know no spans, all."""
        number, start, end = span
        places = self.chunks[number].chunk.places
        touched = [p for p in places if p.span is not None and p.span[0] < end and start < p.span[1]]
        return tuple(touched) or places


def _rows(text: str, number: int) -> list[Sentence]:
    """The rows of a Markdown table; its caption and whatever else stands there as lines."""
    found: list[Sentence] = []
    lines: list[tuple[str, int]] = []
    at = 0
    for line in text.splitlines(keepends=True):
        lines.append((line.strip(), at))
        at += len(line)
    rule = next((row for row, (line, _) in enumerate(lines) if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line)), None)
    head = "\n".join(line for line, _ in lines[:rule] if line.startswith("|")) if rule else ""
    for row, (line, start) in enumerate(lines):
        is_body = rule is not None and row > rule
        is_head = line in head.split("\n") and not is_body and len(lines) > (rule or 0) + 1
        if line and row != rule and not is_head:  # the head goes along with each row
            found.append(Sentence(line, (number, start, start + len(line)), head if is_body else ""))
    return found


@dataclass(frozen=True)
class Support:
    """That a passage holds a claim, and by which of its sentences."""

    claim: str
    score: float  # 0 to 1
    quote: str
    span: Span


class Supporter:
    """Holds claims against the passages of one answer. Sentences are embedded when a passage is first cited."""

    def __init__(self, passages: Sequence[Passage], embedder: Embedder) -> None:
        self._passages, self._embedder = passages, embedder
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self._claims: dict[str, NDArray[np.float32]] = {}
        self._meant: dict[tuple[str, bool], Groups] = {}

    def support(self, claim: str, number: int) -> Support | None:
        """How the passage `number`, from 0, holds a claim. None: it does not."""
        passage = self._passages[number]
        if not passage.sentences or not content_words(claim) or not set(figures(claim)) <= passage.figures:
            return None
        across = is_chinese(claim) != is_chinese(passage.text)
        share = self._share(self._groups(claim, across), passage.words)
        if share < (_LEAST_WORDS_ACROSS if across else _LEAST_WORDS) or self._adds(claim, across, passage.words):
            return None
        nearness = self.nearness(claim, number)
        best = int(nearness.argmax())
        nearest = float(nearness[best])
        if self._embedder.name != FITTED:
            held = share >= (_WORDS_ALONE_ACROSS if across else _WORDS_ALONE)
        elif across:
            rival = max(float(self.nearness(claim, other).max()) for other in range(len(self._passages)))
            held = nearest >= max(_NEAR_ACROSS, rival - _BEHIND)
        else:
            held = nearest >= _NEAR
        if not held:
            return None
        sentence = passage.sentences[best]
        quote = f"{sentence.head}\n{sentence.text}" if sentence.head else sentence.text
        return Support(claim, round(nearest, 4), quote, sentence.span)

    def nearness(self, claim: str, number: int, of_words: float = _OF_WORDS) -> NDArray[np.float32]:
        """How near each sentence of a passage comes to a text.

        Args:
            of_words: what a cosine gains where a sentence has all of the text's words.
        """
        if claim not in self._claims:
            self._claims[claim] = self._embedder.queries([claim])[0]
        passage = self._passages[number]
        groups = self._groups(claim, is_chinese(claim) != is_chinese(passage.text))
        shares = [self._share(groups, held) for held in passage.sentence_words]
        cosines: NDArray[np.float32] = self.vectors(number) @ self._claims[claim]
        return cosines + np.float32(of_words) * np.asarray(shares, np.float32)

    def vectors(self, number: int) -> NDArray[np.float32]:
        """Of a passage's sentences."""
        if number not in self._vectors:
            texts = [f"{s.head}\n{s.text}" if s.head else s.text for s in self._passages[number].sentences]
            self._vectors[number] = self._embedder.passages(texts)
        return self._vectors[number]

    def _adds(self, claim: str, across: bool, held: frozenset[str]) -> bool:
        """Whether a part of a claim, often its reason, speaks of nothing that the passage speaks of."""
        parts = [part for part in _PARTS.split(claim) if not stopwords().issuperset(words(part))]
        groups = [self._groups(part, across) for part in parts] if len(parts) > 1 else []
        known = [[group for group, _ in part if group] for part in groups]  # without what the dictionary does not have
        return any(len(part) >= _OF_A_PART and all(map(held.isdisjoint, part)) for part in known)

    def _groups(self, claim: str, across: bool) -> Groups:
        """For each word of a claim that says something, the words that may stand for it in a passage; and its weight."""
        key = (claim, across)
        if key not in self._meant:
            meant = meanings(claim) if across else [[word] for word in content_words(claim)]
            # A word that few of the passages have tells them apart, and counts more.
            self._meant[key] = [
                (group, 1.0 / (1 + sum(not passage.words.isdisjoint(group) for passage in self._passages)))
                for group in map(frozenset, meant)
            ]
        return self._meant[key]

    @staticmethod
    def _share(groups: Groups, held: frozenset[str]) -> float:
        """The share of a claim's words, by weight, that stand among others."""
        total = sum(weight for _, weight in groups)
        return sum(weight for group, weight in groups if not held.isdisjoint(group)) / total if total else 0.0


# ---- figures --------------------------------------------------------------------------------------------------------------------

_FIGURE = re.compile(
    r"(?<![\w.])(?P<digits>\d{1,3}(?:[,，]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s?(?P<unit>%|％|k\b|K\b|[Mm]illion|[Bb]illion|[Tt]housand|千|万|亿|百万|十亿)?"
)
_UNITS = {
    "k": 1e3,
    "thousand": 1e3,
    "千": 1e3,
    "万": 1e4,
    "million": 1e6,
    "百万": 1e6,
    "亿": 1e8,
    "billion": 1e9,
    "十亿": 1e9,
}
_WORDS = dict(
    zip("one two three four five six seven eight nine ten eleven twelve".split(), range(1, 13), strict=True)  # noqa: SIM905
)
_CHINESE = {"一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10}
_SPELT = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b|[{''.join(_CHINESE)}](?=[个条项种类阶轮次步名位点])", re.IGNORECASE)


def figures(text: str, told: bool = False) -> list[float]:
    """The numbers of a text.

    Args:
        told: also those written as words ("two", 两个), which a claim may write in digits.
    """
    found: list[float] = []
    for match in _FIGURE.finditer(text):
        value = float(re.sub("[,，]", "", match["digits"]))
        unit = (match["unit"] or "").lower()
        found.append(round(value * _UNITS.get(unit, 1.0), 6))
        if told and unit in _UNITS:
            found.append(value)
    if told:
        for match in _SPELT.finditer(text):
            word = match[0].lower()
            found.append(float(_WORDS.get(word) or _CHINESE[word]))
    return found
