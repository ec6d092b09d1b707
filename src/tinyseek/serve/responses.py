"""POST /v1/responses: OpenAI's newer API, in which an answer is a list of items and a stream is events about them.

An answer can be gone on from by its id, as long as it is kept (kept.py).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from tinyseek.llm.base import ChatDelta, ChatLogprob, ChatOptions, Collector, Message, ToolCallDelta, Usage
from tinyseek.serve.chat import choose_tools, format_of, logprobs_reply, messages_of, thinking_of
from tinyseek.serve.errors import ApiError, json_response, refused, to_json
from tinyseek.serve.kept import Kept, Store
from tinyseek.serve.replies import ERRORS, DeletedReply, ItemList, ResponseReply
from tinyseek.serve.served import Served
from tinyseek.serve.streaming import event, stream
from tinyseek.serve.wire import ChatMessage, Item, JsonRoute, JsonSchema, Part, ResponseFormat, ResponseRequest

Event = dict[str, Any]


def routes(served: Served) -> APIRouter:
    """Every route below /v1/responses."""
    router = APIRouter(route_class=JsonRoute, responses=ERRORS)
    store = Store(served.settings.kept_responses, served.settings.kept_responses_mb * 1e6)

    def kept(name: str, request: Request) -> Kept:
        found = store.find(name, request.scope["tinyseek.key"])
        if found is None:
            raise ApiError(
                404, f'there is no response "{name[:80]}", or it is no longer remembered', code="response_not_found"
            )
        return found

    @router.post(
        "/v1/responses",
        responses={200: {"model": ResponseReply, "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def respond(body: ResponseRequest, request: Request) -> Response:
        """The next items of a conversation."""
        return await _respond(served, store, body, request)

    @router.get("/v1/responses/{name}", responses={200: {"model": ResponseReply}})
    async def response(name: str, request: Request) -> Response:
        """An answer that is remembered."""
        return json_response(kept(name, request).reply)

    @router.delete("/v1/responses/{name}", responses={200: {"model": DeletedReply}})
    async def forget(name: str, request: Request) -> Response:
        """Forget an answer."""
        kept(name, request)
        store.forget(name)
        return json_response(DeletedReply(id=name, object="response", deleted=True))

    @router.get("/v1/responses/{name}/input_items", responses={200: {"model": ItemList}})
    async def input_items(name: str, request: Request) -> Response:
        """What an answer answered to, the newest first."""
        items = kept(name, request).given[::-1]
        ids = [item["id"] for item in items]
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return json_response(ItemList(object="list", data=items, first_id=first, last_id=last, has_more=False))

    return router


async def _respond(served: Served, store: Store, body: ResponseRequest, request: Request) -> Response:
    served = served.model(body.model)
    if body.background:
        raise refused("background: answers are written while one waits; leave it out", "background")
    owner: bytes = request.scope["tinyseek.key"]
    earlier: list[Message] = []
    if body.previous_response_id is not None:
        before = store.find(body.previous_response_id, owner)
        if before is None:
            raise refused(
                f'there is no response "{body.previous_response_id[:80]}", or it is no longer remembered',
                "previous_response_id",
                "previous_response_not_found",
            )
        earlier = before.messages
    new = chat_messages(body.input)
    conversation = messages_of([*(ChatMessage(**message) for message in earlier), *new], "input")
    instructions: list[Message] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    builder = Builder(served, body)
    pump = served.pump(served.answer([*instructions, *conversation], options_of(body)), request)

    def remember() -> None:
        if body.store is not False:
            said = [*conversation, builder.message()]
            given = _given(body.input)
            size = len(to_json([builder.reply, said, given]))
            store.keep(Kept(owner, builder.reply, said, given, size))

    if body.stream:
        return await stream(pump, EventWriter(builder, remember))
    for delta in await pump.all():
        for _ in builder.add(delta):
            pass
    for _ in builder.finish():
        pass
    remember()
    return json_response(builder.reply)


# ---- in --------------------------------------------------------------------------------------------------------------------------


def chat_messages(given: str | Sequence[Item]) -> list[ChatMessage]:
    """Items as the messages of a chat: an assistant's reasoning, text and calls that follow one another are one message.

    Raises:
        ApiError: 400 for an item of a kind that is not known here, or without what its kind needs.
    """
    if isinstance(given, str):
        return [ChatMessage(role="user", content=given)]
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] = {}  # the assistant's, that is being put together

    def end_turn() -> None:
        nonlocal turn
        if "content" in turn or "tool_calls" in turn:
            messages.append({"role": "assistant", **turn})
        turn = {}

    for at, item in enumerate(given):
        kind = item.type or ("message" if item.role else None)
        where = f"input[{at}]"
        if kind == "message" and item.role is not None:
            if item.role != "assistant" or "content" in turn or "tool_calls" in turn:
                end_turn()
            if item.content is None:
                raise refused(f"{where}.content is required", f"{where}.content")
            if item.role == "assistant":
                turn["content"] = item.content
            else:
                messages.append({"role": item.role, "content": item.content})
        elif kind == "reasoning":
            if "content" in turn or "tool_calls" in turn:
                end_turn()
            parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
            turn["reasoning_content"] = turn.get("reasoning_content", "") + "".join(part.text or "" for part in parts)
        elif kind == "function_call" and item.call_id and item.name and item.arguments is not None:
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
        elif kind == "function_call_output" and item.call_id and item.output is not None:
            end_turn()
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        elif kind in ("function_call", "function_call_output"):
            needs = "name and arguments" if kind == "function_call" else "output"
            raise refused(f"{where}: a {kind} needs call_id, {needs}", where)
        else:
            raise refused(
                f'{where}: "{str(kind)[:40]}" is not known here; message, reasoning, function_call and function_call_output are',
                f"{where}.type",
            )
    end_turn()
    return [ChatMessage(**message) for message in messages]


def _given(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The input as items with ids, for those who ask for it later."""
    items = [Item(type="message", role="user", content=given)] if isinstance(given, str) else given
    result = []
    for item in items:
        content = [Part(type="input_text", text=item.content)] if isinstance(item.content, str) else item.content
        full = item.model_copy(update={"type": item.type or "message", "content": content})
        result.append({"id": _id("item"), **full.model_dump(exclude_none=True)})
    return result


