"""The SQLite file of an index: its tables, its connections, and its errors as what a user can do.

Every change is one transaction in write-ahead logging: readers go on with what was there, a killed writer leaves nothing, a second
writer waits.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.index.postings import TABLE

_VERSION = 1
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE totals (documents INTEGER NOT NULL, chunks INTEGER NOT NULL, words INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0, 0);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL UNIQUE, name TEXT NOT NULL, sha256 TEXT NOT NULL,
    size INTEGER NOT NULL, kind TEXT NOT NULL, folder TEXT NOT NULL, modified REAL NOT NULL, added REAL NOT NULL,
    title TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, pages INTEGER, language TEXT NOT NULL,
    tags TEXT NOT NULL, notes TEXT NOT NULL, details TEXT NOT NULL, chunks INTEGER NOT NULL
);
CREATE INDEX documents_by_content ON documents (sha256);
CREATE INDEX documents_by_name ON documents (name);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, number INTEGER NOT NULL, section INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL, path TEXT NOT NULL, places TEXT NOT NULL, tokens INTEGER NOT NULL,
    overlap INTEGER NOT NULL, corrected INTEGER NOT NULL, original TEXT NOT NULL
);
CREATE UNIQUE INDEX chunks_of_document ON chunks (document, number);
CREATE TABLE vectors (
    chunk INTEGER PRIMARY KEY, document INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    words INTEGER NOT NULL, vector BLOB NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "ascii tokenchars '.'", columnsize = 0);
CREATE TABLE terms (term TEXT PRIMARY KEY, chunks INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE changes (
    revision INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL
);
"""
_IDLE = 4  # connections kept for reading


class IndexFile:
    """One file. Safe to use from several threads.

    Attributes:
        file: where it is.
        writer: the connection that writes; `write` alone uses it.
    """

    def __init__(self, file: Path, wait_seconds: float) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it cannot be written, is damaged or no such index, or of another version.
        """
        self.file, self._wait_seconds = file, wait_seconds
        self._writing, self._pooling = threading.RLock(), threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with self._told():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made before SQLite does, so that no one else on the machine may read what is in it.
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self.writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self.writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.file, timeout=self._wait_seconds, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-8000", "trusted_schema=OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(TABLE)
        return db

    def _prepare(self) -> None:
        version = self.writer.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise UserError(f"{self.file}: was written by a newer tinyseek (version {version} of the index)")
        if version == 0:
            with self.write() as db:
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise UserError(f"{self.file}: is a database of another program; choose another folder")
                    for statement in _SCHEMA.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {_VERSION}")
        missing = _columns_of_schema() - _columns(self.writer)
        if missing:
            raise UserError(
                f"{self.file}: was written by another version of tinyseek (it has no {min(missing)}); move it away and add the "
                f"documents again; what was uploaded lies in {self.file.parent / 'files'}"
            )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as what a user can do."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written ({error.strerror}); choose another folder") from None
        except sqlite3.Error as error:
            raise UserError(f"{self.file}: {self._meaning(error)}") from error

    def _meaning(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return f"another process has been writing for {self._wait_seconds:g} s; try again when it is done"
        if code == sqlite3.SQLITE_FULL:
            return "no space left on its disk; nothing was half-written: free some and run the same again"
        if code == sqlite3.SQLITE_IOERR:
            return f"cannot be read or written ({error}): is its disk full or gone? What was there before is whole"
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return f"cannot be written ({error}); see its permissions"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return f"is damaged, or no index ({error}); move it away and add the documents again"
        if isinstance(error, sqlite3.ProgrammingError) and self._closed:
            return "is closed"
        raise error

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone."""
        with self._writing, self._told():
            db = self.writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A view of one moment."""
        if self._closed:
            raise UserError(f"{self.file}: is closed")
        with self._told():
            with self._pooling:
                db = self._idle.pop() if self._idle else None
            db = db or self._connect()
            keep = False
            try:
                db.execute("BEGIN")
                yield db
                db.execute("COMMIT")
                keep = True
            finally:
                with self._pooling:
                    keep = keep and len(self._idle) < _IDLE and not self._closed
                    if keep:
                        self._idle.append(db)
                if not keep:
                    db.close()

    def close(self) -> None:
        """Fold the log into the file."""
        with self._writing, self._pooling:
            self._closed = True
            for db in (*self._idle, self.writer):
                db.close()
            self._idle.clear()


@lru_cache(maxsize=1)
def _columns_of_schema() -> frozenset[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_SCHEMA)
        return _columns(db)


def _columns(db: sqlite3.Connection) -> frozenset[str]:
    """All columns of all tables, as `table.column`."""
    found = (
        "SELECT m.name || '.' || c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'table'"
    )
    return frozenset(name for (name,) in db.execute(found).fetchall())
