"""Every loss of preferences against TRL's: on the same log-probabilities, and through its trainers on the same records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import encode_completion
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.train.objective import Objective
from tinyseek.tune.preferences.dpo import Preferring
from tinyseek.tune.preferences.kto import Liking
from tinyseek.tune.preferences.losses import Side, judge
from tinyseek.tune.preferences.options import DpoSettings, KtoSettings
from tinyseek.tune.preferences.pairs import gather_pairs, gather_thumbs
from tinyseek.tune.preferences.reference import Reference
from tinyseek.tune.preferences.stage import write

WORDS = ["how", "many", "apples", "have", "Ann", "and", "Bob", "there", "are", "seven", "of", "them", "in", "basket"]
PAIRS = 5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- on the same log-probabilities -----------------------------------------------------------------------------------------------


def stub(**own: Any) -> SimpleNamespace:
    """As much of a trainer as its loss asks for."""
    accelerator = SimpleNamespace(device=CPU, gather=lambda x: x, gather_for_metrics=lambda x: x)
    plain = {"aux_loss_enabled": False, "use_weighting": False, "ld_alpha": None, "precompute_ref_logps": True}
    counted = {"_total_train_tokens": 0, "_tp_size": 1, "f_divergence_type": "reverse_kl"}
    more = {"model": SimpleNamespace(training=True), "_metrics": {"train": defaultdict(list)}}
    return SimpleNamespace(accelerator=accelerator, **plain, **counted, **more, **own)


def random_sides(rng: np.random.Generator, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of tokens [2P, T], which of them are the answers', and the reference's of the answers."""
    tokens_2P = rng.integers(1, 9, 2 * PAIRS)
    mask_ST = np.zeros((2 * PAIRS, 13), np.int64)
    for row, count in enumerate(tokens_2P):
        start = rng.integers(1, 4)
        mask_ST[row, start : start + count] = 1
    logps_ST = torch.tensor(-np.abs(rng.normal(0, scale, (2 * PAIRS, 12)))) * torch.tensor(mask_ST[:, 1:])
    before_S = logps_ST.sum(1) + torch.tensor(rng.normal(0, 2 * scale, 2 * PAIRS))
    return logps_ST.requires_grad_(), torch.tensor(mask_ST), before_S


