"""Presentations: each slide's title, text, lists, tables, the numbers of its charts and its speaker's notes, with page and box.

Shapes are read from top to bottom, as they stand on the slide; a placeholder without a place of its own has its layout's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Box, Document, Place, Table
from tinyseek.knowledge.documents.docx_formulas import M, latex
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of
from tinyseek.knowledge.documents.zipped import Package, Relation, day, whole

P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_D = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_POINT = 12_700  # of PowerPoint's units
_BESIDE = frozenset(("dt", "ftr", "sldNum", "hdr"))  # date, footer, number: they repeat
_TITLES = frozenset(("title", "ctrTitle"))
_WIDEST = 1000


@dataclass(frozen=True)
class _Scale:
    """Where a group puts what is in it."""

    x: float = 0
    y: float = 0
    across: float = 1
    down: float = 1

    def box(self, frame: etree._Element | None) -> Box | None:
        """Of an xfrm, in points."""
        if frame is None:
            return None
        corner, size = frame.find(f"{A}off"), frame.find(f"{A}ext")
        if corner is None or size is None:
            return None
        left, top = self.x + _number(corner, "x") * self.across, self.y + _number(corner, "y") * self.down
        right, bottom = left + _number(size, "cx") * self.across, top + _number(size, "cy") * self.down
        return tuple(round(edge / _POINT, 1) for edge in (left, top, right, bottom))  # type: ignore[return-value]

    def inner(self, frame: etree._Element | None) -> _Scale:
        """Inside a group."""
        parts = [frame.find(f"{A}{name}") for name in ("off", "ext", "chOff", "chExt")] if frame is not None else []
        if len(parts) < 4 or any(part is None for part in parts):
            return self
        corner, size, inner_corner, inner_size = (part for part in parts if part is not None)
        across = _number(size, "cx") / (_number(inner_size, "cx") or 1)
        down = _number(size, "cy") / (_number(inner_size, "cy") or 1)
        x = self.x + (_number(corner, "x") - _number(inner_corner, "x") * across) * self.across
        y = self.y + (_number(corner, "y") - _number(inner_corner, "y") * down) * self.down
        return _Scale(x, y, self.across * across, self.down * down)


@dataclass(frozen=True)
class _Shape:
    element: etree._Element
    holder: str | None  # a placeholder's type; None for what is none
    box: Box | None


def parse(file: Path, limits: Limits) -> Document:
    """A presentation (.pptx, .pptm).

    Raises:
        UserError: damaged, hostile, or of too many slides.
    """
    with Package(file, limits, "PowerPoint presentation") as package:
        main = package.main_part("ppt/presentation.xml")
        root, links = package.xml(main), package.relations(main)
        entries = root.findall(f"{P}sldIdLst/{P}sldId")
        if len(entries) > limits.pages:
            raise UserError(f"has {len(entries):,} slides, more than {limits.pages:,}; see limits.pages")
        size = root.find(f"{P}sldSz")
        width, height = (_number(size, "cx") / _POINT, _number(size, "cy") / _POINT) if size is not None else (720, 540)
        outline = Outline(limits)
        notes = ["has macros, which were not run"] if package.has_macros() else []
        layouts: dict[str, dict[tuple[str, str], Box]] = {}
        for number, entry in enumerate(entries, 1):
            link = links.get(_id_of(entry))
            if link is None or link.target not in package:
                notes.append(f"slide {number} is missing in the file")
                continue
            _Slide(package, link.target, number, outline, limits, layouts).read(height)
        properties = package.properties()
    title = next((block.text for block in outline.blocks if block.kind == "heading"), "")
    named = properties.get("title", "")
    return Document(
        tuple(outline.blocks),
        "pptx",
        named if named and named != "PowerPoint Presentation" else title,
        properties.get("creator", ""),
        day(properties.get("modified", "")) or day(properties.get("created", "")),
        len(entries),
        language_of(" ".join(block.text[:500] for block in outline.blocks[:50])),
        tuple(notes),
        {"size": [round(width, 1), round(height, 1)]},
    )


class _Slide:
    """One slide to blocks."""

    def __init__(
        self,
        package: Package,
        part: str,
        number: int,
        outline: Outline,
        limits: Limits,
        layouts: dict[str, dict[tuple[str, str], Box]],
    ) -> None:
        self._package, self._number, self._outline, self._limits = package, number, outline, limits
        self._root = package.xml(part)
        self._links = package.relations(part)
        layout = next((link.target for link in self._links.values() if link.kind == "slideLayout"), "")
        if layout not in layouts:
            layouts[layout] = _places(package, layout)
        self._layout = layouts[layout]

    def read(self, height: float) -> None:
        tree = self._root.find(f"{P}cSld/{P}spTree")
        shapes = list(self._shapes(tree, _Scale(), 0)) if tree is not None else []
        band = max(height / 25, 1)  # what stands so near to the same height is one row, read from the left
        shapes.sort(key=lambda shape: (int(shape.box[1] / band), shape.box[0]) if shape.box else (0, 0))
        shapes.sort(key=lambda shape: shape.holder not in _TITLES)
        self._outline.end(1)
        for shape in shapes:
            place = Place(page=self._number, boxes=(shape.box,) if shape.box else ())
            if shape.holder in _TITLES:
                self._outline.heading(" ".join(text for text, _, _ in _paragraphs(shape.element)), 1, place)
            elif shape.element.tag == f"{P}graphicFrame":
                self._graphic(shape.element, place)
            elif shape.element.tag == f"{P}pic":
                properties = shape.element.find(f"{P}nvPicPr/{P}cNvPr")
                shown = " ".join((properties.get("descr") or "").split()) if properties is not None else ""
                if len(shown) > 3 and not shown.lower().endswith((".png", ".jpg", ".jpeg", ".gif", ".emf")):
                    self._outline.add("caption", shown, place)
            else:
                self._text(shape, place)
        self._notes()

    def _shapes(self, tree: etree._Element, scale: _Scale, depth: int) -> Iterator[_Shape]:
        """The shapes that say something, those in groups too."""
        for element in tree:
            name = str(element.tag).rpartition("}")[2]
            if name == "AlternateContent":
                chosen = element[0] if len(element) else element
                yield from self._shapes(chosen, scale, depth)
            elif name == "grpSp" and depth < self._limits.depth:
                yield from self._shapes(element, scale.inner(element.find(f"{P}grpSpPr/{A}xfrm")), depth + 1)
            elif name in ("sp", "pic", "graphicFrame"):
                holder = element.find(f"./*/{P}nvPr/{P}ph")
                kind = holder.get("type", "body") if holder is not None else None
                if kind in _BESIDE or _is_hidden(element):
                    continue
                frame = element.find(f"{P}xfrm") if name == "graphicFrame" else element.find(f"{P}spPr/{A}xfrm")
                box = scale.box(frame)
                if box is None and holder is not None:
                    box = self._layout.get(("idx", holder.get("idx", ""))) or self._layout.get(("type", kind or ""))
                yield _Shape(element, kind, box)

    def _text(self, shape: _Shape, place: Place) -> None:
        """A shape's text: bullets in a row as a list, the rest as paragraphs."""
        bulleted = shape.holder in ("body", "obj", "subTitle")
        paragraphs = list(_paragraphs(shape.element))
        held: list[str] = []
        counts: dict[int, int] = {}
        for text, level, mark in paragraphs:
            is_item = mark in ("•", "1") or (
                bulleted and shape.holder != "subTitle" and mark == "" and len(paragraphs) > 1
            )
            if not is_item and held:
                self._outline.add("list", "\n".join(held), place)
                held = []
            if not is_item:
                self._outline.add("paragraph", text, place)
                continue
            counts = {deep: count for deep, count in counts.items() if deep <= level}
            counts[level] = counts.get(level, 0) + 1
            held.append("  " * level + (f"{counts[level]}. " if mark == "1" else "- ") + text.replace("\n", " "))
        if held:
            self._outline.add("list", "\n".join(held), place)

    def _graphic(self, element: etree._Element, place: Place) -> None:
        """A table, a chart or a diagram."""
        data = element.find(f"{A}graphic/{A}graphicData")
        if data is None:
            return
        table = data.find(f"{A}tbl")
        if table is not None:
            self._outline.table(_table(table, self._outline.cells_left), place)
        for asked in data:
            link = self._links.get(_id_of(asked, "dm" if asked.tag == f"{_D}relIds" else "id"))
            if link is None or link.target not in self._package:
                continue
            if asked.tag == f"{_C}chart":
                self._chart(link, place)
            elif asked.tag == f"{_D}relIds":
                points = self._package.xml(link.target).iter(f"{_D}pt")
                texts = ("".join(run.text or "" for run in point.iter(f"{A}t")).strip() for point in points)
                self._outline.add("list", "\n".join(f"- {text}" for text in texts if text), place)

    def _chart(self, link: Relation, place: Place) -> None:
        """A chart as the table of its numbers, as they were when it was saved."""
        root = self._package.xml(link.target)
        title = root.find(f"{_C}chart/{_C}title")
        if title is not None:
            self._outline.add("caption", "".join(run.text or "" for run in title.iter(f"{A}t")), place)
        columns: list[tuple[str, dict[int, str]]] = []
        names: dict[int, str] = {}
        for series in root.iter(f"{_C}ser"):
            name = " ".join(_points(series.find(f"{_C}tx")).values())
            across, values = series.find(f"{_C}cat"), series.find(f"{_C}val")
            if values is None:
                across, values = series.find(f"{_C}xVal"), series.find(f"{_C}yVal")
            names |= _points(across)
            columns.append((name, _points(values)))
        rows = sorted({at for _, column in columns for at in column} | set(names))
        if columns and len(rows) * (len(columns) + 1) <= self._outline.cells_left:
            head = ("", *(name for name, _ in columns))
            body = [(names.get(at, str(at + 1)), *(column.get(at, "") for _, column in columns)) for at in rows]
            self._outline.table(Table((head, *body)), place)

    def _notes(self) -> None:
        """What the speaker wants to say."""
        for link in self._links.values():
            if link.kind == "notesSlide" and link.target in self._package:
                for shape in self._package.xml(link.target).iter(f"{P}sp"):
                    holder = shape.find(f"./*/{P}nvPr/{P}ph")
                    if holder is not None and holder.get("type") == "body":
                        said = "\n".join(text for text, _, _ in _paragraphs(shape))
                        self._outline.add("paragraph", said, Place(page=self._number))


