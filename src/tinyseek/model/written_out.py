"""A block over frozen weights, forward and backward written out: what a low-rank change is trained through on a CPU.

Autograd's pieces write every intermediate of a batch to memory and read it back, several times over. Here rows go through a half
of the block (norm, products, what lies between, residual) in tiles that stay in the processor's caches, and three things besides
save work: matrices that read the same rows are one; a change's thin products ride along in the large ones as a few more columns;
and only the half's input and its first product are kept, in memory that goes from step to step; the rest is made again. For
float32 rows of a dense block with rotary attention and a SwiGLU MLP; whatever else there is goes by autograd. A test holds the
two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.attention import Attention, Context
from tinyseek.model.block import Block
from tinyseek.model.documents import Documents
from tinyseek.model.frozen import FEW, FrozenLinear
from tinyseek.model.layers import MLP, RMSNorm

TILE, STRIP = (
    1024,
    256,
)  # rows of a product at a time, large enough for its speed; of what is done number by number, in a core's cache


# ---- matrices that read the same rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A frozen matrix [P, Q] and its change W + scale * B A, if it has one."""

    weight: Callable[[], Tensor]  # in whatever format
    bias: Tensor | None
    rows: int
    a_RQ: Tensor | None
    b_PR: Tensor | None
    scale: float

    @property
    def rank(self) -> int:
        return 0 if self.a_RQ is None else self.a_RQ.shape[0]


def matrix_of(layer: nn.Module) -> Matrix | None:
    """A linear layer as a `Matrix`; none where it is trained whole, or changed in a way that is not only low-rank."""
    base = getattr(layer, "base", layer)
    if not isinstance(base, nn.Linear | FrozenLinear) or any(p.requires_grad for p in base.parameters()):
        return None
    weight = partial(_as_held, base)
    change = getattr(layer, "change", None)
    if change is None:
        return Matrix(weight, base.bias, base.out_features, None, None, 0.0)
    low = change.low()
    if low.magnitude_EP is not None or low.dropout:
        return None
    return Matrix(weight, base.bias, base.out_features, low.a_ERQ.squeeze(0), low.b_EPR.squeeze(0), low.scale)


def _as_held(layer: nn.Linear | FrozenLinear) -> Tensor:
    """A weight in whatever format can be copied into float32 at once."""
    if isinstance(layer, FrozenLinear):
        return layer.parts[0] if layer.count == 1 else layer.weight
    return layer.weight.detach()


class Stack:
    """Matrices [P1, Q], [P2, Q] ... one below the other: P rows in all, and R rows of A in all."""

    def __init__(self, matrices: list[Matrix]) -> None:
        self.matrices = matrices
        self.rows, self.ranks = sum(m.rows for m in matrices), sum(m.rank for m in matrices)
        biases = [m.bias if m.bias is not None else torch.zeros(m.rows) for m in matrices]
        self.bias = torch.cat(biases) if any(m.bias is not None for m in matrices) else None

    def lows(self) -> list[Tensor]:
        """A and B of every change, in order."""
        return [part for m in self.matrices for part in (m.a_RQ, m.b_PR) if part is not None]

    def _places(self, lows: list[Tensor]) -> Iterator[tuple[Matrix, slice, slice, Tensor | None, Tensor | None]]:
        """Each matrix, its rows, its rows of A, and its A and B out of `lows`."""
        row = rank = at = 0
        for matrix in self.matrices:
            a, b = (lows[at], lows[at + 1]) if matrix.rank else (None, None)
            yield matrix, slice(row, row + matrix.rows), slice(rank, rank + matrix.rank), a, b
            row, rank, at = row + matrix.rows, rank + matrix.rank, at + 2 * bool(matrix.rank)

    def forwards(self, x: Tensor, lows: list[Tensor]) -> Tensor:
        """[P + R, Q]: the changed weights, then every A; x times it is the output, and beside it what B reads."""
        out = x.new_empty(self.rows + self.ranks, x.shape[-1])
        for matrix, rows, ranks, a, b in self._places(lows):
            out[rows] = matrix.weight()
            if a is not None and b is not None:
                out[rows].addmm_(b, a, alpha=matrix.scale)
                out[self.rows + ranks.start : self.rows + ranks.stop] = a
        return out

    def backwards(self, x: Tensor, lows: list[Tensor], for_x: bool = True) -> Tensor:
        """[P, Q + R]: the changed weights and, beside them, scale * B; a gradient times it is that of x, and that of A x.

        Args:
            for_x: without, only the R columns.
        """
        width = x.shape[-1] if for_x else 0
        out = x.new_zeros(self.rows, width + self.ranks)
        for matrix, rows, ranks, a, b in self._places(lows):
            if for_x:
                out[rows, :width] = matrix.weight()
            if a is not None and b is not None:
                torch.mul(b, matrix.scale, out=out[rows, width + ranks.start : width + ranks.stop])
                if for_x:
                    out[rows, :width].addmm_(b, a, alpha=matrix.scale)
        return out


