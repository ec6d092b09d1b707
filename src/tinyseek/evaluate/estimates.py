"""How good, and how sure of it: pass@k without bias, intervals over prompts, the error over seeds, one model's gain on another.

A score is a mean over prompts, and the prompts are what was drawn by chance: so they are what is drawn again (bootstrap). Two
models that answered the same prompts are compared prompt by prompt, which is sharper than two intervals beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 2000
_AT_ONCE = 1 << 22  # numbers drawn at a time: 32 MB
_Z95 = 1.959964


@dataclass(frozen=True)
class Share:
    """How many of a number of tasks were right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    def interval(self, z: float = _Z95) -> tuple[float, float]:
        """Wilson's score interval, 95 % by default: where the true share lies. It stays within 0..1 and is sound at 0 and at 1.

        Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
        """
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def plain(self) -> dict[str, float | int]:
        low, high = self.interval()
        return {
            "right": self.right,
            "total": self.total,
            "share": round(self.share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its 95 % interval and standard error."""

    mean: float
    low: float
    high: float
    error: float
    prompts: int

    def plain(self) -> dict[str, float | int]:
        rounded = {name: round(getattr(self, name), 5) for name in ("low", "high", "error")}
        return {"mean": round(self.mean, 5), **rounded, "prompts": self.prompts}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of `k` samples one at least is right, estimated without bias from `samples`, of which `right` are.

    1 - C(samples - right, k) / C(samples, k), as a product, since the binomials themselves overflow.
    Source: Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, equation 1.

    Raises:
        ValueError: fewer samples than k, or more right than samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {right} right")
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / left for left in range(samples - right + 1, samples + 1))


def mean_over_prompts(
    values: Sequence[float] | Values, seed: int = 0, resamples: int = RESAMPLES, shares: bool = True
) -> Mean:
    """The mean of one value a prompt; interval and error by drawing the prompts again, with replacement.

    Where every prompt has the same value, drawing again tells nothing: of shares all 0 or all 1 Wilson's interval is given.
    The same `seed` draws the same prompts, so that figures come out the same. `shares`: values lie between 0 and 1.
    Source: B. Efron, Bootstrap methods: another look at the jackknife, 1979; percentile intervals.
    """
    values_N = np.asarray(values, dtype=np.float64)
    count = len(values_N)
    if not count:
        return Mean(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(values_N.mean())
    if float(np.ptp(values_N)) == 0.0:
        low, high = Share(round(mean) * count, count).interval() if shares and mean in (0.0, 1.0) else (mean, mean)
        return Mean(mean, low, high, 0.0, count)
    rng = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // count)
    means = np.concatenate(
        [
            values_N[rng.integers(0, count, (min(rows, resamples - start), count))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(mean, float(low), float(high), float(means.std(ddof=1)), count)


def gain(before: Sequence[float] | Values, after: Sequence[float] | Values) -> Mean:
    """By how much `after` is better than `before` on the same prompts: the mean difference, prompt by prompt.

    Raises:
        ValueError: not the same number of prompts.
    """
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_N.shape != after_N.shape:
        raise ValueError(f"{before_N.shape} and {after_N.shape} prompts cannot be compared one by one")
    return mean_over_prompts(after_N - before_N, shares=False)


@dataclass(frozen=True)
class OverSeeds:
    """The mean of runs that differ in their seed alone, and its standard error; of one run there is none."""

    mean: float
    error: float | None
    values: list[float]

    def plain(self) -> dict[str, Any]:
        error = None if self.error is None else round(self.error, 5)
        return {"mean": round(self.mean, 5), "error": error, "values": [round(value, 5) for value in self.values]}


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and standard error, s / sqrt(n), of one figure a seed.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("no seed's figure to take the mean of")
    numbers = np.asarray(values, dtype=np.float64)
    error = float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else None
    return OverSeeds(float(numbers.mean()), error, list(map(float, values)))
