"""The chat page put onto a server: who visits, and what the page may do.

Who may come at all is the server's guard's business (`serve.guard`). Here a visitor is told from another by a cookie that no script
can read, and every page is sent with a content policy: scripts only from this server or with the page's one-time mark, so that
markup that slipped through every other wall could still run nothing; and nothing is loaded from elsewhere, or told to anyone.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import nicegui
from fastapi import FastAPI, Request
from nicegui import ui
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinyseek.llm.base import ChatModel
from tinyseek.studio.chat_page import ChatPage
from tinyseek.studio.options import StudioSettings
from tinyseek.studio.shared import Shared
from tinyseek.studio.words import Language, Words, preferred

COOKIE = "tinyseek_visitor"
_YEAR = 365 * 86_400
_STATIC = Path(__file__).parent / "static"
_NAME = re.compile(r"[0-9a-f]{32}")
_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" fill="#2554d6"/>'
    '<circle cx="14" cy="14" r="6.2" fill="none" stroke="#fff" stroke-width="2.6"/><circle cx="14" cy="14" r="2.3" fill="#fff"/>'
    '<path d="M18.8 18.8L25 25" stroke="#fff" stroke-width="2.8" stroke-linecap="round"/></svg>'
)


def mount(
    app: FastAPI, chat: ChatModel, settings: StudioSettings | None = None, beside: Sequence[ChatModel] = ()
) -> Shared:
    """Put the chat page on an application, at `/` and below, after all of its own routes. Once in a process: NiceGUI's own limit.

    Args:
        beside: further models that a conversation may be had with.
    Raises:
        UserError: the store of conversations cannot be opened.
    """
    shared = Shared(chat, settings or StudioSettings(), beside)
    version = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_STATIC.iterdir()))).hexdigest()[:12]

    async def page(request: Request, place: str | None = None) -> None:
        owner: str = request.state.visitor
        visitor = shared.chats.visitor(owner)
        words = Words(_language(shared, visitor.get("language"), request.headers.get("accept-language", "")))
        theme = visitor.get("theme")
        theme = theme if theme in ("light", "dark") else "auto"
        ui.add_head_html(_head(words, theme, version))
        ChatPage(shared, owner, words, theme, place)

    async def chosen(request: Request, place: str) -> None:
        await page(request, place)

    # NiceGUI looks for its server among all objects, and so into torch's old names, which complain.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.ui_run_with")
    nicegui.app.add_static_files("/_studio", _STATIC)
    nicegui.app.add_middleware(_Policy)
    nicegui.app.on_shutdown(shared.close)
    ui.page("/")(page)
    ui.page("/c/{place}")(chosen)
    ui.run_with(
        app,
        title="tinyseek",
        favicon=_FAVICON,
        dark=None,
        binding_refresh_interval=None,
        reconnect_timeout=20,
        show_welcome_message=False,
        tailwind=False,
    )
    pages = app.router.routes[-1]
    assert isinstance(pages, Mount)
    pages.app = _Gate(pages.app)
    return shared


def _language(shared: Shared, chosen: object, accepted: str) -> Language:
    """What the visitor chose, else the settings, else the browser."""
    for name in (chosen, shared.settings.language):
        if name in ("en", "zh"):
            return name
    return preferred(accepted)


def _head(words: Words, theme: str, version: str) -> str:
    """Style and script, the language, and the theme before anything is drawn."""
    copy, copied = (json.dumps(words(phrase), ensure_ascii=True) for phrase in ("Copy", "Copied"))
    lost = json.dumps([words("Connection lost."), words("Trying to reconnect …")])
    language = "en" if words.language == "en" else "zh-CN"
    return f"""
<style>:root {{ --word-copy: {_css(copy)}; --word-copied: {_css(copied)}; }}</style>
<link rel="stylesheet" href="/_studio/page.css?{version}">
<script>
  document.documentElement.lang = "{language}";
  {f'document.documentElement.dataset.theme = "{theme}";' if theme != "auto" else ""}
  addEventListener("DOMContentLoaded", () => {{
    const words = {lost};
    document.querySelectorAll("#popup span").forEach((line, number) => (line.textContent = words[number]));
  }});
</script>
<script src="/_studio/page.js?{version}"></script>
"""


def _css(quoted: str) -> str:
    """A JSON string as a CSS string."""
    return re.sub(r"\\u([0-9a-f]{4})", r"\\\1 ", quoted)


class _Gate:
    """Lets through to NiceGUI what is its own; any other path is the application's to refuse, in its own way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path not in ("/", "/favicon.ico") and not path.startswith(("/c/", "/_nicegui", "/_studio/")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            raise HTTPException(404)
        await self._app(scope, receive, send)


class _Policy:
    """ASGI middleware around the pages: the visitor's cookie, and the content policy with its one-time mark."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(("/_", "/favicon")):
            await self._app(scope, receive, send)
            return
        known = Request(scope).cookies.get(COOKIE, "")
        visitor = known if _NAME.fullmatch(known) else secrets.token_hex(16)
        # The store knows a visitor by a hash, so that reading the store opens no one's page.
        scope.setdefault("state", {})["visitor"] = hashlib.sha256(visitor.encode()).hexdigest()[:32]
        mark = secrets.token_urlsafe(16)
        start: Message | None = None
        body = b""

        async def answer(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            assert start is not None
            headers = MutableHeaders(raw=start["headers"])
            if headers.get("content-type", "").startswith("text/html"):
                body = body.replace(b"<script", f'<script nonce="{mark}"'.encode())
                headers["content-length"] = str(len(body))
                headers["content-security-policy"] = _policy(mark)
                headers["cache-control"] = "no-store"
                secure = "; Secure" if scope["scheme"] == "https" else ""
                headers.append(
                    "set-cookie", f"{COOKIE}={visitor}; Path=/; Max-Age={_YEAR}; HttpOnly; SameSite=Lax{secure}"
                )
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, answer)


def _policy(mark: str) -> str:
    """NiceGUI compiles templates in the browser, hence 'unsafe-eval'; markup cannot reach it, inline handlers stay forbidden."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{mark}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; font-src 'self';"
        " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
