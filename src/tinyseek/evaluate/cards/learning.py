"""Learning curves of every stage that trained: the loss, and what else it logged that tells whether it learns what it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyseek.artifact import Manifest
from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import colour, duration, number, percent
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, json_lines
from tinyseek.evaluate.cards.run import TRAINED, Run
from tinyseek.evaluate.page import Html, card, el, section
from tinyseek.evaluate.words import Words

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One picture of curves, of those of its metrics that were logged: (name in metrics.jsonl, what to call it)."""

    title: str
    lines: tuple[tuple[str, str], ...]
    distilled: bool | None = None  # only of a student (True), never of one (False)


# The names are TRL's where it has one.
PANELS = (
    Panel("loss", (("loss", "training"), ("val_loss", "validation"))),
    Panel(
        "reward",
        (
            ("reward", "training"),
            ("val_reward/sampled", "held out, sampled"),
            ("val_reward/greedy", "held out, greedy"),
        ),
    ),
    Panel(
        "accuracy",
        (
            ("rewards/exact_answer/mean", "training"),
            ("val_accuracy/sampled", "held out, sampled"),
            ("val_accuracy/greedy", "held out, greedy"),
            ("rewards/accuracies", "training"),
            ("accuracy", "training"),
            ("val_rewards/accuracies", "held out"),
            ("val_accuracy", "held out"),
        ),
    ),
    Panel(
        "reward of the better and the worse answer",
        (
            ("rewards/chosen", "better"),
            ("rewards/rejected", "worse"),
            ("rewards/margins", "difference"),
            ("margin", "difference"),
            ("val_margin", "held out"),
        ),
    ),
    Panel(
        "tokens an answer",
        (("completions/mean_length", "mean"), ("completions/mean_terminated_length", "of those that ended")),
    ),
    Panel("divergence from the start (KL)", (("kl", "KL"), ("objective/kl", "KL")), distilled=False),
    Panel("divergence from the teacher", (("kl", "training"), ("val_kl", "validation")), distilled=True),
    Panel("same likeliest token as the teacher", (("agreement", "training"), ("val_agreement", "validation"))),
    Panel("entropy", (("entropy", "entropy"),)),
    Panel("value", (("loss/value", "loss of the value"), ("value/explained_variance", "explained variance"))),
    Panel(
        "prompts that teach nothing",
        (("frac_reward_zero_std", "all answers rewarded alike"), ("completions/clipped_ratio", "answers cut off")),
    ),
)
_BY_REWARD = ("grpo", "ppo")  # whose loss is no measure of anything: it hovers about 0 as the model gets better
_SAID_ELSEWHERE = (
    "entropy",
    "value",
    "prompts that teach nothing",
)  # worth a picture only where rewards are learned from


def learning(run: Run, t: Words) -> Html:
    """A card for each stage that trained, or is at it."""
    sources: list[tuple[str, Path, Manifest | None]] = [(n.name, n.path, n.manifest) for n in run.of_kind(*TRAINED)]
    sources += [(path.stem, path, None) for path in run.working]
    narrow: list[Html] = []
    parts: list[Html] = []
    for name, path, manifest in sources:
        records = [record for record in json_lines(path / "metrics.jsonl") if "step" in record]
        if not any("loss" in record for record in records):
            continue
        drawn = _panels(records, manifest.kind if manifest else "", t)
        facts = el("p", " · ".join(_facts(records, as_dict(manifest.figures) if manifest else {}, t)), class_="facts")
        if len(drawn) == 1:
            narrow.append(card(el("h3", name), drawn[0][1], facts))
            continue
        pictures = [el("div", el("h4", title), picture) for title, picture in drawn]
        kind = f" · {manifest.kind}" if manifest and manifest.kind != name else ""
        parts.append(
            card(el("h3", name, el("span", kind, class_="pending")), el("div", pictures, class_="panels"), facts)
        )
    if not narrow and not parts:
        return Html("")
    about = t(
        "The loss of a language model is the cross-entropy of the next token, in nats. The pale band is how far single steps stray "
        "from the mean that is drawn."
    )
    if parts:
        about += " " + t("Where a model learns by rewards, the reward tells, and not the loss.")
    return section(t("Learning curves"), about, *([el("div", narrow, class_="grid")] if narrow else []), *parts)


