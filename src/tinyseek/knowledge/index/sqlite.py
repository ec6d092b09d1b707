"""The index in one SQLite file: documents, chunks, their words in FTS5, their vectors as rows.

The vectors that searches look through are a matrix in memory; a log of changed chunks in the file brings it up to date, whoever
changed them. Chunk ids grow and are never used again, so that a chunk that was found is that chunk or is gone.
"""

from __future__ import annotations

import json
import sqlite3
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
from tinyseek.knowledge.index.base import ALL, Chunk, Filters, StoredChunk, StoredDocument
from tinyseek.knowledge.index.filters import Facts, admitted, restricts
from tinyseek.knowledge.index.followed import Followed, log, revision, width
from tinyseek.knowledge.index.postings import Postings
from tinyseek.knowledge.index.rows import (
    CHUNK,
    CHUNK_COLUMNS,
    DOCUMENT,
    DOCUMENT_COLUMNS,
    FACTS,
    chunk_values,
    corrected,
    document_values,
    pages_of,
    read_chunk,
    read_document,
    read_facts,
)
from tinyseek.knowledge.index.sqlite_file import IndexFile
from tinyseek.knowledge.index.stored import NEAR, StoredIndex
from tinyseek.knowledge.index.vectors import pack, unpack
from tinyseek.knowledge.options import IndexSettings

DEFAULT = IndexSettings()
_VARIABLES = 300  # rows that one statement asks for


