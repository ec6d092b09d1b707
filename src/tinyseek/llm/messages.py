"""Conversations as applications write them, checked and brought into one form: OpenAI's messages, contents as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinyseek.errors import UserError
from tinyseek.llm.base import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")  # what servers and clients call it


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """A conversation for a template: contents are text, `developer` is `system`, reasoning is `reasoning_content`.

    Raises:
        UserError: no messages; an unknown role; a content that is no text (a picture, a sound); a broken tool call.
    """
    if not messages:
        raise UserError("there are no messages; the last one is what the model answers")
    return [_plain(message, number) for number, message in enumerate(messages)]


def _plain(message: Message, number: int) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"messages[{number}] is no object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"messages[{number}].role is {role!r:.40}; known: {', '.join(ROLES)}")
    plain: Message = {
        "role": "system" if role == "developer" else role,
        "content": _text(message.get("content"), number),
    }
    if role == "assistant":
        reasoning = next((message[key] for key in REASONING if message.get(key)), None)
        if reasoning is not None:
            if not isinstance(reasoning, str):
                raise UserError(f"messages[{number}]: its reasoning is no text")
            plain["reasoning_content"] = reasoning
        if message.get("tool_calls"):
            plain["tool_calls"] = _calls(message["tool_calls"], number)
    if role == "tool" and message.get("tool_call_id") is not None:
        plain["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        plain["name"] = message["name"]
    return plain


def _text(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise UserError(f"messages[{number}].content should be text, not {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type", "text")
        text = part.get("text") if kind in ("text", "input_text", "output_text") else part.get("refusal")
        if not isinstance(text, str):
            raise UserError(f"messages[{number}] holds a part of type {kind!r:.40}; this model reads text alone")
        texts.append(text)
    return "\n".join(texts)


def _calls(calls: Any, number: int) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UserError(f"messages[{number}].tool_calls should be a list")
    plain = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UserError(f"messages[{number}]: a tool call has no function name")
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        plain.append(
            {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return plain


# ---- tools -----------------------------------------------------------------------------------------------------------------------


def plain_tools(tools: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The functions of a request: {"name", "description"?, "parameters"?, "strict"?}, whether or not they are wrapped.

    Raises:
        UserError: something else, or one name twice.
    """
    functions: list[dict[str, Any]] = []
    for number, tool in enumerate(tools or ()):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UserError(f"tools[{number}] is no function with a name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise UserError(f"tools[{number}].function.parameters is no JSON schema")
        functions.append(
            {key: function[key] for key in ("name", "description", "parameters", "strict") if key in function}
        )
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise UserError(f"two tools are called {next(name for name in names if names.count(name) > 1)!r}")
    return functions


def chosen_tool(choice: Any, functions: Sequence[Mapping[str, Any]]) -> str:
    """What `tool_choice` asks for: "auto", "none", "required", or "name:NAME".

    Raises:
        UserError: it asks for a tool that there is not, or is nothing known.
    """
    if choice is None:
        return "auto" if functions else "none"
    if choice in ("none", "auto"):
        return str(choice) if functions else "none"
    if choice == "required":
        if not functions:
            raise UserError('tool_choice is "required", but there are no tools')
        return "required"
    name = None
    if isinstance(choice, Mapping) and choice.get("type", "function") == "function":
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise UserError(
            'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": ...}}; '
            f"not {json.dumps(choice, ensure_ascii=False, default=str):.80}"
        )
    if name not in [function["name"] for function in functions]:
        known = ", ".join(function["name"] for function in functions) or "none"
        raise UserError(f"tool_choice asks for {name!r:.80}; there are: {known}")
    return f"name:{name}"


# ---- tools for a model whose template knows none ---------------------------------------------------------------------------------

_HERMES = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def in_words(messages: Sequence[Message], functions: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A conversation with its tools told in the system message and its calls and outputs as text, as Hermes and Qwen do."""
    told: list[Message] = []
    for message in messages:
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = [
                f'<tool_call>\n{{"name": {json.dumps(call["function"]["name"], ensure_ascii=False)}, '
                f'"arguments": {call["function"]["arguments"]}}}\n</tool_call>'
                for call in message["tool_calls"]
            ]
            text = "\n".join([message["content"], *calls] if message["content"] else calls)
            told.append({key: value for key, value in message.items() if key != "tool_calls"} | {"content": text})
        elif message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if told and told[-1].get("outputs"):
                told[-1]["content"] += "\n" + text
            else:
                told.append({"role": "user", "content": text, "outputs": True})
        else:
            told.append(dict(message))
    for message in told:
        message.pop("outputs", None)
    if functions:
        signatures = "\n".join(
            json.dumps({"type": "function", "function": _shown(function)}, ensure_ascii=False) for function in functions
        )
        text = _HERMES.format(signatures=signatures)
        if told and told[0]["role"] == "system":
            told[0]["content"] = f"{told[0]['content']}\n\n{text}" if told[0]["content"] else text
        else:
            told.insert(0, {"role": "system", "content": text})
    return told


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    """What of a function the model is told."""
    return {key: value for key, value in function.items() if key != "strict" and value is not None}


def wrapped(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Functions as templates want them."""
    return [{"type": "function", "function": _shown(function)} for function in functions]
