"""Tables in PDF: random ones, drawn in every style, come back cell by cell; text that only looks like one stays text."""

from __future__ import annotations

import random
from pathlib import Path

import pdfplumber
import pytest
from knowledge.documents.pdf_files import canvas_of, paragraph, sentence, table
from reportlab.pdfgen.canvas import Canvas

from tinyseek.knowledge.documents.blocks import Table
from tinyseek.knowledge.documents.limits import DEFAULT
from tinyseek.knowledge.documents.pdf import parse

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
