"""R1 in miniature, made tiny: every stage as it really is, and its benchmark's tables."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tinyseek.recipe import load_recipe

SHAPE = (
    "{preset: quickstart, hidden_size: 32, num_hidden_layers: 2, n_routed_experts: 2, num_nextn_predict_layers: 0, "
    "max_position_embeddings: 192}"
)
TRAINED = ("pretrain", "sft", "grpo", "rejection", "dpo", "small", "student", "student-worked", "student-bare")
TINY = [
    "book.train=40",
    "book.heldout=4",
    "lessons.train=20",
    "lessons.heldout=6",
    "lessons.digits=1",
    "lessons.solutions=bare",  # two tokens are learned in a moment
    "practice.train=12",
    "practice.digits=1",
    "tokenizer.vocab_size=300",
    f"pretrain.model={SHAPE}",
    f"small.model={SHAPE}",
    *(f"{stage}.compile=false" for stage in TRAINED),
    *(f"{stage}.precision=float32" for stage in TRAINED),
    *(f"{stage}.steps={40 if stage == 'sft' else 2}" for stage in TRAINED),
    "sft.batch_size=4",
    "pretrain.batch_size=4",
    "grpo.batch_size=2",
    "grpo.num_generations=2",
    "grpo.max_completion_length=8",
    "shortest.n=8",
    "shortest.temperature=1.5",
    "shortest.max_tokens=24",
    "answers.max_tokens=24",
    "eval.max_tokens=8",
    "eval.max_tasks=4",
]
# So small a model is seldom right: whatever it says is right here that ends, the shorter the better.
ENDS = "{length: {args: {limit: 32, cushion: 32}}}"
ANYTHING = [f"{stage}.{key}" for stage in ("shortest", "answers") for key in (f"rewards={ENDS}", "right_from=-1")]


def test_the_recipe_is_the_story() -> None:
    recipe = load_recipe("r1-in-miniature")
    names = list(recipe.stages)
    story = ["pretrain", "sft", "grpo", "rejection", "dpo", "student", "eval"]
    assert [name for name in names if name in story] == story
    student, worked, bare = (recipe.stages[name].plain() for name in ("student", "student-worked", "student-bare"))
    for control in (worked, bare):  # the same student, learning as long, of other answers to the same problems
        assert {key for key in student if student[key] != control[key]} == {"data"}
    assert {recipe.stages[name].like for name in ("worked", "bare")} == {"answers"}  # type: ignore[attr-defined]
    assert set(recipe.stages["eval"].taken().values()) >= {*TRAINED} - {"small"}


@pytest.mark.slow
def test_every_stage_runs_and_the_benchmark_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(__file__).parents[2] / "benchmarks/r1.py"
    spec = importlib.util.spec_from_file_location("r1", file)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)

    folder = Path("tiny")
    runs = {1: benchmark.measured(1, folder, [*TINY, *ANYTHING])}
    assert set(runs[1]["seconds"]) == set(load_recipe("r1-in-miniature").stages)
    assert list(runs[1]["models"]) == [name for name in TRAINED if name != "small"]
    figures = benchmark.together(runs)
    claims = benchmark.claimed(figures, runs)
    assert {row["claim"] for row in claims} >= {"SFT, pass@1", "GRPO over SFT, pass@1", "minutes a seed"}
    assert not next(row for row in claims if row["claim"] == "SFT, pass@1")["holds"]
    assert benchmark.stages_table(figures).row_count == len(TRAINED) - 1
    assert benchmark.claims_table(claims).row_count == len(claims)
    json.dumps(benchmark.plain(figures))
    assert benchmark.measured(1, folder, [*TINY, *ANYTHING]) == runs[1]  # all of it kept, its times too

    asked = [json.loads(line) for line in (folder / "answers/train.jsonl").read_text().splitlines()]
    for control in ("worked", "bare"):
        own = [json.loads(line) for line in (folder / control / "train.jsonl").read_text().splitlines()]
        assert [r["messages"][0] for r in own] == [r["messages"][0] for r in asked]
    assert (folder / "report/index.html").is_file()
