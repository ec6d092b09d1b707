"""The door: who may come in, and how much may be carried in.

A server on this computer can be reached by every web page that the same computer's browser shows. So before anything else:
the Host must be a name of ours (else a page's own name, re-bound to 127.0.0.1, would make it our origin), the Origin must be our
own (else any page could post to us), and there are no CORS headers but for origins that the settings name. Then the key, the
requests of a minute, and the body, which is counted as it comes in. All of it is plain ASGI, so it holds for streams, web sockets
and whatever else is mounted on the application.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinyseek.serve.errors import ApiError, ClientGoneError, fault
from tinyseek.serve.language import Language, preferred
from tinyseek.serve.metrics import Metrics
from tinyseek.serve.options import LOOPBACK_NAMES, ServeSettings

COOKIE = "tinyseek_page"
_API = ("/v1/", "/beta/", "/api/", "/tokenize", "/detokenize", "/tokenizer_info", "/metrics", "/openapi.json", "/mcp")
_UPLOADS = "/v1/kb/documents"
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s:@/\\\[\]]+)(:[0-9]{1,5})?")
_LINGER_BYTES, _LINGER_SECONDS = 64 << 20, 5.0
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]
        self._cookies = [page_cookie(key).encode() for key in settings.api_keys]
        self._rates: dict[bytes, _Rate] = {}
        self._most_bytes = int(settings.max_body_mb * 1e6)
        self._most_upload = int(max(settings.max_body_mb, settings.kb_upload_mb) * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        path: str = scope["path"]
        origin = headers.get("origin", "")
        foreign = bool(origin) and self._allowed_origin(origin)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    extra.setdefault(name, value)
                if foreign:
                    extra["access-control-allow-origin"] = origin
                    extra["vary"] = "Origin"
                message["headers"] = extra.raw
            await send(message)

        try:
            self._check_place(headers)
            early = self._preflight(scope, headers) if foreign else None
            early = early or self._probe(scope, headers) or self._key_to_cookie(scope)
            if early is not None:
                await early(scope, receive, answer)
            else:
                scope["tinyseek.key"] = self._check_key(scope, headers)
                self._check_rate(scope)
                upload = scope["method"] == "POST" and path == _UPLOADS
                await self._app(scope, self._counted(receive, headers, upload), answer)
        except ApiError as error:
            if status:
                raise
            await self._refusal(error, path, headers)(scope, receive, answer)
        except asyncio.CancelledError:  # the server stops and waits no longer
            if not status:
                await ApiError(503, "the server is stopping").response(path)(scope, receive, answer)
        except Exception as error:
            if status:
                raise
            await fault(error, f"{scope['method']} {path}").response(path)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._metrics.answered(str(route or "other"), status or 500)

    def _refusal(self, error: ApiError, path: str, headers: Headers) -> Response:
        if error.status_code == 401 and not path.startswith(_API) and "text/html" in headers.get("accept", ""):
            page = _key_page(preferred(headers.get("accept-language", "")))
            return Response(page, 401, {"Vary": "Accept-Language"}, media_type="text/html")
        return error.response(path)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_place(headers)
            scope["tinyseek.key"] = self._check_key(scope, headers)
        except ApiError:
            await receive()  # the connection that is asked for
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
            return
        await self._app(scope, receive, send)

    # ---- where from ----

    def _check_place(self, headers: Headers) -> None:
        """Host and Origin.

        Raises:
            ApiError: 403 for a name that is not ours, or a page that is not ours.
        """
        host = headers.get("host", "")
        if not self._allowed_host(host):
            raise ApiError(
                403,
                f'the host "{host[:80]}" is not this server; if it should be, start it with allowed_hosts=[NAME]',
                code="host",
            )
        origin = headers.get("origin")
        if origin is not None:
            same = urlsplit(origin).netloc.lower() == host.lower() and origin.startswith(("http://", "https://"))
            if not same and not self._allowed_origin(origin):
                raise ApiError(
                    403,
                    f'the page of "{origin[:80]}" may not use this server; allowed_origins=[...] names those that may',
                    code="origin",
                )
        elif (
            headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise ApiError(403, "a web page of another origin may not use this server", code="origin")

    def _allowed_host(self, host: str) -> bool:
        name = _name_of(host)
        known = {*LOOPBACK_NAMES, *(entry.lower() for entry in self._settings.allowed_hosts)}
        if name in known or name == self._settings.host.strip("[]").lower():
            return True
        try:  # an address is no name that could be bound to another one
            return bool(name) and (ipaddress.ip_address(name).is_loopback or not self._settings.is_local)
        except ValueError:
            return False

    def _allowed_origin(self, origin: str) -> bool:
        allowed = self._settings.allowed_origins
        return origin in allowed or "*" in allowed

    def _preflight(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a browser that asks whether a page of an allowed origin may send its request."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": "GET, POST, PATCH, DELETE, HEAD, OPTIONS",
                "access-control-allow-headers": headers.get(
                    "access-control-request-headers", "authorization, content-type"
                ),
                "access-control-max-age": "600",
            },
        )

    def _probe(self, scope: Scope, headers: Headers) -> Response | None:
        """`/` for what is no browser: what Ollama says there, by which its clients find it."""
        if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD") or "text/html" in headers.get("accept", ""):
            return None
        return PlainTextResponse("Ollama is running")

    # ---- who ----

    def _check_key(self, scope: Scope, headers: Headers) -> bytes:
        """The key that came with a request; b"" where none is needed.

        Raises:
            ApiError: 401.
        """
        if not self._keys or scope["path"] == "/health":
            return b""
        kind, _, given = headers.get("authorization", "").partition(" ")
        found = b""
        if kind.lower() == "bearer":
            found = _equal_one(given.strip().encode(errors="replace"), self._keys)
        elif COOKIE in headers.get("cookie", ""):
            cookie = _equal_one(_cookie(headers), self._cookies)
            found = self._keys[self._cookies.index(cookie)] if cookie else b""
        if not found:
            raise ApiError(
                401,
                "wrong API key" if given else "an API key is needed: send it as `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def _key_to_cookie(self, scope: Scope) -> Response | None:
        """`/?key=KEY` in a browser: remember the key in a cookie that no script can read, and take it out of the address."""
        if not self._keys or scope["path"] != "/" or scope["method"] != "GET" or b"key=" not in scope["query_string"]:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        key = _equal_one(given.encode(), self._keys)
        if not key:
            return None
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, page_cookie(key.decode()), httponly=True, samesite="strict", max_age=30 * 86400)
        return answer

    def _check_rate(self, scope: Scope) -> None:
        """Count a request for its key. ApiError 429 where there were too many."""
        limit = self._settings.requests_per_minute
        if limit is None or scope["method"] != "POST" or not scope["path"].startswith(_API):
            return
        wait = self._rates.setdefault(scope["tinyseek.key"], _Rate(limit)).take()
        if wait > 0:
            raise ApiError(
                429,
                f"more than {limit} requests a minute; try again in {math.ceil(wait)} s",
                headers={"Retry-After": str(math.ceil(wait))},
            )

    # ---- how much ----

    def _counted(self, receive: Receive, headers: Headers, upload: bool) -> Receive:
        """`receive` that stops at a body which is too large or too slow, without ever holding it.

        Args:
            upload: a file: it may be larger, and take long as long as it comes.
        """
        most = self._most_upload if upload else self._most_bytes
        declared = headers.get("content-length", "")
        too_large = declared.isdecimal() and int(declared[:20]) > most
        waits = "expect" in headers  # it sends nothing before we ask for it
        seen = 0
        complete = False
        deadline: float | None = None

        async def counted() -> Message:
            nonlocal seen, complete, deadline
            if complete:
                return await receive()
            if too_large and waits:
                raise self._too_large(upload)
            loop = asyncio.get_running_loop()
            if upload or deadline is None:
                deadline = loop.time() + self._settings.read_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the request did not arrive within {self._settings.read_seconds:g} s",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError()
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > most or too_large:
                if not complete:
                    await _discard(receive)
                raise self._too_large(upload)
            return message

        return counted

    def _too_large(self, upload: bool) -> ApiError:
        name, most = ("kb_upload_mb", self._most_upload) if upload else ("max_body_mb", self._most_bytes)
        return ApiError(
            413,
            f"the request is larger than {most / 1e6:g} MB, which is what the server takes ({name})",
            code="request_too_large",
            headers={"Connection": "close"},
        )


def page_cookie(key: str) -> str:
    """What a browser keeps in place of the key, from which the key cannot be found."""
    return hmac.new(key.encode(), b"tinyseek page", hashlib.sha256).hexdigest()


class _Rate:
    """A bucket that holds a minute's requests and fills evenly."""

    def __init__(self, per_minute: int) -> None:
        self._size = self._left = float(per_minute)
        self._filled = time.monotonic()

    def take(self) -> float:
        """Take one; or the seconds until there is one."""
        now = time.monotonic()
        self._left = min(self._size, self._left + (now - self._filled) * self._size / 60)
        self._filled = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) * 60 / self._size


