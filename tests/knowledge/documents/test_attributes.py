"""Office files whose attributes say anything at all: read, or refused with a line; never an error that nobody foresaw."""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from knowledge.documents.word_files import numbering, paragraph, word_file
from openpyxl.comments import Comment
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import docx as docx_reader
from tinyseek.knowledge.documents import pptx as pptx_reader
from tinyseek.knowledge.documents import xlsx as xlsx_reader
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.documents.limits import Limits

Parser = Callable[[Path, Limits], Document]
SMALL = Limits(cells=20_000, characters=2_000_000)
STRANGE = (
    b"",
    b"-1",
    b"9" * 30,
    b"9" * 5000,
    b"x",
    b"1e9",
    b"2147483648",
    "²".encode(),
    "٣".encode(),
    b"A1:XFD1048576",
    b"B2:A1",
    b"nan",
    b"#REF!",
)


def make_docx(file: Path) -> None:
    document = docx.Document()
    document.add_heading("One", 1)
    document.add_paragraph("item", style="List Number")
    table = document.add_table(3, 3)
    for row in table.rows:
        for cell in row.cells:
            cell.text = "x"
    table.cell(0, 0).merge(table.cell(1, 1))
    document.save(file)


def make_numbered_docx(file: Path) -> None:
    told = numbering(("decimal", "%1."), ("lowerRoman", "(%2)"), ("chineseCounting", "%3、"))
    word_file(file, "".join(paragraph(f"p{n}", number=(1, n % 3)) for n in range(9)), numbering=told)


def make_xlsx(file: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["a", "b", "c"], [1, 2.5, "=A1"], [True, "text", None]):
        book.active.append(row)
    book.active.merge_cells("A4:B5")
    book.active["A4"], book.active["C2"].comment = "merged", Comment("why", "Ann")
    book.active["B2"].number_format = "0.0%"
    book.save(file)


def make_pptx(file: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Title", "one"
    table = slide.shapes.add_table(2, 2, 0, 0, 10**6, 10**6).table
    table.cell(0, 0).text = "x"
    table.cell(0, 0).merge(table.cell(1, 0))
    slide.shapes.add_group_shape().shapes.add_textbox(0, 0, 100, 100).text_frame.text = "grouped"
    chart = CategoryChartData()
    chart.categories = ["a", "b"]
    chart.add_series("s", (1, 2))
    slide.shapes.add_chart(XL_CHART_TYPE.PIE, 0, 0, 10**6, 10**6, chart)
    deck.save(file)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("make", "parse"),
    [
        (make_docx, docx_reader.parse),
        (make_numbered_docx, docx_reader.parse),
        (make_xlsx, xlsx_reader.parse),
        (make_pptx, pptx_reader.parse),
    ],
)
def test_any_attributes(tmp_path: Path, seed: int, make: Callable[[Path], None], parse: Parser) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    make(tmp_path / "honest")
    parse(tmp_path / "honest", SMALL)
    for number in range(4):
        with zipfile.ZipFile(tmp_path / "honest") as old, zipfile.ZipFile(tmp_path / f"{number}", "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name.endswith((".xml", ".rels")) and "theme" not in name and "[" not in name:
                    odds = chance.choice((0.0, 0.02, 0.3))
                    data = re.sub(
                        rb'(?<=[a-z])="([^"]{0,30})"',
                        lambda found, odds=odds: b'="' + chance.choice(STRANGE) + b'"'
                        if chance.random() < odds and b"http" not in found[1]
                        else found[0],
                        data,
                    )  # fmt: skip
                    if chance.random() < 0.3:  # an element moved, repeated or left out
                        tags = re.findall(rb"<[a-z]+:?[a-zA-Z]+(?: [^<>]*)?/>", data)
                        if tags:
                            data = data.replace(chance.choice(tags), chance.choice((b"", tags[-1], tags[0] * 3)))
                new.writestr(name, data)
        try:
            document = parse(tmp_path / f"{number}", SMALL)
        except UserError as error:
            print("refused", error)
            assert "\n" not in str(error)  # noqa: PT017
        else:
            print("read", len(document.blocks), "blocks")
            for block in document.blocks:
                if block.table:
                    assert len({len(row) for row in block.table.rows}) == 1
                    for row, column, rows, columns in block.table.merged:
                        assert 0 <= row < row + rows <= len(block.table.rows)
                        assert 0 <= column < column + columns <= len(block.table.rows[0])
