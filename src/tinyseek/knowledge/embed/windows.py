"""Texts longer than a network takes: cut into windows, whose vectors are weighted by their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A part of a text as the network is given it.

    Attributes:
        owner: number of its text.
        ids: with the tokens that begin and end every text.
        weight: tokens of the text in it, at least 1.
    """

    owner: int
    ids: NDArray[np.int64]
    weight: int


@dataclass(frozen=True)
class Windows:
    """How texts are cut.

    Attributes:
        begin, end: tokens around every window.
        size: tokens of a window at most, with those.
        together: tokens that go through the network at once, at most, but for one window.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    size: int
    together: int

    def passes(self, contents: Iterable[NDArray[np.int64]]) -> Iterator[list[Window]]:
        """What goes through the network at once, in turn; a text may be in several."""
        windows: list[Window] = []
        tokens, step = 0, self.size - len(self.begin) - len(self.end)
        for owner, content in enumerate(contents):
            for first in range(0, max(len(content), 1), step):
                part = content[first : first + step]
                ids = np.concatenate([self.begin, part, self.end]).astype(np.int64)
                if windows and tokens + len(ids) > self.together:
                    yield windows
                    windows, tokens = [], 0
                windows.append(Window(owner, ids, max(len(part), 1)))
                tokens += len(ids)
        if windows:
            yield windows


def joined(windows: Sequence[Window]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ids one after the other, and where each window begins, with the end."""
    starts_S = np.zeros(len(windows) + 1, np.int64)
    np.cumsum([len(window.ids) for window in windows], out=starts_S[1:])
    return np.concatenate([window.ids for window in windows]), starts_S


def unit(vectors_SD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; nothing stays nothing."""
    norms = np.sqrt(np.einsum("sd,sd->s", vectors_SD, vectors_SD, dtype=np.float64))[:, None]
    units: NDArray[np.float32] = (vectors_SD / np.maximum(norms, 1e-30)).astype(np.float32)
    return units
