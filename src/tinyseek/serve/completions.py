"""POST /v1/completions: text after a text. What lm-eval scores with, and what editors fill in the middle with.

A prompt of token ids is taken as it is. A prompt of text begins with the begin token, as every document of the training did; that
token is not told of in the answer. Control tokens that are written in a text are text, unless `parse_special` says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request, Response

from tinyseek.engine.grammar import Constraint
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Piece, QueueFullError, TokenLogprob
from tinyseek.engine.request import Request as Writing
from tinyseek.llm.base import Usage
from tinyseek.serve.chat import format_of, sampling_options
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.replies import CompletionChoice, CompletionLogprobs, CompletionReply
from tinyseek.serve.served import Served, head, usage_reply
from tinyseek.serve.streaming import DONE, event, stream
from tinyseek.serve.wire import CompletionRequest

_DEFAULT_TOKENS = 16  # OpenAI's
_LEAST_LOGPROB = -9999.0
_FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from; of these the first `hidden` are our own and not told of. `text` is what is echoed."""

    ids: list[int]
    hidden: int
    text: str


@dataclass
class Text:
    """One of the texts of a request while it is written: where its next token begins, and what its answer holds so far."""

    prompt: Prompt
    offset: int = 0
    begun: bool = False
    text: list[str] = field(default_factory=list)
    logprobs: CompletionLogprobs | None = None
    finish: str | None = None


Item = tuple[int, Writing, Piece]  # the prompt's place, its request, what is new


async def answer_completion(served: Served, body: CompletionRequest, request: Request) -> Response:
    """The answer to a completion request, whole or as a stream."""
    served = served.model(body.model)
    prompts = await asyncio.to_thread(prompts_of, served, body)  # a long text is encoded beside the streams of others
    params = params_of(served, body)
    composer = Composer(served, body, prompts)
    pump = served.pump(written(served, [prompt.ids for prompt in prompts], params), request)
    if body.stream:
        return await stream(pump, CompletionWriter(composer, body))
    for index, writing, piece in await pump.all():
        composer.add(index, writing, piece)
    return json_response(composer.reply())


# ---- in --------------------------------------------------------------------------------------------------------------------------


def prompts_of(served: Served, body: CompletionRequest) -> list[Prompt]:
    """The prompts as token ids. ApiError 400 for none, too many, or ids that are not in the vocabulary."""
    many = many_of(served, body.prompt, "prompt")
    if body.suffix is not None:
        if body.echo:
            raise refused("echo: a text that is filled in the middle cannot be echoed", "echo")
        filled = [middle(served, prompt, body.suffix) for prompt in many]
        return [Prompt(ids, len(ids), "") for ids in filled]
    begin = served.tokenizer.begin_ids if body.add_special_tokens is not False else []
    result = []
    for prompt in many:
        if isinstance(prompt, str):
            ids = served.tokenizer.encode(prompt, specials=bool(body.parse_special))
            result.append(Prompt([*begin, *ids], len(begin), prompt))
        else:
            result.append(Prompt(prompt, 0, served.tokenizer.decode(prompt) if body.echo else ""))
        if not result[-1].ids:
            raise refused("prompt: it is empty", "prompt")
    return result


def many_of(served: Served, given: str | list[str] | list[int] | list[list[int]], name: str) -> list[str | list[int]]:
    """A list of texts or of token ids, out of one or many of either."""
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    many = cast("list[str | list[int]]", [given] if one else given)
    if not many:
        raise refused(f"{name}: it is empty", name)
    most = served.settings.max_prompts
    if len(many) > most:
        raise refused(f"{name}: {len(many)} at once; at most {most} are taken", name)
    vocabulary = served.tokenizer.vocab_size
    for entry in many:
        if isinstance(entry, list) and entry and max(entry) >= vocabulary:
            raise refused(f"{name}: token {max(entry)} is beyond the vocabulary of {vocabulary}", name)
    return many


def middle(served: Served, prompt: str | list[int], suffix: str) -> list[int]:
    """The prompt that asks for what stands between two texts, in DeepSeek's form. ApiError 400 without tokens for it."""
    tokenizer = served.tokenizer
    first, hole, last = map(tokenizer.token_id, _FIM)
    if first is None or hole is None or last is None:
        raise refused("suffix: this model's tokenizer has no tokens for filling in the middle", "suffix")
    before = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return [*served.tokenizer.begin_ids, first, *before, hole, *tokenizer.encode(suffix), last]