def options_of(body: ResponseRequest) -> ChatOptions:
    """How to answer."""
    tools = []
    for at, tool in enumerate(body.tools or []):
        if tool.type != "function" or tool.name is None:
            raise refused(
                f'tools[{at}]: only named functions can be called here, not "{tool.type[:40]}"', f"tools[{at}]"
            )
        function = tool.model_dump(exclude_none=True)
        tools.append({"type": function.pop("type"), "function": function})
    chosen, choice = choose_tools(tools, body.tool_choice)
    told = body.top_logprobs or "message.output_text.logprobs" in (body.include or [])
    return ChatOptions(
        temperature=body.temperature,
        top_p=None if body.top_p is None else max(body.top_p, 1e-9),
        max_tokens=body.max_output_tokens,
        logprobs=bool(told),
        top_logprobs=body.top_logprobs or 0,
        tools=chosen,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=format_of(_format(body)),
        thinking=thinking_of(None, body.reasoning.effort if body.reasoning else None),
    )


def _format(body: ResponseRequest) -> ResponseFormat | None:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    inner = JsonSchema(**wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True))
    return ResponseFormat(type=wanted.type, json_schema=inner)


# ---- out -------------------------------------------------------------------------------------------------------------------------


class Builder:
    """Puts an answer together from deltas, and says of each step which events tell it."""

    def __init__(self, served: Served, body: ResponseRequest) -> None:
        self._told = bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or [])
        self._collector = Collector()
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._call: int | None = None  # its index among the calls, if it is one
        self._numbered = 0
        effort = body.reasoning.effort if body.reasoning else None
        wanted = (
            body.text.format.model_dump(by_alias=True, exclude_none=True) if body.text and body.text.format else None
        )
        self.reply: ResponseReply = {
            "id": _id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": served.name,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": effort, "summary": None},
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": wanted or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [
                {"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)} for tool in body.tools or []
            ],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def message(self) -> Message:
        """The answer as a message of a chat."""
        answers = self._collector.answers()
        return answers[0].message if answers else {"role": "assistant", "content": ""}

    def begin(self) -> Iterator[Event]:
        """The first events."""
        yield self._event("response.created", response=dict(self.reply))
        yield self._event("response.in_progress", response=dict(self.reply))

    def add(self, delta: ChatDelta) -> Iterator[Event]:
        """Take a delta."""
        self._collector.push(delta)
        if delta.reasoning:
            yield from self._write("reasoning", delta.reasoning, ())
        told = [entry for entry in delta.logprobs if entry.part == "content"] if self._told else []
        if delta.content or told:
            yield from self._write("message", delta.content, told)
        for call in delta.tool_calls:
            yield from self._write_call(call)

    def finish(self) -> Iterator[Event]:
        """The last events: the answer is complete, or was cut off."""
        answers = self._collector.answers()
        reason = answers[0].finish if answers else "stop"
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason or "stop")
        yield from self._end_item("incomplete" if cut else "completed")
        self.reply["usage"] = _usage(self._collector.usage or Usage())
        self.reply["status"] = "incomplete" if cut else "completed"
        self.reply["incomplete_details"] = {"reason": cut} if cut else None
        yield self._event(f"response.{self.reply['status']}", response=self.reply)

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The last event, where it broke off."""
        self.reply["status"] = "failed"
        self.reply["error"] = {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self.reply)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._numbered += 1
        return {"type": kind, "sequence_number": self._numbered - 1, **fields}

    def _item_event(self, kind: str, **fields: Any) -> Event:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self.reply["output"]) - 1}
        return self._event(kind, **place, **fields)

    def _begin_item(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._end_item("completed")
        self._open = item
        self.reply["output"].append(item)
        at = len(self.reply["output"]) - 1
        empty = {**item, "content": []} if "content" in item else dict(item)
        yield self._event("response.output_item.added", output_index=at, item=empty)
        if "content" in item:
            yield self._item_event("response.content_part.added", content_index=0, part=dict(item["content"][0]))

    def _end_item(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            yield self._item_event(
                "response.function_call_arguments.done", name=item["name"], arguments=item["arguments"]
            )
        else:
            part = item["content"][0]
            if item["type"] == "message":
                fields = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._item_event("response.output_text.done", content_index=0, **fields)
            else:
                yield self._item_event("response.reasoning_text.done", content_index=0, text=part["text"])
            yield self._item_event("response.content_part.done", content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=len(self.reply["output"]) - 1, item=item)
        self._open = self._call = None

    def _write(self, kind: str, text: str, logprobs: Sequence[ChatLogprob]) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._begin_item(_message_item() if kind == "message" else _reasoning_item())
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        if kind == "message":
            told = logprobs_reply(logprobs)["content"]
            part["logprobs"] += told
            yield self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=told)
        else:
            yield self._item_event("response.reasoning_text.delta", content_index=0, delta=text)

    def _write_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if self._open is None or self._call != call.index:
            item = {
                "type": "function_call",
                "id": _id("fc"),
                "call_id": call.id or _id("call"),
                "name": call.name or "",
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._begin_item(item)
            self._call = call.index
        if call.arguments:
            assert self._open is not None
            self._open["arguments"] += call.arguments
            yield self._item_event("response.function_call_arguments.delta", delta=call.arguments)


class EventWriter:
    """An answer as the events of a stream."""

    def __init__(self, builder: Builder, remember: Callable[[], None]) -> None:
        self._builder, self._remember = builder, remember

    def open(self) -> Iterator[bytes]:
        """That it has begun."""
        return map(_sent, self._builder.begin())

    def write(self, item: ChatDelta) -> Iterator[bytes]:
        """A delta."""
        return map(_sent, self._builder.add(item))

    def close(self) -> Iterator[bytes]:
        """That it is complete."""
        yield from map(_sent, self._builder.finish())
        self._remember()

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """That it broke off."""
        return map(_sent, self._builder.fail(error))


def _sent(told: Event) -> bytes:
    return event(told, told["type"])


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _message_item() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "message", "id": _id("msg"), "role": "assistant", "status": "in_progress", "content": [part]}


def _reasoning_item() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": ""}
    return {"type": "reasoning", "id": _id("rs"), "summary": [], "status": "in_progress", "content": [part]}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
