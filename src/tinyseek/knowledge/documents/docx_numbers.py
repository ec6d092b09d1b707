"""Word's styles and automatic numbers: what a paragraph is, and the "2.1" or "(a)" that Word writes before it.

The numbers are in no paragraph's text: they are counted here as Word counts them. Source: ECMA-376 part 1, 17.9 (numbering).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lxml import etree

from tinyseek.knowledge.documents.zipped import whole

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DEEPEST = 30  # styles based on styles
_LEVELS = 9
_CHINESE = "零一二三四五六七八九"
_IDEOGRAPHS = {
    "ideographTraditional": "甲乙丙丁戊己庚辛壬癸",
    "ideographZodiac": "子丑寅卯辰巳午未申酉戌亥",
    "decimalEnclosedCircle": "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳",
    "decimalEnclosedCircleChinese": "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳",
    "decimalEnclosedParen": "⑴⑵⑶⑷⑸⑹⑺⑻⑼⑽⑾⑿⒀⒁⒂⒃⒄⒅⒆⒇",
    "decimalEnclosedFullstop": "⒈⒉⒊⒋⒌⒍⒎⒏⒐⒑⒒⒓⒔⒕⒖⒗⒘⒙⒚⒛",
}


@dataclass(frozen=True)
class Style:
    """A paragraph style with what it takes from those that it is based on."""

    name: str = ""  # in lower case; Word's own names are English in every language
    outline: int | None = None  # level from 0
    number: str | None = None  # numId
    level: int | None = None
    bold: bool = False
    size: int = 0  # half points


def read_styles(root: etree._Element) -> dict[str, Style]:
    """Every style by its id."""
    raw = {entry.get(f"{W}styleId") or "": entry for entry in root.iterfind(f"{W}style")}
    known: dict[str, Style] = {}

    def resolved(style_id: str, depth: int) -> Style:
        if style_id in known:
            return known[style_id]
        entry = raw.get(style_id)
        if entry is None or depth > _DEEPEST:
            return Style()
        base = resolved(value(entry.find(f"{W}basedOn")) or "", depth + 1)
        name = (value(entry.find(f"{W}name")) or "").lower()
        outline = value(entry.find(f"{W}pPr/{W}outlineLvl"))
        number = value(entry.find(f"{W}pPr/{W}numPr/{W}numId"))
        level = value(entry.find(f"{W}pPr/{W}numPr/{W}ilvl"))
        size = value(entry.find(f"{W}rPr/{W}sz"))
        known[style_id] = Style(
            name,
            whole(outline, 9) if outline is not None else base.outline,
            number or base.number,
            whole(level, 0, 8) if level is not None else base.level,
            switched(entry.find(f"{W}rPr/{W}b"), base.bold),
            whole(size, base.size),
        )
        return known[style_id]

    for style_id in raw:
        resolved(style_id, 0)
    for entry in raw.values():
        if entry.get(f"{W}default") in ("1", "true", "on") and entry.get(f"{W}type") == "paragraph":
            known[""] = known[entry.get(f"{W}styleId") or ""]
    return known


def value(element: etree._Element | None) -> str | None:
    """What `w:val` says."""
    return None if element is None else element.get(f"{W}val")


def switched(element: etree._Element | None, otherwise: bool) -> bool:
    """Whether a property that is on or off is on."""
    return otherwise if element is None else element.get(f"{W}val", "1") not in ("0", "false", "off")


@dataclass(frozen=True)
class _Level:
    start: int = 1
    form: str = "decimal"
    text: str = ""  # "%1.%2"
    legal: bool = False  # all numbers in digits


@dataclass
class Numbering:
    """The counters of a document. Paragraphs are to be asked for in their order."""

    _lists: dict[str, dict[int, _Level]] = field(default_factory=dict)  # by abstract list
    _of: dict[str, str] = field(default_factory=dict)  # numId -> abstract list
    _overrides: dict[str, dict[int, _Level | int]] = field(default_factory=dict)
    _style_levels: dict[str, tuple[str, int]] = field(default_factory=dict)  # style id -> abstract list and level
    _counters: dict[str, list[int | None]] = field(default_factory=dict)
    _begun: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def read(cls, root: etree._Element) -> Numbering:
        found = cls()
        linked: dict[str, str] = {}  # name of a numbering style -> the list that defines it
        asks: dict[str, str] = {}
        for entry in root.iterfind(f"{W}abstractNum"):
            key = entry.get(f"{W}abstractNumId") or ""
            found._lists[key] = dict(_levels(entry))
            if name := value(entry.find(f"{W}styleLink")):
                linked[name] = key
            if name := value(entry.find(f"{W}numStyleLink")):
                asks[key] = name
            for level in entry.iterfind(f"{W}lvl"):
                if style := value(level.find(f"{W}pStyle")):
                    found._style_levels[style] = key, whole(level.get(f"{W}ilvl"), 0)
        for key, name in asks.items():
            found._lists[key] = found._lists.get(linked.get(name, ""), found._lists[key])
        for entry in root.iterfind(f"{W}num"):
            number = entry.get(f"{W}numId") or ""
            found._of[number] = value(entry.find(f"{W}abstractNumId")) or ""
            for change in entry.iterfind(f"{W}lvlOverride"):
                level_number = whole(change.get(f"{W}ilvl"), 0)
                start = value(change.find(f"{W}startOverride"))
                changed = dict(_levels(change)).get(level_number)
                changes = found._overrides.setdefault(number, {})
                if start is not None:
                    changes[level_number] = whole(start, 1)
                elif changed is not None:
                    changes[level_number] = changed
        return found

    def level_of_style(self, style_id: str) -> int | None:
        """The level of the list that names a style as its own."""
        return self._style_levels[style_id][1] if style_id in self._style_levels else None

    def next(self, number: str, level: int) -> str | None:
        """The label of the next paragraph of a list: "2.1", "(a)", "-" for any bullet; None if there is no such list."""
        key = self._of.get(number)
        if key is None or key not in self._lists or not 0 <= level < _LEVELS:
            return None
        levels, overrides = dict(self._lists[key]), self._overrides.get(number, {})
        counters = self._counters.setdefault(key, [None] * _LEVELS)
        for at, change in overrides.items():
            if isinstance(change, _Level):
                levels[at] = change
            elif (number, at) not in self._begun and at == level:
                counters[at] = change - 1
        self._begun.add((number, level))
        here = levels.get(level, _Level())
        before = counters[level]
        counters[level] = here.start if before is None else before + 1
        counters[level + 1 :] = [None] * (_LEVELS - level - 1)
        if here.form == "bullet":
            return "-"
        if here.form == "none":
            return re.sub(r"%\d", "", here.text).strip()

        def counted(found: re.Match[str]) -> str:
            at = int(found[1]) - 1
            of = levels.get(at, _Level())
            count = counters[at]
            return written(of.start if count is None else count, "decimal" if here.legal and at < level else of.form)

        return re.sub(r"%([1-9])", counted, here.text).strip()


def _levels(entry: etree._Element) -> list[tuple[int, _Level]]:
    return [
        (
            whole(level.get(f"{W}ilvl"), 0),
            _Level(
                whole(value(level.find(f"{W}start")), 1),
                _form(level),
                (value(level.find(f"{W}lvlText")) or "")[:100],
                switched(level.find(f"{W}isLgl"), False),
            ),
        )
        for level in entry.iterfind(f"{W}lvl")
    ]


def _form(level: etree._Element) -> str:
    direct = level.find(f"{W}numFmt")
    if direct is None:  # in AlternateContent, for formats that old versions do not know
        direct = next(level.iter(f"{W}numFmt"), None)
    return value(direct) or "decimal"


def written(count: int, form: str) -> str:
    """A number in one of Word's forms; digits where the form is unknown."""
    if count < 1:
        return str(count)
    if form in ("lowerLetter", "upperLetter"):
        letters = chr(97 + (count - 1) % 26) * min((count - 1) // 26 + 1, 40)  # after z comes aa, then bb
        return letters if form == "lowerLetter" else letters.upper()
    if form in ("lowerRoman", "upperRoman"):
        return _roman(count) if form == "upperRoman" else _roman(count).lower()
    if form in (
        "chineseCounting",
        "chineseCountingThousand",
        "taiwaneseCountingThousand",
        "japaneseCounting",
        "koreanCounting",
    ):
        return chinese(count)
    if form in ("ideographDigital", "taiwaneseDigital", "japaneseDigitalTenThousand", "taiwaneseCounting"):
        return chinese(count) if form == "taiwaneseCounting" else "".join(_CHINESE[int(digit)] for digit in str(count))
    if form in ("decimalZero",):
        return f"{count:02}"
    if form in ("ordinal",):
        ending = "th" if 10 < count % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
        return f"{count}{ending}"
    if form in _IDEOGRAPHS and count <= len(_IDEOGRAPHS[form]):
        return _IDEOGRAPHS[form][count - 1]
    if form in ("decimalFullWidth", "decimalFullWidth2"):
        return "".join(chr(0xFF10 + int(digit)) for digit in str(count))
    return str(count)


def _roman(count: int) -> str:
    signs = zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"],
        strict=True,
    )
    text = ""
    for size, sign in signs:
        times, count = divmod(count, size)
        text += sign * min(times, 100)
    return text


def chinese(count: int) -> str:
    """A number as Chinese counts it: 11 -> 十一, 205 -> 二百零五."""
    if count >= 10_000:
        return str(count)
    text, zero = "", False
    for size, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, count = divmod(count, size)
        if digit:
            one = "" if digit == 1 and size == 10 and not text else _CHINESE[digit]  # 十一, but 一百一十
            text += ("零" if zero and text else "") + one + unit
        zero = not digit
    return text
