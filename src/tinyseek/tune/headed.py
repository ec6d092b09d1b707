"""A model with a head to train, whole, in part or by an adapter beside the head: what classes and rewards are learned with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tinyseek.model import adapter, heads, lora
from tinyseek.model.adapter import Base
from tinyseek.model.heads import SequenceClassifier
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.train import metrics, state
from tinyseek.tune.learner import base_format, freeze
from tinyseek.tune.options import TuneSettings


@dataclass(frozen=True)
class HeadLearner:
    """A classifier to train and how to write what was learned."""

    model: SequenceClassifier
    write: Callable[[Path], object]  # into a checkpoint's folder
    flops: float  # of training on a token, for each one of a whole model's


def head_learner(
    settings: TuneSettings,
    base: Path,
    folder: Path,
    resume: state.Checkpoint | None,
    labels: Sequence[str],
    pad_id: int,
    last_layers: int | None = None,
) -> HeadLearner:
    """The model of a stage with a head: as a checkpoint left both, if one is given.

    Else the head is fresh, or the base's own where that has these labels.

    Args:
        base: the model's folder; one with a head already will do.
        folder: where the stage's result will lie.
        pad_id: the token that is no text.
        last_layers: train only the head, the last norm and so many of the last blocks.
    Raises:
        UserError: a pattern that fits nothing, nothing left to train, an adapter that belongs to another base.
    """
    torch.manual_seed(settings.seed)
    if settings.lora is not None:
        return _adapter(settings, settings.lora, base, folder, resume, labels, pad_id)
    if resume:
        model = SequenceClassifier.load(resume.folder)
    else:
        model = SequenceClassifier(heads.load_trunk(base), labels, pad_id)
        keep_head(model, base)
    share = 1.0
    patterns = settings.freeze
    if last_layers is not None:
        patterns = ["*", "!score", "!model.norm", *_last(model.config.num_hidden_layers, last_layers)]
    if patterns:
        freeze(model, patterns)
        numbers = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        share = sum(n for n, trained in numbers if trained) / sum(n for n, _ in numbers)
    return HeadLearner(model, model.save, (1 + 2 * share) / 3)


def _last(layers: int, count: int) -> list[str]:
    return [f"!model.layers.{layer}" for layer in range(max(0, layers - count), layers)]


def keep_head(model: SequenceClassifier, base: Path) -> None:
    """Go on with the base's own head, where it has one for the same labels."""
    if not heads.is_classifier(base):
        return
    with torch.no_grad():
        before = SequenceClassifier.load(base)
        if before.labels == model.labels:
            model.score.weight.copy_(before.score.weight)
            metrics.say(f"going on with the head of {base}")


def _adapter(
    settings: TuneSettings,
    config: LoraConfig,
    base: Path,
    folder: Path,
    resume: state.Checkpoint | None,
    labels: Sequence[str],
    pad_id: int,
) -> HeadLearner:
    whole = heads.load_trunk(base) if heads.is_classifier(base) else CausalLM.load(base)
    name = f"{base.resolve().parent.name}/{base.resolve().name}"
    identity = Base(name, str(base.resolve()), adapter.fingerprint(whole))
    model = SequenceClassifier(heads.without_head(whole), labels, pad_id)
    keep_head(model, base)
    names = lora.add_lora(model.trunk, config, base_format(settings, config, resume))
    if resume:
        adapter.check_base(resume.folder, identity.hash, str(base))
        heads.lay_on(model, adapter.read_adapter(resume.folder, model.config))
    numbers = sum(parameter.numel() for _, parameter in lora.trained(model))
    metrics.say(f"an adapter of {numbers:,} numbers on {len(names)} matrices, and a head; the model stays as it is")
    if why := adapter.unfit_for_peft(model.trunk):
        metrics.say(f"note: peft will not read this adapter ({why}); for other programs merge it: tinyseek merge")

    def write(target: Path) -> None:
        heads.save_adapter(model, target, config, identity, near=folder)

    return HeadLearner(model, write, 2 / 3)
