"""The arithmetic of GRPO and PPO against plain sums in float64, and its edges. (Against TRL: test_trl.py.)"""

from __future__ import annotations

import math
import os
import time

import numpy as np
import pytest
import torch

from tinyseek.tune.rl.losses import (
    Spread,
    advantage_estimates,
    clipped_policy_loss,
    clipped_value_loss,
    group_advantages,
    k3,
    token_weights,
    whitened,
)


def test_groups_that_are_alike_and_what_was_not_told() -> None:
    nan = math.nan
    rewards = np.array([[1.0, 0, 0, 1], [0.1, 0.1, 0.1, 0.1], [nan, 2, 4, nan], [nan, nan, nan, 5], [nan] * 4])
    advantages, equal = group_advantages(rewards, "none")
    assert equal.tolist() == [False, True, False, True, True]
    assert advantages.tolist() == [[0.5, -0.5, -0.5, 0.5], [0] * 4, [0, -1, 1, 0], [0] * 4, [0] * 4]
    scaled, _ = group_advantages(rewards, "group")
    assert scaled[0, 0] == pytest.approx(0.5 / (np.std([1, 0, 0, 1], ddof=1) + 1e-4))
    assert scaled[2, 2] == pytest.approx(1 / (math.sqrt(2) + 1e-4))
    assert not scaled[[1, 3, 4]].any()
    every, _ = group_advantages(rewards, "batch")
    told = rewards[~np.isnan(rewards)]
    assert every[0, 0] == pytest.approx(0.5 / (told.std(ddof=1) + 1e-4))
    assert np.isfinite(every).all()
    for shape in ((1, 1), (2, 2)):  # nothing at all was told, or all of it alike
        none, alike = group_advantages(np.full(shape, nan), "batch")
        assert not none.any()
        assert alike.all()


def test_a_spread_of_parts_is_the_spread_of_all() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(3, 2, n) for n in (1, 7, 20)]
    spreads = [Spread.of(part) for part in parts]
    whole = Spread(*(sum(getattr(s, name) for s in spreads) for name in ("count", "total", "squares")))
    assert whole.mean == pytest.approx(np.concatenate(parts).mean())
    assert whole.deviation == pytest.approx(np.concatenate(parts).std(ddof=1))
    assert Spread.of(np.array([2.0])).deviation == Spread.of(np.zeros(0)).deviation == 0.0
    assert whitened(np.concatenate(parts), whole).std(ddof=1) == pytest.approx(1)
    assert whitened(np.concatenate(parts), whole, shift=False).mean() == pytest.approx(whole.mean)


def test_advantage_estimates_are_the_sum_of_what_they_say() -> None:
    """GAE eq. 16 as it is written: a sum over all later steps of (gamma lambda)^l delta."""
    seed = int(os.environ.get("TINYSEEK_TEST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=9), rng.normal(size=9)
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (1.0, 1.0)):
        following = [*values[1:], 0.0]
        delta = [rewards[t] + gamma * following[t] - values[t] for t in range(9)]
        expected = [sum((gamma * lam) ** (later - t) * delta[later] for later in range(t, 9)) for t in range(9)]
        advantages, returns = advantage_estimates(rewards, values, gamma, lam)
        assert advantages == pytest.approx(expected)
        assert returns == pytest.approx(np.array(expected) + values)
    _, returns = advantage_estimates(rewards, values, 1.0, 1.0)  # Monte Carlo: what really came, whatever was expected
    assert returns == pytest.approx(rewards[::-1].cumsum()[::-1])


def test_ratios_are_cut_where_that_is_the_pessimistic_choice() -> None:
    ratios = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    logps = ratios.log().requires_grad_()
    clipped = clipped_policy_loss(logps, torch.zeros(5, dtype=torch.float64), advantages, 0.2, 0.28)
    assert clipped.loss_N.tolist() == pytest.approx([-0.5, 0.8, -1.28, 1.5, -2.0])
    clipped.loss_N.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-0.5, 0.0, 0.0, 1.5, -2.0])  # what is cut moves nothing
    assert (clipped.low_N.tolist(), clipped.high_N.tolist()) == ([0, 1, 0, 0, 0], [0, 0, 1, 0, 0])


def test_values_go_no_further_than_they_may() -> None:
    old, returns = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, -1.0, 1.0])
    values = torch.tensor([0.9, 0.9, 1.1], requires_grad=True)
    loss, cut = clipped_value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 1.9**2, 0.5 * 0.1**2])
    assert cut.tolist() == [1, 0, 0]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, 1.9, 0.1])


def test_k3_is_the_divergence_on_the_average() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 7).double().log_softmax(-1)
    tokens = torch.multinomial(p.exp(), 400_000, replacement=True)
    estimate = k3(p[tokens], q[tokens])
    assert (estimate >= 0).all()
    exact = float((p.exp() * (p - q)).sum())
    assert float(estimate.mean()) == pytest.approx(exact, abs=5 * float(estimate.std()) / math.sqrt(400_000))


def test_weights_add_up_to_the_means_that_they_are() -> None:
    lengths = np.array([1, 4, 10])
    values = [np.full(n, float(n)) for n in lengths]
    for loss, by, expected in (
        ("grpo", 3, np.mean([v.mean() for v in values])),
        ("dapo", 15, np.concatenate(values).mean()),
        ("bnpo", 15, np.concatenate(values).mean()),
        ("dr_grpo", 3, sum(v.sum() for v in values) / (3 * 12)),
    ):
        weights, divisor = token_weights(loss, lengths, longest=12)  # type: ignore[arg-type]
        assert divisor == ("items" if by == 3 else "targets")
        assert sum((v * w).sum() for v, w in zip(values, weights, strict=True)) / by == pytest.approx(expected)