def _places(package: Package, layout: str) -> dict[tuple[str, str], Box]:
    """Where a layout, or else its master, puts placeholders: by their index and by their type."""
    found: dict[tuple[str, str], Box] = {}
    if layout not in package:
        return found
    masters = [link.target for link in package.relations(layout).values() if link.kind == "slideMaster"]
    for part in [*masters, layout]:
        if part not in package:
            continue
        for shape in package.xml(part).iter(f"{P}sp"):
            holder, box = shape.find(f"./*/{P}nvPr/{P}ph"), _Scale().box(shape.find(f"{P}spPr/{A}xfrm"))
            if holder is None:
                continue
            kind = holder.get("type", "body")
            box = box or found.get(("type", kind))
            if box is not None:
                found["type", kind] = box
                if part == layout and holder.get("idx"):
                    found["idx", holder.get("idx", "")] = box
    return found


def _paragraphs(element: etree._Element) -> Iterator[tuple[str, int, str]]:
    """A shape's paragraphs with something in them: text, level, and "•", "1" (a number), "none" or "" (as its place says)."""
    for paragraph in element.iter(f"{A}p"):
        text = _text_of(paragraph).strip()
        if not text:
            continue
        properties = paragraph.find(f"{A}pPr")
        mark, level = "", 0
        if properties is not None:
            level = whole(properties.get("lvl"), 0, 8)
            for tag, sign in ((f"{A}buNone", "none"), (f"{A}buAutoNum", "1"), (f"{A}buChar", "•"), (f"{A}buBlip", "•")):
                if properties.find(tag) is not None:
                    mark = sign
        yield text, level, mark


