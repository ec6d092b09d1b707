"""What is being brought into a collection: uploads and folders, one by one, in a thread that ends with the last of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.ingest import Progress

State = Literal["waiting", "reading", "done", "failed"]
MOST_LINES = 500  # that are kept of what went wrong
MOST_WAITING = 5000
_log = logging.getLogger(__name__)


@dataclass
class Line:
    """A file, or a folder, on its way, or why it is not in."""

    number: int
    name: str
    state: State = "waiting"
    why: str = ""
    done: int = 0  # of a folder: files
    total: int = 0


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    line: Line
    path: Path
    upload: bool = False  # the file is ours, and gone when it is in
    again: int = 0  # a document to read anew


class Intake:
    """Of one collection. Made for threads: whoever adds does not wait."""

    def __init__(self, base: KnowledgeBase, changed: Callable[[], None]) -> None:
        """Nothing to do yet.

        Args:
            changed: is told, in any thread, that there is something new to show.
        """
        self._base, self._changed = base, changed
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._numbers = itertools.count(1)
        self._busy = False
        self._stop = False
        self._thread: threading.Thread | None = None
        self.now: Line | None = None
        self.failed: list[Line] = []
        self.tally: Counter[str] = Counter()  # outcomes since someone looked
        self.said = ""  # of what takes long

    @property
    def busy(self) -> bool:
        return self._busy

    def of(self, base: KnowledgeBase) -> bool:
        """Whether it brings into this one."""
        return self._base is base

    def join(self, seconds: float = 600) -> None:
        """Wait until the file in hand is done."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    @property
    def waiting(self) -> list[Line]:
        """What comes next."""
        with self._lock:
            return [work.line for work in self._waiting]

    def upload(self, file: Path, name: str) -> None:
        """Add a file that was uploaded; it is taken away afterwards.

        Raises:
            UserError: too many are waiting.
        """
        self._put(Work(Line(next(self._numbers), name), file, upload=True))

    def add(self, path: Path) -> None:
        """Add a file or a folder of this machine.

        Raises:
            UserError: too many are waiting.
        """
        self._put(Work(Line(next(self._numbers), str(path)), path))

    def again(self, document: int, name: str) -> None:
        """Read a document's file anew.

        Raises:
            UserError: too many are waiting.
        """
        self._put(Work(Line(next(self._numbers), name), Path(), again=document))

    def refuse(self, name: str, why: str) -> None:
        """Tell of a file that did not even come so far."""
        self._fail(Line(next(self._numbers), name), why)
        self._changed()

    def forget(self) -> None:
        """What went wrong was seen."""
        self.failed.clear()
        self.tally.clear()
        self._changed()

    def stop(self) -> None:
        """Finish the file in hand and leave the others."""
        with self._lock:
            self._stop = self._busy
            left = list(self._waiting)
            self._waiting.clear()
        for work in left:
            _discard(work)
        self._changed()

    def _put(self, work: Work) -> None:
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                _discard(work)
                raise UserError(f"{len(self._waiting):,} files are waiting already; add the rest when they are in")
            self._waiting.append(work)
            if not self._busy:
                self._busy, self._stop = True, False
                self._thread = threading.Thread(target=self._run, name="kb intake", daemon=True)
                self._thread.start()
        self._changed()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy, self._stop, self.now, self.said = False, False, None, ""
                    break
                work = self._waiting.popleft()
            self.now, work.line.state = work.line, "reading"
            self._changed()
            try:
                for progress in self._progress(work):
                    self._take(work, progress)
                    if self._stop:
                        break
            except UserError as error:
                self._fail(work.line, str(error).removeprefix(f"{work.line.name}: "))
            except Exception:
                number = uuid.uuid4().hex[:12]
                _log.exception("intake %s failed", number)
                self._fail(work.line, f"the server failed; its log says why under {number}")
            finally:
                _discard(work)
        self._changed()

    def _progress(self, work: Work) -> Iterator[Progress]:
        if work.again:
            yield self._base.read_again(work.again)
        elif work.upload:
            yield self._base.add_file(work.path, work.line.name)
        else:
            yield from self._base.add([work.path], say=self._say)

    def _say(self, line: str) -> None:
        self.said = line
        self._changed()

    def _take(self, work: Work, progress: Progress) -> None:
        line, self.said = work.line, ""
        line.done, line.total = progress.done, progress.total
        self.tally[progress.outcome] += 1
        if progress.outcome == "failed":
            self._fail(Line(next(self._numbers), progress.file), progress.why)
        self._changed()

    def _fail(self, line: Line, why: str) -> None:
        line.state, line.why = "failed", why
        self.failed.append(line)
        del self.failed[:-MOST_LINES]


def _discard(work: Work) -> None:
    if work.upload:
        with contextlib.suppress(OSError):
            work.path.unlink(missing_ok=True)
