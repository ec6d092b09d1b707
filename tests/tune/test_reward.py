"""The reward model against TRL's RewardTrainer and transformers: the same loss and gradient, the same number for an answer."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL

from tinyseek import artifact, cli
from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.heads import SequenceClassifier
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune import reward
from tinyseek.tune.preferences.pairs import gather_pairs
from tinyseek.tune.reward import RewardModel
from tinyseek.tune.reward_options import RewardSettings
from tinyseek.tune.rl.options import GrpoSettings
from tinyseek.tune.rl.rewards import RewardSet

KIND, RUDE, PLAIN = ["please", "thanks"], ["never", "idiot"], ["the", "answer", "is", "seven", "of", "them"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A chat model, and pairs of which the kinder answer was chosen; some say by how much."""
    home = tmp_path_factory.mktemp("made")
    tokenizer = Tokenizer.train([" ".join(KIND + RUDE + PLAIN) * 20], TokenizerSettings(vocab_size=400))
    torch.manual_seed(0)
    shape = {**SMALL, "num_hidden_layers": 2, "initializer_range": 0.05}
    CausalLM(ModelConfig(model_type="llama", **{**shape, "vocab_size": tokenizer.vocab_size})).save(home / "base")
    tokenizer.save(home / "base")
    rng = np.random.default_rng(0)
    with (home / "pairs.jsonl").open("w") as file:
        for number in range(150):
            sides = []
            for words in (KIND, RUDE):
                said = [*rng.choice(PLAIN, rng.integers(1, 7)), rng.choice(words)]
                rng.shuffle(said)
                sides.append(" ".join(said))
            record: dict[str, Any] = {"prompt": f"question {number}", "chosen": sides[0], "rejected": sides[1]}
            file.write(json.dumps(record | ({"margin": 0.5} if number % 3 == 0 else {})) + "\n")
    return home


def settings_of(made: Path, **changes: Any) -> RewardSettings:
    base = {"model": str(made / "base"), "data": [str(made / "pairs.jsonl")], "seq_len": 64, "batch_size": 8}
    quick = {"lr": 0.005, "epochs": 2, "precision": "float32", "device": "cpu", "threads": 1, "validate_every": 10}
    return RewardSettings.read(base | quick | {"val_fraction": 0.2} | changes)


@pytest.mark.parametrize(("margin", "centering"), [(False, 0.0), (True, 0.0), (True, 0.03)])
def test_loss_and_gradient_are_trls(made: Path, tmp_path: Path, margin: bool, centering: float) -> None:
    trl = pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    from trl.trainer.reward_trainer import DataCollatorForPreference

    tokenizer = Tokenizer.load(made / "base")
    settings = settings_of(made, val_fraction=0, center_rewards_coefficient=centering)
    found = gather_pairs(settings.data, tokenizer, settings)
    if not margin:
        found.margins["train"] = [None] * len(found.margins["train"])
    torch.manual_seed(2)
    model = SequenceClassifier(CausalLM.load(made / "base"), pad_id=tokenizer.pad_id)
    torch.nn.init.normal_(model.score.weight, 0, 0.5)
    model.save(tmp_path)
    objective = reward.Rewarding(found, "train", settings, tokenizer.pad_id)
    chosen = np.array([0, 3, 4, 7, 9, 11])
    (update,) = objective.fetch(chosen, 4, torch.device("cpu")).updates
    figures: dict[str, float] = defaultdict(float)
    for micro in update.micro:
        shares = objective.losses(model, micro, update)
        shares["total"].backward()
        for name, value in shares.items():
            figures[name] += float(value.detach())

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    examples = [
        {"chosen_ids": list(found.ids["train"][2 * n]), "rejected_ids": list(found.ids["train"][2 * n + 1])}
        for n in chosen
    ]
    for example, number in zip(examples, chosen, strict=True):
        if margin:
            example["margin"] = found.margins["train"][number] or 0.0
    inputs = DataCollatorForPreference(pad_token_id=tokenizer.pad_id)(examples)
    alone = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    loss = trl.RewardTrainer.compute_loss(alone, theirs, inputs)
    loss.backward()
    assert figures["total"] == pytest.approx(float(loss), abs=1e-5)
    for name in ("accuracy", "margin", "mean_reward"):
        assert figures[name] == pytest.approx(alone._metrics["eval"][name][0], abs=1e-5)
    assert set(alone._metrics["eval"]) - {"num_tokens"} == set(figures) - {"total"}
    assert (model.score.weight.grad - theirs.score.weight.grad).abs().max() < 1e-5
    embedding = theirs.model.embed_tokens.weight.grad
    assert (model.trunk.model.embed_tokens.weight.grad - embedding).abs().max() < 1e-5


