"""The tables of a sheet: cells that lie together, found without knowing how the sheet was meant.

Cells that touch, corners too, belong together; what lies within the rectangle of a table belongs to it; rows that go on under one
empty row in the same columns do too, as a total does. Excel's own tables, where a sheet has them, are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MOST = 1000  # islands; a sheet with more is no layout but a scatter, and is one region


@dataclass(frozen=True)
class Region:
    """A rectangle of a sheet, its corner counted from 0."""

    top: int
    left: int
    bottom: int  # the last row, not the one after it
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top + 1

    @property
    def columns(self) -> int:
        return self.right - self.left + 1

    def meets(self, other: Region) -> bool:
        return (
            self.top <= other.bottom
            and other.top <= self.bottom
            and self.left <= other.right
            and other.left <= self.right
        )

    def union(self, other: Region) -> Region:
        return Region(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


def regions(columns_of: Mapping[int, Sequence[int]], own_header: frozenset[int] = frozenset()) -> list[Region]:
    """The rectangles of a sheet's cells, from top to bottom and left to right; every cell is in exactly one.

    Args:
        columns_of: of each row that has cells, from top to bottom, their columns, ascending.
        own_header: rows that look like a header: nothing above them goes on there over an empty row.
    """
    islands = _islands(columns_of)
    if len(islands) > _MOST:
        whole = islands[0]
        for island in islands[1:]:
            whole = whole.union(island)
        return [whole]
    found = _apart(islands)
    while (joined := _apart(_going_on(found, own_header))) != found:
        found = joined
    return found


def _islands(columns_of: Mapping[int, Sequence[int]]) -> list[Region]:
    """Cells that touch, row by row: a run of cells joins the runs of the row above that it touches."""
    boxes: list[Region] = []
    parent: list[int] = []

    def root(box: int) -> int:
        while parent[box] != box:
            parent[box] = parent[parent[box]]
            box = parent[box]
        return box

    above: list[tuple[int, int, int]] = []  # first and last column of each run of the row above, and its box
    above_row = -2
    for row, columns in columns_of.items():
        if row != above_row + 1:
            above = []
        here: list[tuple[int, int, int]] = []
        begin = 0
        for first, last in _runs(columns):
            mine = -1
            while begin < len(above) and above[begin][1] < first - 1:
                begin += 1
            at = begin
            while at < len(above) and above[at][0] <= last + 1:
                other = root(above[at][2])
                if mine < 0:
                    mine = other
                    boxes[mine] = boxes[mine].union(Region(row, first, row, last))
                elif other != mine:
                    parent[other] = mine
                    boxes[mine] = boxes[mine].union(boxes[other])
                at += 1
            if mine < 0:
                mine = len(boxes)
                boxes.append(Region(row, first, row, last))
                parent.append(mine)
            here.append((first, last, mine))
        above, above_row = here, row
    return [box for number, box in enumerate(boxes) if parent[number] == number]


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    if columns[-1] - columns[0] == len(columns) - 1:  # most rows
        return [(columns[0], columns[-1])]
    runs = []
    first = last = columns[0]
    for column in columns[1:]:
        if column != last + 1:
            runs.append((first, last))
            first = column
        last = column
    return [*runs, (first, last)]


def _apart(boxes: list[Region]) -> list[Region]:
    """Boxes that meet made one, until none meet; sorted."""
    done: list[Region] = []
    waiting = list(boxes)
    while waiting:
        box = waiting.pop()
        meeting = [other for other in done if box.meets(other)]
        if meeting:
            done = [other for other in done if not box.meets(other)]
            for other in meeting:
                box = box.union(other)
            waiting.append(box)
        else:
            done.append(box)
    return sorted(done, key=lambda box: (box.top, box.left))


def _going_on(boxes: list[Region], own_header: frozenset[int]) -> list[Region]:
    """Tables joined with what goes on in the same columns under one empty row."""
    found: list[Region] = []
    by_bottom: dict[int, list[int]] = {}
    for box in boxes:
        for number in by_bottom.get(box.top - 2, ()):
            other = found[number]
            same = other.left == box.left and other.right == box.right
            if (
                other.bottom == box.top - 2
                and same
                and box.columns > 1
                and other.rows > 1
                and box.top not in own_header
            ):
                found[number] = other.union(box)
                by_bottom.setdefault(box.bottom, []).append(number)
                break
        else:
            by_bottom.setdefault(box.bottom, []).append(len(found))
            found.append(box)
    return found
