"""Files into an index: read side by side, cut, embedded in batches, put in one by one, each whole or not at all.

What a file's hash knows is not read again, what a chunk's text knows is not embedded again, and what was done when a run was killed
is done. A renamed file keeps its chunks; of two files with the same content one is kept.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge import files
from tinyseek.knowledge.chunks import searched, split
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.files import Found
from tinyseek.knowledge.index.base import Chunk, Index, StoredDocument
from tinyseek.knowledge.options import KnowledgeSettings

Outcome = Literal["added", "changed", "unchanged", "moved", "removed", "failed"]
Say = Callable[[str], None]
_RACY = 2.0  # seconds: a file changed so shortly before it was read may have changed again within its clock's tick
_TELL = 5.0  # seconds between two lines about one long document


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Progress:
    """What became of one file."""

    file: str  # its name
    outcome: Outcome
    why: str = ""  # of a failure, or a word more
    chunks: int = 0
    done: int = 0  # files, this one included
    total: int = 0
    document: int = 0  # id in the index; 0 for none


class Reads(Protocol):
    """What reads files: documents.read.Readers."""

    def read(self, files: Iterator[Path | tuple[Path, str]]) -> Iterator[tuple[Path, Document | UserError]]:
        """Each file's document or why there is none, in order."""


@dataclass
class _Work:
    """A file on its way."""

    found: Found
    sha256: str
    size: int
    modified: float
    known: StoredDocument | None
    document: Document | None = None
    chunks: list[Chunk] = field(default_factory=list)
    vectors: list[NDArray[np.float32] | None] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.document.title if self.document else ""

    @property
    def wanted(self) -> list[int]:
        """The chunks that have no vector yet."""
        return [number for number, vector in enumerate(self.vectors) if vector is None]


