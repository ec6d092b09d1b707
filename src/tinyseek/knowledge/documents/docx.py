"""Word documents: headings with their numbers, paragraphs, lists, tables with every cell, formulas, footnotes, text boxes.

Read from the XML as Word means it: automatic numbers are counted, tracked insertions are there and deletions are not, fields show
their last result, tables of contents are left out, text that is hidden stays so. The body is streamed block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lxml import etree

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Document, Kind, Table
from tinyseek.knowledge.documents.docx_formulas import M, latex
from tinyseek.knowledge.documents.docx_numbers import Numbering, Style, W, read_styles, switched, value
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of
from tinyseek.knowledge.documents.zipped import Package, day, whole

_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}"
_WIDEST = 1000  # columns that one cell may span
_LONGEST_HEADING = 200  # characters; what is longer is a paragraph in a heading's style
_BOLD_HEADING = 60  # characters of a bold line that is taken for a heading where a document has no heading styles
_ENDS = ".。!！?？:：;；,，、"
_BOXES = {
    chr(0xF000 + at): sign
    for at, sign in ((0xA8, "☐"), (0xFE, "☑"), (0xFD, "☒"), (0xFC, "✓"), (0xFB, "✗"), (0x6F, "☐"))
}


@dataclass(frozen=True)
class _Item:
    """A block before the headings above it are known."""

    kind: Kind
    text: str
    level: int = 0
    table: Table | None = None
    bold: int = 0  # its size in half points if all of it is bold and it might be a heading


@dataclass
class _Paragraph:
    """A paragraph's text under way."""

    texts: list[str] = field(default_factory=list)
    bold: bool = True  # all of it
    size: int = 0
    boxes: list[etree._Element] = field(default_factory=list)  # text boxes that hang on it
    pictures: list[str] = field(default_factory=list)  # what they show, in words
    notes: list[tuple[str, str]] = field(default_factory=list)  # "footnotes", its id
    formulas: int = 0


def parse(file: Path, limits: Limits) -> Document:
    """A Word document (.docx, .docm).

    Raises:
        UserError: damaged, hostile or too long.
    """
    with Package(file, limits, "Word document") as package:
        main = package.main_part("word/document.xml")
        reader = _Reader(package, main, limits)
        for element in package.elements(
            main, f"{W}p", f"{W}tbl", f"{W}sdt", f"{W}customXml", f"{W}ins", parent="}body"
        ):
            reader.read(element)
        properties, macros = package.properties(), package.has_macros()
        margins = {name: reader.texts_of(name) for name in ("header", "footer")}
    outline = Outline(limits)
    for item in _with_headings(reader.items):
        if item.table is not None:
            outline.table(item.table)
        elif item.kind == "heading":
            outline.heading(item.text, item.level)
        else:
            outline.add(item.kind, item.text)
    return Document(
        tuple(outline.blocks),
        "docx",
        properties.get("title") or reader.title,
        properties.get("creator", ""),
        day(properties.get("modified", "")) or day(properties.get("created", "")),
        language=language_of(" ".join(block.text[:500] for block in outline.blocks[:50])),
        notes=("has macros, which were not run",) if macros else (),
        details={f"{name}s": texts for name, texts in margins.items() if texts},
    )


