"""How fast, and for how much money, a server is asked: limits a minute, pauses that it asks for, a budget.

The limits hold in every minute, wherever it begins: what was sent is remembered for sixty seconds. A request reserves the most
that it may take, in tokens and money, and gives back what it did not; so neither limit nor budget is passed by what is under way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_WINDOW = 60.0  # seconds


@dataclass
class Sent:
    """A request that was let go."""

    at: float
    tokens: float  # what it is expected to take; what it took, once that is known
    money: float  # reserved for it


class Pace:
    """Whose turn it is. For one event loop.

    Attributes:
        spent: money so far.
        stopped: set when nothing more is to be sent; who waits for a turn gets none.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: float | None = None,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget, self.spent = budget, spent
        self.stopped = asyncio.Event()
        self._requests, self._tokens, self._clock = requests_per_minute, tokens_per_minute, clock
        self._recent: deque[Sent] = deque()
        self._reserved, self._under_way = 0.0, 0
        self._not_before = 0.0
        self._last = -float("inf")
        self._per_request = 0.0  # running mean of what requests took

    async def turn(self, most_tokens: float, most_money: float) -> Sent | None:
        """Wait until a request may be sent; none if there will be no more.

        Args:
            most_tokens: that it may take, prompt and answer; until answers have come this is what is reckoned with.
            most_money: that it may cost.
        """
        while not self.stopped.is_set():
            now = self._clock()
            money = self.affords(most_money)
            if money == "never":
                return None
            tokens = min(most_tokens, self._per_request or most_tokens)
            wait = self.wait(tokens, now) if money == "now" else 0.05
            if wait <= 0:
                sent = Sent(now, tokens, most_money)
                self._recent.append(sent)
                self._last = now
                self._reserved += most_money
                self._under_way += 1
                return sent
            await self.pause(wait)
        return None

    def affords(self, most_money: float) -> Literal["now", "later", "never"]:
        """Whether a request's cost fits into the budget: later perhaps, when those under way took less than they might."""
        if self.budget is None or self.spent + self._reserved + most_money <= self.budget:
            return "now"
        return "later" if self._under_way else "never"

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until the limits let a request of so many tokens go."""
        while self._recent and self._recent[0].at <= now - _WINDOW:
            self._recent.popleft()
        until = self._not_before
        if self._requests is not None:
            allowed = max(1, int(self._requests))
            if len(self._recent) >= allowed:
                until = max(until, self._recent[-allowed].at + _WINDOW)
            if self._requests < 1:
                until = max(until, self._last + _WINDOW / self._requests)
        if self._tokens is not None:
            room = self._tokens - tokens
            used = sum(sent.tokens for sent in self._recent)
            for sent in self._recent:  # the oldest leave first
                if used <= room:
                    break
                used -= sent.tokens
                until = max(until, sent.at + _WINDOW)
        return until - now

    def done(self, sent: Sent, tokens: float, money: float) -> None:
        """A request has come back, having taken so much."""
        self._under_way -= 1
        self._reserved = self._reserved - sent.money if self._under_way else 0.0
        self.spent += money
        sent.tokens = tokens
        if tokens:
            self._per_request = tokens if not self._per_request else 0.9 * self._per_request + 0.1 * tokens

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: the server asked for a pause."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    async def pause(self, seconds: float) -> None:
        """Wait, unless all is stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return
