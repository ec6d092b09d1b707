"""Proximal policy optimisation: a value head on the model itself tells what to expect after each token.

A token's reward is what it costs to diverge from the start, and the last one's also the answer's score; its advantage is estimated
from these and the values (GAE). Policy and value head share the trunk and learn together.

Sources: PPO (arXiv 1707.06347), GAE (arXiv 1506.02438), for language models Ziegler et al. (arXiv 1909.08593) and Stiennon et al.
(arXiv 2009.01325), whose settings TRL's names are of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model.heads import SequenceClassifier
from tinyseek.model.loss import token_logprobs
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import parallel, state
from tinyseek.train.objective import Batch, Update
from tinyseek.tune.rl import stage
from tinyseek.tune.rl.asking import Asking, Heard, Lesson, Micro, Questions, in_pieces, lay_out
from tinyseek.tune.rl.losses import Spread, advantage_estimates, clipped_policy_loss, clipped_value_loss, k3, whitened
from tinyseek.tune.rl.options import PpoSettings
from tinyseek.tune.rl.policy import Gap, Learning, hidden, reference_logps
from tinyseek.tune.rl.rewards import RewardSet

VALUE_HEAD = "value_head.safetensors"
_COLUMNS = ("score", "sampled")
_TOLD = ("policy/clipfrac", "policy/approxkl", "loss/policy", "loss/value", "value/clipfrac", "entropy")


@dataclass(frozen=True)
class Known:
    """What is known of a micro-batch's tokens before the first update."""

    logps_M: Tensor
    values_M: Tensor
    advantages_M: Tensor
    returns_M: Tensor


