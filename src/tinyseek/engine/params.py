"""SamplingParams: how one request's tokens are drawn, what is told about them, and when the text ends. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.grammar import Constraint

MOST_TEXTS = 128  # n
MOST_LOGPROBS = 100  # alternatives told a token
MOST_STOPS, LONGEST_STOP = 64, 1024  # stop strings, and characters of one
MOST_BIASES = 1024
LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and when to stop.

    A token's logits are changed in this order: penalties and bias, forbidden tokens (`min_tokens`, `constraint`), temperature,
    top-k, top-p of what top-k left, min-p. Log-probabilities that are told are the model's own, before any of it.

    Raises:
        UserError: a value out of its bounds, NaN included.
    """

    max_tokens: int = 256  # at most this many new tokens; 0 only with prompt_logprobs
    min_tokens: int = 0  # no stop token, and no stop string, before this many
    temperature: float = 0.0  # 0 is greedy: always the likeliest token
    top_k: int | None = None  # draw among the k likeliest
    top_p: float = 1.0  # draw among the likeliest that together hold this much probability (arXiv 1904.09751)
    min_p: float = 0.0  # draw among those at least this share as likely as the likeliest (arXiv 2407.01082)
    repetition_penalty: float = (
        1.0  # logits of tokens in prompt or output: divided by it if positive, else multiplied (CTRL)
    )
    presence_penalty: float = 0.0  # taken from the logit of every token in the output
    frequency_penalty: float = 0.0  # the same, times how often it is there
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> what is added to its logit
    seed: int | None = None  # the same seed draws the same tokens, whatever else the engine does
    stop_ids: frozenset[int] = frozenset()  # tokens that end the text; the one met is not returned
    stop: tuple[str, ...] = ()  # strings that end the text, which is cut before them
    n: int = 1  # how many texts after the one prompt
    logprobs: int | None = None  # tell each token's log-probability, and this many of the likeliest; none for nothing
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    constraint: Constraint | None = None  # the form that the text must have
    ignore_eos: bool = False  # the model's own end tokens do not end the text

    def __post_init__(self) -> None:
        scored = self.prompt_logprobs is not None
        if self.max_tokens < (0 if scored else 1):
            raise UserError(f"max_tokens must be at least {0 if scored else 1}, not {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(f"min_tokens must be between 0 and max_tokens ({self.max_tokens}), not {self.min_tokens}")
        _within("temperature", self.temperature, 0, 100)
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        _within("min_p", self.min_p, 0, 1)
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(f"repetition_penalty must be between 0.01 and 100, not {self.repetition_penalty}")
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if len(self.logit_bias) > MOST_BIASES:
            raise UserError(f"logit_bias names {len(self.logit_bias)} tokens; at most {MOST_BIASES} are taken")
        for token, bias in self.logit_bias.items():
            if token < 0:
                raise UserError(f"logit_bias: {token} is no token")
            _within(f"logit_bias of token {token}", bias, -100, 100)
        if self.seed is not None:
            _within("seed", self.seed, 0, LARGEST_SEED)
        if len(self.stop) > MOST_STOPS:
            raise UserError(f"{len(self.stop)} stop strings; at most {MOST_STOPS} are taken")
        if not all(1 <= len(stop) <= LONGEST_STOP for stop in self.stop):
            raise UserError(f"a stop string has 1 to {LONGEST_STOP} characters")
        _within("n", self.n, 1, MOST_TEXTS)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _within(name, count, 0, MOST_LOGPROBS)

    @property
    def greedy(self) -> bool:
        """Always the likeliest token. So is what a temperature near 0 would give, whose division would overflow."""
        return self.temperature < 1e-5

    @property
    def plain(self) -> bool:
        """Whether logits are used as they are: nothing is added, taken away or forbidden."""
        return not (self.penalised or self.logit_bias or self.min_tokens or self.constraint)

    @property
    def penalised(self) -> bool:
        """Whether what was written before changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _within(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"{name} must be between {least} and {most}, not {value}")
