"""Workbooks: every cell, as openpyxl reads it, in its place; layouts people make; nothing run."""

from __future__ import annotations

import datetime as dt
import random
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.comments import Comment
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.table import Table as OwnTable

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import workbook, xlsx
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.documents.cells import (
    cell_range,
    column_name,
    column_number,
    number_format,
    read_range,
    write_value,
)
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.regions import Region, regions


def found_in(document: Document) -> dict[tuple[str | None, int, int], str]:
    """Every cell that came back: by its sheet, row and column as openpyxl counts them."""
    found: dict[tuple[str | None, int, int], str] = {}
    for block in document.blocks:
        area = read_range(block.place.cells or "")
        if area is None:
            continue
        top, left, rows, columns = area
        if block.table is None:
            found[block.place.sheet, top + 1, left + 1] = block.text
            continue
        assert (len(block.table.rows), len(block.table.rows[0])) == (rows, columns)
        for row, cells in enumerate(block.table.rows):
            for column, text in enumerate(cells):
                assert (block.place.sheet, top + row + 1, left + column + 1) not in found, "a cell in two blocks"
                found[block.place.sheet, top + row + 1, left + column + 1] = text
    return found


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}" if not value.is_integer() else f"{value:.0f}"
    if isinstance(value, dt.datetime):
        return (
            value.date().isoformat()
            if value.time() == dt.time()
            else value.isoformat(" ", "seconds").removesuffix(":00")
        )
    return str(value).strip()


def random_value(chance: random.Random) -> Any:
    return chance.choice(
        (
            chance.randrange(-(10**6), 10**6),
            chance.uniform(-1e6, 1e6),
            chance.random() * 10 ** chance.randrange(-8, 12),
            chance.choice(("north", "销售额", "a|b", "two\nlines", "<&>'\"", "=", " padded ", "_x_", "😀", "x" * 300)),
            True,
            False,
            dt.datetime(1900, 3, 1) + dt.timedelta(days=chance.randrange(60_000)),
            dt.datetime(2024, 1, 2, 3, 4, 5) + dt.timedelta(seconds=chance.randrange(10**7)),
        )
    )


