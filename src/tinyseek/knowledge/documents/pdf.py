"""PDF to blocks: every page is read (pdf_page), its tables are taken out (pdf_tables), its lines put in order (layout), and those
of all pages together are made into headings, paragraphs and the rest (paragraphs).
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import ocr, pdf_tables
from tinyseek.knowledge.documents.blocks import Block, Box, Document, Place
from tinyseek.knowledge.documents.layout import CJK, Line, Piece, joined, lines_of, pieces_of, rows_of, without_margins
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.paragraphs import Look, blocks_of
from tinyseek.knowledge.documents.pdf_page import Fonts, Page, Word, read_page
from tinyseek.knowledge.documents.pdf_tables_on import tables_on

_MOST_OUTLINE = 20_000  # entries of an outline that are looked at
_MOST_PIXELS = 40_000_000  # of a page's picture
_NO_TITLE = re.compile(
    r"\(?(anonymous|untitled|unspecified)\)?|microsoft \w+ - .*|.*\.(docx?|tex|dvi|indd|pdf|qxd|xlsx?|pptx?)", re.I
)
_DATE = re.compile(r"D?:?(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?")
_CJK, _LATIN = re.compile(f"[{CJK}]"), re.compile("[A-Za-z]")
_FEW = 20  # characters: a page with fewer, covered by a picture, is a scan


def parse(file: Path, limits: Limits) -> Document:
    """Read a PDF.

    Raises:
        UserError: encrypted, damaged, or with too many pages or characters.
    """
    with _opened(file) as document:
        return _Reading(document, limits).document()


def render_page(file: Path, page: int, scale: float) -> bytes:
    """A page as PNG.

    Args:
        page: from 1.
        scale: pixels a point.
    Raises:
        UserError: there is no such page.
    """
    with _opened(file) as document:
        return png(picture_of(_page(document, page), scale))


def page_size(file: Path, page: int) -> tuple[float, float]:
    """A page's width and height as it is shown, points.

    Raises:
        UserError: there is no such page.
    """
    with _opened(file) as document:
        width, height = _page(document, page).get_size()
        return float(width), float(height)


def _page(document: pypdfium2.PdfDocument, page: int) -> pypdfium2.PdfPage:
    if not 1 <= page <= len(document):
        raise UserError(f"has no page {page:,}; its pages are 1 to {len(document):,}")
    try:
        return document[page - 1]
    except pypdfium2.PdfiumError:
        raise UserError(f"page {page:,} is damaged and cannot be shown") from None


def picture_of(page: pypdfium2.PdfPage, scale: float) -> Any:
    """A page as a Pillow picture, with fewer pixels a point where it would have too many."""
    width, height = page.get_size()
    most = (_MOST_PIXELS / max(1.0, width * height)) ** 0.5
    return page.render(scale=min(scale, most), may_draw_forms=False).to_pil()


def png(picture: Any) -> bytes:
    """A Pillow picture as PNG."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def _opened(file: Path) -> Iterator[pypdfium2.PdfDocument]:
    try:
        document = pypdfium2.PdfDocument(file)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        code = getattr(error, "err_code", None)
        if code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
            raise UserError("is protected by a password; save a copy without one and add that") from None
        raise UserError(f"is damaged or cut short: {_why(code)}") from None
    try:
        if count <= 0:
            raise UserError("is damaged or cut short: it has no pages")
        yield document
    finally:
        document.close()


def _why(code: int | None) -> str:
    return "its table of contents cannot be found" if code == pdfium.FPDF_ERR_FORMAT else "pdfium cannot open it"


