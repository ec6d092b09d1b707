"""Lines in reading order to blocks: headings, paragraphs, lists, captions, formulas, code.

What a heading is, a file says in several ways, and all are heard: its outline, numbers ("3.1."), larger or bolder letters than its body's.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
_SIGN = re.compile("^[•◦▪‣●○■□◆◇➢➤✓✔∙⁃\uf0b7\uf0a7\uf0d8\uf0fc\uf076·–—*-]\\s*")
_LEADERS = re.compile(r"(?:\s*\.){4,}\s*|…{2,}\s*|·{4,}\s*")
_END = re.compile(r"[.!?:;。！？：；…”\"')\]）】]$")
_EQUATION = re.compile(r"\(\d{1,3}(?:\.\d{1,3})?[a-z]?\)$")
_MATHS = re.compile(r"[=<>≤≥≈∑∏∫√∂∇±×÷∈∀∃⊂∪∩→∞α-ωΑ-Ω|^_{}+]")
_LETTER = re.compile(rf"[^\W\d_]|[{CJK}]")


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
            for above, below in zip(lines, lines[1:], strict=False)
            if above.whole is None and below.whole is None and above.column == below.column and above.page == below.page
            and above.size == below.size > 0 and 0.5 * below.size < below.bottom - above.bottom < 3 * below.size
        ]  # fmt: skip
        self.step = statistics.median(steps) if steps else 1.25
        self.levels: dict[tuple[float, bool], int] = {}

    def outlined(self, line: Line) -> int | None:
        """The level that the outline gives a line, from 1."""
        titles = self._outline.get(line.page)
        if not titles:
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
        if line.mono or len(text) > 200 or not _LETTER.search(text) or _LEADERS.search(text):
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

    def level(self, line: Line) -> int:
        """A heading's level: by the outline, by its number, by its kin; else by its size."""
        outlined = self.outlined(line)
        key = (round(line.size), line.bold)
        level = outlined if outlined is not None else _level_of_number(line.text)
        if level is not None:
            self.levels.setdefault(key, level)
            return min(level, 6)
        if key in self.levels:
            return min(self.levels[key], 6)
        larger = [known for (size, _), known in self.levels.items() if size > key[0]]
        return min(max(larger, default=0) + 1, 6)


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
    for line in lines:
        found.update(line.text.casefold().split())
    return frozenset(word.strip(".,;:()[]\"'“”") for word in found if word[-1] != "-")


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
        if kind == "code" and now is not None and near and now.kind == "list" and line.x0 > now.lines[0].x0:
            now.lines.append(line)
            return
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
        if line.mono and line.size > 0:
            return "code"
        if _BULLET.match(line.text) and not line.bold:
            return "list"
        if self._is_formula(line):
            return "formula"
        return "paragraph"

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
            return not (short or _END.search(last.text))
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
            bool(re.match(f"[{CJK}]", first)) and last.x1 > last.right - 2 * last.size
        ) or (last.x1 > last.right - last.size and line.x0 < line.left + 0.5 * line.size and not same)  # fmt: skip

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
            for line in part.lines[1:]:
                text = glue(text, line.text, known)
            text = _LEADERS.sub(" … ", text) if "..." in text or ". ." in text or "…" in text or "··" in text else text
        place = Place(part.lines[0].page, boxes_of(part.lines))
        return Block(part.kind, text, place, level=part.level, continued=part.continued)


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
    return "\n".join(" " * min(80, round((line.x0 - left) / max(width, 0.1))) + line.text for line in lines)


def _items(lines: Sequence[Line], known: frozenset[str]) -> str:
    """A list's items, a line each."""
    items: list[str] = []
    for line in lines:
        if _BULLET.match(line.text) or not items:
            items.append(_SIGN.sub("- ", line.text))
        else:
            items[-1] = glue(items[-1], line.text, known)
    return "\n".join(items)