class Slopes:
    """The gradients of a stack's changes, added up tile by tile."""

    def __init__(self, stack: Stack, x: Tensor) -> None:
        self.stack = stack
        self.a_RQ, self.b_RP = x.new_zeros(stack.ranks, x.shape[-1]), x.new_zeros(stack.ranks, stack.rows)

    def add(self, x: Tensor, ax: Tensor, dout: Tensor, dax: Tensor) -> None:
        """Some rows': x, A x, the gradient of the output and that of A x."""
        self.inner(x, dax)
        self.outer(ax, dout)

    def inner(self, x: Tensor, dax: Tensor) -> None:
        """Those of A."""
        if self.stack.ranks:
            self.a_RQ.addmm_(dax.T, x)

    def outer(self, ax: Tensor, dout: Tensor) -> None:
        """Those of B, and what would lie between the changes: one product is faster than several thinner ones."""
        if self.stack.ranks:
            self.b_RP.addmm_(ax.T, dout)

    def parts(self, lows: list[Tensor]) -> list[Tensor]:
        """In the order of `Stack.lows`."""
        out = []
        for matrix, rows, ranks, a, _ in self.stack._places(lows):
            if a is not None:
                out += [self.a_RQ[ranks], self.b_RP[ranks, rows].T * matrix.scale]
        return out


