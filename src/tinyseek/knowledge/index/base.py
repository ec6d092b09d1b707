"""The one face of every index: documents and chunks of one collection, found by words and by vectors.

A document's chunks come and go with it, in one transaction. Readers see what was there when they began.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.knowledge.documents.blocks import Place


@dataclass(frozen=True)
class Chunk:
    """A passage to be found. Its section, several chunks in a row under one heading, is what an answer reads of it."""

    text: str
    places: tuple[Place, ...] = ()  # where it stands: each with its span of the text: a sentence finds its own page
    path: tuple[str, ...] = ()  # the headings above it
    section: int = 0  # number of its section in the document, from 0
    kind: str = "text"  # "text", "table", "code"
    tokens: int = 0
    overlap: int = 0  # characters at its beginning that the chunk before it has too; chunks.joined leaves them out
    corrected: bool = False  # by the user: kept when its file is read again unchanged
    original: str = ""  # of a corrected chunk: what its file says


@dataclass(frozen=True)
class StoredChunk:
    """A chunk in an index."""

    id: int
    document: int
    number: int  # in its document, from 0
    chunk: Chunk


@dataclass(frozen=True)
class StoredDocument:
    """A file in an index.

    Attributes:
        source: the file's absolute path, or an address; one document each in a collection.
        name: what to call it in answers: its path in the folder that was added.
        sha256: of the file's bytes.
    """

    source: str
    name: str
    sha256: str
    size: int
    kind: str
    id: int = 0
    folder: str = ""  # that was added, of which `name` is a part
    modified: float = 0.0  # of the file, seconds
    added: float = 0.0  # to the index, seconds
    title: str = ""
    author: str = ""
    date: str = ""
    pages: int | None = None
    language: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    chunks: int = 0


@dataclass(frozen=True)
class Filters:
    """Which chunks may be found. Nothing given means all."""

    documents: tuple[int, ...] = ()
    names: tuple[str, ...] = ()  # patterns of `name`, as fnmatch has them
    folders: tuple[str, ...] = ()  # beginnings of `name`, at a slash
    tags: tuple[str, ...] = ()  # all of them
    kinds: tuple[str, ...] = ()  # of documents
    since: str | None = None  # ISO dates of the document, or if it has none of the file
    until: str | None = None
    pages: tuple[int, int] | None = None  # first and last


ALL = Filters()


class Index(ABC):
    """One collection. Safe to use from several threads; several processes may read while one writes."""

    @abstractmethod
    def put(self, document: StoredDocument, chunks: Sequence[Chunk], vectors_NW: NDArray[np.float32]) -> int:
        """Add a document, or replace the one of the same source, whole or not at all.

        Returns:
            Its id, which a replaced document keeps.
        """

    @abstractmethod
    def update(self, document: StoredDocument) -> None:
        """Change what is known of a document (its source, name, tags, times), not its chunks."""

    @abstractmethod
    def remove(self, documents: Sequence[int]) -> int:
        """Forget documents and their chunks. Returns how many there were."""

    @abstractmethod
    def correct(self, chunk: int, text: str, vector_W: NDArray[np.float32]) -> None:
        """Replace a chunk's text by the user's own."""

    @abstractmethod
    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        """By name."""

    @abstractmethod
    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        """In the order of `ids`; what is not there any more is left out."""

    @abstractmethod
    def chunks_of(self, document: int) -> list[StoredChunk]:
        """A document's chunks, in order."""

    def by_source(self, sources: Sequence[str]) -> list[StoredDocument]:
        """The documents of these sources."""
        wanted = set(sources)
        return [document for document in self.documents() if document.source in wanted]

    def by_content(self, sha256: str) -> list[StoredDocument]:
        """The documents of files with this hash."""
        return [document for document in self.documents() if document.sha256 == sha256]

    def by_name(self, name: str) -> list[StoredDocument]:
        """The documents that are called so in answers."""
        return [document for document in self.documents() if document.name == name]

    def under(self, folder: str) -> list[StoredDocument]:
        """The documents whose source is a file below a folder."""
        start = folder.rstrip("/") + "/"
        return [document for document in self.documents() if document.source.startswith(start)]

    def chunks_between(self, document: int, first: int, last: int) -> list[StoredChunk]:
        """A document's chunks by number, first and last included, in order."""
        return [chunk for chunk in self.chunks_of(document) if first <= chunk.number <= last]

    def section(self, document: int, section: int) -> list[StoredChunk]:
        """The chunks of one section, in order: what an answer reads of a chunk that was found."""
        return [stored for stored in self.chunks_of(document) if stored.chunk.section == section]

    def sections_of(self, chunks: Sequence[StoredChunk]) -> dict[tuple[int, int], list[StoredChunk]]:
        """The sections of several chunks, each by its document and number."""
        wanted = dict.fromkeys((stored.document, stored.chunk.section) for stored in chunks)
        return {key: self.section(*key) for key in wanted}

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        """The different words that those of these chunks that are there are found by."""
        raise NotImplementedError

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors of those chunks that are there, of length 1."""
        raise NotImplementedError

    @abstractmethod
    def lexical(self, words: str, limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        """Chunks by BM25 of a question's words: ids and scores, best first. Any text is a question, none is an error."""

    def has_word(self, words: str) -> bool:
        """Whether any chunk has any of these words."""
        return bool(self.lexical(words, 1))

    @abstractmethod
    def dense(self, vector_W: NDArray[np.float32], limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        """Chunks by cosine: ids and cosines, best first."""

    def dense_each(
        self, vectors_QW: NDArray[np.float32], limit: int, filters: Filters = ALL
    ) -> list[list[tuple[int, float]]]:
        """`dense` of several vectors."""
        return [self.dense(vector_W, limit, filters) for vector_W in vectors_QW]

    @abstractmethod
    def count(self) -> tuple[int, int]:
        """Documents and chunks."""

    def revision(self) -> int:
        """A number that grows with every change, by any process: what was found at one revision is found again."""
        raise NotImplementedError

    def adopt(self, embedder: str, width: int, where: str = "") -> None:  # noqa: B027  (some trust)
        """Say whose vectors these are, and where that embedder is; the first that does is remembered.

        Raises:
            UserError: they are of another embedder.
        """

    def embedder(self) -> str | None:
        """Where the embedder is whose vectors these are, as it was said; None while there is none."""
        return None

    def close(self) -> None:  # noqa: B027  (some hold nothing)
        """Give back what it holds."""