class _Reading:
    """One file being read."""

    def __init__(self, document: pypdfium2.PdfDocument, limits: Limits) -> None:
        self._document, self._limits = document, limits
        self._count = len(document)
        if self._count > limits.pages:
            raise UserError(f"has {self._count:,} pages, more than {limits.pages:,}; split it, or raise limits.pages")
        self._fonts = Fonts()
        self._turned: dict[int, Page] = {}  # pages whose text stands on its side
        self._sizes: list[list[float]] = []
        self._damaged: list[int] = []
        self._unread: list[int] = []  # scans
        self._late: list[int] = []  # scans for which there was no time
        self._garbled: list[int] = []
        self._scanned: list[int] = []
        self._is_empty = False
        self._end = time.monotonic() + 0.8 * limits.seconds

    def document(self) -> Document:
        """All of it."""
        pages: list[tuple[Page, list[Line]]] = []
        characters = 0
        for index in range(self._count):
            page = read_page(self._document.raw, index, self._fonts, self._limits.tables)
            if page is None:
                self._damaged.append(index + 1)
                self._sizes.append([0.0, 0.0])
                continue
            self._sizes.append([round(page.width, 1), round(page.height, 1)])
            lines = self._lines(page)
            characters += sum(len(line.text) for line in lines)
            if characters > self._limits.characters:
                raise UserError(
                    f"holds more than {self._limits.characters:,} characters; split it, or raise limits.characters"
                )
            pages.append((Page(page.number, page.width, page.height), lines))
        if len(self._damaged) == self._count:
            raise UserError("is damaged or cut short: none of its pages can be read")
        without_margins(pages)
        lines = [line for _, lines in pages for line in lines]
        look = Look(lines, self._outline())
        upright = [self._upright(block) for block in blocks_of(lines, look) if block.text.strip()]
        blocks = tuple(tables_on(upright, {page + 1: height for page, (_, height) in enumerate(self._sizes)}))
        title, author, date = self._about(blocks)
        self._is_empty = not blocks
        notes = tuple(self._notes())
        language = _language(blocks)
        return Document(blocks, "pdf", title, author, date, self._count, language, notes, {"page_sizes": self._sizes})

    def _lines(self, page: Page) -> list[Line]:
        """A page's lines in reading order, tables and figures among them."""
        page = self._readable(page)
        angle, words, aside = _dominant(page)
        if angle:
            self._turned[page.number] = Page(angle, page.width, page.height)
            page = _turned(page, angle)
            words = page.words
        else:
            page.words = words
        found: list[Piece] = []
        words, aside, figures = _figures(page, words, aside)
        pieces = pieces_of(words)
        if self._limits.tables:
            rest, tables = pdf_tables.tables_of(page, words, pieces)
            for table, box in tables:
                block = Block("table", table.markdown(), Place(page.number, (box,)), table=table)
                found.append(Piece(*box, whole=block))
            pieces = pieces_of(rest) if tables else pieces
        lines = lines_of(page, pieces + figures + found)
        last = len(lines)
        for piece in pieces_of(aside):
            text = joined(piece.words)
            if len(text) > 3:
                whole = Block("paragraph", text, Place(page.number, ((piece.x0, piece.top, piece.x1, piece.bottom),)))
                lines.append(
                    Line(piece.x0, piece.top, piece.x1, piece.bottom, [], page.number, column=last, whole=whole)
                )
        for line in lines:
            line.words = line.words[:1]  # the rest is not needed again, and a thousand pages have many
        return lines

    def _readable(self, page: Page) -> Page:
        """The page itself, or what can be read off its picture if it is a scan or its letters mean nothing."""
        shown = sum(len(word.text) for word in page.words)
        garbled = shown > 0 and page.unmapped > 0.3 * shown
        covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in page.pictures) > 0.4 * page.width * page.height
        if not garbled and (shown >= _FEW or not covered):
            return page
        if not (self._limits.ocr and ocr.is_there()):
            (self._garbled if garbled else self._unread).append(page.number)
            return page
        if time.monotonic() > self._end:
            self._late.append(page.number)
            return page
        scale = 200 / 72
        words = ocr.words_of(picture_of(self._document[page.number - 1], scale), 1 / scale)
        self._scanned.append(page.number)
        return replace(page, words=words if words else page.words)

    def _outline(self) -> dict[int, list[tuple[int, str]]]:
        """Page -> levels (from 0) and titles."""
        found: dict[int, list[tuple[int, str]]] = {}
        try:
            for entry in islice(self._document.get_toc(max_depth=8), _MOST_OUTLINE):
                target = entry.get_dest()
                index = target.get_index() if target else None
                title = entry.get_title().strip()
                if index is not None and title:
                    found.setdefault(index + 1, []).append((entry.level, title))
        except (pypdfium2.PdfiumError, UnicodeError):
            return found
        return found

    def _upright(self, block: Block) -> Block:
        turned = self._turned.get(block.place.page or 0)
        if turned is None:
            return block
        boxes = tuple(_back(box, turned.number, turned.width, turned.height) for box in block.place.boxes)
        return replace(block, place=replace(block.place, boxes=boxes))

    def _about(self, blocks: tuple[Block, ...]) -> tuple[str, str, str]:
        """Title, author and date."""
        known = {key: value.strip().strip("\0") for key, value in self._document.get_metadata_dict().items()}
        title, author = known.get("Title", ""), known.get("Author", "")
        is_file_name = " " not in title and not _CJK.search(title) and bool(re.search(r"[_\d/\\]", title))
        if len(title) < 3 or is_file_name or _NO_TITLE.fullmatch(title):
            title = next((b.text for b in blocks[:12] if b.kind == "heading" and b.place.page == 1), "")
        author = "" if _NO_TITLE.fullmatch(author) else author
        return title[:300], author[:300], _date(known.get("CreationDate", "")) or _date(known.get("ModDate", ""))

    def _notes(self) -> Iterator[str]:
        """What could not be read."""
        if self._damaged:
            yield f"{_pages(self._damaged)} damaged and left out"
        if self._unread:
            yield f"{_pages(self._unread)} scanned; {_HOW_OCR} to read such"
        if self._garbled:
            yield f"{_pages(self._garbled)} set in fonts that do not say which letters they draw; {_HOW_OCR} to read such"
        if self._is_empty and not (self._damaged or self._unread or self._garbled or self._late):
            yield "holds no text"
        if self._late:
            yield f"{_pages(self._late)} scanned and left out for want of time; raise limits.seconds to read such"


