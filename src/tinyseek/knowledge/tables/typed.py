"""What people type into cells, as numbers and dates: "1,234.50", "¥3.2万", "12%", "(45)", "2024年3月1日", "5 Mar 2024".

One column has one type. It is the narrowest that all of its cells, or nearly all, can be read as; what does not fit counts as empty
and is told. Numbers that are names (00123, 18-digit identity cards) stay text.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Type = Literal["integer", "number", "date", "timestamp", "time", "boolean", "text"]
Value = Any  # str, int, float, bool, datetime, date, time, timedelta or None

ALMOST = 0.9  # of a column's cells must fit its type
LONGEST_TEXT = 4_000  # characters of a cell that are kept
_NOTHING = {
    "",
    "-",
    "--",
    "—",
    "–",
    "―",
    "/",
    "n/a",
    "na",
    "nan",
    "null",
    "none",
    "nil",
    "无",
    "暂无",
    "空",
    "缺失",
    "#n/a",
    ".",
}
_NOTHING |= {"#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!"}  # what a formula says that failed
_LONGEST_NOTHING = max(map(len, _NOTHING))
_PLAIN = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,12})?", re.ASCII)
_WORDS = {"k": 3, "thousand": 3, "m": 6, "mn": 6, "million": 6, "b": 9, "bn": 9, "billion": 9}
_POWERS = {"%": -2, "‰": -3, "千": 3, "万": 4, "萬": 4, "百万": 6, "千万": 7, "亿": 8, "億": 8, "万亿": 12}
_CURRENCY = r"(?:US\$|HK\$|NT\$|R\$|[$€£¥￥₩₹]|USD|EUR|GBP|CNY|RMB|JPY)"
_SUFFIX = r"(?:%|‰|thousand|million|billion|mn|bn|[KkMB]\b|元|美元|欧元|千元|万元|亿元|万亿|百万|千万|[千万萬亿億])"
_NUMBER = re.compile(
    rf"(?P<open>\()?(?P<sign>[-+−])?\s*{_CURRENCY}?\s*(?P<sign2>[-+−])?"
    rf"(?P<digits>\d{{1,3}}(?:[ ,'’]\d{{3}})+(?:\.\d+)?|\d{{1,3}}(?:,\d{{4}})+|\d+(?:\.\d*)?|\.\d+)(?P<power>[eE][-+]?\d{{1,3}})?"
    rf"\s*(?P<unit>{_SUFFIX})?\s*{_CURRENCY}?(?P<close>\))?"
)
_EUROPEAN = re.compile(r"[-+]?\s*(?:\d{1,3}(?:\.\d{3})+,\d+|\d+,\d{1,2})\s*[€%]?")
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            *("jan january", "feb february", "mar march", "apr april", "may", "jun june", "jul july", "aug august"),
            *("sep sept september", "oct october", "nov november", "dec december"),
        ),
        1,
    )
    for name in names.split()
}
_CLOCK = r"(?:[T ]\s*(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d+)?)?\s*(?:Z|[+-]\d{2}:?\d{2})?)?"
_YEAR_FIRST = re.compile(
    r"(?P<y>\d{4})\s*[-/.年]\s*(?P<m>\d{1,2})\s*(?:[-/.月]\s*(?P<d>\d{1,2})\s*日?|月)?\s*" + _CLOCK
)
_YEAR_LAST = re.compile(r"(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<y>\d{4})" + _CLOCK)
_NAMED = re.compile(
    r"(?:(?P<d1>\d{1,2})(?:st|nd|rd|th)?[ -](?P<m1>[A-Za-z]{3,9})\.?,?[ -](?P<y1>\d{4})"
    r"|(?P<m2>[A-Za-z]{3,9})\.? (?P<d2>\d{1,2})(?:st|nd|rd|th)?,? (?P<y2>\d{4})|(?P<m3>[A-Za-z]{3,9})\.?[ -](?P<y3>\d{4}))"
)
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")


@dataclass(frozen=True)
class Typed:
    """A column's cells, all of one type.

    Attributes:
        odd: indices of cells that did not fit and count as empty.
        percent: its numbers were written with a percent sign; 12% is 0.12.
    """

    type: Type
    values: list[Value]
    odd: tuple[int, ...] = ()
    percent: bool = False


def typed(cells: Sequence[Value]) -> Typed:
    """A column's cells read as the narrowest type that fits."""
    plain = [_plain(cell) for cell in cells]
    filled = [cell for cell in plain if cell is not None]
    if not filled:
        return Typed("text", [None] * len(plain))
    for kind, read in (
        ("boolean", lambda cell: cell if isinstance(cell, bool) else None),
        ("number", numbers_of(filled)),
        ("date", dates_of(filled)),
        ("time", _time),
    ):
        found, odd = _read(plain, read, int((1 - ALMOST) * len(filled)))
        if len(odd) <= (1 - ALMOST) * len(filled) and len(odd) < len(filled):
            return _narrowed(kind, found, tuple(odd), plain)
    return Typed("text", [None if cell is None else text_of(cell)[:LONGEST_TEXT] for cell in plain])


