"""Where a passage stands in a document's blocks: by its words, looked for at its place first; else whole blocks.

Passages are cut from blocks, so their words are there; what may differ are blanks, line ends, and headings put between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from tinyseek.knowledge.documents.blocks import Block, Place

Spans = dict[int, list[tuple[int, int]]]  # number of a block -> parts of its text, from and to
_MOST = 3_000_000  # characters that are searched
_LEAST = 6  # letters of a piece that is looked for by itself
_CELLS = re.compile(r"([A-Z]{1,3})(\d{1,7})(?::([A-Z]{1,3})(\d{1,7}))?")
_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")

Area = tuple[int, int, int, int]  # first row and column, last row and column of cells, from 1


def find(blocks: Sequence[Block], quote: str, places: Sequence[Place]) -> Spans:
    """The parts of the blocks that are the passage; empty if there is no trace of it."""
    near = [number for number, block in enumerate(blocks) if any(touches(block.place, place) for place in places)]
    wanted = _without_head(quote)
    for candidates in (near, range(len(blocks))):
        if candidates and wanted and (found := _by_words(blocks, candidates, wanted)):
            return found
    return {number: [(0, len(blocks[number].text))] for number in near[:50]}


def touches(a: Place, b: Place) -> bool:
    """Whether two places have something in common, as far as both say where they are."""
    if a.sheet is not None or b.sheet is not None:
        if a.sheet != b.sheet:
            return False
        first, second = area(a.cells), area(b.cells)
        return first is None or second is None or overlap(first, second)
    if a.lines and b.lines:
        return a.lines[0] <= b.lines[1] and b.lines[0] <= a.lines[1]
    return a.page is not None and a.page == b.page


def area(cells: str | None) -> Area | None:
    """`B2:D9` as numbers."""
    match = _CELLS.fullmatch(cells or "")
    if match is None:
        return None
    last_column, last_row = match[3] or match[1], match[4] or match[2]
    return int(match[2]), column_number(match[1]), int(last_row), column_number(last_column)


def overlap(a: Area, b: Area) -> bool:
    """Whether two areas share a cell."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def column_number(letters: str) -> int:
    """`A` is 1, `AA` 27."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return number


def column_letters(number: int) -> str:
    """The other way round."""
    letters = ""
    while number > 0:
        number, rest = divmod(number - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def _without_head(quote: str) -> str:
    """A table's rows without the head that every piece of it repeats."""
    lines = quote.strip().splitlines()
    rule = next((number for number, line in enumerate(lines) if _RULE.fullmatch(line.strip())), None)
    body = lines[rule + 1 :] if rule is not None and rule + 1 < len(lines) else lines
    return "\n".join(body)


def words_of(quote: str) -> str:
    """A quote as it stands on a page: rows of a table without what Markdown puts around their cells."""
    body = _without_head(quote)
    return body if not body.lstrip().startswith("|") else body.replace("\\|", "\0").replace("|", " ").replace("\0", "|")


def _by_words(blocks: Sequence[Block], candidates: Sequence[int], quote: str) -> Spans:
    texts: list[str] = []
    numbers: list[int] = []
    length = 0
    for number in candidates:
        squeezed = "".join(blocks[number].text.split())
        length += len(squeezed)
        if length > _MOST:
            break
        texts.append(squeezed)
        numbers.append(number)
    stream = "".join(texts)
    starts = [0, *accumulate(map(len, texts))]
    whole = "".join(quote.split())
    at = stream.find(whole)
    pieces = [(at, at + len(whole))] if at >= 0 else _pieces(stream, quote)
    found: Spans = {}
    for start, end in pieces:
        for place, number in enumerate(numbers):
            begin, stop = max(start, starts[place]), min(end, starts[place + 1])
            if begin < stop:
                text = blocks[number].text
                span = _spread(text, begin - starts[place], stop - starts[place])
                found.setdefault(number, []).append(span)
    return {number: _merged(spans) for number, spans in found.items()}


def _pieces(stream: str, quote: str) -> list[tuple[int, int]]:
    """The lines of a quote one by one, each where it comes next."""
    found: list[tuple[int, int]] = []
    after = 0
    for line in quote.splitlines():
        piece = "".join(line.split())
        if len(piece) < _LEAST:
            continue
        at = stream.find(piece, after)
        at = at if at >= 0 else stream.find(piece)
        if at >= 0:
            found.append((at, at + len(piece)))
            after = at + len(piece)
    return found


def _spread(text: str, start: int, end: int) -> tuple[int, int]:
    """A part of a text without its blanks as a part of the text with them."""
    seen, first = 0, 0
    for at, character in enumerate(text):
        if character.isspace():
            continue
        if seen == start:
            first = at
        seen += 1
        if seen == end:
            return first, at + 1
    return first, len(text)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
