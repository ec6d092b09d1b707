"""E-mail: who wrote what to whom and when, the message itself, and its attachments by name. Nothing in them is opened.

A mailbox (.mbox) is read message by message, each under its subject.
"""

from __future__ import annotations

import email
import email.policy
import mailbox
import re
from collections.abc import Iterator
from email.header import decode_header
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import html
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.documents.decode import decode, too_long
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of

_SHOWN = (("From", "From"), ("To", "To"), ("Cc", "Cc"), ("Date", "Date"))
_LITTLE = 0.3  # of the HTML's text: a plain text that is shorter only says that there is HTML


def parse(file: Path, limits: Limits) -> Document:
    """A message (.eml) or a mailbox (.mbox).

    Raises:
        UserError: too long, with too many parts, or no message.
    """
    outline = Outline(limits)
    with file.open("rb") as stream:
        is_box = stream.read(5) == b"From "
    if is_box:
        box = mailbox.mbox(str(file), create=False)
        try:
            notes: list[str] = []
            for entry in box:
                outline.end(1)
                notes += _message(entry, outline, limits)
        finally:
            box.close()
        title, author, date = file.stem, "", ""
        details = {}
    else:
        too_long(file, limits)
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.compat32)
        notes = _message(message, outline, limits)
        title, author, date = _header(message, "Subject"), _header(message, "From"), _day(message)
        details = {"attachments": [name for name, _ in _attachments(message, limits)]}
    if not outline.blocks:
        raise UserError("is no e-mail that can be read: it has no headers and no text")
    return Document(
        tuple(outline.blocks),
        "mail",
        title,
        author,
        date,
        language=language_of(" ".join(block.text[:500] for block in outline.blocks[2:50])),
        notes=tuple(dict.fromkeys(notes)),
        details={name: value for name, value in details.items() if value},
    )


def _message(message: Message, outline: Outline, limits: Limits) -> list[str]:
    """Add a message to a document. Returns what is to be noted of it."""
    notes: list[str] = []
    outline.heading(_header(message, "Subject") or "(no subject)", 1)
    shown = [f"{label}: {said}" for name, label in _SHOWN if (said := _header(message, name))]
    outline.add("paragraph", "\n".join(shown))
    plain: list[str] = []
    rich: list[str] = []
    for part in _parts(message, limits):
        kind = part.get_content_type()
        if (
            part.get_filename()
            or part.get_content_disposition() == "attachment"
            or kind not in ("text/plain", "text/html")
        ):
            continue
        data = part.get_payload(decode=True)
        if isinstance(data, bytes) and data.strip():
            decoded = decode(data, _charset(part))
            notes += decoded.notes
            (rich if kind == "text/html" else plain).append(decoded.text)
    text = "\n\n".join(plain)
    if rich and len(text.strip()) < _LITTLE * sum(map(html.length, rich)):
        for page in rich:
            html.blocks_of(page, outline, limits.depth)
    else:
        for paragraph in re.split(r"\n[ \t>]*\n\s*", text):
            outline.add("paragraph", _unwrapped(paragraph))
    attached = list(_attachments(message, limits))
    if attached:
        outline.add("list", "Attachments:\n" + "\n".join(f"- {name} ({_size(size)})" for name, size in attached))
    return notes


def _parts(message: Message, limits: Limits) -> Iterator[Message]:
    """All parts of a message that are no containers, those of messages in it too.

    Raises:
        UserError: there are too many, or too deep.
    """
    waiting = [(message, 0)]
    count = 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if count > limits.parts or depth > limits.depth:
            raise UserError("has more parts, or deeper ones, than may be; see limits.parts and limits.depth")
        inner = part.get_payload()
        if part.is_multipart() and isinstance(inner, list):
            waiting += [(entry, depth + 1) for entry in reversed(inner) if isinstance(entry, Message)]
        else:
            yield part


def _attachments(message: Message, limits: Limits) -> Iterator[tuple[str, int]]:
    """Names and sizes in bytes of what is attached."""
    for part in _parts(message, limits):
        name = part.get_filename()
        if name is None and (part.get_content_maintype() == "text" or part.get_content_disposition() != "attachment"):
            continue
        data = part.get_payload(decode=True)
        yield _words(name or part.get_content_type()).replace("\n", " "), len(data) if isinstance(data, bytes) else 0


def _charset(part: Message) -> str:
    try:
        return part.get_content_charset() or ""
    except (LookupError, ValueError):
        return ""


def _header(message: Message, name: str) -> str:
    try:
        said = message.get(name)
    except (ValueError, LookupError):
        return ""
    return _words(str(said))[:2000] if said is not None else ""


def _words(text: str) -> str:
    """A header's encoded words (=?gb2312?B?...?=) and raw bytes as characters, in one line."""
    text = " ".join(text.split())
    try:
        parts = decode_header(text)
    except (ValueError, LookupError):
        return text
    found = []
    for data, charset in parts:
        if isinstance(data, bytes):
            found.append(decode(data, "" if charset in (None, "unknown-8bit") else str(charset)).text)
        elif any("\udc80" <= letter <= "\udcff" for letter in data):
            found.append(decode(data.encode("utf-8", "surrogateescape")).text)
        else:
            found.append(data)
    return " ".join("".join(found).split())


def _day(message: Message) -> str:
    try:
        return parsedate_to_datetime(_header(message, "Date")).date().isoformat()
    except (ValueError, TypeError, IndexError):
        return ""


def _unwrapped(paragraph: str) -> str:
    """A paragraph's lines; format=flowed and quoted ones stay lines, as they were written."""
    return "\n".join(line.rstrip() for line in paragraph.split("\n"))


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size} bytes"