class Ingest:
    """One run over some files."""

    def __init__(
        self,
        index: Index,
        embedder: Callable[[], Embedder],
        readers: Reads,
        settings: KnowledgeSettings,
        tags: Sequence[str] = (),
        say: Say = silent,
        again: bool = False,
        twins: bool = True,
    ) -> None:
        """Prepare.

        Args:
            embedder: opens it when the first text is to be embedded.
            say: takes lines about what takes long.
            again: read files anew whose content has not changed.
            twins: look for documents with the same content, moved or still there; uploads are kept for themselves.
        """
        self._index, self._embedder, self._readers, self._settings = index, embedder, readers, settings
        self._tags, self._say, self._again, self._twins = tuple(tags), say, again, twins
        self._ready: deque[Progress] = deque()  # files that need no reading
        self._reading: deque[_Work] = deque()  # in the order in which readers give them back
        self._seen: dict[str, str] = {}  # hash -> name, of this run's files

    def run(self, search: files.Search) -> Iterator[Progress]:
        """Bring the index to what the files are now.

        Raises:
            UserError: the index cannot be written, or the embedder does not answer; what was yielded is in.
        """
        gone = {document.id: document for document in self._missing(search)}
        for done, progress in enumerate(self._outcomes(search, gone), 1):
            total = max(len(search.files) + len(search.refused) + len(gone), done)
            yield replace(progress, done=done, total=total)

    def _outcomes(self, search: files.Search, gone: dict[int, StoredDocument]) -> Iterator[Progress]:
        """What becomes of each file; of `gone` is taken what turns up elsewhere."""
        for name, why in search.refused:
            yield Progress(name, "failed", why)
        held: list[_Work] = []
        for _, read in self._readers.read(self._to_read(search.files, gone)):
            while self._ready:
                yield self._ready.popleft()
            work = self._reading.popleft()
            if isinstance(read, UserError):
                yield self._failed(work, str(read))
                continue
            self._prepare(work, read)
            held.append(work)
            if sum(len(item.wanted) for item in held) >= self._settings.batch or len(held) >= self._settings.batch:
                yield from self._put(held)
                held = []
        yield from self._put(held)
        yield from self._ready
        for document in list(gone.values()):
            self._index.remove([document.id])
            yield Progress(document.name, "removed", "its file is gone", document=document.id)

    def _missing(self, search: files.Search) -> list[StoredDocument]:
        """Documents whose files were in the folders and are there no more."""
        there = {str(found.file) for found in search.files}
        found: dict[int, StoredDocument] = {}
        for folder in search.folders:
            known = [document for document in self._index.under(str(folder)) if document.folder]
            gone = [d for d in known if d.source not in there and not files.is_plain(Path(d.source))]
            if gone and len(gone) == len(known) and not any(folder.iterdir()):
                why = f"is empty now; its {len(gone):,} documents are kept: remove them if that is meant"
                search.refused.append((str(folder), why))
                continue
            found |= {document.id: document for document in gone}
        return list(found.values())

    # ---- what is to be read --------------------------------------------------------------------------------------------------

    def _to_read(self, found: Sequence[Found], gone: dict[int, StoredDocument]) -> Iterator[tuple[Path, str]]:
        """The files that must be read; the outcome of the others is ready at once."""
        for start in range(0, len(found), 256):
            part = found[start : start + 256]
            known = {d.source: d for d in self._index.by_source([str(entry.file) for entry in part])}
            for entry in part:
                try:
                    work = self._examined(entry, known.get(str(entry.file)), gone)
                except OSError as error:
                    self._ready.append(Progress(entry.name, "failed", f"cannot be read ({error.strerror})"))
                    continue
                if work is not None:
                    self._reading.append(work)
                    yield entry.file, entry.name

    def _examined(self, entry: Found, known: StoredDocument | None, gone: dict[int, StoredDocument]) -> _Work | None:
        found = entry.file.stat()
        size, modified = found.st_size, found.st_mtime
        untouched = known is not None and (size, modified) == (known.size, known.modified)
        if known is not None and untouched and known.added - modified > _RACY and not self._again:
            self._same(known)
            return None
        if size == 0 or size > self._settings.limits.file_mb * 1e6 or not files.is_plain(entry.file.resolve()):
            return _Work(entry, "", size, modified, known)  # its reader says what is wrong
        sha256 = files.hash_of(entry.file)
        if known is not None and known.sha256 == sha256 and not self._again:
            self._same(replace(known, modified=modified, added=time.time()), touched=True)
            return None
        if known is None and self._twins:
            twins = self._index.by_content(sha256)
            moved = next((d for d in twins if d.id in gone or not os.path.lexists(d.source)), None)
            if moved is not None:
                gone.pop(moved.id, None)
                self._moved(entry, replace(moved, size=size, modified=modified, added=time.time()))
                return None
            twin = twins[0].name if twins else self._seen.get(sha256)
            if twin is not None:
                self._ready.append(Progress(entry.name, "unchanged", f"has the same content as {twin}"))
                return None
            self._seen[sha256] = entry.name
        return _Work(entry, sha256, size, modified, known)

    def _same(self, known: StoredDocument, touched: bool = False) -> None:
        why = ""
        if not set(self._tags) <= set(known.tags):
            known, why, touched = replace(known, tags=self._with_tags(known)), "tags added", True
        if touched:
            self._index.update(known)
        self._ready.append(Progress(known.name, "unchanged", why, known.chunks, document=known.id))

    def _moved(self, entry: Found, known: StoredDocument) -> None:
        name = self._name(entry, known)
        was = known.name
        document = replace(known, source=str(entry.file), name=name, folder=entry.folder, tags=self._with_tags(known))
        self._index.update(document)
        self._ready.append(Progress(name, "moved", f"was {was}", known.chunks, document=known.id))

    def _with_tags(self, known: StoredDocument) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*known.tags, *self._tags)))

    def _name(self, entry: Found, known: StoredDocument | None) -> str:
        """What to call a document: no two alike."""
        names = [entry.name]
        for parent in (Path(entry.folder) if entry.folder else entry.file.parent, *entry.file.parents):
            if parent.name and f"{parent.name}/{names[-1]}" != str(entry.file):
                names.append(f"{parent.name}/{names[-1]}")
            if len(names) == 3:
                break
        names.append(str(entry.file))
        own = known.id if known else 0
        free = (name for name in names if all(document.id == own for document in self._index.by_name(name)))
        return next(free, names[-1])

    # ---- what was read ---------------------------------------------------------------------------------------------------------

    def _failed(self, work: _Work, why: str) -> Progress:
        why = why.removeprefix(f"{work.found.name}: ")
        if work.known is not None:
            why += "; what was read of it before is kept"
        known = work.known.id if work.known else 0
        return Progress(work.found.name, "failed", why, document=known)

    def _prepare(self, work: _Work, document: Document) -> None:
        """Cut a document, and take over what is known of chunks that have not changed: vectors, and the user's corrections."""
        work.document = document
        chunks = split(document, self._settings.chunks, self._embedder().count_tokens)
        known: dict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = {}
        if work.known is not None:
            stored = self._index.chunks_of(work.known.id)
            corrected = {(s.chunk.original, s.chunk.path): s.chunk for s in stored if s.chunk.corrected}
            chunks = [_corrected(chunk, corrected.get((chunk.text, chunk.path))) for chunk in chunks]
            if work.known.title == document.title:
                vectors = self._index.vectors([s.id for s in stored])
                known = {(s.chunk.text, s.chunk.path): vectors[s.id] for s in stored if s.id in vectors}
        work.chunks = chunks
        work.vectors = [known.get((chunk.text, chunk.path)) for chunk in chunks]

    def _put(self, held: Sequence[_Work]) -> Iterator[Progress]:
        """Embed what is held, together, and put each document in."""
        wanted = [(work, number) for work in held for number in work.wanted]
        begun = told = time.monotonic()
        for start in range(0, len(wanted), self._settings.batch):
            part = wanted[start : start + self._settings.batch]
            texts = [searched(work.chunks[number], work.title) for work, number in part]
            for (work, number), vector_W in zip(part, self._embedder().passages(texts), strict=True):
                work.vectors[number] = vector_W
            if time.monotonic() - told > _TELL:
                told = time.monotonic()
                done = start + len(part)
                left = (len(wanted) - done) * (told - begun) / done
                self._say(f"{held[-1].found.name}: {done:,} of {len(wanted):,} passages embedded, {left:.0f} s to go")
        for work in held:
            yield self._stored(work)

    def _stored(self, work: _Work) -> Progress:
        assert work.document is not None
        read, known = work.document, work.known
        document = StoredDocument(
            source=str(work.found.file),
            name=known.name if known else self._name(work.found, None),
            sha256=work.sha256,
            size=work.size,
            kind=read.kind,
            folder=known.folder if known else work.found.folder,
            modified=work.modified,
            added=time.time(),
            title=read.title,
            author=read.author,
            date=read.date,
            pages=read.pages,
            language=read.language,
            tags=self._with_tags(known) if known else self._tags,
            notes=read.notes,
            details=read.details,
        )
        width = self._embedder().width
        vectors_NW = np.array(work.vectors, np.float32).reshape(len(work.chunks), width)
        made = self._index.put(document, work.chunks, vectors_NW)
        why = "; ".join(read.notes) if work.chunks else "no text was found in it"
        return Progress(document.name, "changed" if known else "added", why, len(work.chunks), document=made)


def _corrected(chunk: Chunk, known: Chunk | None) -> Chunk:
    if known is None:
        return chunk
    return replace(known, section=chunk.section)
