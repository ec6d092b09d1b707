"""A chat model that says what it is told to, a few characters at a time, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from tinyseek.llm.base import DEFAULT, ChatDelta, ChatModel, ChatOptions, Message, ToolCallDelta, Usage


class SaidModel(ChatModel):
    """Answers in turn.

    Args:
        answers: one for each time that it is asked; the last is said ever after.
        piece: characters of a delta.
        context: in tokens, a character each.
    """

    def __init__(self, *answers: str, piece: int = 3, context: int | None = None, name: str = "said") -> None:
        self.answers, self.piece, self.context, self.name = list(answers), piece, context, name
        self.asked: list[tuple[list[Message], ChatOptions]] = []
        self.closed = 0
        self.reasoning = ""
        self.calls: tuple[ToolCallDelta, ...] = ()

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        self.asked.append((list(messages), options))
        said = self.answers[min(len(self.asked), len(self.answers)) - 1]
        try:
            if self.reasoning:
                yield ChatDelta(reasoning=self.reasoning)
            if self.calls:
                yield ChatDelta(tool_calls=self.calls)
            for at in range(0, len(said), self.piece):
                yield ChatDelta(content=said[at : at + self.piece])
            yield ChatDelta(finish="stop", usage=Usage(10, len(said)))
        finally:
            self.closed += 1

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        for delta in self.stream(messages, options):
            yield delta

    def count_tokens(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> int | None:  # noqa: ARG002
        return sum(len(str(message["content"])) for message in messages)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError
