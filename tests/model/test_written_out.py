"""Blocks written out over frozen weights: the losses and gradients of autograd, whatever the base, the documents, the changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyseek.model import lora, written_out
from tinyseek.model.config import ModelConfig
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
MODELS = {"llama": ModelConfig(**SHAPE), "biased": ModelConfig(**SHAPE, qkv_bias=True, output_bias=True, mlp_bias=True)}
ROWS = {"one length": [50, 50, 50], "many": [70, 3, 33, 90, 1, 64], "longer than a tile": [200, 150, 190]}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(written_out, "TILE", 128)
    monkeypatch.setattr(written_out, "STRIP", 48)
    yield
    torch.set_num_threads(before)


def adapted(name: str, base: Any = "float32", **settings: Any) -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 1.5)
    lora.add_lora(model, LoraConfig(**{"rank": 3, "alpha": 5, **settings}), base)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.lora_B.normal_(0, 0.1)
    return model.train()


def by_autograd(model: CausalLM) -> CausalLM:
    plain = copy.deepcopy(model)
    for block in plain.model.layers:
        block.halves = None
    return plain


def batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids, targets = (torch.randint(0, 97, (1, sum(lengths)), generator=generator) for _ in range(2))
    targets[0, ::3] = -100
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ids, targets, numbers[None]


def step(model: CausalLM, *given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model.loss(*given).total
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(model: CausalLM, *given: Tensor) -> None:
    plain = by_autograd(model)
    for _ in range(2):  # the second in memory that the first one left
        (loss, found), (expected, gradients) = step(model, *given), step(plain, *given)
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=2e-5, msg=name)


@pytest.fixture
def used(monkeypatch) -> list[str]:
    """Which halves were written out."""
    seen: list[str] = []
    for kind in ("_Attention", "_GatedMLP"):
        function = getattr(written_out, kind)
        apply = function.apply
        monkeypatch.setattr(function, "apply", lambda *a, kind=kind, apply=apply: (seen.append(kind), apply(*a))[1])
    return seen


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_autograds(name: str, rows: str, base: str, used: list[str]) -> None:
    equal(adapted(name, base), *batch(ROWS[rows]))
    assert used.count("_Attention") == used.count("_GatedMLP") == 2 * MODELS[name].num_hidden_layers


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": ["q_proj", "v_proj"]},
        {"targets": ["layers.1.*down_proj"]},
        {"targets": ["gate_proj", "o_proj", "k_proj"], "rank": 7, "rslora": True},
    ],
)
def test_some_matrices_are_changed_and_some_are_not(settings: dict[str, Any], used: list[str]) -> None:
    equal(adapted("biased", **settings), *batch(ROWS["many"]))
    assert used


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"dora": True}, set()),
        ({"dora": True, "targets": ["q_proj"]}, {"_GatedMLP"}),
        ({"save": ["*norm"]}, set()),
        ({"save": ["layers.*.self_attn.o_proj"], "targets": ["down_proj"]}, {"_GatedMLP"}),
    ],
)
def test_what_does_not_fit_goes_by_autograd(settings: dict[str, Any], left: set[str], used: list[str]) -> None:
    equal(adapted("llama", **settings), *batch(ROWS["many"]))
    assert set(used) == left


def test_dropout_few_rows_and_bfloat16_products_go_by_autograd(used: list[str]) -> None:
    adapted("llama", dropout=0.5).loss(*batch(ROWS["many"])).total.backward()
    adapted("llama").loss(*batch([5, 6])).total.backward()
    with torch.autocast("cpu", torch.bfloat16):
        adapted("llama").loss(*batch(ROWS["many"])).total.backward()
    with torch.no_grad():
        adapted("llama").loss(*batch(ROWS["many"]))
    assert not used


def test_rows_without_documents(used: list[str]) -> None:
    ids, targets, _ = batch([80, 80])
    equal(adapted("llama"), ids.view(2, 80), targets.view(2, 80))
    assert used


def test_memory_goes_from_step_to_step_and_two_batches_never_share_it() -> None:
    model, (one, two) = adapted("llama"), (batch(ROWS["many"]), batch(ROWS["one length"]))
    plain = by_autograd(model)
    pool = model.model.layers[0].halves.pools[1]
    step(model, *one)
    (kept,) = pool._free
    step(model, *two)  # smaller: it fits
    assert [flat.data_ptr() for flat in pool._free] == [kept.data_ptr()]
    both = []
    for each in (model, plain):
        each.zero_grad()
        losses = [each.loss(*given).total for given in (one, two, one)]
        sum(losses).backward()
        both.append({name: p.grad for name, p in lora.trained(each)})
    for name, gradient in both[1].items():
        torch.testing.assert_close(both[0][name], gradient, atol=5e-6, rtol=5e-5, msg=name)
    loss = model.loss(*one).total
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
