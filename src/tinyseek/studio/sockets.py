"""A page's web socket speaks for that page alone: it must carry the key that the page was opened with.

NiceGUI tells pages apart by a name that only their own HTML holds, and asks no more of what comes over a socket. Where several keys
open one server that is not enough: whoever learnt a name could click in another's page. So every message is looked at once more.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from nicegui import Client, core

_SAID = ("handshake", "event", "javascript_response", "ack", "log")  # messages that name their page
Handler = Callable[..., Any]


def bind() -> None:
    """Look at every message from now on. Once in a process."""
    handlers: dict[str, Handler] = core.sio.handlers["/"]
    handlers["connect"] = _connecting(handlers["connect"])
    for name in _SAID:
        handlers[name] = _speaking(handlers[name])


def _connecting(connect: Handler) -> Handler:
    async def checked(sid: str, environ: dict[str, Any], *rest: Any) -> Any:
        named = parse_qs(environ.get("QUERY_STRING", "")).get("client_id", [""])[0]
        if not may_speak(_scope(environ), named):
            return False  # no connection
        return await _result(connect(sid, environ, *rest))

    return checked


def _speaking(handler: Handler) -> Handler:
    async def checked(sid: str, message: Any, *rest: Any) -> Any:
        named = message.get("client_id") if isinstance(message, dict) else None
        if not isinstance(named, str) or not may_speak(_scope(core.sio.get_environ(sid) or {}), named):
            return False
        return await _result(handler(sid, message, *rest))

    return checked


def may_speak(scope: dict[str, Any], page: str) -> bool:
    """Whether a socket may speak for a page: both came with the same key. A page that is not there is nobody's."""
    client = Client.instances.get(page)
    if client is None or client.request is None:
        return True
    return bool(scope.get("tinyseek.key", b"") == client.request.scope.get("tinyseek.key", b""))


def _scope(environ: dict[str, Any]) -> dict[str, Any]:
    found = environ.get("asgi.scope")
    return found if isinstance(found, dict) else {}


async def _result(said: Awaitable[Any] | Any) -> Any:
    return await said if inspect.isawaitable(said) else said
