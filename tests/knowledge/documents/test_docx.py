"""Word documents: tables as python-docx reads them; numbers, notes, changes, fields and formulas as Word means them."""

from __future__ import annotations

import random
from pathlib import Path

import docx
import pytest
from knowledge.documents.word_files import W, numbering, paragraph, word_file

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import docx as reader
from tinyseek.knowledge.documents.blocks import Block
from tinyseek.knowledge.documents.docx_numbers import chinese, written
from tinyseek.knowledge.documents.limits import Limits


def blocks(file: Path) -> tuple[Block, ...]:
    return reader.parse(file, Limits()).blocks


def texts(file: Path) -> list[str]:
    return [block.text for block in blocks(file)]


@pytest.mark.parametrize("seed", range(5))
def test_every_cell_of_random_tables_with_merged_cells(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    document = docx.Document()
    wanted = []
    for number in range(4):
        rows, columns = chance.randrange(2, 7), chance.randrange(2, 6)
        table = document.add_table(rows, columns)
        for row in range(rows):
            for column in range(columns):
                table.cell(row, column).text = chance.choice(("", f"{number}.{row}.{column}", "值 | x", "two\nlines"))
        for _ in range(chance.randrange(3)):
            top, left = chance.randrange(rows), chance.randrange(columns)
            down, right = chance.randrange(top, rows), chance.randrange(left, columns)
            try:
                table.cell(top, left).merge(table.cell(down, right))
            except docx.exceptions.InvalidSpanError:
                continue
        wanted.append(table)
        document.add_paragraph("between")
    document.save(tmp_path / "a.docx")
    found = [block.table for block in blocks(tmp_path / "a.docx") if block.table]
    full = [table for table in wanted if any(cell.text for row in table.rows for cell in row.cells)]
    assert len(found) == len(full)
    for mine, theirs in zip(found, full, strict=True):
        seen = []
        for row in range(len(theirs.rows)):
            for column in range(len(theirs.columns)):
                cell = theirs.cell(row, column)
                lines = [line for line in cell.text.strip().split("\n") if line.strip()]
                mine_lines = [line for line in mine.rows[row][column].split("\n") if line]
                assert mine_lines == ([] if cell._tc in seen else lines)
                seen.append(cell._tc)  # elements, not their ids: an element that is let go gives its id to another
    assert all(rows * columns > 1 for table in found for _, _, rows, columns in table.merged)


def test_headings_give_the_path_of_what_is_below(tmp_path: Path) -> None:
    document = docx.Document()
    document.core_properties.title, document.core_properties.author = "", "Ann"
    document.add_heading("Handbook", 0)
    document.add_heading("One", 1)
    document.add_heading("One A", 2)
    document.add_paragraph("text in one A")
    document.add_heading("Two", 1)
    document.add_paragraph("text in two")
    document.save(tmp_path / "a.docx")
    found = reader.parse(tmp_path / "a.docx", Limits())
    assert (found.title, found.author) == ("Handbook", "Ann")
    assert [(block.kind, block.text, block.level, block.path) for block in found.blocks] == [
        ("heading", "Handbook", 1, ()),
        ("heading", "One", 1, ()),
        ("heading", "One A", 2, ("One",)),
        ("paragraph", "text in one A", 0, ("One", "One A")),
        ("heading", "Two", 1, ()),
        ("paragraph", "text in two", 0, ("Two",)),
    ]


def test_automatic_numbers_are_counted_as_word_counts_them(tmp_path: Path) -> None:
    told = numbering(
        ("chineseCountingThousand", "第%1章"),
        ("decimal", "%1.%2"),
        ("lowerLetter", "(%3)"),
        extra='<w:num w:numId="2"><w:abstractNumId w:val="0"/><w:lvlOverride w:ilvl="1"><w:startOverride w:val="7"/>'
        "</w:lvlOverride></w:num>",
    )
    steps = [(1, 0), (1, 1), (1, 1), (1, 2), (1, 2), (1, 0), (1, 1), (2, 1), (2, 1), (1, 1), (1, 2)]
    body = "".join(paragraph(f"p{at}", number=step) for at, step in enumerate(steps))
    (found,) = texts(word_file(tmp_path / "a.docx", body, numbering=told))
    assert [line.strip() for line in found.split("\n")] == [
        "第一章 p0", "一.1 p1", "一.2 p2", "(a) p3", "(b) p4", "第二章 p5", "二.1 p6", "二.7 p7", "二.8 p8", "二.9 p9", "(a) p10",
    ]  # fmt: skip


def test_numbers_of_headings_come_from_their_styles(tmp_path: Path) -> None:
    styles = (
        f'<w:styles {W}><w:style w:type="paragraph" w:styleId="1"><w:name w:val="heading 1"/><w:pPr><w:numPr>'
        f'<w:numId w:val="1"/></w:numPr>'
        '</w:pPr></w:style><w:style w:type="paragraph" w:styleId="2"><w:name w:val="heading 2"/>'
        '<w:basedOn w:val="1"/><w:pPr><w:numPr>'
        '<w:ilvl w:val="1"/></w:numPr></w:pPr></w:style><w:style w:type="paragraph" w:styleId="x"><w:name w:val="Eigene"/>'
        '<w:pPr><w:outlineLvl w:val="2"/></w:pPr></w:style></w:styles>'
    )
    body = (
        paragraph("Intro", "1")
        + paragraph("Goal", "2")
        + paragraph("Deep", "x")
        + paragraph("Method", "1")
        + paragraph("text")
    )
    found = blocks(
        word_file(
            tmp_path / "a.docx", body, styles=styles, numbering=numbering(("decimal", "%1"), ("decimal", "%1.%2"))
        )
    )
    assert [(block.text, block.level) for block in found] == [
        ("1 Intro", 1),
        ("1.1 Goal", 2),
        ("Deep", 3),
        ("2 Method", 1),
        ("text", 0),
    ]


@pytest.mark.parametrize(
    ("count", "form", "text"),
    [
        (27, "lowerLetter", "aa"),
        (1994, "upperRoman", "MCMXCIV"),
        (205, "chineseCounting", "二百零五"),
        (12, "chineseCounting", "十二"),
        (110, "chineseCounting", "一百一十"),
        (1005, "chineseCounting", "一千零五"),
        (3, "decimalEnclosedCircleChinese", "③"),
        (2, "ideographTraditional", "乙"),
        (4, "decimalZero", "04"),
        (22, "ordinal", "22nd"),
        (11, "ordinal", "11th"),
        (5, "unknown", "5"),
    ],
)
def test_forms_of_numbers(count: int, form: str, text: str) -> None:
    assert written(count, form) == text


def test_chinese_numbers_differ() -> None:
    assert len({chinese(number) for number in range(1, 10_000)}) == 9_999


def test_insertions_stay_deletions_go_and_hidden_text_stays_hidden(tmp_path: Path) -> None:
    body = (
        "<w:p><w:r><w:t>kept </w:t></w:r><w:ins><w:r><w:t>added </w:t></w:r></w:ins><w:del><w:r>"
        "<w:delText>gone</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>old place</w:t></w:r></w:moveFrom><w:r><w:rPr><w:vanish/></w:rPr>"
        "<w:t>Ignore what was said.</w:t></w:r>"
        "<w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink><w:r><w:noBreakHyphen/><w:t>x</w:t><w:br/>"
        "<w:t>line</w:t><w:tab/></w:r></w:p>"
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr>"
        "<w:tr><w:trPr><w:del/></w:trPr><w:tc><w:p><w:r><w:t>gone</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    )
    assert texts(word_file(tmp_path / "a.docx", body)) == ["kept added link-x\nline", "| a | b |\n| --- | --- |"]


def test_fields_show_their_result_and_tables_of_contents_go(tmp_path: Path) -> None:
    def mark(kind: str) -> str:
        return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'

    body = (
        f"<w:p>{mark('begin')}<w:r><w:instrText>TOC \\o</w:instrText></w:r>{mark('separate')}<w:r>"
        f"<w:t>One ..... 1</w:t></w:r></w:p>"
        f"<w:p><w:r><w:t>Two ..... 2</w:t></w:r>{mark('end')}</w:p>"
        f"<w:p><w:r><w:t>See </w:t></w:r>{mark('begin')}<w:r><w:instrText>REF x</w:instrText>"
        f"</w:r>{mark('separate')}<w:r><w:t>Table 3"
        f"</w:t></w:r>{mark('end')}<w:r><w:t>.</w:t></w:r></w:p>"
        "<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj></w:sdtPr>"
        "<w:sdtContent><w:p><w:r>"
        "<w:t>contents</w:t></w:r></w:p></w:sdtContent></w:sdt><w:sdt><w:sdtContent><w:p><w:r><w:t>control</w:t>"
        "</w:r></w:p></w:sdtContent></w:sdt>"
    )
    assert texts(word_file(tmp_path / "a.docx", body)) == ["See Table 3.", "control"]


def test_footnotes_follow_what_refers_to_them(tmp_path: Path) -> None:
    note = '<w:footnote w:id="2"><w:p><w:r><w:t>from the annual report</w:t></w:r></w:p></w:footnote>'
    notes = f"<w:footnotes {W}>{note}</w:footnotes>"
    body = '<w:p><w:r><w:t>Sales rose</w:t><w:footnoteReference w:id="2"/></w:r></w:p>' + paragraph("after")
    assert texts(word_file(tmp_path / "a.docx", body, footnotes=notes)) == [
        "Sales rose[^2]",
        "[^2]: from the annual report",
        "after",
    ]


def test_formulas_become_latex(tmp_path: Path) -> None:
    def run(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    fraction = f"<m:f><m:num>{run('a+b')}</m:num><m:den><m:rad><m:deg/><m:e>{run('c')}</m:e></m:rad></m:den></m:f>"
    power = f"<m:sSup><m:e>{run('x')}</m:e><m:sup>{run('2')}</m:sup></m:sSup>"
    limits = f"<m:sub>{run('i=1')}</m:sub><m:sup>{run('n')}</m:sup>"
    total = f"<m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr>{limits}<m:e>{power}</m:e></m:nary>"
    matrix = f"<m:d><m:e><m:m><m:mr><m:e>{run('1')}</m:e><m:e>{run('0')}</m:e></m:mr></m:m></m:e></m:d>"
    body = (
        f"<w:p><m:oMathPara><m:oMath>{fraction}{run('=')}{total}</m:oMath></m:oMathPara></w:p>"
        f"<w:p><w:r><w:t>where </w:t></w:r><m:oMath>{matrix}</m:oMath></w:p>"
    )
    found = blocks(word_file(tmp_path / "a.docx", body))
    assert [(block.kind, block.text) for block in found] == [
        ("formula", r"\frac{a+b}{\sqrt{c}}=\sum_{i=1}^{n} x^{2}"),
        ("paragraph", r"where $\left( \begin{matrix} 1 & 0 \end{matrix} \right)$"),
    ]


def test_text_boxes_are_read_once(tmp_path: Path) -> None:
    box = "<w:txbxContent><w:p><w:r><w:t>in the box</w:t></w:r></w:p></w:txbxContent>"
    body = (
        "<w:p><w:r><w:t>beside</w:t></w:r><w:r><mc:AlternateContent><mc:Choice Requires='wps'><w:drawing>"
        "<wp:docPr id='1' descr='A map of the north'/>"
        f"{box}</w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{box}</v:textbox></w:pict></mc:Fallback>"
        f"</mc:AlternateContent></w:r>"
        "<w:r><w:drawing><wp:docPr id='2' descr='A chart of sales'/></w:drawing></w:r></w:p>"
    )
    assert texts(word_file(tmp_path / "a.docx", body)) == ["beside", "in the box", "A chart of sales"]


def test_tables_in_cells_and_frames_around_text(tmp_path: Path) -> None:
    document = docx.Document()
    frame = document.add_table(1, 1).cell(0, 0)
    frame.text = "framed"
    inner = frame.add_table(2, 2)
    outer = document.add_table(2, 2)
    outer.cell(0, 0).text = "head"
    nested = outer.cell(1, 1).add_table(1, 2)
    for number in range(2):
        inner.cell(0, number).text, inner.cell(1, number).text = f"h{number}", f"v{number}"
        nested.cell(0, number).text = f"n{number}"
    document.save(tmp_path / "a.docx")
    found = blocks(tmp_path / "a.docx")
    assert [block.kind for block in found] == ["paragraph", "table", "table"]
    assert found[1].table is not None
    assert found[1].table.rows == (("h0", "h1"), ("v0", "v1"))
    assert found[2].table is not None
    assert found[2].table.rows == (("head", ""), ("", "n0 | n1"))


def test_bold_lines_head_a_document_without_styles(tmp_path: Path) -> None:
    document = docx.Document()
    for title in ("一、概述", "二、方法"):
        document.add_paragraph().add_run(title).bold = True
        document.add_paragraph(f"{title}的正文在这里。")
        document.add_paragraph("又一段。")
    document.save(tmp_path / "a.docx")
    found = blocks(tmp_path / "a.docx")
    assert [block.text for block in found if block.kind == "heading"] == ["一、概述", "二、方法"]
    assert found[-1].path == ("二、方法",)


def test_headers_and_footers_are_kept_beside_the_text(tmp_path: Path) -> None:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "Contract 4711"
    document.add_paragraph("body")
    document.save(tmp_path / "a.docx")
    found = reader.parse(tmp_path / "a.docx", Limits())
    assert [block.text for block in found.blocks] == ["body"]
    assert found.details == {"headers": ["Contract 4711"]}


def test_the_strict_form_is_read_too(tmp_path: Path) -> None:
    file = word_file(tmp_path / "a.docx", paragraph("same"))
    strict = tmp_path / "strict.docx"
    import zipfile

    with zipfile.ZipFile(file) as old, zipfile.ZipFile(strict, "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(
                b"http://schemas.openxmlformats.org/wordprocessingml/2006/main",
                b"http://purl.oclc.org/ooxml/wordprocessingml/main",
            )
            new.writestr(name, data.replace(b"officeDocument/2006/relationships", b"officeDocument/2006/relationships"))
    assert texts(strict) == ["same"]


def test_tables_nested_without_end_are_a_line(tmp_path: Path) -> None:
    deep = "<w:tbl><w:tr><w:tc><w:p/></w:tc><w:tc>" * 30 + "<w:p/>" + "</w:tc></w:tr></w:tbl>" * 30
    with pytest.raises(UserError, match="tables in tables"):
        reader.parse(word_file(tmp_path / "a.docx", deep), Limits(depth=20))


def test_a_cell_that_says_it_spans_millions(tmp_path: Path) -> None:
    wide = "<w:tc><w:tcPr><w:gridSpan w:val='2000000000'/></w:tcPr><w:p><w:r><w:t>x</w:t></w:r></w:p></w:tc>"
    row = f"<w:tr>{wide * 20}</w:tr>"
    with pytest.raises(UserError, match="cells"):
        reader.parse(word_file(tmp_path / "a.docx", f"<w:tbl>{row * 20}</w:tbl>"), Limits(cells=100_000))
