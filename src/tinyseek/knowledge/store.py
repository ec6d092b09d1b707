"""A store of conversations: one SQLite file with a versioned schema, shared by threads and processes, written whole or not at all.

Every write is a transaction in a write-ahead log, so that a process that is killed leaves what was there before; readers never wait
for writers. What cannot be opened or written is told in a line.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyseek.errors import UserError

_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000")
_MADE = re.compile(r"CREATE TABLE (\w+)")
_OWN = frozenset({"sqlite_sequence", "sqlite_stat1"})  # tables that SQLite makes itself


class Store:
    """One file. Every method may be called from any thread."""

    def __init__(self, file: Path, schema: str, version: int, hint: str = "") -> None:
        """Open the store, or make it.

        Args:
            schema: statements that make an empty store, each ended by a semicolon.
            version: of the schema.
            hint: what to do where the file cannot be written.
        Raises:
            UserError: the file cannot be written, is no such store, or a newer one.
        """
        self.file = file
        self._lock = threading.RLock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made before SQLite does, so that no one else on the machine may read what is said here.
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}){hint}") from None
        except sqlite3.Error as error:
            raise UserError(f"{file}: no store of conversations ({error}); move it away") from None
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare(schema, version)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, schema: str, version: int) -> None:
        try:
            self._is_new(schema, version)  # before anything is written: a foreign file stays as it is
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            with self.write() as db:
                if self._is_new(schema, version):
                    for statement in schema.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {version}")
        except sqlite3.Error as error:
            raise UserError(f"{self.file}: no store of conversations ({error}); move it away") from None

    def _is_new(self, schema: str, version: int) -> bool:
        """Whether the file is empty.

        Raises:
            UserError: it is a newer store, or none of ours.
        """
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - _OWN
        if found > version:
            raise UserError(f"{self.file}: was written by a newer tinyseek (version {found} of the store)")
        missing = [name for name in _MADE.findall(schema) if name not in tables]
        if (found and missing) or (tables and not found):
            what = f"no table {missing[0]}" if found else f"it has the tables {', '.join(sorted(tables)[:3])}"
            raise UserError(f"{self.file}: no store of conversations ({what}); move it away")
        return not found

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is kept, or nothing.

        Raises:
            UserError: the disk is full, or the file cannot be written any more.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # SQLite rolls back by itself where the disk is full
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                why = _unwritable(error)
                if why is None:
                    raise
                raise UserError(f"{self.file}: cannot be written ({why})") from None

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def close(self) -> None:
        """Fold the log into the file."""
        with self._lock:
            self._db.close()


def like(word: str) -> str:
    """A word as a pattern of LIKE with `ESCAPE '\\'`: whatever holds it."""
    return "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


_UNWRITABLE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_IOERR: "the disk does not answer",
    sqlite3.SQLITE_BUSY: "another process is writing to it",
}


def _unwritable(error: sqlite3.OperationalError) -> str | None:
    """Why a file cannot be written, if that is what went wrong."""
    return _UNWRITABLE.get((error.sqlite_errorcode or 0) & 0xFF)
