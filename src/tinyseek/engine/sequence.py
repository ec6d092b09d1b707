"""Sequence: one text being written, with its blocks and what was drawn so far; and Outlet, which knows what of it may be shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseek.engine.blocks import Prefix
from tinyseek.engine.request import Finish, Piece, Request, TokenLogprob

if TYPE_CHECKING:
    from tinyseek.engine.grammar import Matcher
    from tinyseek.engine.sampler import Sampling
    from tinyseek.engine.speculate import Memory
    from tinyseek.text.tokenizer import Tokenizer


class Sequence:
    """One text: the prompt and what follows it.

    Attributes:
        tokens: prompt and output. The last one's keys are not in the cache before it was run.
        computed: how many of the tokens are in the cache.
        blocks: where, from the beginning on.
        place: of the last block that is full and can be found by others; `published` blocks are.
        draft: tokens guessed to follow, to be checked in the next step.
        memory: what guessing keeps.
        limit: the length at which the text ends.
        stops: stop token -> what to report: the token, or the stop string that spells it.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        beginning: Prefix,
        limit: int,
        stops: Mapping[int, str | int],
        outlet: Outlet,
        sampling: Sampling,
        matcher: Matcher | None = None,
    ) -> None:
        self.request, self.index, self.params = request, index, request.params
        self.tokens = list(request.prompt)
        self.prompt = len(self.tokens)
        self.beginning = self.place = beginning
        self.published = self.computed = 0
        self.blocks: list[int] = []
        self.draft: list[int] = []
        self.memory: Memory | None = None
        self.limit, self.stops = limit, stops
        self.outlet, self.sampling, self.matcher = outlet, sampling, matcher
        self.preempted = False
        self.scored: list[TokenLogprob | None] = [None]  # of the prompt's tokens, so far

    @property
    def output(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.tokens) - self.prompt

    @property
    def remaining(self) -> int:
        """Tokens to run before the next one can be drawn: 1 while a text is written, more while its prompt is read."""
        return len(self.tokens) - self.computed

    @property
    def scoring(self) -> bool:
        """Whether the prompt's own log-probabilities are still to be told, so that every position of it must be run."""
        wanted = self.index == 0 and self.params.prompt_logprobs is not None
        return wanted and self.request.prompt_logprobs is None

    def restart(self) -> None:
        """Hold no blocks and begin again; the tokens stay."""
        self.blocks, self.draft = [], []
        self.place, self.published, self.computed = self.beginning, 0, 0


@dataclass(frozen=True)
class Chunk:
    """What a step runs of one sequence: `count` of its tokens and draft from `start` on.

    Attributes:
        wanted: how many of the last of them need logits.
    """

    sequence: Sequence
    start: int
    count: int
    wanted: int

    @property
    def tokens(self) -> list[int]:
        """The tokens to run."""
        sequence, end = self.sequence, self.start + self.count
        return (sequence.tokens[self.start : end] + sequence.draft)[: self.count]


class Outlet:
    """Tokens in, pieces out: only text that is certain. A beginning of a stop string waits until it is one or is none.

    Args:
        tokenizer: none where nobody asks for text.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...] = ()) -> None:
        self._decoder = tokenizer.stream(skip_specials=True) if tokenizer else None
        self._stops = stops
        self._held = ""  # text that may be the beginning of a stop string
        self._waiting: deque[tuple[int, TokenLogprob | None, int]] = deque()  # tokens, and where in `_held` each ends

    def push(self, token: int, logprob: TokenLogprob | None, watch: bool = True) -> str | None:
        """Take a token in. Returns the stop string that it completes, which is then cut off with all that follows.

        Args:
            watch: look for stop strings.
        """
        text = self._decoder.push(token) if self._decoder else ""
        self._held += text
        self._waiting.append((token, logprob, len(self._held)))
        if not (watch and text):
            return None
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if not places:
            return None
        place, stop = min(places)
        self._held = self._held[:place]
        while self._waiting and self._waiting[-1][2] > place:
            self._waiting.pop()
        self._decoder = None  # what it still holds comes after the stop string
        return stop

    def take(
        self, index: int, finish: Finish | None = None, stop: str | int | None = None, error: str | None = None
    ) -> Piece:
        """What can be shown now; at the end all that is left."""
        if finish and self._decoder:
            self._held += self._decoder.flush()
        certain = len(self._held) - (0 if finish else self._open())
        text, self._held = self._held[:certain], self._held[certain:]
        ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        while self._waiting and (finish or self._waiting[0][2] <= certain):
            token, logprob, _ = self._waiting.popleft()
            ids.append(token)
            if logprob is not None:
                logprobs.append(logprob)
        self._waiting = deque((token, logprob, end - certain) for token, logprob, end in self._waiting)
        return Piece(index, tuple(ids), text, tuple(logprobs), finish, stop, error)

    def _open(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        held = self._held
        for length in range(min(len(held), max(map(len, self._stops), default=1) - 1), 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0
