"""One page of a PDF as pdfium sees it: words with boxes and styles, ruling lines, pictures.

Every call into pdfium costs about a microsecond and a page has thousands of characters, so only the ends of words are asked for:
the text comes in one call, and each word costs two boxes and a look at its font. Boxes are in points from the upper left corner of
the page as it is shown, whatever its rotation and crop.
"""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pypdfium2.raw as pdfium

from tinyseek.knowledge.documents.blocks import Box

_WORD = re.compile("[^\\s\0\u200b\ufffe]+\ufffe?|\ufffe")  # U+FFFE is how pdfium writes the hyphen of a broken word
_BOLD = re.compile(r"bold|black|heavy|semibold|demi|[-,]b\b|CMBX|SFBX|NimbusRomNo9L-Medi|-Medi\b", re.I)
_ITALIC = re.compile(r"ital(?:ic)?\b|italic|oblique|slanted|[-,]it?\b|CMTI|CMSL|SFTI", re.I)
_MONO = re.compile(r"mono|courier|consol|typewriter|CMTT|SFTT|menlo|code|lettergothic|inconsolata|fixed", re.I)
_MATH = re.compile(r"CMMI|CMSY|CMEX|MSAM|MSBM|math|symbol|CMBSY|EUFM|rsfs|txsy|pxsy|txmi|pxmi|Mathematical", re.I)
_LIGATURES = {
    "ﬀ": "ff",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "ﬃ": "ffi",
    "ﬄ": "ffl",
    "ﬅ": "st",
    "ﬆ": "st",
    "\u00ad": "",
    "\ufffe": "-",
}
_LIGATURE = re.compile("[" + "".join(_LIGATURES) + "]")

_HALF, _MATHS = re.compile("[\ud800-\udfff]"), re.compile("[\U0001d400-\U0001d7ff]+")


def _direct(function: Any, result: Any, *arguments: Any) -> Callable[..., int]:
    """A function of pdfium's with addresses as plain numbers: two to five times as fast as with pointers as objects."""
    called: Callable[..., int] = ctypes.PYFUNCTYPE(result, *arguments)(
        ctypes.cast(function, ctypes.c_void_p).value or 0
    )
    return called


