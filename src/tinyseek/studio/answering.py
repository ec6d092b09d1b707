"""An answer being written: in a task of its own, saved as it grows, and watched by any number of pages.

So a page that is reloaded, or a phone that falls asleep, loses nothing: the answer goes on, and
whoever comes back sees where it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatDelta, ChatModel, ChatOptions, Collector
from tinyseek.studio.chats import Chats, Message
from tinyseek.studio.options import Talk

LEAST_ROOM = 32  # tokens of context that an answer must have, before old turns are left out
SAVE_SECONDS = 0.5  # what a killed process loses at most
_log = logging.getLogger(__name__)


class Answering:
    """One answer on its way from the model to the store."""

    def __init__(self, chat: ChatModel, chats: Chats, message: Message, before: Sequence[Message], talk: Talk) -> None:
        """Begin to answer. Needs a running event loop.

        Args:
            message: the empty answer, which is filled in place.
            before: the conversation up to it.
        """
        self.message = message
        self._chat, self._chats = chat, chats
        self._said = conversation(before, talk)
        self._options = talk.options()
        message.facts = {"model": chat.name, "talk": talk.model_dump(mode="json", exclude_defaults=True)}
        self._watchers: set[asyncio.Event] = set()
        self._saved = self._began = time.monotonic()
        self._first: float | None = None
        self._stopped = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def done(self) -> bool:
        return self.message.state != "writing"

    def stop(self) -> None:
        """Keep what there is, and write no more."""
        self._stopped = True
        self.task.cancel()

    def watch(self) -> asyncio.Event:
        """An event that is set whenever the answer has grown, or ended. Whoever waits for it clears it."""
        event = asyncio.Event()
        event.set()
        self._watchers.add(event)
        return event

    def leave(self, event: asyncio.Event) -> None:
        """Watch no more."""
        self._watchers.discard(event)

    async def _run(self) -> None:
        message, collector = self.message, Collector()
        try:
            forgotten = too_many(self._chat, self._said, self._options)
            if forgotten:
                message.facts["forgotten"] = forgotten
            async for delta in self._chat.astream(shortened(self._said, forgotten), self._options):
                self._take(delta, collector)
            message.state = "whole"
        except asyncio.CancelledError:
            message.state = "stopped"
            if not self._stopped:  # the server goes down
                self._end(collector)
                raise
        except UserError as error:
            message.state, message.error = "failed", str(error)
        except Exception:
            number = uuid.uuid4().hex[:12]
            _log.exception("answer %s failed", number)
            message.state, message.error = "failed", f"The server failed; its log says why under {number}."
        self._end(collector)

    def _take(self, delta: ChatDelta, collector: Collector) -> None:
        now, message = time.monotonic(), self.message
        collector.push(delta)
        answer = collector.answers()[0]
        said = delta.reasoning or delta.content or delta.tool_calls
        if said and self._first is None:
            self._first = now
            message.facts["first_seconds"] = round(now - self._began, 3)
        if (delta.content or delta.tool_calls) and answer.reasoning and "thinking_seconds" not in message.facts:
            message.facts["thinking_seconds"] = round(now - (self._first or now), 3)
        message.content, message.reasoning, message.calls = answer.content, answer.reasoning, answer.tool_calls
        message.ids = answer.ids
        if now - self._saved > SAVE_SECONDS:
            self._saved = now
            self._save()
        self._tell()

    def _end(self, collector: Collector) -> None:
        message, facts = self.message, self.message.facts
        answer = next(iter(collector.answers()), None)
        seconds = time.monotonic() - (self._first or self._began)
        facts["seconds"] = round(time.monotonic() - self._began, 3)
        if message.reasoning and "thinking_seconds" not in facts:
            facts["thinking_seconds"] = round(seconds, 3)
        count = len(message.ids)
        if answer is not None and answer.usage is not None:
            usage = answer.usage
            count = usage.completion_tokens
            facts |= {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
                "cost": usage.cost,
            }
        facts["completion_tokens"] = count
        facts["finish"] = answer.finish if answer else None
        if count > 1 and seconds > 0.01:
            facts["tokens_per_second"] = round((count - 1) / seconds, 2)
        message.calls = [call for call in message.calls if call.get("function", {}).get("name")]
        self._save()
        self._tell()

    def _save(self) -> None:
        try:
            self._chats.save(self.message)
        except Exception:  # a full disk must not end the answer that someone is reading
            _log.exception("the answer could not be saved")

    def _tell(self) -> None:
        for event in self._watchers:
            event.set()


def conversation(messages: Sequence[Message], talk: Talk) -> list[dict[str, Any]]:
    """Messages as a model reads them, the system prompt first."""
    opening = [{"role": "system", "content": talk.system}] if talk.system.strip() else []
    return [*opening, *(message.wire() for message in messages if not message.empty)]


def shortened(said: Sequence[dict[str, Any]], forgotten: int) -> list[dict[str, Any]]:
    """A conversation without its oldest messages, but with its system prompt."""
    opening = [message for message in said[:1] if message["role"] == "system"]
    return [*opening, *said[len(opening) + forgotten :]]


def too_many(chat: ChatModel, said: Sequence[dict[str, Any]], options: ChatOptions) -> int:
    """How many of the oldest messages must be left out, whole turns of them, for the rest to leave room for an answer.

    0 where the model does not say how long its context is, or where the last turn alone is too long.
    """
    if chat.context is None:
        return 0
    first = 1 if said and said[0]["role"] == "system" else 0
    turns = [number - first for number, message in enumerate(said) if message["role"] == "user" and number >= first]
    room = min(LEAST_ROOM, chat.context // 4)

    def fits(forgotten: int) -> bool:
        count = chat.count_tokens(shortened(said, forgotten), options)
        return count is None or count + room <= chat.context  # type: ignore[operator]

    if not turns or fits(0):
        return 0
    low, high = 0, len(turns) - 1  # turns[low] is too little, turns[high] is all but the last turn
    if not fits(turns[high]):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(turns[middle]) else (middle, high)
    return turns[high]
