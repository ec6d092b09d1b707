"""Answers collected of a teacher, and pairs made of them: how many there were, what was kept, and some of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import number, percent
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, as_list, json_lines
from tinyseek.evaluate.cards.run import Node, Run
from tinyseek.evaluate.cards.samples import answer
from tinyseek.evaluate.page import Html, card, el, section, table
from tinyseek.evaluate.words import Words

_FIRST = 400  # records of a file among which samples are looked for


def collected(run: Run, most: int, t: Words) -> Html:
    """The section on `collect` and `pairs` stages. `most`: samples of each, at the utmost."""
    few = min(3, most)
    cards = [_collect(node, few, t) for node in run.of_kind("collect")]
    cards += [_pairs(node, few, t) for node in run.of_kind("pairs")]
    if not cards:
        return Html("")
    about = t(
        "Answers that a model gave to many prompts, judged by rewards; what is wrong, malformed or twice there is left out."
    )
    return section(t("Collected answers"), about, *cards)


def _collect(node: Node, few: int, t: Words) -> Html:
    figures = node.manifest.figures
    answers, kept = as_int(figures.get("answers")), as_int(figures.get("kept"))
    of = max(1, answers)
    rows = [(t("kept"), [charts.Bar(el("b", f"{kept:,}"), kept / of, "var(--models-1)")])]
    for reason, count in sorted(as_dict(figures.get("dropped")).items(), key=lambda entry: -as_int(entry[1])):
        share = as_int(count) / of
        rows.append((t(str(reason).replace("_", " ")), [charts.Bar(f"{as_int(count):,}", share, "var(--models-0)")]))
    tokens = as_dict(figures.get("tokens"))
    facts = [
        t("by {name}").format(name=str(figures.get("teacher", ""))),
        t("{answers} answers to {prompts} prompts").format(
            answers=f"{answers:,}", prompts=f"{as_int(figures.get('prompts')):,}"
        ),
        t("{share} of the answers right").format(share=percent(figures["right"])) if "right" in figures else "",
        t("{share} of the prompts at least once").format(share=percent(figures["prompts_right_once"]))
        if "prompts_right_once" in figures
        else "",
        t("{count} tokens written").format(count=charts.short(as_float(tokens.get("completion")))) if tokens else "",
        t("cost {cost}").format(cost=f"{number(figures['cost'], 4)} {figures.get('currency', '')}".strip())
        if "cost" in figures
        else "",
        t("{count} asked again").format(count=f"{as_int(figures['asked_again']):,}")
        if figures.get("asked_again")
        else "",
    ]
    first = json_lines(node.path / "samples.jsonl")[:_FIRST]
    shown = [r for r in first if not r.get("dropped")][:few]
    shown += _one_of_each(r for r in first if r.get("dropped"))[:few]
    quotes = [_quote(record, t) for record in shown]
    more = [el("details", el("summary", t("samples, kept and left out")), *quotes)] if quotes else []
    about = el("p", " · ".join(fact for fact in facts if fact), class_="facts")
    return card(el("h3", node.name), charts.bars(rows), about, *more)


def _one_of_each(records: Any) -> list[dict[str, Any]]:
    """The first record of each reason for leaving out."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        found.setdefault(str(record.get("dropped")), record)
    return list(found.values())


def _quote(record: dict[str, Any], t: Words) -> Html:
    why = str(record.get("dropped") or "")
    fate = t("left out: {why}").format(why=t(why.replace("_", " "))) if why else t("kept")
    expected = t("expected: {answer}").format(answer=str(record["answer"])) if record.get("answer") is not None else ""
    head = " · ".join(part for part in (_last_said(record.get("prompt")), expected, fate) if part)
    return el("div", el("small", head), answer(_said(record.get("completion")), t), class_="quote")


def _pairs(node: Node, few: int, t: Words) -> Html:
    figures = node.manifest.figures
    rules = as_dict(figures.get("rules"))
    rows = [
        (
            t(str(rule).replace("_", " ")),
            f"{as_int(as_dict(of).get('pairs')):,}",
            f"{as_int(as_dict(of).get('possible')):,}",
            f"{as_int(as_dict(of).get('prompts')):,}",
        )
        for rule, of in rules.items()
    ]
    facts = [
        t("{pairs} pairs of {prompts} prompts").format(
            pairs=f"{as_int(figures.get('pairs')):,}", prompts=f"{as_int(figures.get('prompts')):,}"
        ),
        t("tokens of the better answer {better}, of the worse {worse}").format(
            better=number(figures.get("tokens_chosen"), 1), worse=number(figures.get("tokens_rejected"), 1)
        ),
    ]
    quotes = []
    for record in json_lines(node.path / "train.jsonl")[:few]:
        sides = [
            el("div", el("small", name), answer(_said(as_list(record.get(side))[:1]), t), class_="quote")
            for name, side in ((t("better"), "chosen"), (t("worse"), "rejected"))
        ]
        asked = el("div", _last_said(record.get("prompt")), class_="question")
        quotes.append(el("div", asked, el("div", sides, class_="pair"), class_="turn"))
    more = [el("details", el("summary", t("samples")), *quotes)] if quotes else []
    head = (t("rule"), t("pairs"), t("possible"), t("prompts"))
    return card(el("h3", node.name), table(head, rows, (1, 2, 3)), el("p", " · ".join(facts), class_="facts"), *more)


def _last_said(messages: Any) -> str:
    """The last message of a prompt."""
    return str(as_dict((as_list(messages) or [{}])[-1]).get("content") or "")


def _said(message: Mapping[str, Any] | Sequence[Any] | None) -> str:
    """A message's text, its reasoning in front as a model would write it."""
    if isinstance(message, list):
        message = message[0] if message else None
    found = as_dict(message)
    thought = str(found.get("reasoning_content") or "")
    return (f"<think>{thought}</think>" if thought else "") + str(found.get("content") or "")
