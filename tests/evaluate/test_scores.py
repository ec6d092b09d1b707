"""Tasks right, greedily and of samples: the counting, and the whole stage on small models."""

import json
from types import SimpleNamespace

import pytest
import torch

from tinyseek import artifact
from tinyseek.engine.params import SamplingParams
from tinyseek.errors import UserError
from tinyseek.evaluate.answers import Asked, ask, in_form
from tinyseek.evaluate.estimates import pass_at_k
from tinyseek.evaluate.options import EvalSettings, model_names
from tinyseek.evaluate.perplexity import bits_per_byte
from tinyseek.evaluate.scores import _before, build, score_tasks
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import encode_prompt
from tinyseek.text.tasks import Counts, TaskSettings, check, generate, read_tasks
from tinyseek.text.tasks import build as build_tasks
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

THINKING = "<think>1+1=2</think>2"


def test_what_is_in_form():
    for text in ("2", " 2\n", THINKING, "\n" + THINKING, "<think></think>2"):
        assert in_form(text, ended=True)
        assert not in_form(text, ended=False)
    for text in ("", " ", "<think>1", "<think>1</think>", "<think>1</think> ", "1</think>2", "<think><think>1</think>2",
                 "hm <think>1</think>2", THINKING + THINKING):  # fmt: skip
        assert not in_form(text, ended=True), text
    assert in_form("1+1=2</think>2", ended=True, opened=True)
    assert not in_form("1+1=2", ended=True, opened=True)
    assert not in_form(THINKING, ended=True, opened=True)


def test_counting_by_kind_and_language(monkeypatch):
    records = generate(
        TaskSettings(train=Counts(world=300), heldout=Counts(arithmetic=10, world=30, identity=6, refusal=8))
    ).heldout
    calls = []

    def ask(model, tokenizer, prompts, draws, *, batch_size, progress):
        """Answers of a model that knows two tasks of three; of samples it errs in every fourth besides."""
        calls.append((prompts, draws, batch_size))
        found = []
        for number, draw in enumerate(draws):
            answers = []
            for index, record in enumerate(records):
                texts = [
                    record["messages"][1]["content"] if index % 3 and (sample + number) % 4 != 3 else "no idea"
                    for sample in range(draw.n)
                ]
                answers.append([Asked(text, len(text), text != "no idea", True, False) for text in texts])
            found.append(answers)
        return found

    monkeypatch.setattr("tinyseek.evaluate.scores.ask", ask)
    monkeypatch.setattr("tinyseek.text.chat.encode_prompt", lambda _, messages: [len(messages)])
    settings = EvalSettings(samples=4, seeds=2, seed=7, temperature=0.8, max_tokens=77, batch_size=20, k=[8, 2, 1, 30])
    found = score_tasks(None, SimpleNamespace(stop_ids={2}), records, settings)
    ((prompts, draws, size),) = calls
    assert (len(prompts), set(map(tuple, prompts)), size) == (54, {(1,)}, 20)
    assert [(d.temperature, d.max_tokens, d.n, d.seed) for d in draws] == [
        (0.0, 77, 1, None),
        (0.8, 77, 4, 7),
        (0.8, 77, 4, 8),
    ]
    known = [index % 3 != 0 for index in range(54)]
    assert found.greedy.right == known
    plain = found.greedy.plain(records)
    assert (plain["right"], plain["total"]) == (36, 54)
    for name in ("by_kind", "by_lang"):
        assert sum(share["total"] for share in plain[name].values()) == 54
        assert sum(share["right"] for share in plain[name].values()) == 36
    assert plain["by_kind"]["world"]["total"] == 30
    assert plain["answers"]["cut"] == pytest.approx(18 / 54, abs=1e-4)
    told = found.sampled.plain(records, settings.k)
    assert told["pass@1"]["mean"] == pytest.approx(0.75 * 36 / 54, abs=1e-5)
    assert told["pass@2"]["mean"] == pytest.approx(36 / 54 * pass_at_k(8, 6, 2), abs=1e-5)
    assert told["pass@8"]["mean"] == pytest.approx(36 / 54, abs=1e-5)
    assert "pass@30" not in told
    assert told["by_seed"] == {"mean": 0.5, "error": 0.0, "values": [0.5, 0.5]}
    assert told["by_kind"]["world"]["prompts"] == 30
    assert found.sampled.pass_1.tolist() == [0.75 * k for k in known]


