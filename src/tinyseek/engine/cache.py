"""The key/value cache in pages: for ordinary attention keys and values, for latent attention the latent and the rotary key alone.

A layer has two long tensors of slots, a slot a token; the layers' together are one (`stores`). A block is a run of `block_size`
slots; which text holds which block is the pool's business (blocks.py), so a text's positions lie wherever there was room, and two
texts that begin alike can read the same slots. A `View` shows some texts' blocks to the model as if each lay in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from tinyseek.model.attention import causal_mask
from tinyseek.model.config import ModelConfig

MOST_CPU_BYTES = 2 << 30


class PagedCache:
    """Slots for `blocks * block_size` tokens.

    MLA: [slots, C] and [slots, R]; GQA: [slots, G, K] twice. Everything that a layer keeps of a token is in its slot.

    Args:
        layers: if none, one for each of the model's; a speculating engine adds one for each MTP module.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        layers: int | None = None,
    ) -> None:
        self.blocks, self.block_size = blocks, block_size
        self.device = torch.device(device)
        shapes = slot_shapes(config)
        count = config.num_hidden_layers if layers is None else layers
        first, second = (_zeros((count, blocks * block_size, *shape), dtype, self.device) for shape in shapes)
        self.stores = (first, second)
        self.layers = [list(pair) for pair in zip(first, second, strict=True)]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token takes over all layers."""
        return sum(store.nbytes for store in self.stores) // (self.blocks * self.block_size)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype, layers: int) -> int:
    """The same before there is a cache: `kv_lora_rank + qk_rope_head_dim` numbers a layer with MLA, `2 * kv_heads * K` without."""
    return sum(math.prod(shape) for shape in slot_shapes(config)) * dtype.itemsize * layers


def slot_shapes(config: ModelConfig) -> list[tuple[int, ...]]:
    """The shapes of what a layer keeps of a token."""
    if config.kv_lora_rank is not None:
        return [(config.kv_lora_rank,), (config.qk_rope_head_dim,)]
    return [(config.kv_heads, config.qk_dim)] * 2


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the memory is only taken when it is written to (a gigabyte at once took four seconds)."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


def default_tokens(config: ModelConfig, bytes_per_token: int, device: torch.device, max_sequences: int) -> int:
    """How many tokens the cache holds where nobody said.

    What fits into a quarter of a CPU's free memory, 2 GB at most, or 70 % of a GPU's; no more than all texts at full length need,
    and the model's context at least.
    """
    if device.type == "cuda":
        free = int(0.7 * torch.cuda.mem_get_info(device)[0])
    else:
        free = min(psutil.virtual_memory().available // 4, MOST_CPU_BYTES)
    context = config.max_position_embeddings
    return max(context, min(free // bytes_per_token, max_sequences * context))


class View:
    """Some texts' blocks as the model's cache, for one forward pass of `new` tokens of each.

    The texts may have different lengths: what lies beyond a text's end is masked.

    Args:
        tables_RB: each row's blocks from its beginning on, int64; rows of fewer blocks are filled up with any.
        starts: how many positions of each row are cached, after which the new ones come.
    """

    def __init__(self, cache: PagedCache, tables_RB: Tensor, starts: Sequence[int], new: int) -> None:
        self._cache = cache
        self._from, self._even = max(starts), min(starts) == max(starts)
        positions = torch.arange(self._from + new, device=cache.device)
        self._slots_RS = tables_RB[:, positions // cache.block_size] * cache.block_size + positions % cache.block_size
        starts_R = torch.tensor(starts, device=cache.device)
        self._positions_RT = starts_R[:, None] + positions[:new]
        self._new_RT = self._slots_RS.gather(1, self._positions_RT)

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Write each of `new` [R, T, ...] into its slots; returns all that the rows hold, [R, S, ...]."""
        stores = self._cache.layers[layer]
        for store, tensor in zip(stores, new, strict=True):
            store[self._new_RT] = tensor
        return tuple(store[self._slots_RS] for store in stores)

    def positions(self, new: int) -> Tensor:
        """Positions of the new tokens, [R, T]."""
        assert new == self._positions_RT.shape[1]
        return self._positions_RT

    def mask(self, new: int, window: int | None = None) -> Tensor | None:
        """Where the new tokens may look, bool [R or 1, 1, T, S]; none where causality alone decides."""
        end = self._from + new
        if self._even and (window is None or end <= window) and (new == 1 or self._from == 0):
            return None
        if self._even:
            return causal_mask(new, end, self._cache.device, window)
        key_S = torch.arange(end, device=self._cache.device)
        query_RT1 = self._positions_RT[:, :, None]
        seen = key_S <= query_RT1
        if window is not None:
            seen &= key_S > query_RT1 - window
        return seen[:, None]


class PackedView:
    """Several texts one after the other in a single row, for one forward pass of differently many new tokens of each.

    Each looks at its own positions alone. It pays for short texts, whose matrix products become one.

    Args:
        tables: each text's blocks from its beginning on.
        starts: how many of its positions are cached; counts: how many new ones come.
    """

    def __init__(
        self, cache: PagedCache, tables: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        self._cache = cache
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        of_S = np.repeat(np.arange(len(ends)), ends)
        positions_S = np.concatenate([np.arange(end) for end in ends])
        slots_S = np.concatenate(
            [
                (np.array(table)[:, None] * cache.block_size + np.arange(cache.block_size)).flatten()[:end]
                for table, end in zip(tables, ends, strict=True)
            ]
        )
        new_S = positions_S >= np.array(starts)[of_S]
        self._of_S, self._positions_S, self._slots_S, self._new_S = (
            torch.from_numpy(array).to(cache.device) for array in (of_S, positions_S, slots_S, new_S)
        )

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Write each of `new` [1, T, ...] into its slots; returns all that the texts hold, [1, S, ...]."""
        stores = self._cache.layers[layer]
        for store, tensor in zip(stores, new, strict=True):
            store[self._slots_S[self._new_S]] = tensor[0]
        return tuple(store[self._slots_S][None] for store in stores)

    def positions(self, new: int) -> Tensor:
        """Positions of the new tokens, [1, T]."""
        positions_T = self._positions_S[self._new_S]
        assert new == len(positions_T)
        return positions_T[None]

    def mask(self, new: int, window: int | None = None) -> Tensor:
        """Where the new tokens may look, bool [1, 1, T, S]."""
        assert new
        query_T1, of_T1 = self._positions_S[self._new_S][:, None], self._of_S[self._new_S][:, None]
        seen_TS = (self._of_S == of_T1) & (self._positions_S <= query_T1)
        if window is not None:
            seen_TS &= self._positions_S > query_T1 - window
        return seen_TS[None, None]
