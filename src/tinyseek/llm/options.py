"""The settings of a server that answers for us: how long to wait, how often to ask again, what its tokens cost."""

from __future__ import annotations

from pydantic import Field

from tinyseek.settings import Settings


class Prices(Settings):
    """What a server takes for a million tokens. None are built in: they change; write down where and when you read them."""

    prompt: float = Field(0.0, ge=0, description="a million tokens of the prompt that were not cached")
    cached: float | None = Field(
        None, ge=0, description="a million tokens of the prompt from the cache; none for the same"
    )
    completion: float = Field(0.0, ge=0, description="a million tokens of the answer")
    note: str = Field("", description="currency, source and date, to be shown beside the sums")

    def cost(self, prompt: int, cached: int, completion: int) -> float:
        """Of one answer, in the prices' currency."""
        cheap = self.prompt if self.cached is None else self.cached
        return ((prompt - cached) * self.prompt + cached * cheap + completion * self.completion) / 1e6


class RemoteSettings(Settings):
    """How a server is spoken to."""

    key_from: str | None = Field(
        None,
        description="the environment variable that holds the key; if none, DEEPSEEK_API_KEY, OPENAI_API_KEY or TINYSEEK_API_KEY, "
        "by the server",
    )
    connect_seconds: float = Field(10.0, gt=0, description="how long a connection may take")
    first_token_seconds: float = Field(
        300.0, gt=0, description="how long the first token may take; a busy server sends signs of life meanwhile"
    )
    between_tokens_seconds: float = Field(
        60.0, gt=0, description="how long the server may be silent in the middle of an answer"
    )
    retries: int = Field(
        4, ge=0, le=20, description="how often to ask again when the server is busy, broken or unreachable"
    )
    backoff_seconds: float = Field(
        0.5,
        ge=0,
        description="wait before the first retry, doubled for each, half of it by chance; Retry-After goes first",
    )
    longest_wait_seconds: float = Field(
        60.0, ge=0, description="wait at most this long for a retry; a server that asks for more is given up"
    )
    prices: Prices | None = Field(None, description="what tokens cost, to count it")
