"""The tables of a sheet: where each begins and ends, which rows are its head, which are sums of the others, what its columns hold.

People put titles above a table, two tables beside each other, heads over two rows with merged cells, and a row of totals below. A
total left among the rows would double every sum, so it is taken out, and that is told. Every row remembers its number in the sheet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyseek.knowledge.documents.cells import column_name
from tinyseek.knowledge.tables.typed import Type, Value, date, number, text_of, typed

MOST_HEADER_ROWS = 4
LONGEST_NAME = 60
MOST_COLUMNS = 500
_TOTALS = re.compile(
    r"(?:grand\s+|sub-?\s*)?totals?|sum|average|mean|(?:grand )?total .{0,20}"
    r"|合\s*计|总\s*计|小\s*计|总\s*和|总\s*数|平均(?:值|数)?|共\s*计",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str  # as it stands in the sheet
    name: str  # in SQL
    type: Type
    values: list[Value]
    number: int  # in the sheet, from 1
    percent: bool = False


@dataclass(frozen=True)
class Found:
    """A table of a sheet."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[int, ...]  # number of each row in the sheet, from 1
    cells: str  # "A3:F20", head and totals included
    notes: tuple[str, ...] = ()


def tables_of(
    rows: Sequence[Sequence[Value]],
    top: int = 1,
    left: int = 1,
    merged: Sequence[tuple[int, int, int, int]] = (),
) -> list[Found]:
    """The tables of a sheet, from its upper left corner on.

    Args:
        rows: its cells, all rows of one length; None is empty.
        top: number of the first row in the sheet. left: of the first column.
        merged: row, column, rows, columns of merged cells, indices into `rows`; only the first cell has the value.
    """
    grid = [[None if isinstance(cell, str) and not cell.strip() else cell for cell in row] for row in rows]
    wide = _fill(grid, merged)
    regions = _joined(list(_regions(grid, 0, len(grid), 0, len(grid[0]) if grid else 0)), grid)
    found = [_table(grid, region, top, left, wide) for region in regions]
    return [table for table in found if table is not None]


def identifier(title: str, taken: set[str], otherwise: str) -> str:
    """A title as a name in SQL that no other has: letters of any script, digits, underscores. Adds it to `taken`."""
    plain = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", title)).strip("_")[:LONGEST_NAME].strip("_") or otherwise
    name, count = plain, 1
    while name.casefold() in taken:
        count += 1
        name = f"{plain}_{count}"
    taken.add(name.casefold())
    return name


# ---- where tables are ------------------------------------------------------------------------------------------------------------


def _fill(grid: list[list[Value]], merged: Sequence[tuple[int, int, int, int]]) -> set[tuple[int, int]]:
    """Give every merged cell its value. Returns the cells that are part of one wider than a column."""
    wide = set()
    for row, column, tall, across in merged:
        if row >= len(grid) or column >= len(grid[row]):
            continue
        value = grid[row][column]
        for r in range(row, min(row + tall, len(grid))):
            for c in range(column, min(column + across, len(grid[r]))):
                grid[r][c] = value
                if across > 1:
                    wide.add((r, c))
    return wide


Region = tuple[int, int, int, int]  # first row, end row, first column, end column


def _regions(grid: list[list[Value]], r0: int, r1: int, c0: int, c1: int, depth: int = 0) -> Iterator[Region]:
    """Cut at empty rows, then each part at empty columns, and again, until nothing is left to cut."""
    parts = _runs([any(grid[r][c] is not None for c in range(c0, c1)) for r in range(r0, r1)], r0)
    for top, bottom in parts:
        across = _runs([any(grid[r][c] is not None for r in range(top, bottom)) for c in range(c0, c1)], c0)
        for left, right in across:
            if (len(parts) == 1 and len(across) == 1) or depth > 8:
                yield top, bottom, left, right
            else:
                yield from _regions(grid, top, bottom, left, right, depth + 1)


def _runs(filled: Sequence[bool], first: int) -> list[tuple[int, int]]:
    runs, start = [], None
    for at, full in enumerate([*filled, False]):
        if full and start is None:
            start = at
        elif not full and start is not None:
            runs.append((first + start, first + at))
            start = None
    return runs


def _joined(regions: list[Region], grid: list[list[Value]]) -> list[Region]:
    """A table that an empty row interrupts goes on below it, if what comes there has the same columns and no head of its own."""
    joined: list[Region] = []
    for region in regions:
        top, bottom, left, right = region
        above = joined[-1] if joined else None
        if (
            above is not None
            and above[2] <= left
            and right <= above[3]
            and top - above[1] <= 1
            and above[1] - above[0] >= 2
            and _header_rows(grid, region, set()) == 0
            and (right - left == above[3] - above[2] or (bottom - top == 1 and _is_total(grid[top][left:right])))
        ):
            joined[-1] = (above[0], bottom, above[2], above[3])
        else:
            joined.append(region)
    return joined


# ---- one table -------------------------------------------------------------------------------------------------------------------


