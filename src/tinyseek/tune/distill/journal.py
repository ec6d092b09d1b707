"""An append-only file of answers, one a line: what has come is kept, whenever the process dies.

A line is written whole and handed to the system at once, so that a killed process loses nothing; it is forced onto the disk itself
every second or so, for the sake of a power cut. A last line that was cut short is taken away before more is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tinyseek.errors import UserError

_SYNC_EVERY = 1.0  # seconds


class Journal:
    """Records by appending. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open a journal to go on with, or begin one.

        Raises:
            UserError: it cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            cut = whole_bytes(path)
            self._file: IO[bytes] = path.open("ab")
            self._file.truncate(cut)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self._synced = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            UserError: the disk takes no more.
        """
        line = json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_EVERY:
                self.sync()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); what came before is kept. Make room and run again"
            ) from None

    def sync(self) -> None:
        """Put all onto the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
        finally:
            self._file.close()


def whole_bytes(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        at = stream.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - (1 << 16))
            stream.seek(start)
            found = stream.read(at - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            at = start
    return 0


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal or of any file of JSON lines; what is cut short or damaged is left out."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and line.endswith(b"\n"):
                yield record
