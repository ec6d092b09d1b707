"""A picture of a result where one helps: amounts beside each other as bars, a course in time as a line.

What is drawn is a plain description first (`Chart`), so that a page can draw it too; `png` draws it here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from tinyseek.knowledge.tables.schema import Cell, Result

MOST_BARS, MOST_POINTS, MOST_SERIES = 40, 2_000, 4
_ASKED = re.compile(r"\b(?:charts?|plots?|graphs?|draw|diagram|visuali[sz]e|histogram)\b|图|画|可视化", re.I)
_TIME = re.compile(r"\d{4}(?:-\d{2}(?:-\d{2})?|-Q[1-4])?(?: \d{2}:\d{2}(?::\d{2})?)?")
_NUMERIC = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
)
_COLOURS = ("#3b6fb6", "#e08a3c", "#4a9a5f", "#b3525f")
_FONTS = (  # that have Chinese, by system
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei",
    "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Serif CJK SC", "Noto Serif CJK JP", "Arial Unicode MS",
)  # fmt: skip
_CHINESE_FILE = re.compile(r"NotoSansCJK|NotoSerifCJK|SourceHan|PingFang|Hiragino|STHeiti|msyh|simhei|wqy", re.I)
_LONGEST_LABEL = 28


@dataclass(frozen=True)
class Chart:
    """What to draw: numbers of a result's columns."""

    kind: Literal["bar", "line"]
    labels: int
    values: tuple[int, ...]
    title: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def is_numeric(type_name: str) -> bool:
    """Whether a column of this type of the database holds numbers."""
    return type_name in _NUMERIC or type_name.startswith("DECIMAL")


def chart_of(result: Result, question: str) -> Chart | None:
    """A chart of a result, where it says more than the table: one label and an amount or a few in each of several rows."""
    count = len(result.rows)
    numbers = [at for at, kind in enumerate(result.types) if is_numeric(kind)]
    others = [at for at in range(len(result.types)) if at not in numbers]
    if count < 2 or not numbers:
        return None
    asked = bool(_ASKED.search(question))
    in_time = next((at for at in others if all(_TIME.fullmatch(str(row[at])) for row in result.rows)), None)
    if in_time is None and not others and len(numbers) > 1 and _years([row[numbers[0]] for row in result.rows]):
        in_time, numbers = numbers[0], numbers[1:]
    labels = in_time if in_time is not None else others[0] if others else None
    if labels is None or not numbers:
        return None
    different = len({row[labels] for row in result.rows}) == count
    if not different or (not asked and (len(others) > 1 or len(numbers) > MOST_SERIES)):
        return None
    kind: Literal["bar", "line"] = "line" if in_time is not None and count > 2 else "bar"
    if count > (MOST_POINTS if kind == "line" else MOST_BARS) or result.more:
        return None
    sizes = [max((abs(_amount(row[at])) for row in result.rows if row[at] is not None), default=0.0) for at in numbers]
    alike = [at for at, size in zip(numbers, sizes, strict=True) if size * 20 >= sizes[0] and size <= 20 * sizes[0]]
    return Chart(kind, labels, tuple(alike[:MOST_SERIES] or numbers[:1]), question.strip()[:80])


def _years(values: Sequence[Cell]) -> bool:
    return all(isinstance(value, int) and 1900 <= value <= 2100 for value in values)


def png(chart: Chart, result: Result, width: float = 7.0, dots: int = 144) -> bytes:
    """The picture.

    Args:
        width: inches. dots: an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in result.rows if row[chart.labels] is not None]
    if chart.kind == "line":
        rows.sort(key=lambda row: str(row[chart.labels]))
    labels = [_label(row[chart.labels]) for row in rows]
    lying = chart.kind == "bar" and (len(labels) > 8 or max(map(_width, labels), default=0) > 12)
    height = max(3.2, 0.32 * len(labels) * max(1, len(chart.values) * 0.6) + 1.2) if lying else 3.6
    figure = Figure(figsize=(width, min(height, 24)), dpi=dots, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fonts = list(_fonts())
    series = [(result.columns[at], [_amount(row[at]) for row in rows]) for at in chart.values]
    for number, (name, amounts) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        if chart.kind == "line":
            axes.plot(
                range(len(rows)),
                amounts,
                marker="o" if len(rows) <= 60 else None,
                markersize=4,
                color=colour,
                label=_safe(name),
            )
        else:
            thick = 0.8 / len(series)
            places = [at + (number - (len(series) - 1) / 2) * thick for at in range(len(rows))]
            if lying:
                bars = axes.barh(places, amounts, height=thick, color=colour, label=_safe(name))
            else:
                bars = axes.bar(places, amounts, width=thick, color=colour, label=_safe(name))
            if len(rows) * len(series) <= 24:
                texts = [f" {_rounded(amount)} " if amount == amount else "" for amount in amounts]
                axes.bar_label(bars, texts, fontsize=8)
    axis = axes.yaxis if lying else axes.xaxis
    step = max(1, len(labels) // (12 if chart.kind == "line" else MOST_BARS))
    axis.set_ticks(range(0, len(labels), step))
    turned = not lying and sum(map(_width, labels[::step])) > 70
    axis.set_ticklabels(
        labels[::step],
        fontfamily=fonts,
        fontsize=9,
        rotation=30 if turned else 0,
        ha="right" if turned or lying else "center",
    )
    if lying:
        axes.invert_yaxis()
    axes.set_title(_safe(chart.title), fontfamily=fonts, fontsize=11)
    if len(series) > 1:
        axes.legend(prop={"family": fonts, "size": 9}, frameon=False)
    else:
        (axes.set_xlabel if lying else axes.set_ylabel)(_safe(series[0][0]), fontfamily=fonts, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def shown(value: Cell) -> str:
    """A number for people: thousands apart, no more digits than are sure; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if value.is_integer() and abs(value) < 1e15:
        return shown(int(value))
    return f"{value:,.15g}" if abs(value) >= 10_000 else f"{value:.15g}"


def _rounded(amount: float) -> str:
    """Four digits are enough beside a bar."""
    return shown(float(f"{amount:.4g}") if abs(amount) < 10_000 else float(round(amount)))


def _amount(value: Cell) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _label(value: Cell) -> str:
    text = " ".join(str(value).removesuffix(" 00:00:00").split())
    return _safe(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…")


def _safe(text: str) -> str:
    """As matplotlib takes it: a dollar begins no formula, a leading underscore hides nothing."""
    return text.replace("$", r"\$").lstrip("_")


def _width(text: str) -> int:
    return sum(2 if character > "\u2e7f" else 1 for character in text)


@lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """Names of fonts for all that may stand in a picture, Latin first. What matplotlib has not noticed yet is shown to it."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    there = {font.name for font in fontManager.ttflist}
    if not there & set(_FONTS):
        for file in sorted(file for file in findSystemFonts() if _CHINESE_FILE.search(file)):
            fontManager.addfont(file)
        there = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *[name for name in _FONTS if name in there][:2])


def drawable(chart: Chart, result: Result) -> bool:
    """Whether there is a font for what would be written."""
    texts = [
        chart.title,
        *(result.columns[at] for at in chart.values),
        *(str(row[chart.labels]) for row in result.rows),
    ]
    return len(_fonts()) > 1 or not any("\u2e80" <= character <= "\u9fff" for text in texts for character in text)
