"""An index of plain lists: every score computed anew, nothing clever. The oracle of the real ones, and what answers are tested on.

BM25 is Lucene's form, as bm25s has it: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), and each of a question's different words counts
idf * f / (f + k1 * (1 - b + b * length / mean length)).
"""

from __future__ import annotations

import fnmatch
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import Chunk, Filters, Index, StoredChunk, StoredDocument

K1, B = 1.5, 0.75
ALL = Filters()


def plain_words(text: str) -> list[str]:
    """Lower-case words; every Chinese character is one."""
    return re.findall(r"[㐀-鿿]|[^\W_㐀-鿿]+", text.lower())


class MemoryIndex(Index):
    """Documents and chunks in a dict.

    Args:
        words: cuts a text; what of a chunk is searched is its path and its text.
    """

    def __init__(self, words: Callable[[str], list[str]] = plain_words) -> None:
        self._words = words
        self._documents: dict[int, StoredDocument] = {}
        self._chunks: dict[int, StoredChunk] = {}
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self._counts: dict[int, Counter[str]] = {}
        self._next_document = self._next_chunk = 1
        self._revision = 0

    def put(self, document: StoredDocument, chunks: Sequence[Chunk], vectors_NW: NDArray[np.float32]) -> int:
        self._revision += 1
        if len(chunks) != len(vectors_NW):
            raise ValueError(f"{len(chunks)} chunks, {len(vectors_NW)} vectors")
        known = next((d.id for d in self._documents.values() if d.source == document.source), None)
        if known is None:
            known, self._next_document = self._next_document, self._next_document + 1
        self._drop_chunks(known)
        self._documents[known] = replace(document, id=known, chunks=len(chunks), added=document.added or time.time())
        for number, (chunk, vector) in enumerate(zip(chunks, vectors_NW, strict=True)):
            self._store(StoredChunk(self._next_chunk, known, number, chunk), vector)
            self._next_chunk += 1
        return known

    def update(self, document: StoredDocument) -> None:
        self._revision += 1
        self._documents[document.id] = replace(document, chunks=self._documents[document.id].chunks)

    def remove(self, documents: Sequence[int]) -> int:
        self._revision += 1
        there = [document for document in documents if document in self._documents]
        for document in there:
            self._drop_chunks(document)
            del self._documents[document]
        return len(there)

    def correct(self, chunk: int, text: str, vector_W: NDArray[np.float32]) -> None:
        self._revision += 1
        stored = self._chunks[chunk]
        self._store(replace(stored, chunk=replace(stored.chunk, text=text, corrected=True)), vector_W)

    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        return sorted((d for d in self._documents.values() if matches(d, filters)), key=lambda d: (d.name, d.id))

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        return [self._chunks[number] for number in ids if number in self._chunks]

    def chunks_of(self, document: int) -> list[StoredChunk]:
        return sorted((c for c in self._chunks.values() if c.document == document), key=lambda c: c.number)

    def lexical(self, words: str, limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        if not self._counts:
            return []
        asked = set(self._words(words))
        lengths = {number: counts.total() for number, counts in self._counts.items()}
        mean = sum(lengths.values()) / len(lengths) or 1.0
        scores = dict.fromkeys(self._allowed(filters), 0.0)
        for word in asked:
            holders = {number: counts[word] for number, counts in self._counts.items() if counts[word]}
            idf = math.log(1 + (len(lengths) - len(holders) + 0.5) / (len(holders) + 0.5))
            for number in holders.keys() & scores.keys():
                often = holders[number]
                scores[number] += idf * often / (often + K1 * (1 - B + B * lengths[number] / mean))
        found = [(number, score) for number, score in scores.items() if score > 0]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def dense(self, vector_W: NDArray[np.float32], limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        found = [(number, float(np.float64(self._vectors[number]) @ vector_W)) for number in self._allowed(filters)]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        return {number: frozenset(self._counts[number]) for number in ids if number in self._counts}

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        return {number: self._vectors[number] for number in ids if number in self._vectors}

    def revision(self) -> int:
        return self._revision

    def count(self) -> tuple[int, int]:
        return len(self._documents), len(self._chunks)

    def _store(self, stored: StoredChunk, vector: NDArray[np.float32]) -> None:
        self._chunks[stored.id], self._vectors[stored.id] = stored, vector
        self._counts[stored.id] = Counter(self._words("\n".join((*stored.chunk.path, stored.chunk.text))))

    def _drop_chunks(self, document: int) -> None:
        for number in [number for number, chunk in self._chunks.items() if chunk.document == document]:
            del self._chunks[number], self._vectors[number], self._counts[number]

    def _allowed(self, filters: Filters) -> list[int]:
        return [
            number
            for number, stored in self._chunks.items()
            if matches(self._documents[stored.document], filters) and on_pages(stored.chunk, filters.pages)
        ]


def matches(document: StoredDocument, filters: Filters) -> bool:
    """Whether a document may be found; pages are a matter of its chunks."""
    date = document.date[:10] or datetime.fromtimestamp(document.modified, UTC).date().isoformat()
    return (
        (not filters.documents or document.id in filters.documents)
        and (not filters.names or any(fnmatch.fnmatchcase(document.name, pattern) for pattern in filters.names))
        and (not filters.folders or any(document.name.startswith(f"{f.rstrip('/')}/") for f in filters.folders))
        and set(filters.tags) <= set(document.tags)
        and (not filters.kinds or document.kind in filters.kinds)
        and (not filters.since or date >= filters.since)
        and (not filters.until or date[: len(filters.until)] <= filters.until)
    )


def on_pages(chunk: Chunk, pages: tuple[int, int] | None) -> bool:
    """Whether a chunk touches one of the pages, first and last included."""
    return pages is None or any(p.page is not None and pages[0] <= p.page <= pages[1] for p in chunk.places)


class HashEmbedder(Embedder):
    """A bag of words and of their beginnings, hashed: texts that share words are near. Needs no weights."""

    name, width, limit = "hashed words", 256, 512

    def __init__(self, synonyms: dict[str, str] | None = None) -> None:
        self._synonyms = synonyms or {}  # word -> what it is taken for: a dictionary between languages, for tests

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self.width), np.float32)

    passages = queries

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(plain_words(text)) for text in texts]

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.zeros(self.width, np.float32)
        for word in plain_words(text):
            meant = self._synonyms.get(word, word)
            for piece in {meant, meant[:5]}:
                at = zlib.crc32(piece.encode())
                vector[at % self.width] += 1.0 if at & 1 << 20 else -1.0
        length = float(np.linalg.norm(vector))
        vector[0] += 1e-6 if length == 0 else 0.0
        return vector / (length or 1e-6)


class MemoryBase:
    """As much of a knowledge base as a search and an answer need."""

    def __init__(self, index: Index | None = None, embedder: Embedder | None = None) -> None:
        self.index: Index = index or MemoryIndex()
        self.embedder: Embedder = embedder or HashEmbedder()

    def put(self, name: str, passages: Sequence[str | Chunk], **known: object) -> int:
        """A document of these passages: a page each, a section each, unless they are chunks already."""
        chunks = [
            passage
            if isinstance(passage, Chunk)
            else Chunk(passage, (Place(page=number + 1, span=(0, len(passage))),), section=number)
            for number, passage in enumerate(passages)
        ]
        document = StoredDocument(f"/{name}", name, "", 0, "pdf", **known)  # type: ignore[arg-type]
        texts = ["\n".join((*chunk.path, chunk.text)) for chunk in chunks]
        return self.index.put(document, chunks, self.embedder.passages(texts))
