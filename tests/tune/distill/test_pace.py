"""Limits a minute and a budget, by a clock of the test's own."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest

from tinyseek.tune.distill.pace import Pace, Sent


class Clock:
    """A minute that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def send_all(pace: Pace, clock: Clock, count: int, rng: random.Random, least: int, most: int) -> list[Sent]:
    """One after another; each takes a second or so, and between `least` and `most` tokens."""

    async def pause(seconds: float) -> None:
        clock.now += seconds + 1e-6

    pace.pause = pause  # type: ignore[method-assign]
    sent = []
    for _ in range(count):
        one = await pace.turn(most, 0.0)
        assert one is not None
        clock.now += rng.random()
        pace.done(one, rng.randint(least, most), 0.0)
        sent.append(one)
    return sent


@pytest.mark.parametrize(("requests", "tokens"), [(30, None), (7.5, None), (None, 5000), (40, 8000), (0.5, None)])
def test_no_minute_sees_more_than_the_limits(requests: float | None, tokens: float | None) -> None:
    clock, rng = Clock(), random.Random(5)
    pace = Pace(requests, tokens, clock=clock)
    sent = asyncio.run(send_all(pace, clock, 60 if requests != 0.5 else 5, rng, 100, 400))
    at = [one.at for one in sent]
    most_requests = most_tokens = 0.0
    for start in at:
        inside = [one for one in sent if start <= one.at < start + 60]
        most_requests = max(most_requests, len(inside))
        most_tokens = max(most_tokens, sum(one.tokens for one in inside))
    if requests is not None:
        assert most_requests <= max(1, requests)
    if tokens is not None:
        # What is reckoned with is the mean of what came before; a single answer may be longer than that.
        assert most_tokens <= tokens + 400
    if requests == 0.5:
        assert min(b - a for a, b in pairwise(at)) >= 120
    elif requests and tokens is None:
        assert at[-1] - at[0] <= 60 * (60 / int(requests))  # and no slower than they ask


def test_a_request_larger_than_a_minutes_tokens_goes_alone() -> None:
    clock = Clock()
    sent = asyncio.run(send_all(Pace(None, 100, clock=clock), clock, 3, random.Random(0), 300, 300))
    assert all(b.at - a.at >= 60 for a, b in pairwise(sent))


def test_the_budget_counts_what_is_under_way() -> None:
    pace = Pace(budget=1.0, spent=0.1)

    async def go() -> None:
        first, second = await pace.turn(1, 0.3), await pace.turn(1, 0.3)
        assert first is not None
        assert second is not None
        assert pace.affords(0.3) == "now"
        assert pace.affords(0.31) == "later"
        pace.done(first, 1, 0.3)
        pace.done(second, 1, 0.1)
        assert pace.spent == pytest.approx(0.5)
        assert pace.affords(0.5) == "now"
        assert pace.affords(0.6) == "never"
        assert await pace.turn(1, 0.6) is None

    asyncio.run(go())
