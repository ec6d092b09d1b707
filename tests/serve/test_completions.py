"""Text completions, embeddings and tokens: against the engine and the model themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tokenizers
import torch
from http_models import CONTEXT, LastingEngine, Running, running

from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import SamplingParams
from tinyseek.llm.local import LocalChat
from tinyseek.text.tokenizer import Tokenizer

RIVER = "by the river stood"


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)


def ask(tiny: Running, **fields: Any) -> Any:
    return tiny.post("/v1/completions", {"model": "tiny", "prompt": RIVER, "temperature": 0, **fields})


def written(chat: LocalChat, ids: list[int], **params: Any) -> str:
    return "".join(piece.text for piece in chat.engine.submit(ids, SamplingParams(**params)))


def test_a_text_whole_and_streamed(client: openai.OpenAI, chat: LocalChat) -> None:
    ids = [chat.tokenizer.bos_id, *chat.tokenizer.encode(RIVER)]
    expected = written(chat, ids, max_tokens=20)
    asked: dict[str, Any] = {"model": "tiny", "prompt": RIVER, "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == expected
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(ids)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert client.completions.create(**{**asked, "prompt": ids}).choices[0].text == expected
    stopped = client.completions.create(**asked, stop=[expected[3:5]]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (expected[: expected.index(expected[3:5])], "stop")


def test_control_tokens_in_a_text_are_text_unless_asked(tiny: Running, chat: LocalChat) -> None:
    def tokens(**fields: Any) -> list[int]:
        answer = tiny.post("/tokenize", {"prompt": "<｜User｜>Hi", "add_special_tokens": False, **fields})
        return list(answer.json()["tokens"])

    user = chat.tokenizer.controls["<｜User｜>"]
    assert user not in tokens()
    assert tokens(parse_special=True)[0] == user
    usage = [ask(tiny, prompt="<｜User｜>Hi", parse_special=parse).json()["usage"] for parse in (False, True)]
    assert usage[0]["prompt_tokens"] > usage[1]["prompt_tokens"]


@torch.inference_mode()
def test_the_prompts_log_probabilities_are_the_models(tiny: Running, chat: LocalChat) -> None:
    tokenizer, model = chat.tokenizer, chat.engine.model
    prompts = [tokenizer.encode(text) for text in (RIVER, "小梅喜欢吃苹果", "The weather in Oslo is")]
    answer = ask(tiny, prompt=prompts, max_tokens=1, logprobs=2, echo=True, seed=1234).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        logprobs_TV = model(torch.tensor([prompt]))[0].log_softmax(-1)
        assert len(told["token_logprobs"]) == len(prompt) + 1
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        expected = [float(logprobs_TV[at, token]) for at, token in enumerate(prompt[1:])]
        assert np.allclose(told["token_logprobs"][1:-1], expected, atol=1e-4)
        for at, (value, top) in enumerate(zip(told["token_logprobs"][1:-1], told["top_logprobs"][1:-1], strict=True)):
            likeliest = int(logprobs_TV[at].argmax()) == prompt[at + 1]
            assert (value == max(top.values())) == likeliest  # exactly: lm-eval asks so whether it is greedy
        assert choice["text"].startswith(tokenizer.decode(prompt))
        assert told["text_offset"][0] == 0


def test_echo_without_a_word_more(tiny: Running, chat: LocalChat) -> None:
    choice = ask(tiny, max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
    assert choice["text"] == RIVER
    assert len(choice["logprobs"]["tokens"]) == len(chat.tokenizer.encode(RIVER))
    assert all(value is not None for value in choice["logprobs"]["token_logprobs"])  # the begin token stands before
    assert "".join(choice["logprobs"]["tokens"]) == RIVER
    streamed = ask(tiny, max_tokens=3, echo=True, logprobs=1, stream=True).text.split("\n\n")
    parts = [json.loads(part[6:])["choices"][0] for part in streamed if part.startswith("data: {")]
    whole = ask(tiny, max_tokens=3, echo=True, logprobs=1).json()["choices"][0]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for key, values in whole["logprobs"].items():
        assert [entry for part in parts for entry in part["logprobs"][key]] == values


def test_a_batch_is_written_as_one_by_one(tiny: Running) -> None:
    prompts = [f"{word} in" for word in ("the", "Paris", "by", "小", "Oslo", "river", "house", "mild", "cold", "吃")]
    batch = ask(tiny, prompt=prompts, max_tokens=6, n=2, temperature=1, seed=3).json()["choices"]
    assert [choice["index"] for choice in batch] == list(range(20))
    for index in (0, 7):
        alone = ask(tiny, prompt=prompts[index], max_tokens=6, n=2, temperature=1, seed=3).json()["choices"]
        assert [choice["text"] for choice in alone] == [choice["text"] for choice in batch[2 * index : 2 * index + 2]]


def test_a_batch_larger_than_the_queue_waits_for_itself(folder: Path) -> None:
    settings = EngineSettings(max_sequences=2, max_waiting=0, cache_tokens=1024)
    with running(LocalChat(LastingEngine.load(folder, settings), "tiny")) as server:
        answer = ask(server, prompt=["river"] * 9, max_tokens=3)
        assert answer.status_code == 200
        assert len({choice["text"] for choice in answer.json()["choices"]}) == 1


def test_filling_in_the_middle(tiny: Running, chat: LocalChat) -> None:
    tokenizer = chat.tokenizer
    before, hole, after = (tokenizer.controls[f"<｜fim▁{name}｜>"] for name in ("begin", "hole", "end"))
    ids = [tokenizer.bos_id, before, *tokenizer.encode("by the "), hole, *tokenizer.encode(" stood"), after]
    expected = written(chat, ids, max_tokens=8)
    for path in ("/v1/completions", "/beta/completions"):
        body = {"model": "tiny", "prompt": "by the ", "suffix": " stood", "max_tokens": 8, "temperature": 0}
        assert tiny.post(path, body).json()["choices"][0]["text"] == expected
    assert ask(tiny, suffix="x", echo=True).status_code == 400


def test_a_tokenizer_without_marks_for_the_middle(
    tiny: Running, chat: LocalChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "token_id", lambda *_: None)
    answer = ask(tiny, suffix="x")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "empty"),
    ({"prompt": [[]]}, "empty"),
    ({"prompt": [10**6]}, "beyond the vocabulary"),
    ({"prompt": [[1], [-4]]}, "greater than"),
    ({"prompt": [1, "x"]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ["x"] * 1000}, "at most 256"),
    ({"prompt": "word " * 3000}, "context"),
    ({"max_tokens": 0}, "echo"),
    ({"logprobs": 21}, "less than"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
]


@pytest.mark.parametrize(("fields", "said"), BAD, ids=[json.dumps(fields)[:40] for fields, _ in BAD])
def test_a_bad_request(tiny: Running, fields: dict[str, Any], said: str) -> None:
    answer = ask(tiny, **fields)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


# ---- embeddings


def test_embeddings(client: openai.OpenAI, tiny: Running, chat: LocalChat) -> None:
    texts = ["a river", "小梅", "a river"]
    expected = np.array(chat.embed(texts))
    by_base64 = client.embeddings.create(model="tiny", input=texts)  # the SDK asks for base64 by itself
    assert np.allclose([entry.embedding for entry in by_base64.data], expected, atol=1e-6)
    by_float = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert np.allclose([entry.embedding for entry in by_float.data], expected, atol=1e-6)
    raw = tiny.post("/v1/embeddings", {"model": "tiny", "input": texts[0], "encoding_format": "base64"}).json()
    packed = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    assert np.allclose(packed, expected[0], atol=1e-6)
    assert np.allclose(np.linalg.norm(packed), 1)
    tokens = [[chat.tokenizer.bos_id, *chat.tokenizer.encode(text)] for text in texts]
    by_ids = client.embeddings.create(model="tiny", input=tokens, encoding_format="float")
    assert np.allclose([entry.embedding for entry in by_ids.data], expected, atol=1e-6)
    assert by_ids.usage.prompt_tokens == sum(map(len, tokens))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": []}, "empty"),
        ({"input": [""]}, "empty"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "word " * 3000}, "context"),
        ({"input": [[10**6]]}, "vocabulary"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_bad_embeddings(tiny: Running, fields: dict[str, Any], said: str) -> None:
    answer = tiny.post("/v1/embeddings", {"model": "tiny", **fields})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


# ---- tokens


def test_tokens_there_and_back(tiny: Running, chat: LocalChat, folder: Path) -> None:
    text = "by the river 小梅 <think>"
    told = tiny.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert told["tokens"] == [chat.tokenizer.bos_id, *chat.tokenizer.encode(text)]
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == CONTEXT
    assert tiny.post("/detokenize", {"tokens": told["tokens"][1:]}).json() == {"prompt": text}
    rust = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    messages = [{"role": "user", "content": "Hello"}]
    ids = tiny.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert ids == rust.encode(chat.tokenizer.render(messages, add_generation_prompt=True), add_special_tokens=False).ids
    info = tiny.get("/tokenizer_info").json()
    assert info["eos_token"] == "<｜end▁of▁sentence｜>"
    assert tiny.post("/tokenize", {}).status_code == 400


def test_health(tiny: Running) -> None:
    assert tiny.get("/health").json() == {"status": "ok", "model": "tiny"}


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def test_metrics_are_read_back(tiny: Running) -> None:
    def value(name: str, **labels: str) -> float:
        told = samples(tiny.get("/metrics").text)
        return sum(number for entry, own, number in told if entry == name and labels.items() <= own.items())

    completions = {"path": "/v1/completions", "code": "200"}
    before = value("tinyseek_requests_total", **completions), value("tinyseek_generated_tokens_total")
    errors = value("tinyseek_errors_total", code="400")
    first = value("tinyseek_time_to_first_token_seconds_count")
    ask(tiny, max_tokens=7, ignore_eos=True)
    ask(tiny, max_tokens=-1)
    assert value("tinyseek_requests_total", **completions) == before[0] + 1
    assert value("tinyseek_generated_tokens_total") == before[1] + 7
    assert value("tinyseek_errors_total", code="400") == errors + 1
    assert value("tinyseek_time_to_first_token_seconds_count") == first + 1
    assert value("tinyseek_time_to_first_token_seconds_bucket", le="+Inf") == first + 1
    assert value("tinyseek_cache_blocks", state="free") > 0
