"""What the benchmarks share: both sides in turn, medians, a table for people and one JSON line for machines."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every side once a round, in turn, after one round that does not count: a machine's drift then touches all alike.

    Each side returns its own figure (tokens/s, say).
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            figure = side()
            if number:
                figures[name].append(figure)
    return figures


def seconds(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(
    title: str, unit: str, figures: dict[str, list[float]], against: str, extra: dict[str, Any] | None = None
) -> None:
    """Print each side's median, range and ratio to `against`, round by round, then one JSON line."""
    table = Table(title=title)
    for column in ("side", f"median {unit}", "least", "most", f"median ratio to {against}"):
        table.add_column(column, justify="left" if column == "side" else "right")
    ratios = {}
    for name, values in figures.items():
        ratios[name] = statistics.median(a / b for a, b in zip(values, figures[against], strict=True))
        row = (
            f"{statistics.median(values):,.1f}",
            f"{min(values):,.1f}",
            f"{max(values):,.1f}",
            f"{ratios[name]:.2f}x",
        )
        table.add_row(name, *row)
    Console(width=120).print(table)
    medians = {name: round(statistics.median(values), 2) for name, values in figures.items()}
    line = {"benchmark": title, "unit": unit, "medians": medians, "ratios": {k: round(v, 3) for k, v in ratios.items()}}
    print(json.dumps(line | (extra or {}) | {"threads": torch.get_num_threads(), "torch": torch.__version__}))


def twins(config: ModelConfig, seed: int) -> tuple[CausalLM, Any]:
    """The same random weights as our model and as transformers', through a checkpoint folder of ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = CausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, theirs
