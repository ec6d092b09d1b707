"""Exact match: the interval, the counting, and the whole stage on small models."""

import random
from types import SimpleNamespace

import pytest
import torch

from tinyseek.evaluate.scores import Share, _names, exact_match
from tinyseek.text.tasks import Counts, TaskSettings, generate


def test_wilson_interval():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I: the score method without continuity correction
    for right, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Share(right, total).interval() == pytest.approx((low, high), abs=5e-5)
    assert Share(0, 0).interval() == (0.0, 1.0)
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):  # the ends are where the true share is z standard errors away: the interval's own definition
        total = rng.randint(1, 500)
        share = Share(rng.randint(0, total), total)
        for end in share.interval():
            assert 0 <= end <= 1
            if 1e-12 < end < 1 - 1e-12:
                assert abs(share.share - end) / (end * (1 - end) / total) ** 0.5 == pytest.approx(1.959964, rel=1e-6)


class Characters:
    """Every character a token; 2 ends an answer, and both thinking marks are single tokens."""

    stop_ids = frozenset({2})
    marks = {"<think>": 3, "</think>": 4}  # noqa: RUF012

    def decode(self, ids, *, skip_specials=False):
        assert not skip_specials
        names = {token: mark for mark, token in self.marks.items()}
        return "".join(names.get(i) or chr(i) for i in ids)


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for the engine that answers by a function of the prompt; notes how it was asked."""
    asked = []

    def answer(model, prompts, params):
        asked.append((len(prompts), params))
        return [model.answer("".join(map(chr, prompt))) for prompt in prompts]

    def encode_prompt(_, messages):
        assert [m["role"] for m in messages] == ["user"]
        return [ord(character) for character in messages[0]["content"]]

    monkeypatch.setattr("tinyseek.engine.generate.generate", answer)
    monkeypatch.setattr("tinyseek.text.chat.encode_prompt", encode_prompt)
    return asked


def test_counting_by_kind_and_language_in_batches(asked):
    records = generate(
        TaskSettings(train=Counts(world=300), heldout=Counts(arithmetic=10, world=30, identity=6, refusal=8))
    ).heldout
    replies = {r["messages"][0]["content"]: r["messages"][1]["content"] for r in records}
    know = {p for i, p in enumerate(replies) if i % 3}
    tokenizer = Characters()

    class Model(torch.nn.Module):
        config = SimpleNamespace(max_position_embeddings=512)

        def answer(self, prompt):
            text = replies[prompt] if prompt in know else "no idea"
            for mark, token in tokenizer.marks.items():
                text = text.replace(mark, chr(token))
            return [ord(c) for c in text] + [2] + [ord(c) for c in " and on"]

    model = Model().train()
    done = []
    score = exact_match(model, tokenizer, records, max_tokens=77, batch_size=20, progress=done.append)
    assert [size for size, _ in asked] == [20, 20, 14]
    assert done == [20, 40, 54]
    params = asked[0][1]
    assert (params.temperature, params.max_tokens, params.stop_ids) == (0.0, 77, {2})
    assert score.right == [r["messages"][0]["content"] in know for r in records]
    assert score.outputs == [replies[p] if (p := r["messages"][0]["content"]) in know else "no idea" for r in records]
    assert score.overall == Share(sum(score.right), 54)
    for name in ("kind", "lang"):
        assert sum(share.total for share in score.by[name].values()) == 54
        assert sum(share.right for share in score.by[name].values()) == score.overall.right
    assert score.by["kind"]["world"].total == 30
    assert score.plain()["by_kind"]["world"]["total"] == 30
    assert model.training


def test_names_of_models(tmp_path):
    paths = [tmp_path / "a" / "sft", tmp_path / "b" / "sft", tmp_path / "pretrain"]
    assert _names(paths) == ["a/sft", "b/sft", "pretrain"]
    assert len(set(_names([tmp_path / "sft"] * 2))) == 2
