"""Comparisons in a question: "price above 100", "at least 3 years", "in March 2024", "销售额超过5万", "2023年第一季度"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseek.knowledge.tables.mentions import Mention
from tinyseek.knowledge.tables.schema import NUMERIC, ColumnInfo, TableInfo, quoted
from tinyseek.knowledge.tables.typed import date, month_number, number

_UNITS = r"(?:\s?(?:thousand|million|billion|[km]\b|%|千|百万|千万|万亿|[万亿]))?"
_AMOUNT = rf"[$€£¥]?\d[\d,]*(?:\.\d+)?{_UNITS}"
_MONTHS = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = (
    rf"{_MONTHS}\.? (?:\d{{1,2}},? )?(?:of )?\d{{4}}|"
    r"\d{4}(?:[-/.]\d{1,2}(?:[-/.]\d{1,2})?|年(?:\d{1,2}月(?:\d{1,2}日)?)?)"
)
_VALUE = rf"({_DATE}|{_AMOUNT})"
_COUNTED = r"(?:\s*(?:years?(?: old)?|dollars|usd|yuan|[元岁个人件台次分])(?![a-z]))?"
_BEFORE = [  # the operator, then the value
    (
        ">=",
        "at least|no less than|not less than|no fewer than|from|since|starting|>=|≥|大于等于|不少于|不低于|不小于|至少|自从?",
    ),
    ("<=", "at most|no more than|not more than|up to|until|<=|≤|小于等于|不超过|不多于|不高于|不大于|至多|截至"),
    (
        ">",
        "(?:more|greater|bigger|higher|larger|older|later|longer|taller) than|over|above|exceed(?:s|ing)?|after|>"
        "|大于|超过|高于|多于|晚于|超出",
    ),
    (
        "<",
        "(?:less|fewer|lower|smaller|younger|earlier|shorter|cheaper) than|under|below|before|<"
        "|小于|低于|少于|不到|不足|早于|未满",
    ),
    ("=", "equals?(?: to)?|equal to|exactly|=|等于|恰好"),
]
_AFTER = [  # the value, then the operator
    (">=", r"or more|or above|and above|\+|以上|及以上|之后|以后"),
    ("<=", "or less|or below|and below|以下|以内|及以下|之内"),
    ("<", "之前|以前"),
]
_BETWEEN = re.compile(
    rf"(?:between|from|介于|在)\s*{_VALUE}\s*(?:and|to|-|~|到|至|和|与)\s*{_VALUE}(?:\s*之?间)?|{_VALUE}\s*(?:到|至|~|—)\s*{_VALUE}(?:\s*之?间)?"
)
_QUARTERS = {"一": 1, "二": 2, "三": 3, "四": 4, "first": 1, "second": 2, "third": 3, "fourth": 4}
_QUARTER = re.compile(r"\bq([1-4])\b|(?:the )?\b(first|second|third|fourth) quarter\b|第?([一二三四1-4])季度")
_MONTH_YEAR = re.compile(r"\b([a-z]{3,9})\.?,? (?:of )?((?:19|20)\d{2})\b|((?:19|20)\d{2})年(\d{1,2})月(?:份)?")
_YEAR = re.compile(
    r"(?:\b(?:in|of|for|during|year)\s+(?:the\s+year\s+)?)?(?<![\d.,-])((?:19|20)\d{2})(?![\d.,]*\d)(?:\s*年(?:度|份)?)?"
)
_MONTH = re.compile(r"\b(?:in|of|for|during)\s+([a-z]{3,9})\b|(?<!\d)(\d{1,2})月(?:份)?")
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Condition:
    """A filter, and the mentions of columns that it is about."""

    sql: str
    mentions: tuple[int, ...] = ()
    column: ColumnInfo | None = None  # that is compared, to be shown beside what was asked for


def conditions_in(left: str, mentions: Sequence[Mention], table: TableInfo) -> tuple[list[Condition], str]:
    """The comparisons in what is left of a question, and what is left then.

    Args:
        left: the question, each mention replaced by its number between two marks.
    """
    reader = _Reader(left, mentions, table)
    reader.between()
    for operator, words in _BEFORE:
        wordy = rf"(?:(?<![a-z])(?:{words})(?![a-z]))"
        reader.compare(
            rf"(?:(?:is|are|was|were|that|为|是)\s*)?(?<![不])(?:{wordy})\s*(?:\ue000\d+\ue001\s*)?(?:of\s+)?{_VALUE}{_COUNTED}",
            operator,
        )
    for operator, words in _AFTER:
        reader.compare(rf"{_VALUE}{_COUNTED}\s*(?:{words})", operator)
    reader.calendar()
    return reader.found, reader.left


class _Reader:
    def __init__(self, left: str, mentions: Sequence[Mention], table: TableInfo) -> None:
        self.left, self._mentions, self._table = left, mentions, table
        self.found: list[Condition] = []
        self._dates = [column for column in table.columns if column.type in ("date", "timestamp")]
        self._years = [c for c in table.columns if c.type == "integer" and _in_years(c)]

    def between(self) -> None:
        """`between A and B`, both ends included."""
        while found := _BETWEEN.search(self.left):
            low, high = [part for part in found.groups() if part is not None][:2]
            column, used = self._column_for(found.start(), found.end(), low)
            ends = [_literal(low, column), _literal(high, column, last=True)] if column else []
            if column is None or None in ends:
                return
            self._add(f"{quoted(column.name)} BETWEEN {ends[0]} AND {ends[1]}", used, found, column)

    def compare(self, pattern: str, operator: str) -> None:
        """One operator wherever it stands."""
        at = 0
        while found := re.compile(pattern).search(self.left, at):
            column, used = self._column_for(found.start(), found.end(), found[1])
            literal = _literal(found[1], column, last=operator in (">", "<=")) if column else None
            if column is None or literal is None:
                at = found.end()
                continue
            self._add(f"{quoted(column.name)} {operator} {literal}", used, found, column)

    def calendar(self) -> None:
        """Years, quarters and months, of the table's column of dates; years also of a column of years."""
        named = self._named_date()
        column = self._mentions[named].column if named is not None else self._dates[0] if self._dates else None
        before = len(self.found)
        if column is not None:
            name = quoted(column.name)
            for found in _MONTH_YEAR.finditer(self.left):
                month = month_number(found[1]) if found[1] else int(found[4])
                if month and 1 <= month <= 12:
                    self._add(f"year({name}) = {found[2] or found[3]} AND month({name}) = {month}", (), found)
                    break
            if quarter := _QUARTER.search(self.left):
                said = next(part for part in quarter.groups() if part)
                self._add(f"quarter({name}) = {_QUARTERS.get(said) or int(said)}", (), quarter)
        if column is not None or self._years:
            of = f"year({quoted(column.name)})" if column is not None else quoted(self._years[0].name)
            years = []
            while year := _YEAR.search(self.left):
                years.append(year[1])
                self.left = self.left[: year.start()] + " " + self.left[year.end() :]
            if years:
                self.found.append(
                    Condition(f"{of} = {years[0]}" if len(years) == 1 else f"{of} IN ({', '.join(years)})")
                )
        if column is not None:
            for found in _MONTH.finditer(self.left):
                month = month_number(found[1]) if found[1] else int(found[2])
                if month and 1 <= month <= 12:
                    self._add(f"month({quoted(column.name)}) = {month}", (), found)
                    break

        if named is not None and len(self.found) > before:  # "入职" in "2021年入职的员工" has said its part
            self.found[before] = Condition(self.found[before].sql, (named,))

    def _add(self, sql: str, used: tuple[int, ...], found: re.Match[str], column: ColumnInfo | None = None) -> None:
        self.found.append(Condition(sql, used, column))
        kept = "".join(mark[0] for mark in _MARK.finditer(found[0]) if int(mark[1]) not in used)
        self.left = self.left[: found.start()] + f" {kept} " + self.left[found.end() :]

    def _named_date(self) -> int | None:
        """The mention of a column of dates."""
        return next((at for at, m in enumerate(self._mentions) if m.value is None and m.column in self._dates), None)

    def _column_for(self, start: int, end: int, value: str) -> tuple[ColumnInfo | None, tuple[int, ...]]:
        """The column that a comparison is about: the nearest before it that fits, the nearest after it, or the only one."""
        wanted = _wanted(value)
        before = [int(mark[1]) for mark in _MARK.finditer(self.left[:start])]
        within = [int(mark[1]) for mark in _MARK.finditer(self.left[start:end])]
        after = [int(mark[1]) for mark in _MARK.finditer(self.left[end : end + 12])]
        for at in [*within, *before[::-1][:2], *after]:
            mention = self._mentions[at]
            if mention.value is None and mention.column.type in wanted:
                return mention.column, (at,)
        could = [column for column in self._table.columns if column.type in wanted]
        return (could[0], ()) if len(could) == 1 else (None, ())


