"""A server that says what it is told to, byte by byte, and misbehaves in any way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

# What a reply is made of: bytes to send, seconds to wait, or "hang up".
Step = bytes | float | str


def reply(status: int = 200, body: Any = None, **headers: str) -> list[Step]:
    """A whole answer, JSON unless it is text."""
    data = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"content-type: {kind}",
        f"content-length: {len(data)}",
        "connection: close",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ["\r\n".join([*lines, "", ""]).encode() + data]


def events(*chunks: Any, done: bool = True, line_end: str = "\n") -> bytes:
    """Server-sent events; a text is sent as it is."""
    lines = [
        chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks
    ]
    text = "".join([*lines, "data: [DONE]\n\n" if done else ""])
    return text.replace("\n", line_end).encode()


def stream(*steps: Step) -> list[Step]:
    """An answer in pieces."""
    return [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n", *steps]


def chunk(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """A chunk of an answer."""
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


class ToyServer:
    """Answers its n-th request with the n-th reply, and further ones with the last."""

    def __init__(self, replies: Sequence[list[Step]]) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.hung_up = threading.Event()  # a client went away while it was being answered
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            body = json.loads(data) if data else None
            self.requests.append({"method": method, "path": path, "headers": headers, "body": body})
            gone = asyncio.create_task(reader.read(1))
            for step in self.replies[min(len(self.requests), len(self.replies)) - 1]:
                if isinstance(step, bytes):
                    writer.write(step)
                    await writer.drain()
                elif isinstance(step, str):
                    writer.transport.abort()
                    return
                else:
                    await asyncio.wait([gone], timeout=step)
                if gone.done():
                    self.hung_up.set()
                    return
            gone.cancel()
        writer.close()

    async def _run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()


@contextlib.contextmanager
def toy_server(*replies: list[Step]) -> Iterator[ToyServer]:
    """A running server."""
    toy = ToyServer(replies)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(toy._run(ready, stop))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(5)
    try:
        yield toy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
