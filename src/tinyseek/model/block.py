"""A transformer block: attention and an MLP, each behind a norm and added to what came in (pre-norm)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from tinyseek.model.attention import Attention, Context, LatentAttention
from tinyseek.model.config import ModelConfig
from tinyseek.model.layers import MLP, make_norm
from tinyseek.model.moe import MixtureOfExperts


class Halves(Protocol):
    """Another way through a block's halves (model/written_out.py); none where it has none for what is there."""

    def attention(self, block: Block, x_BTD: Tensor, context: Context) -> Tensor | None:
        """x + attention(norm x)."""
        ...

    def mlp(self, block: Block, x_BTD: Tensor) -> Tensor | None:
        """x + mlp(norm x)."""
        ...


class Block(nn.Module):
    """`x + attention(norm x)`, then `x + mlp(norm x)`; the MLP is dense or a mixture of experts by the layer's number."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MixtureOfExperts(config) if config.is_sparse(layer) else MLP(config, config.intermediate_size)
        self.halves: Halves | None = None  # tried first while gradients are taken

    def forward(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Returns the output [B, T, D] and, in training, the experts' balance loss a sequence [B]."""
        halves = self.halves if torch.is_grad_enabled() else None
        attended = None if halves is None else halves.attention(self, x_BTD, context)
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context) if attended is None else attended
        if halves is not None and (done := halves.mlp(self, x_BTD)) is not None:
            return done, None
        normed = self.post_attention_layernorm(x_BTD)
        balance = None
        if isinstance(self.mlp, MixtureOfExperts):
            update, balance = self.mlp(normed)
        else:
            update = self.mlp(normed)
        return x_BTD + update, balance
