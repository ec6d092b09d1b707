"""OpenAI's functions of before there were tools (2023): `functions`, `function_call`, and messages of the role `function`.

A request in that form is made into one with tools, and its answer is told in that form: one `function_call` in the message,
`finish_reason: "function_call"`.
"""

from __future__ import annotations

from typing import Any

from tinyseek.serve.errors import refused
from tinyseek.serve.replies import Delta, MessageReply
from tinyseek.serve.wire import ChatMessage, ChatRequest, Tool, ToolCall


def is_legacy(body: ChatRequest) -> bool:
    """Whether a request speaks of functions in the old way, and so wants its answer."""
    return body.functions is not None or body.function_call is not None


def modern(body: ChatRequest) -> ChatRequest:
    """The same request with tools, one call at most. ApiError 400 for both forms at once, and for what contradicts itself."""
    if not is_legacy(body):
        return body
    if body.tools or body.tool_choice is not None:
        raise refused(
            "functions and function_call are the old names of tools and tool_choice; send one pair", "functions"
        )
    if not body.functions:
        raise refused("function_call needs functions", "function_call")
    choice: Any = body.function_call
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    elif choice not in (None, "none", "auto"):
        raise refused('function_call: "none", "auto" or {"name": ...} is expected', "function_call")
    tools = [Tool(type="function", function=function) for function in body.functions]
    return body.model_copy(update={"tools": tools, "tool_choice": choice, "parallel_tool_calls": False})


def modern_message(message: ChatMessage, where: str) -> ChatMessage:
    """A message with its call, or its answer to one, as tools have it. ApiError 400 for both forms at once."""
    if message.role == "function":
        if message.name is None:
            raise refused(f"{where}: which function does it answer for? name is missing", f"{where}.name")
        return message.model_copy(update={"role": "tool"})
    if message.function_call is None:
        return message
    if message.tool_calls:
        raise refused(f"{where}: function_call and tool_calls at once", f"{where}.function_call")
    return message.model_copy(update={"tool_calls": [ToolCall(function=message.function_call)], "function_call": None})


# ---- answers ---------------------------------------------------------------------------------------------------------------------


def old_message(message: MessageReply) -> MessageReply:
    """A message with its call in the old form."""
    if calls := message.pop("tool_calls", None):
        message["function_call"] = calls[0]["function"]
    return message


def old_finish(finish: str | None) -> str | None:
    """Why the answer ended, in the old words."""
    return "function_call" if finish == "tool_calls" else finish


def old_delta(delta: Delta) -> Delta:
    """A streamed piece with its call in the old form."""
    if calls := delta.pop("tool_calls", None):
        parts = [call["function"] for call in calls]
        name = next((part["name"] for part in parts if "name" in part), None)
        arguments = "".join(part["arguments"] for part in parts)
        delta["function_call"] = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return delta
