"""The confusion matrix as a picture. Labels may be in any script: a font that has their characters is looked for."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyseek.train import metrics

_USUAL = "DejaVu Sans"  # comes with matplotlib itself
_LARGEST = 40  # classes; beyond, numbers in the cells could not be read


def fonts_for(text: str) -> list[str]:
    """Names of installed fonts that have every character of a text together, the usual one first.

    Returns:
        As few as do it; empty if some character is in none.
    """
    from matplotlib import font_manager

    found = _covering(text)
    if not found:  # matplotlib keeps a list of the fonts; some may have been installed since
        known = {entry.fname for entry in font_manager.fontManager.ttflist}
        for file in set(font_manager.findSystemFonts()) - known:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # a font that cannot be read is no font
                font_manager.fontManager.addfont(file)
        found = _covering(text)
    return found


def _covering(text: str) -> list[str]:
    from matplotlib import font_manager

    wanted = {ord(char) for char in text if not char.isspace()}
    chosen: list[str] = []
    for name, file in _candidates(font_manager.fontManager.ttflist):
        try:
            has = wanted & font_manager.get_font(file).get_charmap().keys()
        except (OSError, RuntimeError, ValueError):
            continue
        if has or not chosen:
            chosen.append(name)
            wanted -= has
        if not wanted:
            return chosen
    return []


def _candidates(entries: Iterable[object]) -> list[tuple[str, str]]:
    """Name and file of each upright sans font of normal weight, then of the rest; those for simplified Chinese early."""
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    for entry in entries:
        name, file = str(getattr(entry, "name", "")), str(getattr(entry, "fname", ""))
        rank = (
            int(name != _USUAL),
            int(getattr(entry, "style", "normal") != "normal"),
            int("Serif" in name or "Mono" in name),
            int(not any(word in name for word in ("CJK", "Hei", "SC", "YaHei", "PingFang"))),
            abs(int(weight) - 400) if isinstance(weight := getattr(entry, "weight", 400), int) else 0,
        )
        if "Last Resort" in name or "LastResort" in name:  # comes with matplotlib: every character, as a box
            continue
        if name and (name not in seen or rank < seen[name][0]):
            seen[name] = (rank, file)
    return [(name, file) for name, (_, file) in sorted(seen.items(), key=lambda item: item[1][0])]


def draw(confusion_LL: NDArray[np.int64], labels: Sequence[str], picture: Path, title: str) -> None:
    """Write the matrix as PNG: true classes are rows; a cell's colour is its share of the row, its number the count.

    Where no installed font has a label's characters, the classes are numbered in it, and the names stand in an SVG beside it, whose
    text the browser sets.
    """
    names = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels]
    fonts = fonts_for("".join([title, *names, "…"]))
    if not fonts:
        browser = picture.with_suffix(".svg")
        metrics.say(
            f"note: no installed font has the labels' characters; {picture.name} shows their numbers, {browser.name} their names"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that are missing here, and not there
            _paint(confusion_LL, names, browser, title, [_USUAL])
        names, title = [str(number) for number in range(len(labels))], "".join(c for c in title if ord(c) < 0x250)
    _paint(confusion_LL, names, picture, title, fonts or [_USUAL])


def _paint(
    confusion_LL: NDArray[np.int64], names: Sequence[str], picture: Path, title: str, fonts: Sequence[str]
) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    count = len(names)
    side = min(14.0, max(4.2, 1.6 + 0.62 * count))
    share_LL = confusion_LL / np.maximum(1, confusion_LL.sum(1, keepdims=True))
    with matplotlib.rc_context({"font.family": list(fonts), "svg.fonttype": "none"}):
        figure = Figure(figsize=(side + 0.9, side), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(share_LL, cmap="Blues", vmin=0, vmax=1)
        if count <= _LARGEST:
            for row in range(count):
                for column in range(count):
                    number = int(confusion_LL[row, column])
                    colour = "white" if share_LL[row, column] > 0.55 else "#1f2d3d" if number else "#b8c2cc"
                    axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=_size(count))
        step = 1 if count <= _LARGEST else -(-count // _LARGEST)
        ticks = range(0, count, step)
        tilted = max(map(len, names)) > 4 and count > 3
        axes.set_xticks(
            ticks, [names[at] for at in ticks], rotation=45 if tilted else 0, ha="right" if tilted else "center"
        )
        axes.set_yticks(ticks, [names[at] for at in ticks])
        axes.set_xticks(np.arange(-0.5, count), minor=True)
        axes.set_yticks(np.arange(-0.5, count), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="both", length=0)
        for edge in axes.spines.values():
            edge.set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title, fontsize=11)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        figure.savefig(picture, bbox_inches="tight", pad_inches=0.15)


def _size(count: int) -> float:
    return 12.0 if count <= 4 else 9.5 if count <= 12 else max(4.0, 110 / count)
