"""What the command line prints for people: tables, the lineage tree, coloured tokens. Nothing is computed here."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek import artifact
from tinyseek.run import Outcome, clock

if TYPE_CHECKING:
    from rich.console import Console

    from tinyseek.evaluate.compare import Comparison
    from tinyseek.model.config import ModelConfig


def console() -> Console:
    """Standard output. Text is printed as it is: `[...]` in it is no markup. A file or pipe gets lines that are not cut."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 140)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> None:
    """Print aligned columns; those numbered in `right` are set to the right."""
    from rich.table import Table

    right = set(right)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(head):
        made.add_column(name, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    console().print(made)


def number(value: object) -> str:
    """`1,234,567`, `0.0123`, `2.10`; other things as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def amount(value: float) -> str:
    """`671B`, `124M`, `4.1k`: three digits and a letter, as models' sizes are said."""
    return si(value).replace(" ", "").replace("G", "B")


def si(value: float) -> str:
    """`1.34 T`, `16.4 G`, `768 `: three digits and a prefix, to put a unit after."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f} "


# What is worth a line of each kind of stage; of other kinds the first figures.
_TELLING = {
    "data": ("read.documents", "train.documents", "train.bytes", "val.documents"),
    "tasks": ("train.records", "heldout.records"),
    "tokenizer": ("vocab_size", "bytes_per_token.all"),
    "tokens": ("train.tokens", "val.tokens"),
    "pretrain": ("steps", "tokens", "val_loss", "tokens_per_s"),
    "sft": ("steps", "tokens", "val_loss", "tokens_per_s"),
    "reward": ("train_examples", "steps", "val_accuracy", "val_margin"),
    "classify": ("test_accuracy", "test_macro_f1", "train_texts", "labels"),
    "collect": ("answers", "kept", "right", "cost"),
    "pairs": ("pairs", "prompts", "answers"),
}


def figures(manifest: artifact.Manifest) -> str:
    """What was measured when a stage ran, in a line: `train.documents 1,189, val.documents 63`."""
    flat: dict[str, int | float] = {}

    def walk(entries: Mapping[str, Any], prefix: str) -> None:
        for key, value in entries.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                flat[prefix + key] = value

    walk(manifest.figures, "")
    telling = [key for key in _TELLING.get(manifest.kind, ()) if key in flat] or list(flat)[:4]
    return ", ".join(f"{key} {number(flat[key])}" for key in telling)


def outcomes(done: Sequence[Outcome]) -> None:
    """The summary at the end of a run."""
    rows = [
        (
            o.stage,
            "built" if o.why_built else "kept",
            clock(o.seconds) if o.why_built else "",
            figures(o.manifest),
        )
        for o in done
    ]
    rows.append(("in all", "", clock(sum(o.seconds for o in done)), ""))
    print()
    table(("stage", "", "time", "figures"), rows, right=[2])


def scores(folder: Path) -> None:
    """The tables of an eval folder: each model's scores, and by how much each is better than the one before."""
    try:
        models = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError):
        return
    tasks = {entry["name"]: entry["tasks"] for entry in models if entry.get("tasks")}
    passed = list(dict.fromkeys(key for t in tasks.values() for key in t.get("sampled", {}) if key.startswith("pass@")))
    head = ["model", "bits per byte", "perplexity", "tasks right", *passed, "tokens", "in form"]
    rows = []
    for entry in models:
        text, own = entry.get("text", {}), tasks.get(entry["name"], {})
        drawn = own.get("sampled", {})
        row = [entry["name"], number(text.get("bits_per_byte", "")), number(text.get("perplexity", ""))]
        row.append(f"{100 * own['share']:.1f} % ({own['right']} of {own['total']})" if own else "")
        row += [_with_error(drawn[key]) if key in drawn else "" for key in passed]
        shape = (drawn or own).get("answers", {})
        row += [number(shape["tokens"]), f"{100 * shape['format']:.0f} %"] if shape else ["", ""]
        rows.append(row)
    shown = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    print()
    table(
        [head[c] for c in shown], [[row[c] for c in shown] for row in rows], right=[i for i, c in enumerate(shown) if c]
    )
    gains = [(name, own["gains"]) for name, own in tasks.items() if own.get("gains")]
    for name, found in gains:
        best = found.get("pass@1") or found["greedy"]
        what = "pass@1" if "pass@1" in found else "greedy"
        signed = " to ".join(f"{100 * best[end]:+.1f}" for end in ("low", "high"))
        print(f"{name} over {found['over']}: {100 * best['mean']:+.1f} points {what} (95 %: {signed})")


