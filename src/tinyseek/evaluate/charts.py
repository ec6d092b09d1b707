"""The report's charts, drawn as SVG and boxes of the page's own colours, so that they follow light and dark and any language.

Nothing is rasterised and no font is embedded: the browser sets the text, so Chinese labels are as good as any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyseek.evaluate.page import Child, Html, el, join

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 8, 36


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) in order of x; `band` shows how far single points stray from the mean that is drawn."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    band: bool = False
    dots: bool = False


@dataclass(frozen=True)
class _Binned:
    x: float
    mean: float
    low: float
    high: float


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> Html:
    """Curves over one pair of axes; thousands of points are drawn as at most 160 means."""
    binned = [(line, _bins(line.points, 160)) for line in lines]
    every = [point for _, points in binned for point in points]
    if not every:
        return Html("")
    x_end = max(point.x for point in every)
    x_start = min(0.0, *(point.x for point in every))
    highest = max(point.mean for point in every)
    lowest = min(point.low if line.band else point.mean for line, points in binned for point in points)
    y_ticks = ticks(lowest, highest, 5)
    x_ticks = [tick for tick in ticks(x_start, x_end, 5) if x_start <= tick <= x_end]
    bottom, top = y_ticks[0], y_ticks[-1]

    def x_at(value: float) -> float:
        return _LEFT + (value - x_start) / ((x_end - x_start) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y_at(value: float) -> float:
        share = (min(value, top) - bottom) / ((top - bottom) or 1)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def places(pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in pairs)

    shapes: list[Html] = []
    for tick in y_ticks:
        y = y_at(tick)
        shapes.append(el("line", class_="rule", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"))
        shapes.append(el("text", short(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for tick in x_ticks:
        shapes.append(el("text", short(tick), x=f"{x_at(tick):.1f}", y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    shapes.append(el("text", x_label, x=_WIDTH - _RIGHT, y=_HEIGHT - 3, text_anchor="end"))
    base = _HEIGHT - _BOTTOM
    shapes.append(el("line", class_="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=base, y2=base))
    for line, points in binned:
        if line.band and len(points) > 2:
            edge = [(point.x, point.high) for point in points] + [(point.x, point.low) for point in reversed(points)]
            shapes.append(el("polygon", class_="band", points=places(edge), fill=line.colour))
        if len(points) > 1:
            means = [(point.x, point.mean) for point in points]
            shapes.append(el("polyline", class_="curve", points=places(means), stroke=line.colour))
        if line.dots or len(points) == 1:
            shapes += [
                el("circle", cx=f"{x_at(p.x):.1f}", cy=f"{y_at(p.mean):.1f}", r=3, fill=line.colour) for p in points
            ]
    drawing = el("svg", shapes, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{y_label}, {x_label}")
    return join(legend([(line.name, line.colour) for line in lines]), drawing)


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Names with their colours."""
    return el("div", [el("span", el("i", style=f"background:{c}"), name) for name, c in entries], class_="legend")


def _bins(points: Sequence[tuple[float, float]], most: int) -> list[_Binned]:
    """At most `most` groups of neighbours: their mean, and how far they reach. What is not finite is left out."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        _Binned(
            sum(x for x, _ in group) / len(group) if group is not groups[-1] else group[-1][0],
            sum(y for _, y in group) / len(group),
            min(y for _, y in group),
            max(y for _, y in group),
        )
        for group in groups
    ]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`, a step of 1, 2 or 5 times a power of ten apart."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: 12k, 3.4M, 0.25."""
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            size = 1e3 if sign == "k" else size
            return f"{value / size:.3g}{sign}" if abs(value) / size < 1000 else f"{value / size:.0f}{sign}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Bar:
    """One bar: what stands to its right, its share of the track, and the interval of that share if there is one."""

    shown: Html | str
    share: float
    colour: str
    interval: tuple[float, float] | None = None


def bars(groups: Sequence[tuple[Child, Sequence[Bar]]]) -> Html:
    """Bars in groups, each group with its name; shares are of the whole width."""
    parts: list[Html] = []
    for name, group in groups:
        if parts:
            parts.append(el("div", class_="apart"))
        for index, bar in enumerate(group):
            inside = [el("i", style=f"width:{_percent(bar.share)};background:{bar.colour}")]
            if bar.interval:
                low, high = bar.interval
                inside.append(el("u", style=f"left:{_percent(low)};width:{_percent(high - low)}"))
            parts.append(el("div", name if index == 0 else "", class_="name", style=f"--bars:{len(group)}"))
            parts.append(el("div", inside, class_="track"))
            parts.append(el("div", bar.shown, class_="value"))
    return el("div", parts, class_="bars")


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def heat_map(rows: Mapping[str, Sequence[float]], side: str) -> Html:
    """Each expert's load in each layer, as a multiple of its fair share; deeper is busier.

    Args:
        rows: layer -> shares that add up to 1.
        side: what a row's number is called.
    """
    widest = max((len(row) for row in rows.values()), default=0)
    cells: list[Html] = [el("div", class_="side")]
    numbered = widest <= 16
    cells += [el("div", str(index) if numbered or index % 8 == 0 else "", class_="top") for index in range(widest)]
    for layer, shares in rows.items():
        cells.append(el("div", f"{side} {layer}", class_="side"))
        for index in range(widest):
            if index >= len(shares):
                cells.append(el("div"))
                continue
            load = shares[index] * len(shares)
            depth = min(1.0, load / 2)
            strong = "strong" if depth > 0.62 else None
            style = f"background:rgb(var(--deep) / {0.06 + 0.9 * depth:.3f})"
            cells.append(
                el("div", f"{load:.2f}" if numbered else "", class_=strong, style=style, title=f"{index}: {load:.2f}")
            )
    columns = f"max-content repeat({widest}, minmax({'34px' if numbered else '6px'}, 1fr))"
    return el("div", el("div", cells, class_="heat", style=f"grid-template-columns:{columns}"), class_="scroll")


def confusion(names: Sequence[str], rows: Sequence[Sequence[float]]) -> Html:
    """What is taken for what: a line a class as it is, a column as it was taken; deeper is a larger share of its line."""
    cells: list[Html] = [el("div", class_="side")]
    cells += [el("div", name, class_="top") for name in names]
    for name, row in zip(names, rows, strict=True):
        total = sum(row) or 1.0
        cells.append(el("div", name, class_="side"))
        for count in row:
            share = count / total
            strong = "strong" if share > 0.55 else None
            style = f"background:rgb(var(--deep) / {0.05 + 0.9 * share:.3f})"
            cells.append(el("div", f"{count:,.0f}", class_=strong, style=style, title=f"{100 * share:.1f} %"))
    columns = f"max-content repeat({len(names)}, minmax(44px, 1fr))"
    return el("div", el("div", cells, class_="heat", style=f"grid-template-columns:{columns}"), class_="scroll")
