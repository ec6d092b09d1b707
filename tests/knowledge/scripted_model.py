"""A ChatModel whose answers a test decides, and that remembers what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from tinyseek.llm.base import DEFAULT, ChatDelta, ChatModel, ChatOptions, Message, Usage


class ScriptedModel(ChatModel):
    """Answers by a function of the conversation; an error that it raises is raised in the midst of the stream."""

    def __init__(
        self,
        answer: Callable[[Sequence[Message]], str],
        name: str = "scripted",
        context: int | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.name, self.context = name, context
        self.asked: list[tuple[list[Message], ChatOptions]] = []
        self.at_once = self.most_at_once = 0
        self._answer, self._seconds = answer, seconds
        self._lock = threading.Lock()

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        with self._lock:
            self.asked.append((list(messages), options))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self._seconds)
            said = self._answer(messages)
            for start in range(0, len(said), 7):
                yield ChatDelta(content=said[start : start + 7])
            yield ChatDelta(finish="stop", usage=Usage(len(str(messages)) // 4, len(said) // 4))
        finally:
            with self._lock:
                self.at_once -= 1

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        for delta in self.stream(messages, options):
            yield delta

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError
