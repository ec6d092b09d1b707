"""Products with weights that stay as they are: no gradient for the weight, one for what comes in and for a low-rank change of it.

Nothing of the weight is kept for the backward: a packed one is widened again, so that a model in 4 bits never stands there in 32.
With a change the product is with W + scale * B A. Two forms of it, equal in exact arithmetic:

    folded   x (W + scale B A)^T            one product; the change costs a pass over the weight. For float32, and many rows
    apart    x W^T + scale (x A^T) B^T      two thin products; a small B A is not lost in the rounding of a bfloat16 W

Every product is over rows that are sorted by expert, one weight an expert; a linear layer is one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.moe import Experts
from tinyseek.model.packed import Format, PackedWeight
from tinyseek.model.transformer import CausalLM

FEW = 64  # rows up to which two thin products are cheaper than three passes over the weight

Dense = Callable[[int], Tensor]  # the weight [P, Q] of an expert, in whatever format


@dataclass(frozen=True)
class Low:
    """A low-rank change of E weights [P, Q], as `product` takes it."""

    a_ERQ: Tensor
    b_EPR: Tensor
    magnitude_EP: Tensor | None  # DoRA (arXiv 2402.09353): the length of each row of the changed weight
    scale: float
    dropout: float = 0.0  # of what enters A


def changed(
    weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """W + scale B A, and what DoRA multiplies its rows by: magnitude over their length, which has no gradient (section 4.3).

    Args:
        weight: [..., P, Q]; a: [..., R, Q]; b: [..., P, R]; magnitude: [..., P].
    """
    sum_ = weight + scale * (b @ a) if weight.ndim > 2 else torch.addmm(weight, b, a, alpha=scale)
    return sum_, None if magnitude is None else magnitude / sum_.detach().norm(dim=-1)


class _Frozen(torch.autograd.Function):
    """x W^T, of which nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x_MQ: Tensor, dense: Dense, counts: list[int], width: int) -> Tensor:
        ctx.dense, ctx.counts = dense, counts
        out_MP = x_MQ.new_empty(x_MQ.shape[0], width)
        for expert, rows in _slices(counts):
            torch.mm(x_MQ[rows], dense(expert).to(x_MQ.dtype).T, out=out_MP[rows])
        return out_MP

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout_MP,) = grads
        parts = [dout_MP[rows] @ ctx.dense(expert).to(dout_MP.dtype) for expert, rows in _slices(ctx.counts)]
        return parts[0] if len(parts) == 1 else torch.cat(parts), None, None, None