class _Reader:
    """Word's blocks to items, in order."""

    def __init__(self, package: Package, main: str, limits: Limits) -> None:
        self.items: list[_Item] = []
        self.title = ""
        self._package, self._limits, self._cells = package, limits, 0
        links = package.relations(main).values()
        self._parts = {kind: [link.target for link in links if link.kind == kind and link.target in package]
                       for kind in ("styles", "numbering", "footnotes", "endnotes", "header", "footer")}  # fmt: skip
        self._styles = {"": Style()} | (
            read_styles(package.xml(self._parts["styles"][0])) if self._parts["styles"] else {}
        )
        self._numbering = (
            Numbering.read(package.xml(self._parts["numbering"][0])) if self._parts["numbering"] else Numbering()
        )
        self._notes: dict[tuple[str, str], str] | None = None
        self._fields: list[
            str
        ] = []  # of fields that are open, what they are, from "begin" on; "" once their result comes
        self._depth = 0

    def read(self, element: etree._Element) -> None:
        """A child of the body, with all that is in it."""
        tag = element.tag
        if tag == f"{W}p":
            self._paragraph(element)
        elif tag == f"{W}tbl":
            self._put_table(element)
        else:
            gallery = element.find(f"{W}sdtPr/{W}docPartObj/{W}docPartGallery")
            if gallery is None or value(gallery) != "Table of Contents":
                for child in _blocks_in(element):
                    self.read(child)

    def texts_of(self, kind: str) -> list[str]:
        """The texts of all headers, or all footers: what repeats on every page, each once."""
        texts = []
        for part in self._parts[kind]:
            try:
                root = self._package.xml(part)
            except UserError:
                continue  # the body matters
            text = "\n".join(line for entry in root.iter(f"{W}p") if (line := self._text(entry).strip()))
            if text and text not in texts:
                texts.append(text)
        return texts

    # ---- paragraphs

    def _paragraph(self, element: etree._Element) -> None:
        style_id = value(element.find(f"{W}pPr/{W}pStyle")) or ""
        style = self._styles.get(style_id) or self._styles[""]
        found = self._runs(element, style)
        text = "".join(found.texts).strip()
        label, depth = self._label(element, style_id, style) if text else (None, 0)
        if text and not style.name.startswith(("toc ", "table of figures", "toc heading")):
            self._put_text(element, style, found, text, label, depth)
        for box in found.boxes:
            for child in _blocks_in(box):
                self.read(child)
        for shown in found.pictures:
            self.items.append(_Item("caption", shown))
        for note in found.notes:
            if said := self._note(*note):
                self.items.append(_Item("paragraph", f"{_mark(*note)}: {said}"))

    def _put_text(
        self, element: etree._Element, style: Style, found: _Paragraph, text: str, label: str | None, depth: int
    ) -> None:
        level = self._level(element, style)
        if style.name == "title" and not self.title:
            self.title = text
        if level and len(text) <= _LONGEST_HEADING:
            self.items.append(_Item("heading", f"{label} {text}" if label and label != "-" else text, level))
        elif label is not None:
            line = "  " * depth + f"{label} {text}".lstrip().replace("\n", "\n" + "  " * (depth + 1))
            last = self.items[-1] if self.items else None
            if last is not None and last.kind == "list" and len(last.text) < 4000:
                self.items[-1] = replace(last, text=f"{last.text}\n{line}")
            else:
                self.items.append(_Item("list", line))
        elif style.name in ("caption", "figure caption", "table caption", "image caption", "题注"):
            self.items.append(_Item("caption", text))
        elif "code" in style.name.split() or style.name in (
            "html preformatted",
            "source code",
            "plain text",
            "macro text",
            "macro",
        ):
            last = self.items[-1] if self.items else None
            if last is not None and last.kind == "code":
                self.items[-1] = replace(last, text=f"{last.text}\n{''.join(found.texts)}")
            else:
                self.items.append(_Item("code", "".join(found.texts)))
        elif found.formulas and text.startswith("$") and text.endswith("$") and text.count("$") == 2:
            self.items.append(_Item("formula", text.strip("$")))
        else:
            heads = found.bold and len(text) <= _BOLD_HEADING and text[-1] not in _ENDS and "\n" not in text
            self.items.append(_Item("paragraph", text, bold=max(found.size, 1) if heads else 0))

    def _level(self, element: etree._Element, style: Style) -> int:
        """Of a heading, from 1; 0 for what is none."""
        direct = value(element.find(f"{W}pPr/{W}outlineLvl"))
        if direct is not None and direct.isdecimal():
            return whole(direct, 9, 9) + 1 if whole(direct, 9, 9) < 9 else 0
        if style.name == "title":
            return 1
        if style.name.startswith("heading ") and style.name[8:].isdecimal():
            return whole(style.name[8:], 9, 9)
        return style.outline + 1 if style.outline is not None and style.outline < 9 else 0

    def _label(self, element: etree._Element, style_id: str, style: Style) -> tuple[str | None, int]:
        """The automatic number of a paragraph, "-" for a bullet, and how deep in its list it is."""
        number = value(element.find(f"{W}pPr/{W}numPr/{W}numId"))
        level = value(element.find(f"{W}pPr/{W}numPr/{W}ilvl"))
        if number is None:
            number = style.number
        if number is None or number == "0":  # 0 takes away what the style gives
            return None, 0
        depth = whole(level, 0, 8) if level is not None else self._numbering.level_of_style(style_id)
        depth = depth if depth is not None else style.level or 0
        label = self._numbering.next(number, depth)
        return (label or None), depth

    # ---- what is in a paragraph

    def _text(self, element: etree._Element) -> str:
        """A paragraph's text alone."""
        return "".join(self._runs(element, self._styles[""]).texts)

    def _runs(self, element: etree._Element, style: Style) -> _Paragraph:
        found = _Paragraph(size=style.size)
        self._inside(element, found, style)
        if not any(text.strip() for text in found.texts):
            found.bold = False
        return found

    def _inside(self, element: etree._Element, found: _Paragraph, style: Style) -> None:
        for part in element:
            tag = part.tag
            if tag == f"{W}r":
                self._run(part, found, style)
            elif tag in _SKIPPED:
                continue
            elif tag in (f"{M}oMath", f"{M}oMathPara"):
                if self._shown() and (formula := latex(part)):
                    found.texts.append(f"${formula}$")
                    found.formulas += 1
                    found.bold = False
            elif isinstance(tag, str):
                self._inside(part, found, style)  # links, insertions, content controls, simple fields ...

    def _run(self, run: etree._Element, found: _Paragraph, style: Style) -> None:
        properties = run.find(f"{W}rPr")
        bold, size = style.bold, 0
        if properties is not None:
            if switched(properties.find(f"{W}vanish"), False):
                return
            bold = switched(properties.find(f"{W}b"), bold)
            said = value(properties.find(f"{W}sz"))
            size = whole(said, 0)
        before = len(found.texts)
        for part in run:
            tag = part.tag
            if tag == f"{W}t":
                if part.text and self._shown():
                    found.texts.append(part.text)
            elif tag == f"{W}tab":
                found.texts.append("\t")
            elif tag in (f"{W}br", f"{W}cr"):
                found.texts.append("\n")
            elif tag == f"{W}noBreakHyphen":
                found.texts.append("-")
            elif tag == f"{W}fldChar":
                self._field(part.get(f"{W}fldCharType"))
            elif tag == f"{W}instrText":
                if self._fields and self._fields[-1]:
                    self._fields[-1] += part.text or ""
            elif tag in (f"{W}footnoteReference", f"{W}endnoteReference"):
                note = ("footnotes" if tag == f"{W}footnoteReference" else "endnotes", part.get(f"{W}id") or "")
                found.notes.append(note)
                found.texts.append(_mark(*note))
            elif tag == f"{W}sym":
                found.texts.append(_symbol(part.get(f"{W}char") or ""))
            elif tag == f"{W}ruby":
                base = part.find(f"{W}rubyBase")
                if base is not None:
                    self._inside(base, found, style)
            elif tag in (f"{W}drawing", f"{W}pict", f"{W}object", f"{_MC}AlternateContent"):
                self._drawn(part, found)
        if any(text.strip() for text in found.texts[before:]):
            found.bold &= bold
            found.size = max(found.size, size)

    def _shown(self) -> bool:
        """Whether text is to be seen: not a field's instruction, not the result of a table of contents."""
        return not self._fields or not any(self._fields)

    def _field(self, kind: str | None) -> None:
        """A field begins (its instruction follows), its result follows, or it ends."""
        if kind == "begin":
            self._fields.append("?")
        elif kind == "separate" and self._fields:
            contents = self._fields[-1].lstrip("? ").upper().startswith(("TOC ", "INDEX "))
            self._fields[-1] = "TOC" if contents else ""
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _drawn(self, element: etree._Element, found: _Paragraph) -> None:
        """Text boxes and what pictures show. Of alternatives the first is taken."""
        if element.tag == f"{_MC}AlternateContent":
            chosen = element.find(f"{_MC}Choice")
            element = chosen if chosen is not None else element
        inner = [box for box in element.iter(f"{W}txbxContent") if not _inside_fallback(box, element)]
        outer = [box for box in inner if not any(other is not box and _contains(other, box) for other in inner)]
        found.boxes += outer
        for picture in element.iter(f"{_DRAWING}docPr"):
            shown = " ".join((picture.get("descr") or "").split())
            if shown and not outer and shown.lower() not in ("picture", "image", "图片"):
                found.pictures.append(shown)

    def _note(self, kind: str, number: str) -> str:
        if self._notes is None:
            self._notes = {}
            for part_kind, tag in (("footnotes", "footnote"), ("endnotes", "endnote")):
                for part in self._parts[part_kind]:
                    for entry in self._package.xml(part).iterfind(f"{W}{tag}"):
                        lines = (self._text(line).strip() for line in entry.iter(f"{W}p"))
                        self._notes[part_kind, entry.get(f"{W}id") or ""] = " ".join(line for line in lines if line)
        return self._notes.pop((kind, number), "")  # a note that is referred to twice is said once

    # ---- tables

    def _put_table(self, element: etree._Element) -> None:
        rows = list(_rows_of(element))
        if len(rows) == 1 and len(cells := list(_cells_of(rows[0]))) == 1:  # a frame around text, not a table
            for child in _blocks_in(cells[0]):
                self.read(child)
            return
        held: list[tuple[str, str]] = []
        table = self._table(element, held)
        if table is not None:
            self.items.append(_Item("table", "", table=table))
        for note in held:
            if said := self._note(*note):
                self.items.append(_Item("paragraph", f"{_mark(*note)}: {said}"))

    def _table(self, element: etree._Element, held: list[tuple[str, str]]) -> Table | None:
        """A table; None for one without rows.

        Args:
            held: takes the notes that its cells refer to.
        """
        if self._depth >= self._limits.depth:
            raise UserError(f"has tables in tables deeper than {self._limits.depth}")
        self._depth += 1
        rows: list[list[str]] = []
        merged: dict[tuple[int, int], list[int]] = {}  # row and column -> rows and columns
        open_below: dict[int, tuple[int, int]] = {}  # column -> the cell that goes on downwards there
        repeated = 0
        for number, row in enumerate(_rows_of(element)):
            if switched(row.find(f"{W}trPr/{W}tblHeader"), False) and repeated == number:
                repeated += 1
            texts: list[str] = [""] * _span(row.find(f"{W}trPr/{W}gridBefore"), 0)
            going_on: dict[int, tuple[int, int]] = {}
            for cell in _cells_of(row):
                column, columns = len(texts), _span(cell.find(f"{W}tcPr/{W}gridSpan"), 1)
                downwards = cell.find(f"{W}tcPr/{W}vMerge")
                above = open_below.get(column)
                if downwards is not None and value(downwards) != "restart" and above is not None:
                    merged[above][0] = number - above[0] + 1
                    going_on[column] = above
                    texts += [""] * columns
                    continue
                texts += [self._cell(cell, held), *[""] * (columns - 1)]
                merged[number, column] = [1, columns]
                if downwards is not None:
                    going_on[column] = (number, column)
            open_below = going_on
            rows.append(texts)
            self._cells += len(texts)
            if self._cells > self._limits.cells:
                raise UserError(f"has more than {self._limits.cells:,} cells; split it, or raise limits.cells")
        self._depth -= 1
        width = max(map(len, rows), default=0)
        if not width:
            return None
        spans = {where: (size[0], size[1]) for where, size in merged.items() if size[0] * size[1] > 1}
        header = repeated or _header_rows(element, spans, len(rows), width)
        return Table(
            tuple(tuple(row + [""] * (width - len(row))) for row in rows),
            header,
            tuple((*where, *size) for where, size in sorted(spans.items())),
        )

    def _cell(self, cell: etree._Element, held: list[tuple[str, str]]) -> str:
        """A cell's text: its paragraphs a line each, with their numbers; a table in it as lines of its rows."""
        lines: list[str] = []
        for block in _blocks_in(cell):
            if block.tag == f"{W}tbl":
                inner = self._table(block, held)
                lines += [" | ".join(row) for row in inner.rows] if inner is not None else []
                continue
            if block.tag != f"{W}p":
                lines.append(self._cell(block, held))
                continue
            style_id = value(block.find(f"{W}pPr/{W}pStyle")) or ""
            style = self._styles.get(style_id) or self._styles[""]
            found = self._runs(block, style)
            text = "".join(found.texts).strip()
            label, depth = self._label(block, style_id, style)
            if label is not None and (text or label != "-"):  # a number alone is a row's number
                text = "  " * depth + f"{label} {text}".strip()
            held += found.notes
            lines += [text, *found.pictures, *(self._cell(box, held) for box in found.boxes)]
        return "\n".join(line for line in lines if line.strip())


