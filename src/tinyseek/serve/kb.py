"""The knowledge base over HTTP, below /v1/kb: collections, documents, passages, pages, questions.

Every route looks at a collection through the key that came with the request: what the key does not see is not there (404).
Documents come in as uploads alone; no route reads a path of the server's.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.ask import Part, ask
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.documents.blocks import Box, Place
from tinyseek.knowledge.files import hash_of
from tinyseek.knowledge.index.base import Filters, StoredChunk, StoredDocument
from tinyseek.knowledge.pages import page_picture
from tinyseek.knowledge.plain import plain_chunk, plain_document, plain_hit, plain_part, plain_progress, plain_reply
from tinyseek.knowledge.rerank import reranker
from tinyseek.knowledge.shelf import FIRST
from tinyseek.knowledge.tables.rooms import available
from tinyseek.serve import kb_uploads
from tinyseek.serve import kb_wire as wire
from tinyseek.serve.chat import messages_of
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.kb_served import ServedKnowledge, key_of, link, model_name
from tinyseek.serve.replies import ERRORS
from tinyseek.serve.streaming import DONE, event, stream
from tinyseek.serve.wire import JsonRoute

_STREAMED: dict[str, Any] = {"text/event-stream": {"schema": {}}}  # events with names and JSON data
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_LARGEST_SCALE = 4.0
Tags = list[str]


def routes(served: ServedKnowledge) -> APIRouter:
    """Every route below /v1/kb."""
    router = APIRouter()
    router.include_router(_collections(served))
    router.include_router(_documents(served))
    router.include_router(kb_uploads.routes(served))
    router.include_router(_passages(served))
    router.include_router(_questions(served))
    if available():
        from tinyseek.serve import kb_desk

        router.include_router(kb_desk.routes(served))
    return router


# ---- collections -----------------------------------------------------------------------------------------------------------------


def _collections(served: ServedKnowledge) -> APIRouter:
    router = APIRouter(prefix="/v1/kb", route_class=JsonRoute, responses=ERRORS, tags=["knowledge base"])

    @router.get("/collections", responses={200: {"model": wire.CollectionList}})
    async def collections(request: Request) -> Response:
        """The collections that this key sees."""
        found = []
        for name in await served.call(served.collections, request):
            found.append(await served.call(_collection, await served.base(request, name)))
        return json_response({"data": found})

    @router.post("/collections", status_code=201, responses={201: {"model": wire.CollectionReply}})
    async def make(body: wire.CollectionRequest, request: Request) -> Response:
        """A new collection."""
        served.check_writable()
        base = await served.call(served.shelf.make, key_of(request), body.name)
        return json_response(await served.call(_collection, base), 201)

    @router.delete("/collections/{name}", responses={200: {"model": wire.RemovedReply}})
    async def delete(name: str, request: Request) -> Response:
        """Delete a collection for good, with what was uploaded to it."""
        served.check_writable()
        await served.base(request, name)
        await served.call(served.shelf.delete, key_of(request), name)
        return json_response({"removed": name})

    return router


def _collection(base: KnowledgeBase) -> dict[str, Any]:
    documents, chunks = base.index.count()
    return {
        "name": base.collection,
        "documents": documents,
        "passages": chunks,
        "embedder": base.index.embedder(),
        "model": model_name(base.collection),
    }


# ---- documents -------------------------------------------------------------------------------------------------------------------


def _documents(served: ServedKnowledge) -> APIRouter:
    router = APIRouter(prefix="/v1/kb", route_class=JsonRoute, responses=ERRORS, tags=["knowledge base"])

    async def found(request: Request, collection: str, document: int) -> tuple[KnowledgeBase, StoredDocument]:
        base = await served.base(request, collection)
        return base, await served.call(_document, base, document)

    @router.get("/documents", responses={200: {"model": wire.DocumentList}})
    async def documents(
        request: Request,
        collection: str = FIRST,
        name: str | None = None,
        folder: str | None = None,
        tag: Tags = Query([]),  # noqa: B008
        kind: str | None = None,
        offset: int = Query(0, ge=0, lt=1 << 31),
        limit: int = Query(1000, ge=1, le=10_000),
    ) -> Response:
        """What is in a collection, by name; `name` is a pattern (report*.pdf)."""
        base = await served.base(request, collection)
        filters = Filters(
            names=(name,) if name else (),
            folders=(folder,) if folder else (),
            tags=tuple(tag),
            kinds=(kind,) if kind else (),
        )
        all_of = await served.call(base.documents, filters)
        page = [plain_document(document) for document in all_of[offset : offset + limit]]
        return json_response({"data": page, "total": len(all_of)})

    @router.get("/documents/{document}", responses={200: {"model": wire.DocumentReply}})
    async def document(document: int, request: Request, collection: str = FIRST) -> Response:
        """One document."""
        _, one = await found(request, collection, document)
        return json_response(plain_document(one))

    @router.patch("/documents/{document}", responses={200: {"model": wire.DocumentReply}})
    async def tags(body: wire.TagsRequest, document: int, request: Request, collection: str = FIRST) -> Response:
        """Give a document these tags, and no others."""
        served.check_writable()
        base, _ = await found(request, collection, document)
        return json_response(plain_document(await served.call(base.set_tags, document, body.tags)))

    @router.delete("/documents/{document}", responses={200: {"model": wire.RemovedReply}})
    async def remove(document: int, request: Request, collection: str = FIRST) -> Response:
        """Forget a document; an upload is deleted, a file of a folder stays where it is."""
        served.check_writable()
        base, one = await found(request, collection, document)
        await served.call(base.remove, [document])
        return json_response({"removed": one.name})

    @router.post("/documents/{document}/read", responses={200: {"model": wire.ProgressReply}})
    async def read_again(document: int, request: Request, collection: str = FIRST) -> Response:
        """Read a document's file anew."""
        served.check_writable()
        base, _ = await found(request, collection, document)
        return json_response(plain_progress(await served.call(base.read_again, document)))

    @router.get("/documents/{document}/chunks", responses={200: {"model": wire.ChunkList}})
    async def chunks(
        document: int,
        request: Request,
        collection: str = FIRST,
        page: int | None = Query(None, ge=1, lt=1 << 31),
        offset: int = Query(0, ge=0, lt=1 << 31),
        limit: int = Query(100, ge=1, le=1000),
    ) -> Response:
        """A document's passages in order; those of one page alone, where it has pages."""
        base, _ = await found(request, collection, document)
        all_of = await served.call(base.chunks_of, document)
        if page is not None:
            all_of = [stored for stored in all_of if any(place.page == page for place in stored.chunk.places)]
        shown = [plain_chunk(stored) for stored in all_of[offset : offset + limit]]
        return json_response({"data": shown, "total": len(all_of)})

    @router.get("/documents/{document}/pages/{page}.png", responses=_PICTURE)
    async def picture(
        document: int,
        page: int,
        request: Request,
        collection: str = FIRST,
        chunk: int | None = Query(None, ge=0, lt=1 << 62, description="mark this passage"),
        box: Tags = Query([], max_length=64, description="mark left,top,right,bottom, in points"),  # noqa: B008
        scale: float = Query(1.5, ge=0.2, le=_LARGEST_SCALE, description="pixels a point"),
    ) -> Response:
        """A page of a PDF as a picture, with a passage, or boxes, marked."""
        base, one = await found(request, collection, document)
        places = [Place(page=page, boxes=tuple(_box(text) for text in box))] if box else []
        if chunk is not None:
            places += (await served.call(_chunk, base, chunk, document)).chunk.places
        try:
            png = await served.call(page_picture, served.shelf.render_page, one, page, places, scale)
        except UserError as error:
            raise ApiError(404, str(error), code="no_page") from None
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @router.get("/documents/{document}/file", responses=_BYTES)
    async def file(document: int, request: Request, collection: str = FIRST) -> Response:
        """The file itself, as long as it is what was read."""
        _, one = await found(request, collection, document)
        path = Path(one.source)
        try:
            same = await served.call(hash_of, path) == one.sha256
        except OSError:
            same = False
        if not same:
            raise ApiError(404, f"{one.name}: its file has changed, or is gone", code="file_changed")
        kind = mimetypes.guess_type(one.name)[0] or "application/octet-stream"
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name)}",  # never a page of ours
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        return FileResponse(path, headers=headers, media_type=kind)

    return router


