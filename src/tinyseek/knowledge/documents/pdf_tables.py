"""Tables on a page of a PDF: from regions that may hold one (pdf_rules) to rows and columns of cells.

Rows are what stands beside each other; columns are parted by lines down and by gaps that stay free in nearly every row. Lines
across say where the head ends, what a spanning head spans, and which lines of text are one row. What is no table stays text.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tinyseek.knowledge.documents.blocks import Box, Table
from tinyseek.knowledge.documents.layout import Piece, glue, joined, pieces_of, rows_of
from tinyseek.knowledge.documents.pdf_page import Page, Word
from tinyseek.knowledge.documents.pdf_rules import CAPTION, Region, regions_of

_PHRASE = 0.4  # of the font's size: a narrower gap is a blank within a cell
_FULL = 0.8  # of a region's width: a longer line goes all across
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[^\W\d_]")
_LEADERS = re.compile(r"(?:\. ?){4}|…{2}|·{4}")
_NUMBER = re.compile(r"[\s$€£¥+\-−–(]*[\d.,:/]+\s*[%)kKMBx×±\d.,°]*[*†‡]*|[-–—−✓✗×]|n/?a", re.I)


@dataclass(slots=True)
class _Row:
    """One line of a table, or what is put together of several."""

    top: float
    bottom: float
    pieces: list[Piece]
    cells: dict[int, str] = field(default_factory=dict)
    spans: dict[int, int] = field(default_factory=dict)  # column -> how many columns its cell takes


def tables_of(page: Page, words: list[Word], pieces: Sequence[Piece]) -> tuple[list[Word], list[tuple[Table, Box]]]:
    """Take the tables out of a page.

    Args:
        pieces: the same words as pieces of lines.
    Returns:
        The words that are in no table, and each table with its box.
    """
    found: list[tuple[Table, Box]] = []
    for region in regions_of(page, pieces):
        inside = [w for w in words if _is_in(w, region)]
        if len(inside) < 4 or len({w.angle for w in inside}) > 1:
            continue
        for rows in _parts(region, inside):
            table = _Solver(region, rows).table()
            if table is None:
                continue
            taken = [word for row in rows for piece in row.pieces for word in piece.words]
            gone = set(map(id, taken))
            words = [word for word in words if id(word) not in gone]
            found.append((table, _around(taken, region)))
    return words, found


def _is_in(word: Word, region: Region) -> bool:
    x, y = (word.x0 + word.x1) / 2, (word.top + word.bottom) / 2
    return region.x0 - 4 <= x <= region.x1 + 4 and region.top - 1 <= y <= region.bottom + 1


def _around(words: list[Word], region: Region) -> Box:
    top, bottom = min(w.top for w in words), max(w.bottom for w in words)
    lines = [b for b in region.across if top - 12 <= b[1] <= bottom + 12] if region.is_ruled else []
    return (
        min(min(w.x0 for w in words), *(b[0] for b in lines)) if lines else min(w.x0 for w in words),
        min([top, *(b[1] for b in lines)]),
        max(max(w.x1 for w in words), *(b[2] for b in lines)) if lines else max(w.x1 for w in words),
        max([bottom, *(b[3] for b in lines)]),
    )


# ---- parts -----------------------------------------------------------------------------------------------------------------------


def _parts(region: Region, words: list[Word]) -> list[list[_Row]]:
    """A region's rows, parted where running text or a wide gap lies between."""
    rows = [
        _Row(min(p.top for p in row), max(p.bottom for p in row), row)
        for row in rows_of(pieces_of(sorted(words, key=_reading), _PHRASE))
    ]
    height = statistics.median(row.bottom - row.top for row in rows)
    parts: list[list[_Row]] = [[]]
    texts = [_is_running(row, region) for row in rows]
    for index, row in enumerate(rows):
        beside = texts[max(0, index - 1) : index + 2]
        if texts[index] and (sum(beside) > 1 or _is_caption(row)):
            parts.append([])
            continue
        last = parts[-1][-1] if parts[-1] else None
        if last is not None and row.top - last.bottom > 2.2 * height and not _crossed(last.bottom, row.top, region):
            parts.append([])
        parts[-1].append(row)
    for part in parts:
        while part and len(part[0].pieces) == 1:  # a title above, in the same frame
            del part[0]
        while part and len(part[-1].pieces) == 1 and len(part[-1].pieces[0].words) > 4:  # a note below
            del part[-1]
    return [part for part in parts if len(part) >= 2]


