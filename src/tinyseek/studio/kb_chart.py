"""The chart of a result, drawn in the page's own colours: bars for amounts, a line for a course in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinyseek.evaluate.charts import legend, short, ticks
from tinyseek.evaluate.page import Html, el
from tinyseek.knowledge.tables.chart import shown

_COLOURS = ("var(--accent)", "var(--ember)", "var(--teal)", "var(--green)")
_WIDTH, _HEIGHT = 620, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 10, 28
_LABELS, _LABEL = 6, 24  # along a line at most; characters of each


def chart(described: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """What a `tables.chart.Chart` describes; nothing where it does not fit the result."""
    try:
        labels, values = int(described["labels"]), [int(at) for at in described["values"]]
        names = [_text(row[labels]) for row in rows]
        series = [(columns[at], [_amount(row[at]) for row in rows]) for at in values]
    except (KeyError, IndexError, TypeError, ValueError):
        return Html("")
    if not any(amount is not None for _, amounts in series for amount in amounts):
        return Html("")
    drawn = _line(names, series) if described.get("kind") == "line" else _bars(names, series)
    colours = [(name, _COLOURS[number % len(_COLOURS)]) for number, (name, _) in enumerate(series)]
    return el("figure", legend(colours) if len(series) > 1 else "", drawn, class_="chart")


def _bars(names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> Html:
    """A row a label, a bar a series; amounts below nought go to the left of a common line."""
    every = [amount for _, amounts in series for amount in amounts if amount is not None]
    low, high = min(0.0, *every), max(0.0, *every)
    span = (high - low) or 1.0
    rows = []
    for at, name in enumerate(names):
        for number, (_, amounts) in enumerate(series):
            amount = amounts[at]
            left, width = 0.0, 0.0
            if amount is not None:
                left, width = (min(amount, 0.0) - low) / span, abs(amount) / span
            colour = _COLOURS[number % len(_COLOURS)]
            style = f"left:{100 * left:.2f}%;width:{100 * width:.2f}%;background:{colour}"
            rows.append(el("span", name if number == 0 else "", class_="name"))
            rows.append(el("span", el("i", style=style), class_="track"))
            rows.append(el("span", _rounded(amount), class_="value"))
    return el("div", rows, class_="rows", aria_hidden="true")  # the table below says the same


def _line(names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> Html:
    order = sorted(range(len(names)), key=lambda at: names[at])
    every = [amount for _, amounts in series for amount in amounts if amount is not None]
    lowest = min(every)
    levels = ticks(0.0 if 0 <= lowest < 0.6 * max(every) else lowest, max(every), 4)
    bottom, top = levels[0], levels[-1]

    def x_at(place: int) -> float:
        return _LEFT + place / max(len(order) - 1, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y_at(amount: float) -> float:
        return _HEIGHT - _BOTTOM - (amount - bottom) / ((top - bottom) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    shapes: list[Html] = []
    for level in levels:
        y = f"{y_at(level):.1f}"
        shapes.append(el("line", class_="rule", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
        shapes.append(el("text", short(level), x=_LEFT - 8, y=f"{y_at(level) + 4:.1f}", text_anchor="end"))
    step = max(1, math.ceil(len(order) / _LABELS))
    for place in range(0, len(order), step):
        anchor = "start" if place == 0 else "end" if place == len(order) - 1 else "middle"
        x = f"{_LEFT - 8 if place == 0 else x_at(place):.1f}"
        shapes.append(el("text", names[order[place]], x=x, y=_HEIGHT - 7, text_anchor=anchor))
    for number, (_, amounts) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        for run in _runs([amounts[at] for at in order]):
            points = " ".join(f"{x_at(place):.1f},{y_at(amount):.1f}" for place, amount in run)
            shapes.append(el("polyline", class_="curve", points=points, stroke=colour))
            for place, amount in run if len(order) <= 60 else ():
                told = el("title", f"{names[order[place]]}: {shown(amount)}")
                x, y = f"{x_at(place):.1f}", f"{y_at(amount):.1f}"
                shapes.append(el("circle", told, cx=x, cy=y, r=3.4, fill=colour))
    return el("svg", shapes, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", aria_hidden="true")


def _runs(amounts: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Points that follow each other: where an amount is missing the line is broken."""
    runs: list[list[tuple[int, float]]] = [[]]
    for place, amount in enumerate(amounts):
        if amount is None:
            runs.append([])
        else:
            runs[-1].append((place, amount))
    return [run for run in runs if run]


def _amount(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _rounded(amount: float | None) -> str:
    """Four digits are enough beside a bar."""
    if amount is None:
        return "–"
    return shown(float(f"{amount:.4g}") if abs(amount) < 10_000 else float(round(amount)))


def _text(value: Any) -> str:
    text = " ".join(str("–" if value is None else value).removesuffix(" 00:00:00").split())
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"
