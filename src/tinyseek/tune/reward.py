"""The stage `reward`: from preference pairs to a model that gives an answer a number, by Bradley and Terry's model of choice.

Of two answers the chosen one is better with the probability sigmoid(r_chosen - r_rejected); the loss is its negative logarithm
(arXiv 2203.02155, equation 1). The folder is transformers' ...ForSequenceClassification with one label, as TRL's RewardTrainer
makes it, read at the last token of the rendered conversation.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.heads import SCALAR, SequenceClassifier
from tinyseek.text.chat import encode_completion
from tinyseek.text.conversations import Message
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, state
from tinyseek.train.device import choose_device
from tinyseek.train.objective import Batch, Objective, Update, on_device, parted
from tinyseek.tune.classify.objective import Line, read_all
from tinyseek.tune.headed import head_learner
from tinyseek.tune.learner import check_fits
from tinyseek.tune.preferences.pairs import Gathered, gather_pairs, report
from tinyseek.tune.reward_options import RewardSettings
from tinyseek.tune.sft import inputs_of


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | None = None, centering: float = 0.0
) -> Tensor:
    """The loss of each of P pairs: -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2. As TRL's.

    Args:
        chosen_P, rejected_P: rewards.
        margin_P: how much more the chosen one's should be (arXiv 2307.09288, equation 2).
        centering: weight of the second term, which keeps rewards around 0 (arXiv 2312.09244).
    """
    gap_P = chosen_P - rejected_P
    loss_P = -F.logsigmoid(gap_P if margin_P is None else gap_P - margin_P)
    return loss_P + centering * (chosen_P + rejected_P).square() if centering else loss_P


@dataclass(frozen=True)
class Pairs:
    """P pairs as 2P texts: the chosen ones, then the rejected ones."""

    line: Line
    margin_P: Tensor


class Rewarding(Objective):
    """Chosen answers get a larger number than rejected ones."""

    per: ClassVar[Literal["targets", "items"]] = "items"
    shown: ClassVar[str] = "accuracy"
    label: ClassVar[str] = "share of pairs with the chosen answer above"

    def __init__(self, found: Gathered, split: str, settings: RewardSettings, pad_id: int) -> None:
        """Over the pairs of a split; the training split's is measured on those held out."""
        self.ids = found.ids[split]  # chosen and rejected in turn
        self.margins = [settings.margin if margin is None else margin for margin in found.margins[split]]
        self.settings, self.pad_id = settings, pad_id
        self.held_out = Rewarding(found, "val", settings, pad_id) if split == "train" and found.ids["val"] else None

    def __len__(self) -> int:
        return len(self.margins)

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """Micro-batches of `Pairs`."""
        micro, tokens = [], 0
        for at in parted(indices, accumulate):
            if not len(at):  # this process has no share of a small batch
                continue
            items = at.tolist()
            line = Line.of([self.ids[2 * item + side] for side in (0, 1) for item in items], self.pad_id, device)
            margins = np.asarray([self.margins[item] for item in items], np.float32)
            micro.append(Pairs(line, on_device(margins, device)))
            tokens += line.ids_1T.numel()
        return Batch([Update(micro, len(indices), len(indices))], tokens)

    def losses(self, model: nn.Module, micro: Any, update: Update) -> dict[str, Tensor]:
        """Shares of the loss, and of what TRL tells of rewards; their least and greatest are a micro-batch's, as there."""
        rewards = micro.line.read(model).squeeze(-1)
        chosen_P, rejected_P = rewards.chunk(2)
        loss_P = bradley_terry(chosen_P, rejected_P, micro.margin_P, self.settings.center_rewards_coefficient)
        share = len(chosen_P) / update.items
        told = rewards.detach()
        return {
            "total": loss_P.sum() / update.items,
            "accuracy": (chosen_P > rejected_P).float().mean() * share,
            "margin": (chosen_P - rejected_P).detach().mean() * share,
            "min_reward": told.min() * share,
            "mean_reward": told.mean() * share,
            "max_reward": told.max() * share,
        }


def build(settings: RewardSettings, folder: Path) -> None:
    """Train a reward model, or an adapter with such a head. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no usable pairs, a model without a chat template, a seq_len beyond its context.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        found = gather_pairs(settings.data, tokenizer, settings)
        report(found, settings, "pairs", 2)
        if not found.ids["train"]:
            raise UserError(f"{', '.join(settings.data)}: no pair is left to learn from; see the counts above")
        learns = head_learner(
            settings, base, folder, resume, SCALAR, tokenizer.pad_id, last_layers=settings.last_layers
        )
        check_fits(learns.model.trunk, tokenizer, base, settings.seq_len)
        outcome = loop.train(
            learns.model,
            Rewarding(found, "train", settings, tokenizer.pad_id),
            settings,
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=learns.flops * metrics.training_flops(learns.model.config, settings.seq_len),
            title=folder.name,
            write=learns.write,
        )
        figures = found.figures(2)
        measured = [record for record in metrics.read_records(work / metrics.METRICS) if "val_accuracy" in record]
        if measured:
            figures |= {name: measured[-1][name] for name in ("val_accuracy", "val_margin") if name in measured[-1]}
        beside = tokenizer.for_whole_texts(begin_of_itself=False)
        loop.finish(outcome, work, folder, "reward", settings, inputs, keys, beside, figures)


class RewardModel:
    """A trained reward model at work.

    judge = RewardModel(folder)
    rewards = judge.score(prompts, completions)
    """

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        """Load one: ours, an adapter of ours, or transformers'.

        Raises:
            UserError: it is none, or has no chat template.
        """
        folder = Path(folder)
        self.device = choose_device(device)
        self.model = SequenceClassifier.load(folder, device=self.device)
        if len(self.model.labels) != 1:
            raise UserError(f"{folder}: tells {len(self.model.labels)} classes; a reward model has one output")
        self.tokenizer = Tokenizer.load(folder)
        if self.tokenizer.chat_template is None:
            raise UserError(f"{folder}: has no chat template, so that no conversation can be given to it")
        self.longest = self.model.config.max_position_embeddings
        if (folder / artifact.MANIFEST).is_file():
            self.longest = min(self.longest, 1 + int(artifact.read(folder).settings.get("seq_len", self.longest)))

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str | Sequence[Message]], batch: int = 16
    ) -> list[float]:
        """A reward for each completion of a prompt; one longer than in training is read to as many tokens as there.

        Args:
            prompts: messages, up to where the assistant speaks.
            completions: what it says, as text or as messages.
            batch: texts at a time.
        """
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
            ids, _ = encode_completion(self.tokenizer, prompt, said)
            texts.append(array("I", ids[: self.longest]))
        if not texts:
            return []
        rows = read_all(self.model, texts, self.model.pad_id, self.device, batch, raw=True)
        return [float(row[0]) for row in rows]
