"""The loop: accumulation, early ends of every kind, what is kept and what is said."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_toys import RandomRows, run, same_bits, settings_of, weights

from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.train import DivergedError, StoppedError, metrics, state
from tinyseek.train.objective import LanguageModelling


def records(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / metrics.METRICS).read_text().splitlines()]


@pytest.mark.parametrize("documents", [False, True])
def test_accumulation_is_the_large_batch_token_for_token(tmp_path: Path, documents: bool) -> None:
    """Rows have very unequal numbers of targets, so a mean of micro-batch means would be far off."""
    source = RandomRows(30, 12, seed=5, documents=documents)
    assert len({int((row != -100).sum()) for row in source.targets}) > 4
    found = {}
    for parts in (1, 2, 4, 8):
        settings = settings_of(steps=4, batch_size=8, accumulate=parts, optimizer="sgd", lr=0.5, clip=0.0)
        found[parts] = weights(run(tmp_path / str(parts), settings, source=source).folder)
    for parts in (2, 4, 8):
        for name, value in found[1].items():
            torch.testing.assert_close(found[parts][name], value, atol=1e-6, rtol=1e-5, msg=f"{name}, {parts} parts")
    losses = [[round(record["loss"], 5) for record in records(tmp_path / str(parts))] for parts in (1, 8)]
    assert losses[0] == losses[1]


def test_a_loss_that_is_nan_stops_with_the_last_good_state_kept_and_named(tmp_path: Path) -> None:
    def poison(model: CausalLM) -> None:
        good, calls = model.loss, iter(range(100))

        def bad(*args: Any) -> Any:
            losses = good(*args)
            if next(calls) == 6:
                losses.total = losses.total * float("nan")
                losses.next = losses.next * float("nan")
            return losses

        model.loss = bad  # type: ignore[method-assign]

    with pytest.raises(DivergedError, match=r"step 7: the loss is nan.*kept in .*step-000006.*lr=0.005") as raised:
        run(tmp_path / "w", settings_of(save_every=2), prepare=poison)
    assert isinstance(raised.value, UserError)
    assert all(value.isfinite().all() for value in weights(tmp_path / "w" / "step-000006").values())
    assert (tmp_path / "w" / metrics.CURVE).stat().st_size > 1000
    same_bits(run(tmp_path / "w", settings_of(save_every=2)).folder, run(tmp_path / "v", settings_of()).folder)


def test_a_spike_that_stays_stops_and_no_checkpoint_is_taken_within_it(tmp_path: Path) -> None:
    def jump(model: CausalLM) -> None:
        good, calls = model.loss, iter(range(1000))

        def bad(*args: Any) -> Any:
            losses = good(*args)
            if next(calls) >= 60:
                losses.next = losses.next * 3
            return losses

        model.loss = bad  # type: ignore[method-assign]

    settings = settings_of(steps=100, lr=1e-5, save_every=1, spike_steps=5)
    with pytest.raises(DivergedError, match=r"step 65: .* for 5 steps; .*step-000060"):
        run(tmp_path / "w", settings, prepare=jump)
    assert sorted(path.name for path in (tmp_path / "w").glob("step-*")) == ["step-000059", "step-000060"]
    run(tmp_path / "v", settings_of(steps=70, lr=1e-5, spike_sigma=0), prepare=jump)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    def press(model: CausalLM) -> None:
        good, calls = model.loss, iter(range(100))

        def pressed(*args: Any) -> Any:
            if next(calls) == 4:
                os.kill(os.getpid(), number)
            return good(*args)

        model.loss = pressed  # type: ignore[method-assign]

    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=r"stopped at step 5 of 12; saved in .*step-000005.*same command"):
        run(tmp_path / "w", settings_of(), prepare=press)
    assert signal.getsignal(number) is before
    ended = run(tmp_path / "w", settings_of())
    same_bits(ended.folder, run(tmp_path / "v", settings_of()).folder)
    assert [record["step"] for record in records(tmp_path / "w")] == list(range(1, 13))


def test_early_stopping_publishes_the_best_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([3.0, 2.0, 2.5, 2.1, 2.2, 9.0])
    monkeypatch.setattr(LanguageModelling, "validate", lambda *_: {"loss": next(script)})
    settings = settings_of(steps=50, validate_every=2, save_every=2, early_stop=3, keep_last=1)
    ended = run(tmp_path / "w", settings, val=RandomRows(4, 12, seed=2))
    assert ended.early
    assert (ended.progress.step, ended.progress.best_step, ended.folder.name) == (10, 4, "step-000004")
    assert sorted(path.name for path in (tmp_path / "w").glob("step-*")) == ["step-000004", "step-000010"]
    again = run(tmp_path / "w", settings, val=RandomRows(4, 12, seed=2))  # killed before publishing: nothing more to do
    assert (again.progress.step, again.folder.name) == (10, "step-000004")


def test_validation_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    val = RandomRows(9, 12, seed=2)
    one = run(tmp_path / "w", settings_of(validate_every=1), val=val)
    same_bits(one.folder, run(tmp_path / "v", settings_of(), val=val).folder)
    model = CausalLM.load(one.folder)
    rows = val[np.arange(9)]
    logits = model(torch.from_numpy(rows.ids_BT)).detach().double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows.targets_BT).flatten())
    last = records(tmp_path / "w")[-1]
    assert last["val_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert all(sum(shares) == pytest.approx(1, abs=1e-3) for shares in last["expert_load"].values())


def test_bfloat16_keeps_float32_weights_and_learns_alike(tmp_path: Path) -> None:
    full = run(tmp_path / "w", settings_of(steps=30))
    half = run(tmp_path / "v", settings_of(steps=30, precision="bfloat16"))
    assert all(value.dtype == torch.float32 for value in weights(half.folder).values())
    losses = [records(tmp_path / name)[-1]["loss"] for name in "wv"]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert full.setup.precision == "float32"


def test_a_compiler_that_fails_is_said_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def call(*args: Any) -> Any:
            function(*args)  # gets some way, moving the balance's counters
            raise RuntimeError("g++ went away\nand more")

        return call

    def wrong(function: Any, **_: Any) -> Any:
        def call(x: torch.Tensor, *more: Any) -> Any:
            return function(x.detach(), *more)  # the loss is right and the gradient is not

        return call

    plain = run(tmp_path / "u", settings_of())
    for compiler, said in ((broken, "g++ went away; going on without"), (wrong, "gradient is off by")):
        monkeypatch.setattr(torch, "compile", compiler)
        one = run(tmp_path / compiler.__name__, settings_of(compile=True))
        err = capsys.readouterr().err
        assert "not compiled: " in err
        assert said in err
        assert not one.setup.compiled
        same_bits(one.folder, plain.folder)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    two = run(tmp_path / "v", settings_of(compile=True))
    assert "no C++ compiler" in capsys.readouterr().err
    assert not two.setup.compiled
    same_bits(two.folder, plain.folder)


def test_what_the_loop_sets_in_torch_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run(tmp_path / "w", settings_of(steps=1))
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device={missing}"):
        run(tmp_path / "w", settings_of(device=missing))


def test_two_runs_never_share_a_work_folder(tmp_path: Path) -> None:
    with state.held(tmp_path / "w"), pytest.raises(UserError, match="another run is training here"):
        run(tmp_path / "w", settings_of())
