"""Answers that can be gone on from by their ids: kept in memory, the oldest forgotten first, each for the key that asked for it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from tinyseek.llm.base import Message
from tinyseek.serve.replies import ResponseReply


@dataclass(frozen=True)
class Kept:
    """An answer that can be gone on from."""

    owner: bytes  # the key that asked for it
    reply: ResponseReply
    messages: list[Message]  # the conversation, the answer included
    given: list[dict[str, Any]]  # the input, as items
    size: int  # bytes, about


class Store:
    """Answers by their ids, in memory, up to a number and a size."""

    def __init__(self, most: int, most_bytes: float) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, kept: Kept) -> None:
        """Remember an answer; forget the ones that were used longest ago."""
        self._kept[kept.reply["id"]] = kept
        self._bytes += kept.size
        while self._kept and (len(self._kept) > self._most or self._bytes > self._most_bytes):
            self._bytes -= self._kept.popitem(last=False)[1].size

    def find(self, name: str, owner: bytes) -> Kept | None:
        """An answer of this owner's."""
        kept = self._kept.get(name)
        if kept is None or kept.owner != owner:
            return None
        self._kept.move_to_end(name)
        return kept

    def forget(self, name: str) -> None:
        """Let go of an answer."""
        self._bytes -= self._kept.pop(name).size
