"""What an index in a file and one on a server do alike: documents and chunks as rows of tables, asked for by conditions.

Conditions are written with `?` for each value. What is here says what is wanted; how rows are come by is each database's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge import segment
from tinyseek.knowledge.chunks import searched
from tinyseek.knowledge.index.base import ALL, Chunk, Filters, Index, StoredChunk, StoredDocument
from tinyseek.knowledge.index.filters import admitted, restricts
from tinyseek.knowledge.index.rows import facts_of

NEAR = 64  # chunks before and behind one that its section is looked for among, before its whole document is


class StoredIndex(Index):
    """An index whose documents and chunks are rows."""

    # ---- what a database has of its own ----

    @property
    @abstractmethod
    def _shown(self) -> str:
        """Where the index is, for messages."""

    @abstractmethod
    def _embedder(self) -> tuple[str, int, str] | None:
        """Name, width and place of the embedder whose vectors these are."""

    @abstractmethod
    def _claim(self, embedder: str, width: int, where: str) -> tuple[str, int, str]:
        """Say whose vectors these are, unless another has said so meanwhile. Returns what holds now."""

    @abstractmethod
    def _store(
        self, document: StoredDocument, chunks: Sequence[Chunk], texts: list[list[str]], vectors_NW: NDArray[np.float32]
    ) -> int:
        """`put`, with the words that each chunk is found by."""

    @abstractmethod
    def _documents_where(self, condition: str, *values: Any) -> list[StoredDocument]:
        """By name, then by id."""

    @abstractmethod
    def _documents_among(self, column: str, values: Sequence[Any]) -> list[StoredDocument]:
        """Those with one of these values in a column."""

    @abstractmethod
    def _chunks_where(self, condition: str, *values: int) -> list[StoredChunk]:
        """By number."""

    @abstractmethod
    def _chunks_among(self, ids: Sequence[int]) -> list[StoredChunk]:
        """In any order."""

    @abstractmethod
    def _chunks_near(self, wanted: Sequence[StoredChunk]) -> Iterable[StoredChunk]:
        """Of each chunk's section those at most `NEAR` before or behind it, in order."""

    # ---- what follows from that ----

    def adopt(self, embedder: str, width: int, where: str = "") -> None:
        known = self._embedder() or self._claim(embedder, width, where)
        if known[:2] != (embedder, width):
            raise UserError(
                f"{self._shown}: its vectors are of the embedder {known[0]} (width {known[1]}), not of {embedder} (width {width}); "
                "use that one, or add the documents to another collection"
            )

    def embedder(self) -> str | None:
        known = self._embedder()
        return known[2] if known else None

    def put(self, document: StoredDocument, chunks: Sequence[Chunk], vectors_NW: NDArray[np.float32]) -> int:
        if len(chunks) != len(vectors_NW):
            raise ValueError(f"{len(chunks)} chunks, {len(vectors_NW)} vectors")
        texts = [segment.words(searched(chunk, document.title)) for chunk in chunks]  # before others are kept waiting
        return self._store(document, chunks, texts, vectors_NW)

    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        ids = filters.documents
        found = self._documents_among("id", ids) if ids else self._documents_where("true")
        if not restricts(filters):
            return found
        kept = set(admitted(map(facts_of, found), filters))
        return [document for document in found if document.id in kept]

    def by_source(self, sources: Sequence[str]) -> list[StoredDocument]:
        return self._documents_among("source", sources)

    def by_content(self, sha256: str) -> list[StoredDocument]:
        return self._documents_where("sha256 = ?", sha256)

    def by_name(self, name: str) -> list[StoredDocument]:
        return self._documents_where("name = ?", name)

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        found = {stored.id: stored for stored in self._chunks_among(ids)}
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
        for stored in self._chunks_near([*wanted.values()]):
            found[stored.document, stored.chunk.section].append(stored)
        return {key: near if _whole(near, wanted[key]) else self.section(*key) for key, near in found.items()}


def _whole(near: Sequence[StoredChunk], chunk: StoredChunk) -> bool:
    """Whether those of a chunk's section that are within `NEAR` of it are all of the section: it does not go on behind them."""
    return not near or (near[0].number > chunk.number - NEAR and near[-1].number < chunk.number + NEAR)
