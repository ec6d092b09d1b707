"""Office files and texts that are broken or mean harm: each a clear line, read as users do it, in a process of its own."""

from __future__ import annotations

import io
import random
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from knowledge.documents.word_files import PACKAGE, W, paragraph, word_file

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.read import Readers
from tinyseek.knowledge.documents.zipped import Package

SMALL = Limits(unpacked_mb=50, memory_mb=1500, seconds=60, characters=3_000_000)


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    with Readers(1, SMALL) as readers:
        yield readers


def said(readers: Readers, file: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(UserError) as caught:
        readers.one(file, file.name)
    text = str(caught.value)
    assert text.startswith(f"{file.name}: ")
    assert "\n" not in text
    assert len(text) < 400
    assert "cannot be read: " not in text, "an error that nobody foresaw"
    return text


def foreseen(readers: Readers, file: Path) -> bool:
    """Whether a file is read, or refused with a line that somebody thought of."""
    try:
        readers.one(file, file.name)
    except UserError as error:
        return not any(words in str(error) for words in ("cannot be read: ", "died"))
    return True


def bomb(megabytes: int) -> bytes:
    """Zeros, deflated a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join([packer.compress(b" " * (1 << 20)) for _ in range(megabytes)]) + packer.flush()


def replaced(file: Path, new: Path, **parts: bytes) -> Path:
    """A package with parts replaced; the keyword is the part's name without folder and ending."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in old.namelist():
            archive.writestr(name, parts.get(Path(name).stem, old.read(name)))
    return new


@pytest.fixture
def office(tmp_path: Path) -> dict[str, Path]:
    """An honest file of each kind."""
    document = docx.Document()
    document.add_paragraph("honest")
    document.save(tmp_path / "a.docx")
    book = openpyxl.Workbook()
    book.active.append(["honest", 1])
    book.save(tmp_path / "a.xlsx")
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = "honest"
    deck.save(tmp_path / "a.pptx")
    return {kind: tmp_path / f"a.{kind}" for kind in ("docx", "xlsx", "pptx")}


PARTS = {"docx": "document", "xlsx": "sheet1", "pptx": "slide1"}


@pytest.mark.parametrize("kind", PARTS)
def test_zip_bombs_cost_nothing(readers: Readers, office: dict[str, Path], tmp_path: Path, kind: str) -> None:
    blanks = b"<?xml version='1.0'?><a>" + b" " * (60 << 20) + b"</a>"
    file = replaced(office[kind], tmp_path / f"bomb.{kind}", **{PARTS[kind]: blanks})
    assert file.stat().st_size < 1 << 20
    begun = time.process_time()
    assert "zip bomb" in said(readers, file)
    assert time.process_time() - begun < 2


def test_a_bomb_that_lies_about_its_size_is_cut_off_there(office: dict[str, Path], tmp_path: Path) -> None:
    """The directory says 1,000 bytes, the data unpack to 60 MB: no byte beyond what was said is unpacked."""
    packed = bomb(60)
    name = b"word/document.xml"
    crc = zlib.crc32(b" " * 1000)
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(packed), 1000, len(name), 0)
        + name
        + packed
    )
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(packed), 1000, len(name), 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + len(name), len(local), 0)
    (tmp_path / "a.docx").write_bytes(local + central + name + end)
    with Package(tmp_path / "a.docx", SMALL, "Word document") as package:
        assert len(package.read("word/document.xml")) == 1000


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize(
    "dtd",
    [
        '<!DOCTYPE a [<!ENTITY x0 "ha">'
        + "".join(f'<!ENTITY x{n} "&x{n - 1};&x{n - 1};&x{n - 1};">' for n in range(1, 25))
        + "]>",
        '<!DOCTYPE a [<!ENTITY x24 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a [<!ENTITY x24 SYSTEM "http://127.0.0.1:9/x">]>',
    ],
)
def test_xml_entities_are_refused(
    readers: Readers, office: dict[str, Path], tmp_path: Path, kind: str, dtd: str
) -> None:
    with zipfile.ZipFile(office[kind]) as archive:
        name = next(name for name in archive.namelist() if Path(name).stem == PARTS[kind])
        text = archive.read(name).decode().partition("?>")[2]
    text = f'<?xml version="1.0"?>{dtd}{text}'.replace("honest", "&x24;")
    line = said(readers, replaced(office[kind], tmp_path / f"x.{kind}", **{PARTS[kind]: text.encode()}))
    assert "XML entities" in line or "not XML" in line


