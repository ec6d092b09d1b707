"""The arithmetic of learning from rewards, as plain functions: advantages, clipped ratios, divergences, what sums are divided by.

Sources: GRPO, DeepSeekMath (arXiv 2402.03300) eq. 3-4; Dr. GRPO (arXiv 2503.20783); DAPO (arXiv 2503.14476); PPO (arXiv 1707.06347)
eq. 7; GAE (arXiv 1506.02438) eq. 16. Where papers leave a choice it is made as TRL's, whose losses a test holds these equal to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseek.tune.rl.options import Loss

SMALL = 1e-4  # added to a standard deviation before it divides
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of rewards over a whole batch, of which a process may hold a part."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(cls, rewards: Floats) -> Spread:
        """Of those that are there."""
        told = rewards[~np.isnan(rewards)]
        return cls(float(told.size), float(told.sum()), float((told**2).sum()))

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """The unbiased one; 0 of a single number."""
        if self.count < 2:
            return 0.0
        return float(np.sqrt(max(0.0, self.squares - self.total**2 / self.count) / (self.count - 1)))


def group_advantages(
    rewards_PG: Floats, scale: Literal["group", "batch", "none"], batch: Spread | None = None
) -> tuple[Floats, NDArray[np.bool_]]:
    """How much better each answer is than the mean of its prompt's answers, over a standard deviation.

    Args:
        rewards_PG: rewards of P prompts' answers; NaN where none was told, which gives an advantage of 0.
        batch: of all rewards, for scale "batch".
    Returns:
        Advantages [P, G], and for each prompt whether all that was told of its answers is equal: nothing can be learned there.
    """
    told_PG = ~np.isnan(rewards_PG)
    count_P1 = told_PG.sum(1, keepdims=True)
    filled_PG = np.where(told_PG, rewards_PG, 0.0)
    mean_P1 = filled_PG.sum(1, keepdims=True) / np.maximum(count_P1, 1)
    off_PG = np.where(told_PG, rewards_PG - mean_P1, 0.0)
    spread_P1 = np.sqrt((off_PG**2).sum(1, keepdims=True) / np.maximum(count_P1 - 1, 1))
    largest_P = np.where(told_PG, rewards_PG, -np.inf).max(1)
    equal_P = (count_P1[:, 0] < 2) | (largest_P == np.where(told_PG, rewards_PG, np.inf).min(1))
    off_PG[equal_P] = 0.0  # not what rounding leaves of them
    if scale == "group":
        off_PG = off_PG / (spread_P1 + SMALL)
    elif scale == "batch":
        off_PG = off_PG / ((batch or Spread.of(rewards_PG)).deviation + SMALL)
    return off_PG, equal_P


@dataclass(frozen=True)
class Clipped:
    """A token's loss, its ratio, and which ratios were cut."""

    loss_N: Tensor
    ratio_N: Tensor
    low_N: Tensor
    high_N: Tensor


def clipped_policy_loss(
    logps_N: Tensor, old_N: Tensor, advantages_N: Tensor, epsilon: float, epsilon_high: float
) -> Clipped:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) of each token, r its probability now over what it was.

    Args:
        logps_N: log-probabilities, with gradients.
        old_N: those of the weights that the answers were sampled with.
    """
    ratio_N = (logps_N - old_N).exp()
    cut_N = ratio_N.clamp(1 - epsilon, 1 + epsilon_high)
    loss_N = -torch.minimum(ratio_N * advantages_N, cut_N * advantages_N)
    low_N = (ratio_N < 1 - epsilon) & (advantages_N < 0)
    high_N = (ratio_N > 1 + epsilon_high) & (advantages_N > 0)
    return Clipped(loss_N, ratio_N, low_N.float(), high_N.float())


def k3(logps_N: Tensor, reference_N: Tensor) -> Tensor:
    """The divergence from a reference at tokens sampled from the model: never negative, unbiased, of low variance.

    Source: J. Schulman, Approximating KL divergence, 2020; DeepSeekMath eq. 4.
    """
    gap_N = reference_N - logps_N
    return gap_N.exp() - gap_N - 1


def token_weights(loss: Loss, lengths: NDArray[np.int64], longest: int) -> tuple[Floats, Literal["items", "targets"]]:
    """What each answer's tokens weigh, and by which count of the update the sum is divided.

    Args:
        lengths: tokens of each answer.
        longest: max_completion_length.
    """
    if loss == "grpo":
        return 1.0 / np.maximum(lengths, 1), "items"
    if loss == "dr_grpo":
        return np.full(len(lengths), 1.0 / longest), "items"
    return np.ones(len(lengths)), "targets"


def advantage_estimates(rewards_T: Floats, values_T: Floats, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """Generalised advantage estimates of one answer's tokens, and the returns that the values are to learn.

    After the last token nothing comes: its next value is 0.
    """
    following_T = np.append(values_T[1:], 0.0)
    delta_T = rewards_T + gamma * following_T - values_T
    advantages_T = np.empty_like(delta_T)
    running = 0.0
    for at in reversed(range(len(delta_T))):
        running = delta_T[at] + gamma * lam * running
        advantages_T[at] = running
    return advantages_T, advantages_T + values_T


def whitened(values: Floats, spread: Spread, *, shift: bool = True) -> Floats:
    """Brought to a variance of 1, and with `shift` to a mean of 0."""
    scaled: Floats = (values - spread.mean) / np.sqrt(spread.deviation**2 + 1e-8)
    return scaled if shift else scaled + spread.mean


def clipped_value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, or of the value moved no further than `cliprange` from what it was if that is more;
    and which were cut."""
    moved_N = values_N.clamp(old_N - cliprange, old_N + cliprange)
    free_N, held_N = (values_N - returns_N).square(), (moved_N - returns_N).square()
    return 0.5 * torch.maximum(free_N, held_N), (held_N > free_N).float()
