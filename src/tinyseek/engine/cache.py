"""A contiguous cache of earlier positions: for ordinary attention keys and values, for latent attention the latent and rotary
key.

One tensor a layer and kind, allocated once for the longest sequence, so that a step writes its few numbers in place and reads
a view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinyseek.model.attention import causal_mask
from tinyseek.model.config import ModelConfig


class ContiguousCache:
    """Room for `capacity` positions of `batch` sequences, which end together: shorter prompts are padded on the left.

    Args:
        pads_B: how many positions at the left of each sequence are padding, which nothing may look at; none if no padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pads_B: Tensor | None = None,
    ) -> None:
        if config.kv_lora_rank is not None:
            shapes: list[tuple[int, ...]] = [(config.kv_lora_rank,), (config.qk_rope_head_dim,)]
        else:
            shapes = [(config.kv_heads, config.qk_dim)] * 2
        self._layers = [
            [torch.zeros(batch, capacity, *shape, dtype=dtype, device=device) for shape in shapes]
            for _ in range(config.num_hidden_layers)
        ]
        self._last = config.num_hidden_layers - 1
        self._pads_B = pads_B
        self._device = torch.device(device)
        self.capacity, self.length = capacity, 0

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Append each of `new` [B, T, ...] to a layer and return all that is cached there. The last layer moves the end."""
        end = self.length + new[0].shape[1]
        stores = self._layers[layer]
        for store, tensor in zip(stores, new, strict=True):
            store[:, self.length : end] = tensor
        if layer == self._last:
            self.length = end
        return tuple(store[:, :end] for store in stores)

    def positions(self, new: int) -> Tensor:
        """Positions of the next `new` tokens, [T] or with padding [B, T] (padding itself is at 0)."""
        index = torch.arange(self.length, self.length + new, device=self._device)
        return index if self._pads_B is None else (index - self._pads_B[:, None]).clamp(min=0)

    def mask(self, new: int, window: int | None = None) -> Tensor | None:
        """Where the next tokens may look, bool [B or 1, 1, T, S]; none where causality alone decides from an empty cache."""
        end = self.length + new
        if self._pads_B is None and (window is None or end <= window) and (new == 1 or self.length == 0):
            return None
        seen = causal_mask(new, end, self._device, window)
        if self._pads_B is None:
            return seen
        index = torch.arange(end, device=self._device)
        real = index >= self._pads_B[:, None, None, None]
        return seen & real | (
            index == torch.arange(self.length, end, device=self._device)[:, None]
        )  # padding sees itself: no NaN

    def stores(self, layer: int) -> list[Tensor]:
        """A layer's tensors [B, capacity, ...], all of them, for a decoding step that writes them itself."""
        return self._layers[layer]

    def keep(self, rows: Tensor) -> None:
        """Keep only these sequences, in this order: those that are still being written."""
        self._layers = [[store[rows] for store in stores] for stores in self._layers]
        if self._pads_B is not None:
            self._pads_B = self._pads_B[rows]
