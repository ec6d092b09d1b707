"""What is sent to a server: messages and options as each kind of server wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatOptions, Message
from tinyseek.llm.messages import REASONING, chosen_tool, plain_tools

Kind = Literal["deepseek", "openai", "ollama", "other"]  # other: vLLM's dialect, which is ours too

_OWNERS = {"deepseek": "DeepSeek's API", "openai": "OpenAI's API", "ollama": "Ollama"}
_COMMON = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_EXTRA = ("top_k", "min_p", "repetition_penalty", "min_tokens")


def wants_json(options: ChatOptions) -> bool:
    """Whether the content is to be JSON."""
    return (options.response_format or {}).get("type") in ("json_object", "json_schema")


def wants_beta(kind: Kind, options: ChatOptions) -> bool:
    """Whether DeepSeek has what is asked for only under /beta: going on from a beginning, strict tools."""
    return kind == "deepseek" and (options.prefix or any(tool.get("strict") for tool in plain_tools(options.tools)))


def chat_body(kind: Kind, model: str, messages: Sequence[Message], options: ChatOptions) -> dict[str, Any]:
    """The body of a request for a streamed answer.

    Raises:
        UserError: something that this kind of server is known not to do; it would be ignored in silence.
    """
    _check(kind, options)
    body: dict[str, Any] = {"model": model, "messages": sent_messages(kind, messages)}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= {name: value for name in (*_COMMON, *_EXTRA) if (value := getattr(options, name)) is not None}
    if options.max_tokens is not None:
        body["max_completion_tokens" if kind == "openai" else "max_tokens"] = options.max_tokens
    if options.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in options.logit_bias.items()}
    if options.stop:
        body["stop"] = list(options.stop)
    if options.n != 1:
        body["n"] = options.n
    if options.logprobs:
        body |= {"logprobs": True, "top_logprobs": options.top_logprobs}
    _add_tools(body, options)
    _add_form(kind, body, options)
    if options.thinking is not None:
        body |= _thinking(kind, options.thinking)
    if options.prefix:
        if not messages or messages[-1].get("role") != "assistant":
            raise UserError("to go on from a beginning, the last message must be the assistant's")
        body["messages"][-1]["prefix"] = True
        if kind == "other":  # vLLM's words for it
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def sent_messages(kind: Kind, messages: Sequence[Message]) -> list[Message]:
    """Messages with what belongs to the conversation, and nothing of ours.

    Reasoning goes back on the turns in which tools were called, and on no other: DeepSeek answers 400 without the one, and pays no
    heed to the other. OpenAI's API knows no such field.

    Raises:
        UserError: no messages.
    """
    if not messages:
        raise UserError("there are no messages; the last one is what the model answers")
    called = _turns_with_calls(messages)
    sent: list[Message] = []
    for message, has_calls in zip(messages, called, strict=True):
        one: Message = {
            key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if key in message
        }
        if one.get("role") == "developer" and kind != "openai":
            one["role"] = "system"
        if one.get("role") == "assistant":
            one.setdefault("content", None)
            if not one.get("tool_calls"):
                one.pop("tool_calls", None)
            reasoning = next((message[key] for key in REASONING if message.get(key)), None)
            if reasoning and has_calls and kind != "openai":
                one["reasoning_content"] = reasoning
        sent.append(one)
    return sent


def _turns_with_calls(messages: Sequence[Message]) -> list[bool]:
    """Of each message, whether a tool was called in its turn: from one user message to the next."""
    turns: list[list[int]] = [[]]
    for number, message in enumerate(messages):
        if message.get("role") == "user":
            turns.append([])
        turns[-1].append(number)
    called = [False] * len(messages)
    for turn in turns:
        if any(messages[number].get("tool_calls") for number in turn):
            for number in turn:
                called[number] = True
    return called


def _check(kind: Kind, options: ChatOptions) -> None:
    if kind == "other":
        return
    for name in (*_EXTRA, "regex", "choice"):
        if getattr(options, name) is not None:
            raise UserError(f"{_OWNERS[kind]} has no {name}; leave it out, or use a local model or vLLM")
    if kind == "openai" and options.prefix:
        raise UserError("OpenAI's API cannot go on from a beginning of the answer")


def _add_tools(body: dict[str, Any], options: ChatOptions) -> None:
    functions = plain_tools(options.tools)
    choice = chosen_tool(options.tool_choice, functions)
    if not functions:
        return
    body["tools"] = [{"type": "function", "function": function} for function in functions]
    if options.tool_choice is not None:
        named = {"type": "function", "function": {"name": choice.removeprefix("name:")}}
        body["tool_choice"] = named if choice.startswith("name:") else choice
    if options.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = options.parallel_tool_calls


def _add_form(kind: Kind, body: dict[str, Any], options: ChatOptions) -> None:
    if kind == "deepseek" and wants_json(options):  # knows json_object alone, and wants to read the word
        wanted = options.response_format or {}
        schema = (wanted.get("json_schema") or {}).get("schema")
        body["response_format"] = {"type": "json_object"}
        if schema is not None:
            _tell(body["messages"], f"Answer in JSON of this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}")
        elif "json" not in json.dumps(body["messages"]).lower():
            _tell(body["messages"], "Answer in JSON.")
    elif options.response_format is not None:
        body["response_format"] = options.response_format
    if options.regex is not None:
        body["structured_outputs"] = {"regex": options.regex}
    if options.choice is not None:
        body["structured_outputs"] = {"choice": list(options.choice)}


def _tell(messages: list[Message], text: str) -> None:
    """Add to the instructions."""
    if messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        messages[0]["content"] = f"{messages[0]['content']}\n\n{text}"
    else:
        messages.insert(0, {"role": "system", "content": text})


def _thinking(kind: Kind, thinking: bool) -> dict[str, Any]:
    if kind == "deepseek":
        return {"thinking": {"type": "enabled" if thinking else "disabled"}}
    if kind in ("ollama", "openai"):
        return {"reasoning_effort": "medium" if thinking else "none"}
    return {"chat_template_kwargs": {"thinking": thinking, "enable_thinking": thinking}}
