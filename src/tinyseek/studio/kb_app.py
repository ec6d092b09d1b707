"""The knowledge page put onto a server: its addresses, the pictures of pages, the pieces of uploads.

What is asked for is looked up among the collections of the API key that came with the request; no path is made of what is asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from pathlib import Path
from typing import Any

import nicegui
from fastapi import FastAPI, Request
from nicegui import ui
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from tinyseek.errors import UserError
from tinyseek.knowledge.files import upload_name
from tinyseek.knowledge.shelf import Shelf
from tinyseek.knowledge.uploads import check_size, sweep
from tinyseek.serve.options import LOOPBACK_NAMES
from tinyseek.studio import site
from tinyseek.studio.chats import Chats
from tinyseek.studio.kb_desk import Desk, source_of
from tinyseek.studio.kb_page import Address, KbPage
from tinyseek.studio.options import StudioSettings

_UPLOAD = re.compile(r"[0-9a-f]{32}")
_LARGEST_PIECE = 4_000_000  # bytes
_PICTURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def mount_kb(app: FastAPI, shelf: Shelf, settings: StudioSettings | None = None) -> Desk:
    """Put the knowledge page alone on an application, where there is no chat page: at `/kb`, to which `/` leads.

    Once in a process: NiceGUI's own limit.

    Raises:
        UserError: the store of what was asked cannot be opened.
    """
    settings = settings or StudioSettings()
    visitors = Chats(settings.folder() / "chats.db")

    async def home() -> Response:
        return RedirectResponse("/kb", 303)

    nicegui.app.add_api_route("/", home, methods=["GET"])
    nicegui.app.on_shutdown(visitors.close)
    desk = declare(shelf, visitors, settings, with_chat=False)
    site.run(app)
    return desk


def declare(shelf: Shelf, visitors: Chats, settings: StudioSettings, with_chat: bool) -> Desk:
    """Declare the knowledge page and its routes to NiceGUI, which is put on an application later.

    Raises:
        UserError: the store of what was asked cannot be opened.
    """
    desk = Desk(shelf, visitors, settings, with_chat)
    version = site.version()

    async def page(
        request: Request,
        collection: str | None = None,
        place: str | None = None,
        document: int | None = None,
        chunk: int | None = None,
        page: int | None = None,
    ) -> None:
        visitor, words, theme = site.begin(request, visitors, settings, version, "kb")
        address = Address(collection, place, document, chunk, page)
        shown = KbPage(desk, visitor, key_of(request), words, theme, is_here(request), address)
        await shown.begin()

    async def first(request: Request) -> None:
        await page(request)

    async def chosen(
        request: Request,
        collection: str,
        document: int | None = None,
        chunk: int | None = None,
        page: int | None = None,
    ) -> None:
        await show(request, collection, None, document, chunk, page)

    async def asked(request: Request, place: str) -> None:
        await page(request, None, place)

    show = page
    nicegui.app.on_shutdown(desk.close)
    ui.page("/kb", title="tinyseek")(first)
    ui.page("/kb/in/{collection}", title="tinyseek")(chosen)
    ui.page("/kb/c/{place}", title="tinyseek")(asked)
    routes = _Routes(desk)
    nicegui.app.add_api_route("/kb/pages/{collection}/{document}/{page}", routes.page, methods=["GET"])
    nicegui.app.add_api_route("/kb/pictures/{collection}/{document}", routes.picture, methods=["GET"])
    nicegui.app.add_api_route("/kb/files/{collection}/{document}", routes.file, methods=["GET"])
    nicegui.app.add_api_route("/kb/upload/{collection}", routes.upload, methods=["POST"])
    return desk


def key_of(request: Request) -> bytes:
    """The API key that let this request in; b"" where the server has none."""
    key = request.scope.get("tinyseek.key", b"")
    return key if isinstance(key, bytes) else b""


def is_here(request: Request) -> bool:
    """Whether who asks sits at this machine: by address and by name, and nothing was passed on for someone else."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        near = ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
    return near and (request.url.hostname or "").strip("[]").lower() in LOOPBACK_NAMES