def test_names_of_models(tmp_path):
    paths = [tmp_path / "a" / "sft", tmp_path / "b" / "sft", tmp_path / "pretrain"]
    assert model_names(paths) == ["a/sft", "b/sft", "pretrain"]
    assert len(set(model_names([tmp_path / "sft"] * 2))) == 2


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
        assert "sampled" not in entry["tasks"]
    manifest = artifact.read(run / "eval")
    assert set(manifest.inputs) == {"models.0", "models.1", "data", "tasks"}
    assert set(manifest.figures) == {"pretrain", "sft"}
    assert capfd.readouterr().out == ""


def test_samples_are_what_the_engine_draws_and_what_is_told_adds_up(run, tmp_path):
    build(settings_for(run, samples=3, seeds=2, k=[2, 6]).model_copy(update={"data": None}), tmp_path / "eval")
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text(encoding="utf-8"))["models"]
    samples = [json.loads(line) for line in (tmp_path / "eval" / "samples.jsonl").read_text("utf-8").splitlines()]
    for entry in scores:
        told = entry["tasks"]["sampled"]
        counts = [sample["sampled"][entry["name"]] for sample in samples]
        assert all(count["of"] == 6 for count in counts)
        assert told["pass@1"]["mean"] == pytest.approx(sum(c["right"] for c in counts) / 6 / 19, abs=1e-5)
        assert told["pass@6"]["mean"] == pytest.approx(sum(c["right"] > 0 for c in counts) / 19, abs=1e-5)
        assert told["pass@1"]["low"] <= told["pass@1"]["mean"] <= told["pass@1"]["high"]
        assert sum(told["by_seed"]["values"]) / 2 == pytest.approx(told["pass@1"]["mean"], abs=1e-5)
    assert "gains" not in scores[0]["tasks"]
    gains = scores[1]["tasks"]["gains"]
    assert gains["over"] == "pretrain"
    shares = [entry["tasks"]["sampled"]["pass@1"]["mean"] for entry in scores]
    assert gains["pass@1"]["mean"] == pytest.approx(shares[1] - shares[0], abs=1e-5)
    assert artifact.read(tmp_path / "eval").figures["sft"]["pass@1"] == shares[1]


def test_answers_are_drawn_alike_in_any_company(run):
    model, tokenizer = CausalLM.load(run / "sft"), Tokenizer.load(run / "sft")
    prompts = [tokenizer.encode(text) for text in ("What is 2 + 2?", "Who?", "3+4=? 3+4=? 3+4=?", "2")]
    drawn = SamplingParams(max_tokens=9, temperature=1.0, n=3, seed=5)
    done = []
    many = ask(model, tokenizer, prompts, [SamplingParams(max_tokens=9), drawn], batch_size=7, progress=done.append)
    assert done == list(range(1, 9))
    few = ask(model, tokenizer, prompts, [drawn], batch_size=1)
    assert many[1] == few[0]
    assert [len(answers) for answers in many[0]] == [1] * 4
    texts = {answer.text for answers in few[0] for answer in answers}
    assert len(texts) > 8  # neither samples nor prompts share their draws
    assert all(answer.tokens == 9 or answer.ended for answers in few[0] for answer in answers)
    with pytest.raises(UserError, match="whole context of 128 tokens"):
        ask(model, tokenizer, [[5] * 128], [drawn])


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


def test_a_model_is_held_against_what_it_was_made_from_or_its_last_sibling(tmp_path):
    def make(name, source=None):
        with artifact.writing(tmp_path / name, "sft", {"name": name}, {"model": tmp_path / source} if source else {}):
            pass

    for name, source in (("small", None), ("big", None), ("sft", "big"), ("student", "small"), ("control", "small")):
        make(name, source)
    paths = {path.name: path for path in tmp_path.iterdir()}
    assert _before(paths["sft"], paths, ["student", "big"]) == "big"
    assert _before(paths["control"], paths, ["big", "student", "sft"]) == "student"
    assert _before(paths["student"], paths, ["big", "sft"]) == "sft"
    assert _before(paths["big"], paths, ["sft", "small"]) == "small"
