"""ChatModel: the one face of every model that talks, here or behind a server; and what goes in and out of it.

A conversation goes in as OpenAI's messages; an answer comes out as deltas while it is written, or put together as an `Answer`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.options import EngineSettings
    from tinyseek.llm.options import RemoteSettings

Message = dict[str, Any]  # OpenAI's: {"role": "system|user|assistant|tool", "content": str | parts | None, ...}


class ChatError(UserError):
    """An answer that could not be had: the server refused or broke off, or the engine failed.

    Attributes:
        status: the server's HTTP status, if that is what it was.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ContextError(UserError):
    """The conversation is longer than the model's context.

    Attributes:
        tokens: of the conversation.
        context: of the model.
    """

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the conversation has {tokens:,} tokens, but the model's context is {context}; shorten it, or begin a new one"
        )
        self.tokens, self.context = tokens, context


@dataclass(frozen=True)
class ChatOptions:
    """How to answer. None is the model's or the server's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    tools: list[dict[str, Any]] | None = None  # functions, as OpenAI describes them
    tool_choice: str | dict[str, Any] | None = (
        None  # "auto", "none", "required", {"type": "function", "function": {"name": ...}}
    )
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = (
        None  # {"type": "text" | "json_object" | "json_schema", "json_schema": {...}}
    )
    thinking: bool | None = None  # None: as the model's template, or the model, chooses
    prefix: bool = False  # the last message is the beginning of the assistant's own answer
    regex: str | None = None  # the content matches it wholly
    choice: list[str] | None = None  # the content is one of these


DEFAULT = ChatOptions()


@dataclass(frozen=True)
class ChatLogprob:
    """A token of an answer, its log-probability, and its likeliest alternatives."""

    token: str
    logprob: float
    bytes: bytes | None = None  # exact, where `token` may be half a character
    top: tuple[ChatLogprob, ...] = ()
    id: int | None = None  # of a local model's token
    part: str = "content"  # where it stands: "reasoning", "content", "tool_calls"


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call. `id` and `name` come in the first piece of a call only."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens; `cost` in the currency of the prices that were given."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, read from a cache
    reasoning_tokens: int = 0  # of the completion
    cost: float | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class ChatDelta:
    """A piece of an answer."""

    index: int = 0  # which of `n` answers
    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[ChatLogprob, ...] = ()
    finish: str | None = None  # "stop", "length", "tool_calls" or "content_filter", in the last delta of an answer
    usage: Usage | None = None  # in the last delta of all
    ids: tuple[int, ...] = ()  # a local model's tokens, marks included


@dataclass
class Answer:
    """A whole answer."""

    message: Message  # the assistant's, to be added to the conversation
    finish: str | None = None  # None: broken off
    usage: Usage | None = None
    logprobs: list[ChatLogprob] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    parsed: Any = None  # the content's JSON, where the options asked for JSON and it is complete

    @property
    def content(self) -> str:
        return self.message.get("content") or ""

    @property
    def reasoning(self) -> str:
        return self.message.get("reasoning_content") or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        return self.message.get("tool_calls") or []


class Collector:
    """Deltas put together again."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._answers: dict[int, Answer] = {}

    def push(self, delta: ChatDelta) -> None:
        """Add one delta of any of the answers."""
        answer = self._answers.setdefault(delta.index, Answer({"role": "assistant", "content": ""}))
        message = answer.message
        message["content"] += delta.content
        if delta.reasoning:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta.reasoning
        for call in delta.tool_calls:
            calls = message.setdefault("tool_calls", [])
            while len(calls) <= call.index:
                calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
            entry = calls[call.index]
            entry["id"] = entry["id"] or call.id
            entry["function"]["name"] += call.name or ""
            entry["function"]["arguments"] += call.arguments
        answer.logprobs += delta.logprobs
        answer.ids += delta.ids
        answer.finish = delta.finish or answer.finish
        self.usage = delta.usage or self.usage

    def answers(self, options: ChatOptions | None = None) -> list[Answer]:
        """The answers so far, by index; `parsed` is filled where `options` asked for JSON."""
        wanted = (options.response_format or {}).get("type") if options else None
        for answer in self._answers.values():
            answer.usage = self.usage
            if wanted in ("json_object", "json_schema"):
                answer.parsed = _json(answer.content)
        return [self._answers[index] for index in sorted(self._answers)]


def gather(deltas: Iterable[ChatDelta], options: ChatOptions | None = None) -> list[Answer]:
    """Every answer of a stream."""
    collector = Collector()
    for delta in deltas:
        collector.push(delta)
    return collector.answers(options)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class ChatModel(ABC):
    """A model to talk to. Every method may be called from several threads or tasks at once.

    Attributes:
        name: what to call it.
        context: its longest prompt and answer together, in tokens; None where that is not known.
    """

    name: str
    context: int | None = None

    @staticmethod
    def open(
        where: str | Path,
        *,
        model: str | None = None,
        engine: EngineSettings | None = None,
        remote: RemoteSettings | None = None,
    ) -> ChatModel:
        """Open a model by where it is.

        Args:
            where: a model's or a run's folder, the name of a pulled model, a .gguf file; `deepseek`, `deepseek:MODEL`,
                `openai:MODEL`, `ollama:MODEL`, or the address of any OpenAI-compatible server, `http://host:port`.
            model: which of a server's models; none for its only or first one.
            engine: how to run a local model.
            remote: time-outs, retries and prices of a server.
        Raises:
            UserError: nothing there, or no key for it; says what to do.
        """
        from tinyseek.llm.open import open_chat

        return open_chat(str(where), model=model, engine=engine, remote=remote)

    @abstractmethod
    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        """The answer to a conversation, piece by piece. Closing the iterator early cancels it.

        Raises:
            UserError: what is asked cannot be done.
            ChatError: the answer broke off.
        """

    @abstractmethod
    def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        """`stream` for asyncio. Leaving the loop early, or cancelling the task, cancels the answer."""

    def complete(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Answer:
        """The whole answer (the first, of `n`)."""
        return self.complete_all(messages, options)[0]

    def complete_all(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> list[Answer]:
        """All `n` answers."""
        return gather(self.stream(messages, options), options)

    async def acomplete_all(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> list[Answer]:
        """All `n` answers, for asyncio."""
        collector = Collector()
        async for delta in self.astream(messages, options):
            collector.push(delta)
        return collector.answers(options)

    def count_tokens(
        self,
        messages: Sequence[Message],  # noqa: ARG002
        options: ChatOptions = DEFAULT,  # noqa: ARG002
    ) -> int | None:
        """How long the prompt of this conversation is; None where only a server knows."""
        return None

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text."""

    def close(self) -> None:  # noqa: B027  (some hold nothing)
        """Give back what it holds: threads, connections."""

    def __enter__(self) -> ChatModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