async def _discard(receive: Receive) -> None:
    """Read on for a while and throw away: a client that is still sending when the connection closes never sees the answer."""
    seen = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while seen < _LINGER_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _name_of(host: str) -> str:
    """The name in a Host header, without the port; "" for what is no name and port."""
    found = _HOST.fullmatch(host.strip().lower())
    return found["name"].strip("[]") if found else ""


def _equal_one(given: bytes, known: list[bytes]) -> bytes:
    """The one of `known` that equals `given`, or b"". How long it takes tells nothing about them."""
    found = b""
    for key in known:
        if hmac.compare_digest(given, key):
            found = key
    return found


def _cookie(headers: Mapping[str, str]) -> bytes:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return b""
    return cookies[COOKIE].value.encode(errors="replace") if COOKIE in cookies else b""


_ASK = {"en": ("This server wants a key.", "Open"), "zh": ("这台服务器需要密钥。", "打开")}


def _key_page(language: Language) -> str:
    """Asks for the key, in a page that needs nothing else of the server."""
    text, button = _ASK[language]
    return f"""<!doctype html><html lang="{"en" if language == "en" else "zh-CN"}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>tinyseek</title>
<body style="font:16px system-ui;max-width:26em;margin:20vh auto;padding:0 1em">
<p>{text}</p>
<form method="get" action="/"><input name="key" type="password" autofocus aria-label="{text}" style="font:inherit;width:70%">
<button style="font:inherit">{button}</button></form>
"""
