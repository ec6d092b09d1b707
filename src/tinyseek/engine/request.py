"""What goes between an engine and those who ask it: a Request, and the pieces of text that come back through it.

The engine writes pieces from whatever thread steps it; one reader takes them, in a thread (`for piece in request`) or in an event
loop (`async for piece in request.pieces()`).
"""

from __future__ import annotations

import asyncio
import queue
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.adapters import Adapter
    from tinyseek.engine.engine import Engine
    from tinyseek.engine.params import SamplingParams

Finish = Literal["stop", "length", "cancelled", "error"]


class QueueFullError(UserError):
    """Too many texts wait already; ask again later."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability under the model itself, before penalties, bias, temperature and constraints.

    Attributes:
        top: the likeliest tokens at its place with theirs, the likeliest first; the token itself is among them if it is as likely.
            Its value there is the same float.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What is new in one of a request's texts.

    Over a text, the pieces' `text` is what `Tokenizer.stream(skip_specials=True)` makes of their `ids`, but for the end of a text
    that a stop string cut: there a token may be half before the cut. Such a token is in `text` in part and not in `ids`.

    Attributes:
        index: which of `n` texts.
        ids: new tokens; neither a stop token nor those of a stop string are among them.
        text: text that is certain now: never half a character, never the beginning of a stop string.
        logprobs: of each of `ids`, if they were asked for.
        finish: why the text ended, in its last piece: "stop" (a stop token or string, or a complete constrained text), "length"
            (max_tokens or the context), "cancelled", "error".
        stop: the stop string or token that was met.
        error: what went wrong.
    """

    index: int = 0
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    stop: str | int | None = None
    error: str | None = None


class Request:
    """A prompt that an engine was given, and the way its `n` texts come back.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were not computed for this request, since the prefix cache had them.
        generated_tokens: tokens drawn so far over all texts, stop tokens included.
        prompt_logprobs: of each token of the prompt, none for the first; complete when the first piece comes.
        adapter: which one reads and writes; none for the base alone.
    """

    def __init__(
        self, engine: Engine, prompt: Sequence[int], params: SamplingParams, adapter: Adapter | None = None
    ) -> None:
        self.id = uuid.uuid4().hex
        self.adapter = adapter
        self.prompt = tuple(prompt)
        self.params = params
        self.prompt_tokens = len(self.prompt)
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.cancelled = False
        self.submitted = time.monotonic()
        self._engine = engine
        self._unread: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._open = params.n  # texts whose last piece was not read yet
        self._wake: Callable[[], object] | None = None

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, blocking; where no thread runs the engine, this steps it. Leaving the loop early cancels the request."""
        try:
            while self._open:
                try:
                    piece = self._unread.get(timeout=0.5 if self._engine.threaded else 0)
                except queue.Empty:
                    if not self._engine.threaded:
                        self._engine.step()
                    continue
                yield self._taken(piece)
        finally:
            self.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces, in an event loop. Leaving the loop early, or cancelling the task, cancels the request."""
        arrived, loop = asyncio.Event(), asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while self._open:
                arrived.clear()
                try:
                    piece = self._unread.get_nowait()
                except queue.Empty:
                    if self._engine.threaded:
                        await arrived.wait()
                    else:
                        await asyncio.to_thread(self._engine.step)
                    continue
                yield self._taken(piece)
        finally:
            self._wake = None
            self.cancel()

    def cancel(self) -> None:
        """Stop what is still being written. Its blocks are free at the engine's next step; it ends with finish="cancelled"."""
        if self._open and not self.cancelled:
            self.cancelled = True
            self._engine.wake()

    def deliver(self, piece: Piece) -> None:
        """For the engine: hand a piece to the reader."""
        self._unread.put(piece)
        wake = self._wake
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # the reader's event loop is closed
                self.cancel()

    def _taken(self, piece: Piece) -> Piece:
        self._open -= piece.finish is not None
        return piece
