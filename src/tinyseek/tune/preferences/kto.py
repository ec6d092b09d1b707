"""Learning from thumbs: KTO, on batches of single answers that were liked or not.

An answer's reward is measured against how far the policy is from the reference on the whole. That is estimated from the batch: each
prompt with the answer of the one before it, which says little of the prompt, has the mean log-ratio that any answer would have.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.model.transformer import CausalLM
from tinyseek.train import parallel
from tinyseek.train.objective import Batch, Objective, Update, on_device, parted
from tinyseek.train.options import TrainSettings
from tinyseek.tune.preferences.losses import kto
from tinyseek.tune.preferences.options import KtoSettings
from tinyseek.tune.preferences.reference import Reference
from tinyseek.tune.preferences.texts import Row, Texts, likelihood


class Mismatched:
    """An update's prompts with each other's answers: the estimate of KL(policy | reference) that all its micro-batches share."""

    def __init__(self, rows: list[Row], good: int, answers: int) -> None:
        self.rows, self._good, self._answers = rows, good, answers
        self._known: tuple[Tensor, list[float]] | None = None

    @torch.no_grad()
    def measure(self, model: CausalLM, reference: Reference) -> tuple[Tensor, list[float]]:
        """KL in nats an answer, not below 0; and how many answers were liked, how many were not, how many tokens they have."""
        if self._known is None:
            training = model.training
            ratios = []
            for row in self.rows:
                model.eval()  # no dropout, and these visits are no load of the experts
                ratio_S = likelihood(model, row).answers_S
                model.train(training)
                with reference.of(model) as before:
                    ratios.append(ratio_S - likelihood(before, row).answers_S)
            ratio_B = torch.cat(ratios)
            counts = [float(ratio_B.sum()), len(ratio_B), self._good, len(ratio_B) - self._good, self._answers]
            summed, count, *rest = parallel.total(counts, ratio_B.device) if training else counts
            self._known = ratio_B.new_tensor(summed / count).clamp(min=0), rest
        return self._known


@dataclass
class Thumbs:
    """A micro-batch of P answers."""

    row: Row
    good_P: Tensor  # bool
    mismatched: Mismatched


class Liking(Objective):
    """Liked answers become likelier than the reference has them, the others less likely."""

    per: ClassVar[Literal["targets", "items"]] = "items"
    shown: ClassVar[str] = "rewards/margins"
    label: ClassVar[str] = "reward of liked answers above that of the others (rewards/margins)"

    def __init__(
        self,
        texts: Texts,
        good: NDArray[np.bool_],
        settings: KtoSettings,
        reference: Reference,
        held_out: Liking | None = None,
    ) -> None:
        """
        Args:
            good: of each text, whether it was liked.
        """
        self.texts, self.good, self.settings, self.reference = texts, good, settings, reference
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self.texts)

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Micro-batches of `Thumbs`."""
        texts = [self.texts[int(number)] for number in indices]
        longest = self.settings.seq_len + 1
        other = [text.with_answer_of(texts[number - 1], longest) for number, text in enumerate(texts)]
        places = parted(np.arange(len(texts)), accumulate)
        rows = [Row.of([texts[at] for at in part], device) for part in places]
        answers = sum(int(row.tokens_S.sum()) for row in rows)
        shifted = [Row.of([other[at] for at in part], device) for part in places]
        good = self.good[indices]
        mismatched = Mismatched(shifted, int(good.sum()), answers)
        micro = [Thumbs(row, on_device(good[part], device), mismatched) for row, part in zip(rows, places, strict=True)]
        tokens = sum(row.ids_1T.shape[1] for row in rows)
        return Batch([Update(micro, answers, len(indices))], tokens)

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """The loss of a micro-batch, and TRL's figures; those of answers that the update has none of are left out.

        What is told of liked answers is their mean; held out, their sum over all answers, from which `validate` makes it.
        """
        assert isinstance(model, CausalLM)
        assert isinstance(micro, Thumbs)
        row, good_P = micro.row, micro.good_P
        kl, (good, bad, answers) = micro.mismatched.measure(model, self.reference)
        with torch.no_grad(), self.reference.of(model) as before:
            reference_P = likelihood(before, row).answers_S
        found = likelihood(model, row)
        losses_P, rewards_P = kto(found.answers_S - reference_P, good_P, kl, self.settings)
        loss = losses_P.sum() / update.items
        share = len(good_P) / update.items
        figures = {"total": loss + share * found.balance, "loss": loss}
        for name, chosen_P, count in (("chosen", good_P, good), ("rejected", ~good_P, bad)):
            if not model.training:
                figures[f"share/{name}"] = chosen_P.float().sum() / update.items
                count = update.items
            if count:
                figures[f"rewards/{name}"] = rewards_P[chosen_P].sum() / count
                figures[f"logps/{name}"] = found.answers_S.detach()[chosen_P].sum() / count
        if good and bad and model.training:
            figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
        return figures | {"kl": kl * share, "entropy": found.entropy / answers}

    def validate(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """See `Objective.validate`."""
        figures = super().validate(model, settings, device, autocast)
        for name in ("chosen", "rejected"):
            share = figures.pop(f"share/{name}", 0.0)
            for told in (f"rewards/{name}", f"logps/{name}"):
                if told in figures:
                    figures[told] = figures[told] / share if share else 0.0
        if "rewards/chosen" in figures:
            figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
        return figures
