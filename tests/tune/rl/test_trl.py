"""GRPO and its variants against TRL's trainer: the same answers and rewards in, the same advantages, losses and gradients out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.train.objective import Update
from tinyseek.tune.rl import child, shipped
from tinyseek.tune.rl.asking import read_questions
from tinyseek.tune.rl.grpo import Grpo
from tinyseek.tune.rl.options import GrpoSettings
from tinyseek.tune.rl.policy import frozen_start
from tinyseek.tune.rl.rewards import RewardSet
from tinyseek.tune.rl.rollouts import Answer

WORDS = ["how", "many", "apples", "have", "Ann", "and", "Bob", "there", "are", "seven", "of", "them", "in", "basket"]
CPU = torch.device("cpu")
PROMPTS, EACH, LONGEST = 3, 4, 12

REWARDS = '''
def told(completions, score, **columns):
    """As the data says; nothing of answers that are as long as can be."""
    return [None if len(c[0]["content"]) % 7 == 0 else (len(c[0]["content"]) % 5) * s for c, s in zip(completions, score)]

def flat(prompts, completions, completion_ids, **columns):
    return [0.5 for _ in completions]
'''


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that both read, prompts with a column, and two reward functions."""
    folder = tmp_path_factory.mktemp("rl-trl")
    tokenizer = Tokenizer.train([" ".join(WORDS) * 3], TokenizerSettings(vocab_size=320))
    tokenizer.save(folder / "base")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config = ModelConfig(
        model_type="llama",
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=64,
        initializer_range=0.3,
        **shape,
        **ends,
    )
    CausalLM(config).save(folder / "base")
    rng = np.random.default_rng(1)
    rows = [{"prompt": " ".join(rng.choice(WORDS, 3 + n)), "score": 1.0 + n} for n in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARDS)
    return folder


def ours(made: Path, **changes: Any) -> Grpo:
    base = {"model": str(made / "base"), "data": [str(made / "prompts.jsonl")], "batch_size": PROMPTS, "device": "cpu"}
    sizes = {"num_generations": EACH, "max_completion_length": LONGEST, "seq_len": 48, "val_fraction": 0}
    file = made / "mine.py"
    rewards = {f"{file}:told": 1.0, f"{file}:flat": {"weight": 0.3}}
    settings = GrpoSettings.read(base | sizes | {"rewards": rewards} | changes)
    tokenizer = Tokenizer.load(made / "base")
    model = CausalLM.load(made / "base").train()
    reference = frozen_start(settings, made / "base") if settings.beta else None
    rewards_set = RewardSet.of(settings.reward_options())
    return Grpo(model, tokenizer, read_questions(settings, tokenizer), rewards_set, settings, made / "work", reference)


def theirs(made: Path, folder: Path, **changes: Any) -> GRPOTrainer:
    rows = [json.loads(line) for line in (made / "prompts.jsonl").read_text().splitlines()]
    data = [{"prompt": [{"role": "user", "content": row["prompt"]}], "score": row["score"]} for row in rows]
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PROMPTS * EACH,
        num_generations=EACH,
        max_completion_length=LONGEST,
        reward_weights=[1.0, 0.3],
        use_cpu=True,
        report_to=[],
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        **changes,
    )
    functions = [child.load(str(made / "mine.py"), name) for name in ("told", "flat")]
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float32),
        functions,
        config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(made / "base"),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def some_answers(end: int, seed: int) -> list[list[Answer]]:
    """Answers of many lengths; some are cut, those of the last prompt are all the same."""
    rng = np.random.default_rng(seed)
    groups = []
    for prompt in range(PROMPTS):
        group = []
        for _ in range(EACH):
            cut = rng.random() < 0.3
            ids = [int(i) for i in rng.integers(260, 320, LONGEST if cut else rng.integers(1, LONGEST))]
            group.append(Answer(ids if cut else [*ids[:-1], end], [0.0] * len(ids), not cut))
        groups.append(group if prompt < PROMPTS - 1 else group[:1] * EACH)
    return groups


VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"loss_type": "grpo"}),
    ({"loss": "bnpo"}, {"loss_type": "bnpo"}),
    ({"loss": "dr_grpo", "scale_rewards": "none"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    (
        {"loss": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
        {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    ),
    ({"beta": 0.1}, {"loss_type": "grpo", "beta": 0.1}),
    (
        {"beta": 0.2, "use_bias_correction_kl": False},
        {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": False},
    ),
    (
        {"loss": "dapo", "beta": 0.04, "scale_rewards": "batch", "temperature": 0.7},
        {"loss_type": "dapo", "beta": 0.04, "scale_rewards": "batch", "temperature": 0.7},
    ),
]


@pytest.mark.parametrize(("mine", "its"), VARIANTS, ids=lambda v: "-".join(map(str, v.values())) or "grpo")
def test_loss_and_gradient_equal_trls(
    made: Path, tmp_path: Path, mine: dict[str, Any], its: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole of both: from answers to rewards, advantages, the loss before and after the weights moved."""
    objective = ours(made, num_iterations=2, tokens_at_once=50, **mine)
    trainer = theirs(made, tmp_path, num_iterations=2, **its)
    answers = some_answers(objective.tokenizer.eos_id, seed=3)

    monkeypatch.setattr(objective.rollouts, "sample", lambda *_, **__: answers)
    batch = objective.fetch(np.arange(PROMPTS), 1, CPU)
    monkeypatch.setattr(
        trainer, "_generate_single_turn", lambda *_: ([answer.ids for group in answers for answer in group], None)
    )
    rows = [trainer.train_dataset[n] for n in range(PROMPTS) for _ in range(EACH)]
    inputs = trainer._generate_and_score_completions(rows)
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
    assert prompts[::EACH] == [question.ids for question in objective.questions.train]

    model = objective.rollouts.model
    mine_by_name, its_by_name = dict(model.named_parameters()), dict(trainer.model.named_parameters())
    assert mine_by_name.keys() == its_by_name.keys()
    assert len(batch.updates) == 2
    for number, update in enumerate(batch.updates):
        loss = learn(objective, update)
        trainer.model.zero_grad()
        reference = trainer._compute_loss(trainer.model, inputs)
        reference.backward()
        assert loss["loss"] == pytest.approx(reference.item(), abs=1e-5)
        told = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        if objective.settings.beta:  # without, groups that teach nothing are not run, and are not in these means
            # The low ones TRL counts where advantages are 0 but for rounding, too.
            for name in ("clip_ratio/high_mean", "entropy", "kl"):
                assert loss[name] == pytest.approx(told[name], abs=1e-5), name
        for name, parameter in mine_by_name.items():
            torch.testing.assert_close(parameter.grad, its_by_name[name].grad, atol=1e-5, rtol=1e-3, msg=name)
        model.zero_grad()
        if number == 0:  # so that ratios leave 1 and some are clipped
            for parameters in (mine_by_name, its_by_name):
                generator = torch.Generator().manual_seed(5)
                with torch.no_grad():
                    for name in sorted(parameters):
                        parameters[name] += 0.1 * torch.randn(parameters[name].shape, generator=generator)
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    if objective.settings.scale_rewards != "batch":  # TRL then asks whether the whole batch is alike
        assert batch.figures["frac_reward_zero_std"] == pytest.approx(figures["frac_reward_zero_std"]) == 1 / PROMPTS
    for name in ("reward", "reward_std", "rewards/told/mean", "rewards/flat/mean"):
        assert batch.figures[name] == pytest.approx(figures[name], abs=1e-6), name
    for name in ("mean_length", "max_length", "clipped_ratio", "mean_terminated_length"):
        assert batch.figures[f"completions/{name}"] == pytest.approx(figures[f"completions/{name}"], abs=1e-6), name
    assert loss["clip_ratio/region_mean"] > 0
    objective.rewards.close()


def learn(objective: Grpo, update: Update) -> dict[str, float]:
    """The gradient of an update into the model; its figures."""
    sums: dict[str, float] = {}
    for micro in update.micro:
        losses = objective.losses(objective.rollouts.model, micro, update)
        losses["total"].backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    return sums


def test_shipped_rewards_equal_trls_where_it_has_them() -> None:
    texts = ["<think>a</think>b", "<think>a", "b", "<think>a</think>", "x<think>a</think>b", "<think>a<think></think>c"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    same = [0, 1, 2, 4, 5]  # TRL lets an empty answer pass
    assert [shipped.format(completions)[n] for n in same] == [think_format_reward(completions)[n] for n in same]
    ids = [[1] * n for n in (3, 10, 60, 70, 80, 95, 100, 101, 300)]
    overlong = get_soft_overlong_punishment(100, 40)
    assert shipped.length([""] * len(ids), ids, limit=100, cushion=40) == pytest.approx(overlong(ids))
    words = ["a b c a b c a b c", "a b c d", "a", "a a a a a a", "说得好说得好说得好"]
    penalty = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    numbered = [[ord(w) for w in (text.split() if " " in text else text)] for text in words]
    assert shipped.repetition(words, ngram=2) == pytest.approx(penalty(numbered))
