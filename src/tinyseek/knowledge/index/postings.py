"""The chunks that a word stands in, out of FTS5, and kept for the next question: reading them is a third of a search by words.

FTS5 steps through its list of where each word stands place by place, 0.2 us each; and words come again from question to question.
What was read is kept for as long as the index does not change, those asked for lately, up to twelve megabytes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

MOST = 1_000_000  # postings that are kept, 12 bytes each
TABLE = "CREATE VIRTUAL TABLE temp.places USING fts5vocab(main, words, instance)"  # each connection's own
Found = tuple[NDArray[np.int64], NDArray[np.int32]]


class Postings:
    """Of one index. Safe to use from several threads."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Found] = OrderedDict()
        self._size, self._revision = 0, -1

    def of(self, db: sqlite3.Connection, revision: int, word: str) -> Found:
        """The chunks that a word stands in, ascending, and how often.

        Args:
            db: with `TABLE`, in a transaction that sees the index as it is at `revision`.
        """
        with self._lock:
            if revision > self._revision:
                self._kept.clear()
                self._size, self._revision = 0, revision
            if revision == self._revision and word in self._kept:
                self._kept.move_to_end(word)
                return self._kept[word]
        found = read(db, word)
        with self._lock:
            if revision == self._revision and word not in self._kept and len(found[0]) <= self._most // 4:
                self._kept[word] = found
                self._size += len(found[0])
                while self._size > self._most:
                    self._size -= len(self._kept.popitem(last=False)[1][0])
        return found


def read(db: sqlite3.Connection, word: str) -> Found:
    """The chunks that a word stands in, ascending, and how often."""
    # As one string: a row for each place, fetched one by one, would take three times as long.
    text = db.execute("SELECT group_concat(doc) FROM places WHERE term = ?", (word,)).fetchone()[0]
    chunks_M = np.fromstring(text or "", np.int64, sep=",")
    first_N = np.flatnonzero(np.diff(chunks_M, prepend=-1))
    return chunks_M[first_N], np.diff(first_N, append=len(chunks_M)).astype(np.int32)
