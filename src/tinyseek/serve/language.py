"""Which of the pages' two languages a browser would rather have."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]


def preferred(accept_language: str) -> Language:
    """The better of ours for a browser's Accept-Language."""
    ranked = []
    for number, entry in enumerate(accept_language[:500].split(",")):
        name, _, quality = entry.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        if name[:2].lower() in ("en", "zh"):
            ranked.append((-weight, number, name[:2].lower()))
    return "zh" if ranked and min(ranked)[2] == "zh" else "en"
