"""A browser, and the chat page served in a process of its own: by a door that is open, and by one that wants a key."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("studio")
    log, ports = folder / "log.txt", [_free_port(), _free_port()]
    program = Path(__file__).parents[1] / "fake_chat.py"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(program), *map(str, ports), str(folder)],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)},
        )
    addresses = dict(zip(("open", "locked"), ports, strict=True))
    try:
        yield {name: Served(f"http://127.0.0.1:{port}", process, log) for name, port in addresses.items()}
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="session")
def server(servers: dict[str, Served]) -> Served:
    servers["open"].wait()
    return servers["open"]


@pytest.fixture(scope="session")
def locked(servers: dict[str, Served]) -> Served:
    servers["locked"].wait()
    return servers["locked"]


@pytest.fixture(scope="module")
def browser(servers: dict[str, Served]) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright (the dev extra)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the page's tests need a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


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


_USUAL = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "reduced_motion": "reduce"}


@pytest.fixture(scope="module")
def usual(browser: Any) -> Any:
    """A browser context for whoever comes first: it keeps the page's scripts, and forgets who came before."""
    return browser.new_context(**_USUAL)


@pytest.fixture
def visit(browser: Any, server: Served, usual: Any) -> Iterator[Any]:
    """Makes visitors; at the end none of them may have met an error, or a request to anywhere else."""
    visitors: list[Visitor] = []

    def come(**how: Any) -> Visitor:
        first = not how and all(visitor.context is not usual for visitor in visitors)
        if first:
            usual.clear_cookies()
        visitors.append(Visitor(server, usual if first else browser.new_context(**{**_USUAL, **how})))
        return visitors[-1]

    yield come
    for visitor in visitors:
        for page in visitor.context.pages:
            page.close()
        if visitor.context is not usual:
            visitor.context.close()
    log = server.log.read_text()
    assert "Traceback" not in log, log
    assert [trouble for visitor in visitors for trouble in visitor.troubles] == []
