"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any, digits: int) -> str:
    """A number with so many digits after its point; a dash for what is none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "–"


def percent(value: Any) -> str:
    """A share; a dash for what is none."""
    return f"{100 * value:.1f}\u00a0%" if isinstance(value, int | float) else "–"


def byte_size(size: float) -> str:
    """1.23 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def duration(seconds: float) -> str:
    """12.3 s, 4m 05s, 1h 02m."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def when(created: str) -> str:
    """A manifest's time, to the minute."""
    return created.replace("T", " ").removesuffix("Z")[:16] + " UTC" if created else ""


def colour(index: int) -> str:
    """The colour of a page's n-th model, or n-th curve."""
    return f"var(--models-{min(index, 5)})"
