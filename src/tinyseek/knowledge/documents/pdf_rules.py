"""Where on a page a table may be: ruling lines that cross or lie above each other, shaded rows, gaps that stand in line.

This is the cheap part, done for every page. Most pages have none of these and are done with in a fraction of a millisecond.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tinyseek.knowledge.documents.blocks import Box
from tinyseek.knowledge.documents.layout import Piece, rows_of
from tinyseek.knowledge.documents.pdf_page import Page

_NEAR = 3.0  # points: lines this near touch, or are one
_SHORTEST = 18.0  # points
_MOST_RULES = 3_000
CAPTION = re.compile(r"(table|tab\.|exhibit)\s*[A-Z]?\d|[附续]?表\s*[A-Z]?\d|[表]\s*[一二三四五六七八九十]", re.I)


@dataclass(slots=True)
class Region:
    """A part of a page that may hold a table."""

    x0: float
    top: float
    x1: float
    bottom: float
    across: list[Box] = field(default_factory=list)  # lines in it
    down: list[Box] = field(default_factory=list)
    is_ruled: bool = True
    captioned: bool = False

    @property
    def box(self) -> Box:
        """Its edges."""
        return self.x0, self.top, self.x1, self.bottom


def regions_of(page: Page, pieces: Sequence[Piece]) -> list[Region]:
    """Where tables may be, from top to bottom, none over another."""
    across, down = _merged(page.across, 1, 0), _merged(page.down, 0, 1)
    found = _crossing(across, down) + _stacked(across, down, page) + _shaded(page.areas, down)
    chosen: list[Region] = []
    for region in sorted(found, key=lambda r: -(r.x1 - r.x0) * (r.bottom - r.top)):
        if not any(_overlap(region, other) > 0.3 for other in chosen):
            chosen.append(region)
    chosen += [region for region in _aligned(pieces) if not any(_overlap(region, other) > 0.1 for other in chosen)]
    return sorted(chosen, key=lambda region: (region.top, region.x0))


def _overlap(one: Region, other: Region) -> float:
    """The shared part, of the smaller one."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    least = min((r.x1 - r.x0) * (r.bottom - r.top) for r in (one, other))
    return width * height / least if width > 0 and height > 0 and least > 0 else 0.0


def _merged(lines: Sequence[Box], at: int, along: int) -> list[Box]:
    """Lines drawn in several strokes, or twice, as one each.

    Args:
        at: the coordinate that a line lies at: 1 for lines across, 0 for lines down.
        along: the coordinate that it runs along.
    """
    merged: list[list[float]] = []
    last: dict[int, list[list[float]]] = {}
    for line in sorted(lines[:_MOST_RULES], key=lambda box: (box[along], box[at])):
        middle = (line[at] + line[at + 2]) / 2
        slot = round(middle / _NEAR)
        for near in (slot - 1, slot, slot + 1):
            same = next(
                (
                    o
                    for o in last.get(near, ())
                    if abs((o[at] + o[at + 2]) / 2 - middle) < 2 and line[along] <= o[along + 2] + _NEAR
                ),
                None,
            )
            if same is not None:
                same[along + 2] = max(same[along + 2], line[along + 2])
                break
        else:
            new = list(line)
            merged.append(new)
            last.setdefault(slot, []).append(new)
    return [(b[0], b[1], b[2], b[3]) for b in merged if b[along + 2] - b[along] >= (_SHORTEST if at else 8.0)]


