"""Tables in PDF: random ones, drawn in every style, come back cell by cell; text that only looks like one stays text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pdfplumber
import pytest
from knowledge.documents.pdf_files import canvas_of, paragraph, sentence, table
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, SimpleDocTemplate, TableStyle
from reportlab.platypus import Table as Drawn

from tinyseek.knowledge.chunks import split
from tinyseek.knowledge.documents.blocks import Block, Document, Place, Table
from tinyseek.knowledge.documents.limits import DEFAULT
from tinyseek.knowledge.documents.pdf import parse
from tinyseek.knowledge.documents.pdf_tables_on import tables_on
from tinyseek.knowledge.options import ChunkSettings

NAMES = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta"]


def random_rows(rng: random.Random) -> list[list[str]]:
    """A head, then a name and numbers in each row."""
    columns, rows = rng.randint(3, 7), rng.randint(3, 14)
    head = ["Model", *(f"{rng.choice(NAMES)} {number}" for number in range(1, columns))]

    def number() -> str:
        return rng.choice([f"{rng.uniform(0, 100):.1f}", f"{rng.randint(1, 9999):,}", "-", f"{rng.uniform(0, 1):.0%}"])

    return [
        head,
        *([f"{rng.choice(NAMES)}-{row} base", *(number() for _ in range(columns - 1))] for row in range(rows)),
    ]


def tables_in(file: Path) -> list[Table]:
    return [block.table for block in parse(file, DEFAULT).blocks if block.table is not None]


@pytest.mark.parametrize("style", ["grid", "rules", "striped", "bare"])
@pytest.mark.parametrize("seed", range(6))
def test_every_cell_comes_back(tmp_path: Path, style: str, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    canvas = canvas_of(tmp_path / "a.pdf")
    drawn = []
    y = 780.0
    for number in range(2):
        y = paragraph(canvas, " ".join(sentence(rng) for _ in range(4)), 60, y, 470) - 6
        y = paragraph(canvas, f"Table {number + 1}: What was measured.", 60, y, 470) + 2
        rows = random_rows(rng)
        y = table(canvas, rows, 70, y, style) - 10
        drawn.append(rows)
    paragraph(canvas, " ".join(sentence(rng) for _ in range(4)), 60, y, 470)
    canvas.save()
    assert [[list(row) for row in found.rows] for found in tables_in(tmp_path / "a.pdf")] == drawn
    if style == "grid":  # which pdfplumber finds too
        with pdfplumber.open(tmp_path / "a.pdf") as theirs:
            assert theirs.pages[0].extract_tables() == drawn


def lines_of_cells(canvas: Canvas, xs: list[float], y: float, cells: list[str]) -> None:
    for x, cell in zip(xs, cells, strict=True):
        canvas.drawCentredString(x, y, cell)


def test_a_head_that_spans_and_labels_of_groups(tmp_path: Path) -> None:
    """As papers set them: a short rule under a head over two columns, labels at half the height of their groups."""
    canvas = canvas_of(tmp_path / "a.pdf")
    canvas.setFont("Times-Roman", 10)
    xs = [100.0, 190.0, 270.0, 330.0, 400.0]

    def rule(y: float, left: float = 70, right: float = 440) -> None:
        canvas.line(left, y, right, y)

    rule(700)
    lines_of_cells(canvas, [*xs[:2], 300.0, xs[4]], 686, ["", "Model", "AIME 2024", "MATH"])
    rule(681, 245, 355)
    lines_of_cells(canvas, xs, 669, ["", "", "pass@1", "cons@64", "pass@1"])
    rule(663)
    names = ["one", "two", "three", "four", "five", "six"]
    for number, name in enumerate(names):
        lines_of_cells(
            canvas, xs, 650 - 12 * number - 6 * (number > 3), ["", name, f"{number}.1", f"{number}.2", f"{number}.3"]
        )
    canvas.drawCentredString(xs[0], 632, "Odd")  # between the second row and the third
    rule(608)
    canvas.drawCentredString(xs[0], 590, "Even")
    rule(578)
    canvas.save()
    (found,) = tables_in(tmp_path / "a.pdf")
    assert found.header_rows == 2
    assert found.rows[0][1:] == ("Model", "AIME 2024", "", "MATH")
    assert found.rows[1][2:] == ("pass@1", "cons@64", "pass@1")
    assert [row[1:] for row in found.rows[2:]] == [(name, f"{n}.1", f"{n}.2", f"{n}.3") for n, name in enumerate(names)]
    assert [row[0] for row in found.rows] == ["", "", "Odd", "", "", "", "Even", ""]
    assert set(found.merged) == {(0, 2, 1, 2), (2, 0, 4, 1), (6, 0, 2, 1)}
    assert "| Model | AIME 2024 pass@1 | AIME 2024 cons@64 | MATH pass@1 |" in found.markdown().splitlines()[0]


def test_lines_of_a_wrapped_cell_are_one_row(tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "a.pdf")
    rows = [
        ["Name", "What it does", "Year"],
        ["one", "A first thing that is\nexplained in three\nlines of text", "2021"],
        ["two", "A short one", "2022"],
        ["three", "Another thing in\ntwo lines", "2023"],
    ]
    table(canvas, rows, 70, 700, "grid")
    canvas.save()
    (found,) = tables_in(tmp_path / "a.pdf")
    assert [list(row) for row in found.rows] == [[cell.replace("\n", " ") for cell in row] for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_running_text_is_no_table(tmp_path: Path, seed: int) -> None:
    """In one, two and three columns, in a frame, between two lines, and a list of contents."""
    print("seed", seed)
    rng = random.Random(seed)
    canvas = canvas_of(tmp_path / "a.pdf")
    for columns in (1, 2, 3):
        for column in range(columns):
            x, width = 60 + column * 480 / columns, 480 / columns - 16
            y = 780.0
            for _ in range(6):
                y = paragraph(canvas, " ".join(sentence(rng) for _ in range(4)), x, y, width) - 8
        canvas.showPage()
    canvas.rect(60, 400, 480, 200)
    paragraph(canvas, " ".join(sentence(rng) for _ in range(12)), 70, 580, 460)
    canvas.line(60, 300, 540, 300)
    paragraph(canvas, " ".join(sentence(rng) for _ in range(5)), 60, 285, 480)
    canvas.line(60, 200, 540, 200)
    canvas.showPage()
    for number in range(12):
        canvas.drawString(70, 700 - 20 * number, f"{number + 1}  {sentence(rng, 4)[:-1]} {' .' * 40}")
        canvas.drawRightString(520, 700 - 20 * number, str(3 * number))
    canvas.save()
    assert tables_in(tmp_path / "a.pdf") == []
    contents = [block for block in parse(tmp_path / "a.pdf", DEFAULT).blocks if block.place.page == 5]
    assert [block.kind for block in contents] == ["list"]
    assert len(contents[0].text.splitlines()) == 12


def test_tables_are_left_out_when_they_are_not_wanted(tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "a.pdf")
    table(canvas, random_rows(random.Random(1)), 70, 700, "grid")
    canvas.save()
    assert {block.kind for block in parse(tmp_path / "a.pdf", DEFAULT.model_copy(update={"tables": False})).blocks} == {
        "paragraph"
    }


def long_table(file: Path, rows: list[list[str]], repeated: bool, then: list[list[str]] | None = None) -> Document:
    """A table over several pages between two sentences; and perhaps another one on a page of its own."""
    look = TableStyle([("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONTSIZE", (0, 0), (-1, -1), 9)])
    text = getSampleStyleSheet()["BodyText"]
    story = [Paragraph("What was sold in all of the towns stands below, by item and by month.", text)]
    story += [Drawn(rows, [150, 90, 90], style=look, repeatRows=int(repeated))]
    story += [Drawn(then, [150, 90, 90], style=look)] if then else [Paragraph("These were all that were sold.", text)]
    SimpleDocTemplate(str(file), pagesize=A4).build(story)
    return parse(file, DEFAULT)


def count(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_table_over_the_ends_of_pages_is_one(tmp_path: Path, repeated: bool, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    rows = [["Item", "May", "June"]]
    rows += [
        [f"{rng.choice(NAMES)} no. {number}", f"{rng.randint(1, 999)}", f"{rng.uniform(0, 9):.2f}"]
        for number in range(95)
    ]
    document = long_table(tmp_path / "a.pdf", rows, repeated)
    found = [block for block in document.blocks if block.table is not None]
    assert [(block.place.page, block.continued) for block in found] == [(1, False), (2, True), (3, True)]
    assert [list(row) for block in found for row in (block.table or Table(())).rows[1:]] == rows[1:]
    assert all(list((block.table or Table(())).rows[0]) == rows[0] for block in found)
    for tokens in (4000, 128):
        chunks = [
            c for c in split(document, ChunkSettings(tokens=tokens, section_tokens=8000), count) if c.kind == "table"
        ]
        assert (len(chunks) == 1) == (tokens == 4000)
        assert all(chunk.text.startswith("| Item | May | June |\n| --- | --- | --- |\n") for chunk in chunks)
        lines = [line for chunk in chunks for line in chunk.text.splitlines()[2:]]
        assert lines == ["| " + " | ".join(row) + " |" for row in rows[1:]]
        for chunk in chunks:
            for place in chunk.places:
                [own] = [block for block in found if block.place.page == place.page]
                body = chunk.text[slice(*place.span or ())].removeprefix("| Item | May | June |\n| --- | --- | --- |\n")
                assert set(body.splitlines()) <= set(own.text.splitlines())


def test_another_table_on_the_next_page_is_another(tmp_path: Path) -> None:
    rows = [["Item", "May", "June"], *([f"Item no. {number}", str(number), f"{number}.5"] for number in range(36))]
    other = [["Town", "North", "South"], *([f"Town no. {number}", str(number), f"{number}.5"] for number in range(5))]
    document = long_table(tmp_path / "a.pdf", rows, False, other)
    found = [block for block in document.blocks if block.table is not None]
    assert [(block.place.page, block.continued) for block in found] == [(1, False), (2, False)]
    assert [list(row) for row in (found[1].table or Table(())).rows] == other


@pytest.mark.parametrize(
    ("between", "joined"),
    [
        (None, True),
        ("Table 3 (continued)", True),
        ("Tab. 2 (cont'd)", True),
        ("续表 2-1", True),
        ("表 2（续）", True),
        ("Table 4: Another one.", False),
        ("These were all.", False),
    ],
)
def test_what_may_stand_between_the_parts_of_a_table(between: str | None, joined: bool) -> None:
    def part(page: int, top: float, bottom: float, name: str) -> Block:
        found = Table((("Item", "May"), (name, "1")))
        return Block("table", found.markdown(), Place(page, ((50, top, 300, bottom),)), table=found)

    first, second = part(1, 500, 780, "x"), part(2, 80, 200, "y")
    caption = [Block("caption", between, Place(2))] if between else []
    heights = {1: 842.0, 2: 842.0}
    found = list(tables_on([first, *caption, second], heights))
    assert [block.text for block in found] == [first.text, *([] if joined else [b.text for b in caption]), second.text]
    assert found[-1].continued == joined
    assert list(tables_on([first, *caption], heights)) == [first, *caption]  # a remark that nothing follows stays
    short = part(1, 80, 200, "x")  # ends in the middle of its page
    assert list(tables_on([short, second], heights)) == [short, second]