def _panels(records: Records, kind: str, t: Words) -> list[tuple[str, Html]]:
    """The pictures that a stage's metrics make."""
    by_reward = kind in _BY_REWARD or any("reward" in record for record in records)
    student = kind == "distill" or any("agreement" in record for record in records)
    drawn = []
    seen: list[list[Any]] = [[]]
    for panel in PANELS:
        if panel.distilled not in (None, student):
            continue
        if (panel.title == "loss" and by_reward) or (panel.title in _SAID_ELSEWHERE and not by_reward):
            continue
        lines: list[charts.Line] = []
        for metric, name in panel.lines:
            points = [(as_float(r["step"]), as_float(r[metric])) for r in records if r.get(metric) is not None]
            held_out = metric.startswith("val_")
            if points and any(point[1] for point in points):
                few = held_out and len(points) <= 30
                lines.append(
                    charts.Line(t(name), colour(_shade(len(lines), held_out)), points, band=not held_out, dots=few)
                )
        if any([line.points for line in lines] == points for points in seen):
            continue  # where right or wrong is the only reward, say
        seen.append([line.points for line in lines])
        if len(lines) == 1 and panel.title != "loss":  # nothing to tell it apart from
            lines = [replace(lines[0], colour=colour(1))]
        if lines:
            drawn.append((t(panel.title), charts.line_chart(lines, t("step"), t(panel.title))))
    return drawn


def _shade(index: int, held_out: bool) -> int:
    """Grey for training, colours for what is held out or compared."""
    return max(index, 1) if held_out else index


def _facts(records: Records, figures: dict[str, Any], t: Words) -> list[str]:
    """Steps, tokens, time, and what was left out of the data."""
    last = records[-1]
    val = [as_float(record["val_loss"]) for record in records if record.get("val_loss") is not None]
    facts = [
        t("{count} steps").format(count=f"{as_int(last['step']):,}"),
        t("{count} tokens").format(count=charts.short(as_float(last.get("tokens")))),
    ]
    if "tokens_per_s" in figures:
        facts.append(t("{count} tokens a second").format(count=charts.short(as_float(figures["tokens_per_s"]))))
    facts.append(duration(as_float(figures.get("training_seconds", last.get("seconds")))))
    accuracy = [r["val_accuracy/sampled"] for r in records if r.get("val_accuracy/sampled") is not None]
    if accuracy:
        facts.append(t("held out, sampled: {share}").format(share=percent(accuracy[-1])))
    elif val and not any("reward" in record for record in records):
        facts.append(t("last validation loss {loss}").format(loss=number(val[-1], 3)))
    gap = [r["sampling/logp_difference/max"] for r in records if r.get("sampling/logp_difference/max") is not None]
    if gap:
        most = max(map(as_float, gap))
        facts.append(t("engine and trainer differ by at most {gap} in log-probability").format(gap=f"{most:.1g}"))
    return facts + left_out(figures, t)


# Counts of manifests that tell what was left out, and what to say of them.
_LEFT_OUT = {
    "dropped_too_long": "{count} left out as too long",
    "truncated": "{count} cut",
    "cut": "{count} cut",
    "dropped_without_answer": "{count} left out without an answer",
    "dropped_equal": "{count} pairs left out with equal sides",
    "dropped_empty": "{count} left out as empty",
    "unreadable_records": "{count} unreadable records",
    "repeated_prompts": "{count} repeated prompts",
}


def left_out(figures: dict[str, Any], t: Words) -> list[str]:
    """What was not learned from, if anything."""
    counts = [(words, as_int(figures.get(name))) for name, words in _LEFT_OUT.items()]
    return [t(words).format(count=f"{count:,}") for words, count in counts if count]
