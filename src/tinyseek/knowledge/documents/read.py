"""A file to a document, whatever kind it is: in a worker process, under limits, with one clear line when it cannot be read.

read_document(Path("report.pdf"))
with Readers(processes=2) as readers:
    for file, read in readers.read(files): ...   # a Document or a UserError for each
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import select
import signal
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psutil

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import wire
from tinyseek.knowledge.documents.blocks import Box, Document
from tinyseek.knowledge.documents.limits import DEFAULT, Limits

_LOOK = 0.2  # seconds between two looks at a worker's memory
_KEPT = (1 << 20) // 4  # bytes for each megabyte of the limit: a worker that has grown beyond is not kept
_AHEAD = 8  # files read ahead for each process


def read_document(file: Path, limits: Limits = DEFAULT, name: str | None = None) -> Document:
    """Read one file.

    Args:
        name: what to call it in errors, and whose ending tells its kind where the content does not; else the file's own.
    Raises:
        UserError: it is not there, of no known kind, damaged, encrypted, too large, or takes too long: one line.
    """
    with Readers(1, limits) as readers:
        return readers.one(file, name)


class Readers:
    """A few worker processes, kept warm, that read files. Safe to use from several threads."""

    def __init__(self, processes: int = 2, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="reader")
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(processes)]
        self._processes = processes
        for worker in self._all:
            self._workers.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a file that is being read is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.close()
        self._threads.shutdown(wait=True)

    def one(self, file: Path, name: str | None = None) -> Document:
        """Read one file, as `read_document` does."""
        check_file(file, name or str(file), self._limits)
        request = {"do": "parse", "file": str(file.absolute()), "name": name or file.name}
        return wire.read_document(self._ask(request, name or str(file))["document"])

    def read(self, files: Iterable[Path | tuple[Path, str]]) -> Iterator[tuple[Path, Document | UserError]]:
        """Read many files, each in a process of its own, and give them in their order, some read ahead.

        Args:
            files: paths, or paths with what to call them.
        """
        waiting: deque[tuple[Path, Future[Document]]] = deque()
        try:
            for entry in files:
                file, name = entry if isinstance(entry, tuple) else (entry, None)
                waiting.append((file, self._threads.submit(self.one, file, name)))
                if len(waiting) >= _AHEAD * self._processes:
                    yield _outcome(*waiting.popleft())
            while waiting:
                yield _outcome(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def render_page(self, file: Path, page: int, scale: float = 1.5) -> bytes:
        """A page of a PDF as PNG.

        Args:
            page: from 1.
            scale: pixels a point.
        Raises:
            UserError: there is no such page, or the file cannot be read.
        """
        check_file(file, str(file), self._limits)
        request = {"do": "render", "file": str(file.absolute()), "name": file.name, "page": page, "scale": scale}
        return base64.b64decode(self._ask(request, str(file))["png"])

    def find_text(self, file: Path, page: int, text: str, near: Sequence[Box] = ()) -> tuple[Box, ...]:
        """Where a text stands on a page of a PDF, a box a line; none where it is not found.

        Args:
            page: from 1.
            near: only what touches these, if there are any.
        Raises:
            UserError: there is no such page, or the file cannot be read.
        """
        check_file(file, str(file), self._limits)
        request = {
            "do": "find",
            "file": str(file.absolute()),
            "name": file.name,
            "page": page,
            "text": text,
            "near": near,
        }
        return tuple((a, b, c, d) for a, b, c, d in self._ask(request, str(file))["boxes"])

    def _ask(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        worker = self._workers.get()
        try:
            said = worker.ask(request, self._limits)
        finally:
            self._workers.put(worker)
        if "error" in said:
            raise UserError(f"{name}: {said['error']}")
        return said


def check_file(file: Path, name: str, limits: Limits) -> None:
    """See that a file is there, is a plain file that may be read, and is not too large, without reading it.

    Raises:
        UserError: it is not.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(
            f"{name}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{name}: is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no plain file'}")
    if not os.access(file, os.R_OK):
        raise UserError(f"{name}: may not be read; see its permissions")
    if found.st_size == 0:
        raise UserError(f"{name}: is empty")
    if found.st_size > limits.file_mb * 1e6:
        most = f"{limits.file_mb:,.0f} MB"
        raise UserError(
            f"{name}: is {found.st_size / 1e6:,.0f} MB, more than {most}; split it, or raise limits.file_mb"
        )


def _outcome(file: Path, future: Future[Document]) -> tuple[Path, Document | UserError]:
    try:
        return file, future.result()
    except UserError as error:
        return file, error


class _Worker:
    """One worker process: begun when it is first asked, ended when it does not obey, begun anew after that."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()

    def ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """What the process says to a request; {"error": ...} too when it says nothing any more."""
        line = (
            json.dumps(request | {"limits": limits.plain()}).encode() + b"\n"
        )  # ASCII: names that are no UTF-8 come through
        said, why = None, "cannot be read: no process for it can be begun"
        for _ in range(2):  # again if it had died, or gone home, between two files: not this one's fault
            process = self._begun()
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:
                self._end()
                continue
            try:
                said, why = self._listen(process, limits)
            except (OSError, ValueError):  # closed meanwhile, by another thread
                return {"error": "reading was stopped"}
            if said is not None or process.returncode != 0:
                break
        if said is None:
            self._end()
            return {"error": why}
        answer: dict[str, Any] = json.loads(said)
        if answer.get("end") or _memory_of(process.pid) > limits.memory_mb * _KEPT:
            self._end()  # what one file has used is not the next one's burden
        return answer

    def _begun(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise UserError("reading was stopped")
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "tinyseek.knowledge.documents.worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _listen(self, process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes | None, str]:
        """The line that the process says, or None and why there is none."""
        assert process.stdout is not None
        stream = process.stdout.fileno()
        end = time.monotonic() + limits.seconds
        parts: list[bytes] = []
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return None, f"takes longer than {limits.seconds:g} s; split it, or raise limits.seconds"
            if select.select([stream], [], [], min(left, _LOOK))[0]:
                part = os.read(stream, 1 << 20)
                if not part:
                    return None, self._died(process, limits)
                parts.append(part)
                if part.endswith(b"\n"):  # JSON has no other
                    return b"".join(parts), ""
            elif _memory_of(process.pid) > limits.memory_mb << 20:
                return None, f"needs more than {limits.memory_mb:,} MB of memory; split it, or raise limits.memory_mb"

    def _died(self, process: subprocess.Popen[bytes], limits: Limits) -> str:
        status = process.wait()
        if self._closed:
            return "reading was stopped"
        if status == -signal.SIGXCPU:
            return f"takes more than {limits.cpu_seconds:g} s of computing; split it, or raise limits.cpu_seconds"
        if status == -signal.SIGABRT:  # how pdfium ends where no memory is left
            return (
                f"is damaged, or needs more than {limits.memory_mb:,} MB of memory; split it, or raise limits.memory_mb"
            )
        return f"is damaged: the process that read it ended (status {status})"


def _memory_of(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
