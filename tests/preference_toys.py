"""What the tests of preference tuning share: a small model with its tokenizer, pairs of answers, a run that dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune.preferences import dpo, reference, stage
from tinyseek.tune.preferences.options import DpoSettings

WORDS = ["how", "many", "apples", "have", "Ann", "and", "Bob", "there", "are", "seven", "of", "them", "in", "basket"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
EXPERTS = {"n_routed_experts": 4, "moe_intermediate_size": 8}


def make_base(folder: Path) -> Path:
    """A small DeepSeek with MLA, experts and MTP, and its tokenizer."""
    tokenizer = Tokenizer.train([" ".join(WORDS) * 3], TokenizerSettings(vocab_size=320))
    tokenizer.save(folder)
    torch.manual_seed(0)
    more = {"initializer_range": 0.2, "max_position_embeddings": 64}
    config = from_preset("quickstart", {"vocab_size": tokenizer.vocab_size, **SMALL, **LATENT, **EXPERTS, **more})
    CausalLM(config).save(folder)
    return folder


def make_pairs(file: Path, count: int, seed: int = 0) -> Path:
    """Pairs whose chosen answer ends with "seven", and the rejected one with "basket"."""
    rng = np.random.default_rng(seed)

    def say(role: str, end: str = "") -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choice(WORDS, int(rng.integers(1, 7)))) + end}]

    sides = [(say("user"), say("assistant", " seven"), say("assistant", " basket")) for _ in range(count)]
    records = [dict(zip(("prompt", "chosen", "rejected"), side, strict=True)) for side in sides]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def settings_of(folder: Path, **changes: Any) -> DpoSettings:
    base = {"model": str(folder / "base"), "data": [str(folder / "pairs.jsonl")], "seq_len": 48, "batch_size": 4}
    quick = {"epochs": 2, "precision": "float32", "threads": 1, "val_fraction": 0.15, "lr": 0.003, "device": "cpu"}
    return DpoSettings.read(base | quick | changes)


def dies(folder: str, out: str, while_: str, after: int) -> None:
    """A run that is killed while it computes the reference, or trains, after so many forward passes."""
    module = reference if while_ == "reference" else dpo
    real, passes = module.likelihood, 0

    def likelihood(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    module.likelihood = likelihood
    torch.set_num_threads(1)
    stage.build(settings_of(Path(folder), save_every=3), Path(out))
