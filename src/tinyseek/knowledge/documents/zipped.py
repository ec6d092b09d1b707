"""Office files are ZIP archives of XML parts: opened without trusting what they say of themselves.

A part is unpacked only when it is read, and what is read is counted against a limit before a byte of it is unpacked, so that a
zip bomb costs nothing. XML is read without entities, without DTDs and without the network; macros and embedded programs are never
opened.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import unquote

from lxml import etree

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.limits import Limits

# ISO's "strict" form has names of its own for the same things.
_STRICT = (
    (
        b"http://purl.oclc.org/ooxml/wordprocessingml/main",
        b"http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    ),
    (b"http://purl.oclc.org/ooxml/drawingml/", b"http://schemas.openxmlformats.org/drawingml/2006/"),
    (b"http://purl.oclc.org/ooxml/presentationml/main", b"http://schemas.openxmlformats.org/presentationml/2006/main"),
    (b"http://purl.oclc.org/ooxml/spreadsheetml/main", b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"),
    (b"http://purl.oclc.org/ooxml/officeDocument/math", b"http://schemas.openxmlformats.org/officeDocument/2006/math"),
    (
        b"http://purl.oclc.org/ooxml/officeDocument/relationships",
        b"http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    ),
)


@dataclass(frozen=True)
class Relation:
    """A part's link to another part of the same file."""

    kind: str  # the last word of its type: "worksheet", "image", "footnotes"
    target: str  # the part's name


