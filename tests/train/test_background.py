"""Runs in the background: started, listed, followed, stopped; never mistaken for another process."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tinyseek.errors import UserError
from tinyseek.train import background

# Answers Ctrl-C as training does: saves, says so, exits with 130.
TRAINS = """
import signal, sys, time
def stop(*_):
    print('saved in step-000007'); sys.exit(130)
signal.signal(signal.SIGINT, stop)
print('步 ready', flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSEEK_HOME", str(tmp_path / "home"))


def ended(run: background.Run, seconds: float = 20) -> background.Run:
    until = time.monotonic() + seconds
    while run.alive and time.monotonic() < until:
        time.sleep(0.02)
    assert not run.alive
    return run


def started(folder: Path) -> background.Run:
    run = background.start([sys.executable, "-c", TRAINS], folder)
    until = time.monotonic() + 20
    while "ready" not in Path(run.log).read_text(encoding="utf-8") and time.monotonic() < until:
        time.sleep(0.02)
    return run


def test_a_run_is_listed_followed_and_stopped_as_by_ctrl_c(tmp_path: Path) -> None:
    run = started(tmp_path / "quick")
    try:
        assert (run.name, run.status, run.last_line) == ("quick", "running", "步 ready")
        assert os.getsid(run.pid) != os.getsid(0)  # closing this terminal does not reach it
        assert background.runs() == [run]
        assert background.find("quick") == background.find(str(tmp_path / "quick")) == run
        with pytest.raises(UserError, match=r'run "quick" is at work there'):
            background.start(["true"], tmp_path / "quick")
        assert background.stop(run) == "saved in step-000007"
    finally:
        if run.alive:
            os.killpg(run.pid, signal.SIGKILL)
    assert (run.status, run.exit_status) == ("stopped", 130)
    out = io.StringIO()
    background.follow(run, out)
    assert out.getvalue() == "步 ready\nsaved in step-000007\n"
    with pytest.raises(UserError, match=r"quick.*stopped"):
        background.stop(run)


def test_how_a_run_ended_is_known(tmp_path: Path) -> None:
    finished = ended(background.start([sys.executable, "-c", "print('done')"], tmp_path / "a" / "demo"))
    failed = ended(background.start([sys.executable, "-c", "raise SystemExit(2)"], tmp_path / "b" / "demo"))
    missing = ended(background.start([str(tmp_path / "no-such-program")], tmp_path / "c" / "demo"))
    assert [finished.name, failed.name, missing.name] == ["demo", "demo-2", "demo-3"]
    assert [finished.status, failed.status, missing.status] == ["finished", "failed (2)", "failed (127)"]
    assert "cannot be started" in missing.last_line
    killed = started(tmp_path / "d")
    os.killpg(killed.pid, signal.SIGKILL)
    assert ended(killed).status == "killed"
    with pytest.raises(UserError, match='no run "dem"; there are: d, demo-3, demo-2, demo'):
        background.find("dem")


def test_following_goes_on_until_the_end(tmp_path: Path) -> None:
    code = "import time\nfor i in range(3): print('line', i, flush=True); time.sleep(0.3)"
    run = background.start([sys.executable, "-c", code], tmp_path / "slow")
    out = io.StringIO()
    background.follow(run, out)
    assert out.getvalue() == "line 0\nline 1\nline 2\n"


def test_a_pid_given_to_another_process_is_not_taken_for_the_run(tmp_path: Path) -> None:
    run = ended(background.start([sys.executable, "-c", ""], tmp_path / "x"))
    reused = dataclasses.replace(run, pid=os.getpid())
    assert psutil.pid_exists(reused.pid)
    assert not reused.alive
    with pytest.raises(UserError, match="finished"):
        background.stop(reused)


def test_a_damaged_note_is_passed_over(tmp_path: Path) -> None:
    run = ended(background.start([sys.executable, "-c", ""], tmp_path / "x"))
    (background.home() / "bad.json").write_text("{")
    (background.home() / "other.json").write_text('{"a": 1}')
    assert background.runs() == [run]
