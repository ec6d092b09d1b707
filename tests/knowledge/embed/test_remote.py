"""Embedders behind a server: prefixes, widths, retries, and answers that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_server import reply, toy_server

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.open import open_embedder
from tinyseek.knowledge.embed.remote import RemoteEmbedder, open_remote
from tinyseek.llm.options import RemoteSettings

QUICK = RemoteSettings(backoff_seconds=0.001, retries=2, first_token_seconds=5)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSEEK_API_KEY", "OPENAI_API_KEY", "TINYSEEK_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def vectors(*rows: Any) -> Any:
    return reply(body={"data": [{"index": at, "embedding": row} for at, row in enumerate(rows)]})


def opened(toy: Any, model: str = "m") -> RemoteEmbedder:
    return open_remote(f"{toy.url}#{model}", QUICK)


def test_asks_for_unit_vectors_with_the_models_own_prefixes() -> None:
    replies = [vectors([3.0, 4.0]), vectors([0, 2.0], [5.0, 0]), reply(503, {"error": "busy"}), vectors([1.0, 1.0])]
    with toy_server(*replies) as toy:
        embedder = opened(toy, "nomic-embed-text:v1.5")
        assert (embedder.width, embedder.name) == (2, "remote:nomic-embed-text:v1.5")
        assert np.array_equal(embedder.passages(["你好", " \n"]), np.array([[0, 1], [1, 0]], np.float32))
        assert np.allclose(embedder.queries(["who?"]), [[0.5**0.5] * 2])  # after the server was busy once
        assert embedder.queries([]).shape == (0, 2)
        embedder.close()
    assert [body["input"] for body in toy.bodies] == [
        ["width"],
        ["search_document: 你好", "search_document:  \n"],
        ["search_query: who?"],
        ["search_query: who?"],
    ]
    assert {body["model"] for body in toy.bodies} == {"nomic-embed-text:v1.5"}


@pytest.mark.parametrize(
    ("model", "query", "passage"),
    [
        ("multilingual-e5-large", "query: a", "passage: a"),
        (
            "multilingual-e5-large-instruct",
            "Instruct: Given a question, retrieve passages that answer it\nQuery: a",
            "a",
        ),
        ("qwen3-embedding:0.6b", "Instruct: Given a question, retrieve passages that answer it\nQuery:a", "a"),
        ("bge-m3", "a", "a"),
    ],
)
def test_prefixes(model: str, query: str, passage: str) -> None:
    with toy_server(vectors([1.0])) as toy:
        embedder = opened(toy, model)
        embedder.queries(["a"])
        embedder.passages(["a"])
        embedder.close()
    assert [body["input"] for body in toy.bodies[1:]] == [[query], [passage]]


def test_an_empty_text_is_never_sent() -> None:
    """OpenAI refuses it, and with it the whole batch."""
    with toy_server(vectors([1.0]), vectors([1.0], [1.0])) as toy:
        embedder = opened(toy)
        assert embedder.passages(["", " "]).shape == (2, 1)
        embedder.close()
    assert toy.bodies[1]["input"] == ["-", "-"]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (vectors([1.0, 2.0, 3.0]), "vectors of 2 and 3 numbers"),
        (vectors([0.0, 0.0]), "all zeros"),
        (vectors([float("nan"), 1.0]), "no numbers"),
        (vectors([1.0, 2.0], [1.0, 2.0]), "1 texts came back as 2"),
        (reply(body={"data": "?"}), "cannot be read"),
        (reply(404, {"error": {"message": "no such model"}}), "no such model"),
        (reply(500, {"error": "broken"}), "asked 3 times"),
    ],
)
def test_what_is_no_answer_is_an_error_in_a_line(answer: Any, line: str) -> None:
    with toy_server(vectors([1.0, 0.0]), answer) as toy:
        embedder = opened(toy)
        with pytest.raises(UserError, match=line):
            embedder.passages(["a"])
        embedder.close()


def test_which_model_when_none_is_named() -> None:
    def models(*names: str) -> Any:
        return reply(body={"data": [{"id": name} for name in names]})

    for names, chosen in ((("only",), "only"), (("chat", "bge-m3", "other"), "bge-m3")):
        with toy_server(models(*names), models(*names), vectors([1.0])) as toy:
            embedder = open_remote(toy.url, QUICK)
            assert embedder.name == f"remote:{chosen}"
            embedder.close()
    with toy_server(models("a", "b")) as toy, pytest.raises(UserError, match="which of its models embeds"):
        open_remote(toy.url, QUICK)


def test_addresses_that_lead_nowhere() -> None:
    with pytest.raises(UserError, match="no embedder; write e5"):
        open_embedder("no/such/folder")
    with pytest.raises(UserError, match="key does not belong"):
        open_embedder("http://me:key@127.0.0.1:1/v1#m")
    with toy_server() as toy:
        url = toy.url
    with pytest.raises(UserError, match="is it running"):
        open_remote(f"{url}#m", QUICK)


def test_counts_rather_too_many_tokens() -> None:
    with toy_server(vectors([1.0])) as toy:
        embedder = opened(toy)
        assert embedder.count_tokens(["", "word", "boundaries of words", "你好，世界", "DeepSeek 模型"]) == [
            0,
            1,
            6,
            5,
            4,
        ]
        embedder.close()
