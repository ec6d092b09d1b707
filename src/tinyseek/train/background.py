"""Runs in the background: start one that outlives the terminal, list them, follow a log, stop one so that it saves.

A run is a small JSON file under `$TINYSEEK_HOME/runs` (by default `~/.tinyseek/runs`). The process is a keeper that starts the
command, waits, and notes its exit status; both are in a session of their own, so that closing the terminal does not reach them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

from tinyseek import artifact
from tinyseek.errors import UserError

LOG = "log.txt"
_REMEMBERED = 50  # ended runs that are still listed


@dataclass(frozen=True)
class Run:
    """One run that was started in the background."""

    name: str
    pid: int  # the keeper's, which leads the process group
    created: float  # when that process began, by the system: a pid alone may have been given to another since
    started: str  # the same for people, UTC
    argv: list[str]
    folder: str
    log: str

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    @property
    def exit_status(self) -> int | None:
        """The command's exit status, or none while it runs or if it was killed with its keeper."""
        try:
            return int((home() / f"{self.name}.exit").read_text())
        except (OSError, ValueError):
            return None

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped`, `failed (2)`, `killed`."""
        if self.alive:
            return "running"
        match self.exit_status:
            case None:
                return "killed"
            case 0:
                return "finished"
            case 130:
                return "stopped"
            case status:
                return f"failed ({status})"

    @property
    def last_line(self) -> str:
        """The last thing that it said."""
        try:
            with Path(self.log).open("rb") as stream:
                stream.seek(max(0, Path(self.log).stat().st_size - 8192))
                lines = stream.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.rsplit("\r")[-1].strip() for line in reversed(lines) if line.strip()), "")


def home() -> Path:
    """Where the runs are noted."""
    return Path(os.environ.get("TINYSEEK_HOME") or Path.home() / ".tinyseek") / "runs"


def start(argv: Sequence[str], folder: Path) -> Run:
    """Start a command in the background; what it prints goes to `folder/log.txt`.

    Args:
        argv: the command, program first; no shell sees it.
        folder: the run's folder, which gives the run its name.
    Raises:
        UserError: a run is at work in that folder, or it cannot be written.
    """
    folder = folder.resolve()
    before = runs()
    for run in before:
        if run.alive and Path(run.folder) == folder:
            raise UserError(
                f'{folder}: run "{run.name}" is at work there; follow it (tinyseek logs {run.name}) or stop it first'
            )
    taken = {run.name for run in before}
    name = next(
        n for i in range(1, len(taken) + 2) if (n := folder.name if i == 1 else f"{folder.name}-{i}") not in taken
    )
    log = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        home().mkdir(parents=True, exist_ok=True)
        (home() / f"{name}.exit").unlink(missing_ok=True)
        with log.open("wb") as stream:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "tinyseek.train.background", str(home() / f"{name}.exit"), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        run = Run(
            name=name,
            pid=keeper.pid,
            created=psutil.Process(keeper.pid).create_time(),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            argv=list(argv),
            folder=str(folder),
            log=str(log),
        )
        artifact.write_text(home() / f"{name}.json", json.dumps(asdict(run), ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); no run was started"
        ) from None
    _forget([old for old in before if not old.alive][_REMEMBERED:])
    return run


def runs() -> list[Run]:
    """All the runs that are noted, the newest first; a damaged note is passed over."""
    found = []
    for path in home().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Run(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda run: run.created, reverse=True)


def find(name: str) -> Run:
    """The run of that name, or the newest in that folder.

    Raises:
        UserError: there is none.
    """
    known = runs()
    for run in known:
        if run.name == name or Path(run.folder) == Path(name).resolve():
            return run
    names = ", ".join(run.name for run in known[:10]) or "none yet; --detach starts one"
    raise UserError(f'no run "{name}"; there are: {names}')


def follow(run: Run, out: TextIO, wait: bool = True) -> None:
    """Copy a run's log to `out`; with `wait` go on until the run ends."""
    try:
        stream = Path(run.log).open(encoding="utf-8", errors="replace")  # noqa: SIM115 - it is closed below
    except OSError as error:
        raise UserError(f"{run.log}: cannot be read ({error.strerror})") from None
    with stream:
        while True:
            alive = run.alive  # asked first: what is written before the end is then read after it
            while text := stream.read(1 << 16):
                out.write(text)
            out.flush()
            if not (alive and wait):
                return
            time.sleep(0.2)


def stop(run: Run, timeout: float = 300.0) -> str:
    """Stop a run as Ctrl-C would, wait until it has saved, and return the last line that it said.

    Raises:
        UserError: it does not run, or has not ended after `timeout` seconds.
    """
    if not run.alive:
        raise UserError(
            f'run "{run.name}" is not running: it {run.status}'
            if run.exit_status is None
            else f'run "{run.name}" has {run.status}'
        )
    os.killpg(run.pid, signal.SIGINT)
    until = time.monotonic() + timeout
    while run.alive:
        if time.monotonic() > until:
            raise UserError(f'run "{run.name}" has not ended after {timeout:g} s; see its log: {run.log}')
        time.sleep(0.1)
    return run.last_line


def _forget(old: Sequence[Run]) -> None:
    for run in old:
        (home() / f"{run.name}.json").unlink(missing_ok=True)
        (home() / f"{run.name}.exit").unlink(missing_ok=True)


def _keep(exit_file: Path, argv: Sequence[str]) -> int:
    """Run a command and note its exit status. Ctrl-C is the command's to answer: it is in the same process group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # a function, since an ignored signal would stay ignored in the command
    try:
        status = subprocess.run(argv, check=False).returncode
    except OSError as error:
        print(f"{argv[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        status = 127
    artifact.write_text(exit_file, f"{128 - status if status < 0 else status}\n")
    return status


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1]), sys.argv[2:]))
