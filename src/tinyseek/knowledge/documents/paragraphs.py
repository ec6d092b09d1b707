"""Lines in reading order to blocks: headings, paragraphs, lists, captions, formulas, code.

What a heading is, a file says in several ways, and all are heard: its outline, numbers ("3.1."), larger or bolder letters.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tinyseek.knowledge.documents.blocks import Block, Box, Kind, Place
from tinyseek.knowledge.documents.layout import CJK, Line, glue

_CAPTION = re.compile(
    r"(?:(?:supplementary|extended data)\s+)?(?:figure|fig\.?|table|tab\.|algorithm|listing|scheme|chart|exhibit|box)\s+"
    r"[A-Z]?\d*(?:[.\-]\d+)*\s*(?P<mark>[:.|]|[—–-]\s)?"
    r"|(?P<chinese>[附续]?[图表圖](?:表)?\s*[A-Z]?\d+(?:[.\-－—]\d+)*\s*[:：.、|]?)",
    re.I,
)
_NUMBERED = re.compile(r"(?:(?:[A-Z]|\d{1,2})(?:\.\d{1,2}){1,4}\.?|(?:[A-Z]|\d{1,2})\.|\d{1,2}|[IVX]{1,5}\.)\s+(?=\S)")
_DOTTED = re.compile(r"(?:[A-Z]|\d{1,3})((?:\.\d{1,3})*)\.?\s")
_CHAPTER = re.compile(
    r"(?:chapter|part|appendix|annex)\s+(?:[A-Z]|\d+|[IVXLC]+)\b|第\s*[一二三四五六七八九十百\d]+\s*[章编篇部]|附录",
    re.I,
)
_SECTION = re.compile(r"第\s*[一二三四五六七八九十百\d]+\s*节")
_COUNTED = re.compile(r"(?:[一二三四五六七八九十]+、|（[一二三四五六七八九十]+）)")
_BULLET = re.compile(
    "(?:[•◦▪‣●○■□◆◇➢➤✓✔∙⁃\uf0b7\uf0a7\uf0d8\uf0fc\uf076]|[-–—*·](?=\\s))\\s*(?=\\S)"
    r"|(?:\d{1,3}[.)]|\(\d{1,3}\)|\[\d{1,3}\]|[a-z][.)]|\([a-z]\)|[ivx]{1,5}[.)]|\([ivx]{1,5}\))\s+(?=\S)"
    r"|(?:[①-⑳]|\d{1,2}、|（\d{1,2}）|（[一二三四五六七八九十]+）)\s*(?=\S)"
)
_POINTS = "•◦▪‣●○■□◆◇➢➤✓✔∙⁃"
_COUNTS = "0123456789([abcdefghijklmnopqrstuvwxyz"
_SIGN = re.compile("^[•◦▪‣●○■□◆◇➢➤✓✔∙⁃\uf0b7\uf0a7\uf0d8\uf0fc\uf076·–—*-]\\s*")
_LEADERS = re.compile(r"\s*(?:\.(?:\s?\.){3,}|…{2,}|·{4,})\s*")
_ENTRY = re.compile(r"[\s.…·]([ivxlc]{1,6}|\d{1,4})$")
_END = re.compile(r"[.!?:;。！？：；…”\"')\]）】]$")
_UNDER_WAY = re.compile(
    r"\b(?:the|an?|of|and|or|in|to|by|with|for|from|on|at|that|which|is|are|was|as|than|et al\.)$|[,，、]$"
)
_EQUATION = re.compile(r"\(\d{1,3}(?:\.\d{1,3})?[a-z]?\)$")
_MATHS = re.compile(r"[=<>≤≥≈∑∏∫√∂∇±×÷∈∀∃⊂∪∩→∞α-ωΑ-Ω|^_{}+]")
_LETTER = re.compile(rf"[^\W\d_]|[{CJK}]")


_Kin = tuple[int, bool, bool]  # what headings of one level have in common: size, bold, italic


@dataclass(slots=True)
class _Open:
    """A block that lines are still added to."""

    kind: Kind
    lines: list[Line]
    level: int = 0
    continued: bool = False
    texts: list[str] = field(default_factory=list)  # of a list: its items


class Look:
    """What a whole document's lines look like: the size of its body, the step from line to line, its headings' styles."""

    def __init__(self, lines: Sequence[Line], outline: Mapping[int, Sequence[tuple[int, str]]]) -> None:
        self._outline = {page: {_plain(title): level for level, title in entries} for page, entries in outline.items()}
        self._longest = max((len(title) for entries in outline.values() for _, title in entries), default=0)
        sizes: Counter[float] = Counter()
        bold = total = 0
        for line in lines:
            if line.whole is None:
                sizes[line.size] += len(line.text)
                total += len(line.text)
                bold += len(line.text) if line.bold else 0
        self.size = sizes.most_common(1)[0][0] if sizes else 10.0
        self.is_bold = bold > 0.5 * total  # then bold says nothing
        self.words = _words(lines)
        steps = [
            (below.bottom - above.bottom) / below.size
            for above, below in pairwise(lines)
            if above.whole is None and below.whole is None and above.column == below.column and above.page == below.page
            and above.size == below.size > 0 and 0.5 * below.size < below.bottom - above.bottom < 3 * below.size
        ]  # fmt: skip
        self.step = statistics.median(steps) if steps else 1.25
        self._contents = _contents(lines)
        self._levels = self._known_levels(lines)
        self._above: tuple[int, float] | None = (
            None  # level and size of the last heading that a number or the outline gave
        )

    def outlined(self, line: Line) -> int | None:
        """The level that the outline gives a line, from 1."""
        titles = self._outline.get(line.page)
        if not titles or len(line.text) > self._longest + 16:
            return None
        plain = _plain(line.text)
        for text in (
            plain,
            _plain(_NUMBERED.sub("", line.text, count=1)),
            _plain(_CHAPTER.sub("", line.text, count=1)),
        ):
            if text and text in titles:
                return titles[text] + 1
        if len(plain) > 20 and line.size >= self.size:
            for title, level in titles.items():  # a title over two lines
                if title.startswith(plain) or title.endswith(plain):
                    return level + 1
        return None

    def heading(self, line: Line, before: Line | None, after: Line | None) -> bool:
        """Whether a line is one."""
        text = line.text
        if line.mono or len(text) > 200 or not _LETTER.search(text) or _has_leaders(text):
            return False
        if self.is_entry(line):
            return False
        if self.outlined(line) is not None:
            return True
        larger, bold = line.size >= 1.12 * self.size, line.bold and not self.is_bold
        if not (larger or (bold and line.size >= 0.95 * self.size)) or len(text.split()) > 25 or line.math > 0.5:
            return False
        if _CAPTION.match(text) and _is_caption(line):
            return False
        if re.search(r"[,;，；、]$", text):
            return False
        if larger and line.size >= 1.3 * self.size:
            return True
        numbered = _NUMBERED.match(text) or _CHAPTER.match(text) or _SECTION.match(text) or _COUNTED.match(text)
        if numbered:
            return not (text.endswith(".") and len(text) > 80)
        if text.endswith((".", "。", ":", "：")) and not larger:
            return False
        alone = (before is None or self._apart(before, line)) and (
            after is None or self._apart(line, after) or not _same_style(line, after)
        )
        return alone and line.x1 - line.x0 < 0.95 * max(1.0, line.right - line.left) + 2 * line.size

    def _apart(self, above: Line, below: Line) -> bool:
        if (
            above.page != below.page
            or above.column != below.column
            or above.whole is not None
            or below.whole is not None
        ):
            return True
        return below.bottom - above.bottom > 1.15 * self.step * max(above.size, below.size) or not _same_style(
            above, below
        )

    def _known_levels(self, lines: Sequence[Line]) -> dict[_Kin, int]:
        """The levels of headings' styles, by those that have a number or stand in the outline."""
        found: dict[_Kin, int] = {}
        for line in lines:
            stands_out = line.size >= 1.12 * self.size or (line.bold and not self.is_bold) or line.page in self._outline
            if line.whole is None and stands_out and len(line.text) < 200 and not self.is_entry(line):
                level = self.outlined(line)
                if level is None and line.page not in self._outline and line.size > 0.95 * self.size:
                    level = _level_of_number(line.text)
                if level is not None:
                    found[_kin(line)] = min(level, found.get(_kin(line), 9))
        return found

    def level(self, line: Line) -> int:
        """A heading's level: by the outline, by its number, by its kin; else below the last one that is no smaller."""
        level = self.outlined(line) or _level_of_number(line.text)
        if level is not None:
            self._above = (level, line.size)
        elif _kin(line) in self._levels:
            level = self._levels[_kin(line)]
        elif self._above is not None and line.size <= self._above[1] + 0.3:
            level = self._above[0] + 1
        else:
            larger = [known for (size, *_), known in self._levels.items() if size > line.size + 0.5]
            level = max(larger, default=0) + 1
            self._levels[_kin(line)] = level
        return min(level, 6)

    def is_entry(self, line: Line) -> bool:
        """Whether a line is one of a table of contents."""
        return line.page in self._contents and bool(_ENTRY.search(line.text))