class Pool:
    """Memory that goes from one step's forward to the next one's: fresh pages cost up to a third of a step's time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, rows: int, width: int, like: Tensor) -> Tensor:
        """[rows, width] of nothing in particular."""
        fitting = [flat for flat in self._free if flat.numel() >= rows * width]
        flat = min(fitting, key=Tensor.numel, default=None)
        if flat is not None:
            self._free = [other for other in self._free if other is not flat]
        elif self._free:  # all too small; one goes for the larger one that comes
            self._free.pop()
        flat = like.new_empty(rows * width) if flat is None else flat
        return flat[: rows * width].view(rows, width)

    def give(self, tensor: Tensor) -> None:
        """Take back what `take` gave."""
        base = tensor._base
        self._free.append(tensor.detach() if base is None else base.detach())


# ---- the norm --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """A frozen RMSNorm."""

    weight_D: Tensor
    eps: float

    def inverse(self, x: Tensor) -> Tensor:
        """1 / root mean square of each row."""
        return x.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()

    def of(self, x: Tensor, inverse: Tensor) -> Tensor:
        return (x * inverse).mul_(self.weight_D)

    def backward(self, dout: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """The gradient of x."""
        normed, slope = x * inverse, dout * self.weight_D
        share = (slope * normed).mean(-1, keepdim=True)
        return slope.addcmul_(normed, share, value=-1.0).mul_(inverse)


def _tiles(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


# ---- the MLP ---------------------------------------------------------------------------------------------------------------------


class _GatedMLP(torch.autograd.Function):
    """x + down(silu(gate n) * up n) with n the normed x. Kept: x, 1 / rms, gate n and up n."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, norm: Norm, first: Stack, down: Stack, pool: Pool, *lows: Tensor) -> Tensor:
        split = len(first.lows())
        inner = first.rows // 2
        first_w = first.forwards(x_ND, list(lows[:split]))
        down_w = down.forwards(x_ND.new_empty(0, inner), list(lows[split:]))
        rows, width = x_ND.shape
        inside_NP = pool.take(rows, first.rows + first.ranks, x_ND)
        out_ND, seen_NR = torch.empty_like(x_ND), x_ND.new_empty(rows, down.ranks)
        inverse_N1 = x_ND.new_empty(rows, 1)
        active_TI = x_ND.new_empty(min(TILE, rows), inner)
        for tile in _tiles(rows, TILE):
            x, inside = x_ND[tile], inside_NP[tile]
            inverse_N1[tile] = norm.inverse(x)
            torch.mm(norm.of(x, inverse_N1[tile]), first_w.T, out=inside)
            if first.bias is not None:
                inside[:, : first.rows] += first.bias
            for strip in _tiles(len(x), STRIP):
                torch.mul(F.silu(inside[strip, :inner]), inside[strip, inner : 2 * inner], out=active_TI[strip])
            product = active_TI[: len(x)] @ down_w.T
            torch.add(x, product[:, :width], out=out_ND[tile])
            if down.bias is not None:
                out_ND[tile] += down.bias
            seen_NR[tile] = product[:, width:]
        ctx.norm, ctx.first, ctx.down, ctx.split, ctx.pool, ctx.inside = norm, first, down, split, pool, inside_NP
        ctx.save_for_backward(x_ND, inverse_N1, seen_NR, *lows)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, inverse_N1, seen_NR, *lows = ctx.saved_tensors
        norm, first, down, inside_NP = ctx.norm, ctx.first, ctx.down, _once(ctx, "inside")
        dout_ND, inner, width = grads[0].contiguous(), first.rows // 2, x_ND.shape[1]
        firsts, downs = lows[: ctx.split], lows[ctx.split :]
        like_inner = x_ND.new_empty(0, inner)
        first_w = first.backwards(x_ND, firsts, ctx.needs_input_grad[0])
        down_w = down.backwards(like_inner, downs)
        first_slopes, down_slopes = Slopes(first, x_ND), Slopes(down, like_inner)
        dx_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        dinside_TP = x_ND.new_empty(min(TILE, len(x_ND)), first.rows)
        for tile in _tiles(len(x_ND), TILE):
            x, inverse, inside, dout = x_ND[tile], inverse_N1[tile], inside_NP[tile], dout_ND[tile]
            dinside, dproduct = dinside_TP[: len(x)], dout @ down_w
            for strip in _tiles(len(x), STRIP):
                gate, up = inside[strip, :inner], inside[strip, inner : 2 * inner]
                dinner = dproduct[strip, :inner]
                active = F.silu(gate)
                torch.mul(dinner, active, out=dinside[strip, inner:])
                down_slopes.add(active.mul_(up), seen_NR[tile][strip], dout[strip], dproduct[strip, inner:])
                torch.ops.aten.silu_backward.grad_input(dinner.mul_(up), gate, grad_input=dinside[strip, :inner])
                first_slopes.outer(inside[strip, first.rows :], dinside[strip])
            dfirst = dinside @ first_w
            first_slopes.inner(norm.of(x, inverse), dfirst[:, dfirst.shape[1] - first.ranks :])
            if dx_ND is not None:
                torch.add(norm.backward(dfirst[:, :width], x, inverse), dout, out=dx_ND[tile])
        ctx.pool.give(inside_NP)
        slopes = [*first_slopes.parts(firsts), *down_slopes.parts(downs)]
        return dx_ND, None, None, None, None, *slopes


def _once(ctx: Any, name: str) -> Tensor:
    """A piece of the pool's memory that a forward filled; it goes back after one backward."""
    kept: Tensor | None = getattr(ctx, name)
    if kept is None:
        raise RuntimeError("a second backward through the same forward; this one keeps nothing for it")
    setattr(ctx, name, None)
    return kept


