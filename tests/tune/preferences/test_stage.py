"""The stages from data to a model: margins rise, a killed run goes on with the same bits, adapters come out as adapters."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_toys import dies, make_base, make_pairs, settings_of

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model import adapter
from tinyseek.model.transformer import CausalLM
from tinyseek.train import metrics
from tinyseek.tune.preferences import stage
from tinyseek.tune.preferences.options import KtoSettings
from tinyseek.tune.preferences.reference import FILE


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    make_base(folder / "base")
    make_pairs(folder / "pairs.jsonl", 40)
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return metrics.read_records(folder / metrics.METRICS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "ipo", "beta": 0.3},
        {"loss": "simpo", "rpo_alpha": 0.2},
        {"loss": "orpo", "beta": 1.0},
        {"lora": {"rank": 4}, "reference": "base", "lr": 0.01, "rpo_alpha": 1.0},
    ],
    ids=str,
)
def test_chosen_answers_win(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    stage.build(settings_of(folder, **{"steps": 18} | changes), tmp_path / "out")
    table = records(tmp_path / "out")
    first, last = table[0], table[-1]
    if not changes:
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # it is its own reference yet
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["rewards/margins"] > first["rewards/margins"] + 0.02
    assert last["val_rewards/margins"] > 0
    assert last["val_rewards/accuracies"] > 0.7
    manifest = artifact.read(tmp_path / "out")
    assert manifest.kind == "dpo"
    assert manifest.figures["val_rewards/margins"] == last["val_rewards/margins"]
    assert manifest.figures["train_examples"] + manifest.figures["val_examples"] == 40
    assert manifest.inputs["model"].key == artifact.key_of(folder / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert adapter.is_adapter(tmp_path / "out") == ("lora" in changes)
    CausalLM.load(tmp_path / "out")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes out of a server that has imported torch once, rather than once a kill."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the server looks there alone for what to import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preference_toys"])
    return context


def test_killed_and_resumed_gives_the_same_bits(folder: Path, tmp_path: Path, forked: Any) -> None:
    """kill -9 while the reference is computed, then while it trains."""
    settings = settings_of(folder, save_every=3)
    stage.build(settings, tmp_path / "never")
    work = tmp_path / "killed.work"
    seen = []
    for while_, after in (("reference", 4), ("training", 8)):
        process = forked.Process(target=dies, args=(str(folder), str(tmp_path / "killed"), while_, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen.append((len((work / FILE).read_text().splitlines()), sorted(path.name for path in work.glob("step-*"))))
    assert seen[0] == (5, [])  # what it belongs to, and four batches
    assert seen[1][0] > 10
    assert seen[1][1][-1] == "step-000006"
    stage.build(settings, tmp_path / "killed")
    for name in ("model.safetensors", "mtp/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "never" / name).read_bytes()
    timeless = [
        [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s")} for r in records(tmp_path / name)]
        for name in ("never", "killed")
    ]
    assert timeless[0] == timeless[1]


def kto_settings(folder: Path, **changes: Any) -> KtoSettings:
    given = settings_of(folder).plain()
    shared = {name: given[name] for name in given if name in KtoSettings.model_fields and name != "beta"}
    return KtoSettings.read(shared | {"batch_size": 8} | changes)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_liked_answers_win(folder: Path, tmp_path: Path, lora: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stage.build(kto_settings(folder, steps=15, lora=lora, lr=0.01 if lora else 0.003), tmp_path / "out")
    table = records(tmp_path / "out")
    assert table[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert table[0]["kl"] == pytest.approx(0, abs=1e-4)
    last = table[-1]
    assert last["val_rewards/margins"] > 0.02
    assert last["val_rewards/margins"] == pytest.approx(last["val_rewards/chosen"] - last["val_rewards/rejected"])
    assert "val_share/chosen" not in last
    assert artifact.read(tmp_path / "out").kind == "kto"
    assert "of the answers were liked" in capsys.readouterr().err


def test_unequal_numbers_of_thumbs_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.weigh(kto_settings(folder), 10, 30)
    said = capsys.readouterr().err
    assert "10 of the answers were liked, 30 were not" in said
    assert "weighted, that is 0.33 to 1; the paper found 1 to 1.33 best. Try desirable_weight=3" in said
    stage.weigh(kto_settings(folder, desirable_weight=4), 10, 30)
    assert "Try" not in capsys.readouterr().err
    stage.weigh(kto_settings(folder), 40, 0)
    assert "all answers were liked; KTO learns little from one kind alone" in capsys.readouterr().err


def test_what_does_not_work_is_told_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context of 64; lower seq_len"):
        stage.build(settings_of(folder, seq_len=65), tmp_path / "out")
    with pytest.raises(UserError, match="nothing is left to learn from"):
        stage.build(settings_of(folder, seq_len=2), tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        stage.build(settings_of(folder, data=[str(tmp_path / "none.jsonl")]), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
