"""The tables of the collections that were asked last, each in its locked process, kept until its collection changes."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.knowledge.tables.ask import TableReply, ask_tables, files_of
from tinyseek.knowledge.tables.options import TableSettings
from tinyseek.knowledge.tables.room import TableRoom
from tinyseek.llm.base import ChatModel, Message

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase

_MOST = 3


def available() -> bool:
    """Whether the database is installed."""
    return importlib.util.find_spec("duckdb") is not None


class Rooms:
    """Of one server: shared by all that ask. Safe to use from several threads."""

    def __init__(self) -> None:
        self._rooms: OrderedDict[tuple[str, Filters], tuple[KnowledgeBase, int, TableRoom]] = OrderedDict()
        self._lock = threading.Lock()

    def ask(
        self,
        base: KnowledgeBase,
        question: str,
        model: ChatModel | None = None,
        filters: Filters = ALL,
        history: Sequence[Message] = (),
    ) -> TableReply:
        """Answer a question over a collection's tables.

        Raises:
            UserError: there are none, or too many.
        """
        return ask_tables(self._room(base, filters), question, model, history)

    def _room(self, base: KnowledgeBase, filters: Filters) -> TableRoom:
        key, revision = (base.collection, filters), base.index.revision()
        with self._lock:
            held = self._rooms.pop(key, None)
            if held is not None and (held[0] is not base or held[1] != revision):
                held[2].close()
                held = None
            if held is None:
                held = (base, revision, TableRoom(files_of(base.index, filters), TableSettings(), base.settings.limits))
            self._rooms[key] = held
            while len(self._rooms) > _MOST:
                self._rooms.popitem(last=False)[1][2].close()
            return held[2]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            for _, _, room in self._rooms.values():
                room.close()
            self._rooms.clear()
