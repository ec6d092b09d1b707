"""How far a student's probabilities are from its teacher's, and the gradient of that, without ever holding a batch's logits.

    forward_kl   sum p (log p - log q)          the student covers all that the teacher might say (Hinton et al., arXiv 1503.02531)
    reverse_kl   sum q (log q - log p)          the student says what the teacher would (MiniLLM, arXiv 2306.08543)
    jsd          b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q                  (GKD, arXiv 2306.13649, eq. 1)

p is the teacher's distribution, q the student's, both of softmax(logits / T). With the logits s of the student,

    d KL(p || q) / ds = (q - p) / T      d KL(q || p) / ds = q (log q - log p - KL(q || p)) / T
    d JSD / ds = (1 - b) q (h - <q, h>) / T,   h = log q - log m

Of a teacher whose K likeliest tokens were kept, all others make one outcome of their own: the divergence over K + 1 outcomes, which
is never more than the whole one, and 0 where that is. The gradient of the one outcome goes to its tokens by their shares.

Letters: n rows of a block, J outcomes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Name = Literal["forward_kl", "reverse_kl", "jsd"]
_LEAST = -60.0  # log-probability of all other tokens together, where there are none; its share of anything is 1e-26

_UNKNOWN = (
    -30.0
)  # log-probability of what stands in the student's vocabulary alone: filling, of which there is no token


@dataclass(frozen=True)
class How:
    """What is measured, and how it is mixed with cross-entropy."""

    name: Name = "forward_kl"
    beta: float = 0.5  # jsd
    temperature: float = 1.0
    ce_weight: float = 0.0


@dataclass(frozen=True)
class Whole:
    """A teacher at hand: its logits are hidden @ weight^T."""

    hidden_NE: Tensor
    weight_VE: Tensor


@dataclass(frozen=True)
class Likeliest:
    """What was kept of a teacher: its K likeliest tokens at each position, the likeliest first, at the temperature."""

    ids_NK: Tensor
    logps_NJ: Tensor  # of these, and of all others together


@dataclass(frozen=True)
class Sums:
    """Over positions."""

    total: Tensor  # to differentiate: (1 - ce_weight) T^2 divergence + ce_weight cross-entropy
    divergence: Tensor
    cross_entropy: Tensor
    agreed: Tensor  # positions at which both have the same likeliest token


def divergence(logp_NJ: Tensor, logq_NJ: Tensor, name: Name, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """The divergence of each row, and q times its gradient by q's logits' outcomes.

    Args:
        logp_NJ: the teacher's log-probabilities, finite.
        logq_NJ: the student's.
    Returns:
        Values [N], and slopes [N, J]: the derivatives by the logits (over the temperature) that q is the softmax of.
    """
    q_NJ = logq_NJ.exp()
    if name == "forward_kl":
        p_NJ = logp_NJ.exp()
        return (p_NJ * (logp_NJ - logq_NJ)).sum(-1), q_NJ - p_NJ
    if name == "reverse_kl":
        apart_NJ = logq_NJ - logp_NJ
        value_N = (q_NJ * apart_NJ).sum(-1)
        return value_N, q_NJ * (apart_NJ - value_N[:, None])
    logm_NJ = torch.logaddexp(logp_NJ + math.log(beta), logq_NJ + math.log1p(-beta))
    from_q_NJ = logq_NJ - logm_NJ
    mean_N = (q_NJ * from_q_NJ).sum(-1)
    value_N = beta * (logp_NJ.exp() * (logp_NJ - logm_NJ)).sum(-1) + (1 - beta) * mean_N
    return value_N, (1 - beta) * q_NJ * (from_q_NJ - mean_N[:, None])


def likeliest(logits_nV: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """A teacher's `count` likeliest tokens [n, K], and their log-probabilities with that of all others together [n, K + 1]."""
    logp_nV = torch.log_softmax(logits_nV.float() / temperature, -1)
    top_nK = logp_nV.topk(count, dim=-1)
    return top_nK.indices, torch.cat((top_nK.values, _others(logp_nV, top_nK.indices)[:, None]), -1)


def _others(logp_nV: Tensor, ids_nK: Tensor) -> Tensor:
    """The log-probability of all tokens but these together, [n]."""
    return logp_nV.scatter(-1, ids_nK, -math.inf).logsumexp(-1).clamp(min=_LEAST)


