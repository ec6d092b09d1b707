"""A page of a document as a picture, with what is cited marked on it and its passages outlined."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from tinyseek.evaluate.page import Html, el
from tinyseek.knowledge.documents.blocks import Box
from tinyseek.knowledge.index.base import StoredChunk, StoredDocument
from tinyseek.studio.words import Words

_A4 = (595.0, 842.0)  # points


def sheet(
    collection: str,
    document: StoredDocument,
    page: int,
    zoom: int,
    marks: Sequence[Box],
    outlined: Sequence[StoredChunk],
    here: int | None,
    words: Words,
) -> Html:
    """The picture, in a pane that scrolls.

    Args:
        zoom: 1 is as wide as the pane.
        marks: boxes of what is cited.
        outlined: passages whose boxes can be clicked; `here` is looked at.
    """
    width, height = _size(document, page)
    label = words("{name}, page {number}", name=document.name, number=page)
    outlines: list[Html] = []
    for stored in outlined:
        own = [box for place in stored.chunk.places if place.page == page for box in place.boxes]
        outlines += [
            _outline(stored, box, width, height, n == 0, stored.id == here, words) for n, box in enumerate(own)
        ]
    drawn = el(
        "div",
        el("img", src=_address(collection, document, page, zoom), alt=label, draggable="false"),
        outlines,
        el("div", [el("i", class_="mark", style=_style(box, width, height)) for box in marks], class_="marks"),
        class_="sheet",
        style=f"aspect-ratio:{width:g}/{height:g};width:{100 * (1 + 0.6 * (zoom - 1)):.0f}%",
    )
    return el("div", drawn, class_="desk", tabindex="0", role="group", aria_label=label)


def page_address(collection: str, document: StoredDocument, page: int, scale: int = 2) -> str:
    """Where the picture of a page is fetched; another one once the file is another."""
    return f"/kb/pages/{quote(collection, safe='')}/{document.id}/{page}?scale={scale}&v={document.sha256[:16]}"


def _address(collection: str, document: StoredDocument, page: int, zoom: int) -> str:
    if document.kind == "pdf":
        return page_address(collection, document, page, 2 if zoom == 1 else 3)
    return f"/kb/pictures/{quote(collection, safe='')}/{document.id}?v={document.sha256[:16]}"


def _outline(stored: StoredChunk, box: Box, width: float, height: float, first: bool, here: bool, words: Words) -> Html:
    label = words("Passage {number}", number=stored.number + 1)
    return el(
        "button",
        el("span", str(stored.number + 1)) if first else "",
        type="button",
        class_="box here" if here else "box",
        data_act="chunk",
        data_id=stored.id,
        style=_style(box, width, height),
        title=label,
        aria_label=label,
        tabindex=None if first else "-1",
    )


def _size(document: StoredDocument, page: int) -> tuple[float, float]:
    """Of the page, in points; A4 where it is not known."""
    sizes = document.details.get("page_sizes") or document.details.get("sizes") or []
    try:
        width, height = (float(edge) for edge in sizes[page - 1][:2])
    except (IndexError, TypeError, ValueError):
        return _A4
    return (width, height) if width > 0 and height > 0 else _A4


def _style(box: Box, width: float, height: float) -> str:
    left, top, right, bottom = box
    shares = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    return ";".join(
        f"{name}:{100 * share:.2f}%" for name, share in zip(("left", "top", "width", "height"), shares, strict=True)
    )