@pytest.mark.parametrize("kind", PARTS)
def test_cut_off_and_damaged_files(readers: Readers, office: dict[str, Path], tmp_path: Path, kind: str) -> None:
    data = office[kind].read_bytes()
    chance = random.Random(7)
    for number in range(12):
        file = tmp_path / f"b{number}.{kind}"
        if number < 4:
            file.write_bytes(data[: len(data) * (number + 1) // 5])
        else:
            spoiled = bytearray(data)
            for _ in range(30):
                spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            file.write_bytes(bytes(spoiled))
        assert foreseen(readers, file)


def test_a_password_and_the_old_format_are_said(readers: Readers, tmp_path: Path) -> None:
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
    (tmp_path / "a.docx").write_bytes(ole + "EncryptedPackage".encode("utf-16-le") + b"\0" * 600)
    assert "password" in said(readers, tmp_path / "a.docx")
    (tmp_path / "b.xls").write_bytes(ole)
    assert ".xlsx" in said(readers, tmp_path / "b.xls")


def test_wrong_endings_are_seen_through(readers: Readers, office: dict[str, Path], tmp_path: Path) -> None:
    for kind, file in office.items():
        renamed = tmp_path / f"{kind}.txt"
        renamed.write_bytes(file.read_bytes())
        document = readers.one(renamed)
        assert document.kind == kind
        assert any("honest" in block.text for block in document.blocks)
    (tmp_path / "page.docx").write_text("<!doctype html><p>web page", encoding="utf-8")
    assert readers.one(tmp_path / "page.docx").kind == "html"
    (tmp_path / "plain.xlsx").write_text("only text", encoding="utf-8")
    assert readers.one(tmp_path / "plain.xlsx").blocks[0].text == "only text"


def test_empty_and_half_empty_packages(readers: Readers, tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"")
    assert "empty" in said(readers, tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "b.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/other.xml", "<a/>")
    assert "no word/document.xml" in said(readers, tmp_path / "b.docx")


def test_parts_outside_the_package_are_not_followed(readers: Readers, tmp_path: Path) -> None:
    file = word_file(tmp_path / "a.docx", paragraph("inside"))
    links = (
        f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" Type="x/styles" Target="../../../../etc/passwd"/>'
        '<Relationship Id="r2" Type="x/footnotes" Target="file:///etc/passwd" TargetMode="External"/></Relationships>'
    )
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "b.docx", "w") as new:
        for name in old.namelist():
            new.writestr(name, links if name.endswith("document.xml.rels") else old.read(name))
    assert [block.text for block in readers.one(tmp_path / "b.docx").blocks] == ["inside"]


def test_deep_xml_is_a_line(readers: Readers, tmp_path: Path) -> None:
    deep = f"<w:p>{'<w:ins>' * 100_000}{'</w:ins>' * 100_000}</w:p>"
    assert "damaged" in said(readers, word_file(tmp_path / "a.docx", deep))
    nested = f"<w:p>{'<w:ins>' * 1500}<w:r><w:t>x</w:t></w:r>{'</w:ins>' * 1500}</w:p>"
    line = said(readers, word_file(tmp_path / "b.docx", nested))
    assert "nested" in line or "damaged" in line


def test_a_style_based_on_itself_ends(readers: Readers, tmp_path: Path) -> None:
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="s{n}"><w:name w:val="s{n}"/><w:basedOn w:val="s{(n + 1) % 50}"/></w:style>'
        for n in range(50)
    )
    file = word_file(tmp_path / "a.docx", paragraph("text", "s1"), styles=f"<w:styles {W}>{styles}</w:styles>")
    assert readers.one(file).blocks[0].text == "text"


@pytest.mark.parametrize("name", ["big.txt", "big.md", "big.csv", "big.py", "big.html"])
def test_text_beyond_the_limit_is_refused_before_it_is_read(readers: Readers, tmp_path: Path, name: str) -> None:
    """500 MB that take no room on the disk."""
    with (tmp_path / name).open("wb") as stream:
        stream.write(b"beginning of text\n" * 1000)
        stream.truncate(499_000_000)
    begun = time.monotonic()
    assert "characters" in said(readers, tmp_path / name)
    assert time.monotonic() - begun < 5


def test_one_line_of_two_million_characters(readers: Readers, tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.csv", "a.html", "a.py", "a.json", "a.eml"):
        (tmp_path / name).write_text("word " * 400_000, encoding="utf-8")
        assert sum(len(block.text) for block in readers.one(tmp_path / name).blocks) > 1_900_000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "> " * 50_000,
        "*a_" * 30_000,
        "- " * 20_000,
        "<div>" * 50_000,
        "|" * 50_000,
        "$" * 50_000,
        "`" * 49_999 + " ",
        "![" * 10_000,
    ],
)
def test_markdown_and_html_made_to_be_slow(readers: Readers, tmp_path: Path, text: str) -> None:
    for name in ("a.md", "a.html"):
        (tmp_path / name).write_text(f"# Start\n\n{text}\n\nafter", encoding="utf-8")
        begun = time.monotonic()
        readers.one(tmp_path / name)
        assert time.monotonic() - begun < 20, name


def test_random_bytes_in_every_ending_are_a_line_or_a_document(readers: Readers, tmp_path: Path) -> None:
    chance = random.Random(3)
    for name in ("a.txt", "a.md", "a.html", "a.csv", "a.eml", "a.py", "a.ipynb", "a.srt", "a.png", "a.xlsx", "a.mbox"):
        for _ in range(3):
            data = bytes(chance.choice(b"abc<>\"'|,;\n\r\t{}[]=#*&;\xe4\xb8\xad\xff\x80 ") for _ in range(3000))
            (tmp_path / name).write_bytes(data)
            assert foreseen(readers, tmp_path / name)


def test_a_message_of_endless_parts(readers: Readers, tmp_path: Path) -> None:
    deep = "".join(f'Content-Type: multipart/mixed; boundary="b{n}"\n\n--b{n}\n' for n in range(300))
    (tmp_path / "a.eml").write_text(
        f"Subject: deep\nFrom: a@b.c\nDate: x\n{deep}Content-Type: text/plain\n\nend", encoding="utf-8"
    )
    assert foreseen(readers, tmp_path / "a.eml")
    many = io.StringIO()
    many.write('Subject: many\nFrom: a@b.c\nContent-Type: multipart/mixed; boundary="b"\n\n')
    for _ in range(12_000):
        many.write("--b\nContent-Type: text/plain\n\nx\n")
    (tmp_path / "b.eml").write_text(many.getvalue(), encoding="utf-8")
    assert "parts" in said(readers, tmp_path / "b.eml")
