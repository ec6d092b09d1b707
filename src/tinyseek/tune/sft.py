"""Supervised fine-tuning: a base model learns to answer from conversations.

The loss is on what the assistant says alone, unless `learn` says otherwise. Conversations are packed into full rows, or come as
they are without padding; none sees its neighbours either way, so packing changes the speed and not what is learned from each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.text.chat import encode_examples
from tinyseek.text.datasets import find_data
from tinyseek.text.shards import EndToEnd, Packed, TokenFile, write_tokens
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, parallel, state
from tinyseek.train.objective import LanguageModelling
from tinyseek.tune.learner import check_fits, learner
from tinyseek.tune.options import SftSettings, TuneSettings


@dataclass
class Encoded:
    """Conversations as ids and loss masks, by split, and what became of the rest."""

    ids: dict[str, list[array[int]]] = field(default_factory=lambda: {"train": [], "val": []})
    masks: dict[str, list[array[int]]] = field(default_factory=lambda: {"train": [], "val": []})
    too_long: int = 0  # dropped, or cut short with too_long=truncate
    silent: int = 0  # dropped: nothing of the assistant's in them
    unanswered: int = 0  # end with somebody else than the assistant; what nobody answers is left out
    unreadable: int = 0  # records that are no conversation
    problems: list[str] = field(default_factory=list)  # the first of those, by file and place
    unfilled: int = 0  # with {{placeholders}} in them

    def figures(self, cut: bool) -> dict[str, int]:
        """Counts for the manifest."""
        counts = {f"{split}_examples": len(self.ids[split]) for split in self.ids}
        counts["answer_tokens"] = sum(sum(mask) for mask in self.masks["train"])
        counts |= {"truncated" if cut else "dropped_too_long": self.too_long, "dropped_without_answer": self.silent}
        return counts | {"unreadable_records": self.unreadable}


def build(settings: SftSettings, folder: Path) -> None:
    """Fine-tune a model, or train an adapter for it. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no conversations, a tokenizer that does not fit the model, a seq_len beyond its context.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        learns = learner(settings, base, folder, resume)
        model = learns.model
        model.noise = settings.neftune
        check_fits(model, tokenizer, base, settings.seq_len)
        examples = encode(settings.data, tokenizer, settings)
        report(examples, settings)
        splits = {
            split: pack(parallel.own(work) / "tokens", split, examples, tokenizer, settings) for split in examples.ids
        }
        rows = splits["train"]
        if rows is None:
            raise UserError(f"{', '.join(settings.data)}: no example is left to learn from; see the counts above")
        # Batches of many shapes, and products with weights that are made on the way, are no food for a compiler.
        plain = settings.lora is None and settings.packing
        outcome = loop.train(
            model,
            LanguageModelling(rows, splits["val"]),
            settings if plain else settings.model_copy(update={"compile": False}),
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=learns.flops * metrics.training_flops(model.config, settings.seq_len),
            title=folder.name,
            write=learns.write,
        )
        figures = examples.figures(settings.too_long == "truncate") | {"rows": len(rows)}
        loop.finish(outcome, work, folder, "sft", settings, inputs, keys, tokenizer, figures)


def inputs_of(settings: TuneSettings) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and key of everything that the stage is made from, by role."""
    paths, keys = {}, {}
    for role, source in settings.taken().items():
        named = not Path(source).exists() and role.startswith("data")
        paths[role] = find_data(source).files[0] if named else Path(source)
        keys[role] = settings.input_key(role.partition(".")[0], source) or artifact.key_of(paths[role])
    return paths, keys


def encode(sources: Iterable[str | Path], tokenizer: Tokenizer, settings: SftSettings) -> Encoded:
    """The conversations of files, tasks folders and named data sets as ids and masks.

    Which are held out is decided by their content, so that equal ones fall on one side, and the same at each start.

    Raises:
        UserError: a source that is missing or has no conversation in it; a chat template that does not work.
    """
    encoded = Encoded()
    for source in sources:
        data = find_data(source)
        conversations = data.examples("chat")
        for messages in conversations:
            encoded.unanswered += messages[-1]["role"] != "assistant"
            for ids, said in encode_examples(tokenizer, messages, settings.learn):
                add(encoded, ids, said, settings, data.weight)
        encoded.unreadable += conversations.bad
        encoded.problems += conversations.problems
        encoded.unfilled += conversations.unfilled
    return encoded


def add(
    encoded: Encoded, numbers: Sequence[int], said: Sequence[bool], settings: SftSettings, weight: float = 1.0
) -> None:
    """Put one example where it belongs, `weight` times on the average, or count it among the dropped."""
    longest = settings.seq_len + 1  # the last id is only ever a target
    if len(numbers) > longest:
        encoded.too_long += 1
        if settings.too_long == "drop":
            return
    ids, mask = array("I", numbers[:longest]), array("B", said[:longest])  # a few bytes a token, not a few dozen
    if not any(mask[1:]):  # the first id is never a target
        encoded.silent += 1
        return
    digest = hashlib.blake2b(repr(ids.tolist()).encode(), digest_size=16).digest()
    split_at, weigh_at = (int.from_bytes(half, "little") / 2**64 for half in (digest[:8], digest[8:]))
    split = "val" if split_at < settings.val_fraction else "train"
    times = 1 if split == "val" else int(weight) + (weigh_at < weight % 1)
    for _ in range(times):
        encoded.ids[split].append(ids)
        encoded.masks[split].append(mask)


def report(examples: Encoded, settings: SftSettings) -> None:
    """Say what is used and what is not, never leaving a drop silent."""
    train, val = len(examples.ids["train"]), len(examples.ids["val"])
    metrics.say(f"{train:,} examples to learn from, {val:,} held out to validate on")
    if examples.unreadable:
        shown = "; ".join(examples.problems[:3])
        metrics.say(f"warning: {examples.unreadable:,} records could not be read and were left out: {shown}")
    if examples.too_long:
        done = "dropped" if settings.too_long == "drop" else "cut short"
        other = "too_long=truncate cuts them instead" if settings.too_long == "drop" else "their ends are not learned"
        metrics.say(
            f"warning: {examples.too_long:,} examples longer than seq_len={settings.seq_len} tokens were {done} ({other})"
        )
    if examples.unanswered:
        metrics.say(
            f"note: {examples.unanswered:,} conversations do not end with the assistant; their ends are left out"
        )
    if examples.unfilled:
        metrics.say(
            f"warning: {examples.unfilled:,} examples hold a placeholder such as {{{{name}}}}, which is learned as it stands; "
            "give its value in a datasets.yaml: fill: {name: ...}"
        )
    if examples.silent:
        metrics.say(f"warning: {examples.silent:,} examples without anything said by the assistant were dropped")


def pack(
    folder: Path, split: str, examples: Encoded, tokenizer: Tokenizer, settings: SftSettings
) -> Packed | EndToEnd | None:
    """Write a split's tokens and make rows of them; none where it is empty."""
    if not examples.ids[split]:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    masks = ([bool(said) for said in mask] for mask in examples.masks[split])
    write_tokens(folder, split, examples.ids[split], tokenizer.vocab_size, loss_masks=masks)
    file = TokenFile.open(folder, split)
    return Packed(file, settings.seq_len, pad_id=tokenizer.pad_id) if settings.packing else EndToEnd(file)
