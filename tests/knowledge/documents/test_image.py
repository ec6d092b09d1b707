"""Pictures: their text where OCR is installed, a clear note where not; what they say of themselves; sizes made to fill memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import image, ocr
from tinyseek.knowledge.documents.limits import Limits


def picture(size: tuple[int, int] = (800, 220)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(36)
    pen.text((20, 20), "Invoice 4711", fill="black", font=font)
    pen.text((20, 150), "Total 35 EUR", fill="black", font=font)
    return picture


def test_without_ocr_a_picture_says_so(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "A scan")
    info.add_text("Description", "The invoice of May")
    picture().save(tmp_path / "a.png", pnginfo=info)
    document = image.parse(tmp_path / "a.png", Limits(ocr=False))
    assert (document.title, document.pages, document.details) == ("A scan", 1, {"sizes": [[800, 220]]})
    assert [(block.kind, block.text) for block in document.blocks] == [("caption", "The invoice of May")]
    assert len(document.notes) == 1
    assert "was not read" in document.notes[0]


@pytest.mark.skipif(not ocr.is_there(), reason="rapidocr-onnxruntime is not installed")
def test_text_with_boxes(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", quality=95)
    first, second = image.parse(tmp_path / "a.jpg", Limits()).blocks
    assert first.text.replace(" ", "") == "Invoice4711"
    assert second.text.replace(" ", "") == "Total35EUR"
    (box,) = first.place.boxes
    assert 0 < box[0] < 60
    assert 0 < box[1] < box[3] < 90
    assert first.place.page == 1


def test_frames_of_a_tiff_are_pages(tmp_path: Path) -> None:
    picture((80, 40)).save(tmp_path / "a.tiff", save_all=True, append_images=[picture((60, 30))])
    document = image.parse(tmp_path / "a.tiff", Limits(ocr=False))
    assert document.details == {"sizes": [[80, 40], [60, 30]]}
    with pytest.raises(UserError, match="2 frames"):
        image.parse(tmp_path / "a.tiff", Limits(pages=1))


def test_pictures_that_say_they_are_huge_and_broken_ones(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side, words in ((12_000, "12,000 x 12,000 pixels"), (60_000, "pixels")):
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / "a.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100))
            + chunk(b"IEND", b"")
        )
        with pytest.raises(UserError, match=words):
            image.parse(tmp_path / "a.png", Limits())
    picture().save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:300])
    with pytest.raises(UserError, match="damaged"):
        image.parse(tmp_path / "b.png", Limits(ocr=True))
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match="damaged"):
        image.parse(tmp_path / "c.png", Limits())
