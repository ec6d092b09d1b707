"""PDF files made for tests: by reportlab where a page is to look like one, by hand where it is to be wrong."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table, TableStyle

WORDS = """the model learns from data and answers questions about documents with numbers because every reader wants sources tables
figures sections methods results training evaluation language memory context retrieval passage evidence"""


def sentence(rng: random.Random, words: int = 12) -> str:
    """Words that begin with a capital and end with a full stop."""
    text = " ".join(rng.choice(WORDS.split()) for _ in range(words))
    return text[0].upper() + text[1:] + "."


def paragraph(
    canvas: Canvas, text: str, x: float, y: float, width: float, size: float = 10, font: str = "Helvetica"
) -> float:
    """Draw text in lines; returns the y below it."""
    line = ""
    for word in text.split():
        if line and stringWidth(f"{line} {word}", font, size) > width:
            canvas.setFont(font, size)
            canvas.drawString(x, y, line)
            y -= 1.25 * size
            line = word
        else:
            line = f"{line} {word}".strip()
    canvas.setFont(font, size)
    canvas.drawString(x, y, line)
    return y - 1.25 * size


def table(
    canvas: Canvas, rows: Sequence[Sequence[str]], x: float, y: float, style: str, font: str = "Helvetica"
) -> float:
    """Draw a table whose upper left corner is (x, y); returns the y below it.

    Args:
        style: "grid" (all lines), "rules" (above, under the head, below), "striped" (every second row shaded), "bare".
    """
    drawn = Table([list(row) for row in rows])
    look: list[tuple[object, ...]] = [("FONT", (0, 0), (-1, -1), font, 9)]
    if style == "grid":
        look.append(("GRID", (0, 0), (-1, -1), 0.5, colors.black))
    elif style == "rules":
        look += [("LINEABOVE", (0, 0), (-1, 0), 1, colors.black), ("LINEBELOW", (0, 0), (-1, 0), 0.5, colors.black)]
        look.append(("LINEBELOW", (0, -1), (-1, -1), 1, colors.black))
    elif style == "striped":
        look.append(("ROWBACKGROUNDS", (0, 0), (-1, -1), [colors.lightgrey, colors.white]))
    drawn.setStyle(TableStyle(look))
    _, height = drawn.wrapOn(canvas, 500, 700)
    drawn.drawOn(canvas, x, y - height)
    return float(y - height - 14)


def canvas_of(file: Path, **options: object) -> Canvas:
    """A canvas of A4 pages."""
    return Canvas(str(file), pagesize=A4, **options)


# ---- by hand ---------------------------------------------------------------------------------------------------------------------


def by_hand(objects: Mapping[int, bytes]) -> bytes:
    """A file of numbered objects, of which the first is the catalogue."""
    out, starts = b"%PDF-1.7\n", {}
    for number, body in objects.items():
        starts[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    begin, size = len(out), max(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    for number in range(1, size):
        out += b"%010d 00000 n \n" % starts[number] if number in starts else b"0000000000 65535 f \n"
    return out + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, begin)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A packed stream object."""
    packed = zlib.compress(data)
    return b"<</Filter/FlateDecode/Length %d%s>>\nstream\n%s\nendstream" % (len(packed), entries, packed)


FONT = b"/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"


def one_page(content: bytes, entries: bytes = FONT, more: Mapping[int, bytes] | None = None) -> bytes:
    """A file of one page with that content."""
    objects = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 500]%s/Contents 4 0 R>>" % entries,
        4: stream(content),
    }
    return by_hand(objects | dict(more or {}))
