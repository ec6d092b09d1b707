"""Several processes: the same training as one, and files and words from the first alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_toys import RandomRows, run, settings_of, weights

TESTS = Path(__file__).parents[1]
SETTINGS = {"steps": 6, "batch_size": 5, "accumulate": 1, "save_every": 4, "validate_every": 3, "optimizer": "muon"}


def together(code: str, processes: int, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run code in several processes that meet each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
        **environment,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    ended = []
    for process in started:
        out, errors = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, errors))
    return ended


def test_two_processes_train_as_one_does_and_the_first_alone_speaks(tmp_path: Path) -> None:
    """Batches of five rows with unequal numbers of targets: three rows in one process and two in the other."""
    code = f"""
from pathlib import Path
from training_toys import RandomRows, run, settings_of
out = run(Path({str(tmp_path / "two")!r}), settings_of(**{SETTINGS!r}), val=RandomRows(4, 12, seed=2))
print(out.folder.name)
"""
    ended = together(code, 2)
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-1500:] for process in ended]
    assert [process.stdout for process in ended] == ["step-000006\n"] * 2
    assert "validation" in ended[0].stderr or "step 6/6" in ended[0].stderr
    assert "step 6/6" not in ended[1].stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]

    one = run(tmp_path / "one", settings_of(**SETTINGS), val=RandomRows(4, 12, seed=2))
    alone, shared = weights(one.folder), weights(tmp_path / "two" / "step-000006")
    first = weights(tmp_path / "one" / "step-000004")
    for name, weight in alone.items():
        moved = (weight - first[name]).abs().max()
        torch.testing.assert_close(shared[name], weight, atol=2e-5, rtol=1e-4, msg=f"{name} (it moved by {moved})")


def test_a_process_that_would_have_no_work_is_told_before_any(tmp_path: Path) -> None:
    settings = SETTINGS | {"batch_size": 2}
    code = f"""
import sys
from pathlib import Path
from tinyseek.errors import UserError
from training_toys import run, settings_of
try:
    run(Path({str(tmp_path / "work")!r}), settings_of(**{settings!r}))
except UserError as error:
    sys.exit(str(error))
"""
    for process in together(code, 3):
        assert process.returncode == 1
        assert "batch_size=2 leaves some of 3 processes without work" in process.stderr


def test_what_one_process_has_no_gradient_for_is_added_as_nothing() -> None:
    code = """
import torch
from tinyseek.train import parallel
parallel.join(torch.device("cpu"))
rank = parallel.rank()
weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
weights[0].grad = torch.full((2,), 1.0 + rank)
if rank == 1:
    weights[1].grad = torch.full((2,), 5.0)
parallel.add_gradients(weights)
print([None if w.grad is None else w.grad.tolist() for w in weights], parallel.first({"who": rank}), parallel.total([rank, 2]))
"""
    for process in together(code, 2):
        assert process.stdout.strip() == "[[3.0, 3.0], [5.0, 5.0], None] {'who': 0} [1.0, 4.0]", process.stderr[-1500:]


@pytest.mark.parametrize("arguments", [["run", "quickstart"], ["data", "OUT"]])
def test_only_a_training_stage_is_for_several_processes(tmp_path: Path, arguments: list[str]) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    code = f"import sys\nfrom tinyseek.cli import main\nsys.exit(main({words!r}))"
    (ended,) = together(code, 1, WORLD_SIZE="2", RANK="0")
    assert ended.returncode == 2
    assert "torchrun" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 2
