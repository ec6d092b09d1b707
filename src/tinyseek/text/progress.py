"""How far a long pass over text has come: a bar on a terminal, a plain line every ten seconds elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, str], None]  # (bytes done, a few words)
EVERY = 10.0  # seconds between plain lines


@contextmanager
def progress(title: str, total: int) -> Iterator[Update]:
    """Yields `update(done, note)`, to be called as often as one likes.

    Args:
        title: what is done.
        total: bytes at the end; 0 if that is not known.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total or None, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return
    started = last = time.monotonic()

    def line(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            share = f" {100 * done / total:.0f}%" if total else ""
            left = f", {(now - started) * (total - done) / done:.0f} s left" if total > done > 0 else ""
            print(
                f"{title}:{share} {done / 1e6:.1f} MB, {done / 1e6 / (now - started):.1f} MB/s{left} {note}",
                file=sys.stderr,
                flush=True,
            )

    yield line