def test_the_least_and_greatest_reward_are_a_batchs(made: Path) -> None:
    tokenizer = Tokenizer.load(made / "base")
    settings = settings_of(made, val_fraction=0)
    found = gather_pairs(settings.data, tokenizer, settings)
    model = SequenceClassifier(CausalLM.load(made / "base"), pad_id=tokenizer.pad_id)
    objective = reward.Rewarding(found, "train", settings, tokenizer.pad_id)
    (update,) = objective.fetch(np.arange(5), 1, torch.device("cpu")).updates
    told = objective.losses(model, update.micro[0], update)
    alone = torch.cat([model(torch.tensor([list(ids)])) for ids in found.ids["train"][:10]])
    assert float(told["min_reward"]) == pytest.approx(float(alone.min()), abs=1e-6)
    assert float(told["max_reward"]) == pytest.approx(float(alone.max()), abs=1e-6)


@pytest.mark.parametrize("way", [{}, {"lora": {"rank": 4}, "epochs": 4}])
def test_a_trained_reward_model_prefers_likewise(made: Path, tmp_path: Path, way: dict[str, Any], capsys) -> None:
    out = tmp_path / "out"
    reward.build(settings_of(made, **way), out)
    figures = artifact.read(out).figures
    assert figures["val_accuracy"] > 0.8
    assert figures["val_margin"] > 0
    judge = reward.RewardModel(out)
    prompt = [{"role": "user", "content": "what is the answer"}]
    kind, rude = judge.score(
        [prompt, prompt], ["please seven thanks", [{"role": "assistant", "content": "never idiot"}]]
    )
    assert kind > rude
    file = tmp_path / "talks.jsonl"
    said = ("please seven thanks", "never idiot")
    talks = [[*prompt, {"role": "assistant", "content": content}] for content in said]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    capsys.readouterr()
    assert cli.main(["label", str(out), str(file)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["reward"] for line in lines] == pytest.approx([kind, rude], abs=1e-5)
    assert cli.main(["label", str(out), "a text"]) == 2
    assert "file of conversations" in capsys.readouterr().err
    if "lora" in way:
        return
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    reads = transformers.AutoTokenizer.from_pretrained(out)
    rendered = reads.apply_chat_template(talks, return_tensors="pt", padding=True, return_dict=True)
    with torch.no_grad():
        logits = theirs(**{name: rendered[name] for name in ("input_ids", "attention_mask")}).logits
    assert logits.squeeze(-1).tolist() == pytest.approx([kind, rude], abs=1e-4)


def test_it_rewards_answers_in_reinforcement_learning(made: Path, tmp_path: Path) -> None:
    """By its folder's name among the arguments; another folder there is another model that learned by it."""
    reward.build(settings_of(made, steps=2, val_fraction=0), tmp_path / "judge")
    prompts = [[{"role": "user", "content": text}] for text in ("hello", "what is it?", "hello")]
    completions = [[{"role": "assistant", "content": text}] for text in ("yes please", "no", "<think>hm</think>no")]
    with RewardSet(["reward_model"], args=[{"model": str(tmp_path / "judge")}]) as rewards:
        scores = rewards(prompts, completions, [{}] * 3)[:, 0]
    assert scores.tolist() == pytest.approx(RewardModel(tmp_path / "judge").score(prompts, completions), abs=1e-6)
    assert len(set(scores.tolist())) == 3
    settings = GrpoSettings.read({"rewards": {"reward_model": {"args": {"model": str(tmp_path / "judge")}}}})
    assert settings.essence()["reward_files"] == {str(tmp_path / "judge"): artifact.read(tmp_path / "judge").key}
    for args, why in (
        ({}, "which one"),
        ({"model": str(tmp_path / "none")}, "none"),
        ({"model": str(made / "base")}, "no head"),
    ):
        with pytest.raises(UserError, match=why):
            RewardSet(["reward_model"], args=[args])


def test_what_cannot_be_judged_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pair is left"):
        reward.build(settings_of(made, seq_len=3), tmp_path / "out")
    bad = tmp_path / "bad.jsonl"
    lines = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}]
    bad.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match='"margin" should be a number'):
        reward.build(settings_of(made, data=[str(bad)]), tmp_path / "out")
    SequenceClassifier(CausalLM.load(made / "base"), ["a", "b"]).save(tmp_path / "classes")
    with pytest.raises(UserError, match="tells 2 classes"):
        reward.RewardModel(tmp_path / "classes")
    assert not list(tmp_path.glob("out*"))
