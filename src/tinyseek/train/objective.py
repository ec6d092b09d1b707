"""What a stage minimises: how its data become a batch, and a batch a loss. The loop (loop.py) asks nothing else of a stage.

A loss is given as a share: divided by the targets or items of the whole update, so that the shares of micro-batches, and of
several processes, add up to the update's mean and their gradients to its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import Rows
from tinyseek.train.options import TrainSettings

IGNORED = -100


class Source(Protocol):
    """Rows of tokens by number: `text.shards.Windows` and `Packed` give a row for each, `EndToEnd` one row of all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Rows: ...


@dataclass
class Update:
    """What one step of the optimizer learns from."""

    micro: list[Any]  # micro-batches, each what `Objective.losses` is given at a time
    targets: int  # tokens with a target, in all of them; and in all processes, once the loop has added them up
    items: int  # sequences, pairs, texts; likewise


@dataclass
class Batch:
    """What is made of one drawing of items: nearly always one update; rollouts may be learned from in several."""

    updates: list[Update]
    tokens: int  # positions worked through
    figures: dict[str, float] = field(default_factory=dict)  # what making it told: rewards, lengths; logged as they are


class Objective:
    """What is learned, and how it is measured on what was held out."""

    on_policy: ClassVar[bool] = (
        False  # a batch depends on the weights, so that it is made after the last update of them
    )
    per: ClassVar[Literal["targets", "items"]] = "targets"  # what the figures of `losses` are means over
    shown: ClassVar[str] = (
        "loss"  # the figure that a person follows: it leads the progress line, and is the picture's curve
    )
    label: ClassVar[str] = "loss"  # what the picture calls it

    held_out: Objective | None = None  # the same over held-out items

    def __len__(self) -> int:
        """How many items there are to draw from."""
        raise NotImplementedError

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """The items of those numbers as a batch, each of its updates in at most `accumulate` micro-batches."""
        raise NotImplementedError

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """A micro-batch's shares of the update's figures, scalars: "total" is differentiated, "loss" is what is watched
        (where it is another), the rest is logged by its name."""
        raise NotImplementedError

    def validate(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """The figures of held-out items, at most `val_batches` batches of them, evenly spread and always the same; empty where
        nothing is held out. "loss" is the one that decides which checkpoint is the best."""
        if self.held_out is None or not len(self.held_out):
            return {}
        size = settings.batch_size // settings.accumulate
        count = min(len(self.held_out), settings.val_batches * settings.batch_size)
        chosen = np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64)
        sums: dict[str, list[Tensor]] = {}
        weight = 0
        model.eval()
        try:
            for start in range(0, count, size):
                for update in self.held_out.fetch(chosen[start : start + size], 1, device).updates:
                    share = getattr(update, self.per)
                    weight += share
                    for micro in update.micro:
                        with torch.no_grad(), autocast():
                            figures = watched(self.held_out.losses(model, micro, update))
                        for name, value in figures.items():
                            sums.setdefault(name, []).append(value.detach().float() * share)
        finally:
            model.train()
        return {name: float(torch.stack(parts).cpu().double().sum()) / max(1, weight) for name, parts in sums.items()}

    def state(self) -> dict[str, Any]:
        """What else a resumed run needs to go on as if it had never stopped, as plain JSON; taken between batches."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


def watched(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The figures to log, "loss" among them."""
    figures = {name: value for name, value in losses.items() if name != "total"}
    return figures if "loss" in figures else {"loss": losses["total"], **figures}


class LanguageModelling(Objective):
    """Cross-entropy of the next token over rows of tokens, with multi-token prediction and the experts' balance."""

    label: ClassVar[str] = "loss (nats a token)"

    def __init__(self, source: Source, held_out: Source | None = None) -> None:
        self.source = source
        self.held_out = LanguageModelling(held_out) if held_out is not None else None

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Micro-batches of ids, targets, documents, each [rows, T]."""
        parts = [self.source[at] for at in parted(indices, accumulate)]
        targets = sum(int((rows.targets_BT != IGNORED).sum()) for rows in parts)
        micro = [
            (
                on_device(rows.ids_BT, device),
                on_device(rows.targets_BT, device),
                None if rows.documents_BT is None else on_device(rows.documents_BT, device),
            )
            for rows in parts
        ]
        return Batch([Update(micro, targets, len(indices))], sum(rows.ids_BT.size for rows in parts))

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """See `CausalLM.loss`."""
        assert isinstance(model, CausalLM)
        ids_BT, targets_BT, documents_BT = micro
        denominator = torch.tensor(float(max(1, update.targets)), device=ids_BT.device)
        losses = model.loss(ids_BT, targets_BT, documents_BT, denominator)
        figures = {"total": losses.total, "loss": losses.next}
        if any(parameter.requires_grad for parameter in model.mtp.parameters()):
            figures["mtp"] = losses.mtp
        if model.config.n_routed_experts:
            figures["balance"] = losses.balance
        return figures


def parted(indices: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Indices in at most `parts` pieces, of equal size but for the last."""
    size = max(1, math.ceil(len(indices) / parts))
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor, copied to a GPU while that is still at work."""
    made = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return made.pin_memory().to(device, non_blocking=True)
    return made if device.type == "cpu" else made.to(device)
