"""The page's first lines: what came of the run, and what of it is not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.model import counts_of
from tinyseek.evaluate.cards.numbers import duration, number, percent
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, json_lines
from tinyseek.evaluate.cards.run import TRAINED, Run
from tinyseek.evaluate.page import Html, card, el, section, table
from tinyseek.evaluate.words import Words


def headline(run: Run, scores: list[dict[str, Any]], t: Words) -> Html:
    """The tiles at the top."""
    tiles: list[Html] = []

    def tile(value: str, name: str, more: str = "") -> None:
        tiles.append(el("div", el("b", value), el("span", name), el("small", more) if more else "", class_="tile"))

    asked = [(str(s.get("name")), as_dict(s.get("tasks"))) for s in scores if s.get("tasks")]
    if asked:
        name, last = asked[-1] if len(asked) < 3 else max(asked, key=lambda one: as_float(one[1].get("share")))
        first = percent(asked[0][1].get("share"))
        before = t("before fine-tuning: {share}").format(share=first) if len(asked) > 1 else name
        if len(asked) > 2:
            before = t("by {name}, {share} before").format(name=name, share=first)
        tile(percent(last.get("share")), t("of held-out tasks answered exactly"), before)
    read = [(str(s.get("name")), as_dict(s.get("text"))) for s in scores if s.get("text")]
    if read:
        name, text = read[0]
        tile(
            number(text.get("bits_per_byte"), 3),
            t("bits per byte on held-out text"),
            t("{name}; less is better").format(name=name),
        )
    for node in reversed(run.of_kind(*TRAINED)):
        if counts := counts_of(node.path):
            active = t("{active} active a token").format(active=charts.short(counts.active))
            tile(charts.short(counts.total), t("parameters"), active if counts.active < counts.total else "")
            break
    trained = [node.manifest.figures for node in run.of_kind("pretrain") if node.manifest.figures.get("tokens")]
    if trained:
        tokens = sum(as_float(figures["tokens"]) for figures in trained)
        rate = as_float(trained[-1].get("tokens_per_s"))
        tile(
            charts.short(tokens),
            t("tokens read in pre-training"),
            t("{rate} a second").format(rate=charts.short(rate)) if rate else "",
        )
    seconds = sum(node.manifest.seconds for node in run.nodes if node.manifest.kind not in TRAINED)
    seconds += sum(
        as_float(n.manifest.figures.get("training_seconds", n.manifest.seconds)) for n in run.of_kind(*TRAINED)
    )
    if run.nodes:
        tile(duration(seconds), t("from raw text to here"), t("{count} stages").format(count=len(run.nodes)))
    return el("div", tiles, class_="tiles") if tiles else Html("")


def unfinished(run: Run, t: Words) -> Html:
    """Stages that are at work, were stopped, or have not begun."""
    if not run.working and not run.waiting:
        return Html("")
    rows = [(path.stem, t("stopped or at work: step {step}").format(step=_last_step(path))) for path in run.working]
    rows += [(name, t("not begun")) for name in run.waiting]
    return section(
        t("Not finished yet"),
        t("The page grows with the run: make it again later."),
        card(table((t("stage"), ""), rows)),
    )


def _last_step(work: Path) -> int:
    records = json_lines(work / "metrics.jsonl")
    return as_int(records[-1].get("step")) if records else 0
