"""Multi-token prediction: small modules that, each on top of the last, predict one token further ahead.

Sources: DeepSeek-V3 report section 2.2, eq. 21-25; the layout on disk is the one of the published checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinyseek.model.attention import Context
from tinyseek.model.block import Block
from tinyseek.model.config import ModelConfig
from tinyseek.model.layers import make_norm


class SharedHead(nn.Module):
    """The norm before the output head, which itself is the main model's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)


class MTPModule(Block):
    """One depth of prediction: a block over the previous depth's hidden states joined with the next token's embedding."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.enorm = make_norm(config)
        self.hnorm = make_norm(config)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def predict(self, hidden_BTD: Tensor, embedded_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """From the hidden states at i and the embedding of token i+1, the hidden states that the head turns into token i+2.

        Args:
            hidden_BTD: the previous depth's output; for the first depth the main model's after its last norm.
            embedded_BTD: the embeddings one further on.
        Returns:
            Normalised hidden states [B, T, D], and the balance loss of the module's experts.
        """
        joined = self.eh_proj(torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1))
        out, balance = self(joined, context)
        return self.shared_head.norm(out), balance
