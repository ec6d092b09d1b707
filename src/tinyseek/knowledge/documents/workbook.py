"""A workbook's sheets as cells: values that were kept when it was saved. Formulas and macros are never run.

Sheets are streamed out of the archive row by row, so that memory goes with the cells and not with their XML. A formula whose value
was not kept (openpyxl writes such files) is shown as its text.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lxml import etree

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.cells import (
    GENERAL,
    NumberFormat,
    Value,
    column_name,
    column_number,
    from_serial,
    number_format,
    read_range,
    write_value,
)
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.sheet_rows import Raw, cells_in, split_sheet
from tinyseek.knowledge.documents.zipped import Package, whole

_WHOLE = 250 << 20  # bytes; a larger sheet is never in memory as a whole
MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384  # of a sheet, by the standard
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")


class Cell(NamedTuple):  # a tuple is made three times as fast as a frozen dataclass, and there are millions
    """One cell that holds something."""

    value: Value
    form: NumberFormat = GENERAL
    formula: str = ""  # "=A1+B1", of one whose value was not kept

    def text(self) -> str:
        return self.formula or write_value(self.value, self.form)


@dataclass
class SheetCells:
    """A sheet. Rows and columns count from 0."""

    name: str
    hidden: bool = False
    rows: dict[int, dict[int, Cell]] = field(default_factory=dict)  # ascending, both
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)  # top, left, rows, columns
    tables: list[tuple[tuple[int, int, int, int], int]] = field(default_factory=list)  # range, header rows
    remarks: list[tuple[str, str]] = field(default_factory=list)  # "B2", what was remarked there
    drawn: list[str] = field(default_factory=list)  # text in shapes, titles of charts


@dataclass(frozen=True)
class Workbook:
    sheets: list[SheetCells]
    properties: dict[str, str]
    macros: bool


def read_workbook(file: Path, limits: Limits) -> Workbook:
    """All sheets of a workbook (.xlsx, .xlsm).

    Raises:
        UserError: damaged, hostile, or with more cells than may be.
    """
    with Package(file, limits, "Excel workbook") as package:
        main = package.main_part("xl/workbook.xml")
        if main.endswith(".bin"):
            raise UserError("is a binary workbook (.xlsb); save it as .xlsx and add that")
        book = package.xml(main)
        links = package.relations(main)
        strings = _strings(package, next((link.target for link in links.values() if link.kind == "sharedStrings"), ""))
        forms = _forms(package, next((link.target for link in links.values() if link.kind == "styles"), ""))
        properties = book.find("{*}workbookPr")
        since_1904 = properties is not None and properties.get("date1904") in ("1", "true")
        sheets = []
        reader = _Reader(strings, forms, since_1904, limits.cells)
        for entry in book.iterfind("{*}sheets/{*}sheet"):
            link = links.get(next((str(value) for key, value in entry.items() if str(key).endswith("}id")), ""))
            if link is None or link.kind != "worksheet" or link.target not in package:
                continue  # sheets that are charts, and macros of Excel 4
            sheet = SheetCells(entry.get("name") or "", entry.get("state", "visible") != "visible")
            reader.read(package, link.target, sheet)
            _beside(package, link.target, sheet)
            sheets.append(sheet)
        return Workbook(sheets, package.properties(), package.has_macros())


class _Reader:
    """Sheets to cells; counts the cells of all."""

    def __init__(self, strings: list[str], forms: list[NumberFormat], since_1904: bool, most: int) -> None:
        self._strings = [Cell(text) if text and not text.isspace() else None for text in strings]
        self._forms = {str(number): form for number, form in enumerate(forms)}
        self._since_1904 = since_1904
        self._left, self._most = most, most
        self._columns: dict[str, int] = {}  # by the letters: asked once a cell

    def read(self, package: Package, part: str, sheet: SheetCells) -> None:
        """A sheet's cells: those of a usual sheet by expressions, else by its elements."""
        usual = split_sheet(data) if package.size(part) <= _WHOLE and (data := package.read(part)) else None
        if usual is not None:
            text, rows, around = usual
            for number, start, end in rows:
                cells = cells_in(text, start, end)
                self._put(
                    sheet,
                    part,
                    number,
                    self._raw_row(cells) if cells is not None else self._odd_row(text[start:end], package, part),
                )
            for element in package.tree(around, part).iter("{*}mergeCell"):
                _merge(element, sheet)
        else:
            self._elements(package.elements(part, "{*}row", "{*}mergeCell"), part, sheet)
        if list(sheet.rows) != sorted(sheet.rows):
            sheet.rows = dict(sorted(sheet.rows.items()))

    def _elements(self, elements: Iterator[etree._Element], part: str, sheet: SheetCells) -> None:
        number = -1
        for element in elements:
            if str(element.tag).endswith("}mergeCell"):
                _merge(element, sheet)
            else:
                number = whole(element.get("r"), number + 2) - 1
                self._put(sheet, part, number, self._row(element))

    def _put(self, sheet: SheetCells, part: str, number: int, row: dict[int, Cell]) -> None:
        if not 0 <= number < MAX_ROWS:
            raise UserError(f"is a damaged Excel workbook (row {number + 1:,} in {part})")
        if row:
            sheet.rows[number] = sheet.rows[number] | row if number in sheet.rows else row
            self._left -= len(row)
            if self._left < 0:
                raise UserError(f"has more than {self._most:,} cells; split it, or raise limits.cells")

    def _raw_row(self, cells: Iterable[Raw]) -> dict[int, Cell]:
        row: dict[int, Cell] = {}
        column, ordered = -1, True
        columns, typed = self._columns, self._typed
        for letters, style, kind, formula, raw in cells:
            before, column = column, columns.get(letters, -1)
            if column < 0:
                column = columns[letters] = column_number(letters)
            ordered &= column > before
            cell = Cell(None, formula="=" + formula) if formula and not raw else None
            if raw:
                cell = typed(raw, kind or "n", style)
            if cell is not None and column < MAX_COLUMNS:
                row[column] = cell
        return row if ordered else dict(sorted(row.items()))

    def _odd_row(self, text: str, package: Package, part: str) -> dict[int, Cell]:
        """A row of a usual sheet that has unusual cells."""
        return self._row(package.tree(f'<row xmlns="x">{text}</row>'.encode(), part))

    def _row(self, element: etree._Element) -> dict[int, Cell]:
        row: dict[int, Cell] = {}
        column, ordered = -1, True
        columns, cell_of = self._columns, self._cell
        for entry in element:
            reference = entry.get("r")
            before = column
            if reference is None:
                column += 1
            else:
                letters = reference.rstrip("0123456789")
                known = columns.get(letters)
                if known is None:
                    known = columns[letters] = column_number(letters)
                column = known
            ordered &= column > before
            if len(entry) and 0 <= column < MAX_COLUMNS and (cell := cell_of(entry)) is not None:
                row[column] = cell
        return row if ordered else dict(sorted(row.items()))

    def _cell(self, entry: etree._Element) -> Cell | None:
        """A cell that holds something; None for one that is only painted."""
        raw = formula = inline = None
        for part in entry:
            tag = part.tag
            if tag[-2:] == "}v":
                raw = part.text
            elif tag[-2:] == "}f":
                formula = part
            elif tag[-3:] == "}is":
                inline = part
        kind = entry.get("t", "n")
        if not raw:
            if inline is not None:
                text = _unescaped(_rich(inline))
                return Cell(text) if text.strip() else None
            if formula is not None:
                return Cell(None, formula="=" + (formula.text or f"(as in the cells with formula {formula.get('si')})"))
            return None
        return self._typed(raw, kind, entry.get("s"))

    def _typed(self, raw: str, kind: str, style: str | None) -> Cell | None:
        """A cell of its value as it is written, its type and its style."""
        if kind == "n":
            return self._number(raw, style)
        if kind == "s":
            try:
                return self._strings[int(raw)] if raw[0] != "-" else None
            except (ValueError, IndexError):
                return None
        if kind == "b":
            return Cell(raw.strip() in ("1", "true"))
        if kind == "d":
            return Cell(_iso(raw))
        text = _unescaped(raw)
        return Cell(text) if text.strip() else None

    def _number(self, raw: str, style: str | None) -> Cell | None:
        try:
            value: Value = int(raw) if raw.lstrip("-").isdecimal() else float(raw)
        except ValueError:
            return Cell(raw) if raw.strip() else None
        if style is None:
            return Cell(value)
        form = self._forms.get(style, GENERAL)
        if form.kind != "number":
            assert isinstance(value, int | float)
            return Cell(from_serial(float(value), form.kind, self._since_1904))
        return Cell(value, form)