def _reading(word: Word) -> tuple[float, float]:
    return round((word.top + word.bottom) / 4), word.x0


def _is_caption(row: _Row) -> bool:
    return bool(CAPTION.match(joined(row.pieces[0].words[:3])))


def _is_running(row: _Row, region: Region) -> bool:
    """Whether a row is a line of running text that goes over all columns."""
    if len(row.pieces) > 2:
        return False
    if _is_caption(row) and len(row.pieces) == 1:
        return True
    widest = max(row.pieces, key=lambda piece: piece.x1 - piece.x0)
    width = region.x1 - region.x0
    if len(widest.words) < 6 or widest.x1 - widest.x0 < 0.6 * width or widest.x0 - region.x0 > 0.15 * width:
        return False
    beside = [b for b in region.down if b[1] < row.bottom and b[3] > row.top and region.x0 + 5 < b[0] < region.x1 - 5]
    return not beside or any(widest.x0 + 3 < b[0] < widest.x1 - 3 for b in beside)


def _crossed(top: float, bottom: float, region: Region) -> bool:
    """Whether a line down goes through a gap."""
    return any(b[1] < top + 2 and b[3] > bottom - 2 for b in region.down)


# ---- one table -------------------------------------------------------------------------------------------------------------------


class _Solver:
    """Rows and columns of one table."""

    def __init__(self, region: Region, rows: list[_Row]) -> None:
        self._region, self._rows = region, rows
        self._size = statistics.median(p.words[0].style.size for row in rows for p in row.pieces) or 10.0
        pieces = [piece for row in rows for piece in row.pieces]
        self._x0 = min(p.x0 for p in pieces)
        self._x1 = max(p.x1 for p in pieces)
        if region.is_ruled:
            self._x0, self._x1 = min(self._x0, region.x0), max(self._x1, region.x1)
        self._width = max(1.0, self._x1 - self._x0)
        top, bottom = rows[0].top, rows[-1].bottom
        inner = [b for b in region.across if top < (b[1] + b[3]) / 2 < bottom]
        self._full = sorted({round((b[1] + b[3]) / 2, 1) for b in inner if b[2] - b[0] >= _FULL * self._width})
        self._short = [b for b in inner if b[2] - b[0] < _FULL * self._width]
        self._down = [b for b in region.down if b[3] > top and b[1] < bottom]
        self._head = self._end_of_head()
        self._edges: list[float] = []

    def table(self) -> Table | None:
        """The table, or None if this is none."""
        body = [row for row in self._rows if row.top >= self._head - 2]
        if not body:
            return None
        self._edges = self._columns(body)
        if not self._edges:
            return None
        for row in self._rows:
            self._fill(row, row.bottom <= self._head + 2)
        head = self._heads([row for row in self._rows if row.top < self._head - 2])
        bands = [self._one_band(band) for band in self._bands(body)]
        labels: list[tuple[int, int]] = []
        rows = list(head)
        for band in bands:
            count = _label(band)
            if count > 1:
                labels.append((len(rows), count))
            rows += band
        return self._checked(rows, len(head), labels)

    def _end_of_head(self) -> float:
        """Where the head ends: at the first line all across with rows on both sides; minus infinity without one."""
        for y in self._full:
            above = [row for row in self._rows if row.bottom <= y + 2]
            below = [row for row in self._rows if row.top >= y - 2]
            if above and below and (max(len(row.pieces) for row in above) > 1 or y == self._full[-1]):
                return y if len(above) <= 8 and len(above) < 2 * len(below) + 3 else float("-inf")
        return float("-inf")

    # columns

    def _columns(self, body: list[_Row]) -> list[float]:
        """The x at which columns part."""
        lines = self._lines_down()
        if lines and self._few_crossed(lines, body) and self._boxed(lines, body):
            return lines
        gaps = self._gaps(body)
        edges = [(a + b) / 2 for a, b in gaps]
        for x in lines:
            inside = next((i for i, (a, b) in enumerate(gaps) if a - 2 <= x <= b + 2), None)
            if inside is not None:
                edges[inside] = x
            elif self._few_crossed([x], body):
                edges.append(x)
        return sorted(edges)

    def _lines_down(self) -> list[float]:
        """Where lines go down for a good part of the height, between the outer edges."""
        lengths: dict[int, list[Box]] = {}
        for box in self._down:
            lengths.setdefault(round(box[0] / 3), []).append(box)
        height = self._rows[-1].bottom - self._rows[0].top
        found: list[float] = []
        for slot in sorted(lengths):
            boxes = lengths[slot]
            x = statistics.mean((b[0] + b[2]) / 2 for b in boxes)
            inner = any(p.x1 < x + 2 for row in self._rows for p in row.pieces) and any(
                p.x0 > x - 2 for row in self._rows for p in row.pieces
            )
            if inner and sum(b[3] - b[1] for b in boxes) >= 0.4 * height and (not found or x - found[-1] > 5):
                found.append(x)
        return found

    def _few_crossed(self, lines: list[float], body: list[_Row]) -> bool:
        crossed = sum(any(p.x0 + 2 < x < p.x1 - 2 for p in row.pieces for x in lines) for row in body)
        return crossed <= 0.2 * len(body)

    def _boxed(self, lines: list[float], body: list[_Row]) -> bool:
        """Whether lines part all columns: hardly a cell between them holds pieces far apart."""
        many = cells = 0
        for row in body:
            for a, b in zip([self._x0 - 9, *lines], [*lines, self._x1 + 9], strict=True):
                inside = [p for p in row.pieces if a <= (p.x0 + p.x1) / 2 < b]
                cells += bool(inside)
                many += any(q.x0 - p.x1 > 1.2 * self._size for p, q in pairwise(inside))
        return many <= 0.1 * cells

    def _gaps(self, body: list[_Row]) -> list[tuple[float, float]]:
        """Strips that stay free in nearly every row of the body."""
        several = [row for row in body if len(row.pieces) > 1]
        voting = [
            row
            for row in body
            if len(row.pieces) > 1 or not several or row.pieces[0].x1 - row.pieces[0].x0 < 0.3 * self._width
        ]
        if self._head == float("-inf") and len(voting) >= 4:
            voting = voting[1:]  # a head may span
        count = len(several)
        if not count:
            return []
        narrowest = self._size * (1.0 if count <= 2 else 0.8 if count == 3 else 0.45 if self._region.is_ruled else 0.8)
        spare = int(0.08 * len(voting)) if len(voting) >= 10 else 0
        changes: list[tuple[float, int]] = []
        for row in voting:
            for piece in row.pieces:
                changes += [(piece.x0, 1), (piece.x1, -1)]
        changes.sort()
        gaps: list[tuple[float, float]] = []
        covered, start = 0, None
        for x, change in changes:
            before, covered = covered, covered + change
            if before > spare >= covered:
                start = x
            elif before <= spare < covered and start is not None:
                if x - start >= narrowest:
                    gaps.append((start, x))
                start = None
        return gaps

    # cells

    def _column(self, x: float) -> int:
        return sum(x >= edge for edge in self._edges)

    def _fill(self, row: _Row, in_head: bool) -> None:
        for piece in row.pieces:
            first, count = self._span(piece, row, in_head)
            if count:
                self._put(row, first, count, joined(piece.words))
                continue
            for word in piece.words:
                self._put(row, self._column((word.x0 + word.x1) / 2), 1, word.text)

    def _put(self, row: _Row, column: int, count: int, text: str) -> None:
        row.cells[column] = f"{row.cells[column]} {text}" if column in row.cells else text
        if count > 1:
            row.spans[column] = max(count, row.spans.get(column, 1))

    def _span(self, piece: Piece, row: _Row, in_head: bool) -> tuple[int, int]:
        """The first column that a piece stands in and how many it takes; no columns if its words must be shared out."""
        first, last = self._column(piece.x0 + 1), self._column(piece.x1 - 1)
        if in_head:
            for a, y, b, _ in self._short:
                if -3 <= y - row.bottom < 9 and a - 3 <= piece.x0 and piece.x1 <= b + 3:
                    under = [c for c in range(len(self._edges) + 1) if a - 3 <= self._middle(c) <= b + 3]
                    if len(under) > 1:
                        return under[0], len(under)
        middle = abs((piece.x0 + piece.x1) - (self._x0 + self._x1)) / 2 < 0.03 * self._width
        if middle and self._region.is_ruled and len(row.pieces) == 1 and not in_head and not self._beside(row):
            return 0, len(self._edges) + 1  # a title between rows
        if first == last:
            return first, 1
        if last == first + 1:
            over = piece.x1 - self._edges[first], self._edges[first] - piece.x0
            if min(over) < 0.3 * (piece.x1 - piece.x0) or len(piece.words) == 1:
                return (last if over[0] > over[1] else first), 1
        left = self._edges[first - 1] if first else self._x0
        right = self._edges[last] if last < len(self._edges) else self._x1
        centred = abs((piece.x0 + piece.x1) - (left + right)) / 2 < 0.15 * (right - left)
        if centred or len(row.pieces) == 1 or (last - first == 1 and in_head):
            return first, last - first + 1
        return first, 0

    def _beside(self, row: _Row) -> bool:
        """Whether lines down part a row."""
        return any(b[1] < row.bottom and b[3] > row.top and self._x0 + 5 < b[0] < self._x1 - 5 for b in self._down)

    def _middle(self, column: int) -> float:
        edges = [self._x0, *self._edges, self._x1]
        return (edges[column] + edges[column + 1]) / 2

    # rows

    def _heads(self, rows: list[_Row]) -> list[_Row]:
        """The head's lines as one row, or one above and one below each short line."""
        cuts = sorted(
            {round((b[1] + b[3]) / 2, 0) for b in self._short} | {y for y in self._full if y < self._head - 1}
        )
        groups: list[list[_Row]] = []
        level = None
        for row in rows:
            here = sum(row.bottom > y + 3 for y in cuts)
            if level is None or here != level:
                groups.append([])
                level = here
            groups[-1].append(row)
        return [_together(group) for group in groups]

    def _bands(self, body: list[_Row]) -> list[list[_Row]]:
        """Rows between two lines all across."""
        bands: list[list[_Row]] = []
        level = None
        for row in body:
            here = sum((row.top + row.bottom) / 2 > y for y in self._full)
            if level is None or here != level:
                bands.append([])
                level = here
            bands[-1].append(row)
        return bands

    def _one_band(self, band: list[_Row]) -> list[_Row]:
        """A band's lines as rows: one row if they are lines of wrapped cells, else a row each, but for second lines of a cell."""
        if len(band) == 1:
            return band
        filled: dict[int, int] = {}
        for row in band:
            for column in row.cells:
                filled[column] = filled.get(column, 0) + 1
        ruled = len(self._full) >= 3 and len(self._rows) <= 3.5 * (len(self._full) + 1)
        wrapped = sum(count >= 2 for count in filled.values()) <= 0.5 * len(filled) and filled.get(0, 0) <= 1
        if len(filled) > 1 and ((ruled and self._region.down) or (wrapped and len(band) <= 8 and self._is_close(band))):
            return [_together(band)]
        return self._without_second_lines(band)

    def _is_close(self, band: list[_Row]) -> bool:
        return all(b.top - a.bottom < 0.6 * self._size for a, b in pairwise(band))

    def _without_second_lines(self, band: list[_Row]) -> list[_Row]:
        gaps = [b.top - a.bottom for a, b in pairwise(band)]
        keyed = [gap for gap, row in zip(gaps, band[1:], strict=True) if 0 in row.cells and len(row.cells) > 1]
        usual = statistics.median(keyed) if keyed else 0.0
        rows = [band[0]]
        for gap, row in zip(gaps, band[1:], strict=True):
            last = rows[-1]
            inside = set(row.cells) <= set(last.cells)
            nearer = gap < usual - 0.25 * self._size
            wraps = all(_LETTER.search(text) for text in row.cells.values()) and all(
                self._is_wide(last, column) for column in row.cells
            )
            if inside and 0 < len(row.cells) < max(2, len(last.cells)) and row.top > last.top + 2 and (
                nearer or (0 not in row.cells and len(row.cells) == 1 and wraps and gap <= usual + 1)
            ):  # fmt: skip
                rows[-1] = _together([last, row])
            else:
                rows.append(row)
        return rows

    def _is_wide(self, row: _Row, column: int) -> bool:
        """Whether a cell's text reaches nearly to its column's end."""
        edges = [self._x0, *self._edges, self._x1]
        pieces = [p for p in row.pieces if self._column((p.x0 + p.x1) / 2) == column]
        return bool(pieces) and max(p.x1 for p in pieces) > edges[column + 1] - max(
            4 * self._size, 0.2 * self._width / len(edges)
        )

    # judgement

    def _checked(self, rows: list[_Row], heads: int, labels: list[tuple[int, int]]) -> Table | None:
        width = len(self._edges) + 1
        if sum(bool(_LEADERS.search(text)) for row in rows for text in row.cells.values()) > 0.1 * len(rows):
            return None  # a table of contents
        cells = [tuple(" ".join(row.cells.get(column, "").split()) for column in range(width)) for row in rows]
        used = [column for column in range(width) if any(row[column] for row in cells)]
        if len(used) < 2 or len(cells) < 2:
            return None
        filled = sum(bool(cell) for row in cells for cell in row)
        taken = sum(count - 1 for row in rows for count in row.spans.values()) + sum(count - 1 for _, count in labels)
        share = (filled + taken) / (len(cells) * width)
        several = sum(sum(map(bool, row)) > 1 for row in cells)
        lengths = [len(cell) for row in cells for cell in row if cell]
        if share < (0.3 if self._region.is_ruled else 0.5) or several < 2:
            return None
        if not self._region.is_ruled and not self._convincing(cells, lengths):
            return None
        if self._region.is_ruled and width == 2 and not self._down and statistics.median(lengths) > 60:
            return None
        merged = [
            (i, column, 1, count) for i, row in enumerate(rows) for column, count in row.spans.items() if count > 1
        ]
        merged += [(first, 0, count, 1) for first, count in labels]
        head = heads or (0 if _has_numbers(cells[0]) and _has_numbers(cells[1]) else 1)
        return Table(tuple(cells), head, tuple(sorted(merged)))

    def _convincing(self, cells: list[tuple[str, ...]], lengths: list[int]) -> bool:
        """Whether text without any lines is a table: short cells, most of them there, and numbers or a caption."""
        if statistics.median(lengths) > 24:
            return False
        if self._region.captioned:
            return True
        numbers = sum(bool(_NUMBER.fullmatch(cell)) for row in cells for cell in row)
        return len(cells) >= 3 and len(cells[0]) >= 3 and numbers >= 0.25 * len(lengths)