def _against(logq_nV: Tensor, teacher: Whole | Likeliest, rows: slice, how: How) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block: the divergence [n], its slope by the student's logits [n, V], and the teacher's likeliest token [n]."""
    if isinstance(teacher, Whole):
        said_nV = (teacher.hidden_NE[rows] @ teacher.weight_VE.T).float()
        logp_nV = torch.log_softmax(said_nV / how.temperature, -1)
        if logp_nV.shape[1] < logq_nV.shape[1]:
            logp_nV = F.pad(logp_nV, (0, logq_nV.shape[1] - logp_nV.shape[1]), value=_UNKNOWN)
        value_n, slope_nV = divergence(logp_nV, logq_nV, how.name, how.beta)
        return value_n, slope_nV / how.temperature, said_nV.argmax(-1)
    ids_nK, logp_nJ = teacher.ids_NK[rows].long(), teacher.logps_NJ[rows].float().clamp(min=_LEAST)
    others_n = _others(logq_nV, ids_nK)
    logq_nJ = torch.cat((logq_nV.gather(-1, ids_nK), others_n[:, None]), -1)
    value_n, slope_nJ = divergence(logp_nJ, logq_nJ, how.name, how.beta)
    slope_nV = logq_nV.exp() * (slope_nJ[:, -1] / others_n.exp())[:, None]  # by their shares
    slope_nV.scatter_(-1, ids_nK, slope_nJ[:, :-1])
    return value_n, slope_nV / how.temperature, ids_nK[:, 0]


class _Distil(torch.autograd.Function):
    """Block by block: logits, their slope in closed form, and that multiplied back while it is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        teacher: Whole | Likeliest,
        how: How,
        block: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        sums = torch.zeros(3, dtype=torch.float32, device=hidden_ND.device)
        share = (1 - how.ce_weight) * how.temperature**2
        for start in range(0, hidden_ND.shape[0], block):
            rows = slice(start, start + block)
            logits_nV = (hidden_ND[rows] @ weight_VD.T).float()
            targets_n1 = targets_N[rows, None]
            logp_nV = torch.log_softmax(logits_nV, -1)
            same = how.temperature == 1
            logq_nV = logp_nV if same else torch.log_softmax(logits_nV / how.temperature, -1)
            apart_n, slope_nV, likeliest_n = _against(logq_nV, teacher, rows, how)
            entropy = -logp_nV.gather(-1, targets_n1).sum()
            sums += torch.stack((apart_n.sum(), entropy, (logits_nV.argmax(-1) == likeliest_n).sum().float()))
            if not (wants_hidden or wants_weight):
                continue
            slope_nV = slope_nV.mul_(share)
            if how.ce_weight:
                slope_nV.add_(logp_nV.exp_(), alpha=how.ce_weight)
                slope_nV.scatter_add_(-1, targets_n1, slope_nV.new_full(targets_n1.shape, -how.ce_weight))
            slope_nV = slope_nV.to(hidden_ND.dtype)
            if dhidden_ND is not None:
                torch.mm(slope_nV, weight_VD, out=dhidden_ND[rows])
            if dweight_VD is not None:
                dweight_VD += slope_nV.T @ hidden_ND[rows]
        ctx.save_for_backward(dhidden_ND, dweight_VD)
        ctx.weight_dtype = weight_VD.dtype
        apart, entropy, agreed = sums.unbind()
        total = share * apart + how.ce_weight * entropy
        apart, entropy, agreed = apart.clone(), entropy.clone(), agreed.clone()
        ctx.mark_non_differentiable(apart, entropy, agreed)
        return total, apart, entropy, agreed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_ND, dweight_VD = ctx.saved_tensors
        return (
            None if dhidden_ND is None else dhidden_ND * grads[0].to(dhidden_ND.dtype),
            None if dweight_VD is None else (dweight_VD * grads[0]).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


def distil(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, teacher: Whole | Likeliest, how: How, block: int = 256
) -> Sums:
    """The divergence of a student from its teacher over N positions, mixed with cross-entropy.

    Args:
        hidden_ND: what the student's head reads.
        weight_VD: its head.
        targets_N: the tokens of the data.
        teacher: what it says at the same positions, over the same tokens, or the first of them.
        block: rows worked on at a time; 256 x 6,400 float32 logits are 6.5 MB, of which some five are held.
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        if isinstance(teacher, Whole):
            teacher = Whole(teacher.hidden_NE.to(dtype), teacher.weight_VE.to(dtype))
    elif not weight_VD.requires_grad:  # a frozen head may be held in fewer bits
        weight_VD = weight_VD.to(hidden_ND.dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return Sums(
            *_Distil.apply(  # type: ignore[no-untyped-call]
                hidden_ND, weight_VD, targets_N, teacher, how, block
            )
        )


def plain(
    student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, how: How, kept: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same straight from logits, differentiated by torch: what `distil` is held against.

    Args:
        kept: how many of the teacher's likeliest tokens stand for themselves; none for all.
    Returns:
        Sums over positions: total, divergence, cross-entropy.
    """
    logq_NJ = torch.log_softmax(student_NV / how.temperature, -1)
    logp_NJ = torch.log_softmax(teacher_NV / how.temperature, -1)
    if kept is not None:
        ids_NK = logp_NJ.topk(kept, dim=-1).indices

        def outcomes(logps_NV: Tensor) -> Tensor:
            others_N = logps_NV.scatter(-1, ids_NK, -math.inf).logsumexp(-1)
            return torch.cat((logps_NV.gather(-1, ids_NK), others_N[:, None]), -1)

        logq_NJ, logp_NJ = outcomes(logq_NJ), outcomes(logp_NJ)
    p_NJ, q_NJ = logp_NJ.exp(), logq_NJ.exp()
    if how.name == "forward_kl":
        apart = (p_NJ * (logp_NJ - logq_NJ)).sum()
    elif how.name == "reverse_kl":
        apart = (q_NJ * (logq_NJ - logp_NJ)).sum()
    else:
        logm_NJ = (how.beta * p_NJ + (1 - how.beta) * q_NJ).log()
        apart = (how.beta * p_NJ * (logp_NJ - logm_NJ) + (1 - how.beta) * q_NJ * (logq_NJ - logm_NJ)).sum()
    entropy = F.cross_entropy(student_NV, targets_N, reduction="sum")
    return (1 - how.ce_weight) * how.temperature**2 * apart + how.ce_weight * entropy, apart, entropy
