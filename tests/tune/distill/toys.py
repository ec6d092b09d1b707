"""A tiny chat model with random weights, which says something to everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

WORDS = "how many apples have Ann and Bob there are seven of them in the basket today 一 二 三 苹果".split()  # noqa: SIM905
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
EXPERTS = {"n_routed_experts": 4, "moe_intermediate_size": 8}


def tokenizer_of(vocab_size: int = 300, words: int = 3) -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS) * words], TokenizerSettings(vocab_size=vocab_size))


def save_model(folder: Path, tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> CausalLM:
    """A model folder; `changes` in its shape."""
    torch.manual_seed(seed)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE, **LATENT, **EXPERTS, "num_nextn_predict_layers": 0}
    shape |= {"initializer_range": 0.3, "max_position_embeddings": 128, **changes}
    model = CausalLM(from_preset("quickstart", shape)).eval()
    tokenizer.save(folder)
    model.save(folder)
    return model


def save_talks(file: Path, count: int = 24) -> Path:
    """Conversations with answers of several lengths."""
    lines = []
    for number in range(count):
        asked = " ".join(WORDS[number % 5 : number % 5 + 3 + number % 4]) + f" {number}"
        said = " ".join(WORDS[number % 7 : number % 7 + 2 + number % 6])
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"messages": messages, "answer": str(number)}))
    file.write_text("\n".join(lines) + "\n")
    return file
