"""What every route needs: the models that are served, and how."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

from tinyseek import __version__
from tinyseek.errors import UserError
from tinyseek.serve.errors import ApiError
from tinyseek.serve.metrics import Metrics
from tinyseek.serve.options import ServeSettings
from tinyseek.serve.replies import UsageReply
from tinyseek.serve.streaming import Pump

if TYPE_CHECKING:
    from tinyseek.engine.engine import Engine
    from tinyseek.llm.base import ChatDelta, ChatOptions, Message, Usage
    from tinyseek.llm.local import LocalChat
    from tinyseek.text.tokenizer import Tokenizer

T = TypeVar("T")
_LATEST = ":latest"
_LONG_TEXT = 20_000  # characters; about five milliseconds of encoding
FINGERPRINT = f"tinyseek-{__version__}"


@dataclass(eq=False)
class Served:
    """A model behind HTTP, and those beside it. Use `all`.

    Attributes:
        name: what clients call the model.
        models: every model that is served, by name, this one among them; they share an engine.
    """

    chat: LocalChat
    settings: ServeSettings
    metrics: Metrics
    name: str
    models: dict[str, Served] = field(default_factory=dict, repr=False)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def all(cls, chats: Sequence[LocalChat], settings: ServeSettings, metrics: Metrics) -> Served:
        """The first of some models, which knows the others. `settings.name` is its name.

        Raises:
            UserError: two of one name.
        """
        models: dict[str, Served] = {}
        for chat in chats:
            one = cls(chat, settings, metrics, (settings.name if not models else None) or chat.name, models)
            if one.name.removesuffix(_LATEST) in (name.removesuffix(_LATEST) for name in models):
                raise UserError(f'two models would be called "{one.name}"; give the adapter another name')
            models[one.name] = one
        return next(iter(models.values()))

    @property
    def engine(self) -> Engine:
        return self.chat.engine

    @property
    def tokenizer(self) -> Tokenizer:
        return self.chat.tokenizer

    @property
    def base(self) -> str | None:
        """The name of the model that this one is an adapter of."""
        return self.chat.adapter and next((name for name, one in self.models.items() if not one.chat.adapter), None)

    def model(self, name: str) -> Served:
        """The model that a request names (Ollama's clients add `:latest`). ApiError 404 where there is none."""
        wanted = name.removesuffix(_LATEST)
        for own, one in self.models.items():
            if own.removesuffix(_LATEST) == wanted:
                return one
        there = ("there is " if len(self.models) == 1 else "there are ") + ", ".join(f'"{own}"' for own in self.models)
        raise ApiError(
            404,
            f'the model "{name[:80]}" is not served here; {there[:1000]}',
            param="model",
            code="model_not_found",
        )

    async def answer(self, messages: Sequence[Message], options: ChatOptions) -> AsyncIterator[ChatDelta]:
        """The model's answer. A long prompt, or a grammar, is prepared in a thread, so that other streams flow on meanwhile."""
        long = sum(len(message.get("content") or "") for message in messages) > _LONG_TEXT
        if long or options.tools or options.response_format or options.regex or options.choice:
            deltas = await asyncio.to_thread(self.chat.astream, messages, options)
        else:
            deltas = self.chat.astream(messages, options)
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]  # a generator

    def pump(self, source: AsyncIterator[T], request: Request) -> Pump[T]:
        """An answer to wait for, under the server's time limits."""
        settings = self.settings
        return Pump(source, request.receive, self.metrics, beat=settings.beat_seconds, limit=settings.request_seconds)


def head(kind: str, prefix: str, served: Served) -> dict[str, Any]:
    """The fields that every completion and every chunk of it begin with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": FINGERPRINT,
    }


def usage_reply(usage: Usage) -> UsageReply:
    """Token counts as OpenAI and DeepSeek tell them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }
