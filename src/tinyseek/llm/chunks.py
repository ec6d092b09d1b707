"""What OpenAI-compatible servers stream, to deltas. They agree on the outline only, so everything here is taken as it may come.

Reasoning is called `reasoning_content`, `reasoning` or `thinking`, or left in the content between <think> marks; calls come without
index or id, or with their arguments as an object; the usage comes with the last chunk or after it; fields come that nobody knows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from tinyseek.llm.answer import THINK, THOUGHT, Parts, Splitter
from tinyseek.llm.base import ChatDelta, ChatError, ChatLogprob, ToolCallDelta, Usage
from tinyseek.llm.messages import REASONING
from tinyseek.llm.options import Prices
from tinyseek.llm.retry import PASSING, PassingError

_FINISHES = {"stop", "length", "tool_calls", "content_filter"}


class _Choice:
    """One of the answers of a stream."""

    def __init__(self) -> None:
        self.splitter = Splitter((THINK, THOUGHT), tools=False)
        self.calls: dict[Any, int] = {}  # index or id, as the server counts -> as we do
        self.last_call = -1
        self.finish: str | None = None


class ChunkReader:
    """The chunks of one stream, or one whole completion, to deltas. The reasons why answers ended come last, with the usage.

    Attributes:
        usage: as the server told it, so far.
        said: something came that is more than white space: reasoning, content or a call.
        answered: the same without the reasoning.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.usage: Usage | None = None
        self.said = False
        self.answered = False
        self._prices = prices
        self._choices: dict[int, _Choice] = {}

    def read(self, chunk: Any) -> Iterator[ChatDelta]:
        """The deltas of one chunk.

        Raises:
            ChatError: it tells an error. A `PassingError` if asking again may help.
        """
        if not isinstance(chunk, dict):
            return
        if chunk.get("error"):
            raise error_of(chunk, None)
        if isinstance(chunk.get("usage"), dict):
            self.usage = read_usage(chunk["usage"], self._prices)
        for position, entry in enumerate(_list(chunk.get("choices"))):
            if not isinstance(entry, dict):
                continue
            index = entry["index"] if isinstance(entry.get("index"), int) else position
            choice = self._choices.setdefault(index, _Choice())
            inner = entry.get("delta") or entry.get("message") or {}
            if isinstance(inner, dict):
                yield from self._delta(index, choice, inner, read_logprobs(entry.get("logprobs")))
            if entry.get("finish_reason"):
                choice.finish = str(entry["finish_reason"])
                if choice.finish == "insufficient_system_resource":  # DeepSeek's
                    raise PassingError("the server broke the answer off: it has no room", 503)

    def end(self) -> Iterator[ChatDelta]:
        """The stream is over: the last delta of each answer, the usage in the last of all.

        Raises:
            PassingError: an answer never ended, or none came.
        """
        if not self._choices or any(choice.finish is None for choice in self._choices.values()):
            raise PassingError("the server closed the connection before the answer was complete")
        for number, (index, choice) in enumerate(sorted(self._choices.items()), 1):
            choice.splitter.end()
            finish = choice.finish if choice.finish in _FINISHES else "stop"
            finish = "tool_calls" if choice.calls and finish == "stop" else finish
            usage = self.usage if number == len(self._choices) else None
            yield self._noted(index, choice.splitter.taken(), (), finish, usage)

    def _delta(
        self, index: int, choice: _Choice, inner: dict[str, Any], logprobs: tuple[ChatLogprob, ...]
    ) -> Iterator[ChatDelta]:
        reasoning = next((text for name in REASONING if (text := _text(inner.get(name)))), "")
        choice.splitter.text(_text(inner.get("content")) or _text(inner.get("refusal")))
        parts = choice.splitter.taken()
        calls = tuple(
            delta
            for call in _list(inner.get("tool_calls"))
            if isinstance(call, dict)
            for delta in self._call(choice, call)
        )
        parts = Parts(reasoning + parts.reasoning, parts.content, calls)
        if parts or logprobs:
            yield self._noted(index, parts, logprobs)

    def _noted(
        self,
        index: int,
        parts: Parts,
        logprobs: tuple[ChatLogprob, ...],
        finish: str | None = None,
        usage: Usage | None = None,
    ) -> ChatDelta:
        self.answered |= bool(parts.content.strip() or parts.tool_calls)
        self.said |= self.answered or bool(parts.reasoning.strip())
        return ChatDelta(index, parts.reasoning, parts.content, parts.tool_calls, logprobs, finish, usage)

    def _call(self, choice: _Choice, call: dict[str, Any]) -> Iterator[ToolCallDelta]:
        function = call["function"] if isinstance(call.get("function"), dict) else {}
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        known = call["index"] if isinstance(call.get("index"), int) else call.get("id")
        if known is None and not function.get("name") and choice.last_call >= 0:  # neither: more of the last one
            yield ToolCallDelta(choice.last_call, arguments=arguments)
            return
        key = known if isinstance(known, int | str) else f"unnamed {len(choice.calls)}"
        if key in choice.calls:
            choice.last_call = choice.calls[key]
            yield ToolCallDelta(choice.last_call, arguments=arguments)
            return
        choice.last_call = choice.calls[key] = len(choice.calls)
        identity = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
        yield ToolCallDelta(choice.last_call, str(identity), str(function.get("name") or ""), arguments)


