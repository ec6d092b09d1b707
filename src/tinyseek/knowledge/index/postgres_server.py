"""A collection's place on a PostgreSQL server: its tables, its connections, and the server's errors as what a user can do.

Every change is a transaction that holds the collection's own row, so that writers come one after the other and readers are never
kept waiting.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

from tinyseek.errors import UserError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import DictRow, dict_row
except ImportError:
    raise UserError("an index on PostgreSQL needs psycopg: pip install 'tinyseek[postgres]'") from None

Row = DictRow
Connection = psycopg.Connection[Row]
_VERSION = 1
_IDLE = 4  # connections kept
_COMMON = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS tinyseek;
CREATE TABLE IF NOT EXISTS tinyseek.collections (
    id serial PRIMARY KEY, name text NOT NULL UNIQUE, version int NOT NULL, embedder jsonb, revision bigint NOT NULL DEFAULT 0,
    documents bigint NOT NULL DEFAULT 0, chunks bigint NOT NULL DEFAULT 0, words bigint NOT NULL DEFAULT 0,
    graph bool NOT NULL DEFAULT false
);
"""
_TABLES = """
CREATE TABLE tinyseek.documents_{n} (
    id bigserial PRIMARY KEY, source text NOT NULL UNIQUE, name text NOT NULL, sha256 text NOT NULL, size bigint NOT NULL,
    kind text NOT NULL, folder text NOT NULL, modified float8 NOT NULL, added float8 NOT NULL, title text NOT NULL,
    author text NOT NULL, date text NOT NULL, pages int, language text NOT NULL, tags text NOT NULL, notes text NOT NULL,
    details text NOT NULL, chunks int NOT NULL
);
CREATE INDEX ON tinyseek.documents_{n} (sha256);
CREATE INDEX ON tinyseek.documents_{n} (name);
CREATE TABLE tinyseek.chunks_{n} (
    id bigserial PRIMARY KEY, document bigint NOT NULL, number int NOT NULL, section int NOT NULL, kind text NOT NULL,
    text text NOT NULL, path text NOT NULL, places text NOT NULL, tokens int NOT NULL, overlap int NOT NULL,
    corrected int NOT NULL, original text NOT NULL, UNIQUE (document, number)
);
CREATE TABLE tinyseek.vectors_{n} (
    chunk bigint PRIMARY KEY, document bigint NOT NULL, first int NOT NULL, last int NOT NULL, vector vector NOT NULL
);
ALTER TABLE tinyseek.vectors_{n} ALTER COLUMN vector SET STORAGE plain;
CREATE INDEX ON tinyseek.vectors_{n} (document);
CREATE TABLE tinyseek.terms_{n} (id serial PRIMARY KEY, term text NOT NULL UNIQUE, chunks int NOT NULL);
CREATE TABLE tinyseek.postings_{n} (
    term int NOT NULL, chunk bigint NOT NULL, count int NOT NULL, length int NOT NULL, PRIMARY KEY (term, chunk)
);
CREATE INDEX ON tinyseek.postings_{n} (chunk);
"""
_KINDS_OF_TABLE = ("documents", "chunks", "vectors", "terms", "postings")


