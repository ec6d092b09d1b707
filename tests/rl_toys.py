"""A model, prompts and a reward small enough that a step of learning from rewards takes tens of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune.rl import grpo, ppo
from tinyseek.tune.rl.options import GrpoSettings, PpoSettings

WORDS = [
    "how",
    "many",
    "apples",
    "have",
    "Ann",
    "and",
    "Bob",
    "there",
    "are",
    "seven",
    "of",
    "them",
    "in",
    "the",
    "basket",
    "today",
]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
EXPERTS = {"n_routed_experts": 4, "moe_intermediate_size": 8, "num_nextn_predict_layers": 1}
REWARD = '''
def letters(completions, bonus, **columns):
    """As many as there are letters e."""
    return [c[0]["content"].count("e") + b for c, b in zip(completions, bonus)]
'''


def make(folder: Path) -> Path:
    """A DeepSeek of two layers with its tokenizer, forty prompts, and a reward."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.train([" ".join(WORDS) * 3], TokenizerSettings(vocab_size=320))
    tokenizer.save(folder / "base")
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.2, "max_position_embeddings": 64}
    CausalLM(from_preset("quickstart", SHAPE | LATENT | EXPERTS | sizes)).save(folder / "base")
    rng = np.random.default_rng(0)
    rows = [{"prompt": " ".join(rng.choice(WORDS, int(rng.integers(2, 6)))), "bonus": n % 3} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARD)
    return folder


def values(made: Path, **changes: Any) -> dict[str, Any]:
    base = {"model": str(made / "base"), "data": [str(made / "prompts.jsonl")], "device": "cpu", "precision": "float32"}
    sizes = {"batch_size": 4, "num_generations": 4, "max_completion_length": 10, "seq_len": 40, "val_fraction": 0}
    quick = {"steps": 6, "lr": 0.01, "threads": 1, "show_every": 0, "rewards": {f"{made / 'mine.py'}:letters": 1.0}}
    return base | sizes | quick | changes


def grpo_settings(made: Path, **changes: Any) -> GrpoSettings:
    return GrpoSettings.read(values(made, **changes))


def ppo_settings(made: Path, **changes: Any) -> PpoSettings:
    return PpoSettings.read(values(made, **changes))


KILLED: dict[str, dict[str, Any]] = {
    "grpo": {"steps": 24, "save_every": 2, "num_iterations": 2, "beta": 0.05, "val_fraction": 0.1, "validate_every": 5},
    "ppo": {"steps": 40, "save_every": 2, "minibatches": 2, "optimizer": "muon"},
    "lora": {"steps": 60, "save_every": 2, "beta": 0.05, "lora": {"rank": 2, "dropout": 0.1}},
}


def killed_child(made: str, out: str, which: str) -> None:
    """The run that is killed; here, where a process that knows no test modules finds it."""
    torch.set_num_threads(1)
    if which == "ppo":
        ppo.build(ppo_settings(Path(made), **KILLED[which]), Path(out))
    else:
        grpo.build(grpo_settings(Path(made), **KILLED[which]), Path(out))
