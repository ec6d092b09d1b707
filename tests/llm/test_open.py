"""From a folder to an answer, by the real engine on a tiny model of random weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from adapted_models import make_adapter

import tinyseek
from tinyseek.engine.options import EngineSettings
from tinyseek.errors import UserError
from tinyseek.llm.base import ChatModel, ChatOptions, ContextError, gather
from tinyseek.llm.local import LocalChat
from tinyseek.llm.open import open_with_adapters
from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

USER = {"role": "user", "content": "who are you? 你是谁？"}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "city": {"enum": ["北京", "Rome"]}},
    "required": ["ok", "city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("first") / "sft"
    text = ['who are you? {"ok": true, "city": "Rome"} ' * 50, "你是谁？北京" * 50]
    tokenizer = Tokenizer.train(text, TokenizerSettings(vocab_size=340))
    torch.manual_seed(0)
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "n_routed_experts": 4,
    }
    CausalLM(from_preset("quickstart", shape)).save(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def chat(folder: Path) -> Iterator[LocalChat]:
    with ChatModel.open(folder, engine=EngineSettings(device="cpu", cache_tokens=8192)) as chat:
        assert isinstance(chat, LocalChat)
        yield chat


def lively(**options: Any) -> ChatOptions:
    return ChatOptions(temperature=1.5, **options)


def test_a_run_s_folder_opens_and_is_named(folder: Path) -> None:
    assert tinyseek.ChatModel is ChatModel
    with ChatModel.open(folder.parent) as chat:
        assert (chat.name, chat.context) == ("sft", 512)
        assert chat.complete([USER], ChatOptions(max_tokens=3)).finish == "length"
    (folder.parent / "empty").mkdir()
    for where, message in ((folder.parent / "empty", "no model in it"), ("nowhere-at-all", "no such folder")):
        with pytest.raises(UserError, match=message):
            ChatModel.open(where)
    with pytest.raises(UserError, match="only a server"):
        ChatModel.open(folder, model="x")


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that compile nothing before they are asked."""
    monkeypatch.setattr("tinyseek.engine.runner.Runner.warm", lambda _: None)


