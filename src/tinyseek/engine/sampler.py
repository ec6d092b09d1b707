"""From logits to the next tokens, and what is told about them.

    edit      penalties, bias, and what is forbidden: only rows that ask for it
    narrow    temperature, top-k, top-p, min-p: what may be drawn, as logits with -inf elsewhere
    draw      greedy, or by one number between 0 and 1 that follows from (seed, which text, which token)

That number depends on nothing else, so a request draws the same tokens alone, in any batch, and after a preemption.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import TokenLogprob
from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.grammar import Matcher

__all__ = ["Drawn", "Place", "Sampling", "SamplingParams", "narrow", "sample", "told", "uniform"]

NUCLEUS = 128  # likeliest tokens among which top-p is sought first
PART = 512  # tokens whose probabilities are summed at first
_WORD = (1 << 64) - 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A sequence's next token, or why there is none."""

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None


class Place(Protocol):
    """Where a token is drawn: after a text (`sequence.Sequence`), or after guessed tokens of it (`speculate.Guessed`)."""

    @property
    def params(self) -> SamplingParams:
        """The request's."""

    @property
    def sampling(self) -> Sampling:
        """The text's."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and output so far."""

    @property
    def prompt(self) -> int:
        """How many of them are the prompt."""

    @property
    def output(self) -> int:
        """How many follow it."""

    @property
    def stops(self) -> Mapping[int, str | int]:
        """Tokens that end the text."""

    @property
    def matcher(self) -> Matcher | None:
        """Its constraint, moved to this place."""


