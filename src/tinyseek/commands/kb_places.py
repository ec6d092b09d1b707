"""Names, places and passages for people: where in a file something stands, as text, and as a link that a terminal opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tinyseek.knowledge.answer.prompt import places_text
from tinyseek.knowledge.segment import words
from tinyseek.knowledge.stopwords import content_words

if TYPE_CHECKING:
    from rich.text import Text

    from tinyseek.knowledge.documents.blocks import Place
    from tinyseek.knowledge.index.base import Chunk, StoredDocument

_LONGEST = 320  # characters of a passage that are shown
_LEAD = 60  # of them before the first word of the question
_RULE = re.compile(r"^\|[ :|-]+\|$", re.MULTILINE)  # below the head of a Markdown table
_HAN = "\u3400-\u9fff"
_RUN = re.compile(rf"[{_HAN}]+|[0-9]+(?:[.,][0-9]+)*|[^\W_{_HAN}]+")


def location(document: StoredDocument, places: Sequence[Place]) -> str:
    """`deepseek-r1.pdf, page 5`."""
    return ", ".join(part for part in (document.name, places_text(places)) if part)


def link(document: StoredDocument, places: Sequence[Place] = ()) -> str | None:
    """What a terminal opens for a document: its file, at the page where a viewer knows how. None: it is no file here."""
    if not document.source.startswith("/") or not Path(document.source).exists():
        return None
    pages = [place.page for place in places if place.page is not None]
    return f"file://{quote(document.source)}" + (f"#page={min(pages)}" if pages and document.kind == "pdf" else "")


def heading(chunk: Chunk) -> str:
    """The headings above a passage."""
    return " › ".join(chunk.path)


def snippet(text: str, question: str, longest: int = _LONGEST) -> str:
    """The part of a passage that holds most of a question's words, on one line."""
    flat = " ".join(_RULE.sub(" ", text).split())
    if len(flat) <= longest:
        return flat
    starts = [start for start, _ in marks(flat, question)]
    best = max(starts, key=lambda start: sum(start <= s < start + longest - _LEAD for s in starts), default=0)
    begin = max(0, min(best - _LEAD, len(flat) - longest))
    if begin:
        begin = flat.find(" ", begin, begin + 20) + 1 or begin
    end = begin + longest
    if end < len(flat):
        end = max(flat.rfind(" ", end - 20, end), end - 20) if " " in flat[end - 20 : end] else end
    return ("… " if begin else "") + flat[begin:end].strip() + (" …" if end < len(flat) else "")


def marks(text: str, question: str) -> list[tuple[int, int]]:
    """Where a question's words stand in a text, in whatever form."""
    wanted = set(content_words(question))
    chinese = sorted((word for word in wanted if re.match(f"[{_HAN}]", word)), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, chinese))) if chinese else None
    found: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        if not re.match(f"[{_HAN}]", run[0]):
            found += [run.span()] if wanted & set(words(run[0])) else []
        elif pattern is not None:
            found += [(run.start() + m.start(), run.start() + m.end()) for m in pattern.finditer(run[0])]
    return found


def emphasised(text: str, question: str) -> Text:
    """A text with a question's words in bold."""
    from rich.text import Text

    shown = Text(text)
    for start, end in marks(text, question):
        shown.stylize("bold", start, end)
    return shown


def size(count: int) -> str:
    """Bytes for people: `812 kB`, `1.3 MB`."""
    for unit, large in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= large:
            return f"{count / large:.3g} {unit}"
    return f"{count} B"
