"""Listening: the socket, the patience with slow clients, and the end.

uvicorn waits for ever for the head of a request, and for a client that does not read its answer. The protocol here does not: one
timer a connection, set while a head is coming in and while the client takes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinyseek.errors import UserError
from tinyseek.serve.options import ServeSettings

_KEEP_ALIVE_SECONDS = 15  # an idle connection; more than the 5 s after which clients' pools let go of theirs


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens at the settings' address. Who connects before the model is loaded waits for it.

    Raises:
        UserError: the port is taken, may not be used, or the address is not this computer's.
    """
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise UserError(f"host={settings.host}: no such address") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        place = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"{place} is in use by another program; choose another port, for example port={settings.port + 1}"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(
                f"{place}: ports below 1024 are the administrator's; choose another, for example port=8000"
            ) from None
        raise UserError(f"{place}: cannot listen there ({error.strerror})") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """`http://host:port` of a bound socket, as one would type it."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a time limit for the head of a request and for a client that does not read."""

    read_seconds: float = 30.0
    write_seconds: float = 60.0

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause as soon as the client does not keep up with us
        self._reading = self.loop.call_later(self.read_seconds, self._cut)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or self.transport.get_protocol() is not self:
            self._stop_reading()  # the head is complete; the guard watches the body
        elif self._reading is None and self._between_requests():
            self._reading = self.loop.call_later(self.read_seconds, self._cut)

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.write_seconds, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_reading()
        self.resume_writing()
        super().connection_lost(error)

    def _cut(self) -> None:
        self.transport.abort()


def serve(app: ASGIApp, settings: ServeSettings, bound: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then take nothing new, let what runs end within `drain_seconds`, cancel the rest.

    A second Ctrl-C ends it at once.
    """
    server = make_server(app, settings)
    with _calm_signals():
        server.run([bound])


def make_server(app: ASGIApp, settings: ServeSettings) -> uvicorn.Server:
    """A uvicorn server as ours must be."""
    protocol = type(
        "Protocol",
        (PatientProtocol,),
        {"read_seconds": settings.read_seconds, "write_seconds": settings.write_seconds},
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
    )


@contextlib.contextmanager
def _calm_signals() -> Iterator[None]:
    """uvicorn repeats the signal that stopped it; here that is no reason to die of it."""

    def ignore(number: int, frame: FrameType | None) -> None:
        """The server has ended by itself."""

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
