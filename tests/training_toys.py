"""A model and data small enough that a training step takes a few milliseconds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyseek.model.config import ModelConfig
from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import Rows
from tinyseek.train import loop, state
from tinyseek.train.objective import LanguageModelling
from tinyseek.train.options import TrainSettings

VOCABULARY = 61


def tiny_config() -> ModelConfig:
    """All of DeepSeek-V3's parts: MLA, a dense and a sparse layer, balancing by bias and by loss, MTP."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 8, "balance_loss_weight": 0.01}
    return from_preset("quickstart", {"vocab_size": VOCABULARY, **shape, **latent, **experts})


class RandomRows:
    """Random tokens of which a random share has a target, in two documents a row if asked."""

    def __init__(self, rows: int, seq_len: int, seed: int, documents: bool = False) -> None:
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, VOCABULARY, (rows, seq_len + 1))
        self.ids, targets = ids[:, :-1], ids[:, 1:].copy()
        targets[rng.random(targets.shape) < rng.random((rows, 1))] = -100
        targets[:, 1] = ids[:, 2]  # at least one target a row
        self.targets = targets
        border = rng.integers(1, seq_len, (rows, 1))
        self.documents = (np.arange(seq_len) >= border).astype(np.int32) if documents else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Rows:
        documents = None if self.documents is None else self.documents[index]
        return Rows(self.ids[index].astype(np.int64), self.targets[index].astype(np.int64), documents)


def settings_of(**changes: Any) -> TrainSettings:
    base = {"steps": 12, "batch_size": 4, "seq_len": 12, "lr": 0.01, "precision": "float32", "threads": 1}
    quiet = {"validate_every": 0, "save_every": 0, "compile": False, "device": "cpu"}
    return TrainSettings.read(base | quiet | changes)


def run(work: Path, settings: TrainSettings, made_from: dict[str, Any] | None = None, **more: Any) -> loop.Outcome:
    """What a stage does around the loop."""
    made_from = made_from or {"settings": settings.essence()}
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        torch.manual_seed(settings.seed)
        model = CausalLM.load(resume.folder) if resume else CausalLM(tiny_config())
        source = more.pop("source", None) or RandomRows(30, settings.seq_len, seed=1, documents=True)
        objective = LanguageModelling(source, more.pop("val", None))
        prepare = more.pop("prepare", None)
        if prepare:
            prepare(model)
        return loop.train(model, objective, settings, work, made_from=made_from, resume=resume, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return CausalLM.load(folder).state_dict()


def same_bits(one: Path, other: Path) -> None:
    """Every file of weights and of the optimiser's memory is the same, byte for byte."""
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert len(names) == 3  # the model, MTP, the optimiser
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


KILLED = {"steps": 45, "save_every": 3, "validate_every": 10, "optimizer": "muon"}


def killed_child(work: str) -> None:
    """The run that test_state kills; here, where a process that knows no test modules finds it."""
    run(Path(work), settings_of(**KILLED), val=RandomRows(4, 12, seed=2))


def killed_in_checkpoint(work: str) -> None:
    """A run that dies while it writes its second checkpoint."""
    real = state.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        if "000006" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)

    state.save_file = save_file
    run(Path(work), settings_of(save_every=3))
