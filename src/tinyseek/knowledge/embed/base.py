"""The one face of every embedder: texts in, unit vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Embedder(ABC):
    """Texts to vectors of length 1. Safe to call from several threads.

    Attributes:
        name: what an index remembers of it: vectors of different names are never compared.
        width: numbers of a vector.
        limit: tokens of a text that it takes at once; it may take longer texts in parts.
    """

    name: str
    width: int
    limit: int

    @abstractmethod
    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, width] of questions."""

    @abstractmethod
    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, width] of what is to be found."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How long each text is for it."""

    def close(self) -> None:  # noqa: B027  (some hold nothing)
        """Give back what it holds."""