def error_of(body: Any, status: int | None, wait: float | None = None) -> ChatError:
    """The error that a server tells, in any of the usual shapes; a `PassingError` if asking again may help."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        message = inner.get("message") or inner.get("detail") or inner.get("error") or json.dumps(inner)
        code = inner.get("code") or inner.get("status") or inner.get("type")
    else:
        message, code = inner, None
    if status is None and str(code).isdecimal():
        status = int(str(code))
    text = " ".join(str(message).split())[:500] or "no reason given"
    passing = status in PASSING or code in ("server_error", "overloaded_error", "rate_limit_exceeded", "internal_error")
    where = f"the server says {status}: " if status else "the server says: "
    return PassingError(where + text, status, wait) if passing else ChatError(where + text, status)


def read_usage(usage: dict[str, Any], prices: Prices | None) -> Usage:
    """Token counts in OpenAI's words or DeepSeek's."""

    def count(*path: str) -> int:
        value: Any = usage
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int) and value > 0 else 0

    prompt, completion = count("prompt_tokens"), count("completion_tokens")
    cached = min(prompt, count("prompt_tokens_details", "cached_tokens") or count("prompt_cache_hit_tokens"))
    return Usage(
        prompt,
        completion,
        cached,
        count("completion_tokens_details", "reasoning_tokens"),
        prices.cost(prompt, cached, completion) if prices else None,
    )


def read_logprobs(logprobs: Any) -> tuple[ChatLogprob, ...]:
    """OpenAI's log-probabilities; DeepSeek tells the reasoning's beside them."""
    if not isinstance(logprobs, dict):
        return ()
    parts = (("reasoning_content", "reasoning"), ("content", "content"))
    return tuple(one for name, part in parts for entry in _list(logprobs.get(name)) for one in _logprob(entry, part))


def _logprob(entry: Any, part: str) -> Iterator[ChatLogprob]:
    if not isinstance(entry, dict) or not isinstance(entry.get("logprob"), int | float):
        return
    try:
        exact = bytes(_list(entry.get("bytes"))) or None
    except (ValueError, TypeError):
        exact = None
    top = tuple(one for inner in _list(entry.get("top_logprobs")) for one in _logprob(inner, part))
    yield ChatLogprob(_text(entry.get("token")), float(entry["logprob"]), exact, top, None, part)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    return "".join(
        part["text"] for part in _list(value) if isinstance(part, dict) and isinstance(part.get("text"), str)
    )