def _document(base: KnowledgeBase, document: int) -> StoredDocument:
    try:
        return base.document(document)
    except (UserError, OverflowError):
        raise ApiError(404, f"there is no document {document} in this collection", code="document_not_found") from None


def _chunk(base: KnowledgeBase, chunk: int, document: int | None = None) -> StoredChunk:
    found = base.index.chunks([chunk])
    if not found or (document is not None and found[0].document != document):
        raise ApiError(404, f"there is no passage {chunk} there any more: its file has changed", code="chunk_not_found")
    return found[0]


def _box(text: str) -> Box:
    try:
        left, top, right, bottom = (float(edge) for edge in text[:80].split(","))
    except ValueError:
        raise refused(f"box={text[:40]}: give left,top,right,bottom in points", "box") from None
    if not all(-1e5 < edge < 1e5 for edge in (left, top, right, bottom)):
        raise refused(f"box={text[:40]}: lies on no page", "box")
    return left, top, right, bottom


# ---- passages --------------------------------------------------------------------------------------------------------------------


def _passages(served: ServedKnowledge) -> APIRouter:
    router = APIRouter(prefix="/v1/kb", route_class=JsonRoute, responses=ERRORS, tags=["knowledge base"])

    @router.get("/chunks/{chunk}", responses={200: {"model": wire.ChunkReply}})
    async def chunk(chunk: int, request: Request, collection: str = FIRST) -> Response:
        """One passage."""
        base = await served.base(request, collection)
        return json_response(plain_chunk(await served.call(_chunk, base, chunk)))

    @router.patch("/chunks/{chunk}", responses={200: {"model": wire.ChunkReply}})
    async def correct(body: wire.CorrectionRequest, chunk: int, request: Request, collection: str = FIRST) -> Response:
        """Replace a passage's text by a better one; it stays so when its file is read again."""
        served.check_writable()
        base = await served.base(request, collection)
        await served.call(_chunk, base, chunk)
        return json_response(plain_chunk(await served.call(base.correct, chunk, body.text)))

    return router


