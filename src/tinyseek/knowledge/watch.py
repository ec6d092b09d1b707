"""Follow a folder: whatever changes in it is brought into the collection, until it is told to stop.

The system says that something has changed; what it was is seen by looking at the whole folder, which costs a glance at each file.
So nothing is missed that happened while no one listened, or on a disk that says nothing (every minute).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinyseek.errors import UserError
from tinyseek.knowledge import files
from tinyseek.knowledge.ingest import Progress, Say, silent

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase

QUIET_MS = 500  # without a change, before a look: a file that is being copied is left alone for so long
LONGEST_MS = 5_000  # that changes may go on before there is a look all the same
EVERY_MS = 60_000  # a look without any word of a change
DEAF_MS = 10_000  # likewise where the system says nothing


def watch(
    base: KnowledgeBase, folder: Path, stop: threading.Event, say: Say = silent, every_ms: int = EVERY_MS
) -> Iterator[Progress]:
    """Add `folder`, then yield what becomes of its files; a file that cannot be read is told once for each of its versions.

    Raises:
        UserError: there is no such folder; or as `KnowledgeBase.add` does.
    """
    from watchfiles import watch as changes

    folder = files.absolute(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder to watch")
    told: dict[str, tuple[str, float]] = {}
    said: list[str] = []

    def once(line: str) -> None:
        if line not in said:
            said.append(line)
            say(line)

    changed = threading.Event()
    ended = threading.Event()

    deaf = threading.Event()

    def listen() -> None:
        try:
            for _ in changes(
                folder,
                stop_event=ended,
                debounce=LONGEST_MS,
                step=QUIET_MS,
                rust_timeout=200,  # how soon it sees that it is to stop
                watch_filter=None,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                changed.set()
        except (OSError, RuntimeError):  # too many folders for the system to watch, or this one is gone
            deaf.set()

    listener = threading.Thread(target=listen, name="watch", daemon=True)
    listener.start()
    try:
        while not stop.is_set():
            changed.clear()
            if folder.is_dir():
                yield from _look(base, folder, once, told)
            else:
                once(f"{folder}: is gone; its documents are kept, and it is waited for")
            if deaf.is_set():
                once(f"{folder}: the system tells of no changes in it; they are looked for every {DEAF_MS / 1000:g} s")
            _wait(changed, stop, min(every_ms, DEAF_MS if deaf.is_set() else every_ms) / 1000)
    finally:
        ended.set()
        listener.join()


def _look(base: KnowledgeBase, folder: Path, say: Say, told: dict[str, tuple[str, float]]) -> Iterator[Progress]:
    for progress in base.add(folder, say=say):
        if progress.outcome == "failed":
            version = (progress.why, _changed(folder / progress.file))
            if told.get(progress.file) == version:
                continue
            told[progress.file] = version
        if progress.outcome != "unchanged":
            yield progress


def _wait(changed: threading.Event, stop: threading.Event, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not stop.is_set() and not changed.wait(0.1) and time.monotonic() < end:
        pass


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
