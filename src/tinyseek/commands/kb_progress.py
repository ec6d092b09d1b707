"""How far reading has come: a bar with the time left on a terminal, a line now and then elsewhere; a line a failed file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from tinyseek.knowledge.ingest import Progress

_EVERY = 10.0  # seconds between plain lines
_ORDER = ("added", "changed", "moved", "removed", "unchanged", "failed")
_SIGNS = {
    "added": ("+", "green"),
    "changed": ("~", "yellow"),
    "moved": (">", "yellow"),
    "removed": ("-", "yellow"),
    "failed": ("x", "bold red"),
}


class Reading:
    """Shows progress on standard error; a context manager.

    Attributes:
        outcomes: how many files came to what.
        chunks: passages of files that were added or changed.
    """

    def __init__(self, sizes: Mapping[str, int], each: bool = False) -> None:
        """Prepare.

        Args:
            sizes: of the files by name, for the time that is left.
            each: a line for each file that is not as it was, beside those that failed.
        """
        self.outcomes: Counter[str] = Counter()
        self.chunks = 0
        self._sizes, self._passed, self._total = sizes, 0, sum(sizes.values())
        self._each, self._person = each, sys.stderr.isatty()
        self._started = self._last = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._person:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

            columns = (
                SpinnerColumn(),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[note]}", style="dim"),
            )
            console = Console(stderr=True, markup=False, highlight=False, emoji=False)
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None, left="", note="looking for files")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """A word about what takes long, or was left out."""
        if self._bar is not None and self._task is not None and "passages embedded" in line:
            self._bar.update(self._task, note=line)
        elif self._bar is not None:
            self._bar.console.print(line, style="dim")
        else:
            print(line, file=sys.stderr, flush=True)

    def tell(self, progress: Progress) -> None:
        """What became of one file."""
        self.outcomes[progress.outcome] += 1
        if progress.outcome in ("added", "changed"):
            self.chunks += progress.chunks
        if progress.outcome == "failed" or (self._each and progress.outcome in _SIGNS) or self._odd(progress):
            self._line(progress)
        self._passed += self._sizes.get(progress.file, 0)
        left = self._left() if progress.done < progress.total else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, left=left, note=progress.file)
        elif time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            print(
                f"{progress.done:,} of {progress.total:,} files, {left or 'almost done'}", file=sys.stderr, flush=True
            )

    def _odd(self, progress: Progress) -> bool:
        """Whether something could not be read of a file that is in."""
        return bool(progress.why) and progress.outcome in ("added", "changed")

    def _line(self, progress: Progress) -> None:
        from rich.text import Text

        sign, style = _SIGNS[progress.outcome]
        why = f": {progress.why}" if progress.why else ""
        if self._bar is not None:
            self._bar.console.print(Text.assemble((f"{sign} ", style), (progress.file, "bold"), why), soft_wrap=True)
        else:
            print(f"{sign} {progress.file}{why}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        """By bytes: files differ more in size than in what a byte of them takes."""
        seconds = time.monotonic() - self._started
        if seconds < 2 or self._passed < 0.2 * self._total or not self._total:
            return ""
        return f"about {clock(max(1, round(seconds * (self._total - self._passed) / self._passed)))} left"

    def summary(self, collection: str) -> str:
        """All of it in a line."""
        parts = [f"{self.outcomes[name]:,} {name}" for name in _ORDER if self.outcomes[name]]
        passages = f", {self.chunks:,} passages" if self.chunks else ""
        seconds = clock(time.monotonic() - self._started)
        return f"{', '.join(parts) or 'nothing to read'}{passages}, in {seconds} (collection {collection})"


def clock(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def sizes_of(paths: Iterable[Path]) -> dict[str, int]:
    """The files that there are below some paths, by the names that they will have, with their bytes."""
    from tinyseek.knowledge.files import find

    sizes: dict[str, int] = {}
    for found in find(paths).files:
        with contextlib.suppress(OSError):
            sizes[found.name] = found.file.stat().st_size
    return sizes
