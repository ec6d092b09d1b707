"""Which documents a question may be answered from: one meaning for every index."""

from __future__ import annotations

import datetime
import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinyseek.knowledge.index.base import Filters


@dataclass(frozen=True)
class Facts:
    """What filters look at."""

    id: int
    name: str
    kind: str
    tags: tuple[str, ...]
    date: str
    modified: float


def restricts(filters: Filters) -> bool:
    """Whether some documents are left out."""
    return any(
        (filters.documents, filters.names, filters.folders, filters.tags, filters.kinds, filters.since, filters.until)
    )


def admitted(documents: Iterable[Facts], filters: Filters) -> list[int]:
    """The ids of the documents that all filters let through."""
    admits = _rule(filters)
    return [document.id for document in documents if admits(document)]


def _rule(filters: Filters) -> Callable[[Facts], bool]:
    ids, kinds, tags = set(filters.documents), set(filters.kinds), set(filters.tags)
    names = [re.compile(fnmatch.translate(pattern)) for pattern in filters.names]
    folders = [folder.strip("/") + "/" for folder in filters.folders if folder.strip("/")]

    def admits(facts: Facts) -> bool:
        return (
            (not ids or facts.id in ids)
            and (not kinds or facts.kind in kinds)
            and tags.issubset(facts.tags)
            and (not names or any(name.match(facts.name) for name in names))
            and (not folders or any(facts.name.startswith(folder) for folder in folders))
            and _within(facts, filters)
        )

    return admits


def _within(facts: Facts, filters: Filters) -> bool:
    """Dates as precise as both are: a document of "2024" is within any part of that year."""
    if not filters.since and not filters.until:
        return True
    date = facts.date or datetime.datetime.fromtimestamp(facts.modified, datetime.UTC).date().isoformat()
    after = not filters.since or date[: len(filters.since)] >= filters.since[: len(date)]
    return after and (not filters.until or date[: len(filters.until)] <= filters.until[: len(date)])
