"""KnowledgeBase: a collection of documents, kept up to date, searched and asked. The face of this room for all others.

kb = KnowledgeBase.open()
for progress in kb.add([Path("my-docs")]): print(progress)
for hit in kb.search("what does it cost?"): print(hit)
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tinyseek.errors import UserError
from tinyseek.knowledge import files, uploads
from tinyseek.knowledge.chunks import searched
from tinyseek.knowledge.documents.read import Readers
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import ALL, Filters, Index, StoredChunk, StoredDocument
from tinyseek.knowledge.ingest import Ingest, Progress, Reads, Say, silent
from tinyseek.knowledge.options import KnowledgeSettings, knowledge_home
from tinyseek.settings import suggestion

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.ask import Part
    from tinyseek.knowledge.answer.options import AnswerSettings, How
    from tinyseek.knowledge.retrieve import Hit, Reranker
    from tinyseek.llm.base import ChatModel, Message

DEFAULT = KnowledgeSettings()
LONGEST_CORRECTION = 100_000  # characters
MOST_TAGS, LONGEST_TAG = 100, 100
_NAME = re.compile(r"[^\W_](?:[\w .-]{0,62}[\w-])?")


class KnowledgeBase:
    """One collection. Safe to use from several threads, and by several processes at once.

    Attributes:
        home: the folder of all collections and of what goes with them.
        collection: this one's name.
        settings: how it is cut, embedded and kept.
        index: its documents and chunks.
    """

    def __init__(
        self,
        index: Index,
        home: Path,
        collection: str,
        settings: KnowledgeSettings = DEFAULT,
        embedder: Embedder | None = None,
        readers: Reads | None = None,
    ) -> None:
        """Over an index that is open; `open` is what most want."""
        self.index, self.home, self.collection, self.settings = index, home, collection, settings
        self._opening = threading.RLock()
        self._embedder, self._own_embedder, self._adopted = embedder, embedder is None, False
        self._readers = readers
        self._own_readers: Readers | None = None

    @classmethod
    def open(
        cls,
        home: Path | None = None,
        collection: str = "default",
        settings: KnowledgeSettings = DEFAULT,
        embedder: Embedder | None = None,
        readers: Reads | None = None,
    ) -> Self:
        """Open a collection, or make it.

        Args:
            home: the folder of all collections; none for TINYSEEK_HOME/knowledge.
            embedder: one that is open already, and stays so; else the settings' is opened when it is first needed.
            readers: likewise, what reads files.
        Raises:
            UserError: no such name, or the index cannot be opened.
        """
        home = Path(home).expanduser() if home else knowledge_home()
        check_name(collection)
        index: Index
        if settings.index.where:
            from tinyseek.knowledge.index.postgres import PostgresIndex

            index = PostgresIndex(settings.index.where, collection, settings.index)
        else:
            from tinyseek.knowledge.index.sqlite import SqliteIndex

            index = SqliteIndex(folder_of(home, collection) / "index.db", settings.index)
        return cls(index, home, collection, settings, embedder, readers)

    def close(self) -> None:
        """Give back what was opened here."""
        with self._opening:
            if self._own_readers is not None:
                self._own_readers.close()
            if self._own_embedder and self._embedder is not None:
                self._embedder.close()
                self._embedder = None
            self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def embedder(self) -> Embedder:
        """What makes vectors, opened when it is first needed.

        Raises:
            UserError: it cannot be opened, or this collection's vectors are another's.
        """
        with self._opening:
            where = self.settings.embedder or self.index.embedder() or "e5"
            if self._embedder is None:
                from tinyseek.knowledge.embed.open import open_embedder

                self._embedder = open_embedder(where)
            if not self._adopted:
                self.index.adopt(self._embedder.name, self._embedder.width, where)
                self._adopted = True
            return self._embedder

    @property
    def folder(self) -> Path:
        """Where this collection's own files are."""
        return folder_of(self.home, self.collection)

    # ---- documents ----

    def add(
        self,
        paths: Iterable[Path | str] | Path | str,
        tags: Sequence[str] = (),
        say: Say = silent,
    ) -> Iterator[Progress]:
        """Add files, and the files of folders; of what was added before only what has changed. Files that are gone are forgotten.

        Args:
            tags: for each document, beside those that it has.
            say: takes lines about what takes long, and what was left out.
        Yields:
            What became of each file.
        Raises:
            UserError: the index cannot be written, or the embedder does not answer; what was yielded is in.
        """
        search = files.find([paths] if isinstance(paths, Path | str) else paths)
        if search.left_out:
            say(search.told())
        yield from self._ingest(tags, say).run(search)

    def add_bytes(self, name: str, data: bytes, tags: Sequence[str] = ()) -> Progress:
        """Add an upload that is in memory: its bytes are kept in the collection's folder. The same bytes again change nothing.

        Raises:
            UserError: the name is none, it is too large, or it cannot be kept.
        """
        files.upload_name(name)
        with self.incoming(name) as incoming:
            incoming.write(data)
            return self.add_file(incoming.path, name, tags)

    def incoming(self, name: str) -> uploads.Incoming:
        """Where an upload of this name is written as it comes, to be handed to `add_file`; no more of it than may be kept.

        Raises:
            UserError: it cannot be written.
        """
        return uploads.Incoming(self.folder, name, self.settings.limits.file_mb)

    def add_file(self, file: Path, name: str, tags: Sequence[str] = ()) -> Progress:
        """Add an upload that lies in a file: it is moved into the collection's folder, unless the same bytes are there already.

        Args:
            name: what it is called; the file's own name says nothing.
        Raises:
            UserError: the name is none, it is too large, or it cannot be kept; the file is where it was.
        """
        path = files.upload_name(name)
        uploads.check_size(name, file.stat().st_size, self.settings.limits.file_mb)
        sha256 = files.hash_of(file)
        for twin in self.index.by_content(sha256):
            if self._is_upload(twin):
                if not set(tags) <= set(twin.tags):
                    self.set_tags(twin.id, (*twin.tags, *tags))
                return Progress(name, "unchanged", f"has the same content as {twin.name}", twin.chunks, 1, 1, twin.id)
        kept = self.folder / "files" / sha256 / path.name
        uploads.move_in(file, kept)
        shown = _numbered(str(path), lambda wanted: bool(self.index.by_name(wanted)))
        progress = self._one(files.Found(kept, shown), tags)
        if progress.outcome == "failed":
            kept.unlink(missing_ok=True)
            _remove_empty(kept.parent)
        return progress

    def read_again(self, document: int) -> Progress:
        """Read a document's file anew, though it has not changed: with other settings, say. Corrections stay where they can.

        Raises:
            UserError: there is no such document.
        """
        known = self.document(document)
        return self._one(files.Found(Path(known.source), known.name, known.folder), again=True)

    def _one(self, found: files.Found, tags: Sequence[str] = (), again: bool = False) -> Progress:
        search = files.Search(files=[found])
        return list(self._ingest(tags, again=again, twins=False).run(search))[-1]

    def _ingest(self, tags: Sequence[str], say: Say = silent, again: bool = False, twins: bool = True) -> Ingest:
        tags = checked_tags(tags)
        return Ingest(self.index, lambda: self.embedder, self._reads(), self.settings, tags, say, again, twins)

    def _reads(self) -> Reads:
        with self._opening:
            if self._readers is None:
                self._readers = self._own_readers = Readers(self.settings.processes, self.settings.limits)
            return self._readers

    def watch(self, folder: Path | str, stop: threading.Event, say: Say = silent) -> Iterator[Progress]:
        """Add a folder, then follow it: yields what becomes of its files until `stop` is set.

        Raises:
            UserError: as `add` does; or there is no such folder.
        """
        from tinyseek.knowledge.watch import watch

        yield from watch(self, Path(folder), stop, say)

    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        """What is in the collection, by name."""
        return self.index.documents(filters)

    def document(self, document: int) -> StoredDocument:
        """One document by its id.

        Raises:
            UserError: there is none.
        """
        found = self.index.documents(Filters(documents=(document,)))
        if not found:
            raise UserError(f"there is no document {document} in the collection {self.collection}")
        return found[0]

    def remove(self, documents: Sequence[str | int]) -> list[StoredDocument]:
        """Forget documents by name, by pattern of names ("reports/*.pdf"), or by id; uploads are deleted. Files of the user's stay.

        Returns:
            What is gone.
        Raises:
            UserError: nothing is called so; nothing was removed then.
        """
        found: dict[int, StoredDocument] = {}
        for wanted in documents:
            matching = [self.document(wanted)] if isinstance(wanted, int) else self._named(wanted)
            found |= {document.id: document for document in matching}
        self.index.remove(list(found))
        for document in found.values():
            if self._is_upload(document):
                Path(document.source).unlink(missing_ok=True)
                _remove_empty(Path(document.source).parent)
        return list(found.values())

    def _named(self, name: str) -> list[StoredDocument]:
        exact = self.index.by_name(name) or self.index.by_source([str(files.absolute(name))])
        if exact:
            return exact
        everything = self.index.documents()
        folder = name.rstrip("/") + "/"
        found = [d for d in everything if fnmatch.fnmatchcase(d.name, name) or d.name.startswith(folder)]
        if not found:
            hint = suggestion(name, [d.name for d in everything[:1000]]) if len(everything) < 1000 else "see the list"
            raise UserError(f"{name}: no document of the collection {self.collection} is called so; {hint}")
        return found

    def set_tags(self, document: int, tags: Sequence[str]) -> StoredDocument:
        """Give a document these tags, and no others."""
        changed = replace(self.document(document), tags=checked_tags(tags))
        self.index.update(changed)
        return changed

    def _is_upload(self, document: StoredDocument) -> bool:
        return Path(document.source).is_relative_to(files.absolute(self.folder / "files"))

    # ---- chunks ----

    def chunks_of(self, document: int) -> list[StoredChunk]:
        """A document's chunks, in order."""
        return self.index.chunks_of(document)

    def correct(self, chunk: int, text: str) -> StoredChunk:
        """Replace a chunk's text. It is found by the new one, and stays when its file is read again unchanged there.

        Raises:
            UserError: there is no such chunk, or the text is empty or too long.
        """
        if not text.strip():
            raise UserError("a chunk cannot be empty; remove its document, or its part of the file")
        if len(text) > LONGEST_CORRECTION:
            raise UserError(f"the text has {len(text):,} characters; a chunk may have {LONGEST_CORRECTION:,}")
        found = self.index.chunks([chunk])
        if not found:
            raise UserError(f"there is no chunk {chunk} any more: its file has changed")
        title = self.document(found[0].document).title
        changed = replace(found[0].chunk, text=text)
        self.index.correct(chunk, text, self.embedder.passages([searched(changed, title)])[0])
        return self.index.chunks([chunk])[0]

    # ---- questions ----

    def search(
        self,
        question: str,
        how: How = "hybrid",
        limit: int = 10,
        filters: Filters = ALL,
        rerank: Reranker | None = None,
    ) -> list[Hit]:
        """The passages that say most about a question, best first; see `retrieve.search`."""
        from tinyseek.knowledge.retrieve import search

        return search(self, question, how, limit, filters, rerank)

    def ask(
        self,
        question: str,
        history: Sequence[Message] = (),
        model: ChatModel | None = None,
        filters: Filters = ALL,
        settings: AnswerSettings | None = None,
    ) -> Iterator[Part]:
        """An answer with citations, piece by piece; see `answer.ask`."""
        from tinyseek.knowledge.answer.ask import DEFAULTS, ask

        return ask(self, question, history, model, settings or DEFAULTS, filters)

    # ---- collections ----

    def collections(self) -> list[str]:
        """The names of all collections beside this one, itself included."""
        return collections(self.home, self.settings)

    @staticmethod
    def delete_collection(name: str, home: Path | None = None, settings: KnowledgeSettings = DEFAULT) -> None:
        """Delete a collection and its uploads for good. Files of the user's stay.

        Raises:
            UserError: there is none.
        """
        home = Path(home).expanduser() if home else knowledge_home()
        check_name(name)
        if name not in collections(home, settings):
            hint = suggestion(name, collections(home, settings))
            raise UserError(f"{name}: there is no such collection; {hint}")
        if settings.index.where:
            from tinyseek.knowledge.index.postgres import delete_collection

            delete_collection(settings.index.where, name)
        folder = folder_of(home, name)
        if folder.exists():
            aside = folder.with_name(f".{name}.{os.getpid()}")
            folder.rename(aside)  # at once, then at leisure
            shutil.rmtree(aside, ignore_errors=True)


