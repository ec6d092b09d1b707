"""Preference data as texts: what is learned from, what is held out, and what becomes of the rest.

Pairs whose sides are the same, answers that are empty and texts that are too long are counted and told, never left out in silence.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tinyseek.errors import UserError
from tinyseek.text.chat import encode_completion
from tinyseek.text.datasets import Data, find_data
from tinyseek.text.examples import Examples, Pair, Thumb
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import metrics
from tinyseek.tune.preferences.options import PreferenceSettings

Encoded: TypeAlias = "tuple[array[int], array[int]]"  # ids, and 1 where the assistant speaks in the answer


@dataclass
class Gathered:
    """Texts by split; of a pair the chosen one, then the rejected one. And what became of the rest."""

    ids: dict[str, list[array[int]]] = field(default_factory=lambda: {"train": [], "val": []})
    said: dict[str, list[array[int]]] = field(default_factory=lambda: {"train": [], "val": []})
    good: dict[str, list[bool]] = field(default_factory=lambda: {"train": [], "val": []})  # of answers with a thumb
    margins: dict[str, list[float | None]] = field(default_factory=lambda: {"train": [], "val": []})  # of pairs
    too_long: int = 0  # left out
    cut: int = 0  # texts cut short
    equal: int = 0  # pairs whose sides are the same tokens; left out
    empty: int = 0  # with an answer of which no token is left; left out
    unreadable: int = 0  # records that could not be read, equal sides among them
    problems: list[str] = field(default_factory=list)  # the first of those, by file and place
    reasons: Counter[str] = field(default_factory=Counter)
    unfilled: int = 0  # with {{placeholders}} in them

    def figures(self, per: int) -> dict[str, Any]:
        """Counts for the manifest. `per`: texts an item, two of a pair."""
        counts: dict[str, Any] = {f"{split}_examples": len(self.ids[split]) // per for split in self.ids}
        counts |= {"dropped_too_long": self.too_long, "cut": self.cut, "dropped_equal": self.equal}
        counts |= {"dropped_empty": self.empty, "unreadable_records": self.unreadable}
        return counts | ({"unreadable_because": dict(self.reasons.most_common(10))} if self.unreadable else {})


def gather_pairs(sources: Sequence[str], tokenizer: Tokenizer, settings: PreferenceSettings) -> Gathered:
    """The pairs of files, pairs folders and named data sets.

    Raises:
        UserError: a source that is missing or has no pair in it; a chat template that does not work.
    """
    found = Gathered()
    for source in sources:
        data = find_data(source)
        examples = data.examples("preference")
        for pair in examples:
            _add_pair(found, pair, tokenizer, settings, data.weight)
        _note(found, examples)
    return found


def gather_thumbs(sources: Sequence[str], tokenizer: Tokenizer, settings: PreferenceSettings) -> Gathered:
    """The answers with thumbs of files and named data sets; a pair is one that was liked and one that was not.

    Raises:
        UserError: see `gather_pairs`.
    """
    found = Gathered()
    for source in sources:
        data = find_data(source)
        if _kind(data) == "preference":
            examples = data.examples("preference")
            for pair in examples:
                for side, good in ((pair.chosen, True), (pair.rejected, False)):
                    _add_thumb(found, Thumb(pair.prompt, side, good), tokenizer, settings, data.weight)
        else:
            examples = data.examples("thumbs")
            for thumb in examples:
                _add_thumb(found, thumb, tokenizer, settings, data.weight)
        _note(found, examples)
    return found


def _kind(data: Data) -> str | None:
    try:
        return data.kind()
    except UserError:  # reading it as what is wanted tells more of what is wrong
        return None


def _note(found: Gathered, examples: Examples[Any]) -> None:
    found.unreadable += examples.bad
    found.problems += examples.problems
    found.reasons += examples.reasons
    found.unfilled += examples.unfilled


def _add_pair(found: Gathered, pair: Pair, tokenizer: Tokenizer, settings: PreferenceSettings, weight: float) -> None:
    sides = [encode_completion(tokenizer, pair.prompt, side) for side in (pair.chosen, pair.rejected)]
    texts = _cut(found, sides, settings)
    if texts is None:
        return
    if texts[0][0] == texts[1][0]:
        found.equal += 1
        return
    split, times = _place(sides, weight, settings)
    found.margins[split] += [pair.margin] * times
    for _ in range(times):
        for ids, said in texts:
            found.ids[split].append(ids)
            found.said[split].append(said)


def _add_thumb(
    found: Gathered, thumb: Thumb, tokenizer: Tokenizer, settings: PreferenceSettings, weight: float
) -> None:
    side = encode_completion(tokenizer, thumb.prompt, thumb.completion)
    texts = _cut(found, [side], settings)
    if texts is None:
        return
    split, times = _place([side], weight, settings)
    for _ in range(times):
        found.ids[split].append(texts[0][0])
        found.said[split].append(texts[0][1])
        found.good[split].append(thumb.good)


def _cut(
    found: Gathered, sides: list[tuple[list[int], list[bool]]], settings: PreferenceSettings
) -> list[Encoded] | None:
    """The sides as long as they may be; none where one is too long, or nothing is left to learn from."""
    longest = settings.seq_len + 1  # the last id is only ever a target
    over = sum(len(ids) > longest for ids, _ in sides)
    if over and settings.too_long == "drop":
        found.too_long += 1
        return None
    kept = slice(-longest, None) if settings.too_long == "keep_end" else slice(longest)
    texts = [(array("I", ids[kept]), array("B", said[kept])) for ids, said in sides]
    if not all(any(said[1:]) for _, said in texts):  # the first id is never a target
        if over:
            found.too_long += 1  # the prompt alone fills it
        else:
            found.empty += 1
        return None
    found.cut += over
    return texts


def _place(sides: list[tuple[list[int], list[bool]]], weight: float, settings: PreferenceSettings) -> tuple[str, int]:
    """The split of an example, and how often it comes there. All answers to a prompt fall on one side, at each start the same."""
    ids, said = sides[0]
    prompt = ids[: said.index(True)] if True in said else ids
    split_at = _fraction(prompt)
    split = "val" if split_at < settings.val_fraction else "train"
    whole = int(weight) + (_fraction([side for side, _ in sides]) < weight % 1)
    return split, 1 if split == "val" else whole


def _fraction(value: Any) -> float:
    """A number in [0, 1) that depends on the value alone."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little") / 2**64


