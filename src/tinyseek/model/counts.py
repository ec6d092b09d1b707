"""How large a config is: parameters in all and active a token, FLOPs, cache bytes. Counted on the model itself, built without
memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM


@dataclass(frozen=True)
class Row:
    """One line of the parameter table: parts of one kind and shape."""

    name: str  # "layers 1-5: attention"
    parameters: int  # of all of them together
    active: int  # of which a token's forward pass multiplies by; the embedding is a look-up and counts none


@dataclass(frozen=True)
class Counts:
    """The size of a model. Multi-token prediction modules are counted apart, as papers do."""

    total: int  # parameters without MTP
    active: int  # parameters that one token meets in a matrix product
    mtp: int  # parameters of the MTP modules
    cache_numbers: int  # numbers cached a token
    attention_width: int  # sum over layers of H * (K + V): what a token multiplies each earlier position by
    rows: tuple[Row, ...]

    def flops_per_token(self, seq_len: int) -> float:
        """Forward FLOPs of one token, mean over a causal context of `seq_len`; training costs three times as much.

        2 a parameter met, and 2 * H * (K + V) a layer for each of the (seq_len + 1) / 2 positions seen on average.
        """
        return 2.0 * self.active + self.attention_width * (seq_len + 1)

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes of cache that a token of context costs; bfloat16 by default."""
        return self.cache_numbers * bytes_per_number


_KINDS = (
    (r"self_attn\.", "attention"),
    (r"mlp\.experts\.", "routed experts"),
    (r"mlp\.shared_experts\.", "shared experts"),
    (r"mlp\.gate\.", "router"),
    (r"mlp\.", "dense MLP"),
    (r"", "norms"),
)


def count(config: ModelConfig) -> Counts:
    """Count every parameter of a config, however large, without allocating it."""
    with torch.device("meta"):
        model = CausalLM(config)
    groups: dict[str, list[int]] = {}  # label -> parameters, active
    layers_of: dict[str, list[int]] = {}
    mtp = 0
    routed_share = config.num_experts_per_tok / config.n_routed_experts if config.n_routed_experts else 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        if name.startswith("mtp."):
            mtp += size
            continue
        active = size
        if layer:
            label = next(kind for pattern, kind in _KINDS if re.match(pattern, layer[2]))
            layers_of.setdefault(label, []).append(int(layer[1]))
            if label == "routed experts":
                active = round(size * routed_share)
        else:
            label = {"model.norm": "norms", "lm_head": "output head"}.get(name.rsplit(".", 1)[0], "embedding")
            if label == "embedding" and not config.tie_word_embeddings:
                active = 0
            if "embed_positions" in name:
                label, active = "positions", 0
        group = groups.setdefault(label, [0, 0])
        group[0] += size
        group[1] += active
    rows = tuple(Row(_span(label, layers_of.get(label)), size, active) for label, (size, active) in groups.items())
    if config.tie_word_embeddings:
        rows = tuple(
            Row("embedding and head (tied)", r.parameters, r.active) if r.name == "embedding" else r for r in rows
        )
    return Counts(
        total=sum(row.parameters for row in rows),
        active=sum(row.active for row in rows),
        mtp=mtp,
        cache_numbers=config.cache_numbers(),
        attention_width=config.num_hidden_layers * config.num_attention_heads * (config.qk_dim + config.v_dim),
        rows=rows,
    )


def _span(label: str, layers: list[int] | None) -> str:
    if not layers or label == "norms":
        return label
    first, last = min(layers), max(layers)
    return f"{label}, layer {first}" if first == last else f"{label}, layers {first}-{last}"