class _Changed(torch.autograd.Function):
    """x (W + scale B A)^T, each row of the weight at its length if there is a magnitude. What is kept is x."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MQ: Tensor,
        a_ERQ: Tensor,
        b_EPR: Tensor,
        magnitude_EP: Tensor | None,
        mask_MQ: Tensor | None,
        dense: Dense,
        counts: list[int],
        scale: float,
    ) -> Tensor:
        wide = x_MQ.dtype in (torch.float32, torch.float64)
        ctx.folded = wide and mask_MQ is None and x_MQ.shape[0] > FEW * len(counts)
        ctx.dense, ctx.counts, ctx.scale = dense, counts, scale
        out_MP = x_MQ.new_empty(x_MQ.shape[0], b_EPR.shape[1])
        for expert, rows in _slices(counts):
            x, out = x_MQ[rows], out_MP[rows]
            weight, gain = _weight(ctx, expert, x.dtype, a_ERQ, b_EPR, magnitude_EP)
            torch.mm(x, weight.T, out=out)
            if not ctx.folded:
                seen = x if mask_MQ is None else x * mask_MQ[rows]
                out.addmm_(seen @ a_ERQ[expert].T, b_EPR[expert].T, alpha=scale)
            if gain is not None:
                out *= gain
        ctx.save_for_backward(x_MQ, a_ERQ, b_EPR, magnitude_EP, mask_MQ, None if magnitude_EP is None else out_MP)
        return out_MP

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_MQ, a_ERQ, b_EPR, magnitude_EP, mask_MQ, out_MP = ctx.saved_tensors
        scale, (dout_MP,) = ctx.scale, grads
        dx_MQ = torch.empty_like(x_MQ) if ctx.needs_input_grad[0] else None
        da_ERQ, db_EPR = torch.zeros_like(a_ERQ), torch.zeros_like(b_EPR)
        dmagnitude_EP = None if magnitude_EP is None else torch.zeros_like(magnitude_EP)
        for expert, rows in _slices(ctx.counts):
            x, dout, a, b = x_MQ[rows], dout_MP[rows], a_ERQ[expert], b_EPR[expert]
            weight = gain = None
            if dx_MQ is not None or magnitude_EP is not None:
                weight, gain = _weight(ctx, expert, x.dtype, a_ERQ, b_EPR, magnitude_EP)
            if dmagnitude_EP is not None:
                dmagnitude_EP[expert] = (dout * out_MP[rows]).sum(0) / magnitude_EP[expert]
            if gain is not None:
                dout = dout * gain
            seen = x if mask_MQ is None else x * mask_MQ[rows]
            du_MR = dout @ (b * scale)
            torch.mm(du_MR.T, seen, out=da_ERQ[expert])
            db_EPR[expert] = ((seen @ a.T).T @ dout).T * scale  # this way round the thin product is twice as fast
            if dx_MQ is not None:
                assert weight is not None
                torch.mm(dout, weight, out=dx_MQ[rows])
                if not ctx.folded:
                    through = du_MR @ a
                    dx_MQ[rows] += through if mask_MQ is None else through * mask_MQ[rows]
        return dx_MQ, da_ERQ, db_EPR, dmagnitude_EP, None, None, None, None


def _weight(
    ctx: Any, expert: int, dtype: torch.dtype, a_ERQ: Tensor, b_EPR: Tensor, magnitude_EP: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What x is multiplied with: the changed weight where it is folded, else the frozen one; and the gain of its rows."""
    weight: Tensor = ctx.dense(expert).to(dtype)
    if not ctx.folded and magnitude_EP is None:
        return weight, None
    magnitude = None if magnitude_EP is None else magnitude_EP[expert]
    sum_, gain = changed(weight, a_ERQ[expert], b_EPR[expert], magnitude, ctx.scale)
    return (sum_ if ctx.folded else weight), (None if gain is None else gain.to(dtype))


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """Each expert that has rows, and which they are."""
    out, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            out.append((expert, slice(start, start + count)))
        start += count
    return out


def product(x_MQ: Tensor, dense: Dense, counts: list[int], width: int, low: Low | None = None) -> Tensor:
    """Rows of each expert's slice times its frozen weight, changed or not: [M, width].

    Args:
        x_MQ: rows, sorted by expert.
        dense: the weight of an expert; called again in the backward.
        counts: rows of each expert.
        width: P, the length of an output row.
        low: the change, with gradients for its A, B and magnitude. Dropout falls on what enters A alone.
    """
    if torch.is_autocast_enabled(x_MQ.device.type):
        x_MQ = x_MQ.to(torch.get_autocast_dtype(x_MQ.device.type))
    out: Tensor
    if low is None:
        out = _Frozen.apply(x_MQ, dense, counts, width)  # type: ignore[no-untyped-call]
        return out
    a, b = low.a_ERQ.to(x_MQ.dtype), low.b_EPR.to(x_MQ.dtype)
    mask = None
    if low.dropout:
        mask = (torch.rand(x_MQ.shape, device=x_MQ.device) >= low.dropout).to(x_MQ.dtype) / (1 - low.dropout)
    out = _Changed.apply(  # type: ignore[no-untyped-call]
        x_MQ, a, b, low.magnitude_EP, mask, dense, counts, low.scale
    )
    return out


# ---- a base held in few bits -----------------------------------------------------------------------------------------------------


class FrozenLinear(PackedWeight):
    """A linear layer over a packed weight, with a gradient for what comes in."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        super().__init__(linear.weight, format)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight as float32, made anew at each call."""
        return self.dense()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = product(rows, lambda _: self.dense(), [rows.shape[0]], self.out_features)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.view(*x.shape[:-1], -1)


