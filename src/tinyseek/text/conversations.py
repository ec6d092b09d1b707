"""Records of the formats that people keep conversations in, as messages: alpaca, sharegpt, OpenAI's, prompt and completion.

A record's own format is seen from its columns. Descriptions of tools end up under "tools" of the first, system message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyseek.text.records import BadRecordError

Message = dict[str, Any]  # {"role": "system|user|assistant|tool", "content": str, ...}

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class Tags:
    """How a file of turns names its fields and speakers, where it has names of its own."""

    role: str = "from"
    content: str = "value"
    roles: Mapping[str, str] = field(default_factory=lambda: SHAREGPT_ROLES)  # its speakers -> ours


SHAREGPT = Tags()


def to_messages(record: Any, tags: Tags = SHAREGPT) -> list[Message]:
    """One record of any of the known formats as messages.

    Raises:
        ValueError: why it cannot be used.
    """
    messages = turns(record, tags)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecordError("the assistant says nothing")
    if not any(message["role"] == "user" for message in messages):
        raise BadRecordError("the user says nothing")
    return messages


def turns(record: Any, tags: Tags = SHAREGPT) -> list[Message]:
    """A record's messages as they stand, whoever speaks or does not.

    Raises:
        ValueError: why it cannot be used.
    """
    if not isinstance(record, dict):
        raise BadRecordError(f"an object is expected, not {type(record).__name__}")
    if "messages" in record:
        messages = [_turn(entry, tags) for entry in _list(record["messages"], "messages")]
    elif "conversations" in record or "conversation" in record:
        name = "conversations" if "conversations" in record else "conversation"
        messages = [_turn(entry, tags) for entry in _list(record[name], name)]
    elif "instruction" in record and "output" in record:
        messages = _alpaca_messages(record)
    elif "prompt" in record and "completion" in record:
        messages = [
            *spoken(record["prompt"], "prompt", "user", tags),
            *spoken(record["completion"], "completion", tags=tags),
        ]
    else:
        raise BadRecordError(f"no known columns (found {', '.join(map(str, list(record)[:8])) or 'none'})")
    place_system(messages, record)
    return messages


def question(record: Mapping[str, Any]) -> list[Message]:
    """An alpaca record's messages up to where the assistant speaks."""
    parts = [_text(record[name], name) for name in ("instruction", "input") if record.get(name)]
    asked = "\n".join(parts)
    messages: list[Message] = []
    for exchange in record.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRecordError('"history" should be a list of [question, answer]')
        messages.append({"role": "user", "content": _text(exchange[0], "history")})
        messages.append({"role": "assistant", "content": _text(exchange[1], "history")})
    if not asked.strip():
        raise BadRecordError("an empty question or answer")
    return [*messages, {"role": "user", "content": asked}]


def spoken(value: Any, name: str, role: str = "assistant", tags: Tags = SHAREGPT) -> list[Message]:
    """What stands in a column as messages: text, one message, or a list of them.

    Args:
        role: who says a text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRecordError(f'"{name}" is empty')
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [_turn(value, tags)]
    return [_turn(entry, tags) for entry in _list(value, name)]


def place_system(messages: list[Message], record: Mapping[str, Any]) -> None:
    """Put a record's own `system` and `tools` into the first message."""
    system = record.get("system")
    if system and isinstance(system, str):
        messages.insert(0, {"role": "system", "content": system})
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRecordError(f'"tools" is not JSON ({error})') from None
    if not tools:
        return
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecordError('"tools" should be a list of objects')
    if not all(isinstance((tool.get("function") or tool).get("name"), str) for tool in tools):
        raise BadRecordError("a tool has no name")
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})
    messages[0]["tools"] = tools


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRecordError(f'"{name}" should be a list that is not empty')
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecordError(f'"{name}" should be text, not {type(value).__name__}')
    return value


def _alpaca_messages(record: Mapping[str, Any]) -> list[Message]:
    asked, answer = question(record), _text(record["output"], "output")
    if not answer.strip():
        raise BadRecordError("an empty question or answer")
    return [*asked, {"role": "assistant", "content": answer}]


def _turn(entry: Any, tags: Tags) -> Message:
    if not isinstance(entry, dict):
        raise BadRecordError("a turn should be an object")
    return _tagged_message(entry, tags) if tags.role in entry else _openai_message(entry)


def _tagged_message(entry: Mapping[str, Any], tags: Tags) -> Message:
    speaker = entry.get(tags.role)
    role = tags.roles.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRecordError(f"unknown speaker {speaker!r:.40}; known: {', '.join(tags.roles)}")
    if tags.role == "role" and tags.content == "content" and role != "function_call":
        return _openai_message({**entry, "role": role})
    value = _text(entry.get(tags.content), tags.content)
    if role != "function_call":
        return {"role": role, "content": value}
    try:
        calls = json.loads(value)
    except ValueError as error:
        raise BadRecordError(f"a function_call is not JSON ({error})") from None
    return {"role": "assistant", "content": "", "tool_calls": _calls(calls if isinstance(calls, list) else [calls])}


def _openai_message(entry: Mapping[str, Any]) -> Message:
    role = _ROLES.get(entry["role"]) if isinstance(entry.get("role"), str) else None
    if role is None:
        raise BadRecordError(f"unknown role {entry.get('role')!r:.40}; known: {', '.join(_ROLES)}")
    content = entry.get("content")
    if isinstance(content, list):  # the parts of a message; only text can be learnt here
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRecordError("a message holds something that is no text")
        content = "".join(_text(part.get("text"), "text") for part in content)
    message: Message = {"role": role}
    if entry.get("tool_calls") and role == "assistant":
        message["tool_calls"] = _calls(_list(entry["tool_calls"], "tool_calls"))
        content = content or ""
    message = {"role": role, "content": _text(content, "content"), **message}
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(entry.get(name), str) and entry[name] and role == "assistant":
            message.setdefault("reasoning_content", entry[name])
    for name in ("name", "tool_call_id"):
        if isinstance(entry.get(name), str):
            message[name] = entry[name]
    if entry.get("weight") in (0, 1) and role == "assistant":  # OpenAI: 0 is not to be learnt
        message["weight"] = entry["weight"]
    if isinstance(entry.get("tools"), list) and role == "system":
        message["tools"] = entry["tools"]
    return message


def _calls(calls: list[Any]) -> list[dict[str, Any]]:
    """Tool calls as OpenAI writes them, the arguments as the string that the model should write."""
    result = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise BadRecordError("a tool call has no name")
        arguments = inner.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        entry = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
        result.append({"id": call["id"], **entry} if isinstance(call.get("id"), str) else entry)
    return result