def _text_of(paragraph: etree._Element) -> str:
    texts: list[str] = []
    for part in paragraph:
        if part.tag in (f"{A}r", f"{A}fld"):
            texts.append(part.findtext(f"{A}t") or "")
        elif part.tag == f"{A}br":
            texts.append("\n")
        elif part.tag not in (f"{A}pPr", f"{A}endParaRPr"):
            formula = next(part.iter(f"{M}oMathPara", f"{M}oMath"), None)
            texts.append(f"${latex(formula)}$" if formula is not None else "")
    return "".join(texts).replace("\v", "\n")


def _table(element: etree._Element, most: int) -> Table:
    """A slide's table.

    Raises:
        UserError: it has more cells than may be.
    """
    rows: list[list[str]] = []
    merged: list[tuple[int, int, int, int]] = []
    cells = 0
    for number, row in enumerate(element.iterfind(f"{A}tr")):
        texts: list[str] = []
        for cell in row.iterfind(f"{A}tc"):
            if cell.get("hMerge") in ("1", "true") or cell.get("vMerge") in ("1", "true"):
                texts.append("")
                continue
            tall, wide = (whole(cell.get(name), 1, _WIDEST) for name in ("rowSpan", "gridSpan"))
            if tall * wide > 1:
                merged.append((number, len(texts), tall, wide))
            texts.append("\n".join(text for text, _, _ in _paragraphs(cell)))
        cells += len(texts)
        if cells > most:
            raise UserError("has more cells in its tables than may be; split it, or raise limits.cells")
        rows.append(texts)
    width = max(map(len, rows), default=0)
    properties = element.find(f"{A}tblPr")
    header = properties is not None and properties.get("firstRow") in ("1", "true")
    kept = tuple(
        (row, column, min(tall, len(rows) - row), min(wide, width - column)) for row, column, tall, wide in merged
    )
    return Table(tuple(tuple(row + [""] * (width - len(row))) for row in rows), int(header), kept)


def _points(element: etree._Element | None) -> dict[int, str]:
    """A chart's cached texts or numbers by their index."""
    if element is None:
        return {}
    found: dict[int, str] = {}
    for point in element.iter(f"{_C}pt"):
        at, said = whole(point.get("idx"), -1), point.findtext(f"{_C}v")
        if at >= 0 and said is not None:
            # Categories of several levels have several texts at one index; the first is the innermost.
            found[at] = f"{said} {found[at]}" if at in found else said
    if not found and (text := element.findtext(f"{_C}v")):
        found[0] = text
    return found


def _is_hidden(element: etree._Element) -> bool:
    properties = element.find(f"./*/{P}cNvPr")
    return properties is not None and properties.get("hidden") in ("1", "true")


def _id_of(element: etree._Element, name: str = "id") -> str:
    """The id of the relation that an element names, whichever form of names the file has."""
    return next((str(value) for key, value in element.items() if str(key).endswith(f"}}{name}")), "")


def _number(element: etree._Element, name: str) -> int:
    try:
        return max(-(10**9), min(int(element.get(name) or 0), 10**9))
    except ValueError:
        return 0
