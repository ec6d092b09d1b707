"""Attention: multi-head and grouped-query in one class, and multi-head latent attention (MLA) in its two forms.

Sources: grouped queries, arXiv 2305.13245; MLA, DeepSeek-V2 report (arXiv 2405.04434) section 2.1, eq. 9-19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.config import ModelConfig
from tinyseek.model.documents import Documents
from tinyseek.model.layers import make_norm
from tinyseek.model.rope import rotate, softmax_scale


class KeyValueCache(Protocol):
    """What attention asks of a cache. The cached tensors are [B, S, ...]: keys and values a head, or MLA's latent and rotary
    key."""

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Append each of `new` [B, T, ...] to the layer's cache and return all that is cached, in the same order."""
        ...


@dataclass
class Context:
    """What the layers of one forward pass share."""

    cos: Tensor  # [T, rotary / 2], or [B, T, rotary / 2] where positions differ from sequence to sequence
    sin: Tensor
    mask: (
        Tensor | None
    )  # bool [B or 1, 1, T, S], True where a query may look; none: causal over T == S, or all (T == 1)
    window_mask: Tensor | None  # the same, narrowed to the sliding window
    cache: KeyValueCache | None
    documents: Documents | None = None  # in place of the masks: attention within each document


def attend_within(documents: Documents, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    """`attend`, causal, within each document: group by group. Shapes as there."""
    out = []
    for part_q, part_k, part_v in zip(*map(documents.parted, (q, k, v)), strict=True):
        length = part_q.shape[1]
        mask = causal_mask(length, length, q.device, window) if window is not None and window < length else None
        out.append(attend(part_q, part_k, part_v, mask, scale))
    return documents.joined(out, q.shape[0])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale * q k^T) v, causal where no mask is given.

    Args:
        q: [B, T, H, K]; k: [B, S, G, K]; v: [B, S, G, any width], with H a multiple of G.
    Returns:
        [B, T, H, width of v].
    """
    width = v.shape[-1]
    if width < q.shape[-1]:  # the fused kernels want one width; the added zeros cost less than leaving the kernel
        v = F.pad(v, (0, q.shape[-1] - width))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and q.shape[1] > 1,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)[..., :width]


class Attention(nn.Module):
    """Multi-head or grouped-query attention, with rotary positions where the config has them and an optional sliding window."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.groups, self.width = config.num_attention_heads, config.kv_heads, config.qk_dim
        self.rotary = config.positions == "rotary"
        self.window = config.window(layer)
        self.scale = softmax_scale(config)
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.output_bias)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        q = self.q_proj(x_BTD).unflatten(-1, (self.heads, self.width))
        k = self.k_proj(x_BTD).unflatten(-1, (self.groups, self.width))
        v = self.v_proj(x_BTD).unflatten(-1, (self.groups, self.width))
        if self.rotary:
            cos, sin = context.cos.unsqueeze(-2), context.sin.unsqueeze(-2)
            q, k = rotate(q, cos, sin, interleaved=False), rotate(k, cos, sin, interleaved=False)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        if context.documents is not None:
            out = attend_within(context.documents, q, k, v, self.window, self.scale)
        else:
            out = attend(q, k, v, context.mask if self.window is None else context.window_mask, self.scale)
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values are read out of one small latent a token, which is all that is cached.

    Two forms of one function:
    - *expanded*: every head's keys and values are computed from the latent (eq. 9-15). Best for many queries: training, prefill.
    - *absorbed*: the read-out matrices move to the query and to the output, so that all heads attend to the latent itself
      (section 2.1.2). Best for few queries over a long cache: decoding reads C + R numbers a token, not H * (K + V).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        self.layer = layer
        self.heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.interleaved = config.rope_interleave
        self.scale = softmax_scale(config)
        width = config.hidden_size
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, self.heads * config.qk_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=False)
            self.q_a_layernorm = make_norm(config, config.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(config.q_lora_rank, self.heads * config.qk_dim, bias=False)
        self.low_rank_query = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(width, self.latent + self.rope, bias=False)
        self.kv_a_layernorm = make_norm(config, self.latent, eps=1e-6)
        self.kv_b_proj = nn.Linear(self.latent, self.heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, width, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.low_rank_query else self.q_proj(x_BTD)
        q_nope, q_rope = q.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        latent_BTC, k_rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split((self.latent, self.rope), dim=-1)
        latent_BTC = self.kv_a_layernorm(latent_BTC)
        q_rope = rotate(q_rope, context.cos.unsqueeze(-2), context.sin.unsqueeze(-2), self.interleaved)
        k_rope_BTR = rotate(k_rope_BTR, context.cos, context.sin, self.interleaved)
        if context.cache is not None:
            latent_BTC, k_rope_BTR = context.cache.extend(self.layer, latent_BTC, k_rope_BTR)
        # Absorbing costs H * K * C a query but saves as much a cached position, so it pays when queries are the few.
        absorb = context.cache is not None and q.shape[1] * 4 <= latent_BTC.shape[1]
        given = (q_nope, q_rope, latent_BTC, k_rope_BTR, context.mask)
        if absorb or (context.cache is not None and q.shape[1] == 1):
            read = self.absorbed(*given)
        else:
            read = self.expanded(*given, context.documents)
        out: Tensor = self.o_proj(read.flatten(-2))
        return out

    def expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent_BSC: Tensor,
        k_rope_BSR: Tensor,
        mask: Tensor | None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Attention over every head's own keys and values.

        Args:
            q_nope: [B, T, H, nope]; q_rope: [B, T, H, R], rotated; k_rope_BSR: rotated, shared by the heads.
        Returns:
            [B, T, H, value].
        """
        k_nope, v = self.kv_b_proj(latent_BSC).unflatten(-1, (self.heads, -1)).split((self.nope, self.value), dim=-1)
        k = torch.cat((k_nope, k_rope_BSR.unsqueeze(-2).expand(*k_nope.shape[:-1], -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        if documents is not None:
            return attend_within(documents, q, k, v, None, self.scale)
        return attend(q, k, v, mask, self.scale)

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSC: Tensor, k_rope_BSR: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The same function with the latent itself as the one key and value of all heads. Shapes as in `expanded`."""
        batch, new = q_nope.shape[:2]
        key_HnC, value_HvC = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split((self.nope, self.value), dim=1)
        q_latent = torch.matmul(q_nope.transpose(1, 2), key_HnC)  # [B, H, T, C]
        q_both = torch.cat((q_latent, q_rope.transpose(1, 2)), dim=-1).flatten(
            1, 2
        )  # all heads share the keys: [B, H * T, C + R]
        keys_BSJ = torch.cat((latent_BSC, k_rope_BSR), dim=-1)
        scores_BHTS = torch.matmul(q_both, keys_BSJ.mT).view(batch, self.heads, new, -1).float() * self.scale
        if mask is None and new > 1:
            mask = causal_mask(new, latent_BSC.shape[1], q_nope.device)
        if mask is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask, -torch.inf)
        weights_BHTS = scores_BHTS.softmax(dim=-1).to(latent_BSC.dtype)
        out_latent = torch.matmul(weights_BHTS.flatten(1, 2), latent_BSC).view(batch, self.heads, new, -1)
        return torch.matmul(out_latent, value_HvC.mT).transpose(1, 2)


def causal_mask(queries: int, keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """bool [1, 1, T, S]: the T queries are the last of the S positions; each sees itself and what came before, within the
    window."""
    query_T = torch.arange(keys - queries, keys, device=device)[:, None]
    key_S = torch.arange(keys, device=device)
    seen = key_S <= query_T
    if window is not None:
        seen &= key_S > query_T - window
    return seen[None, None]