_SKIPPED = frozenset(
    (f"{W}pPr", f"{W}del", f"{W}moveFrom", f"{W}sdtPr", f"{W}proofErr", f"{W}bookmarkStart", f"{W}bookmarkEnd", f"{W}rt", f"{W}rPr",
     f"{W}commentRangeStart", f"{W}commentRangeEnd", f"{W}fldData")
)  # fmt: skip
_WRAPPERS = frozenset((f"{W}sdtContent", f"{W}customXml", f"{W}ins", f"{W}moveTo", f"{W}smartTag"))


def _blocks_in(element: etree._Element) -> Iterator[etree._Element]:
    """The paragraphs and tables of a cell, a text box or a content control, in order."""
    for child in element:
        if child.tag in (f"{W}p", f"{W}tbl", f"{W}sdt"):
            yield child
        elif child.tag in _WRAPPERS:
            yield from _blocks_in(child)


def _rows_of(table: etree._Element) -> Iterator[etree._Element]:
    """A table's rows, but for those that a tracked change deleted."""
    return (row for row in _unwrapped(table, f"{W}tr") if row.find(f"{W}trPr/{W}del") is None)


def _cells_of(row: etree._Element) -> Iterator[etree._Element]:
    return _unwrapped(row, f"{W}tc")


def _unwrapped(element: etree._Element, tag: str) -> Iterator[etree._Element]:
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag in _WRAPPERS or child.tag == f"{W}sdt":
            yield from _unwrapped(child, tag)