def folder_of(home: Path, collection: str) -> Path:
    """The folder of one collection."""
    return home / "collections" / collection


def collections(home: Path, settings: KnowledgeSettings = DEFAULT) -> list[str]:
    """The names of the collections that there are."""
    if settings.index.where:
        from tinyseek.knowledge.index.postgres import collections as on_server

        return on_server(settings.index.where)
    return sorted(file.parent.name for file in (home / "collections").glob("[!.]*/index.db"))


def check_name(collection: str) -> None:
    """See that a collection's name is one.

    Raises:
        UserError: it is not.
    """
    if not _NAME.fullmatch(collection) or collection.strip() != collection:
        raise UserError(
            f"{collection[:80]!r}: is no name for a collection; use letters, digits, - and _, at most 64 (my-notes)"
        )


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags without blanks around them, each once.

    Raises:
        UserError: one is empty or too long, or there are too many.
    """
    found = tuple(dict.fromkeys(tag.strip() for tag in tags))
    wrong = next((tag for tag in found if not tag or len(tag) > LONGEST_TAG or not tag.isprintable()), None)
    if wrong is not None:
        raise UserError(f"{wrong[:80]!r}: is no tag; give a word or a few, at most {LONGEST_TAG} characters")
    if len(found) > MOST_TAGS:
        raise UserError(f"{len(found)} tags; a document may have {MOST_TAGS}")
    return found


def _numbered(name: str, taken: Callable[[str], bool]) -> str:
    """The name, or with a number before its ending the first that is free: notes (2).txt."""
    path = Path(name)
    number = 1
    while taken(name):
        number += 1
        name = str(path.with_name(f"{path.stem} ({number}){path.suffix}"))
    return name


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()