class Sampling:
    """What drawing one text's tokens needs to remember.

    Args:
        index: which of the request's texts.
    """

    def __init__(self, params: SamplingParams, index: int = 0) -> None:
        self.params, self.index = params, index
        self.plain = params.plain  # by the model's own logits
        self.simple = params.greedy and params.plain  # the likeliest token, and nothing else
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._counted: list[int] = []  # the tokens that the two below know
        self._seen_V: Tensor | None = None  # in prompt or output
        self._counts_V: Tensor | None = None  # how often in the output
        self._bias: tuple[Tensor, Tensor] | None = None

    def edit(self, logits_V: Tensor, tokens: list[int], prompt: int) -> None:
        """Penalties and bias, in place.

        Args:
            tokens: prompt and output.
            prompt: how many of them are the prompt.
        """
        params = self.params
        if params.penalised:
            seen_V, counts_V = self._count(tokens, prompt, logits_V)
            if params.repetition_penalty != 1:
                factor = params.repetition_penalty
                logits_V.copy_(
                    torch.where(seen_V, torch.where(logits_V > 0, logits_V / factor, logits_V * factor), logits_V)
                )
            if params.frequency_penalty:
                logits_V.sub_(counts_V, alpha=params.frequency_penalty)
            if params.presence_penalty:
                logits_V.sub_(counts_V.sign(), alpha=params.presence_penalty)
        if params.logit_bias:
            if self._bias is None:
                ids = torch.tensor(list(params.logit_bias), device=logits_V.device)
                self._bias = ids, torch.tensor(list(params.logit_bias.values()), device=logits_V.device).float()
            logits_V.index_add_(0, *self._bias)

    def _count(self, tokens: list[int], prompt: int, like_V: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens there were and how often in the output, brought up to date; anew if tokens were taken back."""
        known = len(self._counted)
        if self._seen_V is None or self._counts_V is None or tokens[:known] != self._counted:
            self._seen_V = torch.zeros_like(like_V, dtype=torch.bool)
            self._counts_V = torch.zeros_like(like_V)
            known = 0
        new = torch.tensor(tokens[known:], dtype=torch.long, device=like_V.device)
        self._seen_V[new] = True
        written = new[max(prompt - known, 0) :]
        self._counts_V.index_add_(0, written, torch.ones_like(written, dtype=self._counts_V.dtype))
        self._counted = list(tokens)
        return self._seen_V, self._counts_V


def sample(logits_RV: Tensor, sequences: Many[Place]) -> list[Drawn]:
    """The next token at each place.

    Args:
        logits_RV: the model's own, float32; they are not changed.
    """
    errors: dict[int, str] = {}
    if all(sequence.sampling.simple for sequence in sequences):
        tokens = _likeliest(logits_RV)
    else:
        edited_RV = _edited(logits_RV, sequences, errors)
        tokens = _likeliest(edited_RV)
        drawing = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy and tokens[row] >= 0]
        if drawing:
            chosen = [sequences[row] for row in drawing]
            if len(drawing) < len(sequences):
                edited_RV = edited_RV[torch.tensor(drawing, device=logits_RV.device)]
            narrowed_RV = narrow(edited_RV, [sequence.params for sequence in chosen])
            numbers = uniforms([(s.sampling.seed, s.sampling.index, s.output) for s in chosen])
            for row, token in zip(drawing, draw(narrowed_RV, numbers), strict=True):
                tokens[row] = token
    for row, token in enumerate(tokens):
        if token < 0:
            errors.setdefault(
                row, "the model's logits are not finite: its weights are damaged, or its numbers overflowed"
            )
    wishes = [None if row in errors else sequence.params.logprobs for row, sequence in enumerate(sequences)]
    logprobs = told(logits_RV, tokens, wishes)
    return [Drawn(token, logprobs[row], errors.get(row)) for row, token in enumerate(tokens)]


def _likeliest(logits_RV: Tensor) -> list[int]:
    """The likeliest token of each row; -1 where there is none (NaN, or all forbidden)."""
    if (
        logits_RV.device.type == "cpu"
    ):  # NumPy's search is vectorised: 14 us for 32 rows of 4,096, where torch takes 210
        array = logits_RV.numpy()
        found = array.argmax(-1)
        finite = np.isfinite(np.take_along_axis(array, found[:, None], -1))[:, 0]
        tokens: list[int] = np.where(finite, found, -1).tolist()
    else:
        values_R, tokens_R = logits_RV.max(dim=-1)
        tokens = torch.where(values_R.isfinite(), tokens_R, -1).tolist()
    return tokens


def _edited(logits_RV: Tensor, sequences: Many[Place], errors: dict[int, str]) -> Tensor:
    """With every row's penalties, bias and forbidden tokens: a copy, where there are any. `errors` is told by row what went
    wrong."""
    edits = [(row, sequence) for row, sequence in enumerate(sequences) if not sequence.sampling.plain]
    logits_RV = logits_RV.clone() if edits else logits_RV
    for row, sequence in edits:
        params, logits_V = sequence.params, logits_RV[row]
        sequence.sampling.edit(logits_V, sequence.tokens, sequence.prompt)
        if sequence.matcher is not None:
            try:
                _forbid(logits_V, sequence.matcher)
            except Exception as error:
                _log.exception("a constraint failed")
                errors[row] = str(error) if isinstance(error, UserError) else "the constraint failed; the log says why"
                logits_V.fill_(-torch.inf)
        if sequence.output < params.min_tokens and sequence.stops:
            longer_V = logits_V.index_fill(0, torch.tensor(list(sequence.stops), device=logits_V.device), -torch.inf)
            if longer_V.max() > -torch.inf:  # not where a constraint lets the text but end
                logits_V.copy_(longer_V)
    return logits_RV


def _forbid(logits_V: Tensor, matcher: Matcher) -> None:
    """Leave only the tokens that a constraint allows, in place."""
    allowed_V = torch.from_numpy(matcher.allowed()).to(logits_V.device)
    logits_V[len(allowed_V) :] = -torch.inf  # a model's vocabulary may be padded beyond the tokenizer's
    logits_V[: len(allowed_V)].masked_fill_(~allowed_V[: len(logits_V)], -torch.inf)


def narrow(logits_RV: Tensor, params: Many[SamplingParams]) -> Tensor:
    """Temperature, top-k, top-p and min-p of each row: logits of what may be drawn, -inf elsewhere. No row is greedy.

    Tokens as likely as the last one that is kept are kept too. The order is transformers'. Sources: top-k, arXiv 1805.04833; top-p,
    arXiv 1904.09751; min-p, arXiv 2407.01082.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits_RV.device, dtype=logits_RV.dtype)[:, None]

    if any(p.temperature != 1 for p in params):
        logits_RV = logits_RV / column([p.temperature for p in params])
    vocabulary = logits_RV.shape[-1]
    ks, shares = [min(p.top_k or vocabulary, vocabulary) for p in params], [p.top_p for p in params]
    if min(ks) == vocabulary and min(shares) == 1 and not any(p.min_p > 0 for p in params):
        return logits_RV
    least_R1 = torch.full_like(logits_RV[:, :1], -torch.inf)
    if min(ks) < vocabulary or min(shares) < 1:
        least_R1 = _last_kept(logits_RV, ks, column(shares))
    if any(p.min_p > 0 for p in params):
        floor_R1 = logits_RV.amax(-1, keepdim=True) + column([p.min_p for p in params]).log()
        least_R1 = torch.maximum(least_R1, floor_R1)
    return torch.where(logits_RV < least_R1, -torch.inf, logits_RV)


