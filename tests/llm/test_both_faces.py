"""A model by the engine, and the same model behind our own server: one face, the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from http_models import make_folder, running

from tinyseek.engine.engine import Engine
from tinyseek.engine.options import EngineSettings
from tinyseek.llm.base import Answer, ChatModel, ChatOptions
from tinyseek.llm.local import LocalChat
from tinyseek.llm.remote import RemoteChat

USER = {"role": "user", "content": "What is the weather in Paris? 小梅喜欢吃什么？"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]}}  # type: ignore[index]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalChat, RemoteChat]]:
    folder: Path = make_folder(tmp_path_factory.mktemp("faces") / "tiny")
    local = LocalChat(Engine.load(folder, EngineSettings(cache_tokens=8192)), "tiny")
    with running(local) as server, ChatModel.open(server.url) as remote:
        assert isinstance(remote, RemoteChat)
        yield local, remote


def same(answer: Answer) -> dict[str, Any]:
    """An answer without what differs by chance."""
    message = json.loads(json.dumps(answer.message))
    for call in message.get("tool_calls", []):
        assert call.pop("id")
    message["content"] = message.get("content") or ""
    return {"message": message, "finish": answer.finish, "parsed": answer.parsed}


@pytest.mark.parametrize(
    "options",
    [
        ChatOptions(max_tokens=20),
        ChatOptions(max_tokens=20, thinking=True),
        ChatOptions(max_tokens=20, thinking=False, stop=("e",)),
        ChatOptions(max_tokens=20, temperature=1.2, seed=5, top_k=20, n=2),
        ChatOptions(max_tokens=100, response_format=JSON, thinking=False),
        ChatOptions(max_tokens=100, choice=["yes", "no"], thinking=False),
        ChatOptions(max_tokens=100, regex="[0-9]{3}", thinking=False),
        ChatOptions(max_tokens=200, tools=[TOOL], tool_choice="required", thinking=False, parallel_tool_calls=False),
        ChatOptions(
            max_tokens=200, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}}, thinking=False
        ),
    ],
)
def test_the_server_answers_as_the_engine(faces: tuple[LocalChat, RemoteChat], options: ChatOptions) -> None:
    local, remote = faces
    mine, theirs = local.complete_all([USER], options), remote.complete_all([USER], options)
    assert [same(answer) for answer in theirs] == [same(answer) for answer in mine]
    assert theirs[0].usage is not None
    assert mine[0].usage is not None
    assert theirs[0].usage.prompt_tokens == mine[0].usage.prompt_tokens
    assert theirs[0].usage.completion_tokens == mine[0].usage.completion_tokens
    assert theirs[0].usage.reasoning_tokens == mine[0].usage.reasoning_tokens


def test_a_beginning_and_calls_in_the_history(faces: tuple[LocalChat, RemoteChat]) -> None:
    local, remote = faces
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Oslo"}'}}
    history = [
        USER,
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
    ]
    begun = [USER, {"role": "assistant", "content": "The weather"}]
    for messages, options in (
        (history, ChatOptions(max_tokens=10, tools=[TOOL])),
        (begun, ChatOptions(max_tokens=10, prefix=True)),
    ):
        mine, theirs = local.complete(messages, options), remote.complete(messages, options)
        assert same(theirs) == same(mine)
        assert mine.usage is not None
        assert theirs.usage is not None
        assert mine.usage.prompt_tokens == theirs.usage.prompt_tokens


def test_logprobs_and_embeddings(faces: tuple[LocalChat, RemoteChat]) -> None:
    local, remote = faces
    options = ChatOptions(max_tokens=8, logprobs=True, top_logprobs=2, thinking=False)
    mine, theirs = local.complete([USER], options).logprobs, remote.complete([USER], options).logprobs
    assert [one.bytes for one in theirs] == [one.bytes for one in mine if one.part == "content"]
    assert [one.logprob for one in theirs] == pytest.approx([one.logprob for one in mine if one.part == "content"])
    assert remote.embed(["Paris", "小梅"])[1] == pytest.approx(local.embed(["小梅"])[0], abs=1e-5)
