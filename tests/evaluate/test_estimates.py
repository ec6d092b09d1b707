"""pass@k against counting, intervals against the definition and against what is known of them."""

import itertools
import math
import random

import numpy as np
import pytest

from tinyseek.evaluate.estimates import Share, gain, mean_over_prompts, over_seeds, pass_at_k


def test_pass_at_k_is_the_share_of_choices_with_a_right_one():
    for samples in range(1, 8):
        for right in range(samples + 1):
            for k in range(1, samples + 1):
                choices = list(itertools.combinations([True] * right + [False] * (samples - right), k))
                assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)
    # where the binomials themselves have hundreds of digits
    exact = 1 - math.comb(4990, 1000) / math.comb(5000, 1000)
    assert pass_at_k(5000, 10, 1000) == pytest.approx(exact, rel=1e-9)
    for wrong in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*wrong)


def test_pass_at_k_has_no_bias():
    """Its mean over many draws is 1 - (1 - p)^k; that of the plug-in 1 - (1 - c/n)^k is not."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for p, n, k in ((0.1, 8, 4), (0.5, 4, 2), (0.03, 16, 16)):
        right = rng.binomial(n, p, 200_000)
        found = np.array([pass_at_k(n, c, k) for c in range(n + 1)])[right]
        assert found.mean() == pytest.approx(1 - (1 - p) ** k, abs=5 * found.std() / 200_000**0.5)


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


def test_the_bootstrap_is_the_error_of_a_mean():
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    values = rng.binomial(4, rng.beta(0.5, 0.8, 800)) / 4
    found = mean_over_prompts(values)
    error = values.std() / 800**0.5
    assert found.mean == values.mean()
    assert found.error == pytest.approx(error, rel=0.08)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.25 * error
    )
    assert found.prompts == 800
    assert mean_over_prompts(values) == found  # the same prompts are drawn again
    # 95 % of intervals hold the truth
    held = 0
    for _ in range(300):
        sample = rng.binomial(1, 0.3, 60)
        found = mean_over_prompts(sample, resamples=300)
        held += found.low <= 0.3 <= found.high
    assert 0.88 <= held / 300 <= 0.99


def test_values_that_are_all_alike():
    nothing = mean_over_prompts([0.0] * 20)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 0.1611), abs=5e-5)
    everything = mean_over_prompts([1.0] * 20)
    assert (everything.low, everything.high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    half = mean_over_prompts([0.5] * 20)
    assert (half.low, half.high, half.error) == (0.5, 0.5, 0.0)
    assert math.isnan(mean_over_prompts([]).mean)


def test_a_gain_on_the_same_prompts_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(1000)
    before, after = (hard < 0.4).astype(float), (hard < 0.45).astype(float)
    found = gain(before, after)
    assert found.mean == pytest.approx(after.mean() - before.mean())
    assert found.low > 0
    assert mean_over_prompts(after).low < before.mean() + 0.03  # which beside each other would not tell
    same = gain([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="one by one"):
        gain([1.0], [1.0, 0.0])


def test_over_seeds():
    found = over_seeds([0.4, 0.5, 0.6])
    assert (found.mean, found.error) == (pytest.approx(0.5), pytest.approx(0.1 / 3**0.5))
    assert over_seeds([0.4]).error is None
    with pytest.raises(ValueError, match="no seed"):
        over_seeds([])