_HOW_OCR = "install tinyseek[ocr], and leave limits.ocr on,"


def _pages(numbers: list[int]) -> str:
    """`page 3 is`, `pages 3-5, 9 are`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    shown = ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in runs[:10]) + (" and others" if len(runs) > 10 else "")
    return f"page {shown} is" if len(numbers) == 1 else f"pages {shown} are"


def _date(text: str) -> str:
    """`D:20250123075355Z` to `2025-01-23T07:53:55`; nothing if it is no date."""
    found = _DATE.match(text)
    if not found or not "1970" <= found.group(1) <= "2100":
        return ""
    year, month, day, hour, minute, second = found.groups()
    day_text = f"{year}-{month or '01'}-{day or '01'}"
    return f"{day_text}T{hour}:{minute}:{second}" if second else day_text


def _language(blocks: tuple[Block, ...]) -> str:
    sample = "".join(block.text for block in blocks[:400])[:50_000]
    chinese, latin = len(_CJK.findall(sample)), len(_LATIN.findall(sample))
    return "zh" if chinese > 0.25 * (chinese + latin) and chinese else "en" if latin else ""


# ---- turned text, figures --------------------------------------------------------------------------------------------------------


def _dominant(page: Page) -> tuple[int, list[Word], list[Word]]:
    """How most of a page's text is turned, those words, and the others: stamps along an edge, labels of axes."""
    if all(word.angle == 0 for word in page.words):
        return 0, page.words, []
    weights = dict.fromkeys((0, 90, 180, 270), 0)
    for word in page.words:
        weights[word.angle] += len(word.text)
    most = max(weights, key=lambda angle: weights[angle])
    return most, [w for w in page.words if w.angle == most], [w for w in page.words if w.angle != most]


def _turned(page: Page, angle: int) -> Page:
    """A page turned so that text at `angle` stands upright."""

    def turn(box: Box) -> Box:
        return _turn(box, angle, page.width, page.height)

    words = [Word(w.text, *turn((w.x0, w.top, w.x1, w.bottom)), w.style) for w in page.words if w.angle == angle]
    width, height = (page.width, page.height) if angle == 180 else (page.height, page.width)
    across, down = [turn(box) for box in page.across], [turn(box) for box in page.down]
    if angle != 180:
        across, down = down, across
    return Page(
        page.number, width, height, words, across, down, [turn(box) for box in page.areas],
        [turn(box) for box in page.pictures], [turn(box) for box in page.drawings],
    )  # fmt: skip


def _turn(box: Box, angle: int, width: float, height: float) -> Box:
    x0, top, x1, bottom = box
    if angle == 90:
        return top, width - x1, bottom, width - x0
    if angle == 180:
        return width - x1, height - bottom, width - x0, height - top
    return height - bottom, x0, height - top, x1


def _back(box: Box, angle: int, width: float, height: float) -> Box:
    """The inverse of `_turn`, on a page that was `width` x `height` before."""
    x0, top, x1, bottom = box
    if angle == 90:
        return width - bottom, x0, width - top, x1
    if angle == 180:
        return width - x1, height - bottom, width - x0, height - top
    return top, height - x1, bottom, height - x0


def _figures(page: Page, words: list[Word], aside: list[Word]) -> tuple[list[Word], list[Word], list[Piece]]:
    """The labels in a drawing as one block, so that they do not stand between sentences; and the words that are left."""
    figures: list[Piece] = []
    for x0, top, x1, bottom in page.drawings[:200]:
        if (x1 - x0) * (bottom - top) < 2000:
            continue

        def is_in(w: Word, box: Box = (x0 - 1, top - 1, x1 + 1, bottom + 1)) -> bool:
            return box[0] <= w.x0 and w.x1 <= box[2] and box[1] <= w.top and w.bottom <= box[3]

        inside = [word for word in words if is_in(word)]
        if len(inside) < 3:
            continue
        pieces = pieces_of(inside)
        if sum(len(piece.words) > 6 for piece in pieces) > 0.3 * len(pieces):
            continue  # running text that its maker put into a form
        rows = [joined([word for piece in row for word in piece.words]) for row in rows_of(pieces)]
        rows += [joined(piece.words) for piece in pieces_of(word for word in aside if is_in(word))]
        aside = [word for word in aside if not is_in(word)]
        box = (
            min(w.x0 for w in inside),
            min(w.top for w in inside),
            max(w.x1 for w in inside),
            max(w.bottom for w in inside),
        )
        block = Block("paragraph", "\n".join(rows), Place(page.number, (box,)))
        figures.append(Piece(*box, whole=block))
        gone = set(map(id, inside))
        words = [word for word in words if id(word) not in gone]
    return words, aside, figures