@pytest.mark.parametrize("seed", range(6))
def test_every_cell_comes_back_where_it_stands(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    book = openpyxl.Workbook()
    for number in range(3):
        sheet = book.active if number == 0 else book.create_sheet()
        sheet.title = f"S {number} 表"
        for _ in range(chance.randrange(1, 5)):  # tables anywhere, into each other too
            top, left, density = chance.randrange(1, 40), chance.randrange(1, 30), chance.choice((1.0, 0.8, 0.3))
            for row in range(top, top + chance.randrange(1, 12)):
                for column in range(left, left + chance.randrange(1, 7)):
                    if chance.random() < density:
                        sheet.cell(row, column, random_value(chance))
    book.save(tmp_path / "a.xlsx")
    found = found_in(xlsx.parse(tmp_path / "a.xlsx", Limits()))
    wanted = {}
    for sheet in openpyxl.load_workbook(tmp_path / "a.xlsx", data_only=True):
        for row in sheet.iter_rows():
            for cell in row:
                if cell.value is not None and as_text(cell.value):
                    wanted[sheet.title, cell.row, cell.column] = as_text(cell.value)
    # Texts of one row that stand apart are one block, with the place of all: their words are there.
    texts = " | ".join(found.values())
    for place, text in wanted.items():
        assert found.get(place) == text or (text in texts and "|" in texts), (place, text, found.get(place))
    inside = sum(found.get(place) == text for place, text in wanted.items())
    assert inside > 0.8 * len(wanted)


def test_a_report_with_titles_blank_rows_and_a_total(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Report"
    for row in (["Annual report 2024"], [], ["Month", "Sales"], ["Jan", 1000], ["Feb", 1200], [], ["Total", 2200]):
        sheet.append(row)
    sheet["H1"] = "Approved by:"
    sheet["J1"] = "Li"
    book.save(tmp_path / "a.xlsx")
    document = xlsx.parse(tmp_path / "a.xlsx", Limits())
    table = next(block for block in document.blocks if block.table)
    assert table.place.cells == "A3:B7"
    assert table.place.sheet == "Report"
    assert table.text.split("\n")[0] == "| Month | Sales |"
    assert table.table is not None
    assert table.table.rows[4] == ("Total", "2200")
    text = " ".join(block.text for block in document.blocks)
    assert "Annual report 2024" in text
    assert "Approved by:" in text
    assert "Li" in text


def test_a_title_stands_over_its_table(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["各地区收入"])
    sheet.merge_cells("A1:C1")
    for row in (["地区", "收入", "占比"], ["北区", 800, 0.4], ["南区", 1200, 0.6]):
        sheet.append(row)
    sheet["A7"], sheet["B7"], sheet["A8"], sheet["B8"] = "Item", "Count", "x", 1
    for row in (3, 4):
        sheet.cell(row, 3).number_format = "0.0%"
    book.save(tmp_path / "a.xlsx")
    tables = [block for block in xlsx.parse(tmp_path / "a.xlsx", Limits()).blocks if block.table]
    assert [(table.place.cells, table.path) for table in tables] == [
        ("A2:C4", ("Sheet", "各地区收入")),
        ("A7:B8", ("Sheet", "各地区收入")),
    ]
    assert tables[0].table is not None
    assert tables[0].table.rows[1] == ("北区", "800", "40%")


def test_headers_of_two_rows_with_merged_cells(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["Region", "2023", None, "2024", None], [None, "Q1", "Q2", "Q1", "Q2"], ["East", 1, 2, 3, 4]):
        sheet.append(row)
    for area in ("A1:A2", "B1:C1", "D1:E1"):
        sheet.merge_cells(area)
    book.save(tmp_path / "a.xlsx")
    table = next(block.table for block in xlsx.parse(tmp_path / "a.xlsx", Limits()).blocks if block.table)
    assert table.header_rows == 2
    assert set(table.merged) == {(0, 0, 2, 1), (0, 1, 1, 2), (0, 3, 1, 2)}
    assert table.rows[2] == ("East", "1", "2", "3", "4")


def test_formulas_show_what_was_kept_or_their_text_and_are_never_run(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["a", "b"], [1, "=A2*41+1"], [2, '=WEBSERVICE("http://127.0.0.1:1/")']):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    document = xlsx.parse(tmp_path / "a.xlsx", Limits())
    assert "=A2*41+1" in document.blocks[1].text
    assert document.notes == ("2 formulas have no value in the file and were kept as text: open and save it in Excel",)
    kept = tmp_path / "kept.xlsx"
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(kept, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("sheet1.xml"):
                data = data.replace(b"<f>A2*41+1</f><v></v>", b"<f>A2*41+1</f><v>42</v>").replace(
                    b"<f>A2*41+1</f><v/>", b"<f>A2*41+1</f><v>42</v>"
                )
            new.writestr(name, data)
    assert "| 1 | 42 |" in xlsx.parse(kept, Limits()).blocks[1].text
    assert xlsx.cells_of(kept, Limits())[0].rows[1:] == ((1, 42), (2, None))


def test_own_tables_remarks_hidden_sheets_and_macros(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["note above"], ["k", "v"], ["a", 1], ["b", 2]):
        sheet.append(row)
    sheet.add_table(OwnTable(displayName="T", ref="A2:B4"))
    sheet["B3"].comment = Comment("checked twice", "Ann")
    hidden = book.create_sheet("Secret")
    hidden["B2"] = "lookup"
    hidden.sheet_state = "hidden"
    book.save(tmp_path / "plain.xlsx")
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as old, zipfile.ZipFile(tmp_path / "a.xlsm", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("xl/vbaProject.bin", b"\0" * 100)
    document = xlsx.parse(tmp_path / "a.xlsm", Limits())
    table = next(block for block in document.blocks if block.table)
    assert table.place.cells == "A2:B4"
    assert table.path == ("Sheet", "note above")
    assert any(block.text == "B3: checked twice" and block.place.cells == "B3" for block in document.blocks)
    assert any(block.text == "lookup" and block.place.sheet == "Secret" for block in document.blocks)
    assert document.notes == (
        "has macros, which were not run",
        "the sheet Secret is hidden in the workbook; it was read",
    )


def test_typed_values_for_questions_by_sql(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    rows = [
        ["day", "n", "x", "ok", "code"],
        [dt.datetime(2024, 2, 29), 7, 1.5, True, 1],
        [dt.datetime(2024, 3, 1, 12, 30), None, -2.25, False, 12],
    ]
    for number, row in enumerate(rows):
        for column, value in enumerate(row):
            sheet.cell(3 + number, 2 + column, value)
    sheet["F4"].number_format = sheet["F5"].number_format = "000000"
    sheet.merge_cells("B7:C7")
    sheet["B7"] = "end"
    book.save(tmp_path / "a.xlsx")
    (found,) = xlsx.cells_of(tmp_path / "a.xlsx", Limits())
    assert (found.name, found.top, found.left) == ("Sheet", 3, 2)
    assert found.rows[1] == (dt.datetime(2024, 2, 29), 7, 1.5, True, "000001")
    assert found.rows[2] == (dt.datetime(2024, 3, 1, 12, 30), None, -2.25, False, "000012")
    assert found.merged == ((4, 0, 1, 2),)


@pytest.mark.parametrize(
    ("code", "value", "text"),
    [
        ("0.00%", 0.153, "15.3%"),
        ("0%", -0.0725, "-7.25%"),
        ("General", 0.1 + 0.2, "0.3"),
        ("#,##0.00", 1234567.891, "1234567.891"),
        ('"$"#,##0.00', 1234.5, "$1234.5"),
        ("[$€-407] #,##0", -12, "-€12"),
        ('0.0" kg"', 2.5, "2.5 kg"),
        ("¥#,##0", 99, "¥99"),
        ("000000", 1, "000001"),
        ("0.0,", 1_234_567, "1234567"),
        ("# ?/?", 0.5, "0.5"),
        ("@", 5, "5"),
        ("0.00E+00", 1.5e-7, "1.5e-07"),
        ("[Red]0;[Blue]-0", 3, "3"),
    ],
)
def test_numbers_in_their_formats_sense(code: str, value: float, text: str) -> None:
    assert write_value(value, number_format(200, code)) == text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("yyyy-mm-dd", "date"),
        ('yyyy"年"m"月"d"日"', "date"),
        ("[$-804]aaaa;@", "number"),
        ("d/m/yy h:mm", "date and time"),
        ("h:mm AM/PM", "time"),
        ("[h]:mm:ss", "duration"),
        ("mm:ss.0", "time"),
        ("mmm-yy", "date"),
        ("0.00", "number"),
        ('"day" 0', "number"),
        ("[Red]General", "number"),
    ],
)
def test_which_formats_are_dates(code: str, kind: str) -> None:
    assert number_format(200, code).kind == kind


def test_the_calendar_of_1900_and_of_1904(tmp_path: Path) -> None:
    for mac in (False, True):
        book = openpyxl.Workbook()
        if mac:
            book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
        sheet = book.active
        days = [dt.datetime(1905, 1, 1), dt.datetime(2000, 2, 29), dt.datetime(2079, 6, 6, 23, 59, 59)]
        sheet.append(["day", *days])
        sheet.append(["next", *days])
        book.save(tmp_path / "a.xlsx")
        (found,) = xlsx.cells_of(tmp_path / "a.xlsx", Limits())
        assert found.rows[0][1:] == tuple(days)


def test_ranges_and_their_names() -> None:
    for column in (0, 25, 26, 701, 702, 16383):
        assert column_name(column) == get_column_letter(column + 1)
        assert column_number(column_name(column)) == column
    assert read_range("$B$2:D9") == (1, 1, 8, 3)
    assert cell_range(1, 1, 8, 3) == "B2:D9"
    assert read_range("B2:A1") is None
    assert read_range("no") is None


@pytest.mark.parametrize("seed", range(20))
def test_regions_hold_every_cell_once_and_never_meet(seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    cells = {(chance.randrange(60), chance.randrange(40)) for _ in range(chance.choice((1, 5, 40, 400)))}
    columns_of = {row: sorted(column for at, column in cells if at == row) for row in sorted({row for row, _ in cells})}
    boxes = regions(columns_of)
    for row, column in cells:
        assert sum(box.top <= row <= box.bottom and box.left <= column <= box.right for box in boxes) == 1
    assert not any(a.meets(b) for a in boxes for b in boxes if a is not b)
    touching = {(a, b) for a in cells for b in cells if max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1}
    for a, b in touching if len(cells) < 100 else ():
        assert next(box for box in boxes if _holds(box, a)) == next(box for box in boxes if _holds(box, b))


def _holds(box: Region, cell: tuple[int, int]) -> bool:
    return box.top <= cell[0] <= box.bottom and box.left <= cell[1] <= box.right


def test_too_many_cells_is_a_line(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for _ in range(30):
        book.active.append(range(10))
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match="more than 250 cells"):
        xlsx.parse(tmp_path / "a.xlsx", Limits(cells=250))


def test_cells_far_apart_make_no_table_and_no_memory(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for number in range(1, 400):
        book.active.cell(number * 2000, number * 40, f"value {number}")
    book.active.cell(1, 1, "first")
    book.save(tmp_path / "a.xlsx")
    document = xlsx.parse(tmp_path / "a.xlsx", Limits())
    assert sum("value" in block.text for block in document.blocks) == 399
    with pytest.raises(UserError, match="too far apart"):
        xlsx.cells_of(tmp_path / "a.xlsx", Limits())


@pytest.mark.parametrize("seed", range(8))
def test_both_ways_of_reading_a_sheet_give_the_same_cells(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sheets as Excel, openpyxl, and odd programs write them; the fast way must really be taken for usual ones."""
    print("seed", seed)
    chance = random.Random(seed)
    book = openpyxl.Workbook()
    for row in range(1, 60):
        for column in range(1, 12):
            if chance.random() < 0.7:
                book.active.cell(row, column, random_value(chance) if chance.random() < 0.9 else "=A1&B2")
    book.active.merge_cells("C3:D4")
    book.save(tmp_path / "plain.xlsx")
    oddities = (
        (b"<c r=", b"<c  r="),
        (b"<v>", b"<v xml:space='preserve'>"),
        (b"<c r=", b'<c cm="1" r='),
        (b"</row>", b"</row>\r\n  "),
        (b"<sheetData>", b"<sheetData><!-- x -->"),
        (b"<v>1", b"<v>&#49;"),
        (b"<row r=", b'<row spans="1:9" r='),
        (b"<worksheet ", b"<worksheet  "),
    )
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as old, zipfile.ZipFile(tmp_path / "odd.xlsx", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("sheet1.xml"):
                was, becomes = oddities[seed]
                assert was in data
                data = data.replace(was, becomes, data.count(was) if seed in (4, 7) else chance.randrange(1, 30))
            new.writestr(name, data)
    taken: list[bool] = []
    split = workbook.split_sheet
    monkeypatch.setattr(workbook, "split_sheet", lambda data: taken.append(split(data) is not None) or split(data))
    fast = [workbook.read_workbook(tmp_path / name, Limits()).sheets for name in ("plain.xlsx", "odd.xlsx")]
    assert taken[0]
    monkeypatch.setattr(workbook, "split_sheet", lambda _: None)
    slow = [workbook.read_workbook(tmp_path / name, Limits()).sheets for name in ("plain.xlsx", "odd.xlsx")]
    assert fast == slow
    assert fast[0] == fast[1]
    assert sum(len(row) for row in fast[0][0].rows.values()) > 300
