"""Small models with a tokenizer, of every family that GGUF has, for the tests of reading, writing and exporting."""

from pathlib import Path

import torch

from tinyseek.model.config import ModelConfig, RopeScaling
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

TEXT = [
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; 1234 times 56 is 69104.",
    "太初有道，道与神同在，道就是神。这道太初与神同在。2024 年 7 月 8 日。",
    "def main(argv):\n    if len(argv) != 2:\n        return -1  # isn't it?\n",
] * 4
ROWS = 340  # rows of the embedding; the tokenizer has fewer tokens
SMALL = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LATENT = {
    **SMALL,
    "model_type": "deepseek_v3",
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}


def _yarn(**more: float) -> RopeScaling:
    return RopeScaling(factor=4.0, original_max_position_embeddings=64, **more)


CONFIGS = {
    "llama": ModelConfig(model_type="llama", **SMALL, num_key_value_heads=2, norm_eps=1e-5),
    "llama-tied": ModelConfig(model_type="llama", **SMALL, tie_word_embeddings=True, head_dim=32),
    "llama-biases": ModelConfig(model_type="llama", **SMALL, qkv_bias=True, output_bias=True, mlp_bias=True),
    "llama-3": ModelConfig(
        model_type="llama",
        **{**SMALL, "max_position_embeddings": 32768},
        rope_theta=500000.0,
        rope_scaling=RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=8192),
    ),
    "llama-yarn": ModelConfig(model_type="llama", **SMALL, rope_scaling=_yarn()),
    "llama-yarn-hot": ModelConfig(model_type="llama", **SMALL, rope_scaling=_yarn(attention_factor=1.3)),
    "llama-linear": ModelConfig(model_type="llama", **SMALL, rope_scaling=RopeScaling(rope_type="linear", factor=2.0)),
    "qwen2": ModelConfig(model_type="qwen2", **SMALL, num_key_value_heads=2, rope_theta=1e6),
    "v3": ModelConfig(**LATENT, q_lora_rank=48, routed_scaling_factor=2.5, num_nextn_predict_layers=1),
    "v3-plain-query": ModelConfig(**LATENT),
    "v3-no-shared": ModelConfig(**{**LATENT, "n_shared_experts": 0}, first_k_dense_replace=0),
    "v3-dense": ModelConfig(**{**LATENT, "n_routed_experts": 0, "n_shared_experts": 0}),
    "v3-halves": ModelConfig(**LATENT, q_lora_rank=48, rope_interleave=False),
    "v3-groups": ModelConfig(**{**LATENT, "n_routed_experts": 8}, n_group=4, topk_group=2),
    "v3-yarn": ModelConfig(**LATENT, rope_scaling=_yarn(mscale=1.0, mscale_all_dim=1.0)),
    "v3-yarn-half": ModelConfig(**LATENT, rope_scaling=_yarn(mscale=0.707, mscale_all_dim=0.707)),
    "v3-yarn-uneven": ModelConfig(**LATENT, rope_scaling=_yarn(mscale=1.0, mscale_all_dim=0.5)),
    "v3-yarn-bare": ModelConfig(**LATENT, rope_scaling=_yarn()),
    "v2": ModelConfig(**{**LATENT, "model_type": "deepseek_v2"}, topk_method="greedy", norm_topk_prob=False),
}


def tokenizer(pattern: str = "deepseek", size: int = 330) -> Tokenizer:
    return Tokenizer.train(TEXT, TokenizerSettings(data=["-"], vocab_size=size, pattern=pattern))


def save(folder: Path, name: str, words: Tokenizer) -> CausalLM:
    """A fresh model of a config in a folder, routing biases and all that are usually zero drawn too."""
    torch.manual_seed(0)
    model = CausalLM(CONFIGS[name]).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("bias"):
                tensor.normal_(std=0.1)
    model.save(folder)
    words.save(folder)
    return model
