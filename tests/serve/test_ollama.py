"""Ollama's API: by its own client, and as Open WebUI probes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ollama
import pytest
from http_models import Running, Stage, said, scripted
from pydantic import BaseModel

from tinyseek.engine.params import SamplingParams
from tinyseek.llm.base import ChatDelta, ChatOptions, Message, ToolCallDelta, Usage
from tinyseek.llm.local import LocalChat

HELLO = [{"role": "user", "content": "Hello"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(tiny: Running) -> ollama.Client:
    return ollama.Client(tiny.url)


def test_what_clients_probe(tiny: Running, client: ollama.Client) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        assert tiny.client.head(path).status_code == 200
    assert tiny.get("/").text == "Ollama is running"
    assert tuple(map(int, tiny.get("/api/version").json()["version"].split("."))) >= (0, 6, 4)
    (listed,) = client.list().models
    assert listed.model == "tiny"
    assert listed.size
    assert listed.details is not None
    assert listed.details.family == "deepseek_v3"
    (loaded,) = client.ps().models
    assert loaded.model == "tiny"
    assert loaded.expires_at is not None
    shown = client.show("tiny")
    assert shown.modelinfo is not None
    assert shown.modelinfo["deepseek_v3.context_length"] == 512
    assert set(shown.capabilities or []) == {"completion", "tools", "thinking", "insert"}
    assert client.show("tiny:latest").template == shown.template
    for body in ({"model": "tiny", "messages": []}, {"model": "tiny", "prompt": ""}):
        path = "/api/chat" if "messages" in body else "/api/generate"
        assert tiny.post(path, body).json()["done_reason"] == "load"


def test_chat_whole_and_streamed(tiny: Running, client: ollama.Client, chat: LocalChat) -> None:
    expected = chat.complete(HELLO, ChatOptions(max_tokens=9, stop=("zzz",))).content
    options: Any = {"num_predict": 9.0, "temperature": 0, "top_k": 40.0, "seed": -1, "num_ctx": 4096, "stop": ["zzz"]}
    whole = client.chat("tiny", HELLO, options=options)
    assert whole.message.content == expected
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 9)
    parts = list(client.chat("tiny", HELLO, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == expected
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert last.total_duration is not None
    assert last.prompt_eval_duration is not None
    assert last.eval_duration is not None
    assert 1e5 < last.prompt_eval_duration + last.eval_duration <= last.total_duration + 2 < 1e11  # nanoseconds
    raw = tiny.post("/api/chat", {"model": "tiny", "messages": HELLO, "options": {"num_predict": 2}})
    assert raw.headers["content-type"] == "application/x-ndjson"
    assert all(json.loads(line)["model"] == "tiny" for line in raw.text.splitlines())


def test_generate(client: ollama.Client, chat: LocalChat) -> None:
    expected = chat.complete(HELLO, ChatOptions(max_tokens=6)).content
    assert client.generate("tiny", "Hello", options={"num_predict": 6}).response == expected
    parts = list(client.generate("tiny", "Hello", options={"num_predict": 6}, stream=True))
    assert "".join(part.response for part in parts) == expected
    ids = [chat.tokenizer.bos_id, *chat.tokenizer.encode("by the")]
    plain = "".join(piece.text for piece in chat.engine.submit(ids, SamplingParams(max_tokens=6)))
    assert client.generate("tiny", "by the", raw=True, options={"num_predict": 6}).response == plain
    middle = client.generate("tiny", "by the", suffix="house", options={"num_predict": 4})
    assert middle.eval_count == 4


def test_forms(client: ollama.Client) -> None:
    class Both(BaseModel, extra="forbid"):
        yes: bool

    answer = client.chat("tiny", HELLO, format=Both.model_json_schema(), think=False, options={"num_predict": 200})
    assert isinstance(Both.model_validate_json(answer.message.content or "").yes, bool)
    answer = client.chat("tiny", HELLO, format="json", think=False, options={"num_predict": 20})
    assert (answer.message.content or "").lstrip().startswith("{")


def test_tools_and_thought(stage: Stage) -> None:
    def answer(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
        if messages[-1]["role"] == "tool":
            yield from said("It is ", "cold.")
            return
        yield ChatDelta(reasoning="hm")
        yield ChatDelta(tool_calls=(ToolCallDelta(0, "a", "weather", '{"city":'),))
        yield ChatDelta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'), ToolCallDelta(1, "b", "weather", "{}")))
        yield ChatDelta(tool_calls=(ToolCallDelta(2, "c", "weather", '{"cut": '),))  # is none
        yield ChatDelta(finish="tool_calls", usage=Usage(3, 4))

    with stage.plays(answer) as server:
        client = ollama.Client(server.url)
        whole = client.chat("tiny", HELLO, tools=[TOOL], think=True)
        parts = list(client.chat("tiny", HELLO, tools=[TOOL], stream=True, think="low"))
        assert [options.thinking for _, options in stage.model.asked] == [True, True]
        assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking == "hm"
        streamed = [call for part in parts for call in part.message.tool_calls or []]
        for calls in (whole.message.tool_calls or [], streamed):
            assert [(call.function.name, call.function.arguments) for call in calls] == [
                ("weather", {"city": "Oslo"}),
                ("weather", {}),
            ]
        after = [
            *HELLO,
            whole.message,
            {"role": "tool", "tool_name": "weather", "content": "cold"},
            {"role": "tool", "content": "x"},
        ]
        assert client.chat("tiny", after).message.content == "It is cold."  # type: ignore[arg-type]
        heard = stage.model.asked[-1][0]
        assert [call["id"] for call in heard[1]["tool_calls"]] == [message["tool_call_id"] for message in heard[2:]]
        assert json.loads(heard[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}


def test_embeddings(tiny: Running, client: ollama.Client, chat: LocalChat) -> None:
    expected = np.array(chat.embed(["a river", "小梅"]))
    assert np.allclose(client.embed("tiny", ["a river", "小梅"]).embeddings, expected, atol=1e-6)
    assert np.allclose(client.embed("tiny", "a river").embeddings, expected[:1], atol=1e-6)
    assert np.allclose(client.embeddings("tiny", "a river").embedding, expected[0], atol=1e-6)


def test_errors_are_text(tiny: Running, client: ollama.Client, stage: Stage) -> None:
    with pytest.raises(ollama.ResponseError, match="not served here") as error:
        client.chat("gemma", HELLO)
    assert error.value.status_code == 404
    for path, body in (
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "wizard", "content": "x"}]}),
        ("/api/chat", {"model": "tiny", "messages": HELLO, "format": "xml"}),
        ("/api/chat", {"model": "tiny", "messages": HELLO, "options": {"temperature": -1}}),
        ("/api/chat", {"model": "tiny", "messages": "Hello"}),
        ("/api/generate", {"model": "tiny", "prompt": "x", "images": ["aGk="]}),
        ("/api/generate", {"model": "tiny", "prompt": "word " * 3000}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/embed", {"model": "tiny", "input": "x", "dimensions": 3}),
    ):
        answer = tiny.post(path, body)
        assert answer.status_code == 400, body
        assert isinstance(answer.json()["error"], str)
    assert tiny.post("/api/pull", {"model": "gemma"}).status_code == 404

    def breaks(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
        yield ChatDelta(content="One")
        raise RuntimeError("the secret of the house")

    with stage.plays(breaks, pause=0.05) as server:
        lines = server.post("/api/chat", {"model": "tiny", "messages": HELLO}).text.splitlines()
        assert json.loads(lines[0])["message"]["content"] == "One"
        assert set(json.loads(lines[-1])) == {"error"}
        assert "secret" not in lines[-1]


def test_a_line_stays_one(stage: Stage) -> None:
    """Python's own idea of a line's end is wider than JSON's, and clients have it."""
    odd = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"
    with stage.plays(scripted(said(odd))) as server:
        client = ollama.Client(server.url)
        assert client.chat("tiny", HELLO).message.content == odd
        assert "".join(part.message.content or "" for part in client.chat("tiny", HELLO, stream=True)) == odd
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        with server.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
        assert lines[1]["choices"][0]["delta"]["content"] == odd


def test_an_unfinished_sentence_is_said_as_it_is(stage: Stage) -> None:
    with stage.plays(scripted(said("One", finish="length"))) as server:
        assert ollama.Client(server.url).chat("tiny", HELLO).done_reason == "length"
