"""Supervised fine-tuning: a base model learns to answer from conversations.

The loss is on what the assistant says alone. Conversations are packed into full rows, and a mask keeps each from seeing its
neighbours, so that packing changes the speed and not the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import Message, encode_conversation, read_conversations
from tinyseek.text.shards import Packed, TokenFile, write_tokens
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, state
from tinyseek.train.options import SftSettings


@dataclass
class Examples:
    """Conversations as ids and loss masks, by split, and what became of the rest."""

    ids: dict[str, list[np.ndarray[Any, Any]]] = field(default_factory=lambda: {"train": [], "val": []})
    masks: dict[str, list[np.ndarray[Any, Any]]] = field(default_factory=lambda: {"train": [], "val": []})
    too_long: int = 0  # dropped, or cut short with too_long=truncate
    silent: int = 0  # dropped: nothing of the assistant's in them

    def figures(self, cut: bool) -> dict[str, int]:
        """Counts for the manifest."""
        counts = {f"{split}_examples": len(self.ids[split]) for split in self.ids}
        counts["answer_tokens"] = sum(int(mask.sum()) for mask in self.masks["train"])
        return counts | {
            "truncated" if cut else "dropped_too_long": self.too_long,
            "dropped_without_answer": self.silent,
        }


def build(settings: SftSettings, folder: Path) -> None:
    """Fine-tune a model folder. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no conversations, a tokenizer that does not fit the model, a seq_len beyond its context.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs = {"model": base} | {f"data.{index}": Path(path) for index, path in enumerate(settings.data)}
    keys = {role: artifact.key_of(path) for role, path in inputs.items()}
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        model = CausalLM.load(resume.folder if resume else base)
        check_fits(model, tokenizer, base, settings)
        examples = encode(conversations(settings.data), tokenizer, settings)
        report(examples, settings)
        splits = {
            split: pack(work / "tokens", split, examples, model.config.vocab_size, settings) for split in examples.ids
        }
        rows = splits["train"]
        if rows is None:
            raise UserError(f"{', '.join(settings.data)}: no conversation to learn from; see the counts above")
        outcome = loop.train(
            model,
            rows,
            settings,
            work,
            val=splits["val"],
            made_from=made_from,
            resume=resume,
            flops_per_token=metrics.training_flops(model.config, settings.seq_len),
            title=folder.name,
        )
        figures = examples.figures(settings.too_long == "truncate") | {"rows": len(rows)}
        loop.finish(outcome, work, folder, "sft", settings, inputs, keys, tokenizer, figures)


def check_fits(model: CausalLM, tokenizer: Tokenizer, base: Path, settings: SftSettings) -> None:
    """See that tokenizer, model and settings go together.

    Raises:
        UserError: they do not.
    """
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{base}: its tokenizer has {tokenizer.vocab_size} tokens, its model {config.vocab_size}; they do not belong together"
        )
    if settings.seq_len > config.max_position_embeddings:
        raise UserError(
            f"seq_len={settings.seq_len}: {base} has a context of {config.max_position_embeddings}; lower seq_len"
        )


def conversations(paths: Iterable[str]) -> Iterator[list[Message]]:
    """The conversations of files, and of the train.jsonl in tasks folders."""
    for name in paths:
        path = Path(name)
        if path.is_dir():
            if not (path / "train.jsonl").is_file():
                raise UserError(
                    f"{path}: no train.jsonl in it; give a tasks folder, or a json or jsonl file of conversations"
                )
            path = path / "train.jsonl"
        yield from read_conversations(path)


def encode(talks: Iterable[list[Message]], tokenizer: Tokenizer, settings: SftSettings) -> Examples:
    """Conversations to ids and masks; which are held out is decided by their content, so that equal ones fall on one side."""
    examples = Examples()
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    for messages in talks:
        numbers, said = encode_conversation(tokenizer, messages)
        ids, mask = np.asarray(numbers, dtype=kind), np.asarray(said, dtype=bool)
        if len(ids) > settings.seq_len:
            examples.too_long += 1
            if settings.too_long == "drop":
                continue
            ids, mask = ids[: settings.seq_len], mask[: settings.seq_len]
        if not mask[1:].any():  # the first token is never a target
            examples.silent += 1
            continue
        digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()
        split = "val" if int.from_bytes(digest, "little") < settings.val_fraction * 2**64 else "train"
        examples.ids[split].append(ids)
        examples.masks[split].append(mask)
    return examples


def report(examples: Examples, settings: SftSettings) -> None:
    """Say what is used and what is not, never leaving a drop silent."""
    train, val = len(examples.ids["train"]), len(examples.ids["val"])
    metrics.say(f"{train:,} conversations to learn from, {val:,} held out to validate on")
    if examples.too_long:
        done = "dropped" if settings.too_long == "drop" else "cut short"
        other = "too_long=truncate cuts them instead" if settings.too_long == "drop" else "their ends are not learned"
        metrics.say(
            f"warning: {examples.too_long:,} conversations longer than seq_len={settings.seq_len} tokens were {done} ({other})"
        )
    if examples.silent:
        metrics.say(f"warning: {examples.silent:,} conversations without anything said by the assistant were dropped")


def pack(folder: Path, split: str, examples: Examples, vocab_size: int, settings: SftSettings) -> Packed | None:
    """Write a split's tokens and pack them into rows; none where it is empty."""
    if not examples.ids[split]:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder, split, examples.ids[split], vocab_size, loss_masks=examples.masks[split])
    rows = Packed(TokenFile.open(folder, split), settings.seq_len)
    return rows if len(rows) else None
