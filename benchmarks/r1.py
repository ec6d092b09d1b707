"""R1 in miniature over several seeds: what each stage and each control scores on 2,000 held-out problems, beside what is claimed.

python benchmarks/r1.py [--seeds 1 2 3] [--work runs/r1] [--out FILE] [stage.key=value ...]

A seed is a whole run of recipes/r1-in-miniature.yaml in WORK/seed-N. What is built is kept, so a run that was stopped goes on. Of
every figure: the mean over the seeds and its standard error. A preference is won where the greedy answer has fewer tokens than that
of the model that the step began with; where it is longer is told beside, the rest are equal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyseek import artifact, run
from tinyseek.evaluate.estimates import OverSeeds, gain, over_seeds
from tinyseek.recipe import load_recipe
from tinyseek.text.tokenizer import Tokenizer

SECONDS = "seconds.json"  # of each stage, as it was built
BEFORE = {"grpo": "sft", "rejection": "grpo", "dpo": "grpo", "student": "student-worked"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("runs/r1"))
    parser.add_argument("--out", type=Path, help="write the JSON line here too")
    parser.add_argument("settings", nargs="*", metavar="stage.key=value")
    chosen = parser.parse_intermixed_args()
    runs = {seed: measured(seed, chosen.work / f"seed-{seed}", chosen.settings) for seed in chosen.seeds}
    figures = together(runs)
    claims = claimed(figures, runs)
    console = Console(width=132)
    for table in (stages_table(figures), claims_table(claims)):
        console.print(table)
    line = json.dumps(
        {"benchmark": "r1-in-miniature", "seeds": chosen.seeds, "stages": plain(figures), "claims": claims}
    )
    print(line)
    if chosen.out:
        chosen.out.write_text(line + "\n", encoding="utf-8")


# ---- one seed --------------------------------------------------------------------------------------------------------------------


def measured(seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Every model's scores of one run, which is built if it is not there."""
    recipe = load_recipe("r1-in-miniature", [f"seed={seed}", f"out={folder}", *settings])
    seconds = build(recipe, folder)
    scores = json.loads((folder / "eval/scores.json").read_text(encoding="utf-8"))["models"]
    found: dict[str, Any] = {}
    for entry in scores:
        tasks = entry["tasks"]
        sampled = tasks["sampled"]
        found[entry["name"]] = {
            "pass@1": sampled["pass@1"]["mean"],
            "greedy": tasks["share"],
            "pass@2": sampled["pass@2"]["mean"],
        }
    add_answers(found, folder)
    return {"models": found, "seconds": seconds, "problems": scores[0]["tasks"]["total"]}


def build(recipe: Any, folder: Path) -> dict[str, float]:
    """Bring the run up to date, and tell how long each stage took when it was built."""
    file = folder / SECONDS
    seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in recipe.stages:
        last = run.run(recipe, until=name, say=lambda line: None if ": kept" in line else print(line, flush=True))[-1]
        if last.why_built:
            seconds[name] = round(last.seconds, 1)
            artifact.write_text(file, json.dumps(seconds) + "\n")
    return {name: seconds.get(name, 0.0) for name in recipe.stages}


