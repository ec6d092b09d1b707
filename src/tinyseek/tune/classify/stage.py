"""Training a classifier: labelled texts in, a model folder out that tells classes, with its scores on texts it never saw.

The folder is transformers' ...ForSequenceClassification (or, with LoRA, PEFT's adapter of the task SEQ_CLS), and beside it
scores.json, confusion.png and predictions.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.heads import SequenceClassifier
from tinyseek.text.datasets import find_data
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, parallel, state
from tinyseek.train.device import choose_device
from tinyseek.tune.classify import texts as labelled
from tinyseek.tune.classify.objective import ClassObjective, class_weights, read_all
from tinyseek.tune.classify.options import ClassifySettings
from tinyseek.tune.classify.picture import draw
from tinyseek.tune.classify.scores import Scores
from tinyseek.tune.classify.texts import Encoded, Texts, encode_labelled
from tinyseek.tune.headed import head_learner
from tinyseek.tune.learner import check_fits

SCORES, PICTURE, PREDICTIONS = "scores.json", "confusion.png", "predictions.jsonl"


def build(settings: ClassifySettings, folder: Path) -> None:
    """Train a classifier and test it. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no labelled texts, one class only, labels never seen in training, a model that does not fit.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        found = labelled.gather(settings)
        labelled.report(found)
        splits = encode_splits(tokenizer, found, settings)
        learns = head_learner(
            settings, base, folder, resume, found.labels, tokenizer.pad_id, last_layers=settings.last_layers
        )
        check_fits(learns.model.trunk, tokenizer, base, settings.seq_len)
        weights = class_weights(settings.class_weights, found.labels, splits["train"])
        outcome = loop.train(
            learns.model,
            ClassObjective(splits["train"], len(found.labels), tokenizer.pad_id, splits["val"], weights),
            settings,
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=learns.flops * metrics.training_flops(learns.model.config, settings.seq_len),
            title=folder.name,
            write=learns.write,
        )
        del learns
        figures: dict[str, Any] = {}
        if parallel.is_first():
            split = "test" if len(splits["test"]) else "val"
            figures = score(outcome.folder, split, splits[split], found, tokenizer, settings, folder.name)
        loop.finish(outcome, work, folder, "classify", settings, inputs, keys, tokenizer.for_whole_texts(), figures)