def _kin(line: Line) -> _Kin:
    return round(line.size), line.bold, line.style.italic


def _contents(lines: Sequence[Line]) -> frozenset[int]:
    """Pages on which many lines end with dots and a number."""
    counts: Counter[int] = Counter()
    dotted: Counter[int] = Counter()
    for line in lines:
        if line.whole is None:
            counts[line.page] += 1
            dotted[line.page] += bool(_has_leaders(line.text) and _ENTRY.search(line.text))
    return frozenset(page for page, count in dotted.items() if count >= 4 and count >= 0.3 * counts[page])


def _level_of_number(text: str) -> int | None:
    if _CHAPTER.match(text):
        return 1
    if _SECTION.match(text):
        return 2
    if _COUNTED.match(text):
        return 1 if text[0] != "（" else 2
    found = _NUMBERED.match(text)
    dotted = _DOTTED.match(text)
    return 1 + dotted.group(1).count(".") if found and dotted else 1 if found else None


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _words(lines: Sequence[Line]) -> frozenset[str]:
    """The words of a document, in small letters: what a broken one may be made whole to."""
    found: set[str] = set()
    broken = False
    for line in lines:
        found.update(line.text.casefold().split()[int(broken) :])  # "vised" of "super-" "vised" is none
        broken = line.text.endswith("-")
    whole = {word.strip(".,;:()[]\"'“”") for word in found if word[-1] != "-"}
    return frozenset(whole.union(*(word.split("-") for word in whole if "-" in word)))


