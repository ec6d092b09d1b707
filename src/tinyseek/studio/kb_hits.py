"""Passages that were found, as HTML: with their scores, and the words of the question marked. Text is escaped where it enters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio import kb_text
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.kb_text import where
from tinyseek.studio.pieces import button, icon, segments
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.knowledge.retrieve import Hit

_SNIPPET = 420  # characters of a passage in a list


def search_box(text: str, how: str, words: Words) -> Html:
    """What is searched for, and how."""
    kinds = {"hybrid": words("Both"), "lexical": words("By words"), "dense": words("By meaning")}
    field = el(
        "input",
        type="search",
        id="kb-search",
        value=text,
        placeholder=words("Words, or a question"),
        aria_label=words("Search the passages"),
        maxlength=4000,
    )
    go = button("search", words("Search"), icon("search"), class_="go")
    return el("div", el("div", field, go, class_="line"), segments("how", kinds, how), class_="searching")


def hits(found: Sequence[Hit], asked: str, seconds: float, words: Words) -> Html:
    """Passages with the scores of both halves."""
    if not found:
        return el("p", words("Nothing found."), class_="none")
    best_words = max((hit.lexical or 0.0 for hit in found), default=0.0)
    told = words("{count} passages in {time} ms", count=len(found), time=f"{1000 * seconds:,.0f}")
    cards = [_hit(number, hit, asked, best_words, words) for number, hit in enumerate(found, 1)]
    return join(el("p", told, class_="told"), el("ol", cards, class_="hits"))


def _hit(number: int, hit: Hit, asked: str, best_words: float, words: Words) -> Html:
    chunk = hit.chunk.chunk
    place = where(chunk.places, hit.document.kind, words)
    return el(
        "li",
        el(
            "button",
            el("span", str(number), class_="rank"),
            kind_mark(hit.document.kind),
            el("b", hit.document.name),
            el("span", place, class_="place") if place else "",
            type="button",
            class_="head",
            data_act="hit",
            data_id=hit.chunk.id,
        ),
        el("p", " › ".join(chunk.path), class_="path-of") if chunk.path else "",
        el("p", emphasised(snippet(chunk.text, asked), asked), class_="text"),
        el(
            "dl",
            _score(words("Words"), hit.lexical, best_words, "words"),
            _score(words("Meaning"), hit.dense, 1.0, "meaning"),
            el("div", el("dt", words("Score")), el("dd", f"{hit.score:.3f}")),
            class_="scores",
        ),
    )


def _score(name: str, value: float | None, most: float, kind: str) -> Html:
    shown = "–" if value is None else f"{value:.2f}" if kind == "words" else f"{value:.3f}"
    share = 0.0 if value is None or most <= 0 else value / most
    if kind == "meaning":  # cosines of unlike texts are about 0.7
        share = max(0.0, (share - 0.7) / 0.3)
    bar = el("span", el("i", style=f"width:{100 * min(share, 1):.0f}%"), class_=f"bar {kind}", aria_hidden="true")
    return el("div", el("dt", name), el("dd", bar, shown))


def snippet(text: str, asked: str, longest: int = _SNIPPET) -> str:
    """The part of a passage where most of the words stand, on one line."""
    flat = " ".join(flattened(text).split())
    if len(flat) <= longest:
        return flat
    starts = [match.start() for match in _words_in(flat, asked)]
    best = max(starts, key=lambda at: sum(at <= other < at + longest - 60 for other in starts), default=0)
    begin = max(0, min(best - 60, len(flat) - longest))
    cut = flat[begin : begin + longest]
    return ("… " if begin else "") + cut.strip() + (" …" if begin + longest < len(flat) else "")


def flattened(text: str) -> str:
    """A passage's text with the rows of its tables as plain lines."""
    if "|" not in text:
        return text
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip()):
            continue
        row, bar, rest = line.rpartition("|")
        if not line.startswith("|") or not row:
            lines.append(line)
        else:
            lines.append(" · ".join(filter(None, kb_text.split_row(row + bar))) + (rest or " —"))
    return "\n".join(lines).removesuffix(" —")


def emphasised(text: str, asked: str) -> Html:
    """A text with the words of a question marked."""
    parts: list[str] = []
    at = 0
    for match in _words_in(text, asked):
        parts += [text[at : match.start()], el("mark", match.group())]
        at = match.end()
    return join(*parts, text[at:])


def _words_in(text: str, asked: str) -> list[re.Match[str]]:
    """Where the words of a question stand, or such as begin like them; Chinese ones as they are."""
    from tinyseek.knowledge.stopwords import content_words

    wanted = sorted({word for word in content_words(asked[:500]) if word.strip()}, key=len, reverse=True)[:40]
    if not wanted:
        return []
    parts = [re.escape(word) if _is_han(word) else rf"\b{re.escape(word)}\w*" for word in wanted]
    return list(re.finditer("|".join(parts), text, re.IGNORECASE))


def _is_han(word: str) -> bool:
    return any("\u3400" <= letter <= "\u9fff" for letter in word)
