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
MOST_TEXTS = 8  # texts written at a time up to which guessing pays: with more, a step's time grows with its tokens, right or wrong
MISSES = 4  # steps in a row without a right guess after which a text rests from guessing
REST = 32  # steps that it rests; one more miss after them and it rests again


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
    """How many tokens to guess in one text: as many as were right last time, one more if all were, none for a while after
    repeated misses."""

    def __init__(self, most: int) -> None:
        self._most = self._length = most
        self._misses = self._rest = 0

    def next(self) -> int:
        """How many in this step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._length

    def learn(self, guessed: int, right: int) -> None:
        """Note how a step's guesses did."""
        if not guessed:
            return
        self._length = min(self._length + 1, self._most) if right == guessed else max(right, 1)
        self._misses = 0 if right else self._misses + 1
        if self._misses >= MISSES:
            self._misses, self._rest = MISSES - 1, REST


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
        waiting: by depth, the last positions' rows, for which the module wants tokens that are not written yet.
    """

    pace: Pace
    lookup: Lookup = field(default_factory=Lookup)
    waiting: dict[int, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a step has done with one text: the hidden states [T, D] of its tokens from `start` on, and whether its next token was
    drawn and more are wanted."""

    text: Sequence
    start: int
    hidden_TD: Tensor
    writing: bool


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
        """Drafts by the modules, each depth on top of the last; their keys are complete for all that is written afterwards.

        Where more tokens are wanted than there are modules, the last one goes on from its own hidden states, a position further
        for each token.
        """
        drafts: list[list[int]] = [[] for _ in steps]
        written = [Rows(step.start, step.hidden_TD) for step in steps]  # that follow from written tokens alone
        ahead = [step.hidden_TD[:0] for step in steps]  # and after them from guessed ones too
        last: dict[int, Tensor] = {}  # of each text that goes on guessing the hidden state [D] to go on from
        for depth in range(max(modules.count, *wanted)):
            guessing = [place for place, count in enumerate(wanted) if len(drafts[place]) == depth < count]
            if depth < modules.count:
                parts = {}
                for place, step in enumerate(steps):
                    rows, certain = self._joined(step.text, depth, written[place])
                    hidden_TD = rows.hidden_TD[:certain]
                    if place in guessing:
                        hidden_TD = torch.cat((rows.hidden_TD, ahead[place]))
                    parts[place] = Part(
                        step.text.blocks,
                        rows.start,
                        hidden_TD,
                        _following(step.text, rows.start + depth + 1, hidden_TD, drafts[place]),
                    )
                    written[place] = Rows(rows.start, rows.hidden_TD[:certain])
                busy = [place for place, part in parts.items() if part.count]
                for place, out_TD in zip(busy, modules(depth, [parts[place] for place in busy]), strict=True):
                    certain = len(written[place])
                    written[place], ahead[place] = Rows(parts[place].start, out_TD[:certain]), out_TD[certain:]
                    last[place] = out_TD[-1]
            elif guessing:
                further = [
                    Part(
                        step.text.blocks,
                        len(step.text.tokens) - 1 + depth - modules.count,
                        last[place][None],
                        drafts[place][-1:],
                    )
                    for place in guessing
                    for step in [steps[place]]
                ]
                outs = modules(modules.count - 1, further)
                last |= {place: out_1D[0] for place, out_1D in zip(guessing, outs, strict=True)}
            if guessing:
                self._draw(
                    [steps[place].text for place in guessing],
                    [drafts[place] for place in guessing],
                    [last[place] for place in guessing],
                )
        return drafts

    def _joined(self, text: Sequence, depth: int, new: Rows) -> tuple[Rows, int]:
        """What waited for its following tokens and what is new, and for how many of these rows they are there; the others wait."""
        waiting = self.memory(text).waiting
        before = waiting.get(depth)
        if before is not None and before.start + len(before) == new.start:
            new = Rows(before.start, torch.cat((before.hidden_TD, new.hidden_TD)))
        certain = min(max(len(text.tokens) - depth - 1 - new.start, 0), len(new))
        waiting[depth] = Rows(new.start + certain, new.hidden_TD[certain:].clone())
        return new, certain

    def _draw(self, texts: list[Sequence], drafts: list[list[int]], hidden: list[Tensor]) -> None:
        """Add to each draft what would be drawn if the modules' logits were the model's; not what would end the text."""
        logits_RV = self._runner.logits(torch.stack(hidden))
        drawn = sample(logits_RV, [Guessed(text, [*draft]) for text, draft in zip(texts, drafts, strict=True)])
        for text, draft, found in zip(texts, drafts, drawn, strict=True):
            if found.error is None and found.token not in text.stops:
                draft.append(found.token)


def _following(text: Sequence, start: int, hidden_TD: Tensor, draft: list[int]) -> list[int]:
    """As many of the written and the guessed tokens, from a place on, as there are hidden states."""
    tokens = text.tokens[start : start + len(hidden_TD)]
    return tokens + draft[: len(hidden_TD) - len(tokens)]


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
