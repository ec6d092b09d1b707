"""The model's multi-token prediction modules over the paged cache. What training sees at once comes here step by step.

A module's keys lie in the cache layers after the model's own, in the blocks of the same text. The last key of a block that was
found in the prefix cache may be of another following token; only guesses depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyseek.engine.cache import PagedCache, View
from tinyseek.engine.runner import CompiledForward, Runner, fill_up, places
from tinyseek.model.attention import Context
from tinyseek.model.mtp import MTPModule
from tinyseek.model.rope import angles


@dataclass(frozen=True)
class Part:
    """Neighbouring positions of one text.

    Attributes:
        blocks: of the text, from its beginning on.
        start: the first position.
        hidden_TD: hidden states there, of the previous depth; for the first depth the main model's after its last norm.
        following: of each position the token `depth + 1` further on.
    """

    blocks: Sequence[int]
    start: int
    hidden_TD: Tensor
    following: Sequence[int]

    @property
    def count(self) -> int:
        """How many positions."""
        return len(self.following)


class Modules:
    """The modules of a model, run as compiled loops or by torch like the model itself."""

    def __init__(self, runner: Runner, cache: PagedCache, context: int) -> None:
        self.count = len(runner.model.mtp)
        self._runner, self._cache, config = runner, cache, runner.model.config
        self._angles = angles(config, context, cache.device) if config.positions == "rotary" else None

    @torch.inference_mode()
    def __call__(self, depth: int, parts: Sequence[Part]) -> list[Tensor]:
        """Put the parts' keys of a module into the cache.

        Returns:
            Of each part the module's hidden states [its positions, D]; the head turns one into the token after the following one.
        """
        forward = self._runner.forward
        few = forward.few if isinstance(forward, CompiledForward) else 0
        groups: dict[tuple[int, int], list[int]] = {}
        for row, part in enumerate(
            parts
        ):  # as runner.py: few positions together, else equally many of texts of about one length
            alike = (0, 0) if part.count <= few else (part.count, (part.start + part.count).bit_length())
            groups.setdefault(alike, []).append(row)
        out: dict[int, Tensor] = {}
        for (count, _), rows in groups.items():
            run = self._plain if count else self._compiled
            out |= dict(zip(rows, run(depth, [parts[row] for row in rows]), strict=True))
        return [out[row] for row in range(len(parts))]

    def _compiled(self, depth: int, parts: list[Part]) -> Sequence[Tensor]:
        """Any parts, by the loops."""
        forward = self._runner.forward
        assert isinstance(forward, CompiledForward)
        counts = [part.count for part in parts]
        blocks, starts = [part.blocks for part in parts], [part.start for part in parts]
        where = map(torch.from_numpy, places(blocks, starts, counts, self._cache.block_size))
        following_N = torch.tensor([token for part in parts for token in part.following])
        hidden_ND = torch.cat([part.hidden_TD for part in parts])
        return list(forward.model.ahead(depth, hidden_ND, following_N, *where).split(counts))

    def _plain(self, depth: int, parts: list[Part]) -> Sequence[Tensor]:
        """Parts of one length, by torch."""
        model, device, new = self._runner.model, self._cache.device, parts[0].count
        tables_RB = torch.from_numpy(fill_up([part.blocks for part in parts])).to(device)
        view = View(self._cache, tables_RB, [part.start for part in parts], new)
        positions_RT, window = view.positions(new), model.config.sliding_window
        cos, sin = (t[positions_RT] for t in self._angles) if self._angles else (positions_RT, positions_RT)
        mask = view.mask(new)
        context = Context(cos, sin, mask, view.mask(new, window) if window else mask, view)
        module = model.mtp[depth]
        assert isinstance(module, MTPModule)
        embedded_RTD = model.model.embed_tokens(torch.tensor([part.following for part in parts], device=device))
        hidden_RTD, _ = module.predict(torch.stack([part.hidden_TD for part in parts]), embedded_RTD, context)
        return list(hidden_RTD)
