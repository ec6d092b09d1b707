"""PDF: text and order beside what was drawn and what pdfplumber reads, places beside the page as it is drawn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pdfplumber
import pypdfium2
import pytest
from knowledge.documents.pdf_files import canvas_of, one_page, paragraph, sentence, table
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Block, Document
from tinyseek.knowledge.documents.limits import DEFAULT
from tinyseek.knowledge.documents.pdf import page_size, parse, render_page
from tinyseek.knowledge.documents.wire import plain_document, read_document

WIDTH, HEIGHT = A4


def of_kind(document: Document, kind: str) -> list[Block]:
    return [block for block in document.blocks if block.kind == kind]


def article(file: Path, seed: int) -> list[str]:
    """Two columns under a title across both, with a heading in each; returns the texts in reading order."""
    rng = random.Random(seed)
    canvas = canvas_of(file)
    title = "A Title That Runs Over Both of the Columns Below"
    paragraph(canvas, title, 90, 780, 450, 18, "Helvetica-Bold")
    texts = [title]
    for number, x in enumerate((60, 315)):
        heading = f"{number + 1}. Heading of column {number + 1}"
        y = paragraph(canvas, heading, x, 730, 220, 12, "Helvetica-Bold") - 4
        texts.append(heading)
        for _ in range(4):
            text = " ".join(sentence(rng) for _ in range(5))
            y = paragraph(canvas, text, x, y, 220) - 8
            texts.append(text)
    canvas.showPage()
    canvas.save()
    return texts


@pytest.mark.parametrize("seed", range(4))
def test_two_columns_are_read_one_after_the_other(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    texts = article(tmp_path / "a.pdf", seed)
    document = parse(tmp_path / "a.pdf", DEFAULT)
    assert [block.text for block in document.blocks] == texts
    assert [block.kind for block in document.blocks].count("heading") == 3
    assert document.title == texts[0]
    assert document.blocks[-1].path[-1] == "2. Heading of column 2"


def test_every_word_that_pdfplumber_reads_is_read(tmp_path: Path) -> None:
    article(tmp_path / "a.pdf", 7)
    with pdfplumber.open(tmp_path / "a.pdf") as theirs:
        words = Counter(word["text"] for page in theirs.pages for word in page.extract_words())
    ours = Counter(word for block in parse(tmp_path / "a.pdf", DEFAULT).blocks for word in block.text.split())
    assert ours == words


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("cropped", [False, True])
def test_boxes_lie_on_the_ink_of_the_page(tmp_path: Path, turned: int, cropped: bool) -> None:
    """The page as it is drawn is the oracle: all ink is in boxes, and each box has ink along all of its sides."""
    rng = random.Random(3)
    canvas = canvas_of(tmp_path / "a.pdf", cropBox=(30, 50, WIDTH - 10, HEIGHT - 20) if cropped else None)
    canvas.setPageRotation(turned)
    y = paragraph(canvas, "1. A heading", 80, 540, 300, 14, "Helvetica-Bold") - 10
    for _ in range(3):
        y = paragraph(canvas, " ".join(sentence(rng) for _ in range(4)), 80, y, 300) - 14
    table(canvas, [["name", "value"], ["one", "1.5"], ["two", "2.5"]], 80, y, "grid")
    canvas.showPage()
    canvas.save()
    document = parse(tmp_path / "a.pdf", DEFAULT)
    scale = 2
    with pypdfium2.PdfDocument(tmp_path / "a.pdf") as file:
        picture = np.asarray(file[0].render(scale=scale).to_pil().convert("L"))
    ink = picture < 128
    assert document.details["page_sizes"] == [[round(edge, 1) for edge in page_size(tmp_path / "a.pdf", 1)]]
    left = ink.copy()
    for block in document.blocks:
        assert len(block.place.boxes) == 1
        x0, top, x1, bottom = (round(edge * scale) for edge in block.place.boxes[0])
        inside = ink[top - 2 : bottom + 3, x0 - 2 : x1 + 3]
        for side in (inside[:16], inside[-16:], inside[:, :16], inside[:, -16:]):
            assert side.any(), (block.text, turned)
        left[top - 3 : bottom + 4, x0 - 3 : x1 + 4] = False
    assert ink.any()
    assert not left.any()


def test_text_turned_on_its_side_is_read_in_order(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [" ".join(sentence(rng) for _ in range(4)) for _ in range(3)]
    canvas = canvas_of(tmp_path / "a.pdf")
    canvas.rotate(90)
    y = -100.0
    for text in texts:
        y = paragraph(canvas, text, 100, y, 500) - 14
    canvas.save()
    document = parse(tmp_path / "a.pdf", DEFAULT)
    assert [block.text for block in document.blocks] == texts
    x0, top, x1, bottom = document.blocks[0].place.boxes[0]
    assert bottom - top > x1 - x0 > 0
    assert x0 > 85


def test_what_repeats_in_the_margins_is_dropped(tmp_path: Path) -> None:
    rng = random.Random(1)
    canvas = canvas_of(tmp_path / "a.pdf")
    for page in range(1, 7):
        chapter = "Beginnings" if page < 4 else "Ends"
        canvas.setFont("Helvetica", 9)
        canvas.drawString(70, 800, f"Chapter {1 + page // 4}: {chapter}")
        canvas.drawRightString(520, 800, str(page + 10))
        canvas.drawCentredString(300, 40, "Confidential")
        paragraph(canvas, " ".join(sentence(rng) for _ in range(20)), 70, 740, 450)
        canvas.showPage()
    canvas.save()
    text = "\n".join(block.text for block in parse(tmp_path / "a.pdf", DEFAULT).blocks)
    assert "Chapter" not in text
    assert "Confidential" not in text
    assert "11" not in text
    assert text.count(".") == 120


def test_broken_words_are_made_whole_and_others_keep_their_hyphen(tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "a.pdf")
    lines = [
        "We train a model under super-",
        "vision. The state-of-the-",
        "art is DeepSeek-",
        "R1, after a cold-",
        "start; each cold-start needs infor-",
        "mation. On a larger-",
        "scale the scale is large: larger models, ed-",
        "ited as the ed- or the edited one, and a net-",
        "work: net work is no network.",
    ]
    for number, line in enumerate(lines):
        canvas.drawString(80, 700 - 15 * number, line)
    canvas.save()
    (block,) = parse(tmp_path / "a.pdf", DEFAULT).blocks
    assert " ".join(block.text.split()) == (
        "We train a model under supervision. The state-of-the-art is DeepSeek-R1, after a cold-start; "
        "each cold-start needs information. On a larger-scale the scale is large: larger models, edited as the ed- or the edited "
        "one, and a network: net work is no network."
    )


def test_headings_get_levels_from_outline_numbers_and_letters(tmp_path: Path) -> None:
    rng = random.Random(2)
    canvas = canvas_of(tmp_path / "a.pdf")
    y = 780.0
    shown = [
        ("1. First", 15, 0),
        ("1.1. Inner", 12, 1),
        ("Aside", 12, None),
        ("2. Second", 15, 0),
        ("Unnumbered", 15, None),
    ]
    for text, size, level in shown:
        if level is not None and text[0] == "1":
            canvas.bookmarkPage(text)
            canvas.addOutlineEntry(text.split(" ", 1)[1], text, level)
        y = paragraph(canvas, text, 70, y - 12, 450, size, "Helvetica-Bold") - 6
        y = paragraph(canvas, " ".join(sentence(rng) for _ in range(6)), 70, y, 450) - 6
    canvas.save()
    document = parse(tmp_path / "a.pdf", DEFAULT)
    assert [(block.text, block.level) for block in of_kind(document, "heading")] == [
        ("1. First", 1), ("1.1. Inner", 2), ("Aside", 2), ("2. Second", 1), ("Unnumbered", 1),
    ]  # fmt: skip
    assert [block.path for block in of_kind(document, "paragraph")][1] == ("1. First", "1.1. Inner")


def test_lists_captions_and_code_are_told_apart(tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "a.pdf")
    y = paragraph(canvas, "These are the reasons, and there are three of them in all:", 70, 780, 450) - 4
    for line in ("• The first, which", "• The second", "1. A count", "2. Another"):
        y = paragraph(canvas, line, 85, y, 400)
    for line in ("def f(x):", "    return x"):
        canvas.setFont("Courier", 9)
        canvas.drawString(70 + 5.4 * (len(line) - len(line.lstrip())), y - 10, line.strip())
        y -= 11
    y = paragraph(canvas, "Figure 3: What is drawn here, and why it is.", 70, y - 40, 450)
    paragraph(
        canvas, "Table 3 shows that a sentence is no caption, since it goes on and on as sentences do.", 70, y - 30, 450
    )
    canvas.save()
    document = parse(tmp_path / "a.pdf", DEFAULT)
    assert [block.kind for block in document.blocks] == ["paragraph", "list", "code", "caption", "paragraph"]
    assert of_kind(document, "list")[0].text.splitlines() == [
        "- The first, which",
        "- The second",
        "1. A count",
        "2. Another",
    ]
    assert of_kind(document, "code")[0].text == "def f(x):\n    return x"


def test_chinese_lines_join_without_blanks(tmp_path: Path) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    text = (
        "知识库可以读取多种格式的文档，并在回答中给出页码。我们用它测试了很多次，结果很好，准确率远高于以前的版本，大家都很满意。"
        * 3
    )
    canvas = canvas_of(tmp_path / "a.pdf")
    for page in range(3):
        canvas.setFont("STSong-Light", 16)
        canvas.drawString(70, 760, f"第{'一二三'[page]}章 总则")
        canvas.setFont("STSong-Light", 11)
        for number, start in enumerate(range(0, len(text), 40)):
            canvas.drawString(70, 720 - 18 * number, text[start : start + 40])
        canvas.drawCentredString(300, 30, f"第 {page + 1} 页")
        canvas.showPage()
    canvas.save()
    document = parse(tmp_path / "a.pdf", DEFAULT)
    assert document.language == "zh"
    assert [block.text for block in document.blocks] == [
        part for page in range(3) for part in (f"第{'一二三'[page]}章 总则", text)
    ]


def test_a_sentence_over_a_page_s_end_is_marked_as_going_on(tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "a.pdf")
    canvas.drawString(
        70, 700, "This sentence begins here, on the first page, and goes on over its end with some infor-"
    )
    canvas.showPage()
    canvas.drawString(70, 700, "mation on the next page, where it ends.")
    canvas.showPage()
    canvas.save()
    first, second = parse(tmp_path / "a.pdf", DEFAULT).blocks
    assert first.text.endswith("some information")
    assert second.text == "on the next page, where it ends."
    assert second.continued
    assert (first.place.page, second.place.page) == (1, 2)


def test_a_document_crosses_the_wire_whole(tmp_path: Path) -> None:
    article(tmp_path / "a.pdf", 1)
    document = parse(tmp_path / "a.pdf", DEFAULT)
    again = read_document(plain_document(document))
    assert [(b.kind, b.text, b.path, b.level, b.table) for b in again.blocks] == [
        (b.kind, b.text, b.path, b.level, b.table) for b in document.blocks
    ]
    assert (again.title, again.pages, again.details) == (document.title, document.pages, document.details)


def test_pages_as_pictures(tmp_path: Path) -> None:
    article(tmp_path / "a.pdf", 1)
    assert render_page(tmp_path / "a.pdf", 1, 1.0).startswith(b"\x89PNG")
    with pytest.raises(UserError, match="has no page 2; its pages are 1 to 1"):
        render_page(tmp_path / "a.pdf", 2, 1.0)
    (tmp_path / "huge.pdf").write_bytes(one_page(b"", b"/UserUnit 1/MediaBox[0 0 100000 100000]"))
    assert len(render_page(tmp_path / "huge.pdf", 1, 5.0)) < 1_000_000
