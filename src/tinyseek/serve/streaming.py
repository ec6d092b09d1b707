"""An answer on its way: waiting for it with a time limit, while listening whether the client is still there.

A Pump moves what an answer yields into a list, from where it is taken in batches: what arrived together is sent together, and no
task or timer is made for each token. The first batch is taken before anything is sent, so that what goes wrong at the start has an
HTTP status of its own; what goes wrong later is told in the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinyseek.serve.errors import ApiError, ClientGoneError, as_api_error, fault, to_json
from tinyseek.serve.metrics import Metrics

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """A server-sent event of JSON."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + to_json(data) + b"\n\n"


class Pump(Generic[T]):
    """Reads `source` in a task of its own; iterating gives what has arrived, or [] after `beat` seconds of silence.

    The iteration raises what the source raised, `ClientGoneError` at once when the client hangs up, and an ApiError 504 when the
    answer takes longer than `limit` seconds. Closing it cancels the source.

    Attributes:
        started: when, by time.perf_counter().
        first: seconds until the first item; none before it.
    """

    def __init__(
        self, source: AsyncIterator[T], receive: Receive, metrics: Metrics, *, beat: float, limit: float
    ) -> None:
        self.started = time.perf_counter()
        self.first: float | None = None
        self.metrics = metrics
        self._source, self._beat = source, beat
        self._items: list[T] = []
        self._ended: BaseException | None = None  # told after the items
        self._broken: ApiError | None = None  # told before them
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._alarm = self._loop.call_later(limit, self._late, limit)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch(receive))]

    async def _read(self) -> None:
        try:
            async for item in self._source:
                if self.first is None:
                    self.first = time.perf_counter() - self.started
                    self.metrics.first_token(self.first)
                self._items.append(item)
                self._wake.set()
            self._ended = StopAsyncIteration()
        except Exception as error:
            self._ended = error
        self._wake.set()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._broken = ClientGoneError()
        self._wake.set()

    def _late(self, limit: float) -> None:
        self._broken = ApiError(504, f"the answer was not complete within {limit:g} s and was cancelled")
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        if not (self._items or self._ended or self._broken):
            beat = self._loop.call_later(self._beat, self._wake.set)
            await self._wake.wait()
            beat.cancel()
        self._wake.clear()
        if self._broken:
            raise self._broken
        if self._items:
            items, self._items = self._items, []
            return items
        if self._ended:
            raise self._ended
        return []

    async def close(self) -> None:
        """Stop reading, and cancel what is read."""
        self._alarm.cancel()
        if self.first is not None:
            self.metrics.took(time.perf_counter() - self.started)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = getattr(self._source, "aclose", None)
        if closing is not None:
            with contextlib.suppress(Exception):
                await closing()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def all(self) -> list[T]:
        """Everything, when it is complete."""
        async with self:
            return [item async for items in self for item in items]


class Writer(Protocol[Item]):
    """How a stream is written: what comes first, each item, what comes last, and what comes when it breaks off."""

    def open(self) -> Iterable[bytes]: ...
    def write(self, item: Item) -> Iterable[bytes]: ...
    def close(self) -> Iterable[bytes]: ...
    def fail(self, error: ApiError) -> Iterable[bytes]: ...


class StreamResponse(Response, Generic[T]):
    """A streamed answer, whose first items are there. Use `stream`."""

    def __init__(self, pump: Pump[T], first: list[T], writer: Writer[T], media_type: str, beat: bytes) -> None:
        self._pump, self._first, self._writer, self._beat = pump, first, writer, beat
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (the pump receives)
        """Send it."""

        async def push(body: bytes, more: bool = True) -> None:
            if body or not more:
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await push(b"".join(self._writer.open()) + self._written(self._first))
            try:
                async for items in self._pump:
                    await push(self._written(items) if items else self._beat)
                await push(b"".join(self._writer.close()))
            except ClientGoneError:
                self._pump.metrics.broken(499)
                return
            except (Exception, asyncio.CancelledError) as error:
                known = _told(error)
                self._pump.metrics.broken(known.status_code)
                await push(b"".join(self._writer.fail(known)))
            await push(b"", more=False)
        finally:
            await self._pump.close()

    def _written(self, items: list[T]) -> bytes:
        return b"".join(part for item in items for part in self._writer.write(item))


def _told(error: BaseException) -> ApiError:
    """What to tell of it in the stream."""
    if isinstance(error, asyncio.CancelledError):
        return ApiError(503, "the server is stopping")
    return as_api_error(error) or fault(error, "an answer on its way")


async def stream(
    pump: Pump[T],
    writer: Writer[T],
    media_type: str = "text/event-stream",
    beat: bytes = b": keep-alive\n\n",
) -> Response:
    """A streamed answer.

    Args:
        pump: the answer. It is closed here, or by the response.
        writer: how it is written.
        media_type: of the stream.
        beat: what to write when nothing has come for a while.
    Raises:
        Exception: what went wrong before anything was sent.
    """
    try:
        try:
            first = await anext(pump)
        except StopAsyncIteration:
            first = []
    except BaseException:
        await pump.close()
        raise
    return StreamResponse(pump, first, writer, media_type, beat)
