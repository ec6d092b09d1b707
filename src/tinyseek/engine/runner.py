"""Runner: one forward pass over whatever the scheduler chose, tokens of many texts at many positions.

The compiled path takes the whole ragged batch at once. The torch path runs the model itself through a view of the cache: texts with
equally many new tokens together, padded to the longest of them, and prompts one after the other, short ones several in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tinyseek.engine.cache import PackedView, PagedCache, View
from tinyseek.engine.sequence import Chunk
from tinyseek.model.transformer import CausalLM

if TYPE_CHECKING:
    from tinyseek.engine.adapted import AdaptedForward
    from tinyseek.engine.adapters import Adapters

Array = np.ndarray[Any, np.dtype[np.int64]]

FEW = 32  # tokens of a chunk up to which the compiled loops run it
SHORT = 256  # texts of up to so many tokens are padded to one length; above, to less than twice their own
PACKED = 512  # positions of all prompts that share a row: ten prompts of 50 tokens took half the time of one by one
MOST_NEW = 32  # new tokens of a running text, its draft included


@dataclass(frozen=True)
class Batch:
    """A ragged batch: N tokens of R rows, one row a chunk, row after row and by rising positions in each.

    Attributes:
        tokens_N: ids.
        positions_N: where in its text each token stands.
        slots_N: where in the cache its keys go.
        row_of_N: which row it belongs to.
        tables_RB: the blocks of each row, filled up with 0.
        lengths_R: how many positions of each row are in the cache once this batch is.
    """

    tokens_N: Array
    positions_N: Array
    slots_N: Array
    row_of_N: Array
    tables_RB: Array
    lengths_R: Array


def make_batch(chunks: Sequence[Chunk], block_size: int) -> Batch:
    """The chunks as arrays."""
    counts, starts = [chunk.count for chunk in chunks], [chunk.start for chunk in chunks]
    where = places([chunk.sequence.blocks for chunk in chunks], starts, counts, block_size)
    tokens_N = np.array([token for chunk in chunks for token in chunk.tokens])
    return Batch(tokens_N, *where, np.array(starts) + np.array(counts))


def places(
    blocks: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int], block_size: int
) -> tuple[Array, Array, Array, Array]:
    """Positions, slots and rows of each row's `counts` tokens from `starts` on, and the rows' blocks; see `Batch`."""
    begin_R, count_R, tables_RB = np.array(starts), np.array(counts), fill_up(blocks)
    row_of_N = np.repeat(np.arange(len(count_R)), count_R)
    before_R = np.cumsum(count_R) - count_R
    positions_N = np.arange(count_R.sum()) - before_R[row_of_N] + begin_R[row_of_N]
    slots_N = tables_RB[row_of_N, positions_N // block_size] * block_size + positions_N % block_size
    return positions_N, slots_N, row_of_N, tables_RB


def fill_up(blocks: Sequence[Sequence[int]]) -> Array:
    """Rows of differently many blocks, filled up with 0."""
    tables_RB = np.zeros((len(blocks), max(map(len, blocks))), dtype=np.int64)
    for row, numbers in enumerate(blocks):
        tables_RB[row, : len(numbers)] = numbers
    return tables_RB


class Forward(Protocol):
    """One way to run chunks."""

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Put the chunks' keys into the cache; returns each one's hidden states after the last norm, [its tokens, D]."""
        ...


