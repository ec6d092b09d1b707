"""Whether what was found answers the question."""

from __future__ import annotations

from tinyseek.knowledge.retrieve import Base, Search


def confidence(base: Base, found: Search) -> float:
    """The probability."""
    return 1.0 if found.hits else 0.0