def params_of(served: Served, body: CompletionRequest) -> SamplingParams:
    """How to write. What is not said is OpenAI's default: 16 tokens at temperature 1.

    Raises:
        ApiError: 400 for what contradicts itself.
    """
    most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if most == 0 and not body.echo:
        raise refused("max_tokens: 0 is for echo only", "max_tokens")
    if (body.best_of or 1) > (body.n or 1):
        raise refused("best_of: choosing among more texts than are returned is not supported", "best_of")
    scored = body.echo and (body.logprobs is not None or most == 0)
    options = {key: value for key, value in sampling_options(served, body).items() if value is not None}
    return SamplingParams(
        **{"temperature": 1.0, **options},
        max_tokens=most,
        logprobs=body.logprobs,
        prompt_logprobs=(body.logprobs or 0) if scored else None,
        constraint=_constraint(body),
        ignore_eos=bool(body.ignore_eos),
    )


def _constraint(body: CompletionRequest) -> Constraint | None:
    outputs = body.structured_outputs
    wanted = format_of(body.response_format, outputs.json_ if outputs else None)
    if wanted is not None:
        if wanted["type"] == "json_object":
            return Constraint("json_object")
        return Constraint("json_schema", wanted["json_schema"]["schema"])
    if outputs is None:
        return None
    if outputs.regex is not None:
        return Constraint("regex", outputs.regex)
    if outputs.choice is not None:
        return Constraint("choice", outputs.choice)
    if outputs.grammar is not None:
        return Constraint("lark", outputs.grammar)
    return Constraint("json_object") if outputs.json_object else None


# ---- writing ---------------------------------------------------------------------------------------------------------------------


