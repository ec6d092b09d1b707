"""Learning from pairs: DPO, IPO, hinge, SimPO, ORPO, on batches of pairs in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.model.transformer import CausalLM
from tinyseek.train import parallel
from tinyseek.train.objective import Batch, Objective, Update, on_device, parted
from tinyseek.tune.preferences.losses import Side, judge
from tinyseek.tune.preferences.options import DpoSettings
from tinyseek.tune.preferences.reference import Reference
from tinyseek.tune.preferences.texts import Row, Texts, likelihood


class Whole:
    """Counts over an update: of all its micro-batches, and in training of all processes."""

    def __init__(self, counts: Sequence[float]) -> None:
        self._own = list(counts)
        self._all: list[float] | None = None

    def counts(self, model: nn.Module) -> list[float]:
        """The sums, exchanged once; every process comes here as often."""
        if self._all is None:
            device = next(model.parameters()).device
            self._all = parallel.total(self._own, device) if model.training else self._own
        return self._all


@dataclass
class Pairs:
    """A micro-batch of P pairs: chosen answers, then rejected ones."""

    row: Row
    reference_S: Tensor | None
    whole: Whole = field(repr=False)  # tokens of the chosen answers' own loss; of all answers

    @property
    def count(self) -> int:
        return len(self.row.tokens_S) // 2


class Preferring(Objective):
    """Chosen answers become likelier than rejected ones."""

    per: ClassVar[Literal["targets", "items"]] = "items"
    shown: ClassVar[str] = "rewards/accuracies"
    label: ClassVar[str] = "share of pairs with the chosen answer above (rewards/accuracies)"

    def __init__(
        self,
        texts: Texts,
        settings: DpoSettings,
        reference: Reference | NDArray[np.float32] | None,
        held_out: Preferring | None = None,
    ) -> None:
        """
        Args:
            texts: of pair i the chosen answer is number 2i, the rejected one 2i + 1.
            reference: what is asked at each step, or what it said of each text; none where the loss has none.
        """
        self.texts, self.settings, self.reference, self.held_out = texts, settings, reference, held_out

    def __len__(self) -> int:
        return len(self.texts) // 2

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Micro-batches of `Pairs`."""
        everything = self.settings.loss == "orpo"
        rows, references = [], []
        for at in parted(indices, accumulate):
            numbers = np.concatenate((2 * at, 2 * at + 1))
            texts = [self.texts[int(number)] for number in numbers]
            rows.append(Row.of(texts, device, whole=len(at) if everything else 0))
            known = isinstance(self.reference, np.ndarray)
            references.append(on_device(self.reference[numbers], device) if known else None)  # type: ignore[index]
        answers = sum(int(row.tokens_S.sum()) for row in rows)
        own = sum(int((row.owners_N < len(row.tokens_S) // 2).sum()) for row in rows)
        whole = Whole([own, answers])
        micro = [Pairs(row, reference, whole) for row, reference in zip(rows, references, strict=True)]
        tokens = sum(row.ids_1T.shape[1] for row in rows)
        return Batch([Update(micro, answers, len(indices))], tokens)

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """The loss of a micro-batch, and TRL's figures."""
        assert isinstance(model, CausalLM)
        assert isinstance(micro, Pairs)
        settings, row = self.settings, micro.row
        own, answers = micro.whole.counts(model)
        reference_S = micro.reference_S
        if isinstance(self.reference, Reference):
            with torch.no_grad(), self.reference.of(model) as before:
                reference_S = likelihood(before, row).answers_S
        found = likelihood(model, row)
        chosen, rejected = sides(found.answers_S, row.tokens_S, reference_S)
        judged = judge(chosen, rejected, settings)
        nll = -found.logps_N[row.owners_N < micro.count].sum() / own
        weight = 1.0 if settings.loss == "orpo" else settings.rpo_alpha
        loss = judged.losses_P.sum() / update.items + (weight * nll if weight else 0.0)
        share = micro.count / update.items
        gap_P = judged.chosen_rewards_P - judged.rejected_rewards_P
        means = settings.loss in ("simpo", "orpo")
        figures = {
            "total": loss + share * found.balance,
            "loss": loss,
            "rewards/chosen": judged.chosen_rewards_P.sum() / update.items,
            "rewards/rejected": judged.rejected_rewards_P.sum() / update.items,
            "rewards/margins": gap_P.sum() / update.items,
            "rewards/accuracies": (gap_P > 0).float().sum() / update.items,
            "logps/chosen": (chosen.mean_P if means else chosen.logps_P).sum() / update.items,
            "logps/rejected": (rejected.mean_P if means else rejected.logps_P).sum() / update.items,
            "nll_loss": nll,
            "entropy": found.entropy / answers,
        }
        if judged.log_odds_P is not None:
            figures["log_odds_chosen"] = judged.log_odds_P.sum() / update.items
            figures["log_odds_ratio"] = nn.functional.logsigmoid(judged.log_odds_P).sum() / update.items
        return figures


def sides(answers_S: Tensor, tokens_S: Tensor, reference_S: Tensor | None) -> tuple[Side, Side]:
    """Chosen and rejected answers out of what is known of both, one after the other."""
    count = len(answers_S) // 2
    halves = [slice(count), slice(count, None)]
    one, other = (
        Side(answers_S[half], tokens_S[half], None if reference_S is None else reference_S[half]) for half in halves
    )
    return one, other
