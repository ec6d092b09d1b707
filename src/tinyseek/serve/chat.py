"""POST /v1/chat/completions: a request to messages and options, and deltas to chunks.

What order chunks come in, and which of their keys are always there, is what clients were seen to rely on: a chunk with the role,
the deltas, an empty delta with the reason, the usage if it was asked for, [DONE].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from fastapi import Request, Response

from tinyseek.llm.base import ChatDelta, ChatLogprob, ChatOptions, Collector, Message, ToolCallDelta, Usage
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.legacy import is_legacy, modern, modern_message, old_delta, old_finish, old_message
from tinyseek.serve.replies import (
    CallReply,
    ChatChoice,
    ChatReply,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    LogprobReply,
    MessageReply,
    TopLogprob,
)
from tinyseek.serve.served import Served, head, usage_reply
from tinyseek.serve.streaming import DONE, event, stream
from tinyseek.serve.wire import ChatMessage, ChatRequest, Part, ResponseFormat, Sampling, Thinking

_LEAST_LOGPROB = -9999.0  # what OpenAI writes for minus infinity, which JSON does not have
_TEXT_PARTS = ("text", "input_text", "output_text")


async def answer_chat(served: Served, body: ChatRequest, request: Request) -> Response:
    """The answer to a chat request, whole or as a stream."""
    if body.search_documents is not None:
        raise refused("search_documents: this server holds no documents; start it with kb=true", "search_documents")
    served, old, body = served.model(body.model), is_legacy(body), modern(body)
    messages = messages_of(body.messages)
    options = options_of(served, body)
    pump = served.pump(served.answer(messages, options), request)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await stream(pump, ChatWriter(served, options.n, usage, old))
    collector = Collector()
    for delta in await pump.all():
        collector.push(delta)
    reply = cast("ChatReply", head("chat.completion", "chatcmpl", served))
    reply["choices"] = [
        ChatChoice(
            index=index,
            message=old_message(message_reply(answer.message)) if old else message_reply(answer.message),
            logprobs=logprobs_reply(answer.logprobs) if options.logprobs else None,
            finish_reason=(old_finish(answer.finish) if old else answer.finish) or "stop",
        )
        for index, answer in enumerate(collector.answers())
    ]
    reply["usage"] = usage_reply(collector.usage or Usage())
    return json_response(reply)


# ---- in --------------------------------------------------------------------------------------------------------------------------


def messages_of(messages: Sequence[ChatMessage], name: str = "messages") -> list[Message]:
    """The conversation, checked: who may say what, and that tools answer to calls.

    Args:
        messages: as they came.
        name: of the field that they came in.
    Raises:
        ApiError: 400, naming the message.
    """
    result: list[Message] = []
    calls: list[str | None] = []  # of the assistant's last message, those that no tool has answered yet
    for at, given in enumerate(messages):
        where = f"{name}[{at}]"
        message = modern_message(given, where)
        if message.role == "tool":
            if not calls:
                raise refused(
                    f"{where}: a tool answers, but no assistant message with tool_calls stands before it", where
                )
            if message.tool_call_id is None and None not in calls and len(calls) > 1:
                raise refused(f"{where}: which call does it answer? tool_call_id is missing", f"{where}.tool_call_id")
            if message.tool_call_id is not None and message.tool_call_id not in calls and None not in calls:
                raise refused(
                    f'{where}: tool_call_id "{message.tool_call_id[:60]}" is none of the calls before it',
                    f"{where}.tool_call_id",
                )
            calls.remove(message.tool_call_id if message.tool_call_id in calls else calls[0])
        elif calls:
            raise refused(
                f"{where}: the tool calls before it must be answered first, each by a message of role tool", where
            )
        result.append(_message(message, where, last=at == len(messages) - 1))
        if message.role == "assistant":
            calls = [call.id for call in message.tool_calls or []]
    if calls:
        raise refused(
            "the conversation ends with tool calls; add the tools' answers to it", f"{name}[{len(messages) - 1}]"
        )
    return result


def _message(message: ChatMessage, where: str, last: bool) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = text_of(message.content, where)
    if role != "assistant":
        if content is None:
            raise refused(f"{where}.content is required", f"{where}.content")
        if message.tool_calls or message.prefix:
            raise refused(f"{where}: only the assistant has tool_calls or prefix", where)
        extra = (
            {"tool_call_id": message.tool_call_id, "name": message.name} if role == "tool" else {"name": message.name}
        )
        return {"role": role, "content": content} | {key: value for key, value in extra.items() if value is not None}
    reasoning = message.reasoning_content or message.reasoning
    if content is None and not message.tool_calls and not reasoning:
        raise refused(f"{where}: an assistant message has content, tool_calls or both", f"{where}.content")
    if message.prefix and not last:
        raise refused(f"{where}.prefix: only the last message can be gone on from", f"{where}.prefix")
    result: Message = {"role": "assistant", "content": content or ""}
    if reasoning:
        result["reasoning_content"] = reasoning
    if message.tool_calls:
        result["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    return result


def text_of(content: str | list[Part] | None, where: str) -> str | None:
    """The text of a content, whose parts are put together. ApiError 400 for pictures and sounds."""
    if content is None or isinstance(content, str):
        return content
    texts = []
    for at, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXT_PARTS, "refusal") or text is None:
            raise refused(
                f'{where}.content[{at}]: this model reads text only, not "{part.type[:40]}"',
                f"{where}.content[{at}].type",
            )
        texts.append(text)
    return "".join(texts)


def options_of(served: Served, body: ChatRequest) -> ChatOptions:
    """How to answer. ApiError 400 for what contradicts itself."""
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs needs logprobs: true", "top_logprobs")
    outputs = body.structured_outputs
    tools, choice = choose_tools([tool.model_dump(exclude_none=True) for tool in body.tools or []], body.tool_choice)
    return ChatOptions(
        **sampling_options(served, body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=format_of(body.response_format, outputs.json_ if outputs else None),
        thinking=thinking_of(body.thinking, body.reasoning_effort, body.chat_template_kwargs),
        prefix=bool(body.messages[-1].prefix),
        regex=outputs.regex if outputs else None,
        choice=outputs.choice if outputs else None,
    )


def sampling_options(served: Served, body: Sampling) -> dict[str, Any]:
    """The options that all requests share, as ChatOptions and SamplingParams call them."""
    return {
        "temperature": body.temperature,
        "top_p": None if body.top_p is None else max(body.top_p, 1e-9),  # 0: the likeliest alone
        "top_k": body.top_k if body.top_k and body.top_k > 0 else None,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": bias_of(served, body.logit_bias),
        "min_tokens": body.min_tokens,
        "seed": body.seed,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "n": body.n or 1,
    }


def bias_of(served: Served, bias: Mapping[str, float] | None) -> dict[int, float] | None:
    """Token ids, which JSON writes as text, as numbers."""
    result = {}
    for token, value in (bias or {}).items():
        if not token.isascii() or not token.isdecimal() or int(token[:20]) >= served.tokenizer.vocab_size:
            raise refused(f'logit_bias: "{token[:40]}" is no token id of this model', "logit_bias", "invalid_value")
        if not -100 <= value <= 100:
            raise refused(
                f"logit_bias of token {token}: {value:g} is not between -100 and 100", "logit_bias", "invalid_value"
            )
        result[int(token)] = value
    return result or None


def thinking_of(
    switch: Thinking | None, effort: str | None = None, arguments: Mapping[str, Any] | None = None
) -> bool | None:
    """Whether to think first: by DeepSeek's switch, OpenAI's effort, or vLLM's arguments of the template."""
    if switch and switch.type in ("enabled", "disabled"):
        return switch.type == "enabled"
    if effort is not None:
        return effort not in ("none", "minimal")
    arguments = arguments or {}
    value = arguments.get("thinking", arguments.get("enable_thinking"))
    return value if isinstance(value, bool) else None


