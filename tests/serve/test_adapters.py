"""Several adapters over one base behind the server, chosen by the model's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapted_models import make_adapter, merged
from http_models import LastingEngine, Running, running

from tinyseek.engine.engine import Engine
from tinyseek.engine.options import EngineSettings
from tinyseek.errors import UserError
from tinyseek.llm.base import ChatOptions
from tinyseek.llm.local import LocalChat
from tinyseek.serve.app import make_app
from tinyseek.serve.options import ServeSettings
from tinyseek.text.tokenizer import Tokenizer

NAMES = ["tiny", "poet", "coder"]
QUESTION = [{"role": "user", "content": "In the beginning there was a river, and by the river?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters; the coder brings a chat template of its own."""
    where = tmp_path_factory.mktemp("adapters")
    poet = make_adapter(folder, where / "poet", 1)
    coder = make_adapter(folder, where / "coder", 2, rank=2, targets=["kv_b_proj", "o_proj", "*experts*"])
    tokenizer = Tokenizer.load(folder)
    template = str(tokenizer.chat_template).replace("<｜User｜>", "<｜User｜>code: ")
    assert template != tokenizer.chat_template
    tokenizer.chat_template = template
    tokenizer.save(coder)
    return {"poet": poet, "coder": coder}


@pytest.fixture(scope="module")
def alone(folder: Path, folders: dict[str, Path]) -> dict[str, LocalChat]:
    """Each model merged, in an engine of its own."""
    chats = {"tiny": LocalChat.load(folder, EngineSettings(cache_tokens=2048), "tiny")}
    for name, own in folders.items():
        tokenizer = Tokenizer.load(own if (own / "tokenizer.json").is_file() else folder)
        chats[name] = LocalChat(Engine(merged(own), tokenizer, EngineSettings(cache_tokens=2048)), name)
    return chats


@pytest.fixture(scope="module")
def server(folder: Path, folders: dict[str, Path]) -> Iterator[Running]:
    engine = LastingEngine.load(folder, EngineSettings(cache_tokens=8192), folders)
    engine.runner.warm()  # compiling takes longer than a client waits
    base = LocalChat(engine, "tiny")
    with running(base, beside=[base.over(name) for name in folders]) as server:
        yield server


def asked(name: str, **more: Any) -> dict[str, Any]:
    return {"model": name, "messages": QUESTION, "max_tokens": 12, **more}


def test_all_are_listed(server: Running) -> None:
    models = server.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in models] == [("tiny", None), ("poet", "tiny"), ("coder", "tiny")]
    assert server.get("/v1/models/poet").json() == models[1]
    tags = server.get("/api/tags").json()["models"]
    assert [(entry["model"], entry["details"]["parent_model"]) for entry in tags] == [
        ("tiny", ""),
        ("poet", "tiny"),
        ("coder", "tiny"),
    ]
    assert tags[1]["size"] < tags[0]["size"]
    assert len({entry["digest"] for entry in tags}) == 3
    assert [entry["model"] for entry in server.get("/api/ps").json()["models"]] == NAMES
    shown = server.post("/api/show", {"model": "coder:latest"}).json()
    assert shown["modelfile"] == "FROM tiny\nADAPTER coder\n"
    assert "code: " in shown["template"]