def _has_numbers(row: tuple[str, ...]) -> bool:
    full = [cell for cell in row if cell]
    return sum(bool(_NUMBER.fullmatch(cell)) for cell in full) > 0.4 * len(full)


def _together(rows: list[_Row]) -> _Row:
    """Lines as one row: each column's texts joined from top to bottom."""
    if len(rows) == 1:
        return rows[0]
    whole = _Row(rows[0].top, max(row.bottom for row in rows), [piece for row in rows for piece in row.pieces])
    for row in rows:
        for column, text in sorted(row.cells.items()):
            whole.cells[column] = glue(whole.cells[column], text) if column in whole.cells else text
        for column, count in row.spans.items():
            whole.spans[column] = max(count, whole.spans.get(column, 1))
    return whole


def _label(band: list[_Row]) -> int:
    """Put the label of a group of rows, which stands at half their height, into the first of them.

    Returns:
        How many rows it is the label of, 0 for none.
    """
    labels = [row for row in band if 0 in row.cells]
    if len(labels) != 1 or len(band) < 2:
        return 0
    label = labels[0]
    alone = len(label.cells) == 1
    if alone:
        index = band.index(label)
        between = (index > 0 and label.top < band[index - 1].bottom - 1) or (
            index + 1 < len(band) and label.bottom > band[index + 1].top + 1
        )
        if not between:
            return 0
        band.remove(label)
        if 0 in label.cells and band:
            band[0].cells[0] = label.cells[0]
        return len(band)
    middle, centre = (band[0].top + band[-1].bottom) / 2, (label.top + label.bottom) / 2
    if label is not band[0] and abs(centre - middle) < 0.75 * (band[-1].bottom - band[0].top) / len(band):
        band[0].cells[0] = label.cells.pop(0)
        return len(band)
    return 0
