"""The index in one SQLite file: documents, chunks, their words in FTS5, their vectors as rows.

Every change is one transaction in write-ahead logging: readers go on with what was there, a killed writer leaves nothing, a second
writer waits. The vectors that searches look through are a matrix in memory; a log of changed chunks in the file brings it up to
date, whoever changed them. Chunk ids grow and are never used again, so that a chunk that was found is that chunk or is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge import segment
from tinyseek.knowledge.chunks import searched
from tinyseek.knowledge.index import bm25
from tinyseek.knowledge.index.base import ALL, NEAR, Chunk, Filters, Index, StoredChunk, StoredDocument, whole
from tinyseek.knowledge.index.filters import Facts, admitted, restricts
from tinyseek.knowledge.index.postings import TABLE, Postings
from tinyseek.knowledge.index.rows import (
    CHUNK,
    CHUNK_COLUMNS,
    DOCUMENT,
    DOCUMENT_COLUMNS,
    FACTS,
    chunk_values,
    corrected,
    document_values,
    facts_of,
    pages_of,
    read_chunk,
    read_document,
    read_facts,
)
from tinyseek.knowledge.index.vectors import Matrix, pack, unpack
from tinyseek.knowledge.options import IndexSettings

DEFAULT = IndexSettings()
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
_LOG = 20_000  # changes that are kept; who missed more reads everything anew
_IDLE = 4  # connections kept for reading
_VARIABLES = 300  # rows that one statement asks for


class SqliteIndex(Index):
    """One collection in one file."""

    def __init__(self, file: Path, settings: IndexSettings = DEFAULT) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it cannot be written, is damaged or no such index, or of a newer version.
        """
        self._file, self._settings = file, settings
        self._writing, self._loading, self._pooling = threading.RLock(), threading.Lock(), threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._matrix: Matrix | None = None
        self._postings = Postings()
        self._light: tuple[int, list[Facts]] = (-1, [])
        self._closed = False
        with self._told():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made before SQLite does, so that no one else on the machine may read what is in it.
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = self._connect()
            self._prepare()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._file, timeout=self._settings.wait_seconds, isolation_level=None, check_same_thread=False
        )
        db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-8000", "trusted_schema=OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(TABLE)
        return db

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self._write() as db:
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    for statement in _SCHEMA.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {_VERSION}")
        elif version > _VERSION:
            raise UserError(f"{self._file}: was written by a newer tinyseek (version {version} of the index)")

    # ---- connections ----

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as what a user can do."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written ({error.strerror}); choose another folder") from None
        except sqlite3.Error as error:
            raise UserError(f"{self._file}: {self._meaning(error)}") from error

    def _meaning(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return f"another process has been writing for {self._settings.wait_seconds:g} s; try again when it is done"
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
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone."""
        with self._writing, self._told():
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A view of one moment."""
        if self._closed:
            raise UserError(f"{self._file}: is closed")
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
            for db in (*self._idle, self._writer):
                db.close()
            self._idle.clear()
            self._matrix = None

    # ---- writing ----

    def adopt(self, embedder: str, width: int, where: str = "") -> None:
        known = self._embedder()
        if known is None:
            with self._write() as db:
                said = json.dumps([embedder, width, where])
                db.execute("INSERT OR IGNORE INTO facts VALUES ('embedder', ?)", (said,))
            known = self._embedder()
        assert known is not None
        if known[:2] != (embedder, width):
            raise UserError(
                f"{self._file}: its vectors are of the embedder {known[0]} (width {known[1]}), not of {embedder} (width {width}); "
                "use that one, or add the documents to another collection"
            )

    def embedder(self) -> str | None:
        known = self._embedder()
        return known[2] if known else None

    def _embedder(self) -> tuple[str, int, str] | None:
        with self._read() as db:
            row = db.execute("SELECT value FROM facts WHERE name = 'embedder'").fetchone()
        if row is None:
            return None
        name, width, where = json.loads(row[0])
        return name, width, where

    def put(self, document: StoredDocument, chunks: Sequence[Chunk], vectors_NW: NDArray[np.float32]) -> int:
        if len(chunks) != len(vectors_NW):
            raise ValueError(f"{len(chunks)} chunks, {len(vectors_NW)} vectors")
        texts = [segment.words(searched(chunk, document.title)) for chunk in chunks]  # before others are kept waiting
        packed = pack(vectors_NW, self._settings.vectors)
        with self._write() as db:
            row = db.execute("SELECT id, chunks FROM documents WHERE source = ?", (document.source,)).fetchone()
            if row is not None:
                self._forget(db, row["id"])
                self._set(db, replace(document, id=row["id"], chunks=len(chunks)))
                known = int(row["id"])
            else:
                values = document_values(replace(document, chunks=len(chunks)))
                marks = ", ".join("?" * len(values))
                made = db.execute(f"INSERT INTO documents ({DOCUMENT}) VALUES (NULL, {marks})", values)
                known = int(made.lastrowid or 0)
                db.execute("UPDATE totals SET documents = documents + 1")
            self._insert(db, known, chunks, texts, packed)
        return known

    def _insert(
        self,
        db: sqlite3.Connection,
        document: int,
        chunks: Sequence[Chunk],
        texts: list[list[str]],
        packed: list[bytes],
    ) -> None:
        if not chunks:
            _log(db, "document", 0, 0)
            return
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
        first = (last[0] if last else 0) + 1
        rows = enumerate(chunks)
        db.executemany(
            f"INSERT INTO chunks ({CHUNK}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(first + number, document, number, *chunk_values(chunk)) for number, chunk in rows],
        )
        db.executemany(
            "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)",
            [(first + n, document, *pages_of(chunk), len(texts[n]), packed[n]) for n, chunk in enumerate(chunks)],
        )
        db.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)", [(first + n, " ".join(t)) for n, t in enumerate(texts)]
        )
        self._count(db, texts, 1)
        _log(db, "added", first, first + len(chunks) - 1)

    def _count(self, db: sqlite3.Connection, texts: Sequence[Sequence[str]], sign: int) -> None:
        """Words and chunks that came (1) or go (-1)."""
        counts = Counter(word for words in texts for word in set(words))
        db.executemany(
            "INSERT INTO terms VALUES (?, ?) ON CONFLICT (term) DO UPDATE SET chunks = chunks + excluded.chunks",
            [(term, sign * count) for term, count in sorted(counts.items())],
        )
        if sign < 0:
            db.executemany("DELETE FROM terms WHERE term = ? AND chunks <= 0", [(term,) for term in counts])
        db.execute(
            "UPDATE totals SET chunks = chunks + ?, words = words + ?", (sign * len(texts), sign * sum(map(len, texts)))
        )

    def _forget(self, db: sqlite3.Connection, document: int) -> None:
        """Take a document's chunks out."""
        ids = [row[0] for row in db.execute("SELECT id FROM chunks WHERE document = ? ORDER BY number", (document,))]
        if not ids:
            return
        texts = [db.execute("SELECT text FROM words WHERE rowid = ?", (i,)).fetchone()[0].split() for i in ids]
        self._count(db, texts, -1)
        db.executemany("DELETE FROM words WHERE rowid = ?", [(i,) for i in ids])
        db.executemany("DELETE FROM vectors WHERE chunk = ?", [(i,) for i in ids])
        db.execute("DELETE FROM chunks WHERE document = ?", (document,))
        _log(db, "gone", ids[0], ids[-1])

    def update(self, document: StoredDocument) -> None:
        with self._write() as db:
            row = db.execute("SELECT chunks FROM documents WHERE id = ?", (document.id,)).fetchone()
            if row is not None:
                self._set(db, replace(document, chunks=row["chunks"]))
                _log(db, "document", 0, 0)

    def _set(self, db: sqlite3.Connection, document: StoredDocument) -> None:
        changes = ", ".join(f"{name} = ?" for name in DOCUMENT_COLUMNS[1:])
        db.execute(f"UPDATE documents SET {changes} WHERE id = ?", (*document_values(document), document.id))

    def remove(self, documents: Sequence[int]) -> int:
        removed = 0
        for document in documents:  # one by one: others may write between them
            with self._write() as db:
                self._forget(db, document)
                gone = db.execute("DELETE FROM documents WHERE id = ?", (document,)).rowcount
                db.execute("UPDATE totals SET documents = documents - ?", (gone,))
                _log(db, "document", 0, 0)
                removed += gone
        return removed

    def correct(self, chunk: int, text: str, vector_W: NDArray[np.float32]) -> None:
        packed = pack(np.asarray(vector_W, np.float32)[None], self._settings.vectors)[0]
        with self._write() as db:
            row = db.execute(f"SELECT {CHUNK} FROM chunks WHERE id = ?", (chunk,)).fetchone()
            if row is None:
                raise UserError(f"there is no chunk {chunk} any more: its file has changed")
            old = read_chunk(row).chunk
            new = corrected(old, text)
            words = db.execute("SELECT text FROM words WHERE rowid = ?", (chunk,)).fetchone()[0].split()
            self._count(db, [words], -1)
            db.execute("DELETE FROM words WHERE rowid = ?", (chunk,))
            title = db.execute("SELECT title FROM documents WHERE id = ?", (row["document"],)).fetchone()[0]
            words = segment.words(searched(new, title))
            db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (chunk, " ".join(words)))
            self._count(db, [words], 1)
            changes = ", ".join(f"{name} = ?" for name in CHUNK_COLUMNS[3:])
            db.execute(f"UPDATE chunks SET {changes} WHERE id = ?", (*chunk_values(new), chunk))
            db.execute("UPDATE vectors SET vector = ?, words = ? WHERE chunk = ?", (packed, len(words), chunk))
            _log(db, "changed", chunk, chunk)

    # ---- reading ----

    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        ids = json.dumps(filters.documents)
        condition = f"id IN (SELECT value FROM json_each('{ids}'))" if filters.documents else "true"
        found = self._documents_where(condition)
        if not restricts(filters):
            return found
        kept = set(admitted(map(facts_of, found), filters))
        return [document for document in found if document.id in kept]

    def by_source(self, sources: Sequence[str]) -> list[StoredDocument]:
        found = []
        for part in _parts(sources):
            found += self._documents_where(f"source IN ({', '.join('?' * len(part))})", *part)
        return found

    def by_content(self, sha256: str) -> list[StoredDocument]:
        return self._documents_where("sha256 = ?", sha256)

    def by_name(self, name: str) -> list[StoredDocument]:
        return self._documents_where("name = ?", name)

    def under(self, folder: str) -> list[StoredDocument]:
        start = folder.rstrip("/")
        return self._documents_where("source > ? AND source < ?", start + "/", start + "0")  # 0 comes after the slash

    def _documents_where(self, condition: str, *values: str) -> list[StoredDocument]:
        with self._read() as db:
            rows = db.execute(f"SELECT {DOCUMENT} FROM documents WHERE {condition} ORDER BY name, id", values)
            return [read_document(row) for row in rows]

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        found: dict[int, StoredChunk] = {}
        with self._read() as db:
            for part in _parts(ids):
                marks = ", ".join("?" * len(part))
                rows = db.execute(f"SELECT {CHUNK} FROM chunks WHERE id IN ({marks})", part)
                found |= {row["id"]: read_chunk(row) for row in rows}
        return [found[i] for i in ids if i in found]

    def chunks_of(self, document: int) -> list[StoredChunk]:
        return self._chunks_where("document = ?", document)

    def chunks_between(self, document: int, first: int, last: int) -> list[StoredChunk]:
        return self._chunks_where("document = ? AND number BETWEEN ? AND ?", document, first, last)

    def section(self, document: int, section: int) -> list[StoredChunk]:
        return self._chunks_where("document = ? AND section = ?", document, section)

    def sections_of(self, chunks: Sequence[StoredChunk]) -> dict[tuple[int, int], list[StoredChunk]]:
        wanted = {(stored.document, stored.chunk.section): stored for stored in chunks}
        found: dict[tuple[int, int], list[StoredChunk]] = {key: [] for key in wanted}
        with self._read() as db:
            for part in _parts([*wanted.values()]):
                rows = db.execute(
                    f"SELECT {CHUNK} FROM (VALUES {', '.join(['(?, ?, ?)'] * len(part))}) AS w JOIN chunks"
                    f" ON document = column1 AND section = column2 AND number BETWEEN column3 - {NEAR} AND column3 + {NEAR}"
                    " ORDER BY document, number",
                    [value for stored in part for value in (stored.document, stored.chunk.section, stored.number)],
                )
                for stored in map(read_chunk, rows):
                    found[stored.document, stored.chunk.section].append(stored)
        return {key: near if whole(near, wanted[key]) else self.section(*key) for key, near in found.items()}

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        found: dict[int, frozenset[str]] = {}
        with self._read() as db:
            for part in _parts(ids):
                marks = ", ".join("?" * len(part))
                rows = db.execute(f"SELECT rowid, text FROM words WHERE rowid IN ({marks})", part)
                found |= {row["rowid"]: frozenset(row["text"].split()) for row in rows}
        return found

    def _chunks_where(self, condition: str, *values: int) -> list[StoredChunk]:
        with self._read() as db:
            rows = db.execute(f"SELECT {CHUNK} FROM chunks WHERE {condition} ORDER BY number", values)
            return [read_chunk(row) for row in rows]

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        found: dict[int, NDArray[np.float32]] = {}
        with self._read() as db:
            matrix = self._matrix
            if matrix is not None and matrix.revision == _revision(db):
                return matrix.vectors(ids)
            for part in _parts(ids):
                marks = ", ".join("?" * len(part))
                rows = db.execute(f"SELECT chunk, vector FROM vectors WHERE chunk IN ({marks})", part).fetchall()
                if rows:
                    width = self._width(db)
                    unpacked_NW = unpack([row["vector"] for row in rows], width)
                    found |= {row["chunk"]: vector_W for row, vector_W in zip(rows, unpacked_NW, strict=True)}
        return found

    def _width(self, db: sqlite3.Connection) -> int:
        row = db.execute("SELECT value FROM facts WHERE name = 'embedder'").fetchone()
        if row is not None:
            return int(json.loads(row[0])[1])
        size = db.execute("SELECT length(vector) FROM vectors LIMIT 1").fetchone()[0]
        return int(size // 4 if self._settings.vectors == "float32" else size - 4)

    def count(self) -> tuple[int, int]:
        with self._read() as db:
            row = db.execute("SELECT documents, chunks FROM totals").fetchone()
            return row["documents"], row["chunks"]

    def revision(self) -> int:
        with self._read() as db:
            return _revision(db)

    # ---- searching ----

    def lexical(self, words: str, limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        asked = list(dict.fromkeys(segment.words(words)))
        if not asked or limit < 1:
            return []
        with self._read() as db:
            totals = db.execute("SELECT chunks, words FROM totals").fetchone()
            known: dict[str, int] = {}
            for part in _parts(asked):
                marks = ", ".join("?" * len(part))
                known |= dict(map(tuple, db.execute(f"SELECT term, chunks FROM terms WHERE term IN ({marks})", part)))
            question = bm25.Question.of(asked, known, totals["chunks"])
            revision = _revision(db)
            matrix = self._followed(db)
            if not question.sought or matrix is None:
                return []
            average = totals["words"] / max(totals["chunks"], 1)
            found = matrix.scored(
                ((weight, *self._postings.of(db, revision, word)) for word, weight in question.sought.items()),
                average,
                max(bm25.CANDIDATES, 2 * limit) if question.common else limit,
                self._allowed(db, filters),
                filters.pages,
            )
            if not question.common:
                return found
            scores = dict(found)
            for part in _parts(list(scores)):
                marks = ", ".join("?" * len(part))
                for row in db.execute(f"SELECT rowid, text FROM words WHERE rowid IN ({marks})", part):
                    length = row["text"].count(" ") + 1
                    scores[row["rowid"]] += question.rest(row["text"], length, average)
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def has_word(self, words: str) -> bool:
        asked = list(dict.fromkeys(segment.words(words)))
        with self._read() as db:
            return any(
                db.execute(f"SELECT 1 FROM terms WHERE term IN ({', '.join('?' * len(part))}) LIMIT 1", part).fetchone()
                for part in _parts(asked)
            )

    def dense(self, vector_W: NDArray[np.float32], limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        return self.dense_each(np.asarray(vector_W)[None], limit, filters)[0]

    def dense_each(
        self, vectors_QW: NDArray[np.float32], limit: int, filters: Filters = ALL
    ) -> list[list[tuple[int, float]]]:
        with self._read() as db:
            allowed = self._allowed(db, filters)
            matrix = self._followed(db)
        return (
            matrix.search(vectors_QW, limit, allowed, filters.pages) if matrix is not None else [[] for _ in vectors_QW]
        )

    def _allowed(self, db: sqlite3.Connection, filters: Filters) -> NDArray[np.int64] | None:
        """The ids of the documents that may be found; None for all."""
        if not restricts(filters):
            return None
        revision, light = self._light
        if revision != _revision(db):
            light = [read_facts(row) for row in db.execute(f"SELECT {FACTS} FROM documents ORDER BY id")]
            self._light = (_revision(db), light)
        return np.array(admitted(light, filters), np.int64)

    def _followed(self, db: sqlite3.Connection) -> Matrix | None:
        """The matrix as it should be at this moment; None while there is nothing in it."""
        revision = _revision(db)
        with self._loading:
            matrix = self._matrix
            if matrix is not None and matrix.revision >= revision:
                return matrix
            oldest = db.execute("SELECT min(revision) FROM changes").fetchone()[0] or 0
            if matrix is None or matrix.revision + 1 < oldest:
                if not db.execute("SELECT chunks FROM totals").fetchone()[0]:
                    return None
                matrix = Matrix(self._width(db), self._settings.vectors, self._settings.approximate_from)
                self._load(db, matrix, 0, 1 << 62)
            else:
                changes = "SELECT what, first, last FROM changes WHERE revision > ? ORDER BY revision"
                for what, first, last in db.execute(changes, (matrix.revision,)).fetchall():
                    if what == "gone":
                        matrix.drop(first, last)
                    elif what == "added":
                        self._load(db, matrix, first, last)
                    elif what == "changed":
                        row = db.execute("SELECT vector, words FROM vectors WHERE chunk = ?", (first,)).fetchone()
                        if row is not None:
                            matrix.change(first, row["vector"], row["words"])
            matrix.revision = revision
            self._matrix = matrix
            return matrix

    def _load(self, db: sqlite3.Connection, matrix: Matrix, first: int, last: int) -> None:
        rows = db.execute(
            "SELECT chunk, document, first, last, words, vector FROM vectors WHERE chunk BETWEEN ? AND ? ORDER BY chunk",
            (first, last),
        )
        while part := rows.fetchmany(4096):
            known_N5 = np.array([tuple(row)[:5] for row in part], np.int64)
            pages_N2, words_N = known_N5[:, 2:4].astype(np.int32), known_N5[:, 4].astype(np.int32)
            matrix.add(known_N5[:, 0], known_N5[:, 1], pages_N2, words_N, [row["vector"] for row in part])


def _log(db: sqlite3.Connection, what: str, first: int, last: int) -> None:
    made = db.execute("INSERT INTO changes (what, first, last) VALUES (?, ?, ?)", (what, first, last)).lastrowid or 0
    if made % 1000 == 0:
        db.execute("DELETE FROM changes WHERE revision <= ?", (made - _LOG,))


def _revision(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT max(revision) FROM changes").fetchone()[0] or 0)


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _VARIABLES):
        yield list(values[start : start + _VARIABLES])