def test_an_unknown_name_is_not_found(server: Running) -> None:
    for path, body in (
        ("/v1/chat/completions", asked("poets")),
        ("/v1/completions", {"model": "poets", "prompt": "a"}),
        ("/v1/embeddings", {"model": "poets", "input": "a"}),
        ("/v1/responses", {"model": "poets", "input": "a"}),
        ("/tokenize", {"model": "poets", "prompt": "a"}),
    ):
        answer = server.post(path, body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert answer.json()["error"]["message"] == (
            'the model "poets" is not served here; there are "tiny", "poet", "coder"'
        )
    assert server.post("/api/chat", {"model": "poets", "messages": QUESTION}).status_code == 404


def test_each_answers_in_one_batch_as_it_does_merged_and_alone(server: Running, alone: dict[str, LocalChat]) -> None:
    expected = {
        name: alone[name].complete(QUESTION, ChatOptions(max_tokens=12, temperature=0)).message["content"]
        for name in NAMES
    }
    assert len(set(expected.values())) == 3

    async def ask(client: httpx.AsyncClient, name: str) -> tuple[str, str, str]:
        answer = await client.post("/v1/chat/completions", json=asked(name, temperature=0))
        reply = answer.json()
        return name, reply["model"], reply["choices"][0]["message"]["content"]

    async def all_at_once() -> list[tuple[str, str, str]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120, verify=False) as client:
            return await asyncio.gather(*(ask(client, name) for name in NAMES * 3))

    assert asyncio.run(all_at_once()) == [(name, name, expected[name]) for name in NAMES * 3]
    for name in NAMES:
        text = ""
        with server.client.stream(
            "POST", "/v1/chat/completions", json=asked(name, temperature=0, stream=True)
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    assert chunk["model"] == name
                    text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert text == expected[name]
        ollama = server.post(
            "/api/chat",
            {"model": name, "messages": QUESTION, "stream": False, "options": {"num_predict": 12, "temperature": 0}},
        ).json()
        assert (ollama["model"], ollama["message"]["content"]) == (name, expected[name])
        response = server.post(
            "/v1/responses", {"model": name, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
        ).json()
        assert (response["model"], response["output"][0]["content"][0]["text"]) == (name, expected[name])


def test_completions_and_log_probabilities(server: Running, alone: dict[str, LocalChat]) -> None:
    body = {"prompt": "In the", "max_tokens": 5, "temperature": 0, "echo": True, "logprobs": 1}
    told = {name: server.post("/v1/completions", {"model": name, **body}).json()["choices"][0] for name in NAMES}
    assert len({choice["text"] for choice in told.values()}) == 3
    with running(alone["poet"], name="poet") as other:
        expected = other.post("/v1/completions", {"model": "poet", **body}).json()["choices"][0]
    assert told["poet"]["text"] == expected["text"]
    known = [value for value in expected["logprobs"]["token_logprobs"] if value is not None]
    ours = [value for value in told["poet"]["logprobs"]["token_logprobs"] if value is not None]
    assert ours == pytest.approx(known, abs=1e-3)


def test_tools_and_forms(server: Running) -> None:
    wanted = {
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "none",
        "max_tokens": 200,
    }
    for name in NAMES:
        choice = server.post("/v1/chat/completions", asked(name, **wanted)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        call = choice["message"]["tool_calls"][0]["function"]
        assert call["name"] == "weather"
        assert json.loads(call["arguments"])["city"] in ("Paris", "Oslo")


def test_embeddings_and_the_adapters_own_template(server: Running) -> None:
    vectors = [
        server.post("/v1/embeddings", {"model": name, "input": "a river"}).json()["data"][0]["embedding"]
        for name in NAMES
    ]
    assert len({tuple(vector) for vector in vectors}) == 3
    texts = [
        server.post("/tokenize", {"model": name, "messages": QUESTION, "return_token_strs": True}).json()
        for name in NAMES
    ]
    assert texts[0]["tokens"] == texts[1]["tokens"] != texts[2]["tokens"]
    assert "code: In the" in "".join(texts[2]["token_strs"])


def test_what_one_has_read_is_read_again_by_another(server: Running) -> None:
    body = {"prompt": "The weather in Paris is mild; " * 12, "max_tokens": 1, "temperature": 0}

    def cached(name: str) -> int:
        usage = server.post("/v1/completions", {"model": name, **body}).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [cached(name) for name in NAMES] == [0, 0, 0]
    assert all(cached(name) > 0 for name in NAMES)


def test_two_of_one_name_are_refused(server: Running, folder: Path, folders: dict[str, Path]) -> None:
    base = LocalChat.load(folder, EngineSettings(cache_tokens=512), "tiny", folders)
    with pytest.raises(UserError, match='two models would be called "poet"'):
        make_app(base, ServeSettings(name="poet:latest"), [base.over("poet")])