def _read(cells: Sequence[Value], read: Callable[[Value], Value], most: int) -> tuple[list[Value], list[int]]:
    """All cells read, and which of them did not fit; given up when these are more than `most`. The same text is read once."""
    found: list[Value] = []
    odd: list[int] = []
    known: dict[str, Value] = {}
    for at, cell in enumerate(cells):
        if cell is None:
            found.append(None)
            continue
        if not isinstance(cell, str):
            value = read(cell)
        elif cell in known:
            value = known[cell]
        else:
            value = known[cell] = read(cell)
        if value is None:
            odd.append(at)
            if len(odd) > most:
                break
        found.append(value)
    return found, odd


def _narrowed(kind: str, found: list[Value], odd: tuple[int, ...], plain: list[Value]) -> Typed:
    filled = [value for value in found if value is not None]
    if kind == "number":
        written = [isinstance(cell, str) and cell.endswith(("%", "％")) for cell in plain if cell is not None]
        percent = all(written)
        if all(float(value).is_integer() and abs(value) < 2**53 for value in filled) and not any(written):
            return Typed("integer", [None if value is None else int(value) for value in found], odd)
        return Typed("number", [None if value is None else float(value) for value in found], odd, percent)
    if kind == "date":
        if any((value.hour, value.minute, value.second) != (0, 0, 0) for value in filled):
            return Typed("timestamp", found, odd)
        return Typed("date", [None if value is None else value.date() for value in found], odd)
    return Typed("boolean" if kind == "boolean" else "time", found, odd)


def _plain(cell: Value) -> Value:
    """A cell without what means nothing: blanks, dashes, "N/A", a formula's error."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    return None if len(text) <= _LONGEST_NOTHING and text.lower() in _NOTHING else text


def text_of(cell: Value) -> str:
    """A cell as text: whole numbers without a point, midnights without a clock."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, dt.datetime):
        return cell.isoformat(" ").removesuffix(" 00:00:00")
    return str(cell)


# ---- numbers ---------------------------------------------------------------------------------------------------------------------