def benchmarks(folder: Path) -> None:
    """The table of what lm-eval's tasks came to, a column a model."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows: dict[tuple[str, str], list[str]] = {}
    shots: dict[str, str] = {}
    for place, of in enumerate(found.values()):
        for task, metrics in of["results"].items():
            shots[task] = str(of["n-shot"].get(task, ""))
            for name, value in metrics.items():
                metric, _, kind = name.partition(",")
                if isinstance(value, int | float) and metric not in ("name", "sample_len") and "_stderr" not in metric:
                    row = rows.setdefault((task, f"{metric} ({kind})" if kind not in ("", "none") else metric), [])
                    row += [""] * (place - len(row))
                    error = metrics.get(f"{metric}_stderr,{kind}")
                    row.append(f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else ""))
    print()
    head = ("task", "shots", "metric", *found)
    lines = [(task, shots[task], metric, *row, *[""] * (len(found) - len(row))) for (task, metric), row in rows.items()]
    table(head, lines, right=[1, *range(3, len(head))])


def comparison(found: Comparison) -> None:
    """Totals of models side by side; wins and losses are over the first."""
    rows = []
    for place, side in enumerate(found.sides):
        mean, duel = side.mean, found.duel(place) if place else None
        score = ""
        if mean is not None:
            score = f"{100 * mean.mean:.1f} %" if found.judged_by is None else number(mean.mean)
        judged = duel is not None and duel.gain is not None
        won = f"{duel.wins} / {duel.ties} / {duel.losses}" if duel is not None and judged else ""
        tokens = number(round(side.tokens, 1)) if side.tokens is not None else ""
        same = str(duel.same) if duel is not None else ""
        failed = side.count(lambda reply: reply.error is not None)
        rows.append((side.name, score, won, same, tokens, clock(side.seconds), failed or ""))
    head = ("model", found.judged_by or "right", "wins / ties / losses", "same answer", "tokens", "time", "failed")
    shown = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    print()
    table(
        [head[c] for c in shown], [[row[c] for c in shown] for row in rows], right=[i for i, c in enumerate(shown) if c]
    )


def _with_error(mean: Mapping[str, Any]) -> str:
    """A share with the half of its 95 % interval."""
    return f"{100 * mean['mean']:.1f} ± {50 * (mean['high'] - mean['low']):.1f} %"


def lineage(folder: Path) -> None:
    """Print where a folder came from as a tree, back to the raw text, with what was measured on the way."""
    rows = artifact.lineage(folder)
    seen: set[str] = set()
    lines: list[tuple[int, str]] = []
    hidden: int | None = None
    for index, (depth, role, path, manifest) in enumerate(rows):
        if hidden is not None and depth > hidden:
            continue
        hidden = None
        role = f"{role}: " if role else ""
        if manifest is None:
            parent = next(m for d, _, _, m in reversed(rows[:index]) if d < depth)
            key = parent.inputs[role.removesuffix(": ")].key if parent else ""
            missing = "" if path.exists() or ":" in str(path) else "  (no longer there)"
            lines.append((depth, f"{role}{path}  {key[:19]}{missing}"))
            continue
        changed = ""
        parent = next((m for d, _, _, m in reversed(rows[:index]) if d < depth), None)
        if parent and parent.inputs[role.removesuffix(": ")].key != manifest.key:
            changed = "  (built anew since)"
        if manifest.key in seen:
            lines.append((depth, f"{role}{path}  (above){changed}"))
            hidden = depth
            continue
        seen.add(manifest.key)
        facts = figures(manifest)
        seconds = manifest.figures.get("training_seconds", manifest.seconds)
        took = f"{manifest.created[:16].replace('T', ' ')} in {clock(seconds)}"
        lines.append((depth, f"{role}{path}  {manifest.kind}, {took}{changed}" + (f"\n{facts}" if facts else "")))
    for index, (depth, text) in enumerate(lines):
        stem = "".join("│  " if _goes_on(lines, index, level) else "   " for level in range(1, depth))
        last = not _goes_on(lines, index, depth)
        first, _, rest = text.partition("\n")
        print(stem + (("└─ " if last else "├─ ") if depth else "") + first)
        if rest:
            below = index + 1 < len(lines) and lines[index + 1][0] > depth
            print(stem + (("   " if last else "│  ") if depth else "") + ("│    " if below else "     ") + rest)


def _goes_on(lines: Sequence[tuple[int, str]], index: int, level: int) -> bool:
    """Does another line of this level follow before the tree goes back above it?"""
    for depth, _ in lines[index + 1 :]:
        if depth <= level:
            return depth == level
    return False


def parameters(name: str, config: ModelConfig) -> None:
    """The parameter table of a model, and what it costs to run."""
    from tinyseek.model.counts import count

    counted = count(config)
    print(f"{name}: {config.model_type}, context {config.max_position_embeddings:,} tokens\n")
    rows = [(row.name, f"{row.parameters:,}", f"{row.active:,}") for row in counted.rows]
    rows.append(("total", f"{counted.total:,}", f"{counted.active:,}"))
    if counted.mtp:
        rows.append(("multi-token prediction, in training only", f"{counted.mtp:,}", ""))
    table(("part", "parameters", "active a token"), rows, right=[1, 2])
    context = config.max_position_embeddings
    flops, cache = counted.flops_per_token(context), counted.cache_bytes_per_token()
    sizes = f"{amount(counted.total)} parameters, {amount(counted.active)} active a token"
    print(f"\n{sizes}; {si(2 * counted.total)}B of weights in bfloat16")
    print(f"{si(flops)}FLOP a token forward over the full context, three times that in training")
    print(f"cache in bfloat16: {cache:,} bytes a token, {si(cache * context)}B for the full context")


def settings_help(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """The rows of `settings.describe` as indented text: key=default, type, meaning."""
    width = max(60, min(110, shutil.get_terminal_size().columns))
    lines = []
    for key, kind, default, meaning in rows:
        head = f"  {key}" if default == "required" else f"  {key}={default}"
        lines.append(f"{head:<34}  {kind}")
        lines += textwrap.wrap(meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)
