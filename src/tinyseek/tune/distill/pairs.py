"""Preference pairs out of collected answers, by rules that a program can check.

    right_over_wrong       one that the first reward calls right, one that it calls wrong
    shorter_over_longer    both right, the chosen one shorter by a share of its tokens
    reward_margin          the rewards' sums differ by a margin
    format                 the reward `format` differs

Both sides are whole answers: what came blank, cut off or refused is on neither, since its end is not what the model said.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.train.metrics import say
from tinyseek.tune.distill.collect import SAMPLES, TRAIN
from tinyseek.tune.distill.journal import records
from tinyseek.tune.distill.options import PairsSettings, Rule

DOUBTFUL = {"malformed", "too_long", "reasoning"}  # dropped for their form: only the rule `format` rejects them for it


@dataclass(frozen=True)
class Judged:
    """A collected answer, as pairs need it."""

    row: int
    prompt: list[dict[str, Any]]
    message: dict[str, Any]
    tokens: int
    right: float | None  # the first reward
    total: float | None
    format: float | None
    dropped: str | None

    @property
    def text(self) -> str:
        return json.dumps(
            [self.message.get(name) for name in ("reasoning_content", "content", "tool_calls")], ensure_ascii=False
        )


@dataclass
class Found:
    """Pairs, and what there was to make them of."""

    pairs: list[tuple[Rule, Judged, Judged]] = field(default_factory=list)  # chosen, rejected
    prompts: int = 0
    answers: int = 0
    whole: int = 0  # answers that may stand in a pair
    possible: Counter[str] = field(default_factory=Counter)  # pairs of each rule before the limits
    prompts_with: Counter[str] = field(default_factory=Counter)  # prompts of which a rule made any


def build(settings: PairsSettings, folder: Path) -> None:
    """Write train.jsonl: {"prompt": messages, "chosen": [message], "rejected": [message], "rule": name} a line.

    Raises:
        UserError: no collected answers there, a rule's reward was not collected, or no pair comes of it.
    """
    found = Found()
    inputs = {role: Path(source) for role, source in settings.taken().items()}
    for source in inputs.values():
        pairs_of(source, settings, found)
    pairs = found.pairs
    if not pairs:
        rules = ", ".join(settings.rules)
        raise UserError(
            f"{', '.join(map(str, inputs.values()))}: no pair by {rules} among {found.whole:,} whole answers to {found.prompts:,} "
            "prompts; collect more answers to each (n=8), or by a higher temperature"
        )
    if settings.most is not None and settings.most < len(pairs):
        pairs = sorted(sorted(pairs, key=lambda pair: _lot(settings.seed, pair))[: settings.most], key=pairs.index)
    with artifact.writing(folder, "pairs", settings.essence(), inputs) as (partial, figures):
        with (partial / TRAIN).open("w", encoding="utf-8", errors="replace") as stream:
            for rule, chosen, rejected in pairs:
                line = {
                    "prompt": chosen.prompt,
                    "chosen": [chosen.message],
                    "rejected": [rejected.message],
                    "rule": rule,
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        made = Counter(rule for rule, _, _ in pairs)
        figures |= {
            "pairs": len(pairs),
            "prompts": found.prompts,
            "answers": found.answers,
            "whole_answers": found.whole,
        }
        figures["rules"] = {
            rule: {"pairs": made[rule], "possible": found.possible[rule], "prompts": found.prompts_with[rule]}
            for rule in settings.rules
        }
        figures["tokens_chosen"] = round(sum(chosen.tokens for _, chosen, _ in pairs) / len(pairs), 1)
        figures["tokens_rejected"] = round(sum(rejected.tokens for _, _, rejected in pairs) / len(pairs), 1)
    for rule in settings.rules:
        say(
            f"{rule}: {made[rule]:,} pairs of {found.prompts_with[rule]:,} prompts "
            f"({found.possible[rule]:,} possible of {found.prompts:,} prompts)"
        )


def pairs_of(source: Path, settings: PairsSettings, found: Found) -> None:
    """Add the pairs of one collect folder or samples.jsonl.

    Raises:
        UserError: it is no such, or lacks the reward that a rule goes by.
    """
    file = source / SAMPLES if source.is_dir() else source
    if not file.is_file():
        raise UserError(f"{source}: no {SAMPLES} in it; give a folder that collect made")
    limits = artifact.read(source).settings if (source / artifact.MANIFEST).is_file() else {}
    by_row: defaultdict[int, list[Judged]] = defaultdict(list)
    rows: set[int] = set()
    rewards: set[str] = set()
    for line in records(file):
        try:
            answer = _judged(line)
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: is no file of collected answers ({error!r} in a line)") from None
        found.answers += 1
        rows.add(line["row"])
        rewards.update(line["rewards"])
        if answer is not None:
            by_row[line["row"]].append(answer)
    _check_rewards(file, settings.rules, rewards)
    found.prompts += len(rows)
    found.whole += sum(map(len, by_row.values()))
    right_from = float(limits.get("right_from", 1.0))
    for row in sorted(by_row):
        answers = _without_equal(by_row[row])
        for rule in settings.rules:
            candidates = list(_candidates(rule, answers, right_from, settings))
            found.possible[rule] += len(candidates)
            chosen = _spread(candidates, settings.per_prompt, settings.seed)
            found.prompts_with[rule] += bool(chosen)
            already = {(one.text, other.text) for _, one, other in found.pairs if one.row == row}
            found.pairs += [(rule, *pair) for pair in chosen if (pair[0].text, pair[1].text) not in already]


def _judged(line: dict[str, Any]) -> Judged | None:
    """A line of samples.jsonl; none if it is no whole answer."""
    rewards = line["rewards"]
    if (
        line.get("completion") is None
        or line.get("outcome", "answered") != "answered"
        or line.get("finish") == "length"
    ):
        return None
    return Judged(
        line["row"],
        line["prompt"],
        line["completion"],
        line["tokens"],
        next(iter(rewards.values()), None),
        line.get("total"),
        rewards.get("format"),
        line.get("dropped"),
    )


def _check_rewards(file: Path, rules: Sequence[Rule], rewards: set[str]) -> None:
    if "format" in rules and "format" not in rewards:
        raise UserError(f"{file}: has no reward format (found {', '.join(sorted(rewards)) or 'none'}); collect with it")
    if not rewards:
        raise UserError(f"{file}: was collected without rewards, and pairs are made by these; collect again with some")


def _without_equal(answers: Sequence[Judged]) -> list[Judged]:
    """Each answer once."""
    return list({answer.text: answer for answer in answers}.values())


def _candidates(
    rule: Rule, answers: Sequence[Judged], right_from: float, settings: PairsSettings
) -> Iterator[tuple[Judged, Judged]]:
    """Every pair of a rule, the chosen one first."""
    fit = [answer for answer in answers if answer.dropped not in DOUBTFUL]
    right = [answer for answer in fit if answer.right is not None and answer.right >= right_from]
    wrong = [answer for answer in fit if answer.right is not None and answer.right < right_from]
    if rule == "right_over_wrong":
        yield from ((one, other) for one in right for other in wrong)
    elif rule == "shorter_over_longer":
        enough = 1 - settings.shorter_by
        yield from ((one, other) for one in right for other in right if one.tokens <= enough * other.tokens)
    elif rule == "reward_margin":
        totals = [(answer.total, answer) for answer in fit if answer.total is not None]
        yield from ((one, other) for high, one in totals for low, other in totals if high - low >= settings.margin)
    else:
        forms = [(answer.format, answer) for answer in answers if answer.format is not None]
        # Of two that are both right or both wrong, so that nothing but the form is taught.
        yield from (
            (one, other)
            for high, one in forms
            for low, other in forms
            if high > low and one.dropped not in DOUBTFUL and _same(one.right, other.right, right_from)
        )


def _same(one: float | None, other: float | None, right_from: float) -> bool:
    if one is None or other is None:
        return one is other
    return (one >= right_from) == (other >= right_from)


def _spread(candidates: list[tuple[Judged, Judged]], most: int, seed: int) -> list[tuple[Judged, Judged]]:
    """At most so many, with as many different answers on each side as there are; drawn by the pairs' own content."""
    left = sorted(candidates, key=lambda pair: _lot(seed, pair))
    used: Counter[str] = Counter()
    chosen: list[tuple[Judged, Judged]] = []
    while left and len(chosen) < most:
        best = min(range(len(left)), key=lambda at: used[left[at][0].text] + used[left[at][1].text])
        pair = left.pop(best)
        used.update((pair[0].text, pair[1].text))
        chosen.append(pair)
    return chosen


def _lot(seed: int, pair: Sequence[Any]) -> bytes:
    text = "\0".join([str(seed), *(part.text if isinstance(part, Judged) else str(part) for part in pair)])
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
