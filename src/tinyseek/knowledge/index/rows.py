"""Documents and chunks as rows of a table, the same in every database: lists and places are JSON text."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any, Protocol

from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import Chunk, StoredChunk, StoredDocument
from tinyseek.knowledge.index.filters import Facts

DOCUMENT_COLUMNS = (
    "id", "source", "name", "sha256", "size", "kind", "folder", "modified", "added", "title", "author", "date", "pages",
    "language", "tags", "notes", "details", "chunks",
)  # fmt: skip
CHUNK_COLUMNS = (
    "id", "document", "number", "text", "places", "path", "section", "kind", "tokens", "overlap", "corrected", "original",
)  # fmt: skip
DOCUMENT, CHUNK = ", ".join(DOCUMENT_COLUMNS), ", ".join(CHUNK_COLUMNS)
FACTS = "id, name, kind, tags, date, modified"


class Row(Protocol):
    """A row whose columns have names."""

    def __getitem__(self, name: str, /) -> Any: ...


def plain_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 can hold, and without zeros."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def pages_of(chunk: Chunk) -> tuple[int, int]:
    """The first and the last page of a chunk; 0 for none."""
    pages = [place.page for place in chunk.places if place.page is not None]
    return min(pages, default=0), max(pages, default=0)


def chunk_values(chunk: Chunk) -> tuple[Any, ...]:
    """Of the columns after id, document and number."""
    return (
        clean(chunk.text),
        _json([place.plain() for place in chunk.places]),
        clean(_json(chunk.path)),
        chunk.section,
        chunk.kind,
        chunk.tokens,
        chunk.overlap,
        int(chunk.corrected),
        clean(chunk.original),
    )


def read_chunk(row: Row) -> StoredChunk:
    """Back from a row."""
    places = tuple(Place.read(place) for place in json.loads(row["places"]))
    chunk = Chunk(
        row["text"],
        places,
        tuple(json.loads(row["path"])),
        row["section"],
        row["kind"],
        row["tokens"],
        row["overlap"],
        bool(row["corrected"]),
        row["original"],
    )
    return StoredChunk(row["id"], row["document"], row["number"], chunk)


def document_values(document: StoredDocument) -> tuple[Any, ...]:
    """Of the columns after the id."""
    return (
        clean(document.source),
        clean(document.name),
        document.sha256,
        document.size,
        document.kind,
        clean(document.folder),
        document.modified,
        document.added or time.time(),
        clean(document.title),
        clean(document.author),
        clean(document.date),
        document.pages,
        document.language,
        clean(_json(document.tags)),
        clean(_json(document.notes)),
        clean(_json(document.details)),
        document.chunks,
    )


def read_document(row: Row) -> StoredDocument:
    """Back from a row."""
    fields = {name: row[name] for name in DOCUMENT_COLUMNS}
    fields |= {name: tuple(json.loads(fields[name])) for name in ("tags", "notes")}
    return StoredDocument(**fields | {"details": json.loads(fields["details"])})


def facts_of(document: StoredDocument) -> Facts:
    """What filters look at."""
    return Facts(document.id, document.name, document.kind, document.tags, document.date, document.modified)


def read_facts(row: Row) -> Facts:
    """Of a row with the columns `FACTS`."""
    return Facts(row["id"], row["name"], row["kind"], tuple(json.loads(row["tags"])), row["date"], row["modified"])


def corrected(old: Chunk, text: str) -> Chunk:
    """A chunk with the user's own text: what stood where is not known any more."""
    places = tuple(replace(place, span=(0, len(text))) for place in old.places)
    return replace(old, text=text, places=places, overlap=0, corrected=True, original=old.original or old.text)
