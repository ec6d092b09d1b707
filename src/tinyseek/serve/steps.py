"""Work that blocks, done in threads of its own, so that streams flow on meanwhile: calls, and iterators step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


async def call(threads: Executor, function: Callable[..., T], *args: Any, **named: Any) -> T:
    """A function's result, computed in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, partial(function, *args, **named))


async def steps(threads: Executor, source: Iterator[T]) -> AsyncIterator[T]:
    """What an iterator yields, each step in a thread.

    Leaving early lets the step that runs end, then closes the iterator, also in a thread: a model that writes is stopped.
    """
    loop = asyncio.get_running_loop()
    running: asyncio.Future[Any] | None = None
    ended = False
    try:
        while True:
            running = loop.run_in_executor(threads, next, source, _END)
            item = await asyncio.shield(running)
            if item is _END:
                ended = True
                return
            yield item
    finally:
        if not ended:
            _close_after(loop, threads, source, running)


def _close_after(
    loop: asyncio.AbstractEventLoop, threads: Executor, source: Iterator[Any], running: asyncio.Future[Any] | None
) -> None:
    close = getattr(source, "close", None)

    def later(step: asyncio.Future[Any] | None) -> None:
        if step is not None and not step.cancelled():
            step.exception()  # someone has looked at it
        if close is not None and not loop.is_closed():
            try:
                loop.run_in_executor(threads, close)
            except RuntimeError:  # the threads are gone: the server ends
                return

    if running is None or running.done():
        later(running)
    else:
        running.add_done_callback(later)
