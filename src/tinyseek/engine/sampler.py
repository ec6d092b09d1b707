"""From logits to the next token: greedy, or drawn at a temperature among the likeliest."""

from __future__ import annotations

import torch
from torch import Tensor

from tinyseek.engine.params import SamplingParams

__all__ = ["SamplingParams", "sample"]


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
