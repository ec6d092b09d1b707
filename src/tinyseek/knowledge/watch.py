"""Follow a folder: whatever changes in it is brought into the collection, until it is told to stop.

The system says that something has changed; what it was is seen by looking at the whole folder, which costs a glance at each file.
So nothing is missed that happened while no one listened, or on a disk that says nothing (every minute).
"""

from __future__ import annotations

import threading
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

    listening = changes(
        folder,
        stop_event=stop,
        debounce=LONGEST_MS,
        step=QUIET_MS,
        rust_timeout=every_ms,
        yield_on_timeout=True,
        watch_filter=None,
        raise_interrupt=False,
        ignore_permission_denied=True,
    )
    while not stop.is_set():
        if not folder.is_dir():
            once(f"{folder}: is gone; its documents are kept, and it is waited for")
        else:
            for progress in base.add(folder, say=once):
                if stop.is_set():
                    return
                version = (progress.why, _changed(folder / progress.file))
                if progress.outcome == "failed":
                    if told.get(progress.file) == version:
                        continue
                    told[progress.file] = version
                if progress.outcome != "unchanged":
                    yield progress
        if next(listening, None) is None:
            return


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