# ---- questions -------------------------------------------------------------------------------------------------------------------


def _questions(served: ServedKnowledge) -> APIRouter:
    router = APIRouter(prefix="/v1/kb", route_class=JsonRoute, responses=ERRORS, tags=["knowledge base"])

    @router.post("/search", responses={200: {"model": wire.SearchReply}})
    async def search(body: wire.SearchRequest, request: Request) -> Response:
        """The passages of your documents that say most about a question, with file and page."""
        base = await served.base(request, body.collection)
        ranked = reranker(body.rerank, served.writer())
        hits = await served.call(base.search, body.query, body.how, body.limit, body.filters.filters(), ranked)
        data = []
        for hit in hits:
            plain = await served.call(plain_hit, hit, body.context)
            data.append(plain | {"url": link(request, body.collection, hit.document, hit.chunk.chunk.places)})
        return json_response({"data": data})

    @router.post("/ask", responses={200: {"model": wire.AnswerReply, "content": _STREAMED}})
    async def answer(body: wire.AskRequest, request: Request) -> Response:
        """An answer from your documents, each sentence with its source; as events with stream=true."""
        base = await served.base(request, body.collection)
        history = messages_of(body.history, "history") if body.history else []
        parts = ask(
            base,
            body.question,
            history,
            served.writer(body.model),
            body.settings(served.settings.answers),
            body.filters.filters(),
        )
        pump = served.pump(parts, request)
        writer = PartWriter(request, body.collection)
        if body.stream:
            return await stream(pump, writer)
        last = (await pump.all())[-1]
        return json_response(writer.plain(last)[1])

    return router


class PartWriter:
    """Pieces of an answer as events: question, hits, reasoning, text, citation, and last reply."""

    def __init__(self, request: Request, collection: str) -> None:
        self._request, self._collection = request, collection

    def open(self) -> Iterator[bytes]:
        """Nothing yet."""
        return iter(())

    def write(self, item: Part) -> Iterator[bytes]:
        """A piece."""
        name, plain = self.plain(item)
        if name != "text" or plain["text"]:
            yield event(plain, name)

    def close(self) -> Iterator[bytes]:
        """The end."""
        yield DONE

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """What went wrong, and the end."""
        yield event(error.body(), "error")
        yield DONE

    def plain(self, part: Part) -> tuple[str, dict[str, Any]]:
        """A piece's name, and itself with addresses of pages."""
        name, plain = plain_part(part)
        if part.citation is not None:
            plain["url"] = link(self._request, self._collection, part.citation.document, part.citation.places)
        if part.reply is not None:
            plain = plain_reply(part.reply)
            for entry, citation in zip(plain["citations"], part.reply.citations, strict=True):
                entry["url"] = link(self._request, self._collection, citation.document, citation.places)
        return name, plain
