"""Reading in worker processes: what is wrong with a file is one line, and the next file is read."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from knowledge.documents.pdf_files import FONT, by_hand, canvas_of, one_page, stream

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import ocr
from tinyseek.knowledge.documents.kinds import by_name, kind_of
from tinyseek.knowledge.documents.limits import DEFAULT, Limits
from tinyseek.knowledge.documents.read import Readers, read_document

SMALL = DEFAULT.model_copy(update={"memory_mb": 400, "seconds": 20.0, "pages": 50, "characters": 100_000})


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    with Readers(1, SMALL) as opened:
        yield opened


def good(file: Path, text: str = "A good file.") -> Path:
    canvas = canvas_of(file)
    canvas.drawString(72, 700, text)
    canvas.save()
    return file


def form(number: int, times: int) -> bytes:
    """A form that draws another several times."""
    return stream(
        b"/F Do " * times,
        b"/Type/XObject/Subtype/Form/BBox[0 0 500 500]/Resources<</XObject<</F %d 0 R>>>>" % number,
    )


def hostile() -> dict[str, bytes]:
    """Files that are wrong, each with what is said of it, or "" where it is read nevertheless."""
    pages = b"<</Type/Catalog/Pages 2 0 R>>"
    packed = zlib.compress(zlib.compress(b" " * 500_000_000, 1), 9)
    bomb = b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>\nstream\n%s\nendstream" % (len(packed), packed)
    itself = b"/Resources<</XObject<</F 9 0 R>>>>"
    return {
        "its own parent|none of its pages can be read": by_hand(
            {1: pages, 2: b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 9>>"}
        ),
        "many pages|has 10,000 pages, more than 50": by_hand(
            {
                1: pages,
                2: b"<</Type/Pages/Kids[%s]/Count 10000>>" % (b"3 0 R " * 10_000),
                3: b"<</Type/Page/Parent 2 0 R>>",
            }
        ),
        "a form that draws itself|": one_page(b"/F Do", itself, {9: form(9, 2)}),
        "forms in forms|": one_page(
            b"/F Do", itself, {**{n: form(n + 1, 9) for n in range(9, 40)}, 40: stream(b"0 0 m 9 9 l S")}
        ),
        "a stream without end|memory": one_page(b"", FONT, {4: bomb}),
        "text without end|": one_page(b"BT /F1 9 Tf 9 9 Td " + b"(many words stand here) Tj " * 200_000 + b"ET"),
        "brackets in brackets|": one_page(b"[" * 200_000),
        "an outline in a ring|": by_hand(
            {
                1: b"<</Type/Catalog/Pages 2 0 R/Outlines 6 0 R>>",
                2: b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
                3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 500]>>",
                6: b"<</First 7 0 R/Last 7 0 R/Count 1>>",
                7: b"<</Title(a)/Parent 6 0 R/Next 7 0 R/First 7 0 R/Dest[3 0 R/Fit]>>",
            }
        ),
        "noise|damaged or cut short": b"%PDF-1.4\n" + bytes(range(256)) * 50,
    }


def test_hostile_files_are_a_line_each_and_good_ones_go_on(readers: Readers, tmp_path: Path) -> None:
    for number, (case, data) in enumerate(hostile().items()):
        name, _, said = case.partition("|")
        file = tmp_path / f"{number}.pdf"
        file.write_bytes(data)
        began = time.monotonic()
        try:
            readers.one(file, name)
            message = None
        except UserError as error:
            message = str(error)
        assert time.monotonic() - began < 60, name
        if message is not None:
            assert message.startswith(f"{name}: ")
            assert "\n" not in message
            assert said in message, message
            assert "cannot be read" not in message, message
        else:
            assert not said, name
    assert readers.one(good(tmp_path / "good.pdf")).blocks[0].text == "A good file."


def test_a_file_cut_short_gives_its_whole_pages_or_a_line(readers: Readers, tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "whole.pdf")
    for page in range(8):
        canvas.drawString(72, 700, f"The text of page {page + 1}.")
        canvas.showPage()
    canvas.save()
    data = (tmp_path / "whole.pdf").read_bytes()
    for share in (0.05, 0.3, 0.5, 0.7, 0.9, 0.99):
        (tmp_path / "cut.pdf").write_bytes(data[: int(share * len(data))])
        try:
            document = readers.one(tmp_path / "cut.pdf")
        except UserError as error:
            assert "damaged or cut short" in str(error)  # noqa: PT017
        else:
            assert all(block.text == f"The text of page {block.place.page}." for block in document.blocks)
            assert len(document.blocks) == 8 or document.notes


def test_a_password_is_asked_for_only_where_reading_needs_one(readers: Readers, tmp_path: Path) -> None:
    canvas = canvas_of(tmp_path / "locked.pdf", encrypt="secret")
    canvas.drawString(72, 700, "Hidden.")
    canvas.save()
    with pytest.raises(UserError, match=r"locked\.pdf: is protected by a password; save a copy without one"):
        readers.one(tmp_path / "locked.pdf")


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "large.txt").write_bytes(b"x" * 2_000_000)
    limits = Limits(file_mb=1)
    for name, said in {
        "pipe.pdf": "is no plain file",
        "empty.pdf": "is empty",
        "large.txt": "is 2 MB, more than 1 MB",
        "none.pdf": "no such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(UserError, match=said):
            read_document(tmp_path / name, limits)


def test_many_files_come_in_their_order_with_what_is_wrong_among_them(tmp_path: Path) -> None:
    files = []
    for number in range(12):
        file = tmp_path / f"{number}.pdf"
        if number % 4 == 3:
            file.write_bytes(b"%PDF-1.4 nothing")
        else:
            good(file, f"This is file {number}.")
        files.append(file)
    with Readers(2, SMALL) as readers:
        found = list(readers.read(files))
        workers = [worker._process for worker in readers._all if worker._process is not None]
    assert [file for file, _ in found] == files
    for number, (_, read) in enumerate(found):
        if number % 4 == 3:
            assert isinstance(read, UserError)
        else:
            assert not isinstance(read, UserError)
            assert read.blocks[0].text == f"This is file {number}."
    assert workers
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_a_worker_that_dies_is_begun_anew(tmp_path: Path) -> None:
    good(tmp_path / "a.pdf")
    with Readers(1, SMALL) as readers:
        readers.one(tmp_path / "a.pdf")
        process = readers._all[0]._process
        assert process is not None
        process.kill()
        process.wait()
        assert readers.one(tmp_path / "a.pdf").pages == 1


def test_time_is_up(tmp_path: Path) -> None:
    content = stream(b"BT /F1 9 Tf 9 9 Td " + b"(many words stand here) Tj 0 1 Td " * 300_000 + b"ET")
    kids = b" ".join(b"%d 0 R" % number for number in range(10, 40))
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 500]%s/Contents 4 0 R>>" % FONT
    objects = {1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Kids[%s]/Count 30>>" % kids, 4: content}
    (tmp_path / "slow.pdf").write_bytes(by_hand(objects | dict.fromkeys(range(10, 40), page)))
    for limits, said in (
        (Limits(seconds=1.5), "takes longer than 1.5 s"),
        (Limits(cpu_seconds=1), "takes more than 1 s of computing"),
    ):
        began = time.monotonic()
        with pytest.raises(UserError, match=said):
            read_document(tmp_path / "slow.pdf", limits)
        assert time.monotonic() - began < 15


def test_content_decides_and_the_name_where_it_cannot(tmp_path: Path) -> None:
    good(tmp_path / "a.pdf")
    pdf = (tmp_path / "a.pdf").read_bytes()
    for name, data, kind in [
        ("a.txt", pdf, "pdf"),
        ("a.pdf", b"plain words", "text"),
        ("a.docx", b"<!DOCTYPE html><html><body>words</body></html>", "html"),
        ("a", b"From: a@b.c\nTo: d@e.f\nSubject: g\n\nwords", "mail"),
        ("a.md", b"<html> is a tag", "markdown"),
        ("a.csv", b"a,b\n1,2\n", "csv"),
        ("a.PY", b"print(1)", "code"),
        ("Makefile", b"all:\n", "code"),
        ("a.xyz", "汉字".encode("utf-16"), "text"),
        ("a.txt", "some words in UTF-16 without a mark".encode("utf-16-le"), "text"),
        ("a.jpg", b"\x89PNG\r\n\x1a\n\0\0\0", "image"),
    ]:
        (tmp_path / "file").write_bytes(data)
        assert kind_of(tmp_path / "file", name) == kind, name
    for data, said in [
        (b"\0" * 10_000, "blanks"),
        (b"PK\x03\x04 cut", "damaged or cut short"),
        (b"{\\rtf1 words}", "rich text"),
        (b"\x1f\x8b\x08\0", "is packed"),
        (bytes(range(256)) * 4, "no text and of no kind"),
    ]:
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(UserError, match=said):
            kind_of(tmp_path / "file", "a.bin")
    assert by_name("Photo.JPEG") == "image"
    assert by_name("a.exe") is None


@pytest.mark.skipif(not ocr.is_there(), reason="needs tinyseek[ocr]")
def test_a_scanned_page_is_read_and_a_note_says_so_where_it_cannot(tmp_path: Path) -> None:
    import pypdfium2

    canvas = canvas_of(tmp_path / "text.pdf")
    canvas.setFont("Times-Roman", 14)
    canvas.drawString(72, 700, "The quick brown fox jumps over 2024 lazy dogs.")
    canvas.save()
    with pypdfium2.PdfDocument(tmp_path / "text.pdf") as file:
        file[0].render(scale=2).to_pil().convert("RGB").save(tmp_path / "scan.pdf", resolution=144)
    (block,) = read_document(tmp_path / "scan.pdf").blocks
    assert block.text == "The quick brown fox jumps over 2024 lazy dogs."
    x0, top, x1, bottom = block.place.boxes[0]
    assert 60 < x0 < 80
    assert 120 < top < bottom < 155
    assert x1 > 300
    unread = read_document(tmp_path / "scan.pdf", Limits(ocr=False))
    assert unread.blocks == ()
    assert "page 1 is scanned" in unread.notes[0]


def test_a_worker_that_went_home_is_begun_anew_and_one_that_grew_is_not_kept(tmp_path: Path) -> None:
    good(tmp_path / "a.pdf")
    with Readers(1, SMALL) as readers:
        readers.one(tmp_path / "a.pdf")
        process = readers._all[0]._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()  # it ends as after a long idle time, with status 0
        process.wait()
        assert readers.one(tmp_path / "a.pdf").pages == 1
        (tmp_path / "large.txt").write_text("many words " * 9_000)
        readers._limits = SMALL.model_copy(update={"memory_mb": 256, "characters": 10_000_000})
        (tmp_path / "large.txt").write_text("many words in a line of text\n" * 250_000)
        readers.one(tmp_path / "large.txt")
        assert readers._all[0]._process is None
        assert readers.one(tmp_path / "a.pdf").pages == 1
