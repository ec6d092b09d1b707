"""Exact match: the interval, the counting, and the whole stage on small models."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.evaluate.options import EvalSettings
from tinyseek.evaluate.perplexity import bits_per_byte
from tinyseek.evaluate.scores import Share, _names, build, exact_match
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import encode_prompt
from tinyseek.text.tasks import Counts, TaskSettings, check, generate, read_tasks
from tinyseek.text.tasks import build as build_tasks
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folders with two real models of one tokenizer, untrained and of different shapes."""
    run = tmp_path_factory.mktemp("run")
    settings = TaskSettings(train=Counts(arithmetic=200, world=300), heldout=Counts(arithmetic=8, world=8, refusal=3))
    build_tasks(settings, run / "tasks")
    texts = [m["content"] for r in read_tasks(run / "tasks" / "train.jsonl") for m in r["messages"]]
    tokenizer = Tokenizer.train(texts, TokenizerSettings(vocab_size=512))
    with artifact.writing(run / "data", "data", {}) as (work, _):
        (work / "val.jsonl").write_text(json.dumps({"text": "In the beginning 你好. " * 9}) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    for name, width in (("pretrain", 32), ("sft", 48)):
        config = ModelConfig(
            model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=width, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=128,
        )  # fmt: skip
        with artifact.writing(run / name, name, {"seq_len": 24}) as (work, _):
            CausalLM(config).save(work)
            tokenizer.save(work)
    return run


def settings_for(run, **more):
    return EvalSettings(
        models=[str(run / "pretrain"), str(run / "sft")],
        data=str(run / "data"),
        tasks=str(run / "tasks"),
        max_tokens=12,
        **more,
    )


def test_the_stage_on_real_models(run, capfd):
    build(settings_for(run, batch_size=5), run / "eval")
    scores = json.loads((run / "eval" / "scores.json").read_text(encoding="utf-8"))["models"]
    samples = [json.loads(line) for line in (run / "eval" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["name"] for entry in scores] == ["pretrain", "sft"]
    assert [entry["key"] for entry in scores] == [artifact.read(run / name).key for name in ("pretrain", "sft")]
    records = read_tasks(run / "tasks" / "heldout.jsonl")
    assert [sample["prompt"] for sample in samples] == [r["messages"][0]["content"] for r in records]
    for entry in scores:
        name = entry["name"]
        assert entry["tasks"]["total"] == 19
        assert entry["tasks"]["right"] == sum(sample["right"][name] for sample in samples)
        assert [sample["right"][name] for sample in samples] == [
            check(r, s["outputs"][name]) for r, s in zip(records, samples, strict=True)
        ]
        model, tokenizer = CausalLM.load(run / name), Tokenizer.load(run / name)
        # untrained: nearly log2 of the vocabulary a token; and the very number that the window of training gives
        assert entry["text"]["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=0.1)
        assert entry["text"]["bytes"] == len(("In the beginning 你好. " * 9).encode())
        alone = bits_per_byte(model, tokenizer, ["In the beginning 你好. " * 9], seq_len=24)
        assert entry["text"]["bits_per_byte"] == pytest.approx(alone.bits_per_byte, abs=1e-5)
        # one by one, greedily, without a cache: what the batched engine must have said
        for record, sample in list(zip(records, samples, strict=True))[:6]:
            ids = encode_prompt(tokenizer, record["messages"][:-1])
            start = len(ids)
            while len(ids) < start + 12:
                with torch.no_grad():
                    token = int(model(torch.tensor([ids]))[0, -1].argmax())
                if token in tokenizer.stop_ids:
                    break
                ids.append(token)
            assert sample["outputs"][name] == tokenizer.decode(ids[start:])
    manifest = artifact.read(run / "eval")
    assert set(manifest.inputs) == {"models.0", "models.1", "data", "tasks"}
    assert set(manifest.figures) == {"pretrain", "sft"}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": ["nowhere"]}, "nowhere"),
        ({"data": "nowhere"}, "nowhere"),
        ({"tasks": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_harmed(run, tmp_path, change, message):
    build(settings_for(run, max_tasks=1, max_bytes=40), tmp_path / "eval")
    before = artifact.read(tmp_path / "eval").key
    with pytest.raises(UserError, match=message):
        build(settings_for(run).model_copy(update=change), tmp_path / "eval")
    assert artifact.read(tmp_path / "eval").key == before
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]