# ---- attention -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """The shape of attention, and where its documents stand."""

    heads: int
    groups: int  # of heads that share a key and a value
    width: int
    scale: float
    cos_N1K: Tensor
    sin_N1K: Tensor
    batch: tuple[int, int]  # rows and their length, where there are no documents
    documents: Documents | None

    def rotate(self, qkv: Tensor, tile: slice, back: bool = False) -> None:
        """Turn queries and keys by their positions, in place; or back."""
        turned = qkv[:, : (self.heads + self.groups) * self.width].unflatten(-1, (-1, self.width))
        a, b = turned.chunk(2, dim=-1)
        cos, sin = self.cos_N1K[tile], self.sin_N1K[tile]
        across = a * sin
        a.mul_(cos).addcmul_(b, sin, value=1.0 if back else -1.0)
        b.mul_(cos).add_(across, alpha=-1.0 if back else 1.0)

    def parted(self, x_NP: Tensor, padding: bool = True) -> list[Tensor]:
        """[N, H * K] to [documents, H, length, K] for each group of documents of about one length.

        Args:
            padding: what it holds does not matter; without, it is zeros.
        """
        if self.documents is None:
            parts = [x_NP.unflatten(0, self.batch)]
        else:
            groups = self.documents.groups
            flat = x_NP
            if not _as_they_are(self.documents) and padding:
                flat = x_NP.index_select(0, self.documents.source_M)
            elif not _as_they_are(self.documents):
                flat = x_NP.new_zeros(len(self.documents.source_M), x_NP.shape[1])
                flat.index_copy_(0, self.documents.place_N, x_NP)
            pieces = flat.split([group.documents * group.length for group in groups])
            parts = [part.unflatten(0, (g.documents, g.length)) for part, g in zip(pieces, groups, strict=True)]
        return [part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in parts]

    def joined(self, parts: list[Tensor]) -> Tensor:
        """The way back, [N, H * K]."""
        flat = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in parts]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat)
        if self.documents is None or _as_they_are(self.documents):
            return whole
        return whole.index_select(0, self.documents.place_N)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of [N, P ...]."""
        q, k = self.heads * self.width, self.groups * self.width
        return qkv[:, :q], qkv[:, q : q + k], qkv[:, q + k : q + 2 * k]


def _as_they_are(documents: Documents) -> bool:
    """Whether the documents of a batch are of one length, so that nothing need be moved."""
    return len(documents.groups) == 1 and documents.groups[0].documents * documents.groups[0].length == len(
        documents.place_N
    )


class _Attention(torch.autograd.Function):
    """x + out(attention(q n, k n, v n)) with n the normed x, causal within each document. Kept: x, 1 / rms, q, k, v, what was
    read, and the logarithm of each softmax's sum."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, norm: Norm, first: Stack, out: Stack, heads: Heads, pool: Pool, *lows: Tensor
    ) -> Tensor:
        ctx.split = len(first.lows())
        first_w = first.forwards(x_ND, list(lows[: ctx.split]))
        rows, width = x_ND.shape
        qkv_NP = pool.take(rows, first.rows + first.ranks, x_ND)
        inverse_N1 = x_ND.new_empty(rows, 1)
        for tile in _tiles(rows, TILE):
            inverse_N1[tile] = norm.inverse(x_ND[tile])
            torch.mm(norm.of(x_ND[tile], inverse_N1[tile]), first_w.T, out=qkv_NP[tile])
            if first.bias is not None:
                qkv_NP[tile, : first.rows] += first.bias
        for strip in _tiles(rows, STRIP):
            heads.rotate(qkv_NP[strip], strip)
        read, sums = [], []
        for q, k, v in zip(*map(heads.parted, heads.split(qkv_NP)), strict=True):
            part, sum_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, True, scale=heads.scale
            )
            read.append(part)
            sums.append(sum_)
        read_NP = heads.joined(read)
        out_w = out.forwards(read_NP, list(lows[ctx.split :]))
        out_ND, seen_NR = torch.empty_like(x_ND), x_ND.new_empty(rows, out.ranks)
        for tile in _tiles(rows, TILE):
            product = read_NP[tile] @ out_w.T
            torch.add(x_ND[tile], product[:, :width], out=out_ND[tile])
            if out.bias is not None:
                out_ND[tile] += out.bias
            seen_NR[tile] = product[:, width:]
        ctx.norm, ctx.first, ctx.out, ctx.heads, ctx.groups = norm, first, out, heads, len(read)
        ctx.pool, ctx.qkv = pool, qkv_NP
        ctx.save_for_backward(x_ND, inverse_N1, seen_NR, *read, *sums, *lows)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, inverse_N1, seen_NR, *rest = ctx.saved_tensors
        read, sums, lows = rest[: ctx.groups], rest[ctx.groups : 2 * ctx.groups], rest[2 * ctx.groups :]
        norm, first, out, heads, qkv_NP = ctx.norm, ctx.first, ctx.out, ctx.heads, _once(ctx, "qkv")
        dout_ND, width = grads[0].contiguous(), x_ND.shape[1]
        firsts, outs = lows[: ctx.split], lows[ctx.split :]

        read_NP = heads.joined(read)
        out_slopes = Slopes(out, read_NP)
        dread_NP = dout_ND @ out.backwards(read_NP, outs)
        inner = read_NP.shape[1]
        out_slopes.add(read_NP, seen_NR, dout_ND, dread_NP[:, inner:])

        parts = []
        given = (heads.parted(dread_NP[:, :inner], padding=False), *map(heads.parted, heads.split(qkv_NP)), read, sums)
        for dread, q, k, v, was, sum_ in zip(*given, strict=True):
            backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            parts.append(backward(dread, q, k, v, was, sum_, 0.0, True, scale=heads.scale))
        dqkv = [heads.joined(list(one)) for one in zip(*parts, strict=True)]

        first_w = first.backwards(x_ND, firsts, ctx.needs_input_grad[0])
        first_slopes = Slopes(first, x_ND)
        dx_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        dfirst_TP = x_ND.new_empty(min(TILE, len(x_ND)), first.rows)
        for tile in _tiles(len(x_ND), TILE):
            x, inverse = x_ND[tile], inverse_N1[tile]
            dfirst = dfirst_TP[: len(x)]
            for strip in _tiles(len(x), STRIP):
                at = slice(tile.start + strip.start, tile.start + strip.stop)
                torch.cat([part[at] for part in dqkv], dim=1, out=dfirst[strip])
                heads.rotate(dfirst[strip], at, back=True)
                first_slopes.outer(qkv_NP[at, first.rows :], dfirst[strip])
            dnormed = dfirst @ first_w
            first_slopes.inner(norm.of(x, inverse), dnormed[:, dnormed.shape[1] - first.ranks :])
            if dx_ND is not None:
                torch.add(norm.backward(dnormed[:, :width], x, inverse), dout_ND[tile], out=dx_ND[tile])
        ctx.pool.give(qkv_NP)
        slopes = [*first_slopes.parts(firsts), *out_slopes.parts(outs)]
        return dx_ND, None, None, None, None, None, *slopes


