"""The process with the tables, from outside: it is started, asked, watched and ended here.

A question that takes too long, or a file that swells, costs that process its life and nothing else: the next question starts
another, without the file. The child gets none of our environment's secrets.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.limits import DEFAULT, Limits
from tinyseek.knowledge.tables.options import TableSettings
from tinyseek.knowledge.tables.schema import Result, TableInfo

_GRACE = 5.0  # seconds beyond a query's own limit until its process is ended
_DEAD_BEFORE = 0.3  # a process that ends sooner than this did not die of the question
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "SYSTEMROOT",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "HOME",
)


@dataclass(frozen=True)
class SheetFile:
    """A file with tables: where it lies, and what it is called in answers."""

    path: Path
    name: str
    document: int = 0  # its id in the collection
    sha256: str = ""


class QueryError(UserError):
    """A query that was refused or failed, in a line that says why."""


@dataclass
class Loaded:
    """What was read."""

    tables: list[TableInfo] = field(default_factory=list)
    failed: list[tuple[SheetFile, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class TableRoom:
    """The tables of some files, ready to be asked. One question at a time; safe to call from several threads."""

    def __init__(
        self, files: Sequence[SheetFile], settings: TableSettings | None = None, limits: Limits = DEFAULT
    ) -> None:
        """Read the files, each under its own limits.

        Raises:
            UserError: too many files.
        """
        settings = settings or TableSettings()
        if len(files) > settings.files:
            raise UserError(
                f"{len(files)} files with tables; at most {settings.files} are loaded at once: name a folder, a tag or files"
            )
        self.settings, self._limits = settings, limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._buffer = b""
        self._files = list(files)
        self._failed: list[tuple[SheetFile, str]] = []
        with self._lock:
            self.loaded = self._load()

    @property
    def tables(self) -> list[TableInfo]:
        """What there is to ask."""
        return self.loaded.tables

    def run(self, sql: str) -> Result:
        """A query's result.

        Raises:
            QueryError: it is not one SELECT over these tables, is wrong, or took too much.
        """
        with self._lock:
            said = self._asked_alive({"do": "run", "sql": sql})
        if said is None or said.get("slow"):
            raise QueryError(
                f"the query took more than {self.settings.seconds:g} s (seconds) or too much memory, and was stopped"
            )
        if "result" not in said:
            raise QueryError(said.get("refused") or said["failed"])
        return Result.read(said["result"])

    def mentions(self, question: str) -> list[tuple[str, str, str]]:
        """The texts of cells that stand in a question, longest first: table, column, text."""
        with self._lock:
            said = self._asked_alive({"do": "mentions", "question": question[:2000]})
        return [(table, column, text) for table, column, text in (said or {}).get("mentions", [])]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the process ----

    def _asked_alive(self, what: dict[str, Any]) -> dict[str, Any] | None:
        """Ask the process, or if it died meanwhile another one."""
        for _ in range(2):
            if self._process is None or self._process.poll() is not None:
                self.loaded = self._load()
            began = time.monotonic()
            said = self._asked(what, self.settings.seconds + _GRACE)
            if said is not None or time.monotonic() - began > _DEAD_BEFORE:
                break
        return said

    def _load(self) -> Loaded:
        """Read all files; one that ends the process is left out, and the others are read again without it."""
        while True:
            self._start()
            said, at = self._read_all()
            if said is not None:
                failed = [(self._files[index], why) for index, why in said["failed"]]
                tables = [TableInfo.read(table) for table in said["tables"]]
                return Loaded(tables, [*self._failed, *failed], said["notes"])
            if at is None:
                raise RuntimeError(f"the process for tables did not start: {self._last_words()}")
            bad = self._files.pop(at)
            most = f"{self.settings.load_seconds:g} s (load_seconds) or {self.settings.memory_mb:,} MB (memory_mb)"
            why = f"reading it took more than {most}; it was given up"
            self._failed.append((bad, why))
            self._end()

    def _read_all(self) -> tuple[dict[str, Any] | None, int | None]:
        """What was said when all was read; or none, and which file it died of."""
        files = [
            {"path": str(file.path.absolute()), "name": file.name, "document": file.document} for file in self._files
        ]
        at = None
        said = self._asked({"do": "load", "files": files}, self.settings.load_seconds)
        while said is not None and "at" in said:
            at = said["at"]
            said = self._line(self.settings.load_seconds)
        return said, at

    def _start(self) -> None:
        self._end()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tinyseek.knowledge.tables.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        self._buffer = b""
        bounds = self.settings.model_dump(include={"seconds", "memory_mb", "rows", "cells", "sample_rows"})
        self._tell(bounds | {"file": self._limits.model_dump(mode="json")})

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, self._complaints):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:
                        continue

    def _last_words(self) -> str:
        if self._complaints is None:
            return ""
        self._complaints.seek(0)
        return self._complaints.read()[-600:].decode(errors="replace").strip()

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()
        except OSError:  # it is gone; the answer that does not come says so
            return

    def _asked(self, what: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        self._tell(what)
        return self._line(seconds)

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """The next line that the process says; none if it says none in time, and then it is no more."""
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        pipe = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = until - time.monotonic()
                part = os.read(pipe, 1 << 16) if left > 0 and selector.select(left) else b""
                if not part:
                    self._process.kill()
                    self._process.wait()
                    return None
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
