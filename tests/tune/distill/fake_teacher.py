"""An OpenAI-compatible server whose answers a test decides, request by request."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]  # status, JSON body, headers


@dataclass
class Asked:
    """A request that came."""

    at: float
    body: dict[str, Any]
    key: str
    status: int

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass
class FakeTeacher:
    """What was asked, and where."""

    answer: Callable[[dict[str, Any], int], Reply]  # the request's body, and how often its question came before
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def given(self) -> list[Asked]:
        """The requests that were answered."""
        return [one for one in self.asked if one.status == 200]


def said(
    content: str | None,
    finish: str = "stop",
    reasoning: str = "",
    tokens: int = 10,
    prompt: int = 20,
    seconds: float = 0.0,
) -> Reply:
    """A whole completion."""
    time.sleep(seconds)
    message = {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}, {}


def trouble(status: int, message: str = "no", **headers: str) -> Reply:
    """A refusal by status."""
    return status, {"error": {"message": message}}, {name.replace("_", "-"): value for name, value in headers.items()}


@contextlib.contextmanager
def fake_teacher(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[FakeTeacher]:
    """A running server."""
    teacher = FakeTeacher(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "wise"}]}, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            with teacher.lock:
                before = sum(one.body["messages"] == body["messages"] for one in teacher.asked)
                asked = Asked(time.monotonic(), body, key, 0)
                teacher.asked.append(asked)
                teacher.under_way += 1
                teacher.most_under_way = max(teacher.most_under_way, teacher.under_way)
            status, reply, headers = teacher.answer(body, before)
            with teacher.lock:
                teacher.under_way -= 1
            with contextlib.suppress(OSError):
                self._send(status, reply, headers)
                asked.status = status

        def _send(self, status: int, reply: Any, headers: dict[str, str]) -> None:
            data = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client was killed."""

    server = Quiet(("127.0.0.1", 0), Handler)
    teacher.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