def _table(grid: list[list[Value]], region: Region, top: int, left: int, wide: set[tuple[int, int]]) -> Found | None:
    r0, r1, c0, c1 = region
    title = ""
    while r1 - r0 > 2 and c1 - c0 > 1 and len({text_of(cell) for cell in grid[r0][c0:c1] if cell is not None}) <= 1:
        told = next((text_of(cell) for cell in grid[r0][c0:c1] if cell is not None), "")
        title = " ".join(filter(None, (title, told)))
        r0 += 1
    heads = _header_rows(grid, (r0, r1, c0, c1), wide)
    if r1 - r0 - heads < 1 or (r1 - r0 < 2 and c1 - c0 < 2):
        return None
    notes = []
    if c1 - c0 > MOST_COLUMNS:
        notes.append(f"{c1 - c0:,} columns; the first {MOST_COLUMNS} are read")
        c1 = c0 + MOST_COLUMNS
    body = [r for r in range(r0 + heads, r1) if any(cell is not None for cell in grid[r][c0:c1])]
    totals = _totals(grid, body, c0, c1)
    body = [r for r in body if r not in totals]
    if totals:
        shown = ", ".join(str(top + r) for r in sorted(totals)[:5]) + (" ..." if len(totals) > 5 else "")
        notes.append(f"row{'s' * (len(totals) > 1)} {shown}: totals, left out so that nothing counts twice")
    if not body:
        return None
    columns: list[Column] = []
    taken: set[str] = set()
    for c in range(c0, c1):
        head = _head(grid, r0, heads, c)
        column = typed([grid[r][c] for r in body])
        if not head and all(value is None for value in column.values):
            continue
        place = column_name(left + c - 1)
        if column.odd:
            first = body[column.odd[0]]
            also = f" and {len(column.odd) - 1} more" if len(column.odd) > 1 else ""
            notes.append(
                f'{place}{top + first}{also}: "{text_of(grid[first][c])[:40]}" is no {column.type}; counts as empty'
            )
        name = identifier(head, taken, f"column_{place}")
        columns.append(Column(head or place, name, column.type, column.values, left + c, column.percent))
    cells = f"{column_name(left + c0 - 1)}{top + r0}:{column_name(left + c1 - 2)}{top + r1 - 1}"
    return Found(title, tuple(columns), tuple(top + r for r in body), cells, tuple(notes)) if columns else None


def _header_rows(grid: list[list[Value]], region: Region, wide: set[tuple[int, int]]) -> int:
    """How many of a region's first rows are its head."""
    r0, r1, c0, c1 = region
    first = grid[r0][c0:c1]
    if not _could_head(first) or r1 - r0 < 2:
        return 0
    count = 1
    while (  # a cell that spans columns has its own columns' names below it
        count < min(MOST_HEADER_ROWS, r1 - r0 - 1)
        and any((r0 + count - 1, c) in wide for c in range(c0, c1))
        and _could_head(grid[r0 + count][c0:c1])
    ):
        count += 1
    if count > 1 or any(not isinstance(cell, str) for cell in first if cell is not None):
        return count
    below = [grid[r][c0:c1] for r in range(r0 + 1, min(r1, r0 + 21))]
    if any(_quantity(cell) for row in below for cell in row):
        return count
    # All is text: what stands once in its column, while the cells below repeat, is a name. By custom the first row is one anyway,
    # unless a cell of it comes again below.
    again = sum(cell in (row[at] for row in below) for at, cell in enumerate(first) if cell is not None)
    return 0 if again > len(first) / 2 else count


def _could_head(row: Sequence[Value]) -> bool:
    """Names, most of them there, no two alike side by side but where one cell spans both; years may be names."""
    filled = [cell for cell in row if cell is not None]
    if len(filled) < max(1, (len(row) + 1) // 2) or all(not isinstance(cell, str) for cell in filled):
        return False
    return all((isinstance(cell, str) and not _quantity(cell)) or _year(cell) for cell in filled)


def _quantity(cell: Value) -> bool:
    return cell is not None and (not isinstance(cell, str) or number(cell) is not None or date(cell) is not None)


def _year(cell: Value) -> bool:
    value = number(cell)
    return value is not None and 1900 <= value <= 2100 and float(value).is_integer()


def _head(grid: list[list[Value]], r0: int, heads: int, column: int) -> str:
    """A column's name out of all rows of the head, each part once."""
    parts: list[str] = []
    for r in range(r0, r0 + heads):
        cell = grid[r][column]
        part = " ".join(text_of(cell).split()) if cell is not None else ""
        if part and part not in parts:
            parts.append(part)
    return " ".join(parts)


def _is_total(row: Sequence[Value]) -> bool:
    first = next((cell for cell in row if cell is not None), None)
    return (
        isinstance(first, str)
        and bool(_TOTALS.fullmatch(first.strip().rstrip(":：")))
        and any(not isinstance(cell, str) or number(cell) is not None for cell in row if cell is not None)
    )


def _totals(grid: list[list[Value]], body: Sequence[int], c0: int, c1: int) -> set[int]:
    """Rows that say they are sums; not where nearly all do, for then that is what the table is about."""
    found = {r for r in body if _is_total(grid[r][c0:c1])}
    return found if len(found) <= len(body) / 2 else set()