def format_of(wanted: ResponseFormat | None, schema: Any = None) -> dict[str, Any] | None:
    """`response_format`, checked; `schema` is vLLM's way to say the same."""
    if schema is not None:
        if isinstance(schema, str):
            raise refused("structured_outputs.json: send the schema as an object", "structured_outputs.json")
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise refused("response_format: json_schema needs json_schema.schema", "response_format.json_schema.schema")
    return {"type": "json_schema", "json_schema": wanted.json_schema.model_dump(by_alias=True, exclude_none=True)}


def choose_tools(
    tools: list[dict[str, Any]], choice: str | Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any] | None]:
    """The tools and the choice among them, in the form of ChatOptions, out of any of OpenAI's forms.

    Raises:
        ApiError: 400 for a choice without tools, of an unknown one, or of no known form.
    """
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise refused("tools: two of them have the same name", "tools")
    if choice is None:
        return tools or None, None
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise refused('tool_choice: "none", "auto", "required" or an object is expected', "tool_choice")
        if choice == "required" and not tools:
            raise refused("tool_choice: required, but there are no tools", "tool_choice")
        return tools or None, choice if tools else None
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        allowed = inner.get("tools") if isinstance(inner, Mapping) else None
        if not isinstance(allowed, list) or inner.get("mode") not in ("auto", "required"):
            raise refused("tool_choice: allowed_tools needs mode (auto or required) and tools", "tool_choice")
        wanted = {_known_name(entry, names) for entry in allowed}
        return [tool for tool in tools if tool["function"]["name"] in wanted], inner["mode"]
    if choice.get("type") != "function":
        raise refused(
            'tool_choice: an object is {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", ...}',
            "tool_choice",
        )
    return tools, {"type": "function", "function": {"name": _known_name(choice, names)}}