def _wanted(value: str) -> tuple[str, ...]:
    if re.fullmatch(r"(?:19|20)\d{2}年?", value.strip()):
        return ("date", "timestamp", *NUMERIC)
    return ("date", "timestamp") if date(value) is not None else NUMERIC


def _literal(value: str, column: ColumnInfo, last: bool = False) -> str | None:
    """A value as SQL writes it for a column. `last`: of a year or a month its last day is meant."""
    text = value.strip()
    if column.type in NUMERIC:
        plain = text.rstrip("年")
        amount = number(f"${plain}" if plain[-1:] in "kmKM" else plain)
        return None if amount is None else repr(amount)
    year = re.fullmatch(r"(\d{4})年?", text)
    month = re.fullmatch(r"(\d{4})[-/.年](\d{1,2})月?", text)
    if named := re.fullmatch(rf"({_MONTHS})\.? (?:of )?(\d{{4}})", text):
        month = re.fullmatch(r"(\d+) (\d+)", f"{named[2]} {month_number(named[1]) or 0}")
    if year:
        return f"DATE '{year[1]}-12-31'" if last else f"DATE '{year[1]}-01-01'"
    if month and 1 <= int(month[2]) <= 12:
        first = f"DATE '{month[1]}-{int(month[2]):02}-01'"
        return f"last_day({first})" if last else first
    day = date(text)
    return None if day is None else f"DATE '{day.date().isoformat()}'"


def _in_years(column: ColumnInfo) -> bool:
    low, high = column.smallest, column.largest
    return isinstance(low, int) and isinstance(high, int) and low >= 1900 and high <= 2100
