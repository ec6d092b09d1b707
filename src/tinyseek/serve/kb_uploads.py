"""Documents that come in over HTTP: files of a form, or one as the body. They go to the disk as they come, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile

from tinyseek.errors import UserError
from tinyseek.knowledge.base import KnowledgeBase, checked_tags
from tinyseek.knowledge.files import upload_name
from tinyseek.knowledge.ingest import Progress
from tinyseek.knowledge.plain import plain_progress
from tinyseek.knowledge.shelf import FIRST
from tinyseek.knowledge.uploads import PIECE, Incoming
from tinyseek.serve import kb_wire as wire
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.kb_served import ServedKnowledge
from tinyseek.serve.replies import ERRORS
from tinyseek.serve.streaming import DONE, event, stream

_STREAMED: dict[str, Any] = {"text/event-stream": {"schema": {}}}  # events with names and JSON data
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "collection": {"type": "string"},
                        "tag": {"type": "array", "items": {"type": "string"}},
                    },
                    "required": ["file"],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_MOST_FILES, _MOST_FIELDS = 100, 100
Tags = list[str]


def routes(served: ServedKnowledge) -> APIRouter:
    """POST /v1/kb/documents."""
    router = APIRouter(prefix="/v1/kb", responses=ERRORS, tags=["knowledge base"])

    @router.post(
        "/documents", responses={200: {"model": wire.UploadReply, "content": _STREAMED}}, openapi_extra=_UPLOAD
    )
    async def upload(
        request: Request,
        collection: str | None = None,
        name: str | None = Query(None, max_length=400, description="of a file whose bytes are the body"),
        tag: Tags = Query([], max_length=100),  # noqa: B008
        stream_: bool = Query(False, alias="stream", description="tell of each file as it is done, as events"),
    ) -> Response:
        """Add documents: files of a form (curl -F file=@report.pdf), or one file as the body, with ?name=report.pdf."""
        served.check_writable()
        if _is_form(request):
            files, fields = await _files(request, name)
            try:
                base = await served.base(request, collection or next(iter(fields.get("collection", ())), FIRST))
                tags = checked_tags([*tag, *fields.get("tag", ())])
            except BaseException:
                _close(files)
                raise
            pump = served.pump(_added(base, files, tags), request)
        else:
            base, tags = await served.base(request, collection or FIRST), checked_tags(tag)
            held = await _body(served, base, request, name)
            pump = served.pump(_added_one(base, held, name or "", tags), request)
        if stream_:
            return await stream(pump, _ProgressWriter())
        return json_response({"data": [plain_progress(one) for one in await pump.all()]})

    return router


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _files(request: Request, name: str | None) -> tuple[list[tuple[str, UploadFile]], dict[str, list[str]]]:
    """The files of a form with their names, and its other fields. What is large of them lies on the disk, as it came."""
    form = await request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS)
    files: list[tuple[str, UploadFile]] = []
    fields: dict[str, list[str]] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append((value.filename or name or "", value))
        else:
            fields.setdefault(key, []).append(value)
    if not files:
        raise refused("the form has no file; send one as its field file", "file")
    return files, fields


async def _body(served: ServedKnowledge, base: KnowledgeBase, request: Request, name: str | None) -> Incoming:
    """The body of a request, taken to a file as it comes."""
    if not name:
        raise refused(
            "send a form with a file (curl -F file=@report.pdf), or a file as the body with ?name=report.pdf", "name"
        )
    upload_name(name)
    incoming = await served.call(base.incoming, name)
    waiting, wrong = bytearray(), None
    try:
        async for piece in request.stream():
            waiting += piece if wrong is None else b""  # who is still sending would not hear what is wrong
            if len(waiting) >= PIECE:
                try:
                    await served.call(incoming.write, bytes(waiting))
                except UserError as error:
                    wrong = error
                waiting.clear()
        if wrong is not None:
            raise wrong
        await served.call(incoming.write, bytes(waiting))
    except BaseException:
        incoming.close()
        raise
    return incoming


def _added_one(base: KnowledgeBase, incoming: Incoming, name: str, tags: Sequence[str]) -> Iterator[Progress]:
    """The file that was the body of a request, added."""
    with incoming:
        one = base.add_file(incoming.path, name, tags)
    yield Progress(one.file, one.outcome, one.why, one.chunks, 1, 1, one.document)


def _added(base: KnowledgeBase, files: list[tuple[str, UploadFile]], tags: Sequence[str]) -> Iterator[Progress]:
    """Each file of a form added; one that cannot be is a line, and the others go on."""
    try:
        for number, (name, held) in enumerate(files, 1):
            try:
                upload_name(name)
                with base.incoming(name) as incoming:
                    incoming.write_all(held.file)
                    one = base.add_file(incoming.path, name, tags)
            except UserError as error:
                if len(files) == 1:
                    raise
                one = Progress(name, "failed", str(error).removeprefix(f"{name}: "))
            yield Progress(one.file, one.outcome, one.why, one.chunks, number, len(files), one.document)
    finally:
        _close(files)


def _close(files: list[tuple[str, UploadFile]]) -> None:
    for _, held in files:
        held.file.close()


class _ProgressWriter:
    """What became of files, as events."""

    def open(self) -> Iterator[bytes]:
        return iter(())

    def write(self, item: Progress) -> Iterator[bytes]:
        yield event(plain_progress(item), "progress")

    def close(self) -> Iterator[bytes]:
        yield DONE

    def fail(self, error: ApiError) -> Iterator[bytes]:
        yield event(error.body(), "error")
        yield DONE
