"""Documents, passages and answers as JSON has them: one form for the command line, HTTP, MCP and the page.

A file's place on this computer (`source`) is left out: who asks over a network has no need of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tinyseek.knowledge.answer.prompt import places_text

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.ask import Part, Reply
    from tinyseek.knowledge.answer.citations import Citation
    from tinyseek.knowledge.index.base import StoredChunk, StoredDocument
    from tinyseek.knowledge.ingest import Progress
    from tinyseek.knowledge.retrieve import Hit


def plain_document(document: StoredDocument) -> dict[str, Any]:
    """A document, without its text."""
    return {
        "id": document.id,
        "name": document.name,
        "kind": document.kind,
        "title": document.title,
        "author": document.author,
        "date": document.date,
        "pages": document.pages,
        "language": document.language,
        "tags": list(document.tags),
        "notes": list(document.notes),
        "passages": document.chunks,
        "size": document.size,
        "sha256": document.sha256,
        "modified": _time(document.modified),
        "added": _time(document.added),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def brief(document: StoredDocument) -> dict[str, Any]:
    """As much of a document as stands beside a passage of it."""
    return {"id": document.id, "name": document.name, "kind": document.kind, "title": document.title}


def plain_chunk(stored: StoredChunk) -> dict[str, Any]:
    """A passage."""
    chunk = stored.chunk
    found: dict[str, Any] = {
        "id": stored.id,
        "document": stored.document,
        "number": stored.number,
        "kind": chunk.kind,
        "path": list(chunk.path),
        "section": chunk.section,
        "tokens": chunk.tokens,
        "where": places_text(chunk.places),
        "places": [place.plain() for place in chunk.places],
        "text": chunk.text,
    }
    if chunk.corrected:
        found |= {"corrected": True, "original": chunk.original}
    return found


def plain_hit(hit: Hit, context: bool = False) -> dict[str, Any]:
    """A passage that was found.

    Args:
        context: with the section around it.
    """
    found: dict[str, Any] = {
        "score": round(hit.score, 4),
        "lexical": None if hit.lexical is None else round(hit.lexical, 4),
        "dense": None if hit.dense is None else round(hit.dense, 4),
        "document": brief(hit.document),
        "passage": plain_chunk(hit.chunk),
    }
    return found | ({"context": hit.context} if context else {})


def plain_citation(citation: Citation) -> dict[str, Any]:
    """A sentence's evidence."""
    return {
        "number": citation.number,
        "document": brief(citation.document),
        "where": places_text(citation.places),
        "places": [place.plain() for place in citation.places],
        "quote": citation.quote,
        "claim": citation.claim,
        "score": round(citation.score, 4),
    }


def plain_reply(reply: Reply) -> dict[str, Any]:
    """A whole answer."""
    usage = reply.usage
    return {
        "answer": reply.text,
        "found": reply.found,
        "confidence": round(reply.confidence, 3),
        "citations": [plain_citation(citation) for citation in reply.citations],
        "dropped_citations": reply.dropped,
        "follow_ups": reply.follow_ups,
        "how": reply.how,
        "searched": reply.question,
        "note": reply.note,
        "finish": reply.finish,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        if usage
        else None,
    }


def plain_part(part: Part) -> tuple[str, dict[str, Any]]:
    """A piece of an answer: which, and what."""
    if part.reply is not None:
        return "reply", plain_reply(part.reply)
    if part.citation is not None:
        return "citation", plain_citation(part.citation)
    if part.hits:
        return "hits", {"hits": [plain_hit(hit) for hit in part.hits]}
    if part.question:
        return "question", {"question": part.question}
    if part.reasoning:
        return "reasoning", {"text": part.reasoning}
    return "text", {"text": part.text}


def plain_progress(progress: Progress) -> dict[str, Any]:
    """What became of a file."""
    return {
        "file": progress.file,
        "outcome": progress.outcome,
        "why": progress.why,
        "passages": progress.chunks,
        "document": progress.document or None,
        "done": progress.done,
        "total": progress.total,
    }
