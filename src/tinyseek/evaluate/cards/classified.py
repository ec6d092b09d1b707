"""Classifiers: how many texts are told right, class by class, and what is taken for what."""

from __future__ import annotations

from typing import Any

from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import number, percent
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, as_list, json_lines, json_of
from tinyseek.evaluate.cards.run import Node, Run
from tinyseek.evaluate.page import Html, card, el, section, table
from tinyseek.evaluate.words import Words

_MOST_CLASSES = 24  # of a confusion matrix that is drawn


def classified(run: Run, t: Words) -> Html:
    """The section on `classify` stages."""
    cards = [found for node in run.of_kind("classify") if (found := _classifier(node, t))]
    if not cards:
        return Html("")
    about = t("Texts that were held out. A line of the matrix is what texts are, a column what they were taken for.")
    return section(t("Classification"), about, *cards)


def _classifier(node: Node, t: Words) -> Html | None:
    scores = as_dict(json_of(node.path / "scores.json"))
    classes = as_dict(scores.get("classes"))
    if not classes:
        return None
    low, high = (as_float(end) for end in [*as_list(scores.get("accuracy_95")), 0.0, 1.0][:2])
    rows = [(t("the trained head"), [_bar(scores.get("accuracy"), "var(--models-1)", (low, high))])]
    asked = as_dict(scores.get("few_shot"))
    if asked:
        rows.append((t("asked by prompt, few examples"), [_bar(asked.get("accuracy"), "var(--models-2)", None)]))
    rows.append((t("always the commonest class"), [_bar(scores.get("majority"), "var(--models-0)", None)]))
    facts = t("{count} texts, macro-F1 {f1}").format(
        count=f"{as_int(scores.get('texts')):,}", f1=number(scores.get("macro_f1"), 4)
    )
    lines = [
        (
            name,
            f"{as_int(as_dict(of).get('texts')):,}",
            *(percent(as_dict(of).get(part)) for part in ("precision", "recall", "f1")),
        )
        for name, of in classes.items()
    ]
    head = (t("class"), t("texts"), t("precision"), t("recall"), "F1")
    left = card(
        el("h3", node.name),
        charts.bars(rows),
        el("p", facts, class_="facts"),
        el("br"),
        table(head, lines, (1, 2, 3, 4)),
        *_mistakes(node, t),
    )
    matrix = [[as_float(count) for count in as_list(row)] for row in as_list(scores.get("confusion"))]
    if not matrix or len(matrix) != len(classes) or len(matrix) > _MOST_CLASSES:
        return left
    right = card(el("h3", t("What is taken for what")), charts.confusion(list(classes), matrix))
    return el("div", left, right, class_="grid")


def _bar(share: Any, colour: str, interval: tuple[float, float] | None) -> charts.Bar:
    return charts.Bar(el("b", percent(share)), as_float(share), colour, interval)


def _mistakes(node: Node, t: Words) -> list[Html]:
    """Texts that were taken for another class, the surest first."""
    wrong = [r for r in json_lines(node.path / "predictions.jsonl") if r.get("label") != r.get("predicted")]
    wrong.sort(key=lambda record: -as_float(record.get("probability")))
    quotes = [
        el(
            "div",
            el(
                "small",
                t("{label}, taken for {predicted} ({share})").format(
                    label=str(r.get("label")), predicted=str(r.get("predicted")), share=percent(r.get("probability"))
                ),
            ),
            str(r.get("text", ""))[:700],
            class_="quote",
        )
        for r in wrong[:5]
    ]
    return (
        [el("details", el("summary", t("the surest mistakes, of {count}").format(count=len(wrong))), *quotes)]
        if quotes
        else []
    )
