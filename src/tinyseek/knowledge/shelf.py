"""The collections that a server holds: open, shared by all who ask, and shown to those alone who may see them.

A process has one embedder for all collections of a kind, one matrix a collection, one set of readers. An API key sees the
collections that were given to it; what it may not see is, for it, not there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.base import KnowledgeBase, check_name, collections, folder_of
from tinyseek.knowledge.documents.blocks import Box, Document
from tinyseek.knowledge.documents.read import Readers
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import StoredChunk, StoredDocument
from tinyseek.knowledge.ingest import Progress, Say, silent
from tinyseek.knowledge.memory import collection_of
from tinyseek.knowledge.options import KnowledgeSettings, knowledge_home
from tinyseek.knowledge.tables.rooms import Rooms
from tinyseek.llm.base import ChatModel

FIRST = "default"  # the collection that there is from the beginning
EVERY = "*"  # all collections, of a key
PERSONAL = collection_of()  # with the facts of one person, or personal-...
DEFAULTS = AnswerSettings()
_READ_ONLY = "this server only answers questions; documents are added and changed with tinyseek kb where it runs"


class Shelf:
    """The collections of one home. Every method may be called from any thread.

    Attributes:
        settings: of every collection.
        models: who may write answers, by name, the usual one first; none: answers are quoted from the documents.
        read_only: nothing can be added, changed or removed.
        answers: how questions are answered where a face says nothing else.
        tables: the sheets of the collections that were asked last, as tables of a database.
    """

    def __init__(
        self,
        home: Path | None = None,
        settings: KnowledgeSettings | None = None,
        models: Sequence[ChatModel] = (),
        access: Mapping[bytes, Sequence[str]] | None = None,
        read_only: bool = False,
        embedder: Embedder | None = None,
        answers: AnswerSettings = DEFAULTS,
    ) -> None:
        """Open nothing yet.

        Args:
            home: the folder of all collections; none for TINYSEEK_HOME/knowledge.
            access: the collections of each API key, `*` for all; a key that is not named has none. None: every key has all.
            embedder: one that is open already, for all collections.
            answers: how questions are answered where a face says nothing else.
        """
        self.home = Path(home).expanduser() if home else knowledge_home()
        self.settings = settings or KnowledgeSettings()
        self.models: Mapping[str, ChatModel] = {model.name: model for model in models}
        self.read_only, self.answers = read_only, answers
        self.tables = Rooms()
        self._access = None if access is None else {key: tuple(names) for key, names in access.items()}
        self._given = embedder
        self._embedders: dict[str, LateEmbedder] = {}
        self._readers = Readers(self.settings.processes, self.settings.limits)
        self._viewers = Readers(1, self.settings.limits)  # so that a page is shown at once while files are being read
        self._open: dict[
            str, tuple[int, KnowledgeBase]
        ] = {}  # with the number of its file, which tells a new one of the same name
        self._lock = threading.RLock()

    # ---- who sees what ----

    def collections(self, key: bytes = b"") -> list[str]:
        """The names of a key's collections; `default` first, whether or not anything is in it yet."""
        known = collections(self.home, self.settings)
        found = [name for name in known if name != FIRST and self._may(key, name)]
        return [FIRST, *found] if self._may(key, FIRST) else found

    def _may(self, key: bytes, name: str) -> bool:
        names = (EVERY,) if self._access is None else self._access.get(key, ())
        if name.partition("-")[0] == PERSONAL:  # one person's facts: for who is named, and for who is alone
            return name in names or (name == PERSONAL and self._access is None and not key)
        return EVERY in names or name in names

    def personal(self, key: bytes = b"") -> KnowledgeBase:
        """The collection with the facts that this key's owner asked to remember; nobody else comes to it."""
        return self._opened(collection_of(hashlib.sha256(key).hexdigest() if key else ""))

    def base(self, key: bytes, collection: str = FIRST) -> KnowledgeBase:
        """One of a key's collections, open; it stays so.

        Raises:
            UserError: this key has none of this name, whether or not there is one.
        """
        with self._lock:  # one that is deleted at this moment must not be made anew
            if collection not in self.collections(key):
                there = ", ".join(self.collections(key)[:20])
                raise UserError(
                    f"{collection[:80]}: there is no such collection; {f'there are: {there}' if there else 'this key has none'}"
                )
            return self._opened(collection)

    def make(self, key: bytes, collection: str) -> KnowledgeBase:
        """A new collection.

        Raises:
            UserError: there is one already, that is no name, or this key may not.
        """
        if self.read_only:
            raise UserError(_READ_ONLY)
        collection = collection.strip()
        check_name(collection)
        if not self._may(key, collection):
            raise UserError(f"{collection}: this key may have no collection of this name")
        with self._lock:
            if collection.casefold() in (name.casefold() for name in collections(self.home, self.settings)):
                raise UserError(f"{collection}: there is a collection of this name already")
            return self._opened(collection)

    def delete(self, key: bytes, collection: str) -> None:
        """Delete a collection, with what was uploaded to it.

        Raises:
            UserError: this key has none of this name.
        """
        if self.read_only:
            raise UserError(_READ_ONLY)
        with self._lock:
            self.base(key, collection)
            _, base = self._open.pop(collection)
            base.close()
            KnowledgeBase.delete_collection(collection, self.home, self.settings)

    # ---- what is open ----

    def _opened(self, name: str) -> KnowledgeBase:
        with self._lock:
            held = self._open.get(name)
            if held is not None and held[0] == self._file(name):
                return held[1]
            if held is not None:  # another process deleted it, and perhaps made it anew
                del self._open[name]
                held[1].close()
            opened = KnowledgeBase.open(self.home, name, self.settings)
            where = self.settings.embedder or opened.index.embedder() or "e5"
            kind = LockedBase if self.read_only else KnowledgeBase
            base = kind(opened.index, self.home, name, self.settings, self._embedder(where), self._readers)
            self._open[name] = (self._file(name), base)
            return base

    def _file(self, name: str) -> int:
        """The number of a collection's file; 0 where a server keeps it."""
        try:
            return (folder_of(self.home, name) / "index.db").stat().st_ino
        except OSError:
            return 0

    def _embedder(self, where: str) -> Embedder:
        if self._given is not None:
            return self._given
        return self._embedders.setdefault(where, LateEmbedder(where))

    def render_page(self, file: Path, page: int, scale: float) -> bytes:
        """A page of a PDF as PNG, in a worker process.

        Raises:
            UserError: it cannot be shown.
        """
        return self._viewers.render_page(file, page, scale)

    def find_text(self, file: Path, page: int, text: str, near: Sequence[Box] = ()) -> tuple[Box, ...]:
        """Where a text stands on a page of a PDF, a box a line, in a worker process.

        Args:
            near: only what touches these, if there are any.
        Raises:
            UserError: the file cannot be read.
        """
        return self._viewers.find_text(file, page, text, near)

    def read(self, file: Path, name: str) -> Document:
        """A file's blocks, for a viewer.

        Raises:
            UserError: it cannot be read.
        """
        return self._viewers.one(file, name)

    def close(self) -> None:
        """Close all of them; models are whoever's opened them."""
        with self._lock:
            for _, base in self._open.values():
                base.close()
            self._open.clear()
            for embedder in self._embedders.values():
                embedder.close()
        self.tables.close()
        self._readers.close()
        self._viewers.close()


