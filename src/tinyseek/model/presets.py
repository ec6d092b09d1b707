"""Named shapes: the published ones, whose counts are checked against their papers, and our own small ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig, RopeScaling

_MINI_DEEPSEEK = {
    "model_type": "deepseek_v3",
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 1,
}

PRESETS: dict[str, ModelConfig] = {
    # Ours. `quickstart` learns English in minutes on two cores; `bench` is the shape that the benchmarks quote; `mini` takes a
    # night.
    "quickstart": ModelConfig(
        **_MINI_DEEPSEEK,
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=704,
        kv_lora_rank=64,
        q_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=176,
        first_k_dense_replace=1,
        max_position_embeddings=512,
    ),
    "bench": ModelConfig(
        **{**_MINI_DEEPSEEK, "num_nextn_predict_layers": 0},
        vocab_size=6400,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=704,
        kv_lora_rank=64,
        q_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=176,
        first_k_dense_replace=1,
        max_position_embeddings=2048,
    ),
    "mini": ModelConfig(
        **_MINI_DEEPSEEK,
        vocab_size=6400,
        hidden_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        intermediate_size=1024,
        kv_lora_rank=128,
        q_lora_rank=192,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=224,
        first_k_dense_replace=1,
        max_position_embeddings=2048,
    ),
    # Published.
    "gpt2": ModelConfig(
        model_type="gpt2",
        vocab_size=50257,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        norm_eps=1e-5,
    ),
    "qwen2-1.5b": ModelConfig(
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=1536,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        rope_theta=1e6,
    ),
    "llama-3.2-1b": ModelConfig(
        model_type="llama",
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            rope_type="llama3",
            factor=32.0,
            original_max_position_embeddings=8192,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    ),
    "smollm2-135m": ModelConfig(
        model_type="llama",
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        norm_eps=1e-5,
        rope_theta=100000.0,
    ),
    "deepseek-v2-lite": ModelConfig(
        model_type="deepseek_v2",
        vocab_size=102400,
        hidden_size=2048,
        num_hidden_layers=27,
        num_attention_heads=16,
        intermediate_size=10944,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        topk_method="greedy",
        norm_topk_prob=False,
        max_position_embeddings=163840,
        rope_scaling=RopeScaling(
            factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707
        ),
    ),
    "deepseek-v3": ModelConfig(
        model_type="deepseek_v3",
        vocab_size=129280,
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=128,
        intermediate_size=18432,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        max_position_embeddings=163840,
        num_nextn_predict_layers=1,
        initializer_range=0.006,
        rope_scaling=RopeScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0),
    ),
}


def from_preset(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """A preset with some settings changed.

    Raises:
        UserError: an unknown preset or setting, or numbers that do not fit together.
    """
    if name not in PRESETS:
        raise UserError(f'no model preset "{name}"; there are: {", ".join(PRESETS)}')
    values = {**PRESETS[name].plain(), **(overrides or {})}
    if overrides and overrides.get("model_type", values["model_type"]) != PRESETS[name].model_type:
        raise UserError(
            f'preset "{name}" is a {PRESETS[name].model_type} model; pick another preset for {overrides["model_type"]}'
        )
    return ModelConfig.read(values, f"model (preset {name})")
