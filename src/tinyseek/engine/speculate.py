"""Guessing tokens ahead, to be checked in one step, so that a step may write several. What is written stays the same.

A guess comes from the text itself (what followed the same few tokens before) or from the model's multi-token prediction modules.
The next step runs all guessed tokens at once. At each place a token is drawn as ever, by the number that follows from (seed, which
text, which token), and as long as it is the guessed one the next place counts too. So the tokens that are drawn never depend on
the guesses: greedy or not, with or without a seed, under any constraint. (Speculative sampling, arXiv 2211.17192, keeps the
distribution; this keeps the very tokens.)

A module's guess is drawn from its own logits by that same number, so where module and model agree the guess is right at any
temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyseek.engine.ahead import Modules, Part
from tinyseek.engine.cache import PagedCache
from tinyseek.engine.options import EngineSettings
from tinyseek.engine.runner import Runner
from tinyseek.engine.sampler import Place, sample
from tinyseek.engine.sequence import Sequence
from tinyseek.errors import UserError

LONGEST = 3  # last tokens that are looked for earlier in the text
MOST_TEXTS = (
    8  # written at a time up to which guessing pays: with more, a step's time grows with its tokens, right or wrong
)
PAYS = (
    1 / 3
)  # share of right guesses below which a text rests: of a step of the demo's model each further token took a third of the first
RATE = 1 / 4  # weight of the last step in that share: four misses in a row are enough
REST = 32  # steps that a text rests from guessing; one more miss after them and it rests again
TOGETHER = 32  # positions of a text that rests which wait to be put through a module in one go


class Guessed:
    """A text as it would be after some guessed tokens: what drawing asks of it."""

    def __init__(self, text: Sequence, guesses: list[int]) -> None:
        self.params, self.sampling, self.stops, self.prompt = text.params, text.sampling, text.stops, text.prompt
        self._text, self._guesses = text, guesses
        self.matcher = text.matcher
        if text.matcher is not None and guesses:
            self.matcher = text.matcher.copy()
            with suppress(UserError, ValueError):  # then this place cannot be reached, or fails when it is
                for token in guesses:
                    self.matcher.accept(token)

    @property
    def tokens(self) -> list[int]:
        """The text's and the guessed ones."""
        return self._text.tokens + self._guesses

    @property
    def output(self) -> int:
        """How many tokens follow the prompt."""
        return self._text.output + len(self._guesses)


def places_of(text: Sequence) -> list[Place]:
    """Where a step draws tokens: after the text, and after each token of its draft."""
    return [text, *(Guessed(text, text.draft[:count]) for count in range(1, len(text.draft) + 1))]


class Pace:
    """How many tokens to guess in one text: as many as were right last time, one more if all were; none for a while where too few
    are right."""

    def __init__(self, most: int) -> None:
        self._most = self._length = most
        self._share = 1.0  # of the guesses that were right, the last steps' above all
        self._rest = 0

    def next(self) -> int:
        """How many in this step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._length

    def learn(self, guessed: int, right: int) -> None:
        """Note how a step's guesses did. What comes after a wrong one tells nothing."""
        if not guessed:
            return
        self._length = min(self._length + 1, self._most) if right == guessed else max(right, 1)
        self._share += RATE * (right / min(right + 1, guessed) - self._share)
        if self._share < PAYS:
            self._share, self._rest = PAYS, REST


