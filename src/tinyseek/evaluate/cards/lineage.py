"""What each folder was made from, back to the raw text."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tinyseek import artifact
from tinyseek.artifact import Manifest
from tinyseek.evaluate.cards.numbers import duration, when
from tinyseek.evaluate.cards.reading import as_float
from tinyseek.evaluate.cards.run import Run
from tinyseek.evaluate.page import Html, card, el, join, section
from tinyseek.evaluate.words import Words

_IF_ANY = ("dropped", "truncated", "cut", "unreadable", "repeated")  # counts that are told where there are some


def lineage(run: Run, t: Words) -> Html:
    """The tree of ancestors of everything that nothing else was made from."""
    if not run.nodes:
        return Html("")
    lines: list[Html] = []
    seen: set[Path] = set()
    for tip in run.tips:
        hidden_below = math.inf
        above: dict[int, Manifest] = {}
        for depth, role, path, manifest in artifact.lineage(tip):
            if depth > hidden_below:
                continue
            hidden_below = math.inf
            if manifest is None:
                lines.append(_raw(depth, role, path, above.get(depth - 1), t))
                continue
            above[depth] = manifest
            again = path.resolve() in seen
            if again:
                hidden_below = depth
            lines.append(_ancestor(depth, path, manifest, again, t))
            seen.add(path.resolve())
    about = t("What each folder was made from, back to the raw text. A key is the hash of settings and inputs.")
    return section(t("Lineage"), about, card(*lines))


def _raw(depth: int, role: str, path: Path, maker: Manifest | None, t: Words) -> Html:
    """What no stage made: a file, or a corpus known by its hash alone."""
    key = maker.inputs[role].key if maker and role in maker.inputs else ""
    name = str(maker.settings.get(role, path)) if maker else str(path)
    about = join(el("b", name), " ", el("span", t("raw input"), class_="facts"), " ", el("code", key))
    return el("div", about, class_="tree", style=f"--depth:{depth}")


def _ancestor(depth: int, path: Path, manifest: Manifest, again: bool, t: Words) -> Html:
    kind = f"({manifest.kind})" if manifest.kind != path.name else ""
    title = join(el("b", path.name), " ", el("span", kind, class_="facts") if kind else "", " ")
    if again:
        about = join(title, el("span", t("see above"), class_="pending"))
    else:
        # Of a training stage the manifest itself measures the writing alone.
        trained = as_float(manifest.figures.get("training_seconds"))
        facts = " · ".join([when(manifest.created), duration(max(manifest.seconds, trained)), *_figures(manifest)])
        settings = json.dumps(manifest.settings, indent=2, ensure_ascii=False)
        versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
        more = el("details", el("summary", t("settings")), el("pre", settings), el("p", versions, class_="facts"))
        about = join(title, el("code", manifest.key[:12]), el("div", facts, class_="facts"), more)
    return el("div", about, class_="tree", style=f"--depth:{depth}")


def _figures(manifest: Manifest) -> list[str]:
    """A few of a stage's plain numbers."""
    plain = [
        f"{name.replace('_', ' ')} {value:,.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value:,}"
        for name, value in manifest.figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name != "training_seconds" and not (name.startswith(_IF_ANY) and not value)
    ]
    return plain[:5]
