"""A document as plain JSON and back: what goes between the process that reads a file and the one that asked."""

from __future__ import annotations

from typing import Any

from tinyseek.knowledge.documents.blocks import Block, Document, Place, Table


def plain_document(document: Document) -> dict[str, Any]:
    """As JSON has it, without what is empty."""
    plain: dict[str, Any] = {"kind": document.kind, "blocks": [_plain_block(block) for block in document.blocks]}
    for name in ("title", "author", "date", "pages", "language", "details"):
        if value := getattr(document, name):
            plain[name] = value
    return plain | ({"notes": list(document.notes)} if document.notes else {})


def read_document(plain: dict[str, Any]) -> Document:
    """Back from `plain_document`."""
    rest = {key: value for key, value in plain.items() if key not in ("blocks", "notes")}
    return Document(tuple(_read_block(block) for block in plain["blocks"]), notes=tuple(plain.get("notes", ())), **rest)


def _plain_block(block: Block) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": block.kind, "text": block.text}
    if place := block.place.plain():
        plain["place"] = place
    if block.path:
        plain["path"] = list(block.path)
    if block.level:
        plain["level"] = block.level
    if block.continued:
        plain["continued"] = True
    if block.table is not None:
        table = block.table
        plain["table"] = {"rows": table.rows, "header_rows": table.header_rows, "merged": table.merged}
    return plain


def _read_block(plain: dict[str, Any]) -> Block:
    table = plain.get("table")
    return Block(
        plain["kind"],
        plain["text"],
        Place.read(plain.get("place", {})),
        tuple(plain.get("path", ())),
        plain.get("level", 0),
        table
        and Table(
            tuple(tuple(row) for row in table["rows"]),
            table["header_rows"],
            tuple((row, column, rows, columns) for row, column, rows, columns in table["merged"]),
        ),
        plain.get("continued", False),
    )