class SqliteIndex(StoredIndex):
    """One collection in one file."""

    def __init__(self, file: Path, settings: IndexSettings = DEFAULT) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it cannot be written, is damaged or no such index, or of another version.
        """
        self._settings = settings
        self._file = IndexFile(file, settings.wait_seconds)
        self._read, self._write = self._file.read, self._file.write
        self._followed = Followed(settings.vectors, settings.approximate_from)
        self._postings = Postings()
        self._light: tuple[int, list[Facts]] = (-1, [])

    def close(self) -> None:
        """Fold the log into the file."""
        self._file.close()
        self._followed.drop()

    @property
    def _shown(self) -> str:
        return str(self._file.file)

    # ---- writing ----

    def _embedder(self) -> tuple[str, int, str] | None:
        with self._read() as db:
            row = db.execute("SELECT value FROM facts WHERE name = 'embedder'").fetchone()
        if row is None:
            return None
        name, width, where = json.loads(row[0])
        return name, width, where

    def _claim(self, embedder: str, width: int, where: str) -> tuple[str, int, str]:
        with self._write() as db:
            said = json.dumps([embedder, width, where])
            db.execute("INSERT OR IGNORE INTO facts VALUES ('embedder', ?)", (said,))
        return self._embedder() or (embedder, width, where)

    def _store(
        self, document: StoredDocument, chunks: Sequence[Chunk], texts: list[list[str]], vectors_NW: NDArray[np.float32]
    ) -> int:
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
            log(db, "document", 0, 0)
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
        log(db, "added", first, first + len(chunks) - 1)

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
        log(db, "gone", ids[0], ids[-1])

    def update(self, document: StoredDocument) -> None:
        with self._write() as db:
            row = db.execute("SELECT chunks FROM documents WHERE id = ?", (document.id,)).fetchone()
            if row is not None:
                self._set(db, replace(document, chunks=row["chunks"]))
                log(db, "document", 0, 0)

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
                log(db, "document", 0, 0)
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
            log(db, "changed", chunk, chunk)

    # ---- reading ----

    def under(self, folder: str) -> list[StoredDocument]:
        start = folder.rstrip("/")
        return self._documents_where("source > ? AND source < ?", start + "/", start + "0")  # 0 comes after the slash

    def _documents_where(self, condition: str, *values: str) -> list[StoredDocument]:
        with self._read() as db:
            rows = db.execute(f"SELECT {DOCUMENT} FROM documents WHERE {condition} ORDER BY name, id", values)
            return [read_document(row) for row in rows]

    def _documents_among(self, column: str, values: Sequence[Any]) -> list[StoredDocument]:
        found = []
        for part in _parts(values):
            found += self._documents_where(f"{column} IN ({', '.join('?' * len(part))})", *part)
        return found

    def _chunks_where(self, condition: str, *values: int) -> list[StoredChunk]:
        with self._read() as db:
            rows = db.execute(f"SELECT {CHUNK} FROM chunks WHERE {condition} ORDER BY number", values)
            return [read_chunk(row) for row in rows]

    def _chunks_among(self, ids: Sequence[int]) -> list[StoredChunk]:
        with self._read() as db:
            return [
                read_chunk(row)
                for part in _parts(ids)
                for row in db.execute(f"SELECT {CHUNK} FROM chunks WHERE id IN ({', '.join('?' * len(part))})", part)
            ]

    def _chunks_near(self, wanted: Sequence[StoredChunk]) -> list[StoredChunk]:
        found: list[StoredChunk] = []
        with self._read() as db:
            for part in _parts(wanted):
                rows = db.execute(
                    f"SELECT {CHUNK} FROM (VALUES {', '.join(['(?, ?, ?)'] * len(part))}) AS w JOIN chunks"
                    f" ON document = column1 AND section = column2 AND number BETWEEN column3 - {NEAR} AND column3 + {NEAR}"
                    " ORDER BY document, number",
                    [value for stored in part for value in (stored.document, stored.chunk.section, stored.number)],
                )
                found += map(read_chunk, rows)
        return found

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        found: dict[int, frozenset[str]] = {}
        with self._read() as db:
            for part in _parts(ids):
                marks = ", ".join("?" * len(part))
                rows = db.execute(f"SELECT rowid, text FROM words WHERE rowid IN ({marks})", part)
                found |= {row["rowid"]: frozenset(row["text"].split()) for row in rows}
        return found

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        found: dict[int, NDArray[np.float32]] = {}
        with self._read() as db:
            matrix = self._followed.at_hand(db)
            if matrix is not None:
                return matrix.vectors(ids)
            for part in _parts(ids):
                marks = ", ".join("?" * len(part))
                rows = db.execute(f"SELECT chunk, vector FROM vectors WHERE chunk IN ({marks})", part).fetchall()
                if rows:
                    size = width(db, self._settings.vectors)
                    unpacked_NW = unpack([row["vector"] for row in rows], size)
                    found |= {row["chunk"]: vector_W for row, vector_W in zip(rows, unpacked_NW, strict=True)}
        return found

    def count(self) -> tuple[int, int]:
        with self._read() as db:
            row = db.execute("SELECT documents, chunks FROM totals").fetchone()
            return row["documents"], row["chunks"]

    def revision(self) -> int:
        with self._read() as db:
            return revision(db)

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
            now = revision(db)
            matrix = self._followed.matrix(db)
            if not question.sought or matrix is None:
                return []
            average = totals["words"] / max(totals["chunks"], 1)
            found = matrix.scored(
                ((weight, *self._postings.of(db, now, word)) for word, weight in question.sought.items()),
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
            matrix = self._followed.matrix(db)
        return (
            matrix.search(vectors_QW, limit, allowed, filters.pages) if matrix is not None else [[] for _ in vectors_QW]
        )

    def _allowed(self, db: sqlite3.Connection, filters: Filters) -> NDArray[np.int64] | None:
        """The ids of the documents that may be found; None for all."""
        if not restricts(filters):
            return None
        known, light = self._light
        if known != revision(db):
            light = [read_facts(row) for row in db.execute(f"SELECT {FACTS} FROM documents ORDER BY id")]
            self._light = (revision(db), light)
        return np.array(admitted(light, filters), np.int64)


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _VARIABLES):
        yield list(values[start : start + _VARIABLES])
