"""Weights in fewer bytes: bfloat16, int8 with a scale a row, int4 with a scale and a least value every 32.

    int8   w = scale_row * q,             q in -127..127     8.0 bits a weight
    int4   w = least_group + scale * q,   q in 0..15         5.0 bits a weight, the grid of llama.cpp's Q4_1

Here are the formats and, in plain torch, the frozen layers that fine-tuning trains an adapter on (QLoRA, arXiv 2305.14314). The
engine reads the same formats by compiled loops (engine/quantize.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Format = Literal["float32", "bfloat16", "int8", "int4"]
GROUP = 32  # weights that share a scale in int4
PAIR = 2 * GROUP  # weights that share bytes in int4: a row's length must be a multiple
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of a group's range that are tried as its range


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., P, Q] to int8 [..., P, Q] and float32 scales [..., P]: each row by its largest magnitude."""
    weight = weight.float()
    scale = (weight.abs().amax(-1) / 127).clamp(min=1e-12)
    return (weight / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8), scale


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[..., P, Q] to bytes [..., P, Q / 2], scales and least values [..., P, Q / 32] (the bits of float16).

    Of five ranges a group, from all that lies between its extremes to four fifths of it, the one with the least squared error.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best_error = torch.full_like(low, torch.inf)
    q, scale, least = torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        middle, half = (high + low) / 2, (high - low) / 2 * shrink
        tried_least = (middle - half).half().float()
        tried_scale = (2 * half / 15).half().float().clamp(min=1e-7)
        tried = ((groups - tried_least) / tried_scale).round().clamp(0, 15)
        error = (tried * tried_scale + tried_least - groups).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        q, scale, least = (
            torch.where(better, new, old) for new, old in ((tried, q), (tried_scale, scale), (tried_least, least))
        )
    halves = q.to(torch.uint8).flatten(-2).unflatten(-1, (-1, 2, GROUP))
    packed = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)
    return packed, scale.squeeze(-1).half().view(torch.int16), least.squeeze(-1).half().view(torch.int16)


def unpack(parts: tuple[Tensor, ...]) -> Tensor:
    """The packed weight as float32, in plain torch: any device, and what the compiled loops are held equal to."""
    first = parts[0]
    if first.dtype == torch.int8:
        return first.float() * parts[1].unsqueeze(-1)
    if first.dtype == torch.uint8:
        pairs = first.unflatten(-1, (-1, 1, GROUP))
        q = torch.cat((pairs & 15, pairs >> 4), dim=-2).flatten(-3, -2).float()
        scale, least = (part.view(torch.float16).float().unsqueeze(-1) for part in parts[1:])
        return (q * scale + least).flatten(-2)
    return first.float()


def packed(weight: Tensor, format: Format) -> tuple[Tensor, ...]:
    """A weight in a format; int4 falls back to int8 where its rows are no multiple of 64 long."""
    if format == "int4" and weight.shape[-1] % PAIR == 0:
        return pack_int4(weight)
    if format in ("int4", "int8"):
        return pack_int8(weight)
    return (weight.to(getattr(torch, format)).contiguous(),)


class PackedWeight(nn.Module):
    """A weight, or a stack of them, in few bytes. `dense` widens it: [P, Q], or of a stack the one at `index`."""

    def __init__(self, weight: Tensor, format: Format) -> None:
        super().__init__()
        self.shape = weight.shape
        self.count = 0
        for part in packed(weight.detach(), format):
            self.register_buffer(f"part_{self.count}", part)
            self.count += 1

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"part_{i}") for i in range(self.count))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def dense(self, index: int | None = None) -> Tensor:
        """The weight as float32, made anew at each call."""
        return unpack(self.parts if index is None else tuple(part[index] for part in self.parts))

    def rows(self, index: Tensor) -> Tensor:
        """The rows at `index` [N] of a weight that is no stack, float32 [N, Q]."""
        return unpack(tuple(part[index] for part in self.parts))
