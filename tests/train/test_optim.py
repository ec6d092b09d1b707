"""Optimisers against their formulas in float64, and the groups that parameters fall into."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.train.optim import Muon, make_optimizer, orthogonalize, parameter_groups
from tinyseek.train.options import TrainSettings


def newton_schulz_by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The same iteration in float64 by another way: the quintic acts on each singular value alone."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_orthogonalize_acts_on_singular_values_alone(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape)
    ours = orthogonalize(torch.from_numpy(matrix))
    np.testing.assert_allclose(ours.numpy(), newton_schulz_by_singular_values(matrix), atol=1e-9)
    values = np.linalg.svd(ours.numpy(), compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_steps_are_the_papers_in_float64() -> None:
    """Three steps on a matrix and on a stack of experts, weight decay and Nesterov's momentum included."""
    rng = np.random.default_rng(2)
    plain = nn.Parameter(torch.from_numpy(rng.normal(size=(6, 4))).float())
    stack = nn.Parameter(torch.from_numpy(rng.normal(size=(3, 4, 8))).float())
    lr, momentum, decay = 0.02, 0.9, 0.1
    optimizer = Muon([plain, stack], lr=lr, momentum=momentum, weight_decay=decay)
    weights = [plain.detach().double().numpy(), *stack.detach().double().numpy()]
    velocities = [np.zeros_like(weight) for weight in weights]
    for _ in range(3):
        gradients = [rng.normal(size=weight.shape) for weight in weights]
        plain.grad = torch.from_numpy(gradients[0]).float()
        stack.grad = torch.from_numpy(np.stack(gradients[1:])).float()
        optimizer.step()
        for index, gradient in enumerate(gradients):
            velocities[index] = momentum * velocities[index] + (1 - momentum) * gradient
            ahead = momentum * velocities[index] + (1 - momentum) * gradient
            update = 0.2 * math.sqrt(max(gradient.shape)) * newton_schulz_by_singular_values(ahead)
            weights[index] = weights[index] * (1 - lr * decay) - lr * update
    np.testing.assert_allclose(plain.detach().numpy(), weights[0], atol=2e-6)
    np.testing.assert_allclose(stack.detach().numpy(), np.stack(weights[1:]), atol=2e-6)


def test_muon_is_torchs_where_torch_has_it() -> None:
    """torch.optim.Muon (matrices only) with its switch for the same scale, rounding its iteration to bfloat16."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(16, 8)) for _ in range(2))
    mine = Muon([ours], lr=0.01, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(16, 8)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lm_head(self.norm(self.inner(self.embed(ids))))
        return out


def test_adamw_is_its_formula_in_float64_with_decay_on_matrices_alone() -> None:
    torch.manual_seed(3)
    model = Toy()
    settings = TrainSettings(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    optimizer = make_optimizer(model, settings)
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(1, 4):
        optimizer.set_lr(0.01 / step)
        optimizer.zero_grad()
        model(torch.arange(7)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            mean, square = first[name] / (1 - 0.8**step), second[name] / (1 - 0.9**step)
            decay = 0.3 if name in ("inner.weight", "lm_head.weight") else 0.0
            weights[name] = weights[name] * (1 - 0.01 / step * decay) - 0.01 / step * mean / (square.sqrt() + 1e-6)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), weights[name], atol=1e-6, rtol=0)


def test_every_parameter_of_a_deepseek_is_in_one_group_and_routing_bias_in_none() -> None:
    model = CausalLM(from_preset("quickstart", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}))
    groups = parameter_groups(model)
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert {name for name, _ in groups["head"]} == {"lm_head.weight"}
    assert all("norm" in name or "embed" in name for name, _ in groups["rest"])
    assert any(parameter.ndim == 3 for _, parameter in groups["hidden"])
    assert not any("correction_bias" in name for name in names)


def test_a_tied_head_is_the_embedding_and_never_decays() -> None:
    model = CausalLM(from_preset("gpt2", {"hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 64}))
    groups = parameter_groups(model)
    assert groups["head"] == []
    assert any("embed" in name for name, _ in groups["rest"])


@pytest.mark.parametrize("name", ["adamw", "muon", "adam", "sgd", "momentum", "adagrad", "rmsprop"])
def test_a_state_put_back_gives_the_same_next_steps(name: str) -> None:
    def steps(model: Toy, optimizer: object, count: int) -> None:
        for index in range(count):
            optimizer.zero_grad()  # type: ignore[attr-defined]
            model(torch.arange(7)).mul(index + 1).square().sum().backward()
            optimizer.step()  # type: ignore[attr-defined]

    torch.manual_seed(4)
    settings = TrainSettings.read({"optimizer": name, "lr": 1e-3})
    model = Toy()
    optimizer = make_optimizer(model, settings)
    steps(model, optimizer, 2)
    kept, memory = (
        {k: v.clone() for k, v in model.state_dict().items()},
        {k: v.clone() for k, v in optimizer.state_dict().items()},
    )
    steps(model, optimizer, 3)

    again = Toy()
    again.load_state_dict(kept)
    second = make_optimizer(again, settings)
    second.load_state_dict(memory)
    steps(again, second, 3)
    for (key, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
