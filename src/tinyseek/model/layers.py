"""The small parts that every family shares: normalisation and the dense MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def make_norm(config: ModelConfig, width: int | None = None, eps: float | None = None) -> nn.Module:
    """The config's normalisation over the last dimension, RMSNorm (arXiv 1910.07467) or LayerNorm."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
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
