"""An answer without a model: the sentences that come nearest to the question, word for word, each with its place.

A sentence's score is its nearness to the question (support.py) and a share of its passage's own score, so that a sentence of a
passage that fits as a whole goes before a like one elsewhere. It loses where it cannot be the answer: it has no figure and one is
asked for, it speaks of a longer name than the question's (R1-Zero for R1), or it is a heading or a caption, which only announces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseek.knowledge.answer.support import Passage, Span, Supporter, figures
from tinyseek.knowledge.index.base import Chunk
from tinyseek.knowledge.segment import words

# In cosines: what a sentence gains if it has
_OF_WORDS = 0.3  # all of the question's words; more in a question than in a claim
_OF_NAMES = 0.07  # all of its names; and loses if they stand in it within longer ones alone
_OF_PASSAGE = 0.2  # a passage whose score is 1
# and what it loses
_NO_FIGURE = 0.05  # without a figure where one is asked for
_ANNOUNCES = 0.03  # as a heading or a caption
_AS_GOOD = 0.02  # a sentence this much less near than the best is part of the answer

_LEAST_WORDS = 4  # of a sentence: what is shorter ("2.", a name in a list of references) says nothing by itself
_MOST_CHARACTERS = 700  # of all quotes together
_LONGEST_LIST = 1500  # characters of a list and the sentence that announces it

_ASKS_FIGURE = re.compile(
    r"\bhow (?:many|much|long|high|large|big|far|fast|often|old)\b"
    r"|\b(?:accuracy|percentage|percent|score|rating|rate|number|price|cost|total|amount|size|length|share)s?\b"
    r"|多少|多[长高大远快久]|几[个种类次轮年天人名项分]|百分之|准确率|胜率|比例|分数|得分|数量|金额|价格|总额|平均",
    re.IGNORECASE,
)
_NAME = re.compile(  # DeepSeek-R1, MATH-500, GPT4
    r"(?=[\d.]*[A-Za-z])(?:[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)+|[A-Za-z]+\d[A-Za-z0-9]*)"
)
_NUMBERED = re.compile(  # numbers that tell nothing
    r"(?:figure|fig\.|table|section|chapter|equation|图|表|第)\s*\d+", re.IGNORECASE
)
_ANNOUNCING = re.compile(
    r"(?:figure|fig\.|table|图|表)\s*\d+|\d+(?:\.\d+)*\.?\s+\S[^.。]*$|.*(?:…|\. ?\. ?\.)\s*\d*$", re.IGNORECASE
)
_BLOCK = re.compile(r"(?:(?!\n\s*\n).)+(?:\n\s*)*", re.DOTALL)  # up to a blank line
_ITEM = re.compile(r"(?:[-*•·▪◦‣]|\(?\w{1,3}[.)、）])\s*")


@dataclass(frozen=True)
class Quote:
    """Sentences in a row of one passage, the answer or a part of it."""

    number: int  # of the passage, from 0
    text: str
    span: Span
    score: float
    more: Span | None = None  # the rest of a list, in the chunk after


def extract(
    question: str, passages: Sequence[Passage], scores: Sequence[float], supporter: Supporter, most: int = 3
) -> list[Quote]:
    """The sentences that answer a question best.

    Args:
        scores: of the passages, 0 to 1.
        most: sentences, what they announce not counted.
    Returns:
        Quotes, best first; none only where passages have no sentences.
    """
    ranked: list[tuple[float, int, int]] = []
    for number, passage in enumerate(passages):
        if passage.sentences:
            near = supporter.nearness(question, number, _OF_WORDS)
            for row, n in enumerate(near):
                score = float(n) + _OF_PASSAGE * scores[number] + _fits(question, passage, row)
                ranked.append((score, number, row))
    long_enough = [e for e in ranked if len(words(passages[e[1]].sentences[e[2]].text)) >= _LEAST_WORDS]
    ranked = long_enough or ranked
    ranked.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    quotes: list[Quote] = []
    taken: set[tuple[int, int]] = set()
    for score, number, row in ranked:
        if len(quotes) == most or score < ranked[0][0] - _AS_GOOD:
            break
        if (number, row) in taken or any(passages[number].sentences[row].text in quote.text for quote in quotes):
            continue
        rows = _with_what_follows(passages[number], row)
        quote = _quoted(passages[number], rows, number, score)
        if quotes and sum(len(q.text) for q in quotes) + len(quote.text) > _MOST_CHARACTERS:
            break
        taken |= {(number, r) for r in rows}
        quotes.append(quote)
    return quotes


def _fits(question: str, passage: Passage, row: int) -> float:
    """What speaks for a sentence as the answer, and against it, beside its nearness; in cosines."""
    sentence = passage.sentences[row]
    text = f"{sentence.head}\n{sentence.text}" if sentence.head else sentence.text
    before = (
        passage.sentences[row - 1].text if row else ""
    )  # "On MATH-500, it ..." is about whom the sentence before names
    names = set(_NAME.findall(question))
    fits = sum(_named(name, text) or _named(name, before) for name in names) / max(1, len(names)) * _OF_NAMES
    if _ASKS_FIGURE.search(question) and not _figures_besides(text, question):
        fits -= _NO_FIGURE
    if not sentence.head and _ANNOUNCING.match(sentence.text):
        fits -= _ANNOUNCES
    return fits


def _named(name: str, text: str) -> int:
    """1 if a text has a name, -1 if only as a part of longer ones, else 0."""
    if name not in text:
        return 0
    return 1 if re.search(rf"(?<![\w-]){re.escape(name)}(?!\w|-\w)", text) else -1


def _figures_besides(text: str, question: str) -> bool:
    """Whether a text has a number that the question does not have, those within names not counted."""
    told = figures(_NUMBERED.sub(" ", _NAME.sub(" ", text)), told=True)
    return bool(set(told) - set(figures(question, told=True)))


def _with_what_follows(passage: Passage, row: int) -> list[int]:
    """A sentence, and the list that it announces."""
    rows = [row]
    announcing = passage.sentences[row]
    if not announcing.text.rstrip().endswith((":", "：")):
        return rows
    chunk, start, end = announcing.span
    text = passage.chunks[chunk].chunk.text
    for following in range(row + 1, len(passage.sentences)):
        there, first, last = passage.sentences[following].span
        new_block = len(rows) > 1 and "\n\n" in text[end:first] and not _ITEM.match(text[first:])
        if there != chunk or last - start > _LONGEST_LIST or new_block:
            break
        rows.append(following)
        end = last
    return rows


def goes_on(quote: Quote, passage: Passage, following: Chunk) -> str:
    """The rest of a list that a quote announces, where it runs over into the chunk after the quote's own; else nothing."""
    own = passage.chunks[quote.span[0]].chunk.text
    first = quote.text.split("\n", 1)[0].rstrip()
    if not first.endswith((":", "：")) or own[quote.span[2] :].strip():
        return ""
    rest = following.text[following.overlap :]
    end = 0
    for block in _BLOCK.finditer(rest):
        if not _ITEM.match(block[0].lstrip()) or len(quote.text) + block.end() > _LONGEST_LIST:
            break
        end = block.end()
    return rest[:end].rstrip()


def _quoted(passage: Passage, rows: Sequence[int], number: int, score: float) -> Quote:
    first, last = passage.sentences[rows[0]], passage.sentences[rows[-1]]
    text = passage.chunks[first.span[0]].chunk.text[first.span[1] : last.span[2]]
    if first.head:
        rule = "|" + " --- |" * (first.head.split("\n")[0].replace("\\|", "").count("|") - 1)
        text = f"{first.head}\n{rule}\n{text}"
    return Quote(number, text, (first.span[0], first.span[1], last.span[2]), score)
