"""The cache as HTML: how much of a prompt was remembered, and how full the engine's memory is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio.inside import MOST_SHOWN, Look
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.engine.engine import Stats


def cache_meter(facts: dict[str, Any], stats: Stats | None, look: Look | None, words: Words) -> Html:
    """How much of a prompt was remembered, as a bar and (if it is looked into) in its own words; and how full the memory is."""
    parts: list[str] = [el("h3", words("Memory"))]
    prompt, cached = int(facts.get("prompt_tokens") or 0), int(facts.get("cached_tokens") or 0)
    if prompt:
        why = words("The beginning of this prompt that the model had read before was not read again.")
        parts += [
            el("p", why, class_="why"),
            el("div", _slice("again", cached / prompt), _slice("fresh", (prompt - cached) / prompt), class_="meter"),
            _keys(
                ("again", words("{count} reused", count=f"{cached:,}")),
                ("fresh", words("{count} read anew", count=f"{prompt - cached:,}")),
                ("", words("of {count} tokens", count=f"{prompt:,}")),
            ),
        ]
        if look is not None and look.start == prompt:
            parts.append(
                el("div", _prompt(look, 0, cached, "again"), _prompt(look, cached, prompt, ""), class_="prompt")
            )
    if stats is not None and stats.blocks:
        busy, kept, blocks = stats.blocks_used, stats.blocks_cached, stats.blocks
        why = words(
            "The engine's blocks of {size} tokens: in use now, kept in case a prompt begins alike, and free.",
            size=stats.block_size,
        )
        parts += [
            el("p", why, class_="why", style="margin-top:14px"),
            el("div", _slice("busy", busy / blocks), _slice("kept", kept / blocks), class_="meter"),
            _keys(
                ("busy", words("{count} in use", count=f"{busy:,}")),
                ("kept", words("{count} kept", count=f"{kept:,}")),
                ("free", words("{count} free", count=f"{blocks - busy - kept:,}")),
            ),
        ]
    return el("div", parts, class_="part") if len(parts) > 1 else Html("")


def _prompt(look: Look, start: int, end: int, kind: str) -> Html:
    """A part of the prompt as text, its control tokens as marks."""
    if end - start > MOST_SHOWN:
        return join(
            _prompt(look, start, start + MOST_SHOWN // 2, kind), " … ", _prompt(look, end - MOST_SHOWN // 2, end, kind)
        )
    parts = [
        el("span", look.controls[look.seen.ids[token]], class_="tok mark")
        if look.seen.ids[token] in look.controls
        else look.texts[token]
        for token in range(start, end)
    ]
    return el("span", parts, class_=kind or None) if parts else Html("")


def _slice(kind: str, share: float) -> Html:
    return el("i", class_=kind, style=f"--w:{100 * share:.2f}") if share > 0 else Html("")


def _keys(*entries: tuple[str, str]) -> Html:
    return el(
        "div", [el("span", el("i", class_=kind) if kind else "", label) for kind, label in entries], class_="keys"
    )