def _merge(element: etree._Element, sheet: SheetCells) -> None:
    if (merged := read_range(element.get("ref") or "")) and merged[2] * merged[3] > 1:
        sheet.merged.append(merged)


def _strings(package: Package, part: str) -> list[str]:
    """The workbook's texts, which cells name by number."""
    if part not in package:
        return []
    return [_unescaped(_rich(entry)) for entry in package.elements(part, "{*}si")]


def _rich(entry: etree._Element) -> str:
    """The text of a string with its runs; how it is pronounced (rPh) is left out."""
    texts = []
    for part in entry:
        tag = str(part.tag)
        if tag.endswith("}t"):
            texts.append(part.text or "")
        elif tag.endswith("}r"):
            texts += [run.text or "" for run in part if str(run.tag).endswith("}t")]
    return "".join(texts)


def _unescaped(text: str) -> str:
    """ "_x000D_" stands for a character that XML cannot hold."""
    if "_x" in text:
        text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).replace("\r\n", "\n").replace("\r", "\n")
        text = text.encode("utf-8", "replace").decode()
    return text


def _iso(raw: str) -> Value:
    try:
        moment = dt.datetime.fromisoformat(raw.strip())
    except ValueError:
        return raw
    return moment.date() if len(raw.strip()) == 10 else moment.replace(tzinfo=None)


