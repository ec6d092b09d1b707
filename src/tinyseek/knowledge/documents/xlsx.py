"""Workbooks: each sheet's tables with every cell, the place of each (sheet and range), titles as headings over them.

Row i, column j of a table is the cell i rows below and j columns right of the first cell of its place, so that a part of a table
has its range too. `cells_of` gives whole sheets with typed values, for questions by SQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Document, Place, Table
from tinyseek.knowledge.documents.cells import Sheet, Value, cell_range
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of
from tinyseek.knowledge.documents.regions import Region, regions
from tinyseek.knowledge.documents.workbook import Cell, SheetCells, cell_name, covered, read_workbook
from tinyseek.knowledge.documents.zipped import day

_TITLE = 120  # characters of a title at most; longer text over a table is a paragraph
_MOST_HEADERS = 5  # rows


def parse(file: Path, limits: Limits) -> Document:
    """A workbook: a heading for each sheet, below it its tables and texts in the order in which they stand.

    Raises:
        UserError: damaged, hostile, or with more cells than may be.
    """
    book = read_workbook(file, limits)
    outline = Outline(limits)
    notes = ["has macros, which were not run"] if book.macros else []
    unknown = 0
    for sheet in book.sheets:
        outline.heading(sheet.name, 1, Place(sheet=sheet.name))
        if sheet.hidden and sheet.rows:
            notes.append(f"the sheet {sheet.name} is hidden in the workbook; it was read")
        _put(outline, sheet, limits.cells)
        unknown += sum(bool(cell.formula) for row in sheet.rows.values() for cell in row.values())
    if unknown:
        notes.append(f"{unknown:,} formulas have no value in the file and were kept as text: open and save it in Excel")
    said = book.properties
    text = " ".join(block.text[:500] for block in outline.blocks[:50])
    return Document(
        tuple(outline.blocks),
        "xlsx",
        said.get("title", ""),
        said.get("creator", ""),
        day(said.get("modified", "")) or day(said.get("created", "")),
        language=language_of(text),
        notes=tuple(notes),
        details={"sheets": [sheet.name for sheet in book.sheets]},
    )


def cells_of(file: Path, limits: Limits) -> list[Sheet]:
    """The sheets of a workbook with typed values; those without any cell are left out.

    Raises:
        UserError: as `parse` does; or a sheet's cells lie so far apart that they make no table.
    """
    found = []
    for sheet in read_workbook(file, limits).sheets:
        if not sheet.rows:
            continue
        box = Region(
            next(iter(sheet.rows)),
            min(next(iter(row)) for row in sheet.rows.values()),
            next(reversed(sheet.rows)),
            max(next(reversed(row)) for row in sheet.rows.values()),
        )
        if box.rows * box.columns > limits.cells:
            raise UserError(f"the cells of its sheet {sheet.name} lie too far apart for a table ({_range(box)})")
        rows = tuple(tuple(_value(cell) for cell in row) for row in _grid(sheet, box))
        merged = _merged_in(sheet, box)
        found.append(Sheet(sheet.name, box.top + 1, box.left + 1, rows, merged, sheet.hidden, _without_value(sheet)))
    return found


@dataclass(frozen=True)
class _Text:
    """Cells that are no table: a title, a remark, a label beside its value."""

    text: str
    region: Region
    title: bool


@dataclass(frozen=True)
class _Grid:
    region: Region
    header_rows: int


def _put(outline: Outline, sheet: SheetCells, most: int) -> None:
    titled: Region | None = None
    for part in _parts(sheet, most):
        place = Place(sheet=sheet.name, cells=_range(part.region))
        if isinstance(part, _Text):
            if part.title:
                outline.heading(part.text, 2, place)
                titled = part.region
            else:
                outline.add("paragraph", part.text, place)
            continue
        if titled is not None and not _over(titled, part.region):
            outline.end(2)
            titled = None
        rows = tuple(tuple(cell.text() if cell else "" for cell in row) for row in _grid(sheet, part.region))
        outline.table(Table(rows, part.header_rows, _merged_in(sheet, part.region)), place)
    outline.end(2)
    for where, said in sheet.remarks:
        outline.add("paragraph", f"{where}: {said}", Place(sheet=sheet.name, cells=where))
    for said in sheet.drawn:
        outline.add("caption", said, Place(sheet=sheet.name))


def _over(title: Region, table: Region) -> bool:
    """Whether a title stands over a table, or over what stands above it."""
    return title.left <= table.right and table.left <= max(title.right, title.left + 1)


def _parts(sheet: SheetCells, most: int) -> Iterator[_Text | _Grid]:
    """Texts and tables of a sheet, from top to bottom."""
    columns_of = dict(covered(sheet))
    own: list[_Grid] = []
    for (top, left, rows, columns), header_rows in sheet.tables:
        region = Region(top, left, top + rows - 1, left + columns - 1)
        if rows * columns > most or any(region.meets(other.region) for other in own):
            continue
        for row in range(top, top + rows):
            if row in columns_of:
                columns_of[row] = [column for column in columns_of[row] if not left <= column < left + columns]
                if not columns_of[row]:
                    del columns_of[row]
        own.append(_Grid(region, header_rows))
    found: list[_Text | _Grid] = list(own)
    boxes = regions(columns_of, _own_headers(sheet)) if columns_of else []
    if sum(box.rows * box.columns for box in boxes) > most:
        found += [_line(sheet, row, row, min(columns), max(columns)) for row, columns in columns_of.items()]
    else:
        for box in boxes:
            found += _shaped(sheet, box)
    found = _beside_each_other(sorted(found, key=lambda part: (part.region.top, part.region.left)))
    for number, part in enumerate(found):
        after = found[number + 1] if number + 1 < len(found) else None
        if isinstance(part, _Text) and part.title and not _leads(part, after):
            part = replace(part, title=False)
        yield part


def _leads(part: _Text, after: _Text | _Grid | None) -> bool:
    """Whether a text is the title of what follows: near below it."""
    return after is not None and part.region.bottom < after.region.top <= part.region.bottom + 3


def _shaped(sheet: SheetCells, box: Region) -> Iterator[_Text | _Grid]:
    """A rectangle as it is meant: titles in its first rows, then a table; or texts, where it is one column of them."""
    while box.columns > 1 and box.rows > 1:
        filled = list(_within(sheet, box.top, box))
        merged = [columns for top, left, _, columns in sheet.merged if (top, left) == (box.top, box.left)]
        whole = len(filled) == 1 and filled[0] == box.left and (not merged or merged[0] == box.columns)
        if not whole or not isinstance(sheet.rows[box.top][box.left].value, str):
            break
        below = max((rows for top, left, rows, _ in sheet.merged if (top, left) == (box.top, box.left)), default=1)
        yield _line(sheet, box.top, min(box.top + below - 1, box.bottom), box.left, box.right)
        if box.top + below > box.bottom:
            return
        box = replace(box, top=box.top + below)
        while box.rows > 1 and not any(True for _ in _within(sheet, box.top, box)):
            box = replace(box, top=box.top + 1)
    if box.rows == 1 and (box.columns == 1 or len(list(_within(sheet, box.top, box))) == 1):
        yield _line(sheet, box.top, box.top, box.left, box.right)
    elif box.columns == 1 and _is_prose(sheet, box):
        for row in range(box.top, box.bottom + 1):
            if row in sheet.rows and box.left in sheet.rows[row]:
                yield _line(sheet, row, row, box.left, box.left)
    else:
        yield _Grid(box, _header_rows(sheet, box))


def _line(sheet: SheetCells, top: int, bottom: int, left: int, right: int) -> _Text:
    """A row's cells as a text; a title if it is one short text."""
    region = Region(top, left, bottom, right)
    texts = [cell.text() for column, cell in sheet.rows.get(top, {}).items() if left <= column <= right]
    only = len(texts) == 1 and len(texts[0]) <= _TITLE and any(letter.isalpha() for letter in texts[0])
    return _Text(" | ".join(texts), region, only and "\n" not in texts[0] and texts[0][-1:] not in ".。:：;；,，!！")


