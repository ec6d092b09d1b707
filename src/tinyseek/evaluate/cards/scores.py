"""Models' scores beside each other: one picture of every stage of a run, then the details."""

from __future__ import annotations

from typing import Any

from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import colour, number, percent
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int
from tinyseek.evaluate.cards.run import Run, parent_of
from tinyseek.evaluate.page import Child, Html, card, el, join, section, table
from tinyseek.evaluate.words import Words

_FEW = 3  # models up to which each has a colour of its own, and kinds of tasks are drawn for each
Scored = list[tuple[str, dict[str, Any]]]  # models' names and what they made of something


def scores(run: Run, entries: list[dict[str, Any]], t: Words) -> Html:
    """The section on all evaluations of a run."""
    if not entries:
        return Html("")
    cards: list[Html] = []
    asked = [(str(s.get("name")), as_dict(s.get("tasks"))) for s in entries if s.get("tasks")]
    read = [(str(s.get("name")), as_dict(s.get("text"))) for s in entries if s.get("text")]
    sampled = any(tasks.get("sampled") for _, tasks in asked)
    wide: list[Html] = []
    if asked and (sampled or len(asked) > _FEW):
        wide += [_story(run, entries, asked, t), _details(asked, t)]
    if asked and len(asked) <= _FEW:
        cards.append(_by_kind(asked, t))
    elif asked and (kinds := _kinds_table(asked, t)):
        wide.append(kinds)
    if read:
        cards.append(_text(read, t))
    about = t("The same questions and the same text for every model, none of it seen in training. Answers are greedy.")
    if sampled:
        about = t(
            "The same questions for every model, none seen in training. pass@1 is the share of sampled answers that are right, "
            "pass@k the chance that one of k is; lines are 95 % intervals, by drawing the questions again."
        )
    return section(t("Scores before and after"), about, *wide, *([el("div", cards, class_="grid")] if cards else []))


def _story(run: Run, entries: list[dict[str, Any]], asked: Scored, t: Words) -> Html:
    """Every model a row, in the order of their making: what it scores greedily and sampled, and how much that is over another."""
    keys = {str(entry.get("name")): entry.get("key") for entry in entries}
    nodes = {node.manifest.key: node for node in run.nodes}
    most = max((k for _, tasks in asked for k in _ks(tasks)), default=1)
    rows: list[tuple[Child, list[charts.Bar]]] = []
    for name, tasks in asked:
        node = nodes.get(str(keys.get(name)))
        parent = parent_of(node, run.nodes) if node else None
        made = [node.manifest.kind] if node and node.manifest.kind != name else []
        made += [t("from {name}").format(name=parent.name)] if parent else []
        label = join(name, el("small", " · ".join(made)) if made else "")
        drawn = as_dict(tasks.get("sampled"))
        bars = [_bar(tasks, colour(0), strong=False) if drawn else _bar(tasks, colour(1))]
        if drawn:
            bars.insert(0, _mean_bar(as_dict(drawn.get("pass@1")), colour(1), strong=True))
        if drawn and most > 1 and drawn.get(f"pass@{most}"):
            bars.append(_mean_bar(as_dict(drawn.get(f"pass@{most}")), colour(2)))
        over = next((n for n in run.nodes if n.manifest.key == keys.get(_over(tasks))), None)
        known = parent is None or over is None or over is parent or parent_of(over, run.nodes) is parent
        rows.append((join(label, _gain(tasks, t) if known else Html("")), bars))
    shown = [(t("greedy"), colour(0))]
    if any(tasks.get("sampled") for _, tasks in asked):
        shown.insert(0, ("pass@1", colour(1)))
        shown += [(f"pass@{most}", colour(2))] if most > 1 else []
    legend = charts.legend(shown) if len(shown) > 1 else Html("")
    title = t("Held-out tasks right, stage by stage, with 95 % intervals")
    return card(el("h3", title), legend, el("div", charts.bars(rows), class_="story"))


def _over(tasks: dict[str, Any]) -> str:
    """The model that a model's scores are held against; where it neither was made from that, nor both from one, it says little."""
    return str(as_dict(tasks.get("gains")).get("over", ""))


def _gain(tasks: dict[str, Any], t: Words) -> Html:
    """+12.3 points over another model, with its interval, green or red where the interval does not hold 0."""
    gains = as_dict(tasks.get("gains"))
    mean = as_dict(gains.get("pass@1") or gains.get("greedy"))
    if not mean:
        return Html("")
    low, high = as_float(mean.get("low")), as_float(mean.get("high"))
    sure = "right" if low > 0 else "wrong" if high < 0 else ""
    value = f"{100 * as_float(mean.get('mean')):+.1f}".replace("-", "−")
    reach = f"({100 * low:+.1f} … {100 * high:+.1f})".replace("-", "−")
    over = t("over {name}").format(name=_over(tasks))
    return el("small", el("b", value, class_=sure), " ", over, " ", reach, class_="gain")


