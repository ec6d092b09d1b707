"""What every kind of fine-tuning begins and ends with: a model to train, whole, in part or by an adapter, and how to keep it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tinyseek.errors import UserError
from tinyseek.model import adapter, lora
from tinyseek.model.adapter import Base
from tinyseek.model.lora_config import LoraConfig, choose
from tinyseek.model.packed import Format
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import metrics, state
from tinyseek.train.device import choose_device
from tinyseek.train.precision import faster_dtype
from tinyseek.tune.options import TuneSettings

GENERATION = "generation_config.json"  # where answers end, for whoever serves what comes out


@dataclass(frozen=True)
class Learner:
    """A model to train and how to write what was learned."""

    model: CausalLM
    write: Callable[[Path], object]  # into a checkpoint's folder
    flops: float  # of training on a token, for each one of a whole model's


def learner(settings: TuneSettings, base: Path, folder: Path, resume: state.Checkpoint | None) -> Learner:
    """The model of a stage, with what it trains open and the rest frozen; as a checkpoint left it, if one is given.

    Args:
        base: the model's folder.
        folder: where the stage's result will lie.
    Raises:
        UserError: a pattern that fits nothing, nothing left to train, an adapter that belongs to another base.
    """
    if settings.lora is not None:
        return _adapter(settings, settings.lora, base, folder, resume)
    model = CausalLM.load(resume.folder if resume else base)
    if settings.freeze:
        freeze(model, settings.freeze)

    def write(target: Path) -> None:
        model.save(target)
        keep_generation(base, target)

    return Learner(model, write, 1.0)


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Leave what the patterns choose as it is: weights, or whole modules by their names.

    Raises:
        UserError: a pattern that fits nothing, or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    parts = {name: [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)] for name in parameters}
    frozen = choose(parameters, patterns, "freeze", parts)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if len(frozen) == len(parameters):
        raise UserError(
            f"freeze: {', '.join(patterns)} leaves nothing to train; take something back, for example !lm_head"
        )
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in model.parameters())
    metrics.say(f"{len(frozen)} of {len(parameters)} weights stay as they are; {share:.1%} of the numbers are trained")


def _adapter(
    settings: TuneSettings, config: LoraConfig, base: Path, folder: Path, resume: state.Checkpoint | None
) -> Learner:
    model = CausalLM.load(base)
    identity = Base(_name(base), str(base.resolve()), adapter.fingerprint(model))
    torch.manual_seed(settings.seed)
    names = lora.add_lora(model, config, base_format(settings, config, resume))
    if resume:
        adapter.check_base(resume.folder, identity.hash, str(base))
        adapter.lay_on(model, adapter.read_adapter(resume.folder, model.config))
    numbers = sum(parameter.numel() for _, parameter in lora.trained(model))
    metrics.say(f"an adapter of {numbers:,} numbers on {len(names)} matrices; the model stays as it is")
    if why := adapter.unfit_for_peft(model):
        metrics.say(f"note: peft will not read this adapter ({why}); for other programs merge it: tinyseek merge")

    def write(target: Path) -> None:
        adapter.save_adapter(model, target, config, identity, near=folder)
        keep_generation(base, target)

    return Learner(model, write, 2 / 3)  # no products for the gradients of weights


def base_format(settings: TuneSettings, config: LoraConfig, resume: state.Checkpoint | None) -> Format:
    """How the frozen weights are held: as asked, or as the products want them."""
    if config.base != "auto":
        return config.base
    precision = settings.precision
    if precision == "auto" and resume:
        precision = resume.setup["precision"]
    if precision == "auto":
        precision = "bfloat16" if faster_dtype(choose_device(settings.device)) == torch.bfloat16 else "float32"
    return precision


def _name(base: Path) -> str:
    """A model's name for people: its folder's, with the run's before it."""
    base = base.resolve()
    return f"{base.parent.name}/{base.name}"


def keep_generation(base: Path, target: Path) -> None:
    """Copy what the base says of generation: the tokens that end an answer, how to draw."""
    source = base if (base / GENERATION).is_file() or not adapter.is_adapter(base) else adapter.find_base(base)
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, target / GENERATION)


def check_fits(model: CausalLM, tokenizer: Tokenizer, base: Path, seq_len: int) -> None:
    """See that tokenizer, model and settings go together.

    Raises:
        UserError: they do not.
    """
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{base}: its tokenizer has {tokenizer.vocab_size} tokens, its model {config.vocab_size}; they do not belong together"
        )
    if seq_len > config.max_position_embeddings:
        raise UserError(f"seq_len={seq_len}: {base} has a context of {config.max_position_embeddings}; lower seq_len")