def _beside_each_other(parts: list[_Text | _Grid]) -> list[_Text | _Grid]:
    """Single cells of one row made one text: a form's label and what was filled in."""
    found: list[_Text | _Grid] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            isinstance(part, _Text)
            and isinstance(last, _Text)
            and part.region.top == last.region.top
            and part.region.bottom == last.region.bottom
        ):
            found[-1] = _Text(f"{last.text} | {part.text}", last.region.union(part.region), False)
        else:
            found.append(part)
    return found


def _within(sheet: SheetCells, row: int, box: Region) -> Iterator[int]:
    return (column for column in sheet.rows.get(row, {}) if box.left <= column <= box.right)


def _is_prose(sheet: SheetCells, box: Region) -> bool:
    texts = [cell.text() for row in range(box.top, box.bottom + 1) if (cell := sheet.rows.get(row, {}).get(box.left))]
    return sum(map(len, texts)) > 60 * len(texts)


def _own_headers(sheet: SheetCells) -> frozenset[int]:
    """Rows of texts alone over a row that has a number."""
    found = set()
    for number, row in sheet.rows.items():
        below = sheet.rows.get(number + 1)
        if (
            below
            and len(row) > 1
            and all(isinstance(cell.value, str) for cell in row.values())
            and any(not isinstance(cell.value, str | None) for cell in below.values())
        ):
            found.add(number)
    return frozenset(found)


