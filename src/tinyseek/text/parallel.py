"""`map` over several processes: results in order, and only a few items under way, so that memory stays bounded."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import TypeVar

from tinyseek.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
WORTH_IT = 8  # items; for fewer the workers' start, half a second, would cost more than they save


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """The results of `work` for each item, in the items' order.

    Processes are spawned, not forked: a fork would copy torch's threads' locks, and inherit the parent's memory.

    Args:
        work: a function of a module (it is sent by name), or a partial of one.
        workers: processes beside this one; 0: one a core; 1: none, the work is done here.
    Raises:
        UserError: a worker was killed.
    """
    workers = workers or cores()
    stream = iter(items)
    first = list(islice(stream, WORTH_IT))
    stream = chain(first, stream)
    if workers == 1 or len(first) < WORTH_IT:
        yield from map(work, stream)
        return
    under_way: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts_to_parent)
    try:
        for item in stream:
            under_way.append(pool.submit(work, item))
            if len(under_way) > 2 * workers + 2:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended by itself: out of memory, or started from a script without "
            "`if __name__ == '__main__':`; with workers=1 there are none"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