def add_answers(found: dict[str, Any], folder: Path) -> None:
    """Lengths of the greedy answers, and by how much each model beats the one before it, problem by problem."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    with (folder / "eval/samples.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    lengths = {
        name: [len(ids) for ids in tokenizer.encode_batch([r["outputs"][name] for r in records], specials=True)]
        for name in found
    }
    for name, entry in found.items():
        entry["tokens"] = sum(lengths[name]) / len(records)
        before = BEFORE.get(name)
        if before not in lengths:
            continue
        pairs = list(zip(lengths[before], lengths[name], strict=True))
        entry["shorter"] = sum(one > other for one, other in pairs) / len(pairs)
        entry["longer"] = sum(one < other for one, other in pairs) / len(pairs)
        shares = [
            [r["sampled"][model]["right"] / r["sampled"][model]["of"] for r in records] for model in (before, name)
        ]
        more = gain(*shares)
        entry["gain"], entry["gain_error"] = more.mean, more.error


# ---- all seeds -------------------------------------------------------------------------------------------------------------------


def together(runs: dict[int, dict[str, Any]]) -> dict[str, dict[str, OverSeeds]]:
    """Each figure of each model over the seeds."""
    first = next(iter(runs.values()))["models"]
    return {
        name: {key: over_seeds([one["models"][name][key] for one in runs.values()]) for key in entry}
        for name, entry in first.items()
    }


def plain(figures: dict[str, dict[str, OverSeeds]]) -> dict[str, Any]:
    return {name: {key: value.plain() for key, value in entry.items()} for name, entry in figures.items()}


def difference(runs: dict[int, dict[str, Any]], one: str, other: str, key: str) -> OverSeeds:
    """`one` less `other` in a figure, seed by seed."""
    return over_seeds([entry["models"][one][key] - entry["models"][other][key] for entry in runs.values()])


def claimed(figures: dict[str, dict[str, OverSeeds]], runs: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked, what came, and whether that is enough."""
    rows: list[dict[str, Any]] = []

    def claim(what: str, asked: str, value: OverSeeds, holds: bool) -> None:
        rows.append({"claim": what, "asked": asked, "holds": holds, **value.plain()})

    for key in ("pass@1", "greedy"):
        value = figures["sft"][key]
        claim(f"SFT, {key}", "0.30 to 0.60", value, 0.3 <= value.mean <= 0.6)
    more = difference(runs, "grpo", "sft", "pass@1")
    # The error over seeds, or of one seed that over problems, whichever is larger.
    error = max(more.error or 0.0, figures["grpo"]["gain_error"].mean)
    claim("GRPO over SFT, pass@1", "+0.10, and twice its error", more, more.mean >= max(0.1, 2 * error))
    for name, wanted in (("dpo", True), ("rejection", False)):
        label = "DPO" if wanted else "control: imitating the chosen,"
        shorter = figures[name]["shorter"]
        claim(f"{label} shorter than GRPO", "0.75" if wanted else "-", shorter, not wanted or shorter.mean >= 0.75)
        for key in ("pass@1", "greedy"):
            less = difference(runs, name, "grpo", key)
            claim(f"{label} over GRPO, {key}", "-0.02" if wanted else "-", less, not wanted or less.mean >= -0.02)
    for other in ("student-worked", "student-bare"):
        more = difference(runs, "student", other, "pass@1")
        claim(f"student over {other}, pass@1", "+0.05", more, more.mean >= 0.05)
    minutes = over_seeds([sum(entry["seconds"].values()) / 60 for entry in runs.values()])
    claim("minutes a seed", "35", minutes, minutes.mean <= 35)
    return rows


# ---- tables ----------------------------------------------------------------------------------------------------------------------


def shown(value: OverSeeds | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value.mean:.{digits}f}" + (f" ± {value.error:.{digits}f}" if value.error is not None else "")


def stages_table(figures: dict[str, dict[str, OverSeeds]]) -> Table:
    table = Table(title="Held-out problems: mean over the seeds ± standard error")
    for column in ("model", "pass@1", "pass@2", "greedy", "tokens", "beside", "shorter", "longer"):
        table.add_column(column, justify="left" if column in ("model", "beside") else "right")
    for name, entry in figures.items():
        cells = [shown(entry[key]) for key in ("pass@1", "pass@2", "greedy")]
        beside = BEFORE.get(name, "") if "shorter" in entry else ""
        table.add_row(
            name, *cells, shown(entry["tokens"], 1), beside, shown(entry.get("shorter")), shown(entry.get("longer"))
        )
    return table


def claims_table(claims: list[dict[str, Any]]) -> Table:
    table = Table(title="What is claimed")
    for column in ("claim", "asked", "measured", "holds"):
        table.add_column(column, justify="left" if column == "claim" else "right")
    for row in claims:
        value = OverSeeds(row["mean"], row["error"], row["values"])
        table.add_row(
            row["claim"], row["asked"], shown(value), "" if row["asked"] == "-" else "yes" if row["holds"] else "NO"
        )
    return table


if __name__ == "__main__":
    main()