class FrozenEmbedding(nn.Module):
    """An embedding that reads its rows out of a packed weight: the output head's, where the two are tied."""

    def __init__(self, weight: PackedWeight, shared: bool) -> None:
        super().__init__()
        self.own = None if shared else weight
        self._weight = [weight]  # in a list, so that the head stays the only owner of a shared one

    @property
    def weight(self) -> Tensor:
        return self._weight[0].dense()

    def forward(self, ids: Tensor) -> Tensor:
        return self._weight[0].rows(ids.flatten()).view(*ids.shape, -1)


class FrozenExperts(nn.Module):
    """The routed experts over packed stacks (moe.Experts): each expert that a token visits is widened for its visit."""

    def __init__(self, experts: Experts, format: Format) -> None:
        super().__init__()
        self.gate_up = PackedWeight(experts.gate_up_proj, format)
        self.down = PackedWeight(experts.down_proj, format)

    @property
    def gate_up_proj(self) -> Tensor:
        """The stack [E, 2I, D] as float32, made anew at each call."""
        return self.gate_up.dense()

    @property
    def down_proj(self) -> Tensor:
        """The stack [E, D, I] as float32, made anew at each call."""
        return self.down.dense()

    def forward(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The weighted sum of each token's experts, [N, D]."""
        return visit(
            x_ND,
            chosen_NA,
            weights_NA,
            self.gate_up.shape[0],
            lambda x_MD, counts: product(x_MD, self.gate_up.dense, counts, self.gate_up.shape[1]),
            lambda x_MI, counts: product(x_MI, self.down.dense, counts, self.down.shape[1]),
        )

    def few(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The same; here a handful of tokens is no special case."""
        out_ND: Tensor = self(x_ND, chosen_NA, weights_NA)
        return out_ND


Grouped = Callable[[Tensor, list[int]], Tensor]  # rows sorted by expert, rows of each -> their products


def visit(x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor, experts: int, gate_up: Grouped, down: Grouped) -> Tensor:
    """What `moe.Experts` computes, by two products of rows that are sorted by expert."""
    active = chosen_NA.shape[1]
    order_M = chosen_NA.flatten().argsort(stable=True)
    counts = torch.bincount(chosen_NA.flatten(), minlength=experts).tolist()
    gate_MI, up_MI = gate_up(x_ND.index_select(0, order_M // active), counts).chunk(2, dim=-1)
    out_MD = down(F.silu(gate_MI) * up_MI, counts)
    visits_NAD = out_MD.index_select(0, order_M.argsort()).unflatten(0, (-1, active))
    return torch.einsum("nad,na->nd", visits_NAD, weights_NA.to(visits_NAD.dtype)).to(x_ND.dtype)


@torch.no_grad()
def pack_base(model: CausalLM, format: Format, keep: Collection[str] = ()) -> None:
    """Hold a model's large matrices in few bits, one after the other so that memory only falls. They are frozen then.

    int8 and int4 are for the matrices of the blocks; embedding and output head, whose errors reach the text unsmoothed, keep 16
    bits beside them, as in QLoRA (arXiv 2305.14314).

    Args:
        keep: names of modules that stay as they are.
    """
    for name, module in list(model.named_modules()):
        for child, layer in list(module.named_children()):
            if f"{name}.{child}" in keep or module is model:
                continue
            if isinstance(layer, nn.Linear):
                setattr(module, child, FrozenLinear(layer, format))
            elif isinstance(layer, Experts):
                setattr(module, child, FrozenExperts(layer, format))
    ends: Format = "bfloat16" if format in ("int8", "int4") else format
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    embedding = model.model.embed_tokens.weight
    head = model.lm_head if "lm_head" in keep else FrozenLinear(model.lm_head, ends)
    model.lm_head = head  # type: ignore[assignment]
    if "model.embed_tokens" not in keep:
        shared = tied and isinstance(head, FrozenLinear)
        weight = head if shared else PackedWeight(embedding, ends)
        model.model.embed_tokens = FrozenEmbedding(weight, shared)  # type: ignore[assignment, arg-type]