def dpo_of_trl(logps_ST: Any, mask_ST: Any, before_S: Any, **own: Any) -> tuple[torch.Tensor, dict[str, float]]:
    zeros = torch.zeros_like(logps_ST)
    told = SimpleNamespace(log_probs=logps_ST, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    ids = torch.ones_like(mask_ST)
    batch = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask_ST}
    batch |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), before_S.chunk(2), strict=True))
    trainer = stub(**{"loss_weights": [1.0], "label_smoothing": 0.0} | own)
    loss = DPOTrainer._compute_loss(trainer, lambda **_: told, batch, False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def ours(logps_ST: Any, mask_ST: Any, before_S: Any, settings: DpoSettings) -> Any:
    halves = zip(logps_ST.sum(1).chunk(2), mask_ST[:, 1:].sum(1).double().chunk(2), before_S.chunk(2), strict=True)
    chosen, rejected = (Side(*half) for half in halves)
    return judge(chosen, rejected, settings)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("scale", [0.3, 3.0, 100.0])
def test_losses_with_a_reference_are_trls(loss: str, scale: float) -> None:
    for seed in range(3):
        print(f"seed {seed}")
        logps_ST, mask_ST, before_S = random_sides(np.random.default_rng(seed), scale)
        wanted, told = dpo_of_trl(logps_ST, mask_ST, before_S, loss_types=[loss], beta=0.3)
        found = ours(logps_ST, mask_ST, before_S, DpoSettings(loss=loss, beta=0.3))
        torch.testing.assert_close(found.losses_P.mean(), wanted, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(one, logps_ST)[0] for one in (wanted, found.losses_P.mean())]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
        assert found.chosen_rewards_P.mean().item() == pytest.approx(told["rewards/chosen"])
        assert found.rejected_rewards_P.mean().item() == pytest.approx(told["rewards/rejected"])


def test_doubt_about_labels_is_trls() -> None:
    """TRL has conservative DPO under two other names: `aot` of one pair, where nothing is to be sorted, and CPO of log-ratios."""
    rng = np.random.default_rng(5)
    settings = DpoSettings(beta=0.7, label_smoothing=0.2)
    logps_ST, mask_ST, before_S = random_sides(rng, 2.0)
    losses_P = ours(logps_ST, mask_ST, before_S, settings).losses_P
    for pair in range(PAIRS):
        both = [pair, pair + PAIRS]
        options = {"loss_types": ["aot"], "beta": 0.7, "label_smoothing": 0.2}
        wanted, _ = dpo_of_trl(logps_ST[both], mask_ST[both], before_S[both], **options)
        torch.testing.assert_close(losses_P[pair], wanted, rtol=1e-9, atol=1e-9)
    cpo = stub(loss_type="sigmoid", beta=0.7, label_smoothing=0.2, alpha=0.0)
    wanted_P, _, _ = CPOTrainer.cpo_loss(cpo, *(logps_ST.sum(1) - before_S).chunk(2))
    torch.testing.assert_close(losses_P, wanted_P, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_simpo_is_trls(smoothing: float) -> None:
    logps_ST, mask_ST, before_S = random_sides(np.random.default_rng(6), 2.0)
    means_S = logps_ST.sum(1) / mask_ST[:, 1:].sum(1)
    cpo = stub(loss_type="simpo", beta=2.5, label_smoothing=smoothing, alpha=0.0, simpo_gamma=0.9)
    wanted_P, chosen_P, rejected_P = CPOTrainer.cpo_loss(cpo, *means_S.chunk(2))
    settings = DpoSettings(loss="simpo", beta=2.5, label_smoothing=smoothing, simpo_gamma=0.9)
    found = ours(logps_ST, mask_ST, before_S, settings)
    torch.testing.assert_close(found.losses_P, wanted_P, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.chosen_rewards_P, chosen_P, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.rejected_rewards_P, rejected_P, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 0.7, 30.0])
def test_orpo_is_trls(scale: float) -> None:
    logps_ST, mask_ST, before_S = random_sides(np.random.default_rng(7), scale)
    means_S = logps_ST.sum(1) / mask_ST[:, 1:].sum(1)
    wanted_P, chosen_P, _, _, odds = ORPOTrainer.odds_ratio_loss(stub(beta=0.4), *means_S.chunk(2))  # in float32
    found = ours(logps_ST, mask_ST, before_S, DpoSettings(loss="orpo", beta=0.4))
    torch.testing.assert_close(found.losses_P.float(), -wanted_P, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.chosen_rewards_P.float(), chosen_P, rtol=1e-5, atol=1e-6)
    assert found.log_odds_P.mean().item() == pytest.approx(odds.item(), rel=1e-5, abs=1e-6)
    certain = Side(torch.tensor([0.0], requires_grad=True), torch.ones(1), None)
    judged = judge(certain, Side(torch.tensor([-3.0]), torch.ones(1), None), DpoSettings(loss="orpo"))
    judged.losses_P.sum().backward()
    assert torch.isfinite(judged.losses_P).all()
    assert torch.isfinite(certain.logps_P.grad).all()  # TRL's is NaN here


# ---- through the trainers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A policy, what it was before, and records to prefer by."""

    folder: Path
    records: list[dict[str, Any]]

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "policy")

    def theirs(self, name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32)

    def common(self) -> dict[str, Any]:
        quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        return {"output_dir": str(self.folder / "trl"), "per_device_train_batch_size": PAIRS, "max_length": 64} | quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("preferences")
    tokenizer = Tokenizer.train([" ".join(WORDS) * 3], TokenizerSettings(vocab_size=320))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.15}
    model = CausalLM(ModelConfig(model_type="llama", vocab_size=tokenizer.vocab_size, **shape, **more))
    rng = np.random.default_rng(1)

    def say(role: str, end: str = "") -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choice(WORDS, int(rng.integers(1, 9)))) + end}]

    sides = [(say("user"), say("assistant", " yes"), say("assistant", " no")) for _ in range(PAIRS)]
    for name in ("base", "policy"):
        model.save(folder / name)
        tokenizer.save(folder / name)
        for prompt, chosen, rejected in sides:  # the policy finds any such answer likelier, so that KL is not 0
            for answer in (chosen, rejected):
                ids, _ = encode_completion(tokenizer, prompt, answer)
                row_1T = torch.tensor([ids])
                model.loss(row_1T[:, :-1], row_1T[:, 1:]).total.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad * 0.002).add_(torch.randn_like(parameter) * 0.002)
    return World(folder, [dict(zip(("prompt", "chosen", "rejected"), side, strict=True)) for side in sides])


def settled(world: World, records: list[dict[str, Any]], cls: type[Any], **options: Any) -> Any:
    file = world.folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    plain = {"model": str(world.folder / "policy"), "data": [str(file)], "seq_len": 63, "val_fraction": 0.0}
    return cls.read(plain | {"batch_size": PAIRS} | options)


