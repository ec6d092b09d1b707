"""LocalChat: a model of ours, by the engine. Renders the conversation with the model's own template, and takes the answer apart.

What a request asks beyond plain text becomes a constraint on the tokens (forms.py), so it holds for any model, however small.
"""

from __future__ import annotations

import dataclasses
import json
import re
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.engine.params import SamplingParams
from tinyseek.errors import UserError
from tinyseek.llm.answer import CALLS_BEGIN, DSML, THINK, THOUGHT, Parts, TokenSplitter
from tinyseek.llm.base import (
    DEFAULT,
    ChatDelta,
    ChatError,
    ChatLogprob,
    ChatModel,
    ChatOptions,
    ContextError,
    Message,
    Usage,
)
from tinyseek.llm.forms import CallFormat, answer_form
from tinyseek.llm.messages import chosen_tool, in_words, plain_messages, plain_tools, wrapped
from tinyseek.text.chat import encode_prompt

if TYPE_CHECKING:
    from tinyseek.engine.engine import Engine
    from tinyseek.engine.inspect import Inspection
    from tinyseek.engine.options import EngineSettings
    from tinyseek.engine.request import Piece, Request, TokenLogprob
    from tinyseek.text.tokenizer import Tokenizer

_PROBE = "a_tool_to_see_whether_the_template_shows_it"
GENERATION = "generation_config.json"
_NEVER = -100.0  # added to the logit of a token that must not come


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it.

    Attributes:
        ids: its tokens, up to where the model speaks.
        thinking: it ends inside the reasoning, which the template opened.
        answering: it ends after the reasoning, or inside the answer.
        functions: the tools that the model was told.
        choice: "auto", "none", "required" or "name:NAME".
    """

    ids: list[int]
    thinking: bool
    answering: bool
    functions: list[dict[str, Any]]
    choice: str


class LocalChat(ChatModel):
    """A local model as a chat model, or one of the adapters over it.

    Attributes:
        engine: what runs it, and whoever shares it. Where its thread is not started, whoever reads an answer steps it.
        defaults: for options that a request leaves open. Greedy, unless the model's generation_config.json says otherwise.
        adapter: the engine's name of the adapter that answers; none for the model itself.
    """

    context: int

    def __init__(
        self, engine: Engine, name: str = "tinyseek", defaults: ChatOptions = DEFAULT, adapter: str | None = None
    ) -> None:
        self.engine = engine
        self.name = name
        self.context = engine.context
        self.defaults = defaults
        self.adapter = adapter

    @classmethod
    def load(
        cls,
        folder: str | Path,
        settings: EngineSettings | None = None,
        name: str | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> LocalChat:
        """Load a model's folder.

        Args:
            adapters: folders of adapters of this model, by the names that `over` takes.
        Raises:
            UserError: no model there, or a damaged one; an adapter that cannot be run over it.
        """
        from tinyseek.engine.engine import Engine
        from tinyseek.engine.options import EngineSettings

        folder = Path(folder)
        engine = Engine.load(folder, settings or EngineSettings(), adapters)
        return cls(engine, name or folder.resolve().name, _published_defaults(folder))

    def over(self, adapter: str) -> LocalChat:
        """An adapter of the engine as a chat model of its own, with its own template; base and engine are shared.

        Raises:
            UserError: there is none of that name.
        """
        found = self.engine.adapter(adapter)
        assert found is not None
        own = (found.folder / GENERATION).is_file()
        return LocalChat(self.engine, adapter, _published_defaults(found.folder) if own else self.defaults, adapter)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, or the adapter's."""
        return self.engine.tokenizer if self.adapter is None else self.engine.tokenizer_of(self.adapter)

    # ---- asking

    def prompt(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Prompt:
        """Render a conversation. What people write in it never becomes a control token.

        Raises:
            UserError: the messages, the tools or `tool_choice` are wrong; the model has no chat template.
        """
        plain = plain_messages(messages)
        functions = plain_tools(options.tools)
        choice = chosen_tool(options.tool_choice, functions)
        functions = [] if choice == "none" else functions
        if options.prefix:
            return self._prefix_prompt(plain, options, functions, choice)
        ids = self._rendered(plain, functions, options.thinking)
        think, thought = (self.tokenizer.controls.get(mark) for mark in (THINK, THOUGHT))
        tail = ids[-4:]  # a template puts at most a line end or two after its mark
        opened, closed = (
            max((at for at, index in enumerate(tail) if index == mark), default=-1) for mark in (think, thought)
        )
        return Prompt(ids, opened > closed, closed > opened, functions, choice)

    def _rendered(
        self, plain: Sequence[Message], functions: Sequence[dict[str, Any]], thinking: bool | None
    ) -> list[int]:
        if self._knows_tools:
            shown, tools = list(plain), wrapped(functions)
            if self._wants_objects:
                shown = [_with_objects(message) for message in shown]
        else:
            shown, tools = in_words(plain, functions), []
        return encode_prompt(self.tokenizer, shown, tools=tools or None, thinking=thinking)

    def _prefix_prompt(
        self, plain: Sequence[Message], options: ChatOptions, functions: list[dict[str, Any]], choice: str
    ) -> Prompt:
        """A prompt that ends in the beginning of the assistant's own answer."""
        *before, last = plain
        if last["role"] != "assistant" or not before:
            raise UserError(
                "to go on from a beginning, the last message must be the assistant's and another must come before it"
            )
        before_it = self.prompt(before, dataclasses.replace(options, prefix=False, thinking=False))
        ids, tokenizer = before_it.ids, self.tokenizer
        think, thought = (tokenizer.controls.get(mark) for mark in (THINK, THOUGHT))
        reasoning = last.get("reasoning_content")
        if reasoning and think is not None and thought is not None and not before_it.answering:
            ids = [*ids, *([] if before_it.thinking else [think]), *tokenizer.encode(reasoning), thought]
        elif before_it.thinking and thought is not None:
            ids = [*ids, thought]
        return Prompt([*ids, *tokenizer.encode(last["content"])], False, True, functions, choice)

    def count_tokens(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> int | None:
        """How long the prompt of this conversation is."""
        return len(self.prompt(messages, options).ids)

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        """The answer, piece by piece. What is wrong with the request is raised here; the engine has it when this returns.

        Raises:
            UserError: the request cannot be served.
            ContextError: the conversation is too long.
            QueueFullError: too many wait already.
        """
        request, reading = self._submit(messages, options)
        deltas = reading.read(request)
        weakref.finalize(deltas, request.cancel).atexit = False  # if it is dropped before it began
        return deltas

    def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        """`stream` for asyncio; the same is raised here already."""
        request, reading = self._submit(messages, options)
        deltas = reading.aread(request)
        weakref.finalize(deltas, request.cancel).atexit = False
        return deltas

    def _submit(self, messages: Sequence[Message], options: ChatOptions) -> tuple[Request, _Reading]:
        prompt = self.prompt(messages, options)
        if len(prompt.ids) >= self.context:
            raise ContextError(len(prompt.ids), self.context)
        request = self.engine.submit(prompt.ids, self._params(prompt, options), self.adapter)
        return request, _Reading(self, prompt, options)

    def _params(self, prompt: Prompt, options: ChatOptions) -> SamplingParams:
        chosen: dict[str, Any] = {
            name: value if (value := getattr(options, name)) is not None else getattr(self.defaults, name)
            for name in _DRAWN
        }
        if chosen["temperature"] is None and options.n > 1:
            chosen["temperature"] = 1.0  # several greedy answers would be one
        room = self.context - len(prompt.ids)
        wanted = options.max_tokens or self.defaults.max_tokens or room
        bias = dict(options.logit_bias or {})
        think, thought = (self.tokenizer.controls.get(mark) for mark in (THINK, THOUGHT))
        may_think = think is not None and thought is not None and not (prompt.thinking or prompt.answering)
        if may_think and options.thinking is False and think is not None:
            bias[think], may_think = _NEVER, False
        calls_begin = self.tokenizer.controls.get(CALLS_BEGIN)
        if prompt.choice == "none" and calls_begin is not None:
            bias.setdefault(calls_begin, _NEVER)
        after = thought if prompt.thinking or may_think else None
        opener = think if may_think else None
        return SamplingParams(
            **{name: value for name, value in chosen.items() if value is not None},
            max_tokens=min(wanted, room),
            min_tokens=min(options.min_tokens or 0, wanted, room),
            logit_bias=bias,
            seed=options.seed,
            stop=tuple(options.stop),
            n=options.n,
            logprobs=options.top_logprobs if options.logprobs else None,
            constraint=answer_form(
                self.tokenizer, options, prompt.functions, prompt.choice, self._call_format, after, opener
            ),
        )

    # ---- what the template can do

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the template shows the tools that it is given."""
        probe = [{"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {}}}]
        try:
            return _PROBE in self.tokenizer.render([{"role": "user", "content": "?"}], tools=probe)
        except UserError:
            return False

    @cached_property
    def _wants_objects(self) -> bool:
        """Whether the template writes a call's arguments as JSON itself, so that it must get objects."""
        template = self.tokenizer.chat_template or ""
        return bool(re.search(r"arguments\s*\|\s*tojson", template)) and "arguments is string" not in template

    @cached_property
    def _call_format(self) -> CallFormat:
        template = self.tokenizer.chat_template or ""
        if not self._knows_tools or CALLS_BEGIN not in self.tokenizer.controls or CALLS_BEGIN not in template:
            return "hermes"
        return "fenced" if "```json" in template else "deepseek"

    # ---- the rest

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The mean of the last hidden states over each text, of length 1.

        Raises:
            ContextError: a text is too long.
        """
        prompts = [self.tokenizer.begin_ids + ids for ids in self.tokenizer.encode_batch(texts)]
        for prompt in prompts:
            if len(prompt) > self.context:
                raise ContextError(len(prompt), self.context)
        return self.engine.embed(prompts, self.adapter)

    def inspect(self, ids: Sequence[int]) -> Inspection:
        """A look inside: what the model does with each token of a text.

        Raises:
            UserError: the text is too long.
        """
        return self.engine.inspect(ids, self.adapter)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()


_DRAWN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def _with_objects(message: Message) -> Message:
    """The message with its calls' arguments as objects, where they are JSON."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            arguments = call["function"]["arguments"]
        calls.append(call | {"function": call["function"] | {"arguments": arguments}})
    return message | {"tool_calls": calls}


def _published_defaults(folder: Path) -> ChatOptions:
    """How the model's makers would have it drawn: generation_config.json."""
    try:
        values = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ChatOptions()
    if not isinstance(values, dict) or values.get("do_sample") is False:
        return ChatOptions()
    known: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if isinstance(value := values.get(name), int | float) and value > 0
    }
    return ChatOptions(**known)


# ---- reading ---------------------------------------------------------------------------------------------------------------------


class _Text:
    """One of the `n` answers while it is written."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, hermes: bool, dsml: bool) -> None:
        self.splitter = TokenSplitter(
            tokenizer,
            thinking=prompt.thinking,
            answering=prompt.answering,
            tools=bool(prompt.functions),
            hermes=hermes,
            dsml=dsml,
        )
        self.decoder = tokenizer.stream(skip_specials=True)
        self.told: list[str] = []  # the engine's text, and how much of it the ids account for
        self.decoded = 0
        self.tokens = self.reasoning = 0  # of all that was read, of the reasoning
        self.open = True


class _Reading:
    """The engine's pieces to deltas."""

    def __init__(self, chat: LocalChat, prompt: Prompt, options: ChatOptions) -> None:
        self._tokenizer = chat.tokenizer
        self._one_call = options.parallel_tool_calls is False
        self._cut = False  # an answer was ended here, while the engine perhaps went on
        hermes = chat._call_format == "hermes"
        dsml = DSML in (self._tokenizer.chat_template or "")
        self._texts = [_Text(self._tokenizer, prompt, hermes, dsml) for _ in range(options.n)]

    def read(self, request: Request) -> Iterator[ChatDelta]:
        try:
            for piece in request:
                if (delta := self._delta(piece, request)) is not None:
                    yield delta
                if not any(text.open for text in self._texts):
                    return
        finally:
            request.cancel()

    async def aread(self, request: Request) -> AsyncIterator[ChatDelta]:
        pieces = request.pieces()
        try:
            async for piece in pieces:
                if (delta := self._delta(piece, request)) is not None:
                    yield delta
                if not any(text.open for text in self._texts):
                    return
        finally:
            request.cancel()
            await pieces.aclose()  # type: ignore[attr-defined]  # a generator

    def _delta(self, piece: Piece, request: Request) -> ChatDelta | None:
        """What a piece brings; None if nothing that can be shown yet."""
        text = self._texts[piece.index]
        if not text.open:
            return None
        if piece.finish in ("error", "cancelled"):
            raise ChatError(piece.error or "the answer was cut off: the engine is closing", 500 if piece.error else 503)
        parts = text.splitter.push(piece.ids)
        labels = list(text.splitter.labels)
        text.told.append(piece.text)
        text.decoded += sum(len(text.decoder.push(index)) for index in piece.ids)
        text.tokens += len(piece.ids)
        text.reasoning += labels.count("reasoning")
        finish: str | None = piece.finish
        if finish is not None:
            if isinstance(piece.stop, str):  # a token may be half before the stop string
                parts = _joined(parts, text.splitter.push_text("".join(text.told)[text.decoded :]))
            parts = _joined(parts, text.splitter.end())
        if self._one_call and text.splitter.calls_ended:
            parts = Parts(parts.reasoning, parts.content, tuple(call for call in parts.tool_calls if call.index == 0))
            if finish is None:
                finish, self._cut = "stop", True
        if finish is not None:
            text.open = False
            finish = "tool_calls" if finish == "stop" and text.splitter.calls else finish
        logprobs = tuple(self._logprob(one, label) for one, label in zip(piece.logprobs, labels, strict=False))
        last = not any(other.open for other in self._texts)
        if not (parts or logprobs or finish or piece.ids):
            return None
        return ChatDelta(
            piece.index,
            parts.reasoning,
            parts.content,
            parts.tool_calls,
            logprobs,
            finish,
            self._usage(request) if last else None,
            piece.ids,
        )

    def _usage(self, request: Request) -> Usage:
        return Usage(
            prompt_tokens=request.prompt_tokens,
            completion_tokens=sum(text.tokens for text in self._texts) if self._cut else request.generated_tokens,
            cached_tokens=request.cached_tokens,
            reasoning_tokens=sum(text.reasoning for text in self._texts),
        )

    def _logprob(self, one: TokenLogprob, label: str) -> ChatLogprob:
        top = tuple(ChatLogprob(self._shown(index), value, self._bytes(index), id=index) for index, value in one.top)
        return ChatLogprob(self._shown(one.id), one.logprob, self._bytes(one.id), top, one.id, label)

    def _shown(self, index: int) -> str:
        return self._tokenizer.decode([index])

    def _bytes(self, index: int) -> bytes:
        return self._tokenizer.token_bytes(index) or self._tokenizer.decode([index]).encode()


def _joined(first: Parts, second: Parts) -> Parts:
    return Parts(
        first.reasoning + second.reasoning, first.content + second.content, first.tool_calls + second.tool_calls
    )
