"""Every way of drawing a token against a formula written down a second time, in NumPy and float64."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import numpy as np
import pytest
import torch

from tinyseek.engine.blocks import Prefix
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Request
from tinyseek.engine.sampler import Sampling, draw, narrow, sample, told, uniform, uniforms
from tinyseek.engine.sequence import Outlet, Sequence
from tinyseek.errors import UserError

V = 40


class Fixed:
    """A constraint that allows always the same tokens."""

    finished = False

    def __init__(self, *allowed: int, size: int = V) -> None:
        self.mask = np.isin(np.arange(size), allowed)

    def allowed(self) -> Any:
        return self.mask.copy()


def text(prompt: list[int], output: list[int], index: int = 0, matcher: Any = None, **params: Any) -> Sequence:
    asked = SamplingParams(**{"max_tokens": 100, **params})
    request = Request(cast(Any, None), prompt, asked)
    stops: dict[int, str | int] = {token: token for token in asked.stop_ids}
    sequence = Sequence(request, index, Prefix(), 1000, stops, Outlet(None), Sampling(asked, index), matcher)
    sequence.tokens += output
    return sequence


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def tokens_of(logits: torch.Tensor, texts: list[Sequence]) -> list[int]:
    return [drawn.token for drawn in sample(logits, texts)]


def distribution(logits: torch.Tensor, **params: Any) -> np.ndarray[Any, Any]:
    return narrow(logits, [SamplingParams(**{"temperature": 1.0, **params})] * len(logits)).double().softmax(-1).numpy()


def independent(
    logits: np.ndarray[Any, Any], temperature: float, k: int | None, p: float, m: float
) -> dict[int, float]:
    """Token -> probability, one token after the other."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])[:k]
    highest = logits.max()
    weights = {token: math.exp((logits[token] - highest) / temperature) for token in ranked}
    total = sum(weights.values())
    kept, share = {}, 0.0
    for token in ranked:
        if p == 1 or share < p:
            kept[token] = weights[token]
        share += weights[token] / total
    floor = m * max(kept.values())
    kept = {token: weight for token, weight in kept.items() if weight >= floor}
    total = sum(kept.values())
    return {token: weight / total for token, weight in kept.items()}


