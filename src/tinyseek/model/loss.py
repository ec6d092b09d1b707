"""Cross-entropy straight from hidden states, without ever holding the logits of a batch.

A batch of 4,096 tokens over a vocabulary of 6,400 would be 105 MB of logits, written and read several times. Here a block of
rows at a time is multiplied out, turned into its gradient in place and multiplied back while it is still in the processor's
cache. The idea is Liger-Kernel's (arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, block: int) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        # One piece of memory for all blocks: with a vocabulary of 49,152, fresh memory for each cost a fifth of the time.
        memory_nV = hidden_ND.new_empty(min(block, hidden_ND.shape[0]), weight_VD.shape[0], dtype=torch.float32)
        for start in range(0, hidden_ND.shape[0], block):
            rows = slice(start, start + block)
            logits_nV = memory_nV[: hidden_ND[rows].shape[0]]
            if hidden_ND.dtype == torch.float32:
                torch.mm(hidden_ND[rows], weight_VD.T, out=logits_nV)
            else:
                logits_nV.copy_(hidden_ND[rows] @ weight_VD.T)
            target_n1 = targets_N[rows, None]
            top_n1 = logits_nV.amax(-1, keepdim=True)
            picked_n1 = logits_nV.gather(-1, target_n1)
            odds_nV = torch.softmax(logits_nV, -1, out=logits_nV)
            # log sum exp = top - log(odds of the top), which never underflow
            total += (top_n1 - odds_nV.amax(-1, keepdim=True).log() - picked_n1).sum()
            if wants_hidden or wants_weight:
                # d loss / d logits = softmax - one_hot, made in place.
                odds_nV.scatter_add_(-1, target_n1, torch.full_like(picked_n1, -1.0))
                slope_nV = odds_nV.to(hidden_ND.dtype)
                if dhidden_ND is not None:
                    torch.mm(slope_nV, weight_VD, out=dhidden_ND[rows])
                if dweight_VD is not None and dweight_VD.dtype == slope_nV.dtype:
                    dweight_VD.addmm_(slope_nV.T, hidden_ND[rows])
                elif dweight_VD is not None:
                    dweight_VD += slope_nV.T @ hidden_ND[rows]
        ctx.save_for_backward(dhidden_ND, dweight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_ND, dweight_VD = ctx.saved_tensors
        return (
            None if dhidden_ND is None else dhidden_ND * grads[0].to(dhidden_ND.dtype),
            None if dweight_VD is None else (dweight_VD * grads[0]).to(ctx.weight_dtype),
            None,
            None,
        )


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, block: int = 256) -> Tensor:
    """The sum over positions of -log softmax(hidden @ weight^T)[target], float32.

    Args:
        hidden_ND: what the head reads.
        weight_VD: the head.
        targets_N: int64; positions of -100 are left out and cost nothing.
        block: rows worked on at a time; 256 x 6,400 float32 logits are 6.5 MB.
    """
    kept = targets_N != IGNORED
    if not bool(kept.all()):
        index = kept.nonzero().squeeze(-1)
        hidden_ND, targets_N = hidden_ND.index_select(0, index), targets_N.index_select(0, index)
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    elif not weight_VD.requires_grad:  # a frozen head may be held in fewer bits
        weight_VD = weight_VD.to(hidden_ND.dtype)
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, block
    )
    return total


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, block: int) -> tuple[Tensor, Tensor]:
        count = hidden_ND.shape[0]
        logps_N, entropy_N = (torch.empty(count, dtype=torch.float32, device=hidden_ND.device) for _ in range(2))
        memory_nV, other_nV = (
            hidden_ND.new_empty(min(block, count), weight_VD.shape[0], dtype=torch.float32) for _ in range(2)
        )
        for start in range(0, count, block):
            rows = slice(start, start + block)
            logits_nV = _multiplied(hidden_ND[rows], weight_VD, memory_nV)
            odds_nV = other_nV[: logits_nV.shape[0]]
            logp_nV = torch.log_softmax(logits_nV, -1, out=logits_nV)
            logps_N[rows] = logp_nV.gather(-1, targets_N[rows, None]).squeeze(-1)
            # 0 log 0 = 0 here: what underflows to 0 still has a finite logarithm.
            torch.exp(logp_nV, out=odds_nV)
            entropy_N[rows] = -odds_nV.mul_(logp_nV).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.block = block
        ctx.mark_non_differentiable(entropy_N)
        return logps_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        memory_nV = hidden_ND.new_empty(min(ctx.block, hidden_ND.shape[0]), weight_VD.shape[0], dtype=torch.float32)
        for start in range(0, hidden_ND.shape[0], ctx.block):
            rows = slice(start, start + ctx.block)
            logits_nV = _multiplied(hidden_ND[rows], weight_VD, memory_nV)
            # d logp / d logits = one_hot - softmax, each row times what came back for it, made in place.
            grad_n1 = grads[0][rows, None].float()
            slope_nV = torch.softmax(logits_nV, -1, out=logits_nV).mul_(-grad_n1)
            slope_nV.scatter_add_(-1, targets_N[rows, None], grad_n1)
            slope_nV = slope_nV.to(hidden_ND.dtype)
            if dhidden_ND is not None:
                torch.mm(slope_nV, weight_VD, out=dhidden_ND[rows])
            if dweight_VD is not None and dweight_VD.dtype == slope_nV.dtype:
                dweight_VD.addmm_(slope_nV.T, hidden_ND[rows])
            elif dweight_VD is not None:
                dweight_VD += slope_nV.T @ hidden_ND[rows]
        return dhidden_ND, None if dweight_VD is None else dweight_VD.to(weight_VD.dtype), None, None


def _multiplied(hidden_nD: Tensor, weight_VD: Tensor, memory_nV: Tensor) -> Tensor:
    """A block's logits, float32, in memory that is there."""
    logits_nV = memory_nV[: hidden_nD.shape[0]]
    if hidden_nD.dtype == torch.float32:
        return torch.mm(hidden_nD, weight_VD.T, out=logits_nV)
    return logits_nV.copy_(hidden_nD @ weight_VD.T)


def token_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0, block: int = 256
) -> tuple[Tensor, Tensor]:
    """The log-probability of each position's target, and the entropy of what was to choose from, in nats; float32 [N] both.

    Both are of softmax(hidden @ weight^T / temperature). The first can be differentiated, the second is told only. A block's logits
    are made again in the backward pass, so that memory holds no more than one block's, whatever the batch.

    Args:
        hidden_ND: what the head reads.
        weight_VD: the head.
        targets_N: int64; positions of -100 cost nothing and give 0 and 0.
        block: rows worked on at a time; 256 x 6,400 float32 logits are 6.5 MB.
    """
    count, kept = hidden_ND.shape[0], targets_N != IGNORED
    index = None
    if not bool(kept.all()):
        index = kept.nonzero().squeeze(-1)
        hidden_ND, targets_N = hidden_ND.index_select(0, index), targets_N.index_select(0, index)
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    elif not weight_VD.requires_grad:  # a frozen head may be held in fewer bits
        weight_VD = weight_VD.to(hidden_ND.dtype)
    if temperature != 1:  # of the hidden states, which are fewer than the logits
        hidden_ND = hidden_ND / temperature
    logps_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, block
    )
    if index is not None:
        logps_N = logps_N.new_zeros(count).index_copy(0, index, logps_N)
        entropy_N = entropy_N.new_zeros(count).index_copy(0, index, entropy_N)
    return logps_N, entropy_N