def numbers_of(cells: Sequence[Value]) -> Callable[[Value], float | int | None]:
    """How this column's numbers are read: with a decimal point, or where only that fits with a decimal comma."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    comma = [text for text in texts if _EUROPEAN.fullmatch(text)]
    if comma and all(number(text) is None or re.fullmatch(r"[-+]?\d{1,3}(?:\.\d{3})*", text) for text in texts):
        return _european
    if any(_is_a_name(text) for text in texts):
        return lambda _: None
    return number


def _is_a_name(text: str) -> bool:
    """Digits that are no quantity: 00123, or more of them than a float holds."""
    return text.isdigit() and (len(text) > 15 or (len(text) > 1 and text.startswith("0")))


def number(cell: Value) -> float | int | None:
    """A cell as a number; None where it is none. A percentage is a part of one, 万 and 亿 are multiplied in."""
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int | float):
        return cell
    if not isinstance(cell, str) or len(cell) > 40:
        return None
    if _PLAIN.fullmatch(cell):
        return float(cell) if "." in cell else int(cell)
    found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", cell).strip())
    if found is None or bool(found["open"]) != bool(found["close"]):
        return None
    digits = re.sub(r"[ ,'’]", "", found["digits"]) + (found["power"] or "")
    unit = found["unit"] or ""
    if unit.lower() in ("k", "m", "b") and not re.search(_CURRENCY, found[0]):
        return None  # 5 M may be metres; $5M is not
    power = _WORDS.get(unit.lower()) or _POWERS.get(
        unit if unit in _POWERS else unit.removesuffix("元").removesuffix("美").removesuffix("欧"), 0
    )
    value: float | int = int(digits) if digits.isdigit() and not power else _scaled(digits, power)
    if not math.isfinite(value):
        return None
    negative = bool(found["open"]) or (found["sign"] or found["sign2"] or "+") in "-−"
    return -value if negative else value


def _scaled(digits: str, power: int) -> float:
    """12.3% as 0.123 and not as 0.12300000000000001."""
    return float(f"{digits}e{power}") if "e" not in digits.lower() else float(digits) * 10.0**power


def _european(cell: Value) -> float | int | None:
    if not isinstance(cell, str):
        return number(cell)
    return number(cell.replace(".", "").replace(",", "."))


# ---- dates -----------------------------------------------------------------------------------------------------------------------


def dates_of(cells: Sequence[Value]) -> Callable[[Value], dt.datetime | None]:
    """How this column's dates are read. 3/4/2024 is the fourth of March, unless another cell can only be day before month."""
    pairs = [found for cell in cells if isinstance(cell, str) and (found := _YEAR_LAST.fullmatch(cell))]
    day_first = any(int(pair["a"]) > 12 for pair in pairs) and not any(int(pair["b"]) > 12 for pair in pairs)
    return lambda cell: date(cell, day_first)


def date(cell: Value, day_first: bool = False) -> dt.datetime | None:
    """A cell as a moment; None where it is none. Plain numbers are none."""
    if isinstance(cell, dt.datetime):
        return cell.replace(tzinfo=None)
    if isinstance(cell, dt.date):
        return dt.datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, str) or len(cell) > 40:
        return None
    text = unicodedata.normalize("NFKC", cell).strip()
    if found := _YEAR_FIRST.fullmatch(text):
        return _moment(found["y"], found["m"], found["d"] or "1", found)
    if found := _YEAR_LAST.fullmatch(text):
        day, month = (found["a"], found["b"]) if day_first else (found["b"], found["a"])
        return _moment(found["y"], month, day, found)
    if found := _NAMED.fullmatch(text):
        month_name = (found["m1"] or found["m2"] or found["m3"]).lower()
        day = found["d1"] or found["d2"] or "1"
        return _moment(found["y1"] or found["y2"] or found["y3"], str(_MONTHS.get(month_name, 0)), day, None)
    return None


def _moment(year: str, month: str, day: str, clock: re.Match[str] | None) -> dt.datetime | None:
    hour, minute, second = (int(clock[name] or 0) for name in ("hour", "minute", "second")) if clock else (0, 0, 0)
    try:
        return dt.datetime(int(year), int(month), int(day), hour, minute, second)
    except ValueError:
        return None


def month_number(name: str) -> int | None:
    """Of an English month's name or its beginning."""
    return _MONTHS.get(name.lower().rstrip("."))


def _time(cell: Value) -> dt.time | None:
    if isinstance(cell, dt.time):
        return cell.replace(tzinfo=None)
    found = _TIME.fullmatch(cell) if isinstance(cell, str) else None
    try:
        return dt.time(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
    except ValueError:
        return None
