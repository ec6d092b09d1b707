"""An answer from documents on its way: in a thread of its own, saved as it grows, watched by any number of pages.

As `answering` does it for conversations: a page that is reloaded loses nothing. What goes with the answer (passages, citations, how
it came about) is kept with it as plain JSON, so that a citation can be clicked a month later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.studio.answering import SAVE_SECONDS
from tinyseek.studio.chats import Chats, Message

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.ask import Part, Reply
    from tinyseek.knowledge.answer.citations import Citation
    from tinyseek.knowledge.answer.options import AnswerSettings
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.retrieve import Hit
    from tinyseek.llm.base import ChatModel

NEAREST = 8  # passages that are kept with an answer
_SHOWN = 600  # characters of each
_log = logging.getLogger(__name__)


class Asking:
    """One answer. Its `message` is filled in place."""

    def __init__(
        self,
        base: KnowledgeBase,
        talks: Chats,
        message: Message,
        before: Sequence[Message],
        model: ChatModel | None,
        threads: Executor,
        filters: Filters = ALL,
        settings: AnswerSettings | None = None,
    ) -> None:
        """Begin to answer the last message of `before`. Needs a running event loop."""
        self.message, self._base, self._talks = message, base, talks
        self._question = before[-1].content
        self._history = [{"role": said.role, "content": said.content} for said in before[:-1] if said.content]
        self._model, self._filters, self._settings = model, filters, settings
        self._watchers: set[asyncio.Event] = set()
        self._halt = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._saved = time.monotonic()
        self._ended = False
        message.facts = {"model": model.name if model else "", "asked": self._question}
        self.task = self._loop.create_task(self._run(threads))

    @property
    def done(self) -> bool:
        return self.message.state != "writing"

    def stop(self) -> None:
        """Keep what there is, and write no more."""
        self._halt.set()
        self._end("stopped")

    def watch(self) -> asyncio.Event:
        """An event that is set whenever the answer has grown, or ended. Whoever waits for it clears it."""
        event = asyncio.Event()
        event.set()
        self._watchers.add(event)
        return event

    def leave(self, event: asyncio.Event) -> None:
        """Watch no more."""
        self._watchers.discard(event)

    async def _run(self, threads: Executor) -> None:
        try:
            await self._loop.run_in_executor(threads, self._pump)
            self._end("whole")
        except asyncio.CancelledError:  # the server goes down
            self._halt.set()
            self._end("stopped")
            raise
        except UserError as error:
            self._end("failed", str(error))
        except Exception:
            number = uuid.uuid4().hex[:12]
            _log.exception("answer %s failed", number)
            self._end("failed", f"The server failed; its log says why under {number}.")

    def _pump(self) -> None:
        """In a thread: the parts, one by one, handed over to the loop."""
        parts = self._base.ask(self._question, self._history, self._model, self._filters, self._settings)
        try:
            for part in parts:
                if self._halt.is_set():
                    return
                self._hand_over(part)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()

    def _hand_over(self, part: Part) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take, part)

    def _take(self, part: Part) -> None:
        if self._ended:
            return
        message, facts = self.message, self.message.facts
        if part.question:
            facts["question"] = part.question
        if part.hits:
            facts["hits"] = [hit_facts(hit) for hit in part.hits[:NEAREST]]
        if part.text and message.reasoning and "thinking_seconds" not in facts:
            facts["thinking_seconds"] = round(time.monotonic() - self._began, 3)
        message.reasoning += part.reasoning
        message.content += part.text
        if part.citation is not None:
            facts.setdefault("citations", []).append(citation_facts(part.citation))
        if part.reply is not None:
            self._take_reply(part.reply)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._saved = time.monotonic()
            self._save()
        self._tell()

    def _take_reply(self, reply: Reply) -> None:
        facts = self.message.facts
        self.message.content = reply.text
        facts |= {
            "citations": [citation_facts(citation) for citation in reply.citations],
            "follow_ups": list(reply.follow_ups),
            "found": reply.found,
            "dropped": reply.dropped,
            "how": reply.how,
            "confidence": round(reply.confidence, 3),
            "note": reply.note,
            "finish": reply.finish,
        }
        if reply.usage is not None:
            facts["prompt_tokens"] = reply.usage.prompt_tokens
            facts["completion_tokens"] = reply.usage.completion_tokens

    def _end(self, state: str, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self.message.state, self.message.error = state, error  # type: ignore[assignment]  # one of State
        self.message.facts["seconds"] = round(time.monotonic() - self._began, 3)
        self._save()
        self._tell()

    def _save(self) -> None:
        try:
            self._talks.save(self.message)
        except Exception:
            _log.exception("an answer could not be saved")

    def _tell(self) -> None:
        for event in self._watchers:
            event.set()


def citation_facts(citation: Citation) -> dict[str, Any]:
    """A citation as it is kept."""
    return {
        "number": citation.number,
        "document": citation.document.id,
        "name": citation.document.name,
        "kind": citation.document.kind,
        "places": [place.plain() for place in citation.places],
        "quote": citation.quote,
    }


def hit_facts(hit: Hit) -> dict[str, Any]:
    """A passage that was found, as it is kept."""
    return {
        "chunk": hit.chunk.id,
        "document": hit.document.id,
        "name": hit.document.name,
        "kind": hit.document.kind,
        "path": list(hit.chunk.chunk.path),
        "places": [place.plain() for place in hit.chunk.chunk.places],
        "text": hit.chunk.chunk.text[:_SHOWN],
        "score": round(hit.score, 4),
        "lexical": hit.lexical,
        "dense": hit.dense,
    }


def places_of(kept: Mapping[str, Any]) -> tuple[Place, ...]:
    """The places of what was kept; none where it is not what it should be."""
    try:
        return tuple(Place.read(place) for place in kept.get("places", ()))
    except (TypeError, ValueError, AttributeError, IndexError):
        return ()
