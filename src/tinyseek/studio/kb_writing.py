"""An answer on its way: in a thread of its own, saved as it grows, watched by any number of pages.

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
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.studio.answering import SAVE_SECONDS
from tinyseek.studio.chats import Chats, Message

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Writing(Generic[T]):
    """One answer. Its `message` is filled in place by the steps of its kind."""

    task: asyncio.Task[None]

    def __init__(self, talks: Chats, message: Message, facts: dict[str, Any]) -> None:
        """Prepare; `begin` begins.

        Args:
            facts: what is known of the answer from the beginning.
        """
        self.message, self._talks = message, talks
        self._watchers: set[asyncio.Event] = set()
        self._halt = threading.Event()
        self._began = self._saved = time.monotonic()
        self._ended = False
        message.facts = facts

    def begin(self, threads: Executor) -> None:
        """Begin to write. Needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._began = self._saved = time.monotonic()
        self.task = self._loop.create_task(self._run(threads))

    # ---- what the kinds do ----

    def steps(self) -> Iterator[T]:
        """Write, in a thread.

        Raises:
            UserError: it cannot be finished; what came is kept.
        """
        raise NotImplementedError

    def take(self, step: T) -> None:
        """Put a step into the message, in the loop."""
        raise NotImplementedError

    # ---- who looks on ----

    @property
    def done(self) -> bool:
        return self.message.state != "writing"

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

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

    # ---- on its way ----

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
        """In a thread: the steps, one by one, handed over to the loop."""
        steps = self.steps()
        try:
            for step in steps:
                if self._halt.is_set():
                    return
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._taken, step)
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    def _taken(self, step: T) -> None:
        if self._ended:
            return
        self.take(step)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._saved = time.monotonic()
            self._save()
        self._tell()

    def _end(self, state: str, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self.message.state, self.message.error = state, error  # type: ignore[assignment]  # one of State
        self.message.facts["seconds"] = round(self.seconds, 3)
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


def places_of(kept: Mapping[str, Any]) -> tuple[Place, ...]:
    """The places of what was kept; none where it is not what it should be."""
    try:
        return tuple(Place.read(place) for place in kept.get("places", ()))
    except (TypeError, ValueError, AttributeError, IndexError):
        return ()
