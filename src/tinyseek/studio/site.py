"""What all pages of a server stand on: style and script, the visitor's cookie, the content policy, and NiceGUI beneath them.

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
from pathlib import Path

import nicegui
from fastapi import FastAPI, Request
from nicegui import ui
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinyseek.studio import sockets
from tinyseek.studio.chats import Chats
from tinyseek.studio.options import StudioSettings
from tinyseek.studio.words import Language, Words, preferred

COOKIE = "tinyseek_visitor"
_YEAR = 365 * 86_400
_STATIC = Path(__file__).parent / "static"
_NAME = re.compile(r"[0-9a-f]{32}")
_OURS = ("/c/", "/kb/", "/_nicegui", "/_studio/")
_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" fill="#2554d6"/>'
    '<circle cx="14" cy="14" r="6.2" fill="none" stroke="#fff" stroke-width="2.6"/><circle cx="14" cy="14" r="2.3" fill="#fff"/>'
    '<path d="M18.8 18.8L25 25" stroke="#fff" stroke-width="2.8" stroke-linecap="round"/></svg>'
)


def version() -> str:
    """Of style and script, for their addresses: browsers keep them until it changes."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_STATIC.iterdir()))).hexdigest()[:12]


def run(app: FastAPI) -> None:
    """Put the pages that were declared on an application, after all of its own routes. Once in a process: NiceGUI's own limit."""
    # NiceGUI looks for its server among all objects, and so into torch's old names, which complain.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.ui_run_with")
    nicegui.app.add_static_files("/_studio", _STATIC)
    nicegui.app.add_middleware(_Policy)
    sockets.bind()
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


def begin(
    request: Request, visitors: Chats, settings: StudioSettings, version: str, also: str = ""
) -> tuple[str, Words, str]:
    """Begin a page: its head, in the visitor's language and theme.

    Args:
        also: further style and script, by the name of both files.
    Returns:
        Who visits, their words and theme.
    """
    owner: str = request.state.visitor
    visitor = visitors.visitor(owner)
    words = Words(_language(settings, visitor.get("language"), request.headers.get("accept-language", "")))
    theme = visitor.get("theme")
    theme = theme if theme in ("light", "dark") else "auto"
    ui.add_head_html(_head(words, theme, version, also))
    return owner, words, theme


def _language(settings: StudioSettings, chosen: object, accepted: str) -> Language:
    """What the visitor chose, else the settings, else the browser."""
    for name in (chosen, settings.language):
        if name in ("en", "zh"):
            return name
    return preferred(accepted)


def _head(words: Words, theme: str, version: str, also: str) -> str:
    """Style and script, the language, and the theme before anything is drawn."""
    copy, copied = (json.dumps(words(phrase), ensure_ascii=True) for phrase in ("Copy", "Copied"))
    lost = json.dumps([words("Connection lost."), words("Trying to reconnect …")])
    language = "en" if words.language == "en" else "zh-CN"
    names = ["page", also] if also else ["page"]
    links = "\n".join(f'<link rel="stylesheet" href="/_studio/{name}.css?{version}">' for name in names)
    scripts = "\n".join(f'<script src="/_studio/{name}.js?{version}"></script>' for name in names)
    return f"""
<style>:root {{ --word-copy: {_css(copy)}; --word-copied: {_css(copied)}; }}</style>
{links}
<script>
  document.documentElement.lang = "{language}";
  {f'document.documentElement.dataset.theme = "{theme}";' if theme != "auto" else ""}
  addEventListener("DOMContentLoaded", () => {{
    const words = {lost};
    document.querySelectorAll("#popup span").forEach((line, number) => (line.textContent = words[number]));
  }});
</script>
{scripts}
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
        if path not in ("/", "/kb", "/favicon.ico") and not path.startswith(_OURS):
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
                if not _is_page(message):  # a picture, a file: as it comes
                    await send(message)
                return
            assert start is not None
            if not _is_page(start):
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(raw=start["headers"])
            body = body.replace(b"<script", f'<script nonce="{mark}"'.encode())
            headers["content-length"] = str(len(body))
            headers["content-security-policy"] = _policy(mark)
            headers["cache-control"] = "no-store"
            secure = "; Secure" if scope["scheme"] == "https" else ""
            headers.append("set-cookie", f"{COOKIE}={visitor}; Path=/; Max-Age={_YEAR}; HttpOnly; SameSite=Lax{secure}")
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, answer)


def _is_page(start: Message) -> bool:
    return MutableHeaders(raw=start["headers"]).get("content-type", "").startswith("text/html")


def _policy(mark: str) -> str:
    """NiceGUI compiles templates in the browser, hence 'unsafe-eval'; markup cannot reach it, inline handlers stay forbidden."""
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{mark}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; font-src 'self';"
        " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
