"""Attention within each document of a batch, without computing what documents must not see of each other.

A mask over a row of T positions costs T^2, most of it for pairs that are masked. Here documents of about one length go together as
the rows of a batch of their own: padded at their ends, where causal attention never looks, to the longest of them. The mask's form
stands beside it (`CausalLM.fixed_shapes`), for a compiler that wants every batch of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEAR = 0.75  # a document joins those that are at most this much longer: at most 1 / NEAR^2 of the pairs are computed in vain


@dataclass(frozen=True)
class Group:
    """Documents that go together."""

    documents: int
    length: int  # of the longest


@dataclass(frozen=True)
class Documents:
    """Where the N = B * T positions of a batch go, M >= N places with the padding."""

    groups: tuple[Group, ...]
    source_M: Tensor  # which position stands in each place; in padding the document's first
    place_N: Tensor  # where each position went

    def parted(self, x_BT: Tensor) -> list[Tensor]:
        """[B, T, ...] to a tensor [documents, length, ...] for each group. What padding holds has no gradient."""
        flat_M: Tensor = _Move.apply(  # type: ignore[no-untyped-call]
            x_BT.flatten(0, 1), self.source_M, self.place_N
        )
        parts = flat_M.split([group.documents * group.length for group in self.groups])
        return [part.unflatten(0, (g.documents, g.length)) for part, g in zip(parts, self.groups, strict=True)]

    def joined(self, parts: list[Tensor], rows: int) -> Tensor:
        """The way back: [rows, T, ...], without the padding."""
        flat_M = torch.cat([part.flatten(0, 1) for part in parts])
        flat_N: Tensor = _Back.apply(flat_M, self.place_N)  # type: ignore[no-untyped-call]
        return flat_N.view(rows, -1, *flat_N.shape[1:])


class _Move(torch.autograd.Function):
    """x[source]; a position stands in one place, besides padding, so its gradient is read there and nothing need be added up."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, source_M: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        return x_N.index_select(0, source_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (place_N,) = ctx.saved_tensors
        return grads[0].index_select(0, place_N), None, None


class _Back(torch.autograd.Function):
    """x[place]; what no place reads, the padding, gets zeros."""

    @staticmethod
    def forward(ctx: Any, x_M: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.shape = x_M.shape
        return x_M.index_select(0, place_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (place_N,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, place_N, grads[0]), None


def lengths(documents_BT: Tensor) -> Tensor:
    """How long the document is that each position is in, int64 [B, T]."""
    number_N = _begins(documents_BT).flatten().cumsum(0) - 1
    return torch.bincount(number_N)[number_N].view_as(documents_BT)


def _begins(documents_BT: Tensor) -> Tensor:
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return begins_BT


def lay_out(documents_BT: Tensor) -> Documents:
    """Group a batch's documents.

    Args:
        documents_BT: which document of its row each position is in; a document's positions stand together.
    """
    starts_D = _begins(documents_BT).flatten().nonzero().squeeze(-1)
    ends_D = torch.cat((starts_D[1:], starts_D.new_tensor([documents_BT.numel()])))
    lengths_D = ends_D - starts_D
    order_D = lengths_D.argsort(descending=True, stable=True)
    starts_D, lengths_D = starts_D[order_D], lengths_D[order_D]
    sizes = lengths_D.tolist()
    groups: list[Group] = []
    sources, places = [], torch.empty(documents_BT.numel(), dtype=torch.int64, device=documents_BT.device)
    first = offset = 0
    while first < len(sizes):
        longest = sizes[first]
        last = first + 1
        while last < len(sizes) and sizes[last] >= NEAR * longest:
            last += 1
        index_L = torch.arange(longest, device=starts_D.device)
        inside_DL = index_L < lengths_D[first:last, None]
        source_DL = starts_D[first:last, None] + index_L * inside_DL
        sources.append(source_DL.flatten())
        place_DL = torch.arange(offset, offset + source_DL.numel(), device=starts_D.device).view_as(source_DL)
        places[source_DL[inside_DL]] = place_DL[inside_DL]
        groups.append(Group(last - first, longest))
        first, offset = last, offset + source_DL.numel()
    return Documents(tuple(groups), torch.cat(sources), places)
