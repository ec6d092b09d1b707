"""What a classifier minimises: the cross-entropy of each text's class, over texts laid end to end without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model.heads import SequenceClassifier
from tinyseek.settings import suggestion
from tinyseek.train.objective import Batch, Objective, Update, on_device, parted
from tinyseek.train.options import TrainSettings
from tinyseek.tune.classify.scores import Scores
from tinyseek.tune.classify.texts import Encoded


@dataclass(frozen=True)
class Line:
    """M texts end to end, T positions in all."""

    ids_1T: Tensor
    documents_1T: Tensor
    places_M: Tensor  # where each text is read

    @staticmethod
    def of(texts: Sequence[Sequence[int]], pad_id: int | None, device: torch.device) -> Line:
        """Lay texts end to end; each is read at its last token that is not `pad_id`, as `SequenceClassifier.last_of` does."""
        ends = np.cumsum([len(ids) for ids in texts])
        places = [
            end - len(ids) + next((at for at in range(len(ids) - 1, -1, -1) if ids[at] != pad_id), 0)
            for ids, end in zip(texts, ends.tolist(), strict=True)
        ]
        ids_T = np.concatenate([np.asarray(ids, np.int64) for ids in texts])
        documents_T = np.repeat(np.arange(len(texts), dtype=np.int32), [len(ids) for ids in texts])
        return Line(
            on_device(ids_T[None], device),
            on_device(documents_T[None], device),
            on_device(np.asarray(places, np.int64), device),
        )

    def read(self, model: nn.Module) -> Tensor:
        """The logits of each text, float32 [M, labels]."""
        assert isinstance(model, SequenceClassifier)
        return model.at(self.ids_1T, self.documents_1T, self.places_M)


class ClassObjective(Objective):
    """Cross-entropy, with a weight for each class if asked."""

    per: ClassVar[Literal["targets", "items"]] = "items"
    shown: ClassVar[str] = "accuracy"
    label: ClassVar[str] = "accuracy"

    def __init__(
        self,
        texts: Encoded,
        labels: int,
        pad_id: int | None,
        held_out: Encoded | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Over the texts of a split.

        Args:
            weights: of each class; their mean over the texts is made 1, so that the learning rate means what it does without.
        """
        self.texts, self.labels, self.pad_id = texts, labels, pad_id
        self.weights = torch.ones(labels)
        if weights is not None:
            each = torch.tensor(list(weights), dtype=torch.float32)
            self.weights = each / each[torch.tensor(texts.labels)].mean()
        self.held_out = ClassObjective(held_out, labels, pad_id) if held_out is not None and len(held_out) else None

    def __len__(self) -> int:
        return len(self.texts)

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Micro-batches of a `Line` and its classes [M]."""
        micro, tokens = [], 0
        for at in parted(indices, accumulate):
            if not len(at):  # this process has no share of a small batch
                continue
            line = Line.of([self.texts.ids[item] for item in at.tolist()], self.pad_id, device)
            classes_M = on_device(np.asarray([self.texts.labels[item] for item in at.tolist()], np.int64), device)
            micro.append((line, classes_M))
            tokens += line.ids_1T.numel()
        return Batch([Update(micro, len(indices), len(indices))], tokens)

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """Shares of the weighted cross-entropy (differentiated), of the plain one (watched) and of the accuracy."""
        line, classes_M = micro
        logits_ML = line.read(model)
        each_M = F.cross_entropy(logits_ML, classes_M, reduction="none")
        weighted = (self.weights.to(each_M.device)[classes_M] * each_M).sum() / update.items
        right = (logits_ML.argmax(-1) == classes_M).float().sum() / update.items
        return {"total": weighted, "loss": each_M.detach().sum() / update.items, "accuracy": right}

    def validate(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """Cross-entropy, accuracy and the mean of the classes' F1 over held-out texts, at most `val_batches` batches of them."""
        held = self.held_out
        if not isinstance(held, ClassObjective):
            return {}
        count = min(len(held), settings.val_batches * settings.batch_size)
        chosen = np.linspace(0, len(held) - 1, count).round().astype(np.int64).tolist()
        probabilities = read_all(
            model,
            [held.texts.ids[item] for item in chosen],
            self.pad_id,
            device,
            settings.batch_size // settings.accumulate,
            autocast,
        )
        classes = np.asarray([held.texts.labels[item] for item in chosen])
        picked = probabilities[np.arange(count), classes]
        scores = Scores.of(classes, probabilities.argmax(-1), self.labels)
        loss = float(-np.log(np.maximum(picked, 1e-30)).mean())
        return {"loss": loss, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1}


def class_weights(
    asked: Literal["none", "balanced"] | Mapping[str, float], labels: Sequence[str], texts: Encoded
) -> list[float] | None:
    """The weight of each class: of balanced ones inversely as it has texts; none for none.

    Raises:
        UserError: a weight for a label that is none of these.
    """
    if asked == "none":
        return None
    if isinstance(asked, str):
        counts = np.bincount(texts.labels, minlength=len(labels))
        return [float(len(texts) / (len(labels) * max(1, count))) for count in counts]
    for name in asked:
        if name not in labels:
            raise UserError(f'class_weights: there is no label "{name}" in the texts; {suggestion(name, labels)}')
    return [float(asked.get(label, 1.0)) for label in labels]


@torch.no_grad()
def read_all(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    pad_id: int | None,
    device: torch.device,
    batch: int = 16,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    raw: bool = False,
) -> NDArray[np.float64]:
    """The probability of each class for each text [texts, labels]; in training mode again afterwards if it was.

    Args:
        batch: texts at a time; those of like length go together.
        raw: the logits as they are, a reward model's rewards.
    """
    order = sorted(range(len(texts)), key=lambda item: len(texts[item]))
    was_training = model.training
    model.eval()
    out: list[NDArray[np.float64] | None] = [None] * len(texts)
    try:
        for start in range(0, len(order), batch):
            items = order[start : start + batch]
            with autocast():
                logits = Line.of([texts[item] for item in items], pad_id, device).read(model).double()
            rows = (logits if raw else logits.softmax(-1)).cpu().numpy()
            for item, row in zip(items, rows, strict=True):
                out[item] = row
    finally:
        model.train(was_training)
    return np.stack([row for row in out if row is not None]) if out else np.zeros((0, 0))
