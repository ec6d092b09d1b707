"""What programs that speak the Model Context Protocol are told of documents and answers, as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.ask import Reply
from tinyseek.knowledge.answer.prompt import defused, places_text
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.index.base import StoredChunk, StoredDocument

SCHEME = "kb"
_PIECE = 20_000  # characters of a document that are read at once


def address(collection: str, document: StoredDocument) -> str:
    """A document's address as a resource."""
    return f"{SCHEME}://{quote(collection, safe='')}/{document.id}/{quote(document.name, safe='')}"


def told(reply: Reply) -> str:
    """An answer with its sources, as text."""
    lines: dict[str, None] = {}
    for citation in reply.citations:
        where = ", ".join(filter(None, (citation.document.name, places_text(citation.places))))
        quoted = json.dumps(" ".join(citation.quote.split())[:300], ensure_ascii=False)
        lines.setdefault(f"[{citation.number}] {where}: {quoted}")
    return reply.text + ("\n\n" + "\n".join(lines) if lines else "")


def named(base: KnowledgeBase, name: str) -> StoredDocument:
    """A document by its name or number.

    Raises:
        UserError: there is none.
    """
    found = base.index.by_name(name)
    if found:
        return found[0]
    if name.isascii() and name.isdecimal() and len(name) < 18:
        return base.document(int(name))
    raise UserError(f"{name}: no document is called so; list_documents tells the names")


def stands_on(stored: StoredChunk, first: int, last: int) -> bool:
    """Whether a passage stands on one of these pages."""
    return any(place.page is not None and first <= place.page <= last for place in stored.chunk.places)


def text_of(chunks: Iterable[StoredChunk], start: int, most: int | None = _PIECE) -> tuple[str, int | None]:
    """Chunks as one text from number `start` on, with a mark where a page begins; and where to go on, if it does."""
    pieces: list[str] = []
    page: str | None = None
    path: tuple[str, ...] = ()
    length = 0
    before: StoredChunk | None = None
    for number, stored in enumerate(chunks):
        if number < start:
            before = stored
            continue
        if most is not None and pieces and length + len(stored.chunk.text) > most:
            return "\n\n".join(pieces), number
        where = places_text(stored.chunk.places[:1])
        if where and where != page:
            pieces.append(f"--- {where} ---")
            page = where
        if stored.chunk.path != path and stored.chunk.path:
            path = stored.chunk.path
            pieces.append(f"# {' > '.join(path)}")
        follows = before is not None and before.chunk.section == stored.chunk.section
        text = stored.chunk.text[stored.chunk.overlap if follows else 0 :].strip()
        pieces.append(defused(text))
        length += len(text)
        before = stored
    return "\n\n".join(pieces), None


def line_of(document: StoredDocument) -> str:
    """A document in a line."""
    facts = [
        document.kind,
        f"{document.pages} pages" if document.pages else "",
        document.title,
        ", ".join(document.tags),
    ]
    return f"{document.name} (id {document.id}; {'; '.join(filter(None, facts))})"
