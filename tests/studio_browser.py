"""A server in a process of its own, and someone who visits it with a browser."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

USUAL = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "reduced_motion": "reduce"}


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        port = int(self.url.rsplit(":", 1)[1])
        for _ in range(1800):  # however busy the machine is
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


def free_port() -> int:
    """A port that no one listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Visitor:
    """Someone with a browser of their own, and what went wrong in it."""

    server: Served
    context: Any
    troubles: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> Any:
        page = self.context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda line: self.troubles.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", self._requested)
        page.goto(self.server.url + path)
        page.wait_for_selector("#ask:focus, #ask")
        page.wait_for_function("window.did_handshake")
        return page

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.server.url, self.server.url.replace("http", "ws"), "data:")):
            self.troubles.append(f"request: {request.url}")


class Reader(Visitor):
    """Someone with the knowledge page open."""

    def open(self, path: str = "/kb") -> Any:
        return super().open(path)


def ask(page: Any, text: str, wait: bool = True) -> None:
    """Type a question and send it; wait for the whole answer."""
    count = page.locator(".message.assistant").count()
    page.fill("#ask", text)
    page.click('[data-act="send"]')
    page.wait_for_function(f"document.querySelectorAll('.message.assistant').length > {count}")
    if wait:
        done(page)


def done(page: Any) -> None:
    """The answer is whole."""
    page.wait_for_selector(".composer:not(.busy)")
    page.wait_for_selector(".message.writing", state="detached")


def tab(page: Any, name: str) -> None:
    """Another face of the knowledge page."""
    page.click(f'.top [data-act="tab"][data-name="{name}"]')


def nothing_sticks_out(page: Any) -> None:
    """Nothing is wider than its place."""
    inside = (
        ".talk, .scroll, .tab-pane, .viewer, .viewer .head, .original, .passages, .thread, .hits, .dock, .reckoned,"
        " .chart, .fact-list, .sentences"
    )
    wide = page.evaluate(
        f"""() => [document.documentElement, ...document.querySelectorAll("{inside}")]
        .filter((at) => at.checkVisibility() && at.scrollWidth > at.clientWidth + 1).map((at) => at.className)"""
    )
    assert wide == []
