"""Tiny models of every family, with weights large enough that a mistake shows."""

import torch

from tinyseek.model.config import ModelConfig, RopeScaling
from tinyseek.model.transformer import CausalLM

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
LATENT = {
    **SMALL,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
CONFIGS = {
    "gpt2": ModelConfig(model_type="gpt2", **SMALL, tie_word_embeddings=True),
    "llama-gqa": ModelConfig(model_type="llama", **SMALL, num_key_value_heads=2),
    "qwen2-window": ModelConfig(
        model_type="qwen2", **SMALL, num_key_value_heads=1, sliding_window=9, sliding_from_layer=1
    ),
    "sinusoidal": ModelConfig(
        model_type="tinyseek", **SMALL, positions="sinusoidal", norm="layernorm", gated_mlp=False
    ),
    "mla": ModelConfig(model_type="deepseek_v3", **LATENT, num_nextn_predict_layers=2),
    "mla-q-lora-yarn-groups": ModelConfig(
        model_type="deepseek_v3",
        **{**LATENT, "n_routed_experts": 8},
        q_lora_rank=10,
        n_group=4,
        topk_group=2,
        rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0),
    ),
    "mla-softmax": ModelConfig(model_type="deepseek_v2", **LATENT, topk_method="greedy", norm_topk_prob=False),
}


def fresh(name: str, seed: int = 0) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(CONFIGS[name]).eval()