def _known_name(choice: Any, names: Sequence[str]) -> str:
    """The function that a choice names; chat puts the name below "function", responses do not."""
    inner = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise refused("tool_choice: the name of a function is missing", "tool_choice")
    if name not in names:
        raise refused(
            f'tool_choice: there is no tool "{name[:80]}"' + ("" if names else ": tools is empty"), "tool_choice"
        )
    return name


# ---- out -------------------------------------------------------------------------------------------------------------------------


def message_reply(message: Message) -> MessageReply:
    """The assistant's message."""
    calls = message.get("tool_calls")
    reply = MessageReply(
        role="assistant",
        content=message["content"] if message["content"] or not calls else None,
        reasoning_content=message.get("reasoning_content"),
        refusal=None,
    )
    if calls:
        reply["tool_calls"] = calls
    return reply


def logprobs_reply(logprobs: Iterable[ChatLogprob]) -> ChoiceLogprobs:
    """Tokens with their log-probabilities; those of the reasoning by themselves, as at DeepSeek's."""
    entries: dict[str, list[LogprobReply]] = {"content": [], "reasoning": [], "tool_calls": []}
    for entry in logprobs:
        top = [_token(other) for other in entry.top]
        entries[entry.part].append(LogprobReply(**_token(entry), top_logprobs=top))
    reply = ChoiceLogprobs(content=entries["content"], refusal=None)
    if entries["reasoning"]:
        reply["reasoning_content"] = entries["reasoning"]
    return reply


def _token(entry: ChatLogprob) -> TopLogprob:
    return {
        "token": entry.token,
        "logprob": max(entry.logprob, _LEAST_LOGPROB),
        "bytes": None if entry.bytes is None else list(entry.bytes),
    }


def call_reply(call: ToolCallDelta) -> CallReply:
    """A piece of a tool call: the first says which, all say some of the arguments."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": cast("Any", function)}


class ChatWriter:
    """Deltas as the chunks of a stream; `old`: with calls in OpenAI's old form."""

    def __init__(self, served: Served, texts: int, usage: bool, old: bool = False) -> None:
        self._head = head("chat.completion.chunk", "chatcmpl", served)
        self._texts, self._usage, self._old = texts, usage, old
        self._used: Usage | None = None

    def open(self) -> Iterator[bytes]:
        """The role, once a text."""
        for index in range(self._texts):
            yield self._chunk(index, {"role": "assistant", "content": "", "reasoning_content": None})

    def write(self, item: ChatDelta) -> Iterator[bytes]:
        """A delta: what was said, then why it ended."""
        delta: Delta = {"reasoning_content": item.reasoning or None}
        if item.content or (item.logprobs and not item.reasoning and not item.tool_calls):
            delta["content"] = item.content
        if item.tool_calls:
            delta["tool_calls"] = [call_reply(call) for call in item.tool_calls]
        if len(delta) > 1 or item.reasoning:
            told = logprobs_reply(item.logprobs) if item.logprobs else None
            yield self._chunk(item.index, old_delta(delta) if self._old else delta, told)
        if item.finish is not None:
            finish = old_finish(item.finish) if self._old else item.finish
            yield self._chunk(item.index, {"reasoning_content": None}, finish=finish)
        self._used = item.usage or self._used

    def close(self) -> Iterator[bytes]:
        """The usage, and the end."""
        if self._usage:
            yield event({**self._head, "choices": [], "usage": usage_reply(self._used or Usage())})
        yield DONE

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """What went wrong, and the end."""
        yield event(error.body())
        yield DONE

    def _chunk(
        self, index: int, delta: Delta, logprobs: ChoiceLogprobs | None = None, finish: str | None = None
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return event({**self._head, "choices": [choice], **({"usage": None} if self._usage else {})})