def _header_rows(sheet: SheetCells, box: Region) -> int:
    """How many rows of a table are its header: one, and more where merged cells say so; none where numbers begin at once."""
    first = [sheet.rows[box.top][column] for column in _within(sheet, box.top, box)] if box.top in sheet.rows else []
    if not _may_name(first):
        return 0
    deep = 1
    for top, left, rows, columns in sorted(sheet.merged):
        if not (box.left <= left <= box.right and box.top <= top < box.top + deep):
            continue
        if columns > 1 and top + rows < box.bottom + 1:  # a group's name over its columns' names
            deep = max(deep, top + rows - box.top + 1)
        else:
            deep = max(deep, top + rows - box.top)
    return min(deep, _MOST_HEADERS, box.rows)


def _may_name(cells: list[Cell]) -> bool:
    """Whether a row may name columns: texts; of numbers only years, days, and those that count on, as weeks do."""
    numbers = [cell.value for cell in cells if isinstance(cell.value, int | float)]
    years = all(isinstance(number, int) and 1900 <= number <= 2100 for number in numbers)
    counted = len(numbers) > 1 and all(after - before == 1 for before, after in pairwise(numbers))
    return years or counted


def _grid(sheet: SheetCells, box: Region) -> Iterator[list[Cell | None]]:
    for number in range(box.top, box.bottom + 1):
        row = sheet.rows.get(number)
        if row is None:
            yield [None] * box.columns
        elif len(row) == box.columns and next(iter(row)) == box.left and next(reversed(row)) == box.right:
            yield list(row.values())
        else:
            yield [row.get(column) for column in range(box.left, box.right + 1)]


def _merged_in(sheet: SheetCells, box: Region) -> tuple[tuple[int, int, int, int], ...]:
    return tuple(
        (top - box.top, left - box.left, min(rows, box.bottom - top + 1), min(columns, box.right - left + 1))
        for top, left, rows, columns in sheet.merged
        if box.top <= top <= box.bottom and box.left <= left <= box.right
    )


def _without_value(sheet: SheetCells) -> tuple[str, ...]:
    """Which cells hold formulas whose value was not kept."""
    places = [cell_name(at, column) for at, row in sheet.rows.items() for column, cell in row.items() if cell.formula]
    if not places:
        return ()
    named = ", ".join(places[:5]) + (f" and {len(places) - 5:,} more cells" if len(places) > 5 else "")
    return (f"formulas without a value in the file: {named}; open and save it in Excel",)


def _value(cell: Cell | None) -> Value:
    if cell is None:
        return None
    return cell.text() if cell.form.digits else cell.value  # a code with its zeros is no number


def _range(box: Region) -> str:
    return cell_range(box.top, box.left, box.rows, box.columns)
