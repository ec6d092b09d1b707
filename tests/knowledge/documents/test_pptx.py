"""Presentations: slides in order, with places; tables and charts with every number; notes; groups; what repeats left out."""

from __future__ import annotations

from pathlib import Path

import pptx
import pytest
from pptx.chart.data import CategoryChartData, XyChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Pt

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import pptx as reader
from tinyseek.knowledge.documents.limits import Limits


@pytest.fixture
def deck(tmp_path: Path) -> Path:
    deck = pptx.Presentation()
    deck.core_properties.author = "Ann"
    first = deck.slides.add_slide(deck.slide_layouts[0])
    first.shapes.title.text, first.placeholders[1].text = "The deck 标题", "A subtitle"
    second = deck.slides.add_slide(deck.slide_layouts[1])
    second.shapes.title.text = "Points"
    frame = second.placeholders[1].text_frame
    frame.text = "one"
    for text, level in (("two deep", 1), ("three", 0)):
        paragraph = frame.add_paragraph()
        paragraph.text, paragraph.level = text, level
    second.notes_slide.notes_text_frame.text = "say hello"
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "Numbers"
    chart = CategoryChartData()
    chart.categories = ["East", "西"]
    chart.add_series("Q1", (1.5, 2))
    chart.add_series("Q2", (3, None))
    third.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Pt(72), Pt(300), Pt(300), Pt(200), chart)
    points = XyChartData()
    series = points.add_series("path")
    series.add_data_point(0.5, 7)
    series.add_data_point(1.5, 9)
    third.shapes.add_chart(XL_CHART_TYPE.XY_SCATTER, Pt(400), Pt(300), Pt(300), Pt(200), points)
    table = third.shapes.add_table(3, 3, Pt(72), Pt(144), Pt(400), Pt(80)).table
    for row in range(3):
        for column in range(3):
            table.cell(row, column).text = "" if (row, column) in ((1, 1), (2, 0), (2, 1)) else f"{row}{column}"
    table.cell(1, 0).merge(table.cell(2, 1))
    group = third.shapes.add_group_shape()
    group.shapes.add_textbox(Pt(500), Pt(150), Pt(100), Pt(40)).text_frame.text = "in a group"
    deck.save(tmp_path / "a.pptx")
    return tmp_path / "a.pptx"


def test_a_deck_in_full(deck: Path) -> None:
    document = reader.parse(deck, Limits())
    assert (document.title, document.author, document.pages) == ("The deck 标题", "Ann", 3)
    assert [(block.kind, block.text, block.place.page) for block in document.blocks] == [
        ("heading", "The deck 标题", 1),
        ("paragraph", "A subtitle", 1),
        ("heading", "Points", 2),
        ("list", "- one\n  - two deep\n- three", 2),
        ("paragraph", "say hello", 2),
        ("heading", "Numbers", 3),
        ("table", "| 00 | 01 | 02 |\n| --- | --- | --- |\n| 10 |  | 12 |\n|  |  | 22 |", 3),
        ("paragraph", "in a group", 3),
        ("table", "|  | Q1 | Q2 |\n| --- | --- | --- |\n| East | 1.5 | 3 |\n| 西 | 2 |  |", 3),
        ("table", "|  | path |\n| --- | --- |\n| 0.5 | 7 |\n| 1.5 | 9 |", 3),
    ]
    assert document.blocks[3].path == ("Points",)


def test_boxes_are_in_points_wherever_the_place_comes_from(deck: Path) -> None:
    blocks = reader.parse(deck, Limits()).blocks
    assert blocks[6].place.boxes == ((72, 144, 472, 224),)
    assert blocks[7].place.boxes == ((500, 150, 600, 190),)  # moved with its group
    assert blocks[3].place.boxes == ((36, 126, 684, 482.4),)  # its layout's
    assert reader.parse(deck, Limits()).details == {"size": [720, 540]}


def test_merged_cells_of_a_slides_table(deck: Path) -> None:
    table = reader.parse(deck, Limits()).blocks[6].table
    assert table is not None
    assert table.merged == ((1, 0, 2, 2),)


def test_footers_and_numbers_are_left_out_and_untitled_slides_have_no_path(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Before"
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    slide.shapes.add_textbox(0, 0, Pt(100), Pt(20)).text_frame.text = "free text"
    for holder in deck.slide_layouts[6].placeholders:  # date, footer, number
        slide.shapes.clone_placeholder(holder)
    for shape in slide.placeholders:
        shape.text_frame.text = "repeated"
    deck.save(tmp_path / "a.pptx")
    found = reader.parse(tmp_path / "a.pptx", Limits()).blocks
    assert [(block.text, block.path) for block in found] == [("Before", ()), ("free text", ())]


def test_too_many_slides_are_a_line(deck: Path) -> None:
    with pytest.raises(UserError, match="3 slides, more than 2"):
        reader.parse(deck, Limits(pages=2))
