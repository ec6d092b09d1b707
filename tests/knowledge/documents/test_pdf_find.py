"""A text is found on its page, line by line, though lines break it and hyphens cut it."""

from __future__ import annotations

from pathlib import Path

import pytest
from reportlab.pdfgen import canvas

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.pdf_find import find_text
from tinyseek.knowledge.documents.read import Readers

LINES = [
    "A passage may begin in the middle of a line and go on,",
    "broken by the para-",
    "graph's own lines, to its end. The sentence after it",
    "is another. A passage may begin twice.",
]


@pytest.fixture(scope="module")
def pdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("find") / "lines.pdf"
    page = canvas.Canvas(str(file), pagesize=(400, 300), invariant=1)
    for number, line in enumerate(LINES):
        page.drawString(50, 250 - 20 * number, line)
    page.showPage()
    page.drawString(50, 250, "A page of its own, with what ran over from")
    page.save()
    return file


def test_a_passage_is_found_line_by_line(pdf: Path) -> None:
    boxes = find_text(pdf, 1, "broken by the paragraph's own lines, to its end.")
    assert len(boxes) == 2
    for box, line in zip(boxes, (1, 2), strict=True):
        base = 300 - (250 - 20 * line)  # from above
        assert box[1] < base < box[3] + 1
        assert box[3] - box[1] < 20
        assert box[0] == pytest.approx(50, abs=2)
    assert boxes[1][2] < 210  # the next sentence is not marked


def test_of_two_places_the_near_one(pdf: Path) -> None:
    first = find_text(pdf, 1, "A passage may begin")
    last = find_text(pdf, 1, "A passage may begin", near=[(100, 100, 300, 120)])
    assert first[0][1] < 60 < 100 < last[0][1] + 5
    assert find_text(pdf, 1, "A passage may begin", near=[(0, 200, 400, 300)]) == ()


def test_what_runs_over_the_pages_edge_is_marked_as_far_as_it_goes(pdf: Path) -> None:
    boxes = find_text(pdf, 2, "with what ran over from one page to the next one after it")
    assert len(boxes) == 1
    assert boxes[0][0] > 120
    assert find_text(pdf, 2, "nothing of the kind stands here") == ()
    assert find_text(pdf, 2, "  -\n ") == ()


def test_in_a_worker_process(pdf: Path) -> None:
    with Readers(1) as readers:
        assert readers.find_text(pdf, 1, LINES[0]) == find_text(pdf, 1, LINES[0])
        with pytest.raises(UserError, match="no page 9"):
            readers.find_text(pdf, 9, "x")
