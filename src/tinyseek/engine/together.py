"""Many texts from their first to their last token at once: what learning from a model's own answers asks of an engine.

Nobody comes or goes, no text is handed out before its end, so nothing has to be decided between two tokens: each step is one pass
of the compiled loops over the texts that still run, and one draw for all of them. A prompt's blocks are shared by its texts. The
tokens are those that an `Engine` draws, which takes half as long again for two hundred texts of a model of a million parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseek.engine import sequence
from tinyseek.engine.cache import PagedCache
from tinyseek.engine.compiled import is_compiled
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.runner import Array, CompiledForward, Runner, fill_up
from tinyseek.engine.sampler import draw, narrow
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM

__all__ = ["Together", "Written", "is_compiled"]

SIZE = 16  # positions a block
READ_AT_ONCE = 4096  # tokens of prompts in a pass
Numbers = NDArray[np.uint64]


@dataclass
class Written:
    """One text.

    Attributes:
        ids: its tokens, the one that ended it included.
        logps: their log-probabilities under the model itself, before the temperature.
        finished: it ended by a stop token, and was not cut.
    """

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass
class _Prompt:
    """As much of a sequence as a runner looks at."""

    tokens: list[int]
    blocks: list[int]
    draft: list[int] = field(default_factory=list)


class Together:
    """A model that `is_compiled`, with a cache for so many tokens. The weights may change between calls."""

    def __init__(self, model: CausalLM, tokens: int) -> None:
        self.context = model.config.max_position_embeddings
        self.blocks = -(-tokens // SIZE)
        self._cache = PagedCache(model.config, self.blocks, SIZE, torch.float32, model.device)
        self._runner = Runner(model, self._cache, self.context)
        assert isinstance(self._runner.forward, CompiledForward)
        self._loops = self._runner.forward.model

    def write(
        self, prompts: Sequence[Sequence[int]], each: int, params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Written]]:
        """`each` texts after every prompt.

        Args:
            params: how they are drawn, and by which `stop_ids` they end; its `n` and `seed` are not looked at.
            seeds: of each prompt; its texts are those that an engine writes with `n` texts and this seed.
        Raises:
            UserError: what is asked is not for here: penalties, constraints, stop strings; a prompt leaves no room.
            RuntimeError: the model's logits are not finite.
        """
        if not params.plain or params.stop:
            raise UserError("texts that are written together are drawn by temperature, top-k, top-p and min-p alone")
        if prompts and max(map(len, prompts)) >= self.context:
            raise UserError(f"a prompt has {max(map(len, prompts))} tokens, but the context is {self.context}")
        out: list[list[Written]] = [[] for _ in prompts]
        wave: list[tuple[int, int, int]] = []  # prompt, its first text, how many
        left = self.blocks
        for number, prompt in enumerate(prompts):
            shared, own = self._needs(len(prompt), params.max_tokens)
            first = 0
            while first < each:
                count = min(each - first, (left - shared) // own if own else each)
                if count < 1:
                    if not wave:
                        raise UserError(
                            f"a text of {len(prompt) + params.max_tokens} tokens does not fit into the cache"
                        )
                    self._write(wave, prompts, params, seeds, out)
                    wave, left = [], self.blocks
                    continue
                wave.append((number, first, count))
                left -= shared + count * own
                first += count
        if wave:
            self._write(wave, prompts, params, seeds, out)
        return out

    def _needs(self, length: int, most: int) -> tuple[int, int]:
        """Blocks that a prompt takes, and each of its texts besides."""
        end = min(length + most, self.context)
        return -(-length // SIZE), -(-end // SIZE) - length // SIZE

    def _write(
        self,
        wave: list[tuple[int, int, int]],
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        out: list[list[Written]],
    ) -> None:
        """The texts that have room together."""
        read, tables, taken = [], [], 0
        origin, copies_to, copies_from = [], [], []
        for number, _, count in wave:
            length = len(prompts[number])
            shared, own = self._needs(length, params.max_tokens)
            prompt = _Prompt(list(prompts[number]), [*range(taken, taken + shared)])
            read.append(prompt)
            taken += shared
            for _ in range(count):
                tables.append([*prompt.blocks[: length // SIZE], *range(taken, taken + own)])
                if length % SIZE:
                    copies_from.append(prompt.blocks[-1])
                    copies_to.append(taken)
                taken += own
            origin += [len(read) - 1] * count
        last_PD = self._read(read)
        if copies_to:  # what a prompt's last block holds of it
            inside = np.arange(SIZE)
            source, target = (
                torch.from_numpy((np.array(blocks)[:, None] * SIZE + inside).ravel())
                for blocks in (copies_from, copies_to)
            )
            for store in self._cache.stores:
                store[:, target] = store[:, source]
        first_R = np.concatenate([np.arange(first, first + count) for _, first, count in wave])
        seeds_R = np.array([seeds[number] for number, _, count in wave for _ in range(count)], dtype=np.uint64)
        lengths_R = np.array([len(read[place].tokens) for place in origin])
        written = self._draw_all(last_PD[torch.tensor(origin)], fill_up(tables), lengths_R, seeds_R, first_R, params)
        at = 0
        for number, _, count in wave:
            out[number] += written[at : at + count]
            at += count

    def _read(self, prompts: list[_Prompt]) -> Tensor:
        """Put the prompts' keys into the cache; the hidden state after each one's last token, [P, D]."""
        states: list[Tensor] = []
        start = 0
        while start < len(prompts):
            end, room = start, READ_AT_ONCE
            while end < len(prompts) and (end == start or len(prompts[end].tokens) <= room):
                room -= len(prompts[end].tokens)
                end += 1
            chunks = [
                sequence.Chunk(cast("sequence.Sequence", prompt), 0, len(prompt.tokens), 1)
                for prompt in prompts[start:end]
            ]
            states += [hidden_TD[-1] for hidden_TD in self._runner.run(chunks)]
            start = end
        return torch.stack(states)

    @torch.inference_mode()
    def _draw_all(
        self,
        hidden_RD: Tensor,
        tables_RB: Array,
        lengths_R: Array,
        seeds_R: Numbers,
        index_R: Array,
        params: SamplingParams,
    ) -> list[Written]:
        """Draw token after token until every text has ended."""
        rows = len(lengths_R)
        longest = int(np.minimum(lengths_R + params.max_tokens, self.context).max() - lengths_R.min())
        ids_RT, logps_RT = np.zeros((rows, longest), np.int64), np.zeros((rows, longest), np.float32)
        counts_R, finished_R = np.zeros(rows, np.int64), np.zeros(rows, bool)
        stops = np.array(sorted(params.stop_ids), dtype=np.int64)
        running = np.arange(rows)
        step = 0
        while len(running):
            logits_RV = self._runner.logits(hidden_RD)
            if not bool(logits_RV.amax(-1).isfinite().all()):
                raise RuntimeError(
                    "the model's logits are not finite: its weights are damaged, or its numbers overflowed"
                )
            if params.greedy:
                tokens_R = logits_RV.numpy().argmax(-1)
            else:
                numbers = uniforms(seeds_R[running], index_R[running], step)
                tokens_R = np.array(draw(narrow(logits_RV, [params] * len(running)), numbers.tolist()))
            chosen_R1 = torch.from_numpy(tokens_R)[:, None]
            logps_R = (logits_RV.gather(1, chosen_R1)[:, 0] - logits_RV.logsumexp(-1)).numpy()
            ids_RT[running, step], logps_RT[running, step] = tokens_R, logps_R
            step += 1
            counts_R[running] = step
            ended_R = np.isin(tokens_R, stops)
            finished_R[running[ended_R]] = True
            full_R = (lengths_R[running] + step >= self.context) | (step >= params.max_tokens)
            going = ~(ended_R | full_R)
            running, tokens_R = running[going], tokens_R[going]
            if len(running):
                positions_R = lengths_R[running] + step - 1
                tables = tables_RB[running]
                slots_R = tables[np.arange(len(running)), positions_R // SIZE] * SIZE + positions_R % SIZE
                at = (tokens_R, positions_R, slots_R, np.arange(len(running)), np.ascontiguousarray(tables))
                hidden_RD = self._loops.forward(*map(torch.from_numpy, at))
        return [
            Written(ids_RT[row, :count].tolist(), logps_RT[row, :count].tolist(), bool(finished_R[row]))
            for row, count in enumerate(counts_R)
        ]


def uniforms(seeds: Numbers, index: Array, position: int) -> NDArray[np.float64]:
    """`sampler.uniform` of many texts."""
    state = np.zeros(len(seeds), np.uint64)
    for part in (seeds, index.astype(np.uint64), np.uint64(position), np.uint64(0)):
        state = state + part + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    numbers: NDArray[np.float64] = (state >> np.uint64(16)).astype(np.float64) / float(1 << 48)
    return numbers
