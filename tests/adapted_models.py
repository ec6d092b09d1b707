"""Random adapters over tiny models: as folders, and as the merged models that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tinyseek.model import adapter, lora
from tinyseek.model.adapter import Base
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM


def make_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter of a model's folder, with random numbers large enough to change what is said."""
    model = CausalLM.load(base)
    identity = Base(base.name, str(base.resolve()), adapter.fingerprint(model))
    config = LoraConfig(**{"rank": 3, "alpha": 5, **settings})
    torch.manual_seed(seed)
    lora.add_lora(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * (0.2 if "lora_" in name else 0.05))
    adapter.save_adapter(model, folder, config, identity)
    return folder


def merged(folder: Path) -> CausalLM:
    """The model that an adapter makes of its base."""
    return adapter.load_merged(CausalLM, folder, torch.float32, torch.device("cpu")).eval()