def test_greedy_takes_the_likeliest() -> None:
    logits = logits_of(20)
    assert tokens_of(logits, [text([1], []) for _ in range(20)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("repeat", range(30))
def test_temperature_top_k_top_p_min_p(repeat: int) -> None:
    """All at once, each row with its own."""
    rng = random.Random(repeat)
    logits = logits_of(5, repeat)
    params = [
        SamplingParams(
            temperature=rng.choice([0.3, 1.0, 2.5]),
            top_k=rng.choice([None, 1, 3, 10, 39, 40, 100]),
            top_p=rng.choice([1.0, 0.1, 0.5, 0.9, 0.999]),
            min_p=rng.choice([0.0, 0.0, 0.02, 0.3, 1.0]),
        )
        for _ in range(5)
    ]
    got = narrow(logits, params).double().softmax(-1).numpy()
    for row, p in enumerate(params):
        expected = independent(logits[row].double().numpy(), p.temperature, p.top_k, p.top_p, p.min_p)
        assert set(np.flatnonzero(got[row])) == set(expected), p
        for token, probability in expected.items():
            assert got[row, token] == pytest.approx(probability, rel=1e-5)


def test_top_p_over_more_tokens_than_are_looked_at_first() -> None:
    logits = (
        torch.randn(2, 5000, generator=torch.Generator().manual_seed(1)) * 0.01
    )  # nearly even: 90 % need about 4,500
    got = narrow(logits, [SamplingParams(temperature=1.0, top_p=0.9), SamplingParams(temperature=1.0)])
    expected = independent(logits[0].double().numpy(), 1.0, None, 0.9, 0.0)
    assert abs(int(got[0].isfinite().sum()) - len(expected)) <= 2
    assert got[1].isfinite().all()


def test_drawn_tokens_have_the_distribution() -> None:
    logits = logits_of(1, 3)
    expected = distribution(logits, temperature=0.7, top_k=12, top_p=0.9)[0]
    narrowed = narrow(logits, [SamplingParams(temperature=0.7, top_k=12, top_p=0.9)]).expand(40_000, -1)
    drawn = np.bincount(draw(narrowed, [uniform(5, 0, at) for at in range(40_000)]), minlength=V) / 40_000
    assert set(np.flatnonzero(drawn)) <= set(np.flatnonzero(expected))
    assert np.abs(drawn - expected).max() < 0.01


def test_numbers_at_the_ends_draw_tokens_that_may_be_drawn() -> None:
    logits = torch.full((2, V), -torch.inf)
    logits[:, 7], logits[:, 30] = 0.0, 1.0
    assert draw(logits, [0.0, 1 - 2**-48]) == [7, 30]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    numbers = np.array([uniform(seed, index, at) for seed in range(20) for index in range(5) for at in range(100)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(set(numbers)) == len(numbers)
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50  # chi squared, 19 degrees: 50 is one in ten thousand
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert uniform(1, 2, 3) == uniform(1, 2, 3) != uniform(1, 2, 3, 1)


def test_the_same_seed_draws_the_same_tokens_in_any_company() -> None:
    logits = logits_of(6)
    texts = [text([1], [2], seed=seed, temperature=1.3, top_k=30) for seed in range(6)]
    together = tokens_of(logits, texts)
    alone = [tokens_of(logits[row : row + 1], [texts[row]])[0] for row in range(6)]
    back = tokens_of(logits.flip(0), [*reversed(texts)])
    among = tokens_of(logits.repeat(2, 1), [*texts, *[text([1], [], min_tokens=1) for _ in range(6)]])[:6]
    assert together == alone == back[::-1] == among
    others = [text([1], [2], index=1, seed=seed, temperature=1.3, top_k=30) for seed in range(6)]
    assert tokens_of(logits, others) != together
    assert (
        len({tokens_of(logits[:1], [text([1], [2], temperature=5.0)])[0] for _ in range(50)}) > 1
    )  # no seed: always new


@pytest.mark.parametrize("sampled", [False, True])
def test_penalties(sampled: bool) -> None:
    """Repetition over prompt and output, presence and frequency over the output alone; as the output grows."""
    rng = random.Random(4)
    prompt = [rng.randrange(V) for _ in range(12)]
    how: dict[str, Any] = {"repetition_penalty": 1.7, "presence_penalty": 0.9, "frequency_penalty": -0.4}
    sequence = text(prompt, [], temperature=1.0 if sampled else 0.0, seed=3, **how)
    for step in range(25):
        logits = logits_of(1, step)
        output = sequence.tokens[12:]
        expected = logits[0].double().numpy().copy()
        for token in range(V):
            if token in prompt or token in output:
                expected[token] = expected[token] / 1.7 if expected[token] > 0 else expected[token] * 1.7
            expected[token] -= -0.4 * output.count(token) + 0.9 * (token in output)
        (token,) = tokens_of(logits, [sequence])
        if sampled:
            probs = np.exp(expected) / np.exp(expected).sum()
            assert token == int(np.searchsorted(probs.cumsum(), uniform(3, 0, step), side="right"))
        else:
            assert token == int(expected.argmax())
        sequence.tokens.append(token)
    del sequence.tokens[20:]  # taken back and written differently, as after a rejected draft
    sequence.tokens += [1] * 30
    logits = logits_of(1, 99)
    fresh = text(prompt, sequence.tokens[12:], temperature=1.0 if sampled else 0.0, seed=3, **how)
    assert tokens_of(logits, [sequence]) == tokens_of(logits, [fresh])


def test_logit_bias() -> None:
    logits = logits_of(1)
    order = logits[0].argsort(descending=True).tolist()
    assert tokens_of(logits, [text([1], [], logit_bias={order[0]: -100.0})]) == [order[1]]
    assert tokens_of(logits, [text([1], [], logit_bias={order[-1]: 100.0})]) == [order[-1]]
    assert tokens_of(logits, [text([1], [])]) == [order[0]]  # the logits themselves were left alone


def test_min_tokens_forbids_stop_tokens_until_then() -> None:
    logits = logits_of(1)
    best, second = logits[0].topk(2).indices.tolist()
    stops = frozenset({best})
    assert tokens_of(logits, [text([1], [2, 3], min_tokens=3, stop_ids=stops)]) == [second]
    assert tokens_of(logits, [text([1], [2, 3, 4], min_tokens=3, stop_ids=stops)]) == [best]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_constraints(temperature: float) -> None:
    """Only what is allowed, whatever the bias; nothing beyond the tokenizer's vocabulary, which may be smaller than the model's."""
    logits = logits_of(50)
    sequences = [
        text([1], [], matcher=Fixed(3, 5, 20, size=30), temperature=temperature, constraint=True, logit_bias={7: 100.0})
        for _ in range(50)
    ]
    tokens = tokens_of(logits, sequences)
    assert set(tokens) <= {3, 5, 20}
    if not temperature:
        assert tokens == [max((3, 5, 20), key=lambda token: logits[row, token].item()) for row in range(50)]


def test_min_tokens_gives_way_where_a_constraint_lets_the_text_but_end() -> None:
    how: dict[str, Any] = {"constraint": True, "min_tokens": 9, "stop_ids": frozenset({4})}
    assert tokens_of(logits_of(1), [text([1], [], matcher=Fixed(4), **how)]) == [4]
    assert tokens_of(logits_of(1), [text([1], [], matcher=Fixed(4, 6), **how)]) == [6]


def test_what_fails_in_one_row_leaves_the_others_alone() -> None:
    class Broken(Fixed):
        def allowed(self) -> Any:
            raise UserError("the grammar has grown too complex")

    logits = logits_of(4)
    logits[2] = torch.nan
    texts = [
        text([1], []),
        text([1], [], matcher=Broken(), constraint=True),
        text([1], []),
        text([1], [], temperature=1.0, seed=1),
    ]
    drawn = sample(logits, texts)
    assert [bool(d.error) for d in drawn] == [False, True, True, False]
    assert "too complex" in str(drawn[1].error)
    assert "not finite" in str(drawn[2].error)
    assert drawn[0].token == logits[0].argmax()
    assert drawn[3].token == tokens_of(logits[3:], [texts[3]])[0]


def test_logprobs_are_the_models_own_and_the_likeliest_is_exactly_equal() -> None:
    logits = logits_of(3)
    texts = [
        text([1], [], logprobs=4),
        text([1], [], logprobs=0, temperature=3.0, seed=1, logit_bias={0: 50.0}),
        text([1], []),
    ]
    drawn = sample(logits, texts)
    expected = logits.double().log_softmax(-1)
    first, second = drawn[0].logprob, drawn[1].logprob
    assert first is not None
    assert second is not None
    assert drawn[2].logprob is None
    assert [token for token, _ in first.top] == logits[0].topk(4).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(expected[0].topk(4).values.tolist(), abs=1e-5)
    assert first.logprob == max(
        value for _, value in first.top
    )  # exactly: who asks whether it was greedy compares floats
    assert (second.id, second.top) == (drawn[1].token, ())
    assert second.logprob == pytest.approx(expected[1, second.id].item(), abs=1e-5)


def test_no_more_alternatives_than_there_are_tokens() -> None:
    (one,) = told(torch.randn(1, 3), [1], [100])
    assert one is not None
    assert len(one.top) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": math.nan}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"logit_bias": {3: 101.0}}, "logit_bias of token 3"),
        ({"logit_bias": {-3: 1.0}}, "no token"),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "2000 tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ("",)}, "stop string"),
        ({"stop": ("x" * 5000,)}, "stop string"),
        ({"stop": ("x",) * 100}, "stop strings"),
        ({"n": 0}, "n must"),
        ({"n": 1000}, "n must"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 101}, "prompt_logprobs"),
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingParams(**values)


def test_values_at_the_bounds_are_taken() -> None:
    SamplingParams(max_tokens=0, prompt_logprobs=0)
    SamplingParams(max_tokens=10**12, temperature=100, top_k=10**9, top_p=1, min_p=1, seed=(1 << 63) - 1, n=128)
    assert SamplingParams(temperature=1e-40).greedy  # its division would overflow


def test_many_numbers_at_once_are_those_one_by_one() -> None:
    rng = random.Random(7)
    parts = [(rng.getrandbits(63), rng.randrange(200), rng.randrange(5000)) for _ in range(300)]
    assert uniforms(parts) == [uniform(*part) for part in parts]
