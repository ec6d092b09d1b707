"""Group relative policy optimisation: several answers to each prompt, each measured by the mean of its group.

Sources: DeepSeekMath (arXiv 2402.03300), DeepSeek-R1 (arXiv 2501.12948); Dr. GRPO (arXiv 2503.20783); DAPO (arXiv 2503.14476).

Groups whose answers are all rewarded alike have advantages of 0 and so no gradient: without a KL term they are counted and not run.
Every sum is divided as if they were, so the update is the same. No balance loss is taken on a mixture of experts; the biases go on
being moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.model.loss import token_logprobs
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import parallel, state
from tinyseek.train.objective import Batch, Update
from tinyseek.tune.rl import stage
from tinyseek.tune.rl.asking import Asking, Heard, Lesson, Micro, Questions, in_pieces, lay_out
from tinyseek.tune.rl.losses import Floats, Spread, clipped_policy_loss, group_advantages, k3, token_weights
from tinyseek.tune.rl.options import GrpoSettings
from tinyseek.tune.rl.policy import Gap, Learning, hidden, reference_logps
from tinyseek.tune.rl.rewards import RewardSet

_COLUMNS = ("advantage", "weight", "sampled")


@dataclass
class Known:
    """What is known of a batch's micro-batches before the first update: log-probabilities by the weights that sampled them, and by
    the reference."""

    old_M: dict[int, Tensor] = field(default_factory=dict)
    reference_M: dict[int, Tensor] = field(default_factory=dict)
    made: bool = False


class Grpo(Asking[GrpoSettings]):
    """The objective."""

    per: ClassVar[Literal["targets", "items"]] = "items"

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        questions: Questions,
        rewards: RewardSet,
        settings: GrpoSettings,
        work: Path,
        reference: CausalLM | None = None,
    ) -> None:
        """See `Asking`.

        Args:
            reference: the model it started as, for `beta`; none for an adapter, which has it underneath.
        """
        super().__init__(model, tokenizer, questions, rewards, settings, work)
        self._reference = reference
        self._gap = Gap()
        self._known = Known()
        self._batch = Batch([], 0)

    # ---- making a batch ----

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Ask the prompts of those numbers, and lay out what can be learned from the answers."""
        settings = self.settings
        heard = self.asked(indices)
        heard, asked, dropped = self._with_differences(heard)
        advantages_PG, equal_P = self._advantages(heard)
        self.tell(heard, advantages_PG)
        figures = self.figures(heard)
        counts = [float(asked), float(dropped), float(len(equal_P)), float(equal_P.sum())]
        all_asked, all_dropped, prompts, equal = parallel.total(counts)
        figures["frac_reward_zero_std"] = equal / max(1.0, prompts)
        if settings.dynamic_sampling:
            figures |= {"dynamic_sampling/asked": all_asked, "dynamic_sampling/dropped": all_dropped}

        parts = np.array_split(np.arange(len(heard.questions)), settings.minibatches)
        updates = [self._update(heard.chosen(part), advantages_PG[part], accumulate, device) for part in parts]
        learned = parallel.total([update.learned for update in updates])
        for update, told in zip(updates, learned, strict=True):
            update.learned = max(1.0, told)
        passes: list[Update] = [*updates] * settings.num_iterations
        tokens = sum(len(q.ids) + len(a.ids) for q, g in zip(heard.questions, heard.answers, strict=True) for a in g)
        self._gap, self._known = Gap(), Known()
        self._batch = Batch(passes, tokens, figures | self._gap.figures())
        return self._batch

    def _with_differences(self, heard: Heard) -> tuple[Heard, int, int]:
        """With dynamic sampling: other prompts in the place of those whose answers are all rewarded alike.

        Returns:
            What was heard, how many prompts were asked in all, and how many were dropped.
        """
        asked, dropped = len(heard.questions), 0
        rng = np.random.default_rng([self.settings.seed, self.batches, parallel.rank()])
        for attempt in range(self.settings.dynamic_sampling):
            _, equal_P = group_advantages(heard.rewards_PG, "none")
            missing = int(equal_P.sum())
            if not missing:
                break
            numbers = rng.choice(len(self), missing, replace=len(self) < missing).tolist()
            questions = [self.questions.train[number] for number in numbers]
            more = self.ask(questions, self.seeds_of(numbers, 2 + attempt), self.settings.num_generations)
            asked += missing
            _, still_P = group_advantages(more.rewards_PG, "none")
            found = np.flatnonzero(~still_P)
            keep = [int(p) for p in np.flatnonzero(~equal_P)]
            spare = [int(p) for p in np.flatnonzero(equal_P)][len(found) :]  # what there is nothing better for
            dropped += len(found)
            heard = heard.chosen(keep).joined(more.chosen(found)).joined(heard.chosen(spare))
        return heard, asked, dropped

    def _advantages(self, heard: Heard) -> tuple[Floats, NDArray[np.bool_]]:
        spread = None
        if self.settings.scale_rewards == "batch":
            own = Spread.of(heard.rewards_PG)
            spread = Spread(*parallel.total([own.count, own.total, own.squares]))
        return group_advantages(heard.rewards_PG, self.settings.scale_rewards, spread)

    def _update(self, heard: Heard, advantages_PG: Floats, accumulate: int, device: torch.device) -> Learning:
        """The answers of some prompts as an update."""
        settings = self.settings
        lengths = np.array([len(a.ids) for group in heard.answers for a in group], dtype=np.int64)
        weights, self._divisor = token_weights(settings.loss, lengths, settings.max_completion_length)
        lessons, targets, at = [], 0, 0
        for question, group, advantages_G in zip(heard.questions, heard.answers, advantages_PG, strict=True):
            for answer, advantage in zip(group, advantages_G, strict=True):
                tokens, weight = len(answer.ids), weights[at]
                at += 1
                if settings.mask_truncated_completions and not answer.finished:
                    continue
                targets += tokens
                if advantage or settings.beta:
                    columns = (np.full(tokens, advantage), np.full(tokens, weight), np.array(answer.logps))
                    lessons.append(Lesson(question.ids, answer, dict(zip(_COLUMNS, columns, strict=True))))
        pieces = in_pieces(lessons, accumulate, settings.tokens_at_once)
        micro = [lay_out(piece, _COLUMNS, device) for piece in pieces]
        learned = float(sum(len(lesson.answer.ids) for lesson in lessons))
        return Learning(micro, targets, len(lengths), learned)

    # ---- learning from it ----

    def losses(self, model: nn.Module, micro: Micro, update: Update) -> dict[str, Tensor]:
        """A micro-batch's shares: the loss, and by TRL's names the entropy, the shares of clipped ratios, the divergence."""
        assert isinstance(model, CausalLM)
        assert isinstance(update, Learning)
        settings = self.settings
        if not self._known.made:
            self._know(model)
        if not len(micro.places_M):  # nothing to learn here; the loop wants figures all the same
            nothing = torch.zeros((), device=micro.ids_1T.device)
            names = ["loss", "entropy", *_CLIPPED, *(["kl"] if settings.beta else [])]
            return {"total": nothing.clone().requires_grad_(), **dict.fromkeys(names, nothing)}
        hidden_MD = hidden(model, micro)
        logps_M, entropy_M = token_logprobs(hidden_MD, model.lm_head.weight, micro.targets_M, settings.temperature)
        old_M = self._known.old_M.get(id(micro))
        if old_M is None:
            old_M = logps_M.detach()
            self._gap.compare(model, micro, hidden_MD, old_M, settings.temperature)
            self._batch.figures.update(self._gap.figures())
        advantages_M, weights_M = micro.at_M["advantage"], micro.at_M["weight"]
        clipped = clipped_policy_loss(logps_M, old_M, advantages_M, *settings.clip_range)
        loss_M = clipped.loss_N
        by = float(max(1, update.items if self._divisor == "items" else update.targets))
        told = {"entropy": entropy_M}
        told |= dict(zip(_CLIPPED, (clipped.low_N, clipped.high_N, clipped.low_N + clipped.high_N), strict=True))
        if settings.beta:
            kl_M = k3(logps_M, self._known.reference_M[id(micro)])
            kl_M = kl_M * clipped.ratio_N if settings.use_bias_correction_kl else kl_M
            loss_M = loss_M + settings.beta * kl_M
            told["kl"] = kl_M.detach()
        total = (loss_M * weights_M).sum() / by
        return {"total": total, "loss": total.detach(), **{n: v.sum() / update.learned for n, v in told.items()}}

    @torch.no_grad()
    def _know(self, model: CausalLM) -> None:
        """What the batch's tokens are worth to the weights before any update, where there are several, and to the reference.

        Here and not in `fetch`, since here the loop has set the precision that it trains in.
        """
        self._known.made = True
        several = len(self._batch.updates) > 1
        if not several and not self.settings.beta:
            return
        model.eval()
        try:
            for micro in {id(m): m for update in self._batch.updates for m in update.micro}.values():
                if not len(micro.places_M):
                    continue
                if several:
                    hidden_MD = hidden(model, micro)
                    old_M, _ = token_logprobs(
                        hidden_MD, model.lm_head.weight, micro.targets_M, self.settings.temperature
                    )
                    self._known.old_M[id(micro)] = old_M
                    self._gap.compare(model, micro, hidden_MD, old_M, self.settings.temperature)
                    self._batch.figures.update(self._gap.figures())
                if self.settings.beta:
                    self._known.reference_M[id(micro)] = reference_logps(
                        model, self._reference, micro, self.settings.temperature
                    )
        finally:
            model.train()
            torch.clear_autocast_cache()  # weights that were cast without a gradient must not serve what needs one


_CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


# ---- the stage -------------------------------------------------------------------------------------------------------------------


def build(settings: GrpoSettings, folder: Path) -> None:
    """Train a model, or an adapter for it, by group relative policy optimisation; see `stage.train`."""
    stage.train(settings, folder, "grpo", make, reference=settings.beta > 0)


def make(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Questions,
    rewards: RewardSet,
    settings: GrpoSettings,
    work: Path,
    reference: CausalLM | None,
    resume: state.Checkpoint | None,  # noqa: ARG001  (all of it is in the model)
) -> tuple[CausalLM, Grpo]:
    """What is trained, and the objective."""
    return model, Grpo(model, tokenizer, questions, rewards, settings, work, reference)
