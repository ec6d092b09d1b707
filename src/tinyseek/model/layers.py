"""The small parts that every family shares: normalisation and the dense MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out: six passes over the batch in the backward, where autograd's pieces take twelve."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse, weight_D)
        ctx.dtype = x.dtype
        return (normed * weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, weight_D = ctx.saved_tensors
        dout, wide_D = grads[0].float(), weight_D.float()
        product = dout * normed
        dweight_D = product.flatten(0, -2).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        share = (product @ wide_D).unsqueeze(-1).div_(normed.shape[-1])  # mean of dout * weight * normed
        dx = (dout * wide_D).addcmul_(normed, share, value=-1.0).mul_(inverse)
        return dx.to(ctx.dtype), dweight_D, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 whatever comes in. Source: arXiv 1910.07467."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            out: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return out
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        return (wide * inverse).mul_(self.weight).to(x.dtype)


def make_norm(config: ModelConfig, width: int | None = None, eps: float | None = None) -> nn.Module:
    """The config's normalisation over the last dimension, RMSNorm or LayerNorm."""
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(width or config.hidden_size, eps=config.norm_eps if eps is None else eps)


class MLP(nn.Module):
    """A dense MLP: `down(act(gate x) * up x)` when gated (SwiGLU), else `down(act(up x))`."""

    def __init__(self, config: ModelConfig, intermediate_size: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, intermediate_size, bias=bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(width, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, width, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            inner: Tensor = self.activation(self.up_proj(x))
        else:
            inner = self.activation(self.gate_proj(x)) * self.up_proj(x)
        out: Tensor = self.down_proj(inner)
        return out
