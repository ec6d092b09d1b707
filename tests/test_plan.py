"""Planning a whole recipe: every kind of stage gets a time, and nothing that would take long is really done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyseek import plan
from tinyseek.recipe import read_recipe
from tinyseek.train import plan as train_plan
from tinyseek.train.plan import Probe

MODEL = {
    "preset": "quickstart",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 2,
    "num_nextn_predict_layers": 0,
}
PROBED = Probe(0.5, 0.25, 2.0, 300_000_000, "float32")


def test_a_recipe_with_learning_from_answers_is_planned_without_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_plan, "probe", lambda *_: PROBED)
    asked = {"batch_size": 2, "num_generations": 2, "max_completion_length": 4, "seq_len": 128}
    stages = {
        "book": {"kind": "problems", "make": "book", "train": 40, "heldout": 5},
        "problems": {"train": 40, "heldout": 10},
        "tokenizer": {"data": ["problems"], "vocab_size": 320},
        "tokens": {"data": "book"},
        "pretrain": {"model": MODEL, "seq_len": 32, "batch_size": 2, "steps": 100_000},
        "sft": {"data": ["problems"], "seq_len": 128, "steps": 100_000, "validate_every": 0},
        "grpo": {"model": "sft", "data": ["problems"], "steps": 100_000, **asked},
        "collect": {"teacher": "grpo", "data": ["problems"], "n": 2, "max_tokens": 4, "limit": 20},
        "again": {"kind": "sft", "model": "grpo", "data": ["collect"], "steps": 100_000, "validate_every": 0},
        "pairs": {"answers": ["collect"]},
        "dpo": {"model": "grpo", "data": ["pairs"], "steps": 100_000, "validate_every": 0},
        "unknown": {"kind": "dpo", "model": "grpo", "data": ["pairs"]},
        "eval": {"models": ["sft", "dpo"], "data": None, "tasks": "problems", "max_tokens": 4},
    }
    recipe = read_recipe({"name": "planned", "out": str(tmp_path / "run"), "seed": 1, "stages": stages})
    planned = {entry.stage: entry for entry in plan.plan(recipe)}
    assert list(planned) == list(stages)
    assert not (tmp_path / "run").exists()
    for name in ("pretrain", "sft", "again"):
        assert planned[name].seconds == pytest.approx(2.0 + 100_000 * 0.5, rel=0.01)
    assert planned["dpo"].seconds == pytest.approx(plan.PAIR * planned["again"].seconds, rel=0.01)
    assert planned["grpo"].seconds > 100  # a hundred thousand steps
    assert 0 < planned["collect"].seconds < 60
    assert "not tried" in planned["pairs"].note
    assert "steps" in planned["unknown"].note
    assert planned["grpo"].parameters == planned["pretrain"].parameters > 0
    head, rows = plan.rows_of(list(planned.values()))
    assert all(len(row) == len(head) for row in rows)
