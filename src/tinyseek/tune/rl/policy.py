"""What is said of sampled answers: by the model that learns, by the one that it started as, and by the engine that sampled them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyseek.model import lora
from tinyseek.model.loss import token_logprobs
from tinyseek.model.transformer import CausalLM
from tinyseek.train.device import choose_device
from tinyseek.train.objective import Update
from tinyseek.tune.rl.asking import Micro
from tinyseek.tune.rl.options import RlSettings


@dataclass
class Learning(Update):
    """An update, and how many tokens of all processes are really run in it."""

    learned: float = 1.0


@dataclass
class Gap:
    """How far the engine's log-probabilities are from the trainer's."""

    total: float = 0.0
    count: int = 0
    largest: float = 0.0

    @torch.no_grad()
    def compare(self, model: CausalLM, micro: Micro, hidden_MD: Tensor, logps_M: Tensor, temperature: float) -> None:
        """Take in an answer's tokens. The engine tells log-probabilities at temperature 1: those of a trainer at another are made
        anew, for the first micro-batch alone."""
        if temperature != 1:
            if self.count:
                return
            logps_M, _ = token_logprobs(hidden_MD, model.lm_head.weight, micro.targets_M)
        off_M = (micro.at_M["sampled"] - logps_M).abs()
        off_M = off_M[~off_M.isnan()]  # of ends the engine tells nothing
        if off_M.numel():
            self.total += float(off_M.double().sum())
            self.count += off_M.numel()
            self.largest = max(self.largest, float(off_M.max()))

    def figures(self) -> dict[str, float]:
        """By TRL's names."""
        return {
            "sampling/logp_difference/mean": self.total / max(1, self.count),
            "sampling/logp_difference/max": self.largest,
        }


def hidden(model: CausalLM, micro: Micro) -> Tensor:
    """The hidden states that predict the answers' tokens, [M, D]."""
    hidden_1TD, _, _ = model.hidden(micro.ids_1T, micro.documents_1T)
    return hidden_1TD[0].index_select(0, micro.places_M)


def reference_logps(model: CausalLM, reference: CausalLM | None, micro: Micro, temperature: float) -> Tensor:
    """Log-probabilities by the model that it started as: another one, or the one under the adapter."""
    under: AbstractContextManager[None] = lora.without(model) if reference is None else nullcontext()
    with torch.no_grad(), under:
        before = reference or model
        logps_M, _ = token_logprobs(hidden(before, micro), before.lm_head.weight, micro.targets_M, temperature)
    return logps_M


def frozen_start(settings: RlSettings, base: Path) -> CausalLM | None:
    """The model that training starts from, to be held beside; none where it lies under an adapter."""
    if settings.lora is not None:
        return None
    reference = CausalLM.load(base).eval().requires_grad_(False)
    return reference.to(choose_device(settings.device))