def _has_leaders(text: str) -> bool:
    """Whether a text has a row of dots, as entries of a table of contents have."""
    return (". ." in text or "..." in text or "……" in text or "···" in text) and bool(_LEADERS.search(text))


def _same_style(above: Line, below: Line) -> bool:
    return abs(above.size - below.size) < 0.6 and above.bold == below.bold


def _is_caption(line: Line) -> bool:
    """Whether a line that begins with "Table 3" is a caption, and not a sentence about the table."""
    found = _CAPTION.match(line.text)
    if not found or not re.search(r"\d", found.group()):
        return False
    if found.group("mark"):
        return True
    rest = line.text[found.end() :]
    if found.group("chinese"):
        return not re.match(r"[中所显示给列可为是的，]", rest.strip())
    return not rest.strip() or line.bold or line.words[0].style.bold


# ---- blocks ----------------------------------------------------------------------------------------------------------------------


def blocks_of(lines: Sequence[Line], look: Look) -> Iterator[Block]:
    """Lines of all pages to blocks with their paths."""
    path: list[tuple[int, str]] = []
    for block in _mended(_Builder(lines, look).blocks(), look):
        if block.kind == "heading":
            path = [entry for entry in path if entry[0] < block.level]
            yield replace(block, path=tuple(text for _, text in path))
            path.append((block.level, block.text))
        else:
            yield replace(block, path=tuple(text for _, text in path))


def _mended(blocks: Iterator[Block], look: Look) -> Iterator[Block]:
    """A word that was broken at the end of a page stands whole on the first."""
    waiting: Block | None = None
    for block in blocks:
        if waiting is not None and block.continued and waiting.kind == "paragraph" and waiting.text.endswith("-"):
            first, _, rest = block.text.partition(" ")
            if rest:
                waiting, block = replace(waiting, text=glue(waiting.text, first, look.words)), replace(block, text=rest)
        if waiting is not None:
            yield waiting
        waiting = block
    if waiting is not None:
        yield waiting


