"""Pictures with text: read by OCR where it is installed, each line with its box; and what the file says of itself.

A picture is one page; a TIFF or GIF has as many as it has frames. Boxes are in pixels: a pixel is a point.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import ocr
from tinyseek.knowledge.documents.blocks import Document, Place
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of
from tinyseek.knowledge.documents.pdf_page import Word

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_TITLE, _DESCRIPTION, _AUTHOR, _DATE = 0x9C9B, 0x010E, 0x013B, 0x0132  # of EXIF
_GAP = 0.8  # of a line's height: what stands further apart begins a paragraph
_SMALL = 600  # pixels: a smaller picture is made larger before it is read


def parse(file: Path, limits: Limits) -> Document:
    """A picture (.png, .jpg, .webp, .tiff ...).

    Raises:
        UserError: damaged, or of too many pixels or frames.
    """
    outline = Outline(limits)
    notes: list[str] = []
    sizes: list[list[int]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit is kept here
            with Image.open(file, formats=_FORMATS) as picture:
                said = _said(picture)
                frames = int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1
                if frames > limits.pages:
                    raise UserError(f"has {frames:,} frames, more than {limits.pages:,}; see limits.pages")
                can_read = limits.ocr and ocr.is_there()
                for number in range(frames):
                    picture.seek(number)
                    width, height = picture.size
                    if width * height > limits.pixels:
                        most = limits.pixels
                        raise UserError(f"has {width:,} x {height:,} pixels, more than {most:,}; see limits.pixels")
                    frame = ImageOps.exif_transpose(picture)
                    sizes.append([frame.width, frame.height])
                    if can_read:
                        _lines(frame, number + 1, outline)
    except Image.DecompressionBombError:
        raise UserError(f"has more than {limits.pixels:,} pixels; see limits.pixels") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, KeyError) as error:
        raise UserError(f"is a damaged picture ({' '.join(str(error).split())[:120]}); fetch it anew") from None
    if said.get("description"):
        outline.add("caption", said["description"], Place(page=1))
    if not can_read:
        why = "limits.ocr is off" if ocr.is_there() else "pip install 'tinyseek[ocr]'"
        notes.append(f"the text in this picture was not read: {why}")
    elif not outline.blocks:
        notes.append("no text was found in this picture")
    return Document(
        tuple(outline.blocks),
        "image",
        said.get("title", ""),
        said.get("author", ""),
        said.get("date", ""),
        len(sizes),
        language_of(" ".join(block.text for block in outline.blocks[:50])),
        tuple(notes),
        {"sizes": sizes},
    )


def _lines(frame: Image.Image, page: int, outline: Outline) -> None:
    """Add a picture's text: lines that stand under one another as one paragraph."""
    larger = 2 if min(frame.size) < _SMALL else 1
    shown = frame.convert("RGB") if larger == 1 else frame.convert("RGB").resize((frame.width * 2, frame.height * 2))
    group: list[Word] = []
    for line in ocr.words_of(shown, 1 / larger):
        if group and not _goes_on(group[-1], line):
            _put(group, page, outline)
            group = []
        group.append(line)
    _put(group, page, outline)


def _goes_on(above: Word, line: Word) -> bool:
    height = above.bottom - above.top
    same_row = line.top < above.top + 0.5 * height
    near = line.top - above.bottom < _GAP * height
    return same_row or (near and line.x0 < above.x1 and above.x0 < line.x1)


def _put(group: list[Word], page: int, outline: Outline) -> None:
    """One paragraph of lines; those of one row from left to right."""
    rows: list[list[Word]] = []
    for word in group:
        if rows and word.top < rows[-1][0].top + 0.5 * (rows[-1][0].bottom - rows[-1][0].top):
            rows[-1].append(word)
        else:
            rows.append([word])
    text = "\n".join("  ".join(word.text for word in sorted(row, key=lambda word: word.x0)) for row in rows)
    boxes = tuple((round(word.x0, 1), round(word.top, 1), round(word.x1, 1), round(word.bottom, 1)) for word in group)
    outline.add("paragraph", text, Place(page=page, boxes=boxes))


def _said(picture: Image.Image) -> dict[str, str]:
    """Title, description, author and day that the file itself has."""
    found: dict[str, str] = {}
    info = {str(name).lower(): value for name, value in picture.info.items() if isinstance(value, str)}
    for name in ("title", "description", "author"):
        if info.get(name):
            found[name] = info[name].strip()[:2000]
    try:
        exif = picture.getexif()
    except (OSError, ValueError, SyntaxError, KeyError):
        return found
    for name, tag in (("description", _DESCRIPTION), ("author", _AUTHOR)):
        value = exif.get(tag)
        if isinstance(value, str) and value.strip("\0 ") and name not in found:
            found[name] = value.strip("\0 ")[:2000]
    date = exif.get(_DATE)
    if isinstance(date, str) and len(date) >= 10 and date[:4].isdecimal():
        found["date"] = date[:10].replace(":", "-")
    return found