class LockedBase(KnowledgeBase):
    """A collection that can be asked and not changed, whoever holds it."""

    def add(
        self,
        paths: Iterable[Path | str] | Path | str,  # noqa: ARG002
        tags: Sequence[str] = (),  # noqa: ARG002
        say: Say = silent,  # noqa: ARG002
    ) -> Iterator[Progress]:
        raise UserError(_READ_ONLY)

    def add_bytes(self, name: str, data: bytes, tags: Sequence[str] = ()) -> Progress:  # noqa: ARG002
        raise UserError(_READ_ONLY)

    def add_file(self, file: Path, name: str, tags: Sequence[str] = ()) -> Progress:  # noqa: ARG002
        raise UserError(_READ_ONLY)

    def read_again(self, document: int) -> Progress:  # noqa: ARG002
        raise UserError(_READ_ONLY)

    def remove(self, documents: Sequence[str | int]) -> list[StoredDocument]:  # noqa: ARG002
        raise UserError(_READ_ONLY)

    def set_tags(self, document: int, tags: Sequence[str]) -> StoredDocument:  # noqa: ARG002
        raise UserError(_READ_ONLY)

    def correct(self, chunk: int, text: str) -> StoredChunk:  # noqa: ARG002
        raise UserError(_READ_ONLY)


class LateEmbedder(Embedder):
    """An embedder that is opened when it is first needed, and then by all: an idle server holds no model."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._inner: Embedder | None = None

    @property
    def _opened(self) -> Embedder:
        with self._lock:
            if self._inner is None:
                from tinyseek.knowledge.embed.open import open_embedder

                self._inner = open_embedder(self._where)
            return self._inner

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._opened.name

    @property
    def width(self) -> int:  # type: ignore[override]
        return self._opened.width

    @property
    def limit(self) -> int:  # type: ignore[override]
        return self._opened.limit

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._opened.queries(texts)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._opened.passages(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._opened.count_tokens(texts)

    def close(self) -> None:
        with self._lock:
            if self._inner is not None:
                self._inner.close()
                self._inner = None
