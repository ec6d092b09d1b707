"""From logits to the next token: greedy, or drawn at a temperature among the likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyseek.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and when to stop."""

    max_tokens: int = 256  # at most this many new tokens
    temperature: float = 0.0  # 0 is greedy: always the likeliest token
    top_k: int | None = None  # draw among the k likeliest
    top_p: float = 1.0  # draw among the likeliest that together hold this much probability (arXiv 1904.09751)
    seed: int | None = None  # the same seed draws the same tokens
    stop_ids: frozenset[int] = frozenset()  # tokens that end the text; the one met is not returned

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature must be between 0 and 100, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")


def sample(logits_BV: Tensor, params: SamplingParams, generator: torch.Generator | None = None) -> Tensor:
    """The next token of each sequence, int64 [B]."""
    if params.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / params.temperature
    if params.top_k is not None and params.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(params.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    probs_BV = logits_BV.softmax(dim=-1)
    if params.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
        before = sorted_BV.cumsum(dim=-1) - sorted_BV  # what the likelier ones hold: the first is always kept
        sorted_BV = sorted_BV.masked_fill(before >= params.top_p, 0.0)
        probs_BV = torch.zeros_like(probs_BV).scatter_(-1, order_BV, sorted_BV)
    return torch.multinomial(probs_BV, 1, generator=generator).squeeze(-1)