class Package:
    """An Office file, open for reading; a context manager.

    Part names are compared without case, as the standard asks.
    """

    def __init__(self, file: Path, limits: Limits, format_name: str) -> None:
        """Open `file`.

        Args:
            format_name: what it is called in errors: "Word document".
        Raises:
            UserError: it is cut short, damaged, or of too many parts.
        """
        self._most, self._unpacked, self._name = int(limits.unpacked_mb * 1e6), 0, format_name
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OverflowError) as error:
            raise UserError(f"is no whole {format_name}: cut short or damaged ({error}); fetch it anew") from None
        parts = self._zip.infolist()
        if len(parts) > limits.parts:
            self._zip.close()
            raise UserError(f"has {len(parts):,} files inside it, more than {limits.parts:,}; see limits.parts")
        self._parts = {part.filename.replace("\\", "/").lstrip("/").lower(): part for part in parts}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._parts

    def names(self, beginning: str) -> list[str]:
        """The parts whose names begin so, sorted."""
        return sorted(name for name in self._parts if name.startswith(beginning.lower()))

    def open(self, name: str) -> IO[bytes]:
        """A part as a stream.

        Raises:
            UserError: it is not there, damaged, encrypted, or unpacks to more than may be.
        """
        part = self._parts.get(name.lower())
        if part is None:
            raise UserError(f"is no whole {self._name}: it has no {name}; save it again in the program that made it")
        self._unpacked += part.file_size  # zipfile gives no byte beyond this, whatever the data unpacks to
        if self._unpacked > self._most:
            raise UserError(
                f"unpacks to more than {self._most / 1e6:,.0f} MB ({name} alone to {part.file_size / 1e6:,.0f} MB): a zip bomb, "
                f"or too long to be read whole; see limits.unpacked_mb"
            )
        if part.flag_bits & 1:
            raise UserError("is protected by a password; save a copy without one and add that")
        if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"is packed in a way that Office does not know ({name}); save it again")
        try:
            return self._zip.open(part)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
            raise UserError(f"is a damaged {self._name} ({name}: {error}); fetch it anew") from None

    def size(self, name: str) -> int:
        """How many bytes a part unpacks to at most; 0 for one that is not there."""
        part = self._parts.get(name.lower())
        return part.file_size if part is not None else 0

    def read(self, name: str) -> bytes:
        """A part's bytes. Raises as `open` does."""
        try:
            with self.open(name) as stream:
                return stream.read()
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise UserError(f"is a damaged {self._name} ({name}: {error}); fetch it anew") from None

    def xml(self, name: str) -> etree._Element:
        """A part's tree, in the names of the "transitional" form.

        Raises:
            UserError: as `open` does, and for what is not XML or has a DTD.
        """
        return self.tree(self.read(name), name)

    def tree(self, data: bytes, name: str) -> etree._Element:
        """The tree of a part's bytes, as `xml` has it."""
        if b"purl.oclc.org/ooxml" in data[:8192]:
            data = _usual(data)
        try:
            root = etree.fromstring(data, _parser())
        except (etree.XMLSyntaxError, ValueError) as error:
            raise UserError(f"is a damaged {self._name} ({name} is not XML: {_short(error)})") from None
        _check_dtd(root, name)
        return root

    def elements(self, name: str, *tags: str, parent: str = "") -> Iterator[etree._Element]:
        """Every element of these tags ("{*}row") at its end, one after the other; what was given is freed at the next one.

        Args:
            parent: the tag's end ("}body") of the element that they must stand in; nothing: anywhere.
        Raises: as `xml` does.
        """
        with self.open(name) as opened:
            stream: IO[bytes] = opened
            checked = False
            try:
                if b"purl.oclc.org/ooxml" in opened.peek(8192):  # type: ignore[attr-defined]
                    stream = io.BytesIO(_usual(opened.read()))
                parts = etree.iterparse(
                    stream, events=("end",), tag=tags, no_network=True, load_dtd=False, resolve_entities=False,
                    remove_comments=True, remove_pis=True, huge_tree=False,
                )  # fmt: skip
                for _, element in parts:
                    if not checked:
                        _check_dtd(element, name)
                        checked = True
                    above = element.getparent()
                    if parent and (above is None or not str(above.tag).endswith(parent)):
                        continue
                    yield element
                    element.clear()
                    while (before := element.getprevious()) is not None:
                        assert above is not None
                        above.remove(before)
            except (etree.XMLSyntaxError, ValueError) as error:
                raise UserError(f"is a damaged {self._name} ({name} is not XML: {_short(error)})") from None
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
                raise UserError(f"is a damaged {self._name} ({name}: {error}); fetch it anew") from None

    def relations(self, part: str) -> dict[str, Relation]:
        """What a part refers to inside the file, by the reference's id; addresses outside are left out, and never asked for."""
        folder, _, base = part.rpartition("/")
        name = f"{folder}/_rels/{base}.rels".lstrip("/")
        if name not in self:
            return {}
        found = {}
        for link in self.xml(name):
            target = link.get("Target") or ""
            if link.get("TargetMode") == "External" or not target:
                continue
            target = unquote(target).replace("\\", "/")
            joined = target if target.startswith("/") else posixpath.join("/", folder, target)
            whole = posixpath.normpath(joined).lstrip("/")
            found[link.get("Id") or ""] = Relation((link.get("Type") or "").rpartition("/")[2], whole)
        return found

    def main_part(self, usual: str) -> str:
        """The document's own part: what the file says is it, or its usual name."""
        for link in self.relations("").values():
            if link.kind == "officeDocument" and link.target in self:
                return link.target
        return usual

    def properties(self) -> dict[str, str]:
        """Title, creator, created, modified ... as docProps/core.xml has them; nothing where it is missing or broken."""
        try:
            root = self.xml("docProps/core.xml")
        except UserError:
            return {}
        return {
            etree.QName(entry).localname: (entry.text or "").strip() for entry in root if isinstance(entry.tag, str)
        }

    def has_macros(self) -> bool:
        return any(name.endswith("vbaproject.bin") for name in self._parts)


def day(date: str) -> str:
    """The day of an ISO time as Office writes it, or nothing: "2024-03-01T10:00:00Z" -> "2024-03-01"."""
    head = date.strip()[:10]
    return head if len(head) == 10 and head[4] == head[7] == "-" and head.replace("-", "").isdigit() else ""


def whole(text: str | None, otherwise: int, most: int = 10**9) -> int:
    """A number that an attribute says, from 0 to `most`; `otherwise` for what is none."""
    if text is None or not text.isdecimal():
        return otherwise
    return min(int(text), most) if len(text) < 20 else most


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True, huge_tree=False
    )


def _check_dtd(element: etree._Element, name: str) -> None:
    """Office writes no DTDs; the only files that have one want to expand entities.

    Raises:
        UserError: there is one.
    """
    if element.getroottree().docinfo.internalDTD is not None:
        raise UserError(f"declares XML entities in {name}, which no Office program does; not read")


def _usual(data: bytes) -> bytes:
    """XML of the strict form in the usual names."""
    for strict, usual in _STRICT:
        data = data.replace(strict, usual)
    return data


def _short(error: Exception) -> str:
    return str(error).split("\n")[0][:120]