class _Builder:
    """Goes through the lines once."""

    def __init__(self, lines: Sequence[Line], look: Look) -> None:
        self._lines, self._look = lines, look
        self._open: _Open | None = None
        self._body: _Open | None = None  # the paragraph that may go on in the next column
        self._done: list[_Open | Block] = []
        self._hanging = False  # paragraphs' first lines stand out to the left, as in a list of references

    def blocks(self) -> Iterator[Block]:
        """The blocks, without paths."""
        page = 0
        before: Line | None = None
        for index, line in enumerate(self._lines):
            if line.page != page:
                self._shut()
                yield from self._given()
                page = line.page
            if line.whole is not None:
                self._shut()
                self._done.append(line.whole)
            else:
                after = self._lines[index + 1] if index + 1 < len(self._lines) else None
                self._add(line, before, after)
            before = line
        self._shut()
        yield from self._given()

    def _given(self) -> Iterator[Block]:
        for part in self._done:
            yield part if isinstance(part, Block) else self._block(part)
        self._done = []

    def _shut(self) -> None:
        self._open = None

    def _begin(self, kind: Kind, line: Line, level: int = 0, continued: bool = False) -> None:
        self._open = _Open(kind, [line], level, continued)
        self._done.append(self._open)
        if kind == "paragraph" and abs(line.size - self._look.size) < 0.6:
            self._body = self._open

    def _add(self, line: Line, before: Line | None, after: Line | None) -> None:
        now, look = self._open, self._look
        near = now is not None and self._near(now.lines[-1], line)
        if look.heading(line, before, after):
            if (
                now is not None
                and now.kind == "heading"
                and near
                and _same_style(now.lines[-1], line)
                and self._one_title(now, line)
            ):
                now.lines.append(line)
            else:
                self._begin("heading", line, look.level(line))
            return
        kind = self._kind(line)
        if now is not None and near and now.kind == kind != "paragraph":
            now.lines.append(line)  # items, lines of code, lines of a formula
            return
        if (
            kind == "code"
            and now is not None
            and near
            and now.kind in ("list", "paragraph")
            and not (after and after.mono)
        ):
            kind = "paragraph"  # an address at the end of a sentence
        if kind != "paragraph":
            self._begin(kind, line)
            return
        if now is not None and near and self._goes_on(now, line):
            now.lines.append(line)
            return
        body = self._body
        if body is not None and now is not body and self._resumes(body, line, before):
            if body.lines[-1].page == line.page:
                body.lines.append(line)
                self._open = body
            else:
                self._begin("paragraph", line, continued=True)
            return
        self._begin("paragraph", line)

    def _kind(self, line: Line) -> Kind:
        if _is_caption(line):
            return "caption"
        if self._look.is_entry(line):
            return "list"
        found = _BULLET.match(line.text)
        if line.mono and not (found and line.text[0] in _POINTS):
            return "code"
        if found and not line.bold and not (found.group()[:1] in _COUNTS and self._breaks_off(line)):
            return "list"
        if self._is_formula(line):
            return "formula"
        return "paragraph"

    def _breaks_off(self, line: Line) -> bool:
        """Whether the line above stops in the middle of a sentence, at its column's edge."""
        last = self._open.lines[-1] if self._open is not None and self._open.kind == "paragraph" else None
        if last is None or not self._near(last, line) or _END.search(last.text):
            return False
        return last.x1 > last.right - 3 * last.size

    def _is_item(self, line: Line) -> bool:
        return not line.bold and bool(_BULLET.match(line.text))

    def _is_formula(self, line: Line) -> bool:
        text = line.text
        inside = line.x0 > line.left + 1.5 * line.size
        if line.math > 0.45 and (inside or _EQUATION.search(text)) and len(text) < 200:
            return True
        signs = len(_MATHS.findall(text))
        return inside and signs >= 2 and (line.math > 0.25 or bool(_EQUATION.search(text))) and signs > 0.06 * len(text)

    def _near(self, above: Line, below: Line) -> bool:
        """Whether a line follows closely, in the same column."""
        if above.page != below.page or above.column != below.column:
            return False
        size = max(above.size, below.size)
        if self._look.is_entry(above) and self._look.is_entry(below):
            return 0 < below.bottom - above.bottom < 4 * size
        if self._is_item(above) and self._is_item(below) and abs(above.x0 - below.x0) < 1:
            return 0 < below.bottom - above.bottom < 2.0 * max(self._look.step, 1.0) * size
        if above.mono and below.mono:  # an empty line within code
            return -0.5 * size < below.bottom - above.bottom < 2.6 * max(self._look.step, 1.0) * size
        return -0.5 * size < below.bottom - above.bottom < 1.3 * max(self._look.step, 1.0) * size

    def _one_title(self, now: _Open, line: Line) -> bool:
        """Whether a heading's next line belongs to it, rather than being a heading below it."""
        return not _NUMBERED.match(line.text) and self._look.outlined(line) in (None, now.level) and len(now.lines) < 4

    def _goes_on(self, now: _Open, line: Line) -> bool:
        """Whether a line goes on what is open."""
        last, size = now.lines[-1], max(line.size, 1.0)
        if abs(last.size - line.size) > 0.15 * size and line.math < 0.3 and last.math < 0.3:
            return now.kind == "list" and line.x0 > now.lines[0].x0
        if now.kind == "heading" or now.kind == "code":
            return False
        if now.kind == "formula":
            return False
        if now.kind == "list":
            return line.x0 > now.lines[0].x0 + 0.3 * size or not _END.search(last.text)
        if now.kind == "caption":
            return len(now.lines) < 12
        short = last.x1 < line.right - 2.0 * size
        indented = line.x0 - last.x0
        if short and _END.search(last.text) and last.x1 < line.right - 0.25 * (line.right - line.left):
            return False
        if indented > 0.8 * size and last.x0 < line.left + 0.8 * size:
            if len(now.lines) == 1 and not short and (self._hanging or not _END.search(last.text)):
                self._hanging = True
                return True
            return not (short or _END.search(last.text))
        if indented < -0.8 * size and len(now.lines) == 1:
            self._hanging = False
        if indented < -0.8 * size and len(now.lines) > 1 and abs(now.lines[-2].x0 - last.x0) < 1:
            return not (short or _END.search(last.text)) and line.x0 > line.left + 0.8 * size
        return not (last.bold != line.bold and short)

    def _resumes(self, body: _Open, line: Line, before: Line | None) -> bool:
        """Whether a line at the beginning of a column or page goes on the paragraph that the one before broke off."""
        last = body.lines[-1]
        same = last.page == line.page and last.column == line.column
        if abs(last.size - line.size) > 0.6 or line.page - last.page > 1 or last.bold != line.bold:
            return False
        if same and (before is None or (before.whole is None and before is last)):
            return False
        if _END.search(last.text) and not last.text.endswith((")", "]", '"', "'", "”", "）")):
            return False
        first = line.text[:1]
        return first.islower() or last.text.endswith("-") or (
            bool(re.match(f"[{CJK}]", first)) and line.x0 < line.left + 0.8 * line.size
        ) or bool(_UNDER_WAY.search(last.text))  # fmt: skip

    def _block(self, part: _Open) -> Block:
        known = self._look.words
        if part.kind == "code":
            text = _code(part.lines)
        elif part.kind == "list":
            text = _items(part.lines, known)
        elif part.kind == "formula":
            text = "\n".join(line.text for line in part.lines)
        else:
            text = part.lines[0].text
            for above, line in zip(part.lines, part.lines[1:], strict=False):
                if part.kind == "paragraph" and _is_forced(above, line):
                    text += "\n" + line.text
                else:
                    text = glue(text, line.text, known)
            text = _LEADERS.sub(" … ", text) if _has_leaders(text) else text
        place = Place(part.lines[0].page, boxes_of(part.lines))
        return Block(part.kind, text, place, level=part.level, continued=part.continued)