def _crossing(across: list[Box], down: list[Box]) -> list[Region]:
    """Lines that touch each other: grids and frames."""
    if len(across) < 2 or not down or len(across) * len(down) > 400_000:
        return []
    group = list(range(len(across) + len(down)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for j, line in enumerate(down):
        x = (line[0] + line[2]) / 2
        for i, other in enumerate(across):
            y = (other[1] + other[3]) / 2
            if other[0] - _NEAR <= x <= other[2] + _NEAR and line[1] - _NEAR <= y <= line[3] + _NEAR:
                group[root(len(across) + j)] = root(i)
    members: dict[int, tuple[list[Box], list[Box]]] = {}
    for index in range(len(group)):
        pair = members.setdefault(root(index), ([], []))
        (pair[0] if index < len(across) else pair[1]).append(
            across[index] if index < len(across) else down[index - len(across)]
        )
    return [_region(rows, columns) for rows, columns in members.values() if len(rows) >= 2 and columns]


def _region(across: list[Box], down: list[Box], is_ruled: bool = True) -> Region:
    lines = across + down
    x0, top = min(b[0] for b in lines), min(b[1] for b in lines)
    return Region(x0, top, max(b[2] for b in lines), max(b[3] for b in lines), across, down, is_ruled)


def _stacked(across: list[Box], down: list[Box], page: Page) -> list[Region]:
    """Lines of one length above each other: tables with rules above, below and under their heads only."""
    regions: list[Region] = []
    rest = sorted(across, key=lambda box: box[1])
    while rest:
        first = rest.pop(0)
        stack = [first]
        for line in rest:
            if (
                abs(line[0] - first[0]) < 4
                and abs(line[2] - first[2]) < 4
                and line[1] - stack[-1][3] < 0.6 * page.height
            ):
                stack.append(line)
        rest = [line for line in rest if line not in stack]
        for above, below in pairwise(stack):
            regions.append(_between(above, below, across, down))
    joined: list[Region] = []
    for region in sorted(regions, key=lambda r: (round(r.x0 / 4), r.top)):
        joined.append(region)
    return _joined(joined, across, down)


def _between(above: Box, below: Box, across: list[Box], down: list[Box]) -> Region:
    x0, x1 = min(above[0], below[0]), max(above[2], below[2])
    inside = [b for b in across if above[1] - 1 <= b[1] and b[3] <= below[3] + 1 and b[0] >= x0 - 4 and b[2] <= x1 + 4]
    columns = [b for b in down if above[1] - 4 <= b[1] and b[3] <= below[3] + 4 and b[0] >= x0 - 4 and b[2] <= x1 + 4]
    return Region(x0, above[1], x1, below[3], inside, columns)


def _joined(regions: list[Region], across: list[Box], down: list[Box]) -> list[Region]:
    """Strips between two lines each, put together; the solver splits them again where text runs between."""
    whole: list[Region] = []
    for region in regions:
        last = whole[-1] if whole else None
        if (
            last
            and abs(last.x0 - region.x0) < 4
            and abs(last.x1 - region.x1) < 4
            and abs(region.top - last.bottom) < _NEAR
        ):
            whole[-1] = _between(
                (last.x0, last.top, last.x1, last.top),
                (region.x0, region.bottom, region.x1, region.bottom),
                across,
                down,
            )
        else:
            whole.append(region)
    return whole


def _shaded(areas: Sequence[Box], down: list[Box]) -> list[Region]:
    """Filled rows of one width above each other, every one or every second."""
    rows = [a for a in areas[:_MOST_RULES] if 6 < a[3] - a[1] < 60 and a[2] - a[0] > 100]
    regions: list[Region] = []
    used: set[int] = set()
    rows.sort(key=lambda area: area[1])
    for i, first in enumerate(rows):
        if i in used:
            continue
        stack = [first]
        for j in range(i + 1, len(rows)):
            area = rows[j]
            if (
                abs(area[0] - first[0]) < 3
                and abs(area[2] - first[2]) < 3
                and area[1] - stack[-1][3] < 2.2 * (area[3] - area[1])
            ):
                stack.append(area)
                used.add(j)
        if len(stack) >= 3:
            region = _region(stack, [])
            # The shading's edges count as lines between rows.
            edges = [(a[0], y, a[2], y) for a in stack for y in (a[1], a[3])]
            region.across = _merged(edges, 1, 0)
            last = stack[-1]
            region.bottom += last[3] - last[1]  # an unshaded row may follow
            region.down = [
                b
                for b in down
                if region.x0 - 3 <= b[0] <= region.x1 + 3 and b[1] >= region.top - 3 and b[3] <= region.bottom + 3
            ]
            regions.append(region)
    return regions


def _aligned(pieces: Sequence[Piece]) -> list[Region]:
    """Rows of three pieces and more, each apart, that follow each other; under a caption two are enough."""
    if len(pieces) < 6:
        return []
    captions = [p for p in pieces if p.words and CAPTION.match(" ".join(w.text for w in p.words[:2]))]
    regions: list[Region] = []
    run: list[list[Piece]] = []
    for row in [*rows_of(pieces), []]:
        apart = len(row) >= (2 if captions else 3) and all(
            b.x0 - a.x1 > 1.0 * max(4.0, a.words[-1].style.size) for a, b in pairwise(row)
        )
        follows = not run or (row and row[0].top - run[-1][0].bottom < 2.2 * (row[0].bottom - row[0].top))
        if row and run and follows and (apart or _inside(row, run)):
            run.append(row)
            continue
        _close(run, captions, regions)
        run = [row] if apart else []
    return regions


def _inside(row: list[Piece], run: list[list[Piece]]) -> bool:
    """Whether a row of fewer pieces still lies within the table above it: a cell's second line, a row half empty."""
    left, right = min(r[0].x0 for r in run), max(r[-1].x1 for r in run)
    return (
        row[0].x0 >= left - 2 and row[-1].x1 <= right + 2 and row[-1].x1 - row[0].x0 < 0.6 * (right - left)
        if len(row) == 1
        else (row[0].x0 >= left - 30 and row[-1].x1 <= right + 30)
    )


def _close(run: list[list[Piece]], captions: list[Piece], regions: list[Region]) -> None:
    while run and len(run[-1]) < 2:
        run.pop()
    if len(run) < 2:
        return
    cells = [piece for row in run for piece in row]
    box = (min(p.x0 for p in cells), min(p.top for p in cells), max(p.x1 for p in cells), max(p.bottom for p in cells))
    captioned = any(
        -5 < box[1] - c.bottom < 40 or -5 < c.top - box[3] < 30 for c in captions if c.x0 < box[2] and c.x1 > box[0]
    )
    many = sum(len(row) >= 3 for row in run)
    if captioned or (many >= 3 and many >= 0.5 * len(run)):
        regions.append(Region(*box, is_ruled=False, captioned=captioned))