class Server:
    """One collection on a server. Safe to use from several threads.

    Attributes:
        number: the collection's, by which its tables are called.
    """

    def __init__(self, where: str, collection: str, wait_seconds: float) -> None:
        """Connect, and make the collection if it is not there.

        Raises:
            UserError: no such server, or it has no pgvector, or may not be written.
        """
        self._where, self._name, self._wait_seconds = where, collection, wait_seconds
        self._pooling = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        try:
            conninfo_to_dict(where)
        except psycopg.Error:
            raise UserError("index.where: is no address of a server; write postgresql://user@host/database") from None
        with self._told(), self._connected() as db:
            self.number = self._prepared(db)

    def _prepared(self, db: Connection) -> int:
        """The collection's number, its tables made."""
        with db.transaction():
            # One at a time: of two that make the same schema at once one would fail.
            db.execute("SELECT pg_advisory_xact_lock(hashtext('tinyseek'))")
            if db.execute("SELECT to_regclass('tinyseek.collections') AS there").fetchone() == {"there": None}:
                db.execute(_sql(_COMMON))
            row = db.execute("SELECT id, version FROM tinyseek.collections WHERE name = %s", (self._name,)).fetchone()
            if row is None:
                made = "INSERT INTO tinyseek.collections (name, version) VALUES (%s, %s) RETURNING id, version"
                row = db.execute(made, (self._name, _VERSION)).fetchone()
                assert row is not None
                db.execute(_sql(_TABLES.format(n=row["id"])))
        if row["version"] < _VERSION:
            raise UserError(
                f"{self.shown}: was written by an older tinyseek; drop the collection and add the documents again"
            )
        if row["version"] > _VERSION:
            raise UserError(f"{self.shown}: was written by a newer tinyseek (version {row['version']} of the index)")
        return int(row["id"])

    @property
    def shown(self) -> str:
        """The server and collection, without a password."""
        return f"{_shown(self._where)}, collection {self._name}"

    # ---- connections ----

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise UserError(f"{self.shown}: {self._meaning(error)}") from error

    def _meaning(self, error: psycopg.Error) -> str:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return f"another has been writing for {self._wait_seconds:g} s; try again when it is done"
        if isinstance(error, psycopg.errors.DiskFull):
            return "no space left on the server's disk; nothing was half-written: free some and run the same again"
        if isinstance(error, psycopg.errors.UndefinedFile | psycopg.errors.FeatureNotSupported):
            return f"the server has no pgvector ({line}); install it there (Debian: postgresql-NN-pgvector)"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return f"this user may not do that ({line}); pgvector is installed by: CREATE EXTENSION vector"
        if isinstance(error, psycopg.errors.UndefinedColumn):
            return (
                f"was written by another version of tinyseek ({line}); drop the collection and add the documents again"
            )
        if isinstance(error, psycopg.errors.UndefinedTable):
            return "the collection was deleted meanwhile"
        if isinstance(error, psycopg.OperationalError):
            return f"the server does not answer ({line})"
        raise error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection; one that an error hit is not used again."""
        if self._closed:
            raise UserError(f"{self.shown}: is closed")
        with self._pooling:
            db = self._idle.pop() if self._idle else None
        if db is None:
            db = psycopg.connect(self._where, autocommit=True, row_factory=dict_row, connect_timeout=10)
            db.execute("SELECT set_config('lock_timeout', %s, false)", (str(int(self._wait_seconds * 1000)),))
        keep = False
        try:
            yield db
            keep = not db.closed
        except UserError:
            keep = not db.closed
            raise
        finally:
            with self._pooling:
                keep = keep and not self._closed and len(self._idle) < _IDLE
                if keep:
                    self._idle.append(db)
            if not keep:
                db.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, alone in this collection."""
        with self._told(), self._connected() as db, db.transaction():
            held = db.execute("SELECT id FROM tinyseek.collections WHERE id = %s FOR UPDATE", (self.number,)).fetchone()
            if held is None:
                raise UserError(f"{self.shown}: the collection was deleted meanwhile")
            yield db

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A view of one moment."""
        with self._told(), self._connected() as db, db.transaction():
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield db

    def close(self) -> None:
        """End the connections."""
        with self._pooling:
            self._closed = True
            for db in self._idle:
                db.close()
            self._idle.clear()

    def own(self, query: str) -> LiteralString:
        """A query with this collection's tables, which are numbered: {chunks} is tinyseek.chunks_7."""
        for kind in _KINDS_OF_TABLE:
            query = query.replace("{" + kind + "}", f"tinyseek.{kind}_{self.number}")
        return _sql(query)

    def all(self, db: Connection, query: str, *values: Any) -> list[Row]:
        return db.execute(self.own(query), values).fetchall()

    def many(self, db: Connection, query: str, rows: Sequence[Sequence[Any]]) -> None:
        with db.cursor() as cursor, cursor.copy(self.own(query)) as copy:
            for row in rows:
                copy.write_row(row)


def collections(where: str) -> list[str]:
    """The collections on a server, by name.

    Raises:
        UserError: it does not answer.
    """
    with _on_server(where) as db:
        if db.execute("SELECT to_regclass('tinyseek.collections') AS there").fetchone() == {"there": None}:
            return []
        return sorted(row["name"] for row in db.execute("SELECT name FROM tinyseek.collections"))


def delete_collection(where: str, name: str) -> None:
    """Delete a collection's tables, all at once."""
    with _on_server(where) as db, db.transaction():
        row = db.execute("DELETE FROM tinyseek.collections WHERE name = %s RETURNING id", (name,)).fetchone()
        if row is not None:
            for kind in _KINDS_OF_TABLE:
                db.execute(_sql(f"DROP TABLE IF EXISTS tinyseek.{kind}_{row['id']}"))


@contextlib.contextmanager
def _on_server(where: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(where, autocommit=True, row_factory=dict_row, connect_timeout=10) as db:
            yield db
    except psycopg.Error as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_shown(where)}: the server does not answer ({line})") from None


def _shown(where: str) -> str:
    """A server without its password."""
    try:
        known = conninfo_to_dict(where)
    except psycopg.Error:
        return "the address of the PostgreSQL server"
    return f"PostgreSQL at {known.get('host') or 'this computer'}, database {known.get('dbname') or 'of its user'}"


def _sql(query: str) -> LiteralString:
    """A query that is put together here, of this file's text and whole numbers alone."""
    return query  # mypy takes LiteralString for str