class _Routes:
    """What the page fetches beside its web socket."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: Request, collection: str, document: int, page: int, scale: float = 2.0) -> Response:
        """A page of a PDF as a picture. Its address carries the file's hash, so browsers may keep it."""
        scale = min(max(scale, 0.5), 4.0)

        def rendered() -> bytes:
            stored = self._desk.shelf.base(key_of(request), collection).document(document)
            if stored.kind != "pdf":
                raise UserError(f"{stored.name}: is no PDF")
            return self._desk.shelf.render_page(source_of(stored), page, scale)

        return await _answer(rendered, "image/png")

    async def picture(self, request: Request, collection: str, document: int) -> Response:
        """A picture that is a document itself."""

        def found() -> tuple[Path, str]:
            stored = self._desk.shelf.base(key_of(request), collection).document(document)
            file = source_of(stored)
            with file.open("rb") as stream:
                head = stream.read(16)
            kind = next((kind for mark, kind in _PICTURES.items() if head.startswith(mark)), None)
            if stored.kind != "image" or kind is None:
                raise UserError(f"{stored.name}: is no picture that a browser shows")
            return file, kind

        try:
            file, kind = await asyncio.to_thread(found)
        except (UserError, OSError) as error:
            return _refused(404, error)
        return FileResponse(file, media_type=kind, headers=_KEEP)

    async def file(self, request: Request, collection: str, document: int) -> Response:
        """A document's file, to be saved: never shown, whatever is in it."""

        def found() -> tuple[Path, str]:
            stored = self._desk.shelf.base(key_of(request), collection).document(document)
            return source_of(stored), Path(stored.name).name

        try:
            file, name = await asyncio.to_thread(found)
        except UserError as error:
            return _refused(404, error)
        return FileResponse(file, media_type="application/octet-stream", filename=name, headers=_PRIVATE)

    async def upload(
        self, request: Request, collection: str, upload: str, name: str, at: int, size: int
    ) -> JSONResponse:
        """A piece of an upload; with the last one the file is whole, and is brought in.

        Args:
            upload: made up by the page, 32 hexadecimal digits.
            at: where the piece begins.
            size: of the whole file, bytes.
        """
        try:
            piece = await request.body()
        except (HTTPException, ExceptionGroup) as error:  # the guard's, which NiceGUI's layers put into a group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if not isinstance(error, HTTPException):
                raise
            return JSONResponse({"error": str(error.detail)}, error.status_code, headers=_PRIVATE)
        key, visitor = key_of(request), str(request.state.visitor)

        def take() -> tuple[int, int]:
            base = self._desk.shelf.base(key, collection)
            if not _UPLOAD.fullmatch(upload) or len(piece) > _LARGEST_PIECE or at < 0 or at + len(piece) > size:
                raise UserError(f"{name[:200]}: the upload is no upload")
            upload_name(name)
            check_size(name, size, base.settings.limits.file_mb)
            file = base.folder / "incoming" / f"{visitor}-{upload}"
            there = _append(file, at, piece)
            if there < size:
                return 200 if there == at + len(piece) else 409, there
            self._desk.intake(key, collection).upload(_whole(file), name)
            return 200, size

        try:
            status, there = await asyncio.to_thread(take)
        except (UserError, OSError) as error:
            return _refused(400, error)
        return JSONResponse({"next": there}, status)


_PRIVATE = {"cache-control": "private, no-store", "x-content-type-options": "nosniff"}
_KEEP = {"cache-control": "private, max-age=86400", "x-content-type-options": "nosniff"}


async def _answer(make: Any, kind: str) -> Response:
    try:
        return Response(await asyncio.to_thread(make), media_type=kind, headers=_KEEP)
    except UserError as error:
        return _refused(404, error)


def _refused(status: int, error: Exception) -> JSONResponse:
    why = str(error) if isinstance(error, UserError) else f"cannot be written ({getattr(error, 'strerror', '')})"
    return JSONResponse({"error": why}, status, headers=_PRIVATE)


def _append(file: Path, at: int, piece: bytes) -> int:
    """Add a piece to a file if that is where the file ends. Returns where it ends now."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if at == 0:
        sweep(file.parent)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end == at:
            end += stream.write(piece)
        return end


def _whole(file: Path) -> Path:
    """Under another name, so that a piece sent twice adds nothing."""
    return file.rename(file.with_name(f"{file.name}.whole"))