def report(found: Gathered, settings: PreferenceSettings, what: str, per: int) -> None:
    """Say what is used and what is not.

    Args:
        what: what the examples are, for people.
        per: texts an example.
    """
    train, val = (len(found.ids[split]) // per for split in ("train", "val"))
    metrics.say(f"{train:,} {what} to learn from, {val:,} held out to validate on")
    if found.unreadable:
        why = "; ".join(f"{count:,} {reason}" for reason, count in found.reasons.most_common(3))
        shown = "; ".join(found.problems[:3])
        metrics.say(f"warning: {found.unreadable:,} records were left out ({why}): {shown}")
    if found.too_long:
        hint = "" if settings.too_long != "drop" else "; too_long=keep_start or keep_end cuts them instead"
        metrics.say(f"warning: {found.too_long:,} {what} longer than seq_len={settings.seq_len} were left out{hint}")
    if found.cut:
        end = "answers' ends" if settings.too_long == "keep_start" else "prompts' beginnings"
        metrics.say(f"warning: of {found.cut:,} texts longer than seq_len={settings.seq_len} the {end} were cut off")
    if found.equal:
        metrics.say(f"warning: {found.equal:,} pairs whose two answers are the same tokens were left out")
    if found.empty:
        metrics.say(f"warning: {found.empty:,} {what} without anything said by the assistant were left out")
    if found.unfilled:
        metrics.say(
            f"warning: {found.unfilled:,} records hold a placeholder such as {{{{name}}}}, which is learned as it stands; "
            "give its value in a datasets.yaml: fill: {name: ...}"
        )