class Runner:
    """A model over a paged cache; with adapters, for texts of each (adapted.py)."""

    def __init__(self, model: CausalLM, cache: PagedCache, context: int, adapters: Adapters | None = None) -> None:
        self.model = model
        self.forward = forward_for(model, cache, context)
        self._adapted: AdaptedForward | None = None
        if adapters is not None:
            from tinyseek.engine.adapted import AdaptedForward

            self._adapted = AdaptedForward(self.forward, adapters)

    def warm(self) -> None:
        """Run a token through, so that the loops are compiled before the first request. Writes to the cache's first slot."""
        if isinstance(self.forward, CompiledForward):
            zero_1 = torch.zeros(1, dtype=torch.int64)
            self.logits(self.forward.model.forward(zero_1, zero_1, zero_1, zero_1, zero_1[None]))
        if self._adapted is not None:
            self._adapted.warm()

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Put the chunks' keys into the cache; returns each one's hidden states after the last norm, [its tokens, D]."""
        if self._adapted is not None and any(chunk.sequence.request.adapter for chunk in chunks):
            return self._adapted(chunks)
        return self.forward(chunks)

    @torch.inference_mode()
    def logits(self, hidden_MD: Tensor) -> Tensor:
        """float32 [M, V]."""
        if isinstance(self.forward, CompiledForward):
            return self.forward.model.logits(hidden_MD)
        logits_MV: Tensor = self.model.lm_head(hidden_MD).float()
        return logits_MV


def forward_for(model: CausalLM, cache: PagedCache, context: int) -> Forward:
    """How chunks are run: the one place where it is decided."""
    from tinyseek.engine.compiled import is_compiled

    plain = TorchForward(model, cache)
    return CompiledForward(model, cache, context, plain) if is_compiled(model) else plain


class CompiledForward:
    """Compiled loops for all chunks of a few tokens at once; the model itself for longer ones, since its products are faster."""

    def __init__(self, model: CausalLM, cache: PagedCache, context: int, plain: TorchForward) -> None:
        from tinyseek.engine.compiled import CompiledModel

        self.model = CompiledModel(model, cache.stores, cache.block_size, context)
        self.size, self.plain, self.few = cache.block_size, plain, FEW

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `Forward`."""
        few = [row for row, chunk in enumerate(chunks) if chunk.count <= self.few]
        many = [row for row, chunk in enumerate(chunks) if chunk.count > self.few]
        hidden: dict[int, Tensor] = {}
        if few:
            batch = make_batch([chunks[row] for row in few], self.size)
            where = (batch.positions_N, batch.slots_N, batch.row_of_N, batch.tables_RB)
            out_ND = self.model.forward(*map(torch.from_numpy, (batch.tokens_N, *where)))
            hidden |= dict(zip(few, out_ND.split([chunks[row].count for row in few]), strict=True))
        if many:
            hidden |= dict(zip(many, self.plain([chunks[row] for row in many]), strict=True))
        return [hidden[row] for row in range(len(chunks))]


class TorchForward:
    """The model itself, in as few calls as it can take the chunks in."""

    def __init__(self, model: CausalLM, cache: PagedCache) -> None:
        self.model, self.cache = model, cache

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `Forward`."""
        hidden: dict[int, Tensor] = {}
        for rows in alike(chunks):
            hidden |= dict(zip(rows, self._hidden([chunks[row] for row in rows]), strict=True))
        return [hidden[row] for row in range(len(chunks))]

    def _hidden(self, chunks: list[Chunk]) -> Sequence[Tensor]:
        """Chunks that go together: of one length as the rows of a batch, else one after the other in one row."""
        device = self.cache.device
        starts, counts = [chunk.start for chunk in chunks], [chunk.count for chunk in chunks]
        if len(set(counts)) == 1:
            view = View(
                self.cache,
                torch.from_numpy(fill_up([chunk.sequence.blocks for chunk in chunks])).to(device),
                starts,
                counts[0],
            )
            ids_RT = torch.tensor([chunk.tokens for chunk in chunks], device=device)
            return self.model.hidden(ids_RT, cache=view)[0].unbind()
        packed = PackedView(self.cache, [chunk.sequence.blocks for chunk in chunks], starts, counts)
        ids_1T = torch.tensor([[token for chunk in chunks for token in chunk.tokens]], device=device)
        hidden_1TD, _, _ = self.model.hidden(ids_1T, cache=packed)
        parts: tuple[Tensor, ...] = hidden_1TD[0].split(counts)
        return parts


def alike(chunks: Sequence[Chunk]) -> list[list[int]]:
    """Rows that are run together: running texts of about one length, with equally many new tokens; and prompts as long as all
    their positions are no more than PACKED."""
    texts: dict[tuple[int, int], list[int]] = {}
    prompts: list[list[int]] = []
    room = 0
    for row in sorted(range(len(chunks)), key=lambda row: chunks[row].start + chunks[row].count):
        chunk = chunks[row]
        length = chunk.start + chunk.count
        if chunk.wanted == chunk.count <= MOST_NEW:
            texts.setdefault((chunk.count, max(length, SHORT).bit_length()), []).append(row)
        elif prompts and length <= room:
            prompts[-1].append(row)
            room -= length
        else:
            prompts.append([row])
            room = PACKED - length
    return [*texts.values(), *prompts]