def our_loss(
    objective: Objective, world: World, accumulate: int = 1
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The figures of all records as one batch, and the gradient."""
    model = CausalLM.load(world.folder / "policy").train()
    batch = objective.fetch(np.arange(PAIRS), accumulate, CPU)
    (update,) = batch.updates
    figures: dict[str, float] = {}
    for micro in update.micro:
        losses = objective.losses(model, micro, update)
        losses["total"].backward()
        for name, value in losses.items():
            figures[name] = figures.get(name, 0.0) + value.item()
    return figures, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, float], gradient: Any, loss: torch.Tensor, told: Any, model: Any) -> None:
    """Loss, every figure that both tell, and the gradient."""
    loss.backward()
    assert ours["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    assert ours["total"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    told = {name: value[-1] if isinstance(value, list) else value for name, value in told.items()}
    shared = set(ours) & set(told)
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"} <= shared
    for name in shared:
        assert ours[name] == pytest.approx(told[name], rel=1e-5, abs=1e-5), name
    theirs = dict(model.named_parameters())
    for name, grad in gradient.items():
        torch.testing.assert_close(grad, theirs[name].grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def preferring(world: World, settings: DpoSettings) -> Preferring:
    found = gather_pairs(settings.data, world.tokenizer, settings)
    texts = write(found, world.folder / "tokens", world.tokenizer.vocab_size)
    with_reference = settings.compared_with != "none"
    reference = Reference(CausalLM.load(world.folder / "base")) if with_reference else None
    return Preferring(texts["train"], settings, reference)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("loss", "alpha"), [("sigmoid", 0.0), ("sigmoid", 0.6), ("ipo", 0.0), ("hinge", 0.3)])
def test_dpo_trainer(world: World, loss: str, alpha: float, accumulate: int) -> None:
    kinds = {"loss_type": [loss, "sft"], "loss_weights": [1.0, alpha]} if alpha else {"loss_type": [loss]}
    args = DPOConfig(**kinds, beta=0.2, **world.common())
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    models = world.theirs("policy"), world.theirs("base")
    data = Dataset.from_list(world.records)
    trainer = DPOTrainer(*models, args, train_dataset=data, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(PAIRS)])
    wanted = trainer.compute_loss(trainer.model, batch)
    settings = settled(world, world.records, DpoSettings, loss=loss, beta=0.2, rpo_alpha=alpha, reference="base")
    found = our_loss(preferring(world, settings), world, accumulate)
    same(*found, wanted, trainer._metrics["eval"], trainer.model)
    assert {"rewards/accuracies", "entropy"} <= set(found[0]) & set(trainer._metrics["eval"])


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_cpo_and_orpo_trainers(world: World, loss: str) -> None:
    if loss == "simpo":
        args = CPOConfig(loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.4, **world.common())
        options = {"beta": 2.0, "simpo_gamma": 0.7, "rpo_alpha": 0.4}
    else:
        args, options = ORPOConfig(beta=0.3, **world.common()), {"beta": 0.3}
    kind = CPOTrainer if loss == "simpo" else ORPOTrainer
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    data = Dataset.from_list(world.records)
    trainer = kind(world.theirs("policy"), args=args, train_dataset=data, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(PAIRS)])
    wanted, told = trainer.get_batch_loss_metrics(trainer.model, batch)
    found = our_loss(preferring(world, settled(world, world.records, DpoSettings, loss=loss, **options)), world)
    same(*found, wanted, told, trainer.model)
    assert {"nll_loss", "rewards/accuracies"} | ({"log_odds_ratio"} if loss == "orpo" else set()) <= set(found[0])


@pytest.mark.parametrize("liked", [(1, 0, 0, 1, 0), (1, 1, 1, 1, 1), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_kto_trainer(world: World, liked: tuple[int, ...], accumulate: int) -> None:
    sides = [(record, bool(good)) for record, good in zip(world.records, liked, strict=True)]
    records = [
        {"prompt": record["prompt"], "completion": record["chosen" if good else "rejected"], "label": good}
        for record, good in sides
    ]
    weights = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    args = KTOConfig(**weights, **world.common())
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "policy")
    models = world.theirs("policy"), world.theirs("base")
    trainer = KTOTrainer(*models, args, train_dataset=Dataset.from_list(records), processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(PAIRS)])
    wanted = trainer.compute_loss(trainer.model, batch)
    settings = settled(world, records, KtoSettings, **weights)
    gathered = gather_thumbs(settings.data, world.tokenizer, settings)
    texts = write(gathered, world.folder / "tokens", world.tokenizer.vocab_size)["train"]
    reference = Reference(CausalLM.load(world.folder / "base"))
    figures, gradient = our_loss(
        Liking(texts, np.array(gathered.good["train"]), settings, reference), world, accumulate
    )
    told = {name: value[-1] for name, value in trainer._metrics["eval"].items()}
    wanted.backward()
    assert figures["loss"] == pytest.approx(wanted.item(), abs=1e-5)
    assert {"kl", "entropy"} <= set(figures) & set(told)
    assert figures["kl"] > 0.01  # or nothing would be tried of it
    assert set(figures) == set(told) & set(figures) | {"total", "loss"}
    for name in set(figures) & set(told):
        assert figures[name] == pytest.approx(told[name], rel=1e-5, abs=1e-5), name
    theirs = dict(trainer.model.named_parameters())
    for name, grad in gradient.items():
        torch.testing.assert_close(grad, theirs[name].grad, rtol=1e-4, atol=1e-5)