def inputs_of(settings: ClassifySettings) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and key of everything that the stage is made from, by role."""
    paths, keys = {}, {}
    for role, source in settings.taken().items():
        named = not Path(source).exists() and not role.startswith("model")
        paths[role] = find_data(source).files[0] if named else Path(source)
        keys[role] = settings.input_key(role.partition(".")[0], source) or artifact.key_of(paths[role])
    return paths, keys


def encode_splits(tokenizer: Tokenizer, found: Texts, settings: ClassifySettings) -> dict[str, Encoded]:
    """Every split as ids; what was too long is told.

    Raises:
        UserError: nothing is left to learn from.
    """
    splits = {}
    for name, texts in found.split.items():
        drop = settings.too_long == "drop" and name != "test"
        splits[name] = encode_labelled(tokenizer, texts, found.labels, settings.seq_len, drop)
        if splits[name].cut:
            metrics.say(
                f"warning: {splits[name].cut:,} of the {name} texts are longer than seq_len={settings.seq_len} tokens; their ends "
                "are cut"
            )
        if splits[name].dropped:
            metrics.say(
                f"warning: {splits[name].dropped:,} of the {name} texts are longer than seq_len={settings.seq_len} tokens and were "
                "left out (too_long=truncate cuts them instead)"
            )
    left = set(splits["train"].labels)
    if gone := [label for number, label in enumerate(found.labels) if number not in left]:
        raise UserError(
            f"seq_len={settings.seq_len}: every text of {', '.join(gone[:5])} is longer and was left out; raise it, or take "
            "too_long=truncate"
        )
    return splits


def score(
    trained: Path,
    split: str,
    held_out: Encoded,
    found: Texts,
    tokenizer: Tokenizer,
    settings: ClassifySettings,
    title: str,
) -> dict[str, Any]:
    """Score what will be published on texts that it never saw, and write that beside it.

    Args:
        trained: the checkpoint's folder.
        split: of which the texts are.
    Returns:
        Figures for the manifest.
    """
    if not len(held_out):
        metrics.say("note: no text is held out, so there are no scores")
        return {}
    device = choose_device(settings.device)
    model = SequenceClassifier.load(trained, device=device)
    probabilities_NL = read_all(model, held_out.ids, tokenizer.pad_id, device)
    scores = Scores.of(held_out.labels, probabilities_NL.argmax(-1), len(found.labels))
    values = {"split": split, "truncated": held_out.cut, **scores.plain(found.labels)}
    metrics.say(
        f"{split}: accuracy {scores.accuracy:.2%} of {scores.texts:,} texts, macro-F1 {scores.macro_f1:.4f} "
        f"(always the commonest class: {scores.majority:.2%})"
    )
    figures: dict[str, Any] = {f"{split}_accuracy": scores.accuracy, f"{split}_macro_f1": scores.macro_f1}
    if settings.few_shot is not None:
        asked = few_shot_scores(found, held_out, probabilities_NL.argmax(-1), settings)
        values["few_shot"] = asked
        figures["few_shot_accuracy"] = asked["accuracy"]
    artifact.write_text(trained / SCORES, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    lines = (
        json.dumps(
            {
                "text": text.text,
                "label": text.label,
                "predicted": found.labels[int(row.argmax())],
                "probability": round(float(row.max()), 6),
            },
            ensure_ascii=False,
        )
        for text, row in zip(held_out.texts, probabilities_NL, strict=True)
    )
    artifact.write_text(trained / PREDICTIONS, "\n".join(lines) + "\n")
    caption = f"{title}: {scores.accuracy:.1%} of {scores.texts:,} {split} texts are right"
    draw(scores.confusion_LL, found.labels, trained / PICTURE, caption)
    return figures


def few_shot_scores(
    found: Texts, held_out: Encoded, heads_N: NDArray[np.int64], settings: ClassifySettings
) -> dict[str, Any]:
    """A chat model's scores on the same texts, or an even choice of them, with the trained head's beside."""
    from tinyseek.llm.base import ChatModel
    from tinyseek.tune.classify.few_shot import FewShot, examples_of

    few = settings.few_shot
    assert few is not None
    chosen = np.linspace(0, len(held_out) - 1, min(few.limit, len(held_out))).round().astype(np.int64)
    truth = np.asarray(held_out.labels)[chosen]
    with ChatModel.open(few.model) as chat:
        asks = FewShot(chat, found.labels, examples_of(found.split["train"], found.labels, few), few)
        metrics.say(f"asking {chat.name} about {len(chosen):,} texts, {few.shots} examples of each class in the prompt")
        answers = asks.label([held_out.texts[item].text for item in chosen.tolist()])
    numbers = {label: number for number, label in enumerate(found.labels)}
    scores = Scores.of(truth, [numbers[answer.label] for answer in answers], len(found.labels))
    beside = Scores.of(truth, heads_N[chosen], len(found.labels))
    metrics.say(f"few-shot: accuracy {scores.accuracy:.2%}, the trained head's on the same texts {beside.accuracy:.2%}")
    return {
        "model": few.model,
        "shots": few.shots,
        **scores.plain(found.labels),
        "head_on_these": {"accuracy": round(beside.accuracy, 6), "macro_f1": round(beside.macro_f1, 6)},
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }


def longest_of(folder: Path, context: int) -> int:
    """How many tokens of a text a classifier reads: as many as in training, where that is known."""
    if (folder / artifact.MANIFEST).is_file():
        asked = artifact.read(folder).settings.get("seq_len")
        if isinstance(asked, int):
            return min(asked, context)
    return context


class Labeller:
    """A trained classifier at work.

    labeller = Labeller(folder)
    for text, probabilities in zip(texts, labeller.probabilities(texts)): ...
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        """Load a classifier: ours, an adapter of ours, or transformers'.

        Raises:
            UserError: it is none.
        """
        self.device = choose_device(device)
        self.model = SequenceClassifier.load(folder, device=self.device)
        self.tokenizer = Tokenizer.load(folder)
        self.longest = longest_of(folder, self.model.config.max_position_embeddings)
        self.cut = 0  # texts cut short so far

    @property
    def labels(self) -> list[str]:
        """The classes' names."""
        return self.model.labels

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each class for each text [texts, labels]. Where a text is empty, every class is as likely."""
        ids, over = labelled.encode(self.tokenizer, texts, self.longest)
        self.cut += sum(over)
        there = [number for number, text in enumerate(texts) if text.strip() and len(ids[number])]
        out = np.full((len(texts), len(self.labels)), 1 / len(self.labels))
        if there:
            out[there] = read_all(self.model, [ids[number] for number in there], self.model.pad_id, self.device)
        return out
