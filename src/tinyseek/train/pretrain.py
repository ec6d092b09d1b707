"""Pre-training: a token folder and a tokenizer to a model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.counts import count
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import TokenFile, Windows, require_window
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, plan, state
from tinyseek.train.objective import LanguageModelling
from tinyseek.train.options import PretrainSettings


def build(settings: PretrainSettings, folder: Path) -> None:
    """Train from random weights. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: tokens of another tokenizer, a corpus shorter than one window, a work folder of other settings.
        StoppedError, DivergedError: see `loop.train`.
    """
    tokens, tokenizer_folder = Path(settings.tokens), Path(settings.tokenizer)
    tokenizer = Tokenizer.load(tokenizer_folder)
    file = TokenFile.open(tokens, "train")
    check_tokens(tokens, file, tokenizer_folder, tokenizer)
    require_window(file, settings.seq_len)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}  # for other programs' generation
    config = settings.model_config_for(tokenizer.vocab_size).model_copy(update=ends)
    counts = count(config)
    plan.refuse_if_too_large(config, settings, counts.total + counts.mtp)
    rows = windows(file, settings)
    held_out = windows(TokenFile.open(tokens, "val"), settings)
    if len(held_out) == 0:
        metrics.say("note: there is less than one window of held-out text, so nothing is validated")

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
            LanguageModelling(rows, held_out if len(held_out) else None),
            settings,
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=metrics.training_flops(config, settings.seq_len),
            title=folder.name,
        )
        loop.finish(outcome, work, folder, "pretrain", settings, inputs, keys, tokenizer, {"windows": len(rows)})


def windows(file: TokenFile, settings: PretrainSettings) -> Windows:
    """The fixed windows of a split."""
    return Windows(file, settings.seq_len, settings.stride, settings.mask_documents)


def check_tokens(tokens: Path, file: TokenFile, tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    """See that the tokens were made with this tokenizer: the same artefact, or at least one of as many tokens.

    Raises:
        UserError: they were not.
    """
    manifest = artifact.read(tokens) if (tokens / artifact.MANIFEST).is_file() else None
    made_with = manifest.inputs.get("tokenizer") if manifest else None
    other = made_with is not None and made_with.key != artifact.key_of(tokenizer_folder)
    if other or file.vocab_size != tokenizer.vocab_size:
        name = made_with.path if made_with else f"one of {file.vocab_size} tokens"
        raise UserError(
            f"{tokens}: was made with another tokenizer ({name}) than {tokenizer_folder} ({tokenizer.vocab_size} tokens); "
            "build the tokens again with it, or give the tokenizer that they were made with"
        )
