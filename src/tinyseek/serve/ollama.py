"""Ollama's API: what its clients and Open WebUI probe, chat, generate and embed.

Answers are lines of JSON. A tool's arguments are an object here, so a call is told when it is complete; durations are nanoseconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request, Response

from tinyseek.engine.params import SamplingParams
from tinyseek.llm.base import ChatDelta, ChatOptions, Message, Usage
from tinyseek.serve.chat import choose_tools, messages_of
from tinyseek.serve.completions import middle, written
from tinyseek.serve.errors import ApiError, json_response, refused, to_json
from tinyseek.serve.ollama_wire import (
    Asked,
    EmbedRequest,
    GenerateRequest,
    NamedRequest,
    OldEmbedRequest,
    OllamaChatRequest,
    OllamaMessage,
    Options,
)
from tinyseek.serve.openai import embed
from tinyseek.serve.served import Served
from tinyseek.serve.streaming import Pump, stream
from tinyseek.serve.wire import ChatMessage, FunctionCall, JsonRoute, ToolCall

VERSION = "0.12.0"  # of Ollama's API as spoken here: clients refuse to talk to what they think is old


Fields = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]  # of content, thinking and calls, in a line


_TEXT = {"description": "what went wrong", "content": {"application/json": {"schema": {
    "type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}}}  # fmt: skip
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 408, 413, 429, 500, 503, 504), _TEXT)
_OBJECT = {"type": "object"}
_JSON: dict[int | str, dict[str, Any]] = {
    200: {"description": "an object", "content": {"application/json": {"schema": _OBJECT}}}
}
_LINES: dict[int | str, dict[str, Any]] = {200: {"description": "an object, or lines of objects", "content": {
    "application/x-ndjson": {"schema": {"type": "string"}}, "application/json": {"schema": _OBJECT}}}}  # fmt: skip


def routes(served: Served) -> APIRouter:
    """Every route below /api."""
    router = APIRouter(route_class=JsonRoute, responses=_ERRORS)

    @router.head("/api/version", include_in_schema=False)
    @router.get("/api/version", responses=_JSON)
    async def version() -> Response:
        """Which of Ollama's APIs this is."""
        return json_response({"version": VERSION})

    @router.head("/api/tags", include_in_schema=False)
    @router.get("/api/tags", responses=_JSON)
    async def tags() -> Response:
        """The models: a base, and adapters over it."""
        return json_response({"models": [_entry(one) for one in served.models.values()]})

    @router.get("/api/ps", responses=_JSON)
    async def running() -> Response:
        """The models that are loaded: the same."""
        entries = [_entry(one) for one in served.models.values()]
        for entry in entries:
            entry["expires_at"] = _moment(datetime.now(UTC) + timedelta(days=365))
            entry["size_vram"] = entry["size"] if served.engine.model.device.type == "cuda" else 0
            entry["context_length"] = served.engine.context
        return json_response({"models": entries})

    @router.post("/api/show", responses=_JSON)
    async def show(body: NamedRequest) -> Response:
        """A model's template, sizes and abilities."""
        return json_response(_shown(served.model(body.model or body.name or "")))

    @router.post("/api/chat", responses=_LINES)
    async def chat(body: OllamaChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        one = served.model(body.model)
        if not body.messages:
            return json_response(_loaded(one, {"message": {"role": "assistant", "content": ""}}))
        tools, _ = choose_tools([tool.model_dump(exclude_none=True) for tool in body.tools or []], None)
        options = ChatOptions(**_options(body), tools=tools)
        pump = one.pump(one.answer(_messages(body.messages), options), request)
        return await _answer(one, body, pump, _chat_fields)

    @router.post("/api/generate", responses=_LINES)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """The text after a prompt."""
        one = served.model(body.model)
        if body.images:
            raise refused("this model reads text only, no images", "images")
        if not body.prompt and body.suffix is None:
            return json_response(_loaded(one, {"response": ""}))
        return await _answer(one, body, one.pump(_generated(one, body), request), _generate_fields)

    @router.post("/api/embed", responses=_JSON)
    async def embed_many(body: EmbedRequest) -> Response:
        """Vectors of texts."""
        one = served.model(body.model)
        started = time.perf_counter_ns()
        vectors, tokens = await embed(one, body.input, body.dimensions) if body.input else ([], 0)
        return json_response(
            {
                "model": one.name,
                "embeddings": vectors,
                "total_duration": time.perf_counter_ns() - started,
                "load_duration": 0,
                "prompt_eval_count": tokens,
            }
        )

    @router.post("/api/embeddings", responses=_JSON)
    async def embed_one(body: OldEmbedRequest) -> Response:
        """The vector of a text."""
        one = served.model(body.model)
        vectors, _ = await embed(one, body.prompt) if body.prompt else ([[]], 0)
        return json_response({"embedding": vectors[0]})

    return router


# ---- in --------------------------------------------------------------------------------------------------------------------------


def _messages(messages: Sequence[OllamaMessage]) -> list[Message]:
    """The conversation as OpenAI's: calls get ids, and a tool's answer that of the call it answers."""
    result: list[ChatMessage] = []
    waiting: list[tuple[str, str]] = []  # (id, name) of calls that no tool has answered yet
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if message.images:
            raise refused(f"{where}: this model reads text only, no images", where)
        if message.role not in ("system", "user", "assistant", "tool"):
            raise refused(
                f'{where}: unknown role "{message.role[:40]}"; system, user, assistant and tool are known', where
            )
        calls = [
            ToolCall(
                id=f"call_{at}_{number}",
                function=FunctionCall(
                    name=call.function.name, arguments=json.dumps(call.function.arguments, ensure_ascii=False)
                ),
            )
            for number, call in enumerate(message.tool_calls or [])
        ]
        answered = None
        if message.role == "tool" and waiting:
            answered = next((entry for entry in waiting if entry[1] == message.tool_name), waiting[0])
            waiting.remove(answered)
        waiting += [(call.id or "", call.function.name) for call in calls]
        result.append(
            ChatMessage(
                role=message.role,  # type: ignore[arg-type]  # checked above
                content=message.content,
                tool_calls=calls or None,
                tool_call_id=answered[0] if answered else None,
                reasoning_content=message.thinking,
            )
        )
    return messages_of(result)


def _options(body: Asked) -> dict[str, Any]:
    """The fields of ChatOptions."""
    given = body.options or Options()
    wanted: dict[str, Any] | None = None
    if body.format == "json":
        wanted = {"type": "json_object"}
    elif isinstance(body.format, dict):
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": body.format, "strict": True}}
    elif body.format:
        raise refused('format: "json" or a JSON schema is expected', "format")
    think = body.think if isinstance(body.think, bool) or body.think is None else body.think != "none"
    return {**_drawing(given), "response_format": wanted, "thinking": think}


def _drawing(given: Options) -> dict[str, Any]:
    """What ChatOptions and SamplingParams have in common."""
    most = given.num_predict
    return {
        "temperature": given.temperature,
        "top_k": given.top_k if given.top_k and given.top_k > 0 else None,
        "top_p": None if given.top_p is None else max(given.top_p, 1e-9),
        "min_p": given.min_p,
        "repetition_penalty": given.repeat_penalty or None,
        "presence_penalty": given.presence_penalty,
        "frequency_penalty": given.frequency_penalty,
        "max_tokens": most if most and most > 0 else None,
        "seed": given.seed if given.seed is not None and given.seed >= 0 else None,
        "stop": (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ()),
    }


async def _generated(served: Served, body: GenerateRequest) -> AsyncIterator[ChatDelta]:
    """The deltas of /api/generate: by the chat template, or plainly after the prompt."""
    tokenizer = served.tokenizer
    if body.suffix is None and not body.raw and tokenizer.chat_template is not None:
        messages: list[Message] = [{"role": "system", "content": body.system}] if body.system else []
        async for delta in served.answer(
            [*messages, {"role": "user", "content": body.prompt}], ChatOptions(**_options(body))
        ):
            yield delta
        return
    if body.suffix is not None:
        ids = middle(served, body.prompt, body.suffix)
    else:
        ids = [*served.tokenizer.begin_ids, *tokenizer.encode(body.prompt)]
    drawn = {key: value for key, value in _drawing(body.options or Options()).items() if value is not None}
    params = SamplingParams(**{"max_tokens": served.engine.context, **drawn})
    async for _, request, piece in written(served, [ids], params):
        used = Usage(request.prompt_tokens, request.generated_tokens, request.cached_tokens)
        yield ChatDelta(content=piece.text, finish=piece.finish, usage=used if piece.finish else None)


# ---- out -------------------------------------------------------------------------------------------------------------------------


async def _answer(served: Served, body: Asked, pump: Pump[ChatDelta], fields: Fields) -> Response:
    writer = LineWriter(served, pump, fields)
    if body.stream is not False:
        return await stream(pump, writer, "application/x-ndjson", beat=b"")
    content, thinking = "", ""
    calls: list[dict[str, Any]] = []
    for delta in await pump.all():
        content += delta.content
        thinking += delta.reasoning
        calls += writer.take(delta)
    return json_response({**writer.last(), **fields(content, thinking, calls + writer.complete())})


def _chat_fields(content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _generate_fields(content: str, thinking: str, _: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": content, **({"thinking": thinking} if thinking else {})}


class LineWriter:
    """Deltas as lines of JSON."""

    def __init__(self, served: Served, pump: Pump[ChatDelta], fields: Fields) -> None:
        self._served, self._pump, self._fields = served, pump, fields
        self._calls: dict[int, tuple[str, str]] = {}  # those that are being written: name, arguments
        self._finish = "stop"
        self._usage = Usage()

    def take(self, delta: ChatDelta) -> list[dict[str, Any]]:
        """Note what a delta says of calls and of the end; returns the calls that are complete now."""
        done: list[dict[str, Any]] = []
        for call in delta.tool_calls:
            if call.index not in self._calls:
                done += self.complete()
            name, arguments = self._calls.get(call.index, ("", ""))
            self._calls[call.index] = (name + (call.name or ""), arguments + call.arguments)
        if delta.finish:
            self._finish = "length" if delta.finish == "length" else "stop"
        self._usage = delta.usage or self._usage
        return done

    def complete(self) -> list[dict[str, Any]]:
        """The calls that were being written. One that was cut off in the middle is none."""
        calls = []
        for name, text in self._calls.values():
            try:
                arguments = json.loads(text or "{}")
            except ValueError:
                continue
            if isinstance(arguments, dict):
                calls.append({"function": {"name": name, "arguments": arguments}})
        self._calls.clear()
        return calls

    def last(self) -> dict[str, Any]:
        """The fields of the last line: why it ended, what it took."""
        took = time.perf_counter() - self._pump.started
        first = self._pump.first or 0.0
        return {
            **self._head(),
            "done": True,
            "done_reason": self._finish,
            "total_duration": round(took * 1e9),
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt_tokens,
            "prompt_eval_duration": round(first * 1e9),
            "eval_count": self._usage.completion_tokens,
            "eval_duration": round((took - first) * 1e9),
        }

    def _head(self) -> dict[str, Any]:
        return {"model": self._served.name, "created_at": _moment(datetime.now(UTC))}

    def open(self) -> Iterator[bytes]:
        """Nothing."""
        yield from ()

    def write(self, item: ChatDelta) -> Iterator[bytes]:
        """A line for a delta that says something."""
        calls = self.take(item)
        if item.finish:
            calls += self.complete()
        if item.content or item.reasoning or calls:
            yield _line({**self._head(), **self._fields(item.content, item.reasoning, calls), "done": False})

    def close(self) -> Iterator[bytes]:
        """The last line."""
        yield _line({**self.last(), **self._fields("", "", self.complete())})

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """What went wrong."""
        yield _line({"error": error.message})


def _line(body: Mapping[str, Any]) -> bytes:
    return to_json(body) + b"\n"


def _moment(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


def _loaded(served: Served, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer to an empty request, by which clients ask that a model be loaded."""
    return {
        "model": served.name,
        "created_at": _moment(datetime.now(UTC)),
        **fields,
        "done": True,
        "done_reason": "load",
    }


def _entry(served: Served) -> dict[str, Any]:
    """A model in a list."""
    model, adapter = served.engine.model, served.engine.adapter(served.chat.adapter)
    described = to_json([served.name, model.config.model_dump(mode="json")])
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _moment(datetime.fromtimestamp(served.created, UTC)),
        "size": adapter.nbytes if adapter else sum(part.numel() * part.element_size() for part in model.parameters()),
        "digest": hashlib.sha256(described).hexdigest(),
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    from tinyseek.model.counts import count

    config, settings = served.engine.model.config, served.engine.settings
    plain = str(served.engine.model.lm_head.weight.dtype).removeprefix("torch.")
    total = count(config).total
    return {
        "parent_model": served.base or "",
        "format": "safetensors",
        "family": config.model_type,
        "families": [config.model_type],
        "parameter_size": f"{total / 1e9:.1f}B" if total >= 1e9 else f"{total / 1e6:.1f}M",
        "quantization_level": {"float32": "F32", "bfloat16": "BF16"}.get(plain, plain)
        if settings.quantize == "none"
        else settings.quantize.upper(),
    }


def _shown(served: Served) -> dict[str, Any]:
    from tinyseek.model.counts import count

    config, tokenizer = served.engine.model.config, served.tokenizer
    template, family = tokenizer.chat_template or "", config.model_type
    able = {
        "completion": True,
        "tools": bool(template),  # where the template knows none they are told in words
        "thinking": tokenizer.token_id("<think>") is not None and bool(template),
        "insert": tokenizer.token_id("<｜fim▁hole｜>") is not None,
    }
    return {
        "modelfile": f"FROM {served.base}\nADAPTER {served.name}\n" if served.base else f"FROM {served.name}\n",
        "parameters": "",
        "template": template,
        "details": _details(served),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": count(config).total,
            f"{family}.context_length": served.engine.context,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.num_hidden_layers,
            f"{family}.vocab_size": config.vocab_size,
        },
        "capabilities": [name for name, has in able.items() if has],
        "modified_at": _moment(datetime.fromtimestamp(served.created, UTC)),
    }