def _is_forced(above: Line, below: Line) -> bool:
    """Whether a line ends where its writer ended it: the next one's first word would still have fitted, and begins anew."""
    if above.column != below.column or not below.words or above.text.endswith("-"):
        return False
    first = below.words[0]
    room = above.right - above.x1 - 1.5 * above.size
    begins = bool(_END.search(above.text)) or (first.text.isascii() and not first.text[:1].islower())
    return begins and room > first.x1 - first.x0 and room > 0.1 * (above.right - above.left)


def boxes_of(lines: Sequence[Line]) -> tuple[Box, ...]:
    """A box for each column that lines stand in."""
    boxes: list[Box] = []
    column: int | None = None
    for line in lines:
        if line.column == column and line.top >= boxes[-1][1] - line.size:
            x0, top, x1, bottom = boxes[-1]
            boxes[-1] = (min(x0, line.x0), min(top, line.top), max(x1, line.x1), max(bottom, line.bottom))
        else:
            boxes.append(line.box)
            column = line.column
    return tuple(boxes)


def _code(lines: Sequence[Line]) -> str:
    """Lines of code with their indents."""
    left = min(line.x0 for line in lines)
    widths = [(line.x1 - line.x0) / len(line.text) for line in lines if line.text]
    width = statistics.median(widths) if widths else 1.0
    texts: list[str] = []
    for above, line in zip([lines[0], *lines], lines, strict=False):
        if line.bottom - above.bottom > 1.8 * line.size:
            texts.append("")
        texts.append(" " * min(80, round((line.x0 - left) / max(width, 0.1))) + line.text)
    return "\n".join(texts)


def _items(lines: Sequence[Line], known: frozenset[str]) -> str:
    """A list's items, a line each."""
    items: list[str] = []
    for line in lines:
        if _BULLET.match(line.text) or not items or _has_leaders(line.text):
            items.append(_LEADERS.sub(" … ", _SIGN.sub("- ", line.text)))
        else:
            items[-1] = glue(items[-1], line.text, known)
    return "\n".join(items)
