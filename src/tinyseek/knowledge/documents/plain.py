"""Plain text: paragraphs with their lines, headings where a text shows them, subtitles as what is said and when.

Lines that were wrapped are joined; lines that stand for themselves (verses, logs, addresses) stay lines.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tinyseek.knowledge.documents.blocks import Document, Place
from tinyseek.knowledge.documents.decode import read_text
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of

_MOST_LINES = 40  # of one block
_LONG = 110  # columns; a line that is longer was not wrapped
_SHORT = 45  # columns; lines that are all shorter were broken on purpose
_CHAPTER = re.compile(
    r"第[一二三四五六七八九十百千零〇两\d]{1,6}(?P<east>[卷部篇编編章回节節])(?![,，、])|"
    r"(?P<west>part|book|chapter|appendix|section)\s+(?:[IVXLC]{1,7}|\d{1,3}(?:\.\d{1,3})*|[A-Z])\b",
    re.I,
)
_LEVELS = {**dict.fromkeys("卷部篇编編", 1), **dict.fromkeys("章回", 2), **dict.fromkeys("节節", 3)} | {
    "part": 1, "book": 1, "chapter": 2, "appendix": 2, "section": 3,
}  # fmt: skip
_NUMBERED = re.compile(r"(\d{1,2}(?:\.\d{1,3}){0,4})\.?[ \t]+(?=[A-Z\u4e00-\u9fff])")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#_.:`])\1{2,}$")
_ITEM = re.compile(r"\s*(?:[-*+•·▪◦–]|\(?\d{1,3}[.)、]|\(?[a-z][.)]|[（(][一二三四五六七八九十\d]{1,3}[）)])\s+\S")
_TIMING = re.compile(r"(?:(\d{1,2}):)?(\d{2}):(\d{2})[,.]\d{3}\s*-->\s*(?:\d{1,2}:)?\d{2}:\d{2}[,.]\d{3}")
_CUES = 12  # of one paragraph


def parse(file: Path, limits: Limits) -> Document:
    """A text file (.txt, .log, .rst, .srt ...) in any encoding.

    Raises:
        UserError: it is too long.
    """
    decoded = read_text(file, limits)
    lines = decoded.text.split("\n")
    outline = Outline(limits)
    if file.suffix.lower() in (".srt", ".vtt") or (_TIMING.match(lines[1]) if len(lines) > 1 else False):
        _subtitles(lines, outline)
    else:
        _Reader(outline, file.suffix.lower()).read(lines)
    return Document(tuple(outline.blocks), "text", language=language_of(decoded.text), notes=decoded.notes)


class _Reader:
    """Groups of lines between empty ones to blocks."""

    def __init__(self, outline: Outline, suffix: str) -> None:
        self._outline, self._suffix = outline, suffix
        self._adornments: list[str] = []  # of reStructuredText's headings, outermost first

    def read(self, lines: list[str]) -> None:
        for start, group in _groups(lines):
            self._group(start, group)

    def _group(self, start: int, group: list[str]) -> None:
        taken = self._heading(start, group)
        start, group = start + taken, group[taken:]
        if not group:
            return
        widths = [_width(line) for line in group]
        if all(_ITEM.match(line) for line in group) and len(group) > 1:
            self._put("list", start, group)
        elif max(widths) > _LONG or sum(line.startswith(("\u3000", "    ", "\t")) for line in group) * 2 > len(group):
            for number, line in enumerate(group):  # every line is a paragraph
                self._outline.add("paragraph", line.strip(), Place(lines=(start + number, start + number)))
        elif len(group) > 1 and max(widths) > _SHORT and all(width > 0.7 * max(widths) for width in widths[:-1]):
            self._outline.add("paragraph", joined(group), Place(lines=(start, start + len(group) - 1)))
        else:
            self._put("paragraph", start, group)

    def _put(self, kind: str, start: int, group: list[str]) -> None:
        for at in range(0, len(group), _MOST_LINES):
            part = group[at : at + _MOST_LINES]
            place = Place(lines=(start + at, start + at + len(part) - 1))
            self._outline.add(
                "list" if kind == "list" else "paragraph", "\n".join(line.rstrip() for line in part), place
            )

    def _heading(self, start: int, group: list[str]) -> int:
        """Take the heading that a group begins with. Returns its number of lines."""
        first = group[0].strip()
        place = Place(lines=(start, start))
        if (
            len(group) > 2
            and _UNDERLINE.match(first)
            and group[2].strip() == first
            and _width(group[1]) <= len(first) + 2
        ):
            self._outline.heading(group[1].strip(), self._adorned(first[0] * 2), Place(lines=(start, start + 2)))
            return 3
        if len(group) > 1 and (line := _UNDERLINE.match(group[1].strip())) and 0 < _width(first) <= len(line[0]) + 2:
            self._outline.heading(first, self._adorned(line[1]), Place(lines=(start, start + 1)))
            return 2
        sign = {".adoc": "=", ".org": "*"}.get(self._suffix)
        if sign and (marked := re.match(rf"({re.escape(sign)}{{1,6}})\s+(\S.*)$", first)):
            self._outline.heading(marked[2], len(marked[1]), place)
            return 1
        if chapter := _CHAPTER.match(first):
            title = first[chapter.end() :]
            west = chapter["west"]
            if _width(first) <= 70 and first[-1] not in "。，,;；" and not (west and title[:1].isalpha()) and (
                not west or len(group) == 1 or title.strip()[:1].isupper() or not title.strip(" .:-—")
            ):  # fmt: skip
                self._outline.heading(first, _LEVELS[chapter["east"] or west.lower()], place)
                return 1
        if (
            len(group) == 1
            and _width(first) <= 80
            and first[-1] not in ".。,，;；:："
            and (found := _NUMBERED.match(first))
        ):
            self._outline.heading(first, found[1].count(".") + 1, place)
            return 1
        return 0

    def _adorned(self, sign: str) -> int:
        if sign not in self._adornments:
            self._adornments.append(sign)
        return self._adornments.index(sign) + 1


def joined(lines: list[str]) -> str:
    """Wrapped lines as one: hyphens mended, no blank between Chinese."""
    text = ""
    for line in (line.strip() for line in lines):
        if len(text) > 1 and text[-1] == "-" and text[-2].isalpha() and line[:1].islower():
            text = text[:-1] + line
        elif text and _is_wide(text[-1]) and line and _is_wide(line[0]):
            text += line
        else:
            text = f"{text} {line}" if text else line
    return text


def _groups(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that are not empty, with the number of the first, from 1."""
    group: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            group.append(line)
        elif group:
            yield number - len(group), group
            group = []
    if group:
        yield len(lines) - len(group) + 1, group


