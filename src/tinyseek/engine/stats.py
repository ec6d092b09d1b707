"""What an engine tells of itself: Stats, a picture of one moment; and Meter, which counts on the way."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyseek.engine.request import Request

RECENT_SECONDS = 10.0


@dataclass(frozen=True)
class Stats:
    """What an engine is doing and has done. Counts are since it was made."""

    running: int = 0  # texts being written
    waiting: int = 0  # texts whose turn has not come
    blocks: int = 0  # of the cache
    blocks_used: int = 0  # held by running texts
    blocks_cached: int = 0  # held by none, but kept for prompts that begin alike
    block_size: int = 0  # tokens
    bytes_per_token: int = 0  # of cache
    requests: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # texts by why they ended
    prompt_tokens: int = 0  # of all requests
    cached_tokens: int = 0  # of these, how many the prefix cache saved
    generated_tokens: int = 0
    preemptions: int = 0
    drafted: int = 0  # tokens guessed ahead
    accepted: int = 0  # of these, how many were right
    tokens_per_second: float = 0.0  # generated, over the last ten seconds
    first_token_count: int = 0  # requests whose first token came
    first_token_seconds: float = 0.0  # summed over these, from submission
    first_token_recent: tuple[float, ...] = ()  # seconds, of the last thousand


class Meter:
    """Counts, written by whoever steps the engine."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.generated_tokens = 0
        self.drafted = self.accepted = 0
        self.finished: Counter[str] = Counter()
        self.first_token_count, self.first_token_seconds = 0, 0.0
        self._first_recent: deque[float] = deque(maxlen=1000)
        self._recent: deque[tuple[float, int]] = deque()  # when, how many tokens

    def drawn(self, requests: Iterable[Request]) -> None:
        """Note that a token was drawn for each of these."""
        now, count = time.monotonic(), 0
        for request in requests:
            if not request.generated_tokens:
                waited = now - request.submitted
                self.first_token_count += 1
                self.first_token_seconds += waited
                self._first_recent.append(waited)
            request.generated_tokens += 1
            count += 1
        self.generated_tokens += count
        self._recent.append((now, count))
        while self._recent[0][0] < now - RECENT_SECONDS:
            self._recent.popleft()

    @property
    def first_token_recent(self) -> tuple[float, ...]:
        """Seconds to the first token, of the last thousand requests."""
        return tuple(self._first_recent.copy())

    @property
    def tokens_per_second(self) -> float:
        """Tokens drawn a second, over the last ten."""
        since = time.monotonic() - RECENT_SECONDS
        return sum(count for when, count in self._recent.copy() if when >= since) / RECENT_SECONDS
