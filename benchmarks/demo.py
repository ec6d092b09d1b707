"""The demo from zero: how long, how much memory, how good; and what `tinyseek plan` had said of it.

    python benchmarks/demo.py [--recipe quickstart] [key=value ...]

Runs the plan, then the whole recipe in a process of its own, in a folder that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--keep", type=Path, help="keep the run in this folder")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    from tinyseek.plan import plan
    from tinyseek.recipe import load_recipe

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch) / "run"
        settings = [*arguments.settings, f"out={folder}"]
        started = time.monotonic()
        planned = plan(load_recipe(arguments.recipe, settings))
        planning = time.monotonic() - started
        seconds, peak = timed([sys.executable, "-m", "tinyseek", "run", arguments.recipe, *settings])
        scores = json.loads((folder / "eval" / "scores.json").read_text(encoding="utf-8"))
        manifests = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*/manifest.json")}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    table = Table(title=f"{arguments.recipe}: planned and measured")
    for column in ("stage", "planned s", "took s", "planned GB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in planned:
        took = manifests[stage.stage]["seconds"] if stage.stage in manifests else float("nan")
        trained = manifests.get(stage.stage, {}).get("figures", {}).get("training_seconds", took)
        table.add_row(stage.stage, f"{stage.seconds:.1f}", f"{max(took, trained):.1f}", f"{stage.peak_bytes / 1e9:.2f}")
    said, needed = sum(stage.seconds for stage in planned), max(stage.peak_bytes for stage in planned)
    table.add_row("all", f"{said:.1f}", f"{seconds:.1f}", f"{needed / 1e9:.2f} (took {peak / 1e9:.2f})")
    Console(width=110).print(table)
    line = {
        "benchmark": f"demo {arguments.recipe}",
        "seconds": round(seconds, 1),
        "peak_gb": round(peak / 1e9, 2),
        "planned_seconds": round(said, 1),
        "planned_gb": round(needed / 1e9, 2),
        "planning_seconds": round(planning, 1),
        "disk_mb": round(size / 1e6, 1),
        "scores": scores,
    }
    print(json.dumps(line))


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds of a command and the peak of its process tree's resident memory, in bytes."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in tree))
            except psutil.Error:
                pass
            time.sleep(0.2)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.monotonic() - started, peak


if __name__ == "__main__":
    main()