class Lookup:
    """Where in a text each few tokens were met last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # tokens -> the place after them
        self._known = 1

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """What followed the longest end of the text, of at most LONGEST tokens, that was met before; a repetition is taken to go
        on."""
        for end in range(self._known, len(tokens)):
            for length in range(1, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._known = len(tokens)
        for length in range(min(LONGEST, len(tokens)), 0, -1):
            start = self._ends.get(tuple(tokens[-length:]))
            if start is not None:
                guess = tokens[start : start + count]
                while len(guess) < count:
                    guess.append(guess[len(guess) - (len(tokens) - start)])
                return guess
        return []


@dataclass(frozen=True)
class Rows:
    """Hidden states [T, D] of neighbouring positions, from `start` on."""

    start: int
    hidden_TD: Tensor

    def __len__(self) -> int:
        return len(self.hidden_TD)


@dataclass
class Memory:
    """What guessing keeps of one text.

    Attributes:
        waiting: by depth, rows that the module has not seen: the last ones, whose following tokens are not written yet, and in a
            text that rests those before them.
    """

    pace: Pace
    lookup: Lookup = field(default_factory=Lookup)
    waiting: dict[int, Rows] = field(default_factory=dict)

    def add(self, depth: int, new: Rows) -> None:
        """Let rows wait for a module. After a preemption they may not follow those before, which then are dropped."""
        old = self.waiting.get(depth)
        if old is not None and old.start + len(old) == new.start:
            new = Rows(old.start, torch.cat((old.hidden_TD, new.hidden_TD)))
        self.waiting[depth] = new

    def take(self, depth: int, length: int) -> tuple[Rows, Rows]:
        """The rows whose following tokens are among the first `length` of the text, which wait no longer; and the others."""
        rows = self.waiting[depth]
        count = min(max(length - depth - 1 - rows.start, 0), len(rows))
        later = Rows(rows.start + count, rows.hidden_TD[count:].clone())
        self.waiting[depth] = later
        return Rows(rows.start, rows.hidden_TD[:count]), later


@dataclass(frozen=True)
class Step:
    """What a step has done with one text: the hidden states [T, D] of its tokens from `start` on, and whether its next token was
    drawn and more are wanted."""

    text: Sequence
    start: int
    hidden_TD: Tensor
    writing: bool


class Try:
    """One text's way through the modules in one step: the rows of its written tokens, after which there may come rows of guessed
    ones.

    Attributes:
        idle: nothing is run for it now.
        last_D: the hidden state to guess from, or to go on from.
    """

    last_D: Tensor
    part: Part

    def __init__(self, text: Sequence, wanted: int, memory: Memory) -> None:
        self.text, self.wanted, self.memory = text, wanted, memory
        self.draft: list[int] = []
        self.idle = False
        self._certain = 0
        self._ahead: Tensor | None = None  # the last depth's rows that follow from guessed tokens too

    def begin(self, depth: int, guessing: bool) -> bool:
        """Set the part to run at a depth; whether there is one. With a draft of `depth` tokens it reaches the last row."""
        if depth not in self.memory.waiting:
            return False
        certain, later = self.memory.take(depth, len(self.text.tokens))
        self._certain, hidden_TD = len(certain), certain.hidden_TD
        if guessing:
            ahead = [] if self._ahead is None else [self._ahead]
            hidden_TD = torch.cat((hidden_TD, later.hidden_TD, *ahead))
        start = certain.start + depth + 1
        following = self.text.tokens[start : start + len(hidden_TD)]
        following += self.draft[: len(hidden_TD) - len(following)]
        self.part = Part(self.text.blocks, certain.start, hidden_TD, following)
        return len(hidden_TD) > 0

    def end(self, out_TD: Tensor, next_depth: int | None) -> None:
        """Take what the module made of the part, which the next one wants, if there is one."""
        if next_depth is not None:
            self.memory.add(next_depth, Rows(self.part.start, out_TD[: self._certain]))
        self._ahead, self.last_D = out_TD[self._certain :], out_TD[-1]

    def further(self, steps: int) -> Part:
        """What the last module runs when it goes on from its own hidden state."""
        return Part(self.text.blocks, len(self.text.tokens) - 1 + steps, self.last_D[None], self.draft[-1:])


class Speculator:
    """Gives texts their drafts.

    Args:
        modules: the model's; without, texts are looked into.
    """

    def __init__(self, settings: EngineSettings, runner: Runner, modules: Modules | None) -> None:
        self._most, self._runner, self._modules = settings.draft_tokens, runner, modules

    def memory(self, text: Sequence) -> Memory:
        """What is kept of a text."""
        if text.memory is None:
            text.memory = Memory(Pace(self._most))
        return text.memory

    def learn(self, text: Sequence, guessed: int, right: int) -> None:
        """A text's draft was checked."""
        self.memory(text).pace.learn(guessed, right)

    def guess(self, steps: list[Step], reserve: Callable[[Sequence, int], bool]) -> None:
        """Set every text's draft.

        Args:
            reserve: gives a text the blocks for so many guessed tokens, if it may have them.
        """
        crowded = sum(step.writing for step in steps) > MOST_TEXTS
        wanted = [0 if crowded or not step.writing else self._wanted(step.text, reserve) for step in steps]
        if self._modules:
            drafts = self._by_modules(self._modules, steps, wanted)
        else:
            drafts = [
                self._looked_up(step.text, count) if count else [] for step, count in zip(steps, wanted, strict=True)
            ]
        for step, draft in zip(steps, drafts, strict=True):
            step.text.draft = draft

    def _wanted(self, text: Sequence, reserve: Callable[[Sequence, int], bool]) -> int:
        """How many tokens to guess. After the last guess comes a token that is drawn, within the limit."""
        count = min(self.memory(text).pace.next(), text.limit - len(text.tokens) - 1)
        return count if count > 0 and reserve(text, count) else 0

    def _looked_up(self, text: Sequence, count: int) -> list[int]:
        """A draft by looking into the text, as far as it may come."""
        draft = self.memory(text).lookup.guess(text.tokens, count)
        ends = [place for place, token in enumerate(draft) if token in text.stops]
        draft = draft[: ends[0]] if ends else draft
        return draft[: text.matcher.count_allowed(draft)] if draft and text.matcher is not None else draft

    @torch.inference_mode()
    def _by_modules(self, modules: Modules, steps: list[Step], wanted: list[int]) -> list[list[int]]:
        """Drafts by the modules, each depth on top of the last; their keys become complete for all that is written.

        Where more tokens are wanted than there are modules, the last one goes on from its own hidden states, a position further
        for each token.
        """
        tries = [Try(step.text, count, self.memory(step.text)) for step, count in zip(steps, wanted, strict=True)]
        for step, one in zip(steps, tries, strict=True):
            one.memory.add(0, Rows(step.start, step.hidden_TD))
            one.idle = step.writing and not one.wanted and len(one.memory.waiting[0]) < TOGETHER
        for depth in range(max(modules.count, *wanted)):
            guessing = [one for one in tries if len(one.draft) == depth < one.wanted]
            if depth < modules.count:
                busy = [one for one in tries if not one.idle and one.begin(depth, one in guessing)]
                for one, out_TD in zip(busy, modules(depth, [one.part for one in busy]), strict=True):
                    one.end(out_TD, depth + 1 if depth + 1 < modules.count else None)
            elif guessing:
                further = [one.further(depth - modules.count) for one in guessing]
                for one, out_1D in zip(guessing, modules(modules.count - 1, further), strict=True):
                    one.last_D = out_1D[0]
            if guessing:
                self._draw(guessing)
        return [one.draft for one in tries]

    def _draw(self, guessing: list[Try]) -> None:
        """Add to each draft what would be drawn if the modules' logits were the model's; not what would end the text."""
        logits_RV = self._runner.logits(torch.stack([one.last_D for one in guessing]))
        for one, drawn in zip(
            guessing, sample(logits_RV, [Guessed(one.text, [*one.draft]) for one in guessing]), strict=True
        ):
            if drawn.error is None and drawn.token not in one.text.stops:
                one.draft.append(drawn.token)


def make_speculator(settings: EngineSettings, runner: Runner, cache: PagedCache, context: int) -> Speculator | None:
    """What the settings ask for.

    Raises:
        UserError: a model without MTP modules is to guess by them.
    """
    if settings.speculate == "none":
        return None
    if settings.speculate == "lookup":
        return Speculator(settings, runner, None)
    if not runner.model.mtp:
        raise UserError("speculate=mtp: this model has no MTP module; use speculate=lookup or none")
    return Speculator(settings, runner, Modules(runner, cache, context))