_box_of = _direct(pdfium.FPDFText_GetLooseCharBox, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_object_of = _direct(pdfium.FPDFText_GetTextObject, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)

_MOST_OBJECTS = 20_000  # of a page that are looked at; a map has millions
_MOST_SEGMENTS = 4_000  # of paths that may be grids
_THIN = 3.0  # points: what is thinner is a line, not an area
_DEEPEST = 4  # forms in forms


@dataclass(frozen=True, slots=True)
class Style:
    """How a word is set."""

    font: str = ""
    size: float = 0.0  # points, as shown
    bold: bool = False
    italic: bool = False
    mono: bool = False
    math: bool = False


@dataclass(slots=True)
class Word:
    """What stands between two blanks."""

    text: str
    x0: float
    top: float
    x1: float
    bottom: float
    style: Style
    angle: int = 0  # degrees clockwise that it is turned by: 0, 90, 180, 270


@dataclass(slots=True)
class Page:
    """What stands on a page, in the order in which the file has it."""

    number: int  # from 1
    width: float
    height: float
    words: list[Word] = field(default_factory=list)
    across: list[Box] = field(default_factory=list)  # lines from left to right, thin boxes
    down: list[Box] = field(default_factory=list)  # lines from top to bottom
    areas: list[Box] = field(default_factory=list)  # filled areas: shaded rows and cells
    pictures: list[Box] = field(default_factory=list)
    drawings: list[Box] = field(default_factory=list)  # forms: figures that were drawn elsewhere
    unmapped: int = 0  # characters whose font does not say what they are


class Fonts:
    """What is known of the fonts of one file, so that each is asked about once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, bool, bool, bool, bool]] = {}
        self._styles: dict[tuple[int, float], Style] = {}

    def style(self, font: ctypes.c_void_p | None, size: float) -> Style:
        """The style of a font at a size."""
        address = _address(font) if font else 0
        key = (address, round(size, 1))
        style = self._styles.get(key)
        if style is None:
            known = self._known.get(address)
            if known is None:
                known = self._known[address] = _look(font) if font else ("", False, False, False, False)
            style = self._styles[key] = Style(known[0], key[1], *known[1:])
        return style


def _look(font: ctypes.c_void_p) -> tuple[str, bool, bool, bool, bool]:
    buffer = ctypes.create_string_buffer(256)
    length = pdfium.FPDFFont_GetBaseFontName(font, buffer, 256)
    name = buffer.value.decode("utf-8", "replace") if 0 < length <= 256 else ""
    name = name.split("+", 1)[-1]
    flags = max(0, pdfium.FPDFFont_GetFlags(font))
    bold = bool(_BOLD.search(name)) or pdfium.FPDFFont_GetWeight(font) >= 600 or bool(flags & 1 << 18)
    italic = bool(_ITALIC.search(name)) or bool(flags & 1 << 6)
    math_font = bool(_MATH.search(name))
    return name, bold, italic, bool(_MONO.search(name)) or (bool(flags & 1) and not math_font), math_font


class Frame:
    """From pdfium's coordinates (up from the lower left corner, not turned) to those of the page as it is shown."""

    def __init__(self, page: ctypes.c_void_p) -> None:
        box = pdfium.FS_RECTF()
        self.turned = pdfium.FPDFPage_GetRotation(page) % 4
        self.width, self.height = pdfium.FPDF_GetPageWidthF(page), pdfium.FPDF_GetPageHeightF(page)
        if pdfium.FPDF_GetPageBoundingBox(page, box):
            self._left, self._bottom, self._right, self._top = box.left, box.bottom, box.right, box.top
        else:
            self._left, self._bottom, self._right, self._top = 0.0, 0.0, self.width, self.height

    def shown(self, left: float, bottom: float, right: float, top: float) -> Box:
        """A box as shown."""
        if self.turned == 0:
            return left - self._left, self._top - top, right - self._left, self._top - bottom
        if self.turned == 1:
            return bottom - self._bottom, left - self._left, top - self._bottom, right - self._left
        if self.turned == 2:
            return self._right - right, bottom - self._bottom, self._right - left, top - self._bottom
        return self._top - top, self._right - right, self._top - bottom, self._right - left


def read_page(document: ctypes.c_void_p, index: int, fonts: Fonts, shapes: bool = True) -> Page | None:
    """What stands on a page.

    Args:
        index: from 0.
        shapes: whether lines and areas are wanted too.
    Returns:
        None if the page is damaged.
    """
    handle = pdfium.FPDF_LoadPage(document, index)
    if not handle:
        return None
    try:
        frame = Frame(handle)
        page = Page(index + 1, frame.width, frame.height)
        text = pdfium.FPDFText_LoadPage(handle)
        if text:
            try:
                _words(text, frame, fonts, page)
            finally:
                pdfium.FPDFText_ClosePage(text)
        if shapes:
            _Shapes(frame, page).read(handle)
        return page
    finally:
        pdfium.FPDF_ClosePage(handle)


# ---- words -----------------------------------------------------------------------------------------------------------------------


def _text(handle: ctypes.c_void_p, count: int) -> str:
    """The page's characters, one for each of pdfium's."""
    buffer = (ctypes.c_ushort * (count + 1))()
    written = pdfium.FPDFText_GetText(handle, 0, count, buffer) - 1
    text = "".join(
        map(chr, buffer[: max(0, written)])
    )  # halves of wide characters stay halves, so that the numbering holds
    if len(text) == count:
        return text
    # Characters that are none put the numbering out: one call each then.
    codes = (pdfium.FPDFText_GetUnicode(handle, index) for index in range(count))
    return "".join("\ufffe" if code == 2 else chr(code) if code < 0x110000 else "\ufffd" for code in codes)


def _words(handle: ctypes.c_void_p, frame: Frame, fonts: Fonts, page: Page) -> None:
    count = pdfium.FPDFText_CountChars(handle)
    if count <= 0:
        return
    text = _text(handle, count)
    first, last = pdfium.FS_RECTF(), pdfium.FS_RECTF()
    to_first, to_last, address = ctypes.addressof(first), ctypes.addressof(last), _address(handle)
    before: int | None = -1
    style, angle = Style(), 0
    words = page.words
    upright = frame.turned == 0
    left, top, _, _ = frame.shown(0, 0, 0, 0)
    for match in _WORD.finditer(text):
        start, end = match.span()
        _box_of(address, start, to_first)
        said = match.group()
        drawn = _object_of(address, start)
        if drawn != before:
            before = drawn
            style, angle = _style(handle, start, drawn, frame, fonts)
        x0, low, x1, high = first.left, first.bottom, first.right, first.top
        if end - start > 1:
            _box_of(address, end - 1, to_last)
            if angle == 90 * frame.turned and last.left < x0 and last.right < x1:
                # The word goes on at the beginning of another line: pdfium saw no blank between them.
                words.extend(_torn(address, text, start, end, frame, style, angle))
                continue
            x0, x1 = (x0 if x0 < last.left else last.left), (x1 if x1 > last.right else last.right)
            low, high = (low if low < last.bottom else last.bottom), (high if high > last.top else last.top)
        if not said.isascii():
            said = _read(said)
            page.unmapped += sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" for c in said)
            if not said:
                continue
        if upright:
            words.append(Word(said, x0 + left, top - high, x1 + left, top - low, style, angle))
        else:
            words.append(Word(said, *frame.shown(x0, low, x1, high), style, angle))
    page.words = [word for word in words if _on(page, word)]


def _on(page: Page, word: Word) -> bool:
    """Whether a word's middle is on the page, and not cut away."""
    return 0 <= word.x0 + word.x1 <= 2 * page.width and 0 <= word.top + word.bottom <= 2 * page.height


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _torn(address: int, text: str, start: int, end: int, frame: Frame, style: Style, angle: int) -> Iterator[Word]:
    """A run of characters as several words, one for each line that it stands on."""
    box = pdfium.FS_RECTF()
    said = ""
    whole: list[float] = []
    for index in range(start, end):
        _box_of(address, index, ctypes.addressof(box))
        if whole and box.left < whole[2] - style.size - 1:
            yield Word(_read(said), *frame.shown(*whole), style, angle)
            said, whole = "", []
        said += text[index]
        here = [box.left, box.bottom, box.right, box.top]
        whole = (
            [min(a, b) if i < 2 else max(a, b) for i, (a, b) in enumerate(zip(whole, here, strict=True))]
            if whole
            else here
        )
    if said:
        yield Word(_read(said), *frame.shown(*whole), style, angle)


def _read(said: str) -> str:
    """Characters as they are meant: ligatures taken apart, letters of formulas plain, no halves."""
    said = _LIGATURE.sub(lambda found: _LIGATURES[found.group()], said)
    if _HALF.search(said):
        said = said.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        said = _MATHS.sub(lambda found: unicodedata.normalize("NFKC", found.group()), said)
    return said


def _style(handle: ctypes.c_void_p, index: int, drawn: int | None, frame: Frame, fonts: Fonts) -> tuple[Style, int]:
    matrix = pdfium.FS_MATRIX()
    size = pdfium.FPDFText_GetFontSize(handle, index)
    turn = 0.0
    if pdfium.FPDFText_GetMatrix(handle, index, matrix):
        size *= math.hypot(matrix.c, matrix.d)
        turn = -math.degrees(math.atan2(matrix.b, matrix.a))
    angle = (round(turn / 90) * 90 + 90 * frame.turned) % 360
    font = pdfium.FPDFTextObj_GetFont(ctypes.cast(drawn, pdfium.FPDF_PAGEOBJECT)) if drawn else None
    return fonts.style(font, abs(size)), angle


# ---- lines, areas, pictures ------------------------------------------------------------------------------------------------------


class _Shapes:
    """Walks a page's objects."""

    def __init__(self, frame: Frame, page: Page) -> None:
        self._frame, self._page = frame, page
        self._objects, self._segments = 0, 0

    def read(self, handle: ctypes.c_void_p) -> None:
        """Find lines, areas and pictures."""
        for index in range(min(pdfium.FPDFPage_CountObjects(handle), _MOST_OBJECTS)):
            self._one(pdfium.FPDFPage_GetObject(handle, index), (1.0, 0.0, 0.0, 1.0, 0.0, 0.0), 0)

    def _one(self, drawn: ctypes.c_void_p, form: tuple[float, ...], depth: int) -> None:
        self._objects += 1
        kind = pdfium.FPDFPageObj_GetType(drawn)
        if kind == pdfium.FPDF_PAGEOBJ_TEXT or self._objects > _MOST_OBJECTS:
            return
        box = self._bounds(drawn, form)
        if box is None:
            return
        if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
            self._page.pictures.append(box)
        elif kind == pdfium.FPDF_PAGEOBJ_PATH:
            self._path(drawn, form, box)
        elif kind == pdfium.FPDF_PAGEOBJ_FORM and depth < _DEEPEST:
            width, height = box[2] - box[0], box[3] - box[1]
            if width * height < 0.6 * self._page.width * self._page.height:
                self._page.drawings.append(box)  # a figure; its own lines are no table's
                return
            matrix = pdfium.FS_MATRIX()
            if not pdfium.FPDFPageObj_GetMatrix(drawn, matrix):
                return
            inner = _times((matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f), form)
            for index in range(max(0, min(pdfium.FPDFFormObj_CountObjects(drawn), _MOST_OBJECTS))):
                self._one(pdfium.FPDFFormObj_GetObject(drawn, index), inner, depth + 1)

    def _bounds(self, drawn: ctypes.c_void_p, form: tuple[float, ...]) -> Box | None:
        edges = [ctypes.c_float() for _ in range(4)]
        if not pdfium.FPDFPageObj_GetBounds(drawn, *edges):
            return None
        left, bottom, right, top = (edge.value for edge in edges)
        return self._shown(left, bottom, right, top, form)

    def _shown(self, left: float, bottom: float, right: float, top: float, form: tuple[float, ...]) -> Box | None:
        a, b, c, d, e, f = form
        corners = [(a * x + c * y + e, b * x + d * y + f) for x, y in ((left, bottom), (right, top))]
        xs, ys = sorted(x for x, _ in corners), sorted(y for _, y in corners)
        if not all(map(math.isfinite, (*xs, *ys))):
            return None
        box = self._frame.shown(xs[0], ys[0], xs[1], ys[1])
        page = self._page
        if box[2] < 0 or box[3] < 0 or box[0] > page.width or box[1] > page.height:
            return None
        return max(0.0, box[0]), max(0.0, box[1]), min(page.width, box[2]), min(page.height, box[3])

    def _path(self, drawn: ctypes.c_void_p, form: tuple[float, ...], box: Box) -> None:
        width, height = box[2] - box[0], box[3] - box[1]
        page = self._page
        fill, stroke = ctypes.c_int(), ctypes.c_int()
        if not pdfium.FPDFPath_GetDrawMode(drawn, fill, stroke) or not (fill.value or stroke.value):
            return
        if height <= _THIN < width:
            page.across.append(box)
        elif width <= _THIN < height:
            page.down.append(box)
        elif width > _THIN:
            count = pdfium.FPDFPath_CountSegments(drawn)
            if fill.value and count <= 6 and not stroke.value:
                page.areas.append(box)
            elif stroke.value and count >= 2 and self._segments + count <= _MOST_SEGMENTS:
                self._segments += count
                self._sides(drawn, form, count)

    def _sides(self, drawn: ctypes.c_void_p, form: tuple[float, ...], count: int) -> None:
        """The straight sides of a path: a box's four, a grid's many."""
        matrix = pdfium.FS_MATRIX()
        if not pdfium.FPDFPageObj_GetMatrix(drawn, matrix):
            return
        whole = _times((matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f), form)
        x, y = ctypes.c_float(), ctypes.c_float()
        at = begun = (0.0, 0.0)
        for index in range(count):
            segment = pdfium.FPDFPath_GetPathSegment(drawn, index)
            if not segment or not pdfium.FPDFPathSegment_GetPoint(segment, x, y):
                return
            to = (x.value, y.value)
            kind = pdfium.FPDFPathSegment_GetType(segment)
            if kind == pdfium.FPDF_SEGMENT_MOVETO:
                begun = to
            elif kind == pdfium.FPDF_SEGMENT_LINETO:
                self._side(at, to, whole)
            if pdfium.FPDFPathSegment_GetClose(segment) and to != begun:
                self._side(to, begun, whole)
            at = to

    def _side(self, start: tuple[float, float], end: tuple[float, float], form: tuple[float, ...]) -> None:
        left, right = sorted((start[0], end[0]))
        low, high = sorted((start[1], end[1]))
        box = self._shown(left, low, right, high, form)
        if box is None:
            return
        width, height = box[2] - box[0], box[3] - box[1]
        if height < 1 < width:
            self._page.across.append(box)
        elif width < 1 < height:
            self._page.down.append(box)


def _times(inner: tuple[float, ...], outer: tuple[float, ...]) -> tuple[float, ...]:
    """Two transformations one after the other."""
    a, b, c, d, e, f = inner
    p, q, r, s, t, u = outer
    return (
        a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u,
    )  # fmt: skip
