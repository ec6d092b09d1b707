"""How likely a model finds given continuations of given contexts: what multiple-choice questions and perplexities are scored by.

Only the continuation's positions go through the head, and continuations that differ in their last token alone share one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tinyseek.model.transformer import CausalLM

_MOST_TOKENS = 4096  # positions of a batch, padding included
_MOST_LOGITS = 1 << 25  # numbers held at a time: 128 MiB in float32


class Likelihood(NamedTuple):
    """The log-probability of a continuation, in nats, and whether each of its tokens is the likeliest at its place."""

    logprob: float
    greedy: bool


@dataclass
class _Row:
    """Tokens that go in, and the continuations that are scored at their end, by their place in what was asked."""

    ids: tuple[int, ...]
    asked: list[tuple[int, Sequence[int]]] = field(default_factory=list)

    @property
    def scored(self) -> int:
        """How many of its last positions are wanted."""
        return max(len(continuation) for _, continuation in self.asked)


@torch.no_grad()
def likelihoods(
    model: CausalLM,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Of each (context, continuation), neither of which is empty. What is too long is cut at its beginning.

    Args:
        max_length: positions that the model sees; a continuation has at most so many tokens.
        progress: told how many pairs are done with.
    Raises:
        ValueError: an empty context or continuation, or a continuation longer than max_length.
    """
    rows: dict[tuple[int, ...], _Row] = {}
    for place, (context, continuation) in enumerate(pairs):
        if not context or not 1 <= len(continuation) <= max_length:
            raise ValueError(f"pair {place}: {len(context)} tokens of context, {len(continuation)} to score")
        ids = tuple([*context, *continuation][-(max_length + 1) : -1])
        rows.setdefault(ids, _Row(ids)).asked.append((place, continuation))
    found: list[Likelihood] = [Likelihood(0.0, False)] * len(pairs)
    done = 0
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(list(rows.values())):
            for place, likelihood in _score(model, batch):
                found[place] = likelihood
                done += 1
            if progress:
                progress(done)
    finally:
        model.train(was_training)
    return found


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of about one length together."""
    rows.sort(key=lambda row: len(row.ids), reverse=True)
    while rows:
        count = max(1, _MOST_TOKENS // len(rows[0].ids))
        yield rows[:count]
        del rows[:count]


def _score(model: CausalLM, batch: list[_Row]) -> Iterator[tuple[int, Likelihood]]:
    """Padding stands behind, where a causal model cannot see it."""
    longest = max(len(row.ids) for row in batch)
    ids_BT = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in batch], device=model.device)
    hidden_BTD, _, _ = model.hidden(ids_BT)
    wanted = [hidden[len(row.ids) - row.scored : len(row.ids)] for hidden, row in zip(hidden_BTD, batch, strict=True)]
    logprobs = _told(model, torch.cat(wanted), batch)
    for row, (own_SC, best_S) in zip(batch, logprobs, strict=True):
        for column, (place, continuation) in enumerate(row.asked):
            count = len(continuation)
            greedy = best_S[row.scored - count :] == list(continuation)
            yield place, Likelihood(sum(own_SC[column][row.scored - count :]), greedy)


def _told(model: CausalLM, hidden_ND: Tensor, batch: list[_Row]) -> list[tuple[list[list[float]], list[int]]]:
    """For each row its continuations' log-probabilities [continuation, position] and the likeliest tokens [position]."""
    most = max(len(row.asked) for row in batch)
    targets = []
    for row in batch:
        lines = [[0] * (row.scored - len(tokens)) + list(tokens) for _, tokens in row.asked]
        targets += [[*column, *[0] * (most - len(column))] for column in zip(*lines, strict=True)]
    targets_NC = torch.tensor(targets, device=hidden_ND.device)
    size = max(1, _MOST_LOGITS // model.config.vocab_size)
    own, best = [], []
    for hidden, target in zip(hidden_ND.split(size), targets_NC.split(size), strict=True):
        logprobs_NV = model.lm_head(hidden).float().log_softmax(-1)
        own.append(logprobs_NV.gather(-1, target).double())
        best.append(logprobs_NV.argmax(-1))
    counts = [row.scored for row in batch]
    own_R, best_R = torch.cat(own).split(counts), torch.cat(best).split(counts)
    return [(part.T.tolist(), likeliest.tolist()) for part, likeliest in zip(own_R, best_R, strict=True)]