def _last_kept(logits_RV: Tensor, ks: list[int], share_R1: Tensor) -> Tensor:
    """The logit of the last token that top-k and top-p keep, [R, 1]; -inf in rows that want neither.

    Only the likeliest few are ranked, and more if they do not hold enough: ranking a whole vocabulary takes ten times as long.
    """
    vocabulary = logits_RV.shape[-1]
    k_R1 = torch.tensor(ks, device=logits_RV.device)[:, None]
    limited_R1 = k_R1 < vocabulary
    open_R1 = ~limited_R1 & (share_R1 < 1)  # how many tokens these keep is not known beforehand
    seeks = bool(open_R1.any())
    width = max([k for k in ks if k < vocabulary], default=1)
    width = min(max(width, NUCLEUS), vocabulary) if seeks else width
    whole_R1 = logits_RV.logsumexp(-1, keepdim=True) if seeks else share_R1
    while True:
        ranked = logits_RV.topk(width, dim=-1).values
        within = torch.arange(width, device=logits_RV.device) < k_R1
        top = ranked.masked_fill(~within, -torch.inf)
        probs = (top - torch.where(limited_R1, top.logsumexp(-1, keepdim=True), whole_R1)).exp()
        before = probs.cumsum(dim=-1) - probs  # what the likelier ones hold: the first is always kept
        kept = within & ((before < share_R1) | (share_R1 == 1))
        if width == vocabulary or not bool((kept[:, -1:] & open_R1).any()):
            break
        width = min(8 * width, vocabulary)
    least_R1 = ranked.gather(1, kept.sum(-1, keepdim=True) - 1)
    return torch.where(limited_R1 | open_R1, least_R1, -torch.inf)


def draw(logits_RV: Tensor, numbers: Many[float]) -> list[int]:
    """Each row's token at which the running sum of probabilities passes the row's number in [0, 1).

    Sums are taken of parts first, then within the one part where the number falls: sums over 100,000 tokens want float64, in which
    going through all of them took four times as long.
    """
    wide = torch.float32 if logits_RV.device.type == "mps" else torch.float64
    weights_RV = F.pad(logits_RV.softmax(dim=-1), (0, -logits_RV.shape[-1] % PART))
    weights_RPQ = weights_RV.unflatten(-1, (-1, PART))
    numbers_R1 = torch.tensor(numbers, dtype=wide, device=logits_RV.device)[:, None]
    sums_RP = weights_RPQ.sum(-1, dtype=wide).cumsum(-1)
    targets_R1 = numbers_R1 * sums_RP[:, -1:]
    part_R1 = torch.searchsorted(sums_RP, targets_R1, right=True).clamp(max=sums_RP.shape[-1] - 1)
    inner_RQ = weights_RPQ[torch.arange(len(numbers), device=logits_RV.device), part_R1[:, 0]].to(wide).cumsum(-1)
    before_R1 = sums_RP.gather(1, part_R1) - inner_RQ[:, -1:]
    rest_R1 = torch.minimum(
        targets_R1 - before_R1, inner_RQ[:, -1:] * (1 - 2**-20)
    )  # never beyond the part's last weight
    tokens: list[int] = (part_R1 * PART + torch.searchsorted(inner_RQ, rest_R1, right=True)).squeeze(1).tolist()
    return tokens


def uniform(seed: int, index: int, position: int, purpose: int = 0) -> float:
    """A number in [0, 1) that follows from the four alone, by splitmix64 (Steele, Lea and Flood, OOPSLA 2014).

    Args:
        purpose: tells apart several numbers for one token.
    """
    state = 0
    for part in (seed, index, position, purpose):
        state = (state + part + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return (state >> 16) / (1 << 48)


def uniforms(parts: Many[tuple[int, int, int]]) -> list[float]:
    """`uniform` of many at once: a whole batch's numbers take as long as four of them one by one."""
    state = np.zeros(len(parts), np.uint64)
    for part in (*np.array(parts, np.uint64).T, np.zeros(len(parts), np.uint64)):
        state = state + part + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, which is meant
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    numbers: list[float] = ((state >> np.uint64(16)) / float(1 << 48)).tolist()
    return numbers


def told(logits_RV: Tensor, tokens: Many[int], counts: Many[int | None]) -> list[TokenLogprob | None]:
    """Each row's token with its log-probability and those of the likeliest, of the model's own distribution.

    Args:
        logits_RV: as they came out of the model, float32.
        counts: how many of the likeliest; none for rows of which nothing is told.
    """
    rows = [row for row, count in enumerate(counts) if count is not None]
    out: list[TokenLogprob | None] = [None] * len(tokens)
    if not rows:
        return out
    chosen = torch.tensor(rows, device=logits_RV.device)
    logprobs_RV = (logits_RV if len(rows) == len(tokens) else logits_RV[chosen]).log_softmax(dim=-1)
    own_R1 = logprobs_RV.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits_RV.device))
    most = min(max(counts[row] or 0 for row in rows), logits_RV.shape[-1])
    values, ids = logprobs_RV.topk(most, dim=-1)
    for row, own, top, of in zip(rows, own_R1.tolist(), values.tolist(), ids.tolist(), strict=True):
        count = counts[row] or 0
        out[row] = TokenLogprob(tokens[row], own[0], tuple(zip(of[:count], top[:count], strict=True)))
    return out
