"""Labelled texts: read, split by class, turned into ids; what becomes of the rest is counted and told."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyseek.errors import UserError
from tinyseek.text.datasets import find_data
from tinyseek.text.examples import Labelled
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import metrics
from tinyseek.tune.classify.options import ClassifySettings

SPLITS = ("train", "val", "test")


@dataclass
class Texts:
    """The texts of each split with their labels' names, the labels, and what became of the rest."""

    labels: list[str] = field(default_factory=list)
    split: dict[str, list[Labelled]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    unreadable: int = 0  # records without text or label
    problems: list[str] = field(default_factory=list)  # the first of those, by file and place
    repeated: int = 0  # left out: the same text with the same label again
    torn: int = 0  # left out: the same text with several labels
    unbalanced: int = 0  # left out by `balance`
    seen: int = 0  # texts of a given test that are among those to learn from

    def figures(self) -> dict[str, Any]:
        """Counts for the manifest."""
        counts: dict[str, Any] = {f"{name}_texts": len(texts) for name, texts in self.split.items()}
        counts |= {"labels": len(self.labels), "unreadable_records": self.unreadable, "dropped_repeated": self.repeated}
        counts |= {"dropped_contradictory": self.torn, "dropped_to_balance": self.unbalanced}
        return counts | {"test_texts_seen_in_training": self.seen}


def gather(settings: ClassifySettings) -> Texts:
    """Read and split.

    Which texts are held out is decided by their content, class by class, so that it is the same at each start and no class is left
    without any to learn from.

    Raises:
        UserError: a source that is missing or has no labelled text; one class only; a label in the texts to validate or test on
            that is none of those learned.
    """
    found = Texts()
    learned = _cleared(found, _read(found, settings.data))
    if settings.balance:
        learned = _balanced(found, learned)
    shares = {
        "val": 0.0 if settings.val else settings.val_fraction,
        "test": 0.0 if settings.test else settings.test_fraction,
    }
    for texts in _by_label(learned).values():
        texts.sort(key=_digest)
        n_test, n_val = (round(shares[name] * len(texts)) for name in ("test", "val"))
        found.split["test"] += texts[:n_test]
        found.split["val"] += texts[n_test : n_test + n_val]
        found.split["train"] += texts[n_test + n_val :]
    found.labels = in_order({text.label for text in found.split["train"]})
    if len(found.labels) < 2:
        only = f'only the label "{found.labels[0]}"' if found.labels else "no text"
        raise UserError(
            f"{', '.join(settings.data)}: {only} to learn from; at least two labels are needed to tell apart"
        )
    for name, sources in (("val", settings.val), ("test", settings.test)):
        if sources:
            found.split[name] = _read(found, sources)
            _check_known(found, name, sources)
    if not settings.test_fraction and not settings.test:
        metrics.say("note: nothing is held out to test on; the scores will be those of the texts to validate on")
    train = {text.text for text in found.split["train"]}
    found.seen = sum(text.text in train for text in found.split["test"])
    return found


def _read(found: Texts, sources: Iterable[str]) -> list[Labelled]:
    texts: list[Labelled] = []
    for source in sources:
        examples = find_data(source).examples("label")
        texts += examples
        found.unreadable += examples.bad
        found.problems += examples.problems
    return texts


def _cleared(found: Texts, texts: list[Labelled]) -> list[Labelled]:
    """Each text once; a text that goes by several labels teaches nothing."""
    labels: dict[str, set[str]] = {}
    for text in texts:
        labels.setdefault(text.text, set()).add(text.label)
    kept: dict[str, Labelled] = {}
    for text in texts:
        if len(labels[text.text]) > 1:
            found.torn += 1
        elif text.text in kept:
            found.repeated += 1
        else:
            kept[text.text] = text
    return list(kept.values())


def _balanced(found: Texts, texts: list[Labelled]) -> list[Labelled]:
    groups = _by_label(texts)
    fewest = min((len(group) for group in groups.values()), default=0)
    # Another order than the splits', which take the first of each.
    kept = [text for group in groups.values() for text in sorted(group, key=lambda t: _digest(t, b"balance"))[:fewest]]
    found.unbalanced = len(texts) - len(kept)
    return kept


def _by_label(texts: Iterable[Labelled]) -> dict[str, list[Labelled]]:
    groups: dict[str, list[Labelled]] = {}
    for text in texts:
        groups.setdefault(text.label, []).append(text)
    return groups


def _digest(text: Labelled, purpose: bytes = b"") -> bytes:
    return hashlib.blake2b(text.text.encode(errors="replace"), digest_size=8, person=purpose).digest()


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in a lasting order: numbers as numbers, words by the alphabet."""
    names = set(labels)
    numbered = all(name.lstrip("-").isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbered else sorted(names)


def _check_known(found: Texts, name: str, sources: Sequence[str]) -> None:
    strange = Counter(text.label for text in found.split[name] if text.label not in found.labels)
    if strange:
        shown = ", ".join(f'"{label}" ({count:,})' for label, count in strange.most_common(5))
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        known = ", ".join(f'"{label}"' for label in found.labels[:12])
        raise UserError(
            f"{', '.join(sources)}: {name} has labels that are never seen in training: {shown}{more}; learned are {known}. "
            "Add texts with them to data, or rename them in a datasets.yaml (names)"
        )


def report(found: Texts) -> None:
    """Say what is used and what is not, never leaving a drop silent."""
    train, val, test = (len(found.split[name]) for name in SPLITS)
    counts = Counter(text.label for text in found.split["train"])
    shown = ", ".join(f"{label} {counts[label]:,}" for label in found.labels[:12]) + (
        ", ..." * (len(found.labels) > 12)
    )
    metrics.say(f"{train:,} texts to learn from ({shown}), {val:,} to validate on, {test:,} to test on")
    if found.unreadable:
        metrics.say(
            f"warning: {found.unreadable:,} records could not be used and were left out: {'; '.join(found.problems[:3])}"
        )
    if found.repeated:
        metrics.say(f"note: {found.repeated:,} texts that stand there more than once were taken once")
    if found.torn:
        metrics.say(f"warning: {found.torn:,} texts with more than one label were left out")
    if found.unbalanced:
        metrics.say(f"note: {found.unbalanced:,} texts of the larger classes were left out to balance them")
    if found.seen:
        metrics.say(
            f"warning: {found.seen:,} of the {test:,} texts to test on are among those to learn from too; the scores flatter"
        )
    if min(counts.values()) < 8:
        rare = [label for label in found.labels if counts[label] < 8]
        metrics.say(f"warning: fewer than 8 texts to learn from of: {', '.join(rare[:8])}")


@dataclass
class Encoded:
    """Texts as ids, with the numbers of their labels."""

    ids: list[array[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    texts: list[Labelled] = field(default_factory=list)
    cut: int = 0  # cut short to seq_len
    dropped: int = 0  # left out for being longer

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[list[array[int]], list[bool]]:
    """What the model reads of each text, and whether it was cut: what transformers' tokenizer of the saved folder gives for it."""
    begin = tokenizer.begin_ids
    whole = tokenizer.encode_batch(texts)
    rows = [array("I", [*begin, *ids][:longest]) for ids in whole]
    return rows, [len(begin) + len(ids) > longest for ids in whole]


def encode_labelled(
    tokenizer: Tokenizer, texts: Sequence[Labelled], labels: Sequence[str], longest: int, drop: bool = False
) -> Encoded:
    """Texts and labels as numbers."""
    numbers = {label: number for number, label in enumerate(labels)}
    encoded = Encoded()
    rows, over = encode(tokenizer, [text.text for text in texts], longest)
    for text, ids, cut in zip(texts, rows, over, strict=True):
        if cut and drop:
            encoded.dropped += 1
            continue
        encoded.cut += cut
        encoded.ids.append(ids)
        encoded.labels.append(numbers[text.label])
        encoded.texts.append(text)
    return encoded
