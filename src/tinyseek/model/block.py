"""A transformer block: attention and an MLP, each behind a norm and added to what came in (pre-norm)."""

from __future__ import annotations

from torch import Tensor, nn

from tinyseek.model.attention import Attention, Context, LatentAttention
from tinyseek.model.config import ModelConfig
from tinyseek.model.layers import MLP, make_norm
from tinyseek.model.moe import MixtureOfExperts


class Block(nn.Module):
    """`x + attention(norm x)`, then `x + mlp(norm x)`; the MLP is dense or a mixture of experts by the layer's number."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MixtureOfExperts(config) if config.is_sparse(layer) else MLP(config, config.intermediate_size)

    def forward(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Returns the output [B, T, D] and, in training, the experts' balance loss a sequence [B]."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context)
        normed = self.post_attention_layernorm(x_BTD)
        balance = None
        if isinstance(self.mlp, MixtureOfExperts):
            update, balance = self.mlp(normed)
        else:
            update = self.mlp(normed)
        return x_BTD + update, balance
