"""Where a text stands on a page of a PDF, line by line: what a viewer marks, finer than the paragraph that a place knows."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Box
from tinyseek.knowledge.documents.pdf import _opened
from tinyseek.knowledge.documents.pdf_page import Fonts, Word, read_page

_LEAST = 16  # letters of a beginning or an end that is marked by itself: a sentence may run over the page's edge
_LONGEST = 20_000
_LEFT_OUT = re.compile(
    "[\\s\u00ad\u2010\u2011\ufffe\ufffd-]+"
)  # blanks and hyphens, of which lines' ends make and take some


def find_text(file: Path, page: int, text: str, near: Sequence[Box] = ()) -> tuple[Box, ...]:
    """The boxes of a text on a page, one a line, in points from the page's upper left corner; none where it is not found.

    Args:
        page: from 1.
        near: only what touches these, if there are any.
    Raises:
        UserError: there is no such page, or the file cannot be opened.
    """
    with _opened(file) as document:
        if not 1 <= page <= len(document):
            raise UserError(f"has no page {page:,}; its pages are 1 to {len(document):,}")
        read = read_page(document.raw, page - 1, Fonts(), shapes=False)
    words = read.words if read is not None else []
    texts = [squeezed(word.text) for word in words]
    stream = "".join(texts)
    starts = [0, *accumulate(map(len, texts))]
    wanted = squeezed(text[:_LONGEST])
    found = [_boxes(words, starts, start, end) for start, end in _places(stream, wanted)]
    if near:
        found = [boxes for boxes in found if any(_touch(a, b) for a in boxes for b in near)]
    return next(iter(found), ())


def squeezed(text: str) -> str:
    """A text without what differs between a page and what was read of it."""
    return _LEFT_OUT.sub("", unicodedata.normalize("NFKC", text))


def _places(stream: str, wanted: str) -> list[tuple[int, int]]:
    """Where the text stands, or the longest beginning or end of it that does."""
    if not wanted:
        return []
    found: list[tuple[int, int]] = []
    at = stream.find(wanted)
    while at >= 0 and len(found) < 50:
        found.append((at, at + len(wanted)))
        at = stream.find(wanted, at + 1)
    if found:
        return found
    head, tail = _longest(stream, wanted, False), _longest(stream, wanted, True)
    best = head if head[1] - head[0] >= tail[1] - tail[0] else tail
    return [best] if best[1] - best[0] >= _LEAST else []


def _longest(stream: str, wanted: str, tail: bool) -> tuple[int, int]:
    """The longest beginning (or end) of a text that is found: if one is, every shorter one is too."""
    low, high, at = 0, len(wanted), 0
    while low < high:
        middle = (low + high + 1) // 2
        place = stream.find(wanted[-middle:] if tail else wanted[:middle])
        if place >= 0:
            low, at = middle, place
        else:
            high = middle - 1
    return at, at + low


def _boxes(words: Sequence[Word], starts: Sequence[int], start: int, end: int) -> tuple[Box, ...]:
    """The boxes of the words between two characters, words of a line as one."""
    lines: list[Box] = []
    for word in words[bisect_right(starts, start) - 1 : bisect_right(starts, end - 1)]:
        box = (word.x0, word.top, word.x1, word.bottom)
        if lines and _same_line(lines[-1], box):
            last = lines[-1]
            lines[-1] = (min(last[0], box[0]), min(last[1], box[1]), max(last[2], box[2]), max(last[3], box[3]))
        else:
            lines.append(box)
    return tuple(lines)


def _same_line(line: Box, box: Box) -> bool:
    shared = min(line[3], box[3]) - max(line[1], box[1])
    height = min(line[3] - line[1], box[3] - box[1])
    return shared > 0.5 * height and -height < box[0] - line[2] < 3 * max(height, 1.0)


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
