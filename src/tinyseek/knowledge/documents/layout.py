"""Words on a page to lines in reading order: pieces of lines, columns, what repeats in the margins.

Columns are found from above: as long as a blank strip stays free between two sides that both hold text, the page has columns there,
and the first thing that runs across ends them. That reads a title over two columns, and a figure across them, as they are meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tinyseek.knowledge.documents.blocks import Box
from tinyseek.knowledge.documents.pdf_page import Page, Style, Word

_JOIN = 0.8  # of the font's size: a wider gap may be one between columns or cells
_GUTTER = 7.0  # points: the narrowest strip between columns
_MARGIN = 60.0  # points: the narrowest column at a page's edge
_BACK = 60  # pieces that are looked at again when columns begin below what ran across
_LEAST = 3  # lines that each column must have
CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_CJK_END, _CJK_START = re.compile(f"[{CJK}]$"), re.compile(f"^[{CJK}]")
_CLOSING, _OPENING = "，。；：！？、）】」』》〉〕”’…", "（【「『《〈〔“‘"
_STEM, _FIRST = re.compile(r"([^\W_][\w.-]*)-$"), re.compile(r"\w+")
_ADDRESS = re.compile(r"(?:https?:(?://\S*)?|www\.\S+)(?<![.,;)\]])$")
_ADDRESS_PART = re.compile(r"//|[-./_=?&%]\w|[\w%]+[-./_=?&%]\w")
_COUNTED = (re.compile(r"^(?:page|p\.|第)?\W{0,3}(\d{1,5})\b", re.I), re.compile(r"(\d{1,5})\D{0,3}$"))
_TAIL = 300  # characters
_MARGIN_LINES = 3  # at either end of a page
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b")


_PLAIN = Style()


@dataclass(slots=True, eq=False)
class Piece:
    """Words that stand next to each other on a line; or a whole that other code has found (a table, a figure's text)."""

    x0: float
    top: float
    x1: float
    bottom: float
    words: list[Word] = field(default_factory=list)
    whole: Any = None


@dataclass(slots=True, eq=False)
class Line:
    """A line of one column."""

    x0: float
    top: float
    x1: float
    bottom: float
    words: list[Word]
    page: int = 0
    left: float = 0.0  # edges of its column
    right: float = 0.0
    column: int = 0  # on its page, in reading order
    whole: Any = None
    text: str = ""
    style: Style = _PLAIN  # of most of it
    bold: bool = False  # all of it
    mono: bool = False
    math: float = 0.0  # share of its characters

    @property
    def box(self) -> Box:
        """Where it stands."""
        return self.x0, self.top, self.x1, self.bottom

    @property
    def size(self) -> float:
        """Of most of it, points."""
        return self.style.size


def pieces_of(words: Iterable[Word], join: float = _JOIN) -> list[Piece]:
    """Words to pieces of lines, in the file's own order.

    Args:
        join: the widest gap in a piece, of the font's size.
    """
    pieces: list[Piece] = []
    piece: Piece | None = None
    size = 0.0  # of the last word
    for word in words:
        style = word.style
        top, bottom = word.top, word.bottom
        if piece is not None:
            larger = style.size if style.size > size else size
            gap = word.x0 - piece.x1
            if -0.4 * larger <= gap < (join + 0.35 if style.mono else join) * larger:
                low = top if top > piece.top else piece.top
                high = bottom if bottom < piece.bottom else piece.bottom
                if high - low >= 0.5 * (bottom - top) or high - low >= 0.5 * (piece.bottom - piece.top):
                    piece.words.append(word)
                    if word.x1 > piece.x1:
                        piece.x1 = word.x1
                    if top < piece.top:
                        piece.top = top
                    if bottom > piece.bottom:
                        piece.bottom = bottom
                    size = style.size
                    continue
        piece = Piece(word.x0, top, word.x1, bottom, [word])
        size = style.size
        pieces.append(piece)
    return pieces


# ---- columns ---------------------------------------------------------------------------------------------------------------------


def in_order(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces to columns in reading order; a part of the page that has none is one column."""
    if not pieces:
        return []
    page = min(piece.x0 for piece in pieces), max(piece.x1 for piece in pieces)
    runs: list[list[list[Piece]]] = []
    run: list[Piece] = []
    free: list[tuple[float, float]] = []  # strips that nothing of the run stands in
    for piece in sorted(pieces, key=lambda piece: (piece.top, piece.x0)):
        if run:
            left = _without(free, piece, page)
            if not left:
                gutters = _gutters(run, free)
                if gutters and _sticks_out(piece, gutters):
                    run.append(piece)
                    continue
                after = [] if gutters else _end_that_fits(run, piece, page)
                runs.append(_columns(run[: len(run) - len(after)], gutters))
                run = after
                left = [page]
                for entry in (*run, piece):
                    left = _without(left, entry, page)
        else:
            left = _without([page], piece, page)
        run.append(piece)
        free = left
    runs.append(_columns(run, _gutters(run, free)))
    columns: list[list[Piece]] = []
    plain = False
    for parts in runs:
        if plain and len(parts) == 1:
            columns[-1] += parts[0]
        else:
            columns += parts
        plain = len(parts) == 1
    return columns


def _end_that_fits(run: list[Piece], piece: Piece, page: tuple[float, float]) -> list[Piece]:
    """The last pieces of a run without columns that leave strips free together with the piece after them."""
    free = _without([page], piece, page)
    fits: list[Piece] = []
    for before in reversed(run[-_BACK:]):
        free = _without(free, before, page)
        if not free:
            break
        fits.append(before)
    return fits[::-1]


def _without(free: list[tuple[float, float]], piece: Piece, page: tuple[float, float]) -> list[tuple[float, float]]:
    """Free strips less what a piece takes. Too narrow for a gutter, or at the margin too narrow for a column: no strip."""
    left: list[tuple[float, float]] = []
    for start, end in free:
        if piece.x1 <= start or piece.x0 >= end:
            left.append((start, end))
            continue
        for a, b in ((start, piece.x0), (piece.x1, end)):
            if b - a >= (_MARGIN if a <= page[0] or b >= page[1] else _GUTTER):
                left.append((a, b))
    return left


def _gutters(run: list[Piece], free: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The free strips that divide columns of running text."""
    found: list[tuple[float, float]] = []
    before: list[Piece] = []
    rest = run
    for strip in sorted(free):
        middle = (strip[0] + strip[1]) / 2
        side = [piece for piece in rest if piece.x1 <= middle]
        before, rest = before + side, [piece for piece in rest if piece.x1 > middle]
        if _beside(before, rest) and ((_is_text(before) and _is_text(rest)) or _out_of_step(before, rest)):
            found.append(strip)
            before = []
    return found


def _is_text(side: list[Piece]) -> bool:
    """Whether a column holds running text: enough lines, most of them long, rather than cells or labels."""
    if sum(piece.whole is None for piece in side) < _LEAST:
        return False
    left, right = min(piece.x0 for piece in side), max(piece.x1 for piece in side)
    full = sum(piece.x1 - piece.x0 > 0.6 * (right - left) for piece in side)
    letters = sum(len(word.text) * (1 if word.text.isascii() else 2) for piece in side for word in piece.words)
    return full >= 0.4 * len(side) and letters >= 14 * len(side)


def _out_of_step(one: list[Piece], other: list[Piece]) -> bool:
    """Whether the lines of two sides stand at different heights, so that they cannot be rows: lists of names side by side."""
    if min(len(one), len(other)) < 2 * _LEAST:
        return False
    bottoms = sorted(piece.bottom for piece in other)
    few = min(len(one), len(other))
    level = sum(
        min((abs(b - piece.bottom) for b in bottoms), default=99.0) < 0.15 * (piece.bottom - piece.top) for piece in one
    )
    return level < 0.6 * few


def _beside(one: list[Piece], other: list[Piece]) -> bool:
    if not one or not other:
        return False
    tops, bottoms = (
        [min(p.top for p in side) for side in (one, other)],
        [max(p.bottom for p in side) for side in (one, other)],
    )
    heights = [bottom - top for top, bottom in zip(tops, bottoms, strict=True)]
    return min(bottoms) - max(tops) > 0.3 * min(heights)


def _sticks_out(piece: Piece, gutters: list[tuple[float, float]]) -> bool:
    """Whether a piece belongs to one column and only its end runs into the next: a long formula or address."""
    if piece.whole is not None:
        return False
    over = max(min(piece.x1 - b, a - piece.x0) for a, b in gutters)
    return over < min(60.0, 0.25 * (piece.x1 - piece.x0))


def _columns(run: list[Piece], gutters: list[tuple[float, float]]) -> list[list[Piece]]:
    if not gutters:
        return [run]
    edges = [0.0, *((a + b) / 2 for a, b in gutters), 1e6]
    parts = [[p for p in run if low <= (p.x0 + p.x1) / 2 < high] for low, high in pairwise(edges)]
    return [part for part in parts if part]


# ---- lines -----------------------------------------------------------------------------------------------------------------------


def lines_of(page: Page, pieces: Sequence[Piece]) -> list[Line]:
    """All lines of a page, column by column."""
    lines: list[Line] = []
    for number, column in enumerate(in_order(pieces)):
        texts = [piece for piece in column if piece.whole is None] or column
        left, right = min(piece.x0 for piece in texts), max(piece.x1 for piece in texts)
        for row in rows_of(column):
            lines.append(_line(row, page.number, left, right, number))
    return lines


def rows_of(column: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that stand beside each other, from top to bottom, each from left to right."""
    rows: list[list[Piece]] = []
    top = bottom = 0.0
    for piece in sorted(column, key=lambda piece: (piece.top + piece.bottom, piece.x0)):
        if rows and piece.whole is None and rows[-1][0].whole is None:
            overlap = min(bottom, piece.bottom) - max(top, piece.top)
            if overlap > 0.5 * min(bottom - top, piece.bottom - piece.top):
                rows[-1].append(piece)
                top, bottom = min(top, piece.top), max(bottom, piece.bottom)
                continue
        rows.append([piece])
        top, bottom = piece.top, piece.bottom
    for row in rows:
        row.sort(key=lambda piece: piece.x0)
    return rows


def _line(row: list[Piece], page: int, left: float, right: float, column: int) -> Line:
    words = row[0].words if len(row) == 1 else [word for piece in row for word in piece.words]
    x0, x1 = row[0].x0, max(piece.x1 for piece in row)
    top, bottom = min(piece.top for piece in row), max(piece.bottom for piece in row)
    line = Line(x0, top, x1, bottom, words, page, left, right, column, row[0].whole)
    if words:
        describe(line)
    return line


def describe(line: Line) -> None:
    """Fill in what a line's words say of it."""
    words = line.words
    first = words[0].style
    line.text = joined(words)
    if all(word.style is first for word in words):
        line.style, line.bold, line.mono, line.math = first, first.bold, first.mono, float(first.math)
        return
    counts: dict[Style, int] = {}
    for word in words:
        counts[word.style] = counts.get(word.style, 0) + len(word.text)
    total = sum(counts.values()) or 1
    line.style = max(counts, key=lambda style: counts[style])
    line.bold = all(style.bold or count <= 1 or style.math for style, count in counts.items()) and line.style.bold
    line.mono = sum(count for style, count in counts.items() if style.mono) > 0.9 * total
    line.math = sum(count for style, count in counts.items() if style.math) / total


def joined(words: Sequence[Word]) -> str:
    """Words with a blank between, but for Chinese ones that touch."""
    texts = [word.text for word in words]
    whole = " ".join(texts)
    if whole.isascii() or len(texts) == 1:
        return whole
    parts = [texts[0]]
    for before, word in pairwise(words):
        gap = (word.x0 - before.x1) / max(word.style.size, 1.0)
        cjk = _CJK_END.search(before.text), _CJK_START.search(word.text)
        marks = word.text[0] in _CLOSING or before.text[-1] in _OPENING
        if not (marks or (all(cjk) and gap < 0.2) or (any(cjk) and gap < 0.1)):
            parts.append(" ")
        parts.append(word.text)
    return "".join(parts)


def glue(above: str, below: str, known: Container[str] = ()) -> str:
    """Two lines of a paragraph as one text: broken words made whole, no blank between Chinese characters.

    Args:
        known: words of the same document, in small letters. "cold-" "start" is coldstart if that stands there; else cold-start if
            that does, or cold and start by themselves; else coldstart, as most words that are broken in two are one.
    """
    end = above[-_TAIL:]  # a paragraph is glued line by line, and may be long
    if _CJK_END.search(end[-1:]) and _CJK_START.match(below):
        return above + below
    if _ADDRESS.search(end) and (above.endswith(":") or _ADDRESS_PART.match(below)):
        return above + below
    stem = _STEM.search(end) if end.endswith("-") else None
    if stem is None or not below[:1].isalnum():
        return f"{above} {below}"
    first = _FIRST.match(below)
    last = stem.group(1).casefold()
    if not below[0].islower() or not last.isalpha() or first is None:
        return above + below  # DeepSeek-R1, state-of-the-art
    following = first.group().casefold()
    words = min(len(last), len(following)) > 2 and last in known and following in known  # "larger-" "scale"
    keeps = last + following not in known and (words or f"{last}-{following}" in known)
    return above + below if keeps else above[:-1] + below


# ---- margins ---------------------------------------------------------------------------------------------------------------------


def without_margins(pages: Sequence[tuple[Page, list[Line]]]) -> None:
    """Take away running heads, running feet and page numbers.

    They stand at one height on three pages or more, and either say the same, numbers aside, or count the pages.
    """
    for _ in range(_MARGIN_LINES):
        edges = [edge for page, lines in pages for edge in _edges(page, lines)]
        same = Counter(key for edge in edges for key in edge.keys)
        gone = [edge for edge in edges if any(same[key] >= 3 for key in edge.keys)]
        for edge in gone:
            if edge.line in edge.lines:
                height = edge.line.bottom - edge.line.top
                beside = [
                    other
                    for other in edge.lines
                    if other.whole is None
                    and len(other.text) <= 80
                    and min(other.bottom, edge.line.bottom) - max(other.top, edge.line.top) > 0.5 * height
                ]
                for other in beside if len(beside) <= 3 else []:
                    edge.lines.remove(other)
                if edge.line in edge.lines:
                    edge.lines.remove(edge.line)
        if not gone:
            return


@dataclass(frozen=True)
class _Edge:
    """The first or last line of a page, with what it may have in common with others'."""

    lines: list[Line]
    line: Line
    keys: tuple[tuple[str, bool, int], ...]


def _edges(page: Page, lines: list[Line]) -> list[_Edge]:
    texts = [line for line in lines if line.whole is None]
    found: list[_Edge] = []
    for line, at_top in ((min(texts, key=_top), True), (max(texts, key=_bottom), False)) if texts else ():
        if (line.bottom if at_top else page.height - line.top) > 0.14 * page.height:
            continue
        said = _NUMBER.sub("#", line.text.casefold())
        keys = [(said, at_top, round(line.top / 8)), (said, at_top, round(line.top / 8 + 0.5) + 10_000)]
        for pattern in _COUNTED if len(line.text) < 120 else ():
            if counted := pattern.search(line.text):
                keys.append((f"#{int(counted.group(1)) - page.number}", at_top, round(line.top / 4)))
        found.append(_Edge(lines, line, tuple(keys)))
    return found


def _top(line: Line) -> float:
    return line.top


def _bottom(line: Line) -> float:
    return line.bottom