def _span(element: etree._Element | None, otherwise: int) -> int:
    return whole(value(element), otherwise, _WIDEST)


def _header_rows(element: etree._Element, spans: dict[tuple[int, int], tuple[int, int]], rows: int, width: int) -> int:
    """How many rows are a table's header, where the table does not say so itself."""
    look = element.find(f"{W}tblPr/{W}tblLook")
    if look is not None:
        first = look.get(f"{W}firstRow")
        bits = look.get(f"{W}val") or ""
        try:
            if first in ("0", "false") or (first is None and bits and not int(bits, 16) & 0x20):
                return 0
        except ValueError:
            pass
    deep = max((size[0] for where, size in spans.items() if where[0] == 0), default=1)
    grouped = any(where[0] == 0 and size[1] > 1 for where, size in spans.items())
    if grouped and deep == 1 and (0, 0) in spans and spans[0, 0][1] == width:
        deep = 2  # a title across the table, and below it the columns' names
    return min(deep if grouped else 1, 5, rows)


def _mark(kind: str, number: str) -> str:
    return f"[^{number}]" if kind == "footnotes" else f"[^e{number}]"


def _symbol(code: str) -> str:
    """A sign of a symbol font: ticked boxes are known, others stay as they are coded."""
    try:
        sign = chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
    return _BOXES.get(sign, "•" if "\ue000" <= sign <= "\uf8ff" else sign)


def _inside_fallback(box: etree._Element, within: etree._Element) -> bool:
    above = box.getparent()
    while above is not None and above is not within:
        if above.tag == f"{_MC}Fallback":
            return True
        above = above.getparent()
    return False


def _contains(outer: etree._Element, inner: etree._Element) -> bool:
    return any(above is outer for above in inner.iterancestors())


def _with_headings(items: Iterable[_Item]) -> list[_Item]:
    """Bold lines made headings, in a document that has no heading but its title: the largest print is the first level."""
    items = list(items)
    if sum(item.kind == "heading" for item in items) > 1:
        return items
    bold = [number for number, item in enumerate(items) if item.bold and _leads(items, number)]
    if len(bold) * 2 > len(items):
        return items  # all of it is bold
    sizes = sorted({items[number].bold for number in bold}, reverse=True)[:3]
    for number in bold:
        level = sizes.index(items[number].bold) + 1 if items[number].bold in sizes else len(sizes)
        items[number] = replace(items[number], kind="heading", level=level + 1)
    return items


def _leads(items: list[_Item], number: int) -> bool:
    """Whether something that is no bold line comes after it, sooner or later in a row of bold lines."""
    after = next((item for item in items[number + 1 : number + 4] if not item.bold), None)
    return after is not None
