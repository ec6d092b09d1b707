"""A step in which some texts have adapters: the same chunks, run by the loops that add each row's own thin products.

`Runner.run` comes here only when there is such a text; all others go where they always went.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyseek.engine.adapters import Adapter, Adapters
from tinyseek.engine.quantize import threads
from tinyseek.engine.runner import CompiledForward, Forward, TorchForward, make_batch
from tinyseek.engine.sequence import Chunk

ATTENTION = {
    "latent": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "direct": ("q_a_proj", "q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),  # latent, with a query of one matrix
    "grouped": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
DENSE = ("gate_proj", "up_proj", "down_proj")
MIXTURE = ("gate", "experts.gate_up_proj", "experts.down_proj", *(f"shared_experts.{part}" for part in DENSE))


def adapter_of(chunk: Chunk) -> Adapter | None:
    """The adapter of a chunk's text."""
    return chunk.sequence.request.adapter


class AdaptedForward:
    """Runs chunks of which some have an adapter: few tokens of all of them by the loops at once, longer ones adapter by adapter."""

    def __init__(self, forward: Forward, adapters: Adapters) -> None:
        self._adapters = adapters
        self._compiled = forward if isinstance(forward, CompiledForward) else None
        plain = forward.plain if isinstance(forward, CompiledForward) else forward
        assert isinstance(plain, TorchForward)
        self._plain = plain
        self._loops = AdaptedModel(forward, adapters) if isinstance(forward, CompiledForward) else None

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `runner.Forward`."""
        most = self._compiled.few if self._compiled else 0
        few = [row for row, chunk in enumerate(chunks) if chunk.count <= most]
        few.sort(key=lambda row: -1 if (adapter := adapter_of(chunks[row])) is None else adapter.number)
        hidden: dict[int, Tensor] = {}
        if few and self._compiled and self._loops:
            some = [chunks[row] for row in few]
            out = self._loops.forward(some) if any(map(adapter_of, some)) else self._compiled(some)
            hidden |= dict(zip(few, out, strict=True))
        by_adapter: dict[Adapter | None, list[int]] = {}
        for row, chunk in enumerate(chunks):
            if chunk.count > most:
                by_adapter.setdefault(adapter_of(chunk), []).append(row)
        for adapter, rows in by_adapter.items():
            with self._adapters.worn(adapter):
                hidden |= dict(zip(rows, self._plain([chunks[row] for row in rows]), strict=True))
        return [hidden[row] for row in range(len(chunks))]

    def warm(self) -> None:
        """Run a token of an adapter through, so that the loops are compiled before the first request."""
        if self._loops:
            self._loops.warm()


class AdaptedModel:
    """`CompiledModel` with its weights, and adapters beside them."""

    def __init__(self, forward: CompiledForward, adapters: Adapters) -> None:
        from tinyseek.engine import adapted_loops  # numba is an extra

        self._loops: Any = adapted_loops
        self._compiled, self._size, self._adapters = forward.model, forward.size, adapters
        self._lows = [self._lows_of(first, stores[0].shape[0]) for first, _, _, stores in self._compiled._runs]

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
        """See `runner.Forward`. Chunks of one adapter are neighbours, and one at least has an adapter."""
        batch = make_batch(chunks, self._size)
        number_N = np.full(len(batch.tokens_N), -1, dtype=np.int64)
        groups: list[list[int]] = []
        at = 0
        for chunk in chunks:
            adapter = adapter_of(chunk)
            if adapter is not None:
                number_N[at : at + chunk.count] = adapter.number
                if groups and groups[-1][0] == adapter.number:
                    groups[-1][2] = at + chunk.count
                else:
                    groups.append([adapter.number, at, at + chunk.count])
            at += chunk.count
        where = (batch.positions_N, batch.slots_N, batch.row_of_N, batch.tables_RB)
        out_ND = self._run(batch.tokens_N, where, (np.array(groups, dtype=np.int64), number_N))
        parts: Sequence[Tensor] = out_ND.split([chunk.count for chunk in chunks])
        return parts

    def warm(self) -> None:
        """See `AdaptedForward.warm`. Writes to the cache's first slot."""
        zero_1 = np.zeros(1, dtype=np.int64)
        with torch.inference_mode():
            self._run(zero_1, (zero_1, zero_1, zero_1, zero_1[None]), (np.array([[0, 0, 1]]), zero_1))

    def _run(self, tokens_N: Any, where: tuple[Any, ...], groups: tuple[Any, Any]) -> Tensor:
        compiled, config = self._compiled, self._compiled.model.config
        count = threads()
        x_ND = compiled.model.model.embed_tokens(torch.from_numpy(tokens_N)).float()
        for (first, attention, mlp, stores), lows in zip(compiled._runs, self._lows, strict=True):
            if (
                first < config.num_hidden_layers
            ):  # what comes after are the modules that guess ahead, which adapters leave alone
                self._loops.run_layers(
                    count, x_ND.numpy(), config.norm_eps, attention, mlp, compiled._shared, stores, where, groups, *lows
                )
        return compiled._normed(x_ND, compiled.model.model.norm)

    def _lows_of(self, first: int, count: int) -> tuple[Any, Any]:
        """What the loops of a run of layers want to know of the adapters: attention's changes, the MLP's."""
        config, layers = self._compiled.model.config, slice(first, first + count)
        kind = "grouped" if not config.mla else "direct" if config.q_lora_rank is None else "latent"
        mlp = MIXTURE if config.is_sparse(first) else DENSE
        return (
            tuple(self._low(f"self_attn.{name}", layers) for name in ATTENTION[kind]),
            tuple(self._low(f"mlp.{name}", layers) for name in mlp),
        )

    def _low(self, kind: str, layers: slice) -> tuple[Any, Any, Any]:
        stack = self._adapters.stacks.get(kind)
        if stack is None:
            nothing, none = (
                np.zeros((0, 0), np.float32),
                np.zeros((layers.stop - layers.start, len(self._adapters.all) + 1)),
            )
            return nothing, nothing, none.astype(np.int64)
        return stack.a_XQ.numpy(), stack.b_XP.numpy(), stack.starts_LS[layers].numpy()