def _forms(package: Package, part: str) -> list[NumberFormat]:
    """What each cell style says of numbers."""
    if part not in package:
        return []
    root = package.xml(part)
    codes = {entry.get("numFmtId"): entry.get("formatCode") for entry in root.iterfind("{*}numFmts/{*}numFmt")}
    known: dict[str, NumberFormat] = {}
    forms = []
    for entry in root.iterfind("{*}cellXfs/{*}xf"):
        number = entry.get("numFmtId") or "0"
        if number not in known:
            known[number] = number_format(whole(number, 0), codes.get(number))
        forms.append(known[number])
    return forms


def _beside(package: Package, part: str, sheet: SheetCells) -> None:
    """What belongs to a sheet and stands in parts of its own: tables, remarks, text in drawings."""
    for link in package.relations(part).values():
        read: Callable[[Package, str, SheetCells], None] | None = _BESIDE.get(link.kind)
        if read is not None and link.target in package:
            read(package, link.target, sheet)


def _table(package: Package, part: str, sheet: SheetCells) -> None:
    root = package.xml(part)
    where = read_range(root.get("ref") or "")
    if where is not None:
        sheet.tables.append((where, whole(root.get("headerRowCount"), 1)))


def _remarks(package: Package, part: str, sheet: SheetCells) -> None:
    threaded = {where for where, _ in sheet.remarks}
    for entry in package.xml(part).iterfind("{*}commentList/{*}comment"):
        text = entry.find("{*}text")
        said = _rich(text).strip() if text is not None else ""
        where = entry.get("ref") or ""
        if said and where not in threaded and not said.startswith("[Threaded comment]"):
            sheet.remarks.append((where, said))


def _threads(package: Package, part: str, sheet: SheetCells) -> None:
    for entry in package.xml(part).iterfind("{*}threadedComment"):
        if said := (entry.findtext("{*}text") or "").strip():
            sheet.remarks.append((entry.get("ref") or "", said))


def _drawing(package: Package, part: str, sheet: SheetCells) -> None:
    root = package.xml(part)
    for shape in root.iter("{*}txBody"):
        lines = ["".join(run.text or "" for run in paragraph.iter("{*}t")) for paragraph in shape.iter("{*}p")]
        sheet.drawn.append("\n".join(line for line in lines if line.strip()))
    for link in package.relations(part).values():
        if link.kind == "chart" and link.target in package:
            title = package.xml(link.target).find(".//{*}title/{*}tx")
            if title is not None:
                sheet.drawn.append("".join(run.text or "" for run in title.iter("{*}t")))


_BESIDE: dict[str, Callable[[Package, str, SheetCells], None]] = {
    "table": _table,
    "comments": _remarks,
    "threadedComment": _threads,
    "drawing": _drawing,
}


def cell_name(row: int, column: int) -> str:
    """ "B2", of a row and a column counted from 0."""
    return f"{column_name(column)}{row + 1}"


def covered(sheet: SheetCells) -> Iterator[tuple[int, list[int]]]:
    """Each row's columns that hold something or lie in a merged cell that does, ascending."""
    more: dict[int, set[int]] = {}
    for top, left, rows, columns in sheet.merged[:10_000]:
        if left in sheet.rows.get(top, {}) and rows * columns <= 10_000:
            for row in range(top, top + rows):
                more.setdefault(row, set()).update(range(left, left + columns))
    if not more:
        for number, cells in sheet.rows.items():
            yield number, list(cells)
        return
    for number in sorted(sheet.rows.keys() | more.keys()):
        yield number, sorted(sheet.rows.get(number, {}).keys() | more.get(number, set()))
