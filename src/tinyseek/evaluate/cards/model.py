"""The model: its parameters by part, and how busy each expert is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyseek.errors import UserError
from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.reading import as_dict, as_float, json_lines, json_of
from tinyseek.evaluate.cards.run import TRAINED, Node, Run
from tinyseek.evaluate.page import Html, card, el, section, table
from tinyseek.evaluate.words import Words

_SHOWN = 2  # stages whose experts' loads are shown at once


def model(run: Run, t: Words) -> Html:
    """The parameter table, and how busy each expert is."""
    nodes = run.of_kind(*TRAINED)
    boxes: list[Html] = []
    for node in reversed(nodes):
        counts = counts_of(node.path)
        if counts is None:
            continue
        rows = [(t(row.name), f"{row.parameters:,}", f"{row.active:,}") for row in counts.rows]
        parts = table((t("part"), t("parameters"), t("active a token")), rows, (1, 2))
        config = as_dict(json_of(node.path / "config.json"))
        facts = [
            (t("in all"), f"{counts.total:,}"),
            (t("active a token"), f"{counts.active:,}"),
            (t("multi-token prediction, beside these"), f"{counts.mtp:,}" if counts.mtp else t("none")),
            (t("cache, bytes a token (bfloat16)"), f"{counts.cache_bytes_per_token():,}"),
            (t("forward FLOPs a token at 512"), charts.short(counts.flops_per_token(512))),
            (t("architecture"), str(config.get("model_type", ""))),
        ]
        boxes += [
            card(el("h3", t("Parameters by part"), el("span", f" · {node.name}", class_="pending")), parts),
            card(el("h3", t("Size")), table(("", ""), facts, (1,))),
        ]
        break
    heat = [found for node in nodes if (found := _heat(node, t))]
    if not boxes and not heat:
        return Html("")
    about = t(
        "Counted on the model itself. Of the experts a token meets only a few, so fewer parameters are active than there are."
    )
    grid = el("div", boxes, class_="grid")
    first, rest = heat[:_SHOWN], heat[_SHOWN:]
    more = [el("details", el("summary", t("{count} more").format(count=len(rest))), *rest)] if rest else []
    return section(t("The model"), about, grid, *first, *more)


def _heat(node: Node, t: Words) -> Html | None:
    load = as_dict(node.manifest.figures.get("expert_load"))
    if not load:
        records = [r for r in json_lines(node.path / "metrics.jsonl") if isinstance(r.get("expert_load"), dict)]
        load = records[-1]["expert_load"] if records else {}
    rows = {
        str(layer): [as_float(share) for share in shares]
        for layer, shares in load.items()
        if isinstance(shares, list) and len(shares) > 1 and sum(map(as_float, shares)) > 0
    }
    if not rows:
        return None
    title = t("Load of the experts in {name}: 1 is a fair share").format(name=node.name)
    return card(el("h3", title), charts.heat_map(rows, t("layer")))


def counts_of(folder: Path) -> Any:
    """The sizes of the model in a folder, or None where its config cannot be read."""
    from tinyseek.model.checkpoint import read_config
    from tinyseek.model.counts import count

    try:
        return count(read_config(folder))
    except UserError:
        return None
