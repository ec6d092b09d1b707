"""What a workbook's cell holds, and how it is written out: numbers in their format's sense, never rounded.

A number format says whether 45352 is a day, 0.153 a share, 1 the code "000001". Digits are not cut as a format would cut them on
the screen: an answer may be checked to the last one.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Literal

Value = str | int | float | bool | dt.datetime | dt.date | dt.time | dt.timedelta | None

_BUILT_IN: dict[int, str] = {
    9: "0%", 10: "0.00%", 14: "yyyy-mm-dd", 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy", 18: "h:mm", 19: "h:mm:ss",
    20: "h:mm", 21: "h:mm:ss", 22: "m/d/yy h:mm", 45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0",
    **dict.fromkeys([*range(27, 32), 36, *range(50, 59)], "yyyy-mm-dd"), **dict.fromkeys(range(32, 36), "h:mm:ss"),
}  # fmt: skip
_PART = re.compile(
    r'"([^"]*)"|\\(.)|\[\$([^\]-]*)[^\]]*\]|\[([^\]]*)\]|_.|\*.|([0#?][0#?.,/ ]*(?:[eE][+-]0+)?)|(.)', re.S
)
_WIDEST = 20  # digits that a number is filled up to with zeros


@dataclass(frozen=True)
class Sheet:
    """A sheet's cells with typed values: what questions by SQL are asked of.

    Attributes:
        name: of the sheet; of a CSV file, the file's.
        top: number of its first row, from 1. left: of its first column.
        rows: all of one length; None is empty, or a formula whose value was not kept.
        merged: row, column, rows, columns of merged cells, indices into `rows`; only the first cell has the value.
        hidden: in the workbook.
        notes: what makes sums of it wrong, a line each.
    """

    name: str
    top: int
    left: int
    rows: tuple[tuple[Value, ...], ...]
    merged: tuple[tuple[int, int, int, int], ...] = ()
    hidden: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NumberFormat:
    """What a number format says of a cell's number."""

    kind: Literal["number", "date", "time", "date and time", "duration"] = "number"
    percent: bool = False
    before: str = ""  # written before the number: "$"
    after: str = ""  # and after it: " kg"
    digits: int = 0  # filled up with zeros to so many: codes


GENERAL = NumberFormat()


def number_format(number: int, code: str | None) -> NumberFormat:
    """What a format means.

    Args:
        number: its numFmtId; built in below 164.
        code: its text, where the workbook gives one.
    """
    code = code if code is not None else _BUILT_IN.get(number, "General")
    if code.lower() in ("general", "@", ""):
        return GENERAL
    section = re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', code[:255])[0]
    section = re.sub("general", "#", section, flags=re.I)
    letters, before, after, digits, percent, elapsed = "", "", "", "", False, False
    for quoted, escaped, currency, bracket, placeholder, other in _PART.findall(section):
        if bracket:
            elapsed |= bracket.lower().strip("hms") == ""
        elif placeholder:
            digits += placeholder
        elif other and other.lower() in "ymdhsegb":
            letters += other.lower()
        elif other == "%":
            percent = True
        else:
            literal = quoted or escaped or currency or (other if other in "$¥€£₩₹元" else "")
            before, after = (before, after + literal) if digits else (before + literal, after)
    if elapsed:
        return NumberFormat("duration")
    if letters and not digits.strip("0."):  # 0 after the dot of seconds: "ss.0"
        day, hour = bool(set(letters) & set("ydegb")), bool(set(letters) & set("hs"))
        return NumberFormat("date and time" if day and hour else "time" if hour else "date")
    if digits.rstrip(". ").endswith(",") or "/" in digits:  # counted in thousands: the number itself says more
        return NumberFormat(percent=percent)
    codes = digits.strip()
    filled = len(codes) if codes and not codes.strip("0") and 1 < len(codes) <= _WIDEST else 0
    return NumberFormat("number", percent, before, after, filled)


def from_serial(serial: float, kind: str, since_1904: bool) -> Value:
    """A day's number as a date, time or duration; the number itself where it is none.

    Excel's calendar of 1900 counts a 29 February that never was.
    """
    try:
        if kind == "duration":
            return dt.timedelta(days=round(serial * 86_400_000) / 86_400_000)
        milliseconds = round(serial * 86_400_000)  # Excel keeps no more, and 0.1 day is no sum of powers of two
        days, rest = divmod(milliseconds, 86_400_000)
        if kind == "time" and days == 0:
            return (dt.datetime.min + dt.timedelta(milliseconds=rest)).time()
        start = dt.datetime(1904, 1, 1) if since_1904 else dt.datetime(1899, 12, 30 if days >= 60 else 31)
        moment = start + dt.timedelta(days=days, milliseconds=rest)
    except (OverflowError, ValueError):
        return serial
    return moment.date() if kind == "date" and rest == 0 else moment


def write_value(value: Value, form: NumberFormat = GENERAL) -> str:
    """A value as text. Dates and times are ISO; a whole minute has no seconds, midnight no time."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        if form is GENERAL:
            return _digits(value)
        return _number(value, form)
    if isinstance(value, dt.datetime):
        if value.time() == dt.time():
            return value.date().isoformat()
        return value.isoformat(" ", "seconds" if value.second else "minutes")
    if isinstance(value, dt.time):
        return value.isoformat("seconds" if value.second else "minutes")
    if isinstance(value, dt.date):
        return value.isoformat()
    seconds = round(value.total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    return f"{sign}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _digits(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e21:
        return f"{value:.0f}"
    return f"{value:.15g}"  # as many as Excel shows: 0.1 + 0.2 is 0.3


def _number(value: int | float, form: NumberFormat) -> str:
    sign = "-" if value < 0 else ""
    size = abs(value)
    if form.percent:
        return f"{sign}{form.before}{_digits(float(f'{size * 100:.15g}'))}%{form.after}"
    text = _digits(size)
    if form.digits and text.isdigit():
        text = text.zfill(form.digits)
    return f"{sign}{form.before}{text}{form.after}"


def column_name(column: int) -> str:
    """A column's letters, from 0: 27 -> "AB"."""
    letters = ""
    column += 1
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return letters


def column_number(letters: str) -> int:
    """Back from `column_name`; -1 for what is none."""
    number = 0
    for letter in letters.upper():
        if not "A" <= letter <= "Z":
            return -1
        number = number * 26 + ord(letter) - 64
    return number - 1


def cell_range(top: int, left: int, rows: int, columns: int) -> str:
    """ "B2:D9" of a corner, counted from 0, and a size; "B2" for one cell."""
    first = f"{column_name(left)}{top + 1}"
    return first if rows == columns == 1 else f"{first}:{column_name(left + columns - 1)}{top + rows}"


def read_range(text: str) -> tuple[int, int, int, int] | None:
    """Back from `cell_range`: top, left, rows, columns; None for what is no range."""
    found = re.fullmatch(r"\$?([A-Za-z]{1,3})\$?(\d{1,7})(?::\$?([A-Za-z]{1,3})\$?(\d{1,7}))?", text.strip())
    if not found:
        return None
    left, top = column_number(found[1]), int(found[2]) - 1
    right, bottom = (column_number(found[3]), int(found[4]) - 1) if found[3] else (left, top)
    if top < 0 or right < left or bottom < top:
        return None
    return top, left, bottom - top + 1, right - left + 1