def _width(line: str) -> int:
    """Columns of a line: a Chinese character takes two."""
    line = line.strip()
    if line.isascii() or len(line) > 2 * _LONG:
        return len(line)
    return len(line) + sum(map(_is_wide, line))


def _is_wide(letter: str) -> bool:
    return letter > "\u1100" and unicodedata.east_asian_width(letter) in "WF"


def _subtitles(lines: list[str], outline: Outline) -> None:
    """What is said, a dozen cues a paragraph, each paragraph with the time at which it begins."""
    said: list[str] = []
    first, time, cues = 1, "", 0
    for number, line in enumerate(lines, 1):
        text = re.sub(r"<[^<>]{0,100}>|\{\\[^{}]{0,100}\}", "", line).strip()
        if found := _TIMING.match(line.strip()):
            if cues >= _CUES:
                outline.add("paragraph", f"[{time}] {joined(said)}", Place(lines=(first, number - 1)))
                said, cues = [], 0
            if not cues:
                first, time = number, f"{found[1] or '00':>02}:{found[2]}:{found[3]}"
            cues += 1
        elif cues and text and text not in said[-1:] and not (text.isdecimal() and _is_timing(lines, number)):
            said.append(text)
    if said:
        outline.add("paragraph", f"[{time}] {joined(said)}", Place(lines=(first, len(lines))))


def _is_timing(lines: list[str], number: int) -> bool:
    return number < len(lines) and _TIMING.match(lines[number].strip()) is not None
