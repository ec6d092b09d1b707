"""Checkpoints: exact resume after kill -9, damage told, changed settings refused, the disk full."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from training_toys import KILLED, RandomRows, killed_child, killed_in_checkpoint, run, same_bits, settings_of

from tinyseek.errors import UserError
from tinyseek.train import loop, metrics, state
from tinyseek.train.objective import LanguageModelling


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes out of a server that has imported torch once, rather than once a kill."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the server looks there alone for what to import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_toys"])
    return context


def lines(work: Path) -> list[dict[str, Any]]:
    return metrics.read_records(work / metrics.METRICS)


def test_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path: Path, forked: Any) -> None:
    """kill -9 at moments drawn at random, as often within a checkpoint as within a step."""
    seed = int(os.environ.get("TINYSEEK_TEST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    rng = random.Random(seed)
    reference = run(tmp_path / "never", settings_of(**KILLED), val=RandomRows(4, 12, seed=2))

    work, kills = tmp_path / "killed", 0
    while True:
        last = lines(work)[-1]["step"] if lines(work) else 0
        process = forked.Process(target=killed_child, args=(str(work),))
        process.start()
        goal = last + rng.randint(1, 14) if kills < 5 else 10**9
        while process.is_alive() and (not (seen := lines(work)) or seen[-1]["step"] < goal):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.03))  # a step takes about 0.01 s, and so does a checkpoint
        if not process.is_alive():
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
    process.join()
    assert process.exitcode == 0
    print(f"{kills} kills")
    assert kills >= 3
    same_bits(work / "step-000045", reference.folder)
    tables = []
    for folder in (tmp_path / "never", work):
        table = lines(folder)
        assert [record["step"] for record in table] == list(range(1, 46))
        for record in table:
            del record["seconds"], record["tokens_per_s"]
        tables.append(table)
    assert tables[0] == tables[1]


def test_killed_in_the_middle_of_a_checkpoint_the_one_before_is_whole(tmp_path: Path, forked: Any) -> None:
    process = forked.Process(target=killed_in_checkpoint, args=(str(tmp_path / "w"),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "w").glob("step-*")) == ["step-000003", "step-000006.partial"]
    ended = run(tmp_path / "w", settings_of(save_every=3))
    same_bits(ended.folder, run(tmp_path / "v", settings_of()).folder)
    assert not list((tmp_path / "w").glob("*.partial"))


def test_a_checkpoint_cut_short_is_named_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "w"
    run(work, settings_of(steps=9, save_every=3, keep_last=3))
    shutil.copytree(work, tmp_path / "whole")
    for name, damage in (("step-000009", "model.safetensors"), ("step-000006", state.STATE)):
        path = work / name / damage
        path.write_bytes(path.read_bytes()[:100])
    made_from = {"settings": settings_of(steps=9, save_every=3, keep_last=3).essence()}
    found = loop.resumable(work, made_from, settings_of(steps=9))
    assert found is not None
    assert found.folder.name == "step-000003"
    said = capsys.readouterr().err
    assert "step-000009: model.safetensors has 100 bytes" in said
    assert "step-000006: state.json cannot be read" in said
    ended = run(work, settings_of(steps=9, save_every=3, keep_last=3))
    same_bits(ended.folder, tmp_path / "whole" / "step-000009")
    assert len((work / metrics.METRICS).read_text().splitlines()) == 9


def test_changed_settings_are_named_and_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "w"
    run(work, settings_of(steps=4))
    with pytest.raises(
        UserError, match=r"settings\.lr: 0\.01 -> 0\.02; settings\.steps: 4 -> 6.*resume=changed.*resume=fresh"
    ):
        run(work, settings_of(steps=6, lr=0.02))
    on = run(work, settings_of(steps=6, lr=0.02, resume="changed"))
    assert on.progress.step == 6
    assert on.progress.changed == ["step 4: settings.lr: 0.01 -> 0.02", "step 4: settings.steps: 4 -> 6"]
    fresh = run(work, settings_of(steps=6, lr=0.02, resume="fresh"))
    same_bits(fresh.folder, run(tmp_path / "v", settings_of(steps=6, lr=0.02)).folder)
    capsys.readouterr()
    run(work, settings_of(steps=6, lr=0.02, threads=2))
    assert "threads: 1 -> 2. The weights will be as good, but not bit for bit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "No space left on device")],
)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    work = tmp_path / "w"
    real = state.save_file

    def full(tensors: Any, path: Path) -> None:
        if "000006" in str(path):
            Path(path).write_bytes(b"half")
            raise error
        real(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(UserError, match=r"step-000006: .*No space left.*the last one kept is .*step-000003"):
        run(work, settings_of(save_every=3))
    assert [path.name for path in work.glob("step-*")] == ["step-000003"]
    monkeypatch.setattr(state, "save_file", real)
    same_bits(run(work, settings_of(save_every=3)).folder, run(tmp_path / "v", settings_of()).folder)


def test_the_last_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(LanguageModelling, "validate", lambda *_: {"loss": next(script)})
    run(tmp_path / "w", settings_of(validate_every=2, save_every=2, keep_last=2), val=RandomRows(4, 12, seed=2))
    assert sorted(path.name for path in (tmp_path / "w").glob("step-*")) == [
        "step-000004",
        "step-000010",
        "step-000012",
    ]
    best = state.best(tmp_path / "w")
    assert best is not None
    assert (best.folder.name, best.val_loss) == ("step-000004", 1.0)


def test_random_states_come_back_exactly_and_hold_no_pickle(tmp_path: Path) -> None:
    import numpy as np

    device = torch.device("cpu")
    torch.manual_seed(7)
    np.random.seed(7)
    np.random.normal()  # leaves half of a pair waiting
    kept = json.loads(json.dumps(state.random_state(device)))
    drawn = torch.rand(5), torch.randn(5), np.random.normal(size=5)
    state.set_random_state(kept, device)
    again = torch.rand(5), torch.randn(5), np.random.normal(size=5)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(drawn, again, strict=True))
    run(tmp_path / "w", settings_of(steps=1))
    for path in (tmp_path / "w" / "step-000001").rglob("*"):
        assert path.is_dir() or path.suffix in (".json", ".safetensors"), path