class Ppo(Asking[PpoSettings]):
    """The objective, over a `SequenceClassifier` of one label whose trunk is the policy."""

    def __init__(
        self,
        module: SequenceClassifier,
        tokenizer: Tokenizer,
        questions: Questions,
        rewards: RewardSet,
        settings: PpoSettings,
        work: Path,
        reference: CausalLM | None = None,
    ) -> None:
        """See `Asking`.

        Args:
            reference: the model it started as; none for an adapter, which has it underneath.
        """
        super().__init__(module.trunk, tokenizer, questions, rewards, settings, work)
        self._module, self._reference = module, reference
        self._gap = Gap()
        self._known: dict[int, Known] = {}
        self._batch = Batch([], 0)
        self._knows = False

    def keep(self, target: Path) -> None:
        """See `Asking.keep`: the value head too."""
        super().keep(target)
        save_file({"score.weight": self._module.score.weight.detach().contiguous()}, target / VALUE_HEAD)

    # ---- making a batch ----

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Ask the prompts of those numbers, and lay out the answers."""
        settings = self.settings
        heard = self.asked(indices)
        self.tell(heard)
        figures = self.figures(heard)
        parts = np.array_split(np.arange(len(heard.questions)), settings.minibatches)
        updates = [self._update(heard.chosen(part), accumulate, device) for part in parts]
        learned = parallel.total([update.learned for update in updates])
        for update, told in zip(updates, learned, strict=True):
            update.learned = max(1.0, told)
        passes: list[Update] = [*updates] * settings.num_ppo_epochs
        tokens = sum(len(q.ids) + len(a.ids) for q, g in zip(heard.questions, heard.answers, strict=True) for a in g)
        self._gap, self._known, self._knows = Gap(), {}, False
        self._batch = Batch(passes, tokens, figures)
        return self._batch

    def _update(self, heard: Heard, accumulate: int, device: torch.device) -> Learning:
        """The answers of some prompts as an update; those that no reward said anything of are left out."""
        lessons = []
        for question, group, rewards_G in zip(heard.questions, heard.answers, heard.rewards_PG, strict=True):
            for answer, reward in zip(group, rewards_G, strict=True):
                if np.isnan(reward):
                    continue
                score = np.zeros(len(answer.ids))
                score[-1] = reward - (0.0 if answer.finished else self.settings.missing_eos_penalty)
                columns = {"score": score, "sampled": np.array(answer.logps)}
                lessons.append(Lesson(question.ids, answer, columns))
        micro = [
            lay_out(piece, _COLUMNS, device) for piece in in_pieces(lessons, accumulate, self.settings.tokens_at_once)
        ]
        tokens = sum(len(lesson.answer.ids) for lesson in lessons)
        return Learning(micro, tokens, len(lessons), float(tokens))

    # ---- learning from it ----

    def losses(self, model: nn.Module, micro: Micro, update: Update) -> dict[str, Tensor]:
        """A micro-batch's shares of the loss of policy and values together, and of TRL's figures."""
        assert isinstance(model, SequenceClassifier)
        assert isinstance(update, Learning)
        settings = self.settings
        if not self._knows:
            self._know(model)
        if not len(micro.places_M):
            nothing = torch.zeros((), device=micro.ids_1T.device)
            return {"total": nothing.clone().requires_grad_(), **dict.fromkeys(("loss", *_TOLD), nothing)}
        known = self._known[id(micro)]
        hidden_MD = hidden(model.trunk, micro)
        logps_M, entropy_M = token_logprobs(
            hidden_MD, model.trunk.lm_head.weight, micro.targets_M, settings.temperature
        )
        values_M = model.scored(hidden_MD)[:, 0]
        clipped = clipped_policy_loss(
            logps_M, known.logps_M, known.advantages_M, settings.cliprange, settings.cliprange
        )
        value_M, moved_M = clipped_value_loss(values_M, known.values_M, known.returns_M, settings.cliprange_value)
        total = (clipped.loss_N + settings.vf_coef * value_M).sum() / update.learned
        with torch.no_grad():
            off_M = logps_M - known.logps_M
            told = (clipped.low_N + clipped.high_N, 0.5 * off_M.square(), clipped.loss_N, value_M, moved_M, entropy_M)
            shares = {name: figure.sum() / update.learned for name, figure in zip(_TOLD, told, strict=True)}
        return {"total": total, "loss": total.detach(), **shares}

    @torch.no_grad()
    def _know(self, model: SequenceClassifier) -> None:
        """What the tokens of the batch are worth before any update: log-probabilities, values, advantages, returns.

        Here and not in `fetch`, since here the loop has set the precision that it trains in.
        """
        self._knows = True
        settings, trunk = self.settings, model.trunk
        micros = list({id(m): m for update in self._batch.updates for m in update.micro}.values())
        micros = [micro for micro in micros if len(micro.places_M)]
        logps, values, costs = [], [], []
        model.eval()
        try:
            for micro in micros:
                hidden_MD = hidden(trunk, micro)
                logps_M, _ = token_logprobs(hidden_MD, trunk.lm_head.weight, micro.targets_M, settings.temperature)
                self._gap.compare(trunk, micro, hidden_MD, logps_M, settings.temperature)
                logps.append(logps_M)
                values.append(model.scored(hidden_MD)[:, 0])
                costs.append(self._divergence(trunk, micro, logps_M))
        finally:
            model.train()
            torch.clear_autocast_cache()  # weights that were cast without a gradient must not serve what needs one
        self._estimate(micros, logps, values, costs)

    def _divergence(self, trunk: CausalLM, micro: Micro, logps_M: Tensor) -> Tensor:
        if not self.settings.kl_coef:
            return torch.zeros_like(logps_M)
        before_M = reference_logps(trunk, self._reference, micro, self.settings.temperature)
        return logps_M - before_M if self.settings.kl_estimator == "k1" else k3(logps_M, before_M)

    def _estimate(
        self, micros: list[Micro], logps: list[Tensor], values: list[Tensor], divergences: list[Tensor]
    ) -> None:
        """Rewards of tokens to advantages and returns, by answer; advantages brought to mean 0 and variance 1 over the batch."""
        settings = self.settings
        scores, costs, known = (
            [tensor.double().cpu().numpy() for tensor in tensors]
            for tensors in ([m.at_M["score"] for m in micros], divergences, values)
        )
        rewards = [score - settings.kl_coef * cost for score, cost in zip(scores, costs, strict=True)]
        if settings.whiten_rewards:
            spread = _over_all(rewards)
            rewards = [whitened(reward, spread, shift=False) for reward in rewards]
        advantages, returns = [], []
        for micro, reward_M, value_M in zip(micros, rewards, known, strict=True):
            ends = np.flatnonzero(np.diff(micro.owners_M.cpu().numpy())) + 1
            parts = [
                advantage_estimates(reward_T, value_T, settings.gamma, settings.lam)
                for reward_T, value_T in zip(np.split(reward_M, ends), np.split(value_M, ends), strict=True)
            ]
            advantages.append(np.concatenate([part[0] for part in parts]))
            returns.append(np.concatenate([part[1] for part in parts]))
        spread = _over_all(advantages)
        for micro, logps_M, values_M, advantage_M, return_M in zip(
            micros, logps, values, advantages, returns, strict=True
        ):
            whitened_M, returned_M = (
                torch.from_numpy(array.astype(np.float32)).to(logps_M.device)
                for array in (whitened(advantage_M, spread), return_M)
            )
            self._known[id(micro)] = Known(logps_M, values_M, whitened_M, returned_M)
        answers = float(sum(int(micro.owners_M[-1]) + 1 for micro in micros))
        sums = [answers, *(float(sum(part.sum() for part in parts)) for parts in (costs, scores))]
        count, cost, score = parallel.total(sums)
        explained = _explained(returns, known)
        self._batch.figures.update(
            {
                "objective/kl": cost / max(1.0, count),
                "objective/scores": score / max(1.0, count),
                "objective/rlhf_reward": (score - settings.kl_coef * cost) / max(1.0, count),
                "value/explained_variance": explained,
                **self._gap.figures(),
            }
        )


def _over_all(parts: list[NDArray[np.float64]]) -> Spread:
    """The spread of numbers over all processes."""
    own = Spread.of(np.concatenate([np.zeros(0), *parts]))
    return Spread(*parallel.total([own.count, own.total, own.squares]))


def _explained(returns: list[NDArray[np.float64]], values: list[NDArray[np.float64]]) -> float:
    """The share of the returns' variance that the values foretell: 1 all, 0 no more than their mean, below 0 less."""
    whole, told = np.concatenate([np.zeros(0), *returns]), np.concatenate([np.zeros(0), *values])
    spread = float(whole.var()) if whole.size else 0.0
    return 1 - float((whole - told).var()) / spread if spread > 1e-12 else 0.0


# ---- the stage -------------------------------------------------------------------------------------------------------------------


def build(settings: PpoSettings, folder: Path) -> None:
    """Train a model, or an adapter for it, by proximal policy optimisation; see `stage.train`. The value head is kept beside."""
    stage.train(settings, folder, "ppo", make, reference=settings.kl_coef > 0)


def make(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Questions,
    rewards: RewardSet,
    settings: PpoSettings,
    work: Path,
    reference: CausalLM | None,
    resume: state.Checkpoint | None,
) -> tuple[SequenceClassifier, Ppo]:
    """The model with a value head on it, which at first expects nothing; and the objective."""
    module = SequenceClassifier(model)
    weight = torch.zeros_like(module.score.weight)
    if resume:
        found = load_file(resume.folder / VALUE_HEAD).get("score.weight")
        if found is None or found.shape != weight.shape:
            raise UserError(f"{resume.folder / VALUE_HEAD}: damaged; delete this checkpoint and run again")
        weight = found
    with torch.no_grad():
        module.score.weight.copy_(weight)
    return module, Ppo(module, tokenizer, questions, rewards, settings, work, reference)
