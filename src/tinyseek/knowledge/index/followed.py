"""The matrix of an index file's vectors in memory, brought up to date by the file's log of changes, whoever made them."""

from __future__ import annotations

import json
import sqlite3
import threading

import numpy as np

from tinyseek.knowledge.index.vectors import Kind, Matrix

_LOG = 20_000  # changes that are kept; who missed more reads everything anew


class Followed:
    """One file's matrix. Safe to use from several threads."""

    def __init__(self, kind: Kind, approximate_from: int) -> None:
        self._kind: Kind = kind
        self._approximate_from = approximate_from
        self._loading = threading.Lock()
        self._matrix: Matrix | None = None

    def at_hand(self, db: sqlite3.Connection) -> Matrix | None:
        """The matrix, if it is loaded and as a reader sees the file."""
        matrix = self._matrix
        return matrix if matrix is not None and matrix.revision == revision(db) else None

    def drop(self) -> None:
        """Give its memory back."""
        self._matrix = None

    def matrix(self, db: sqlite3.Connection) -> Matrix | None:
        """The matrix as it should be at this moment; None while there is nothing in it."""
        now = revision(db)
        with self._loading:
            matrix = self._matrix
            if matrix is not None and matrix.revision >= now:
                return matrix
            oldest = db.execute("SELECT min(revision) FROM changes").fetchone()[0] or 0
            if matrix is None or matrix.revision + 1 < oldest:
                if not db.execute("SELECT chunks FROM totals").fetchone()[0]:
                    return None
                matrix = Matrix(width(db, self._kind), self._kind, self._approximate_from)
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
            matrix.revision = now
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


def log(db: sqlite3.Connection, what: str, first: int, last: int) -> None:
    """Write down that chunks were added, changed or are gone, or something of a document."""
    made = db.execute("INSERT INTO changes (what, first, last) VALUES (?, ?, ?)", (what, first, last)).lastrowid or 0
    if made % 1000 == 0:
        db.execute("DELETE FROM changes WHERE revision <= ?", (made - _LOG,))


def revision(db: sqlite3.Connection) -> int:
    """How many changes there have been."""
    return int(db.execute("SELECT max(revision) FROM changes").fetchone()[0] or 0)


def width(db: sqlite3.Connection, kind: Kind) -> int:
    """How many numbers a vector of the file has."""
    row = db.execute("SELECT value FROM facts WHERE name = 'embedder'").fetchone()
    if row is not None:
        return int(json.loads(row[0])[1])
    size = db.execute("SELECT length(vector) FROM vectors LIMIT 1").fetchone()[0]
    return int(size // 4 if kind == "float32" else size - 4)