def _details(asked: Scored, t: Words) -> Html:
    """All figures of the picture, and what the answers look like."""
    ks = sorted({k for _, tasks in asked for k in _ks(tasks)})
    head = [t("model"), t("greedy"), *(f"pass@{k}" for k in ks)]
    head += [t("tokens an answer"), t("in form"), t("thinks first"), t("cut off")]
    rows: list[list[Child]] = []
    errors = False
    for name, tasks in asked:
        drawn = as_dict(tasks.get("sampled"))
        shape = as_dict(as_dict(drawn or tasks).get("answers"))
        row: list[Child] = [name, percent(tasks.get("share"))]
        for k in ks:
            mean = as_dict(drawn.get(f"pass@{k}"))
            half = 50 * (as_float(mean.get("high")) - as_float(mean.get("low")))
            row.append(join(percent(mean.get("mean")), el("small", f" ± {half:.1f}")) if mean else "–")
        seeds = as_dict(drawn.get("by_seed")).get("error")
        errors = errors or isinstance(seeds, float)
        row += [number(shape.get("tokens"), 1), *(percent(shape.get(part)) for part in ("format", "thought", "cut"))]
        rows.append(row)
    notes = [_how_drawn(tasks, t) for _, tasks in asked if tasks.get("sampled")][:1]
    return card(table(head, rows, range(1, len(head))), *[el("p", note, class_="facts") for note in notes if note])


def _how_drawn(tasks: dict[str, Any], t: Words) -> str:
    drawn = as_dict(tasks.get("sampled"))
    told = t("{samples} answers a question at temperature {temperature}").format(
        samples=as_int(drawn.get("samples")), temperature=number(drawn.get("temperature"), 1)
    )
    seeds = as_int(drawn.get("seeds"))
    return told + (t(", by each of {seeds} seeds").format(seeds=seeds) if seeds > 1 else "")


def _ks(tasks: dict[str, Any]) -> list[int]:
    """The k of pass@k that a model has."""
    names = [name.removeprefix("pass@") for name in as_dict(tasks.get("sampled")) if name.startswith("pass@")]
    return [int(name) for name in names if name.isdecimal()]


def _by_kind(asked: Scored, t: Words) -> Html:
    colours = {name: colour(index) for index, (name, _) in enumerate(asked)}
    groups = [(t("all"), asked)]
    for by in ("by_kind", "by_lang"):
        for value in dict.fromkeys(value for _, tasks in asked for value in as_dict(tasks.get(by))):
            groups.append((t(str(value)), [(n, as_dict(as_dict(tasks.get(by)).get(value))) for n, tasks in asked]))
    drawn = [
        (f"{label} ({as_int(parts[0][1].get('total'))})", [_bar(share, colours[name]) for name, share in parts])
        for label, parts in groups
    ]
    legend = charts.legend([(name, colours[name]) for name, _ in asked])
    return card(el("h3", t("Held-out tasks answered exactly, with 95 % intervals")), legend, charts.bars(drawn))


def _kinds_table(asked: Scored, t: Words) -> Html | None:
    """Greedy answers right by kind and language; none where there is but one of each."""
    columns = [
        (by, value)
        for by in ("by_kind", "by_lang")
        for value in dict.fromkeys(value for _, tasks in asked for value in as_dict(tasks.get(by)))
    ]
    if len(columns) <= 2:
        return None
    rows = [
        (name, *(percent(as_dict(as_dict(tasks.get(by)).get(value)).get("share")) for by, value in columns))
        for name, tasks in asked
    ]
    head = (t("model"), *(t(str(value)) for _, value in columns))
    return card(el("h3", t("Answered exactly, by kind and language")), table(head, rows, range(1, len(head))))


def _text(read: Scored, t: Words) -> Html:
    worst = max(as_float(score.get("bits_per_byte")) for _, score in read) or 1.0
    drawn = []
    for index, (name, s) in enumerate(read):
        bits = as_float(s.get("bits_per_byte"))
        drawn.append((name, [charts.Bar(el("b", number(s.get("bits_per_byte"), 3)), bits / worst, colour(index))]))
    rows = [
        (n, number(s.get("perplexity"), 2), f"{as_int(s.get('bytes')):,}", f"{as_int(s.get('documents')):,}")
        for n, s in read
    ]
    head = (t("model"), t("perplexity a token"), t("bytes"), t("documents"))
    title = t("Bits per byte on held-out text; less is better")
    return card(el("h3", title), charts.bars(drawn), el("br"), table(head, rows, (1, 2, 3)))


def _bar(share: dict[str, Any], shade: str, strong: bool = True) -> charts.Bar:
    interval = (as_float(share.get("low")), as_float(share.get("high"))) if share else None
    shown = percent(share.get("share"))
    return charts.Bar(el("b", shown) if strong else shown, as_float(share.get("share")), shade, interval)


def _mean_bar(mean: dict[str, Any], shade: str, strong: bool = False) -> charts.Bar:
    shown = percent(mean.get("mean"))
    interval = (as_float(mean.get("low")), as_float(mean.get("high"))) if mean else None
    return charts.Bar(el("b", shown) if strong else shown, as_float(mean.get("mean")), shade, interval)
