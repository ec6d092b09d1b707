"""How far a count has come: a bar on a terminal, a plain line every ten seconds elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds between plain lines


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `update(done)`, to be called as often as one likes."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=max(1, total))
            yield lambda done: bar.update(task, completed=done)
        return
    last = time.monotonic()

    def line(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{title}: {100 * done // max(1, total)} %", file=sys.stderr, flush=True)

    yield line