def test_an_adapter_opens_beside_its_base(folder: Path, tmp_path: Path, cold: None) -> None:
    poet, coder = (make_adapter(folder, tmp_path / name, 1) for name in ("poet", "coder"))
    for where, others, name, expected in (
        (folder, {}, None, [("sft", None)]),
        (folder, {"poet": poet, "x": coder}, "base", [("base", None), ("poet", "poet"), ("x", "x")]),
        (poet, {"coder": coder}, None, [("poet", "poet"), ("sft", None), ("coder", "coder")]),
        (poet, {}, "me", [("me", "me"), ("sft", None)]),
    ):
        chats = open_with_adapters(str(where), {own: str(place) for own, place in others.items()}, None, name)
        chats[0].close()
        assert [(chat.name, chat.adapter) for chat in chats] == expected
        assert len({id(chat.engine) for chat in chats}) == 1
    for where, others, name, message in (
        (folder, {"x": folder}, None, "adapters.x: .* is a model, no adapter"),
        (folder, {"sft": poet}, None, 'adapters.sft: "sft" is the name of'),
        (poet, {"poet": coder}, None, 'adapters.poet: "poet" is the name of'),
        (poet, {}, "sft", '"sft" is the name of both'),
        (folder, {"x": tmp_path / "nowhere"}, None, "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            open_with_adapters(str(where), {own: str(place) for own, place in others.items()}, None, name)


def test_an_adapter_that_cannot_share_its_base_is_opened_merged(folder: Path, tmp_path: Path, cold: None) -> None:
    long = make_adapter(folder, tmp_path / "long", 1, targets=["o_proj"], dora=True)
    told: list[str] = []
    (chat,) = open_with_adapters(str(long), {}, say=told.append)
    chat.close()
    assert (chat.name, chat.adapter) == ("long", None)
    assert "DoRA" in told[0]
    assert "served merged with its base, alone" in told[0]
    with pytest.raises(UserError, match=r'adapter "long": .*DoRA.*tinyseek merge'):
        open_with_adapters(str(folder), {"long": str(long)})


def test_several_answers_of_random_weights_keep_to_their_forms(chat: LocalChat) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answers = chat.complete_all([USER], lively(n=3, seed=1, max_tokens=300, response_format=form, thinking=False))
    assert len(answers) == 3
    for answer in answers:
        assert answer.finish == "stop"
        jsonschema.validate(answer.parsed, SCHEMA)
    called = chat.complete([USER], lively(tools=[TOOL], tool_choice="required", thinking=False, max_tokens=400))
    for call in called.tool_calls[: None if called.finish == "tool_calls" else -1]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    assert called.tool_calls
    assert chat.complete([USER], lively(choice=["是", "否"], thinking=False)).content in ("是", "否")


def test_the_second_turn_reads_the_first_from_the_cache(chat: LocalChat) -> None:
    messages = [{"role": "user", "content": "who are you? " * 10}]
    first = chat.complete(messages, ChatOptions(max_tokens=8))
    again = chat.complete([*messages, first.message, USER], ChatOptions(max_tokens=8))
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.cached_tokens >= first.usage.prompt_tokens - 32
    assert first.usage.completion_tokens <= 8


def test_logprobs_belong_to_the_tokens(chat: LocalChat) -> None:
    answer = chat.complete([USER], ChatOptions(max_tokens=12, logprobs=True, top_logprobs=3))
    assert [one.id for one in answer.logprobs] == answer.ids
    for one in answer.logprobs:
        assert one.logprob == max(top.logprob for top in one.top)  # greedy
        assert len(one.top) == 3


def test_greedy_answers_are_the_same_streamed_by_threads_and_by_tasks(chat: LocalChat) -> None:
    options = ChatOptions(max_tokens=30)
    expected = chat.complete([USER], options).content
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(chat.complete([USER], options).content)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def together() -> list[str]:
        answers = await asyncio.gather(*(chat.acomplete_all([USER], options) for _ in range(4)))
        return [answer[0].content for answer in answers]

    assert [*found, *asyncio.run(together())] == [expected] * 8


def test_a_cancelled_answer_frees_the_engine(chat: LocalChat) -> None:
    async def leave() -> None:
        async for _ in chat.astream([USER], ChatOptions(max_tokens=400, logit_bias={chat.tokenizer.eos_id: -100.0})):
            break

    asyncio.run(leave())
    stream = chat.stream([USER], ChatOptions(max_tokens=400, logit_bias={chat.tokenizer.eos_id: -100.0}))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    chat.complete([USER], ChatOptions(max_tokens=2))  # a step or two later
    assert chat.engine.stats().running == 0


def test_stop_strings_cut_the_answer(chat: LocalChat) -> None:
    plain = chat.complete([USER], ChatOptions(max_tokens=40)).content
    for start in range(3, min(12, len(plain) - 2)):
        stop = plain[start : start + 2]
        answers = gather(chat.stream([USER], ChatOptions(max_tokens=40, stop=(stop,))))
        assert answers[0].content == plain.partition(stop)[0]
        assert answers[0].finish == "stop"


def test_too_long_and_embedded(chat: LocalChat) -> None:
    with pytest.raises(ContextError, match="context is 512"):
        chat.complete([{"role": "user", "content": "Q7" * 400}])
    vectors = chat.embed(["who are you?", "who are you?", "你是谁"])
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
    assert sum(value * value for value in vectors[2]) == pytest.approx(1, abs=1e-4)


def test_the_lazy_name_costs_nothing() -> None:
    code = "import tinyseek, sys; tinyseek.ChatModel; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "llguidance", "httpx2", "pydantic"} & set(loaded)