async def written(served: Served, prompts: Sequence[list[int]], params: SamplingParams) -> AsyncIterator[Item]:
    """The pieces of the texts after every prompt, as they come.

    A batch keeps no more in the engine than it can write at a time, so that one client's batch does not fill the queue for all.

    Raises:
        UserError: a prompt cannot be served. The others are cancelled.
    """
    if len(prompts) == 1:
        request = await _submit(served, prompts[0], params)
        async for piece in _pieces(request):
            yield 0, request, piece
        return
    arrived: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
    numbered = iter(enumerate(prompts))

    async def work(patient: bool) -> None:
        try:
            for index, prompt in numbered:
                request = await _submit(served, prompt, params, patient)
                patient = True
                async for piece in _pieces(request):
                    arrived.put_nowait((index, request, piece))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    width = max(1, min(len(prompts), served.engine.settings.max_sequences // params.n))
    workers = [asyncio.create_task(work(patient=number > 0)) for number in range(width)]
    try:
        while width:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                width -= 1
            else:
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _submit(served: Served, prompt: list[int], params: SamplingParams, patient: bool = False) -> Writing:
    """Hand a prompt to the engine: in a thread where there is a grammar to compile. `patient` waits while the queue is full."""
    while True:
        try:
            if params.constraint is None:
                return served.engine.submit(prompt, params, served.chat.adapter)
            return await asyncio.to_thread(served.engine.submit, prompt, params, served.chat.adapter)
        except QueueFullError:
            if not patient:
                raise
            await asyncio.sleep(0.1)


async def _pieces(request: Writing) -> AsyncIterator[Piece]:
    """The request's pieces. ApiError where it failed or was cancelled by the engine."""
    async for piece in request.pieces():
        if piece.finish == "error":
            raise ApiError(500, f"the text broke off: {piece.error}")
        if piece.finish == "cancelled":
            raise ApiError(503, "the server is stopping; the text was cancelled")
        yield piece


# ---- out -------------------------------------------------------------------------------------------------------------------------


class Composer:
    """Pieces put together into choices: one for each text of each prompt, in the prompts' order."""

    def __init__(self, served: Served, body: CompletionRequest, prompts: Sequence[Prompt]) -> None:
        self._served, self._body = served, body
        self._texts = body.n or 1
        self._choices = [Text(prompt) for prompt in prompts for _ in range(self._texts)]
        self._requests: dict[int, Writing] = {}
        self.head = head("text_completion", "cmpl", served)

    def add(self, index: int, request: Writing, piece: Piece) -> CompletionChoice:
        """Take a piece, and return what is new as a choice of a chunk."""
        at = index * self._texts + piece.index
        text = self._choices[at]
        self._requests[index] = request
        told = self._body.logprobs is not None
        new = piece.text
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[]) if told else None
        if not text.begun:
            text.begun = True
            if self._body.echo:
                new = text.prompt.text + new
                if logprobs is not None:
                    self._tell_prompt(text, request, logprobs)
                text.offset = len(text.prompt.text)
        if logprobs is not None:
            for entry in piece.logprobs:
                self._append(text, entry.id, entry, logprobs)
        text.text.append(new)
        text.finish = piece.finish or text.finish
        if logprobs is not None:
            text.logprobs = _joined(text.logprobs, logprobs) if text.logprobs else logprobs
        return CompletionChoice(index=at, text=new, logprobs=logprobs, finish_reason=piece.finish)

    def _tell_prompt(self, text: Text, request: Writing, into: CompletionLogprobs) -> None:
        hidden = text.prompt.hidden
        entries = list(request.prompt_logprobs or [])[hidden:]
        for token, entry in zip(request.prompt[hidden:], entries, strict=False):
            self._append(text, token, entry, into)

    def _append(self, text: Text, token: int, entry: TokenLogprob | None, into: CompletionLogprobs) -> None:
        into["tokens"].append(self._name(token))
        into["text_offset"].append(text.offset)
        text.offset += len(self._served.tokenizer.decode([token]))
        if entry is None:  # the first of the prompt follows nothing
            into["token_logprobs"].append(None)
            into["top_logprobs"].append(None)
            return
        top = {self._name(other): max(value, _LEAST_LOGPROB) for other, value in entry.top}
        top.setdefault(self._name(token), max(entry.logprob, _LEAST_LOGPROB))
        into["token_logprobs"].append(max(entry.logprob, _LEAST_LOGPROB))
        into["top_logprobs"].append(top)

    def _name(self, token: int) -> str:
        """A token as text; one that is no whole character by its bytes, as OpenAI writes it, so that no two have one name."""
        tokenizer = self._served.tokenizer
        text = tokenizer.decode([token])
        if "\ufffd" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.token_bytes(token))

    def usage(self) -> Usage:
        """Tokens read and written so far."""
        requests = self._requests.values()
        return Usage(
            prompt_tokens=sum(request.prompt_tokens for request in requests),
            completion_tokens=sum(request.generated_tokens for request in requests),
            cached_tokens=sum(request.cached_tokens for request in requests),
        )

    def reply(self) -> CompletionReply:
        """The whole answer."""
        reply = cast("CompletionReply", dict(self.head))
        reply["choices"] = [
            CompletionChoice(
                index=at, text="".join(text.text), logprobs=text.logprobs, finish_reason=text.finish or "stop"
            )
            for at, text in enumerate(self._choices)
        ]
        reply["usage"] = usage_reply(self.usage())
        return reply


def _joined(one: CompletionLogprobs, other: CompletionLogprobs) -> CompletionLogprobs:
    return {
        "tokens": one["tokens"] + other["tokens"],
        "token_logprobs": one["token_logprobs"] + other["token_logprobs"],
        "top_logprobs": one["top_logprobs"] + other["top_logprobs"],
        "text_offset": one["text_offset"] + other["text_offset"],
    }


class CompletionWriter:
    """Pieces as the chunks of a stream."""

    def __init__(self, composer: Composer, body: CompletionRequest) -> None:
        self._composer = composer
        self._usage = bool(body.stream_options and body.stream_options.include_usage)

    def open(self) -> Iterator[bytes]:
        yield from ()

    def write(self, item: Item) -> Iterator[bytes]:
        """A piece."""
        choice = self._composer.add(*item)
        if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
            yield event({**self._composer.head, "choices": [choice], **({"usage": None} if self._usage else {})})

    def close(self) -> Iterator[bytes]:
        """The usage, and the end."""
        if self._usage:
            yield event({**self._composer.head, "choices": [], "usage": usage_reply(self._composer.usage())})
        yield DONE

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """What went wrong, and the end."""
        yield event(error.body())
        yield DONE
