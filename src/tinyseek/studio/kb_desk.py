"""What all knowledge pages of a server share: the collections, what is being asked and brought in, and who has a page open."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from tinyseek.errors import UserError
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.index.base import ALL, Filters, StoredDocument
from tinyseek.knowledge.shelf import Shelf
from tinyseek.llm.base import ChatModel
from tinyseek.studio.chats import Chats, Conversation, Message
from tinyseek.studio.kb_asking import Asking
from tinyseek.studio.kb_intake import Intake
from tinyseek.studio.kb_summary import Summing
from tinyseek.studio.kb_tables import Reckoning
from tinyseek.studio.kb_writing import Writing
from tinyseek.studio.options import StudioSettings
from tinyseek.studio.shared import BusyError

Task = Literal["text", "tables", "summary"]  # what a question is asked of
Listener = Callable[[str], None]  # is told what changed: "documents", "talks", or a conversation's id
_AT_ONCE = 16  # answers of all visitors that are written at once
_READ = 4  # documents whose blocks are remembered
_REST = 0.2  # seconds between two words of a change


class Desk:
    """One for each server."""

    def __init__(self, shelf: Shelf, visitors: Chats, settings: StudioSettings, with_chat: bool) -> None:
        """Open the store of what was asked.

        Args:
            visitors: where their language and theme are.
            with_chat: there is a chat page too.
        Raises:
            UserError: the store cannot be opened.
        """
        self.shelf, self.visitors, self.settings, self.with_chat = shelf, visitors, settings, with_chat
        self.talks = Chats(settings.folder() / "knowledge.db")
        self.answers: dict[str, Writing[Any]] = {}  # by conversation
        self._owners: dict[Writing[Any], str] = {}  # of all that is at work, what was stopped until it has ended
        self._intakes: dict[tuple[bytes, str], Intake] = {}
        self._listeners: dict[tuple[bytes, str], set[Listener]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="kb ask")
        self._read: OrderedDict[str, Document] = OrderedDict()
        self._reading = threading.Lock()
        self._told: dict[tuple[bytes, str], float] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        """Stop what is being written, keep it, and close the store."""
        for intake in self._intakes.values():
            intake.stop()
        tasks = [writing.task for writing in self._owners]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.talks.close()

    def owner(self, visitor: str, key: bytes) -> str:
        """Whose conversations these are: a visitor's who came with this key."""
        return hashlib.sha256(visitor.encode() + b"\n" + key).hexdigest()[:32] if key else visitor

    # ---- asking ----

    def model(self, name: str = "") -> ChatModel | None:
        """Who writes answers: the one of this name, else the usual one; None where answers are quoted."""
        models = self.shelf.models
        return models.get(name) or next(iter(models.values()), None)

    def ask(self, place: Conversation, question: Message, base: KnowledgeBase, model: ChatModel | None) -> Writing[Any]:
        """Begin to answer: from the documents' text, from their tables, or by a summary, as the question's facts say (`task`).

        Raises:
            BusyError: too many answers of this visitor, or one in this conversation, are being written.
        """
        if self.writing(place.id) or list(self._owners.values()).count(place.owner) >= self.settings.answers:
            raise BusyError("answers are being written")
        before = self.talks.path(place, question.id)
        message = self.talks.add(place, question.id, "assistant", state="writing")
        filters = _filters(question)
        writing: Writing[Any]
        match question.facts.get("task"):
            case "summary":
                focus = str(question.facts.get("focus") or "")
                writing = Summing(base, self.talks, message, model, filters, focus)
            case "tables":
                writing = Reckoning(base, self.shelf.tables, self.talks, message, before, model, filters)
            case _:
                writing = Asking(base, self.talks, message, before, model, filters, self.shelf.answers)
        writing.begin(self._threads)
        self.answers[place.id], self._owners[writing] = writing, place.owner
        writing.task.add_done_callback(functools.partial(self._answered, place.id, writing))
        return writing

    def writing(self, place: str) -> Writing[Any] | None:
        """What is being written in a conversation; one that was stopped is not, though its last step may still run."""
        found = self.answers.get(place)
        return found if found is not None and not found.done else None

    def live(self) -> set[str]:
        """The conversations in which something is being written."""
        return {place for place, writing in self.answers.items() if not writing.done}

    def _answered(self, place: str, writing: Writing[Any], _task: asyncio.Task[None]) -> None:
        if self.answers.get(place) is writing:
            del self.answers[place]
        self._owners.pop(writing, None)

    def talks_of(self, owner: str, collection: str, most: int = 60) -> list[Conversation]:
        """What a visitor asked a collection, the last first."""
        found = self.talks.find(owner, most=500)
        return [talk for talk in found if talk.settings.get("collection") == collection][:most]

    # ---- bringing in ----

    def intake(self, key: bytes, collection: str) -> Intake:
        """What is being brought into a collection.

        Raises:
            UserError: there is no such collection.
        """
        base = self.shelf.base(key, collection)
        intake = self._intakes.get((key, collection))
        if intake is None or not intake.of(base):
            changed = functools.partial(self._changed, key, collection)
            intake = self._intakes[key, collection] = Intake(base, changed)
        return intake

    def delete(self, key: bytes, collection: str) -> None:
        """Delete a collection; blocks until what is being brought in has stopped.

        Raises:
            UserError: there is none.
        """
        intake = self._intakes.pop((key, collection), None)
        if intake is not None:
            intake.stop()
            intake.join()
        self.shelf.delete(key, collection)

    def _changed(self, key: bytes, collection: str) -> None:
        """From any thread; seldom, however often it is called."""
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        place, now = (key, collection), time.monotonic()
        wait = self._told.get(place, 0.0) + _REST - now
        if wait > _REST:  # it will be told in a moment anyway
            return
        self._told[place] = now + max(wait, 0.0)
        later = functools.partial(loop.call_later, max(wait, 0.0), self.tell, key, collection, "documents")
        loop.call_soon_threadsafe(later)

    # ---- reading for the viewer ----

    def blocks(self, document: StoredDocument) -> Document:
        """A document's blocks, read from its file.

        Raises:
            UserError: the file is gone, or cannot be read any more.
        """
        with self._reading:
            known = self._read.get(document.sha256)
            if known is None:
                known = self.shelf.read(Path(document.source), document.name)
                self._read[document.sha256] = known
                while len(self._read) > _READ:
                    self._read.popitem(last=False)
            self._read.move_to_end(document.sha256)
            return known

    # ---- several pages ----

    def listen(self, key: bytes, collection: str, listener: Listener) -> None:
        """Be told when something changes in a collection."""
        self.loop = asyncio.get_running_loop()
        self._listeners.setdefault((key, collection), set()).add(listener)

    def leave(self, key: bytes, collection: str, listener: Listener) -> None:
        """Be told no more."""
        listeners = self._listeners.get((key, collection), set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop((key, collection), None)

    def tell(self, key: bytes, collection: str, what: str, but: Listener | None = None) -> None:
        """Tell the pages that show a collection, all `but` one, what changed."""
        for listener in list(self._listeners.get((key, collection), ())):
            if listener != but:
                listener(what)


def _filters(question: Message) -> Filters:
    """The documents that a question is asked of."""
    documents = [number for number in question.facts.get("documents") or [] if isinstance(number, int)]
    return Filters(documents=tuple(documents)) if documents else ALL


def source_of(document: StoredDocument) -> Path:
    """A document's file, if it is there as it was read.

    Raises:
        UserError: it is gone.
    """
    file = Path(document.source)
    if not file.is_file():
        raise UserError(f"{document.name}: its file is no longer at {document.source}")
    return file


def is_changed(document: StoredDocument) -> bool:
    """Whether a document's file is another than the one that was read."""
    try:
        found = Path(document.source).stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime) != (document.size, document.modified)


def kinds_of(documents: Sequence[StoredDocument]) -> dict[str, int]:
    """How many documents of each kind there are."""
    counts: dict[str, int] = {}
    for document in documents:
        counts[document.kind] = counts.get(document.kind, 0) + 1
    return counts
