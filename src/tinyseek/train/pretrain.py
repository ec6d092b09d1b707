"""Pre-training: a token folder and a tokenizer to a model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import TokenFile, Windows
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, state
from tinyseek.train.options import PretrainSettings


def build(settings: PretrainSettings, folder: Path) -> None:
    """Train from random weights. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: tokens of another tokenizer, a corpus shorter than one window, a work folder of other settings.
        StoppedError, DivergedError: see `loop.train`.
    """
    tokens, tokenizer_folder = Path(settings.tokens), Path(settings.tokenizer)
    tokenizer = Tokenizer.load(tokenizer_folder)
    check_tokens(tokens, tokenizer_folder, tokenizer)
    config = settings.model_config_for(tokenizer.vocab_size)
    rows = windows(tokens, "train", settings)
    if len(rows) == 0:
        have = len(TokenFile.open(tokens, "train").ids)
        raise UserError(
            f"{tokens}: {have:,} training tokens are fewer than one window of {settings.seq_len + 1}; lower seq_len or add text"
        )
    held_out = windows(tokens, "val", settings) if (tokens / "val.bin").is_file() else None
    if held_out is None or len(held_out) == 0:
        metrics.say("note: there is less than one window of held-out text, so nothing is validated")
        held_out = None

    inputs = {"tokens": tokens, "tokenizer": tokenizer_folder}
    keys = {role: artifact.key_of(path) for role, path in inputs.items()}
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        torch.manual_seed(settings.seed)
        model = CausalLM.load(resume.folder) if resume else CausalLM(config)
        steps = settings.total_steps(len(rows))
        metrics.say(
            f"{folder.name}: {len(rows):,} windows of {settings.seq_len} tokens, {steps:,} steps of {settings.batch_size}, "
            f"{settings.batch_size * steps / len(rows):.2f} epochs"
        )
        outcome = loop.train(
            model,
            rows,
            settings,
            work,
            val=held_out,
            made_from=made_from,
            resume=resume,
            flops_per_token=metrics.training_flops(config, settings.seq_len),
            title=folder.name,
        )
        loop.finish(outcome, work, folder, "pretrain", settings, inputs, keys, tokenizer, {"windows": len(rows)})


def windows(tokens: Path, split: str, settings: PretrainSettings) -> Windows:
    """The fixed windows of a split."""
    return Windows(TokenFile.open(tokens, split), settings.seq_len, settings.stride or settings.seq_len)


def check_tokens(tokens: Path, tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    """See that the tokens were made with this tokenizer.

    Raises:
        UserError: they were not.
    """
    manifest = artifact.read(tokens) if (tokens / artifact.MANIFEST).is_file() else None
    made_with = manifest.inputs.get("tokenizer") if manifest else None
    if made_with is not None and made_with.key != artifact.key_of(tokenizer_folder):
        raise UserError(
            f"{tokens}: was made with another tokenizer ({made_with.path}) than {tokenizer_folder}; build the tokens again"
        )
    ids = TokenFile.open(tokens, "train").ids
    largest = int(ids[: 1 << 20].max()) if len(ids) else 0  # a look at the start tells a mismatch well enough
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"{tokens}: holds token {largest}, but {tokenizer_folder} has only {tokenizer.vocab_size}; build the tokens again"
        )
