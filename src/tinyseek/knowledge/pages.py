"""A page of a document as a picture, with the boxes of a passage marked on it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Box, Place
from tinyseek.knowledge.index.base import StoredDocument

SCALE = 1.5  # pixels a point
_PEN, _EDGE = (255, 240, 130), (235, 170, 20)
_MARGIN = 1.5  # points around a box


def boxes_on(places: Iterable[Place], page: int) -> list[Box]:
    """The boxes of places on one page."""
    return [box for place in places if place.page == page for box in place.boxes]


def marked(picture: bytes, boxes: Sequence[Box], scale: float) -> bytes:
    """A page's picture with boxes marked as with a yellow pen, as PNG.

    Args:
        boxes: in points.
        scale: the picture's pixels a point.
    """
    from PIL import Image, ImageChops, ImageDraw

    if not boxes:
        return picture
    with Image.open(io.BytesIO(picture)) as opened:
        page = opened.convert("RGB")
    pen = Image.new("RGB", page.size, "white")
    draw = ImageDraw.Draw(pen)
    for left, top, right, bottom in boxes:
        edges = (left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN)
        if right > left and bottom > top:
            draw.rectangle([edge * scale for edge in edges], _PEN, _EDGE)
    out = io.BytesIO()
    ImageChops.multiply(page, pen).save(out, "PNG")  # the text stays as black as it was
    return out.getvalue()


def page_picture(
    render: Callable[[Path, int, float], bytes],
    document: StoredDocument,
    page: int,
    places: Iterable[Place] = (),
    scale: float = SCALE,
) -> bytes:
    """A page of a PDF with a passage marked, as PNG.

    Args:
        render: draws a page of a file, in a worker process: `Readers.render_page`.
        page: from 1.
        places: of the passage; those on other pages are left out.
    Raises:
        UserError: the document has no pages to be drawn, not this one, or its file is gone.
    """
    if document.kind != "pdf":
        raise UserError(f"{document.name}: only a PDF has pages that can be drawn, and this is {document.kind}")
    file = Path(document.source)
    if not file.is_file():
        raise UserError(f"{document.name}: its file is gone; add the document anew")
    if not 1 <= page <= (document.pages or 1):
        raise UserError(f"{document.name}: there is no page {page}; it has {document.pages or 1:,}")
    return marked(render(file, page, scale), boxes_on(places, page), scale)