# ---- where it fits ---------------------------------------------------------------------------------------------------------------


class WrittenOut:
    """The two halves of a block, each where it fits; none where autograd has to do it."""

    def __init__(self) -> None:
        self.pools = Pool(), Pool()

    def attention(self, block: Block, x_BTD: Tensor, context: Context) -> Tensor | None:
        """x + attention(norm x)."""
        inner = block.self_attn
        norm = _norm(block.input_layernorm, x_BTD)
        if norm is None or not isinstance(inner, Attention) or not inner.rotary or inner.window is not None:
            return None
        if context.cache is not None or context.mask is not None:
            return None
        first, out = _stack(inner.q_proj, inner.k_proj, inner.v_proj), _stack(inner.o_proj)
        if first is None or out is None:
            return None
        batch = (x_BTD.shape[0], x_BTD.shape[1])
        cos, sin = (part.expand(*batch, -1).reshape(-1, 1, part.shape[-1]) for part in (context.cos, context.sin))
        heads = Heads(inner.heads, inner.groups, inner.width, inner.scale, cos, sin, batch, context.documents)
        given = (x_BTD.flatten(0, 1), norm, first, out, heads, self.pools[0], *first.lows(), *out.lows())
        made: Tensor = _Attention.apply(*given)  # type: ignore[no-untyped-call]
        return made.view_as(x_BTD)

    def mlp(self, block: Block, x_BTD: Tensor) -> Tensor | None:
        """x + mlp(norm x)."""
        inner = block.mlp
        norm = _norm(block.post_attention_layernorm, x_BTD)
        if norm is None or not isinstance(inner, MLP) or inner.gate_proj is None or inner.activation is not F.silu:
            return None
        first, down = _stack(inner.gate_proj, inner.up_proj), _stack(inner.down_proj)
        if first is None or down is None:
            return None
        given = (x_BTD.flatten(0, 1), norm, first, down, self.pools[1], *first.lows(), *down.lows())
        made: Tensor = _GatedMLP.apply(*given)  # type: ignore[no-untyped-call]
        return made.view_as(x_BTD)


def _norm(norm: nn.Module, x: Tensor) -> Norm | None:
    """A frozen RMSNorm, where the rows are such that writing out pays."""
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not fits or not isinstance(norm, RMSNorm) or norm.weight.requires_grad or x.shape[0] * x.shape[1] <= FEW:
        return None
    return Norm(norm.weight.detach(), norm.eps)


def _stack(*layers: nn.Module) -> Stack | None:
    matrices = [matrix_of(layer) for layer in layers]
    found = [matrix for matrix in matrices if matrix is not None]
    return Stack(found) if len(found) == len(layers) else None
