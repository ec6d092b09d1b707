"""Plain questions to SQL by rules, for where no capable model is: sums, means, counts, extremes, by column, filtered, grouped.

The tables' own words are found first and put aside (mentions); what is left are the few words by which English and Chinese ask for
a sum, a group, a comparison (phrases). What the rules did not use is told, so that nobody takes half a question's answer for the
whole one's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinyseek.knowledge.tables import phrases
from tinyseek.knowledge.tables.conditions import Condition, conditions_in
from tinyseek.knowledge.tables.mentions import Mention, is_chinese, mentions_in, normal
from tinyseek.knowledge.tables.schema import NUMERIC, ColumnInfo, TableInfo, quoted


@dataclass(frozen=True)
class PlainQuery:
    """A query that the rules wrote.

    Attributes:
        unused: words of the question that it does not use.
        assumed: what was taken for granted, a line each.
    """

    sql: str
    table: str
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass
class _Reading:
    """What was understood of a question so far."""

    table: TableInfo
    mentions: list[Mention]
    left: str  # of the question, with marks for mentions
    chinese: bool
    text: str  # the whole question
    used: set[int] = field(default_factory=set)  # numbers of mentions that have a part already
    keys: list[str] = field(default_factory=list)  # filters by a row's own number
    assumed: list[str] = field(default_factory=list)

    def take(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        """Find a pattern in what is left, and take it out."""
        found = re.search(pattern, self.left)
        if found:
            self.left = self.left[: found.start()] + " " + self.left[found.end() :]
        return found

    def say(self, chinese: str, english: str) -> None:
        self.assumed.append(chinese if self.chinese else english)


def plain_query(
    question: str, tables: Sequence[TableInfo], values: Sequence[tuple[str, str, str]]
) -> PlainQuery | None:
    """A question as SQL by rules; None where they find too little in it.

    Args:
        values: of `TableRoom.mentions(question)`.
    """
    text = normal(question)
    best: tuple[float, TableInfo, list[Mention]] | None = None
    for table in tables:
        mentions = mentions_in(text, table, values)
        score = sum((m.end - m.start) * (0.5 if m.part else 1.0) + 2 for m in mentions)
        score += 3 * any(normal(word) in text for word in (table.name, table.sheet, table.title) if len(word) > 1)
        if best is None or score > best[0]:
            best = score, table, mentions
    if best is None or best[0] <= 0:
        return None
    return _query(text, best[1], best[2])


def _query(text: str, table: TableInfo, mentions: list[Mention]) -> PlainQuery | None:
    left, at = "", 0
    for number, mention in enumerate(mentions):
        left += f"{text[at : mention.start]}{phrases.OPEN}{number}{phrases.CLOSE}"
        at = mention.end
    reading = _Reading(table, mentions, left + text[at:], is_chinese(text), text)
    for name in sorted({normal(table.name), normal(table.sheet), normal(table.title)} - {""}, key=len, reverse=True):
        reading.take(re.escape(name) + r"(?:表|\s+table|\s+sheet)?")
    conditions, reading.left = conditions_in(reading.left, mentions, table)
    reading.used |= {number for condition in conditions for number in condition.mentions}
    _nouns(reading)
    most = _most(reading)
    ranks = most > 1 or any(re.search(pattern, reading.left) for _, pattern in phrases.EXTREMES)
    by_number = bool(phrases.BY_NUMBER.search(reading.left))
    group = _group(reading, ranks)
    kinds = _kinds(reading)
    which = _which(reading, group)
    sort = reading.take(phrases.SORT)
    down = bool(reading.take(phrases.DOWN))
    where = _where(conditions, reading)
    measures = _measures(reading, group, which)
    extreme = next((kind for kind in kinds if kind in ("max", "min")), None)
    count = next((kind for kind in kinds if kind in ("count", "distinct")), None)
    if extreme and by_number and not count and not {"sum", "avg", "median"} & set(kinds):
        measures = _most_of(reading, which, group, measures, kinds)
        count = "count" if "count" in kinds else None
    aggregate = next((kind for kind in kinds if kind in ("sum", "avg", "median")), None)
    source = quoted(table.name)
    row = bool(phrases.ROW.search(text)) or not measures
    if extreme and (which or most > 1 or aggregate or count or group or row):
        sql = _ranked(reading, extreme, aggregate or count, which, group, measures, where, most)
    elif count:
        sql = _counted(reading, count, group, which, measures, where)
    elif aggregate or extreme:
        sql = _aggregated(reading, aggregate or extreme or "", group, measures, where, sort is not None, down)
    elif group and measures:
        reading.say("按组求和", "summed in each group")
        sql = _aggregated(reading, "sum", group, measures, where, sort is not None, down)
    elif group:
        sql = f"SELECT {group.sql}, {_counting(reading)} FROM {source}{where} GROUP BY 1 ORDER BY 1"
    else:
        compared = [condition.column for condition in conditions if condition.column is not None]
        sql = _listed(reading, which, measures, compared, where, sort, down)
    unused = tuple(word for word in re.split(r"\s+", phrases.SMALL.sub(" ", _bare(reading))) if word)
    if sql is None or (unused and not where and not (kinds or group)):
        return None  # a whole column is no answer to a question that says more
    return PlainQuery(sql, table.name, unused, tuple(reading.assumed))


def _bare(reading: _Reading) -> str:
    text = re.sub(phrases.MARK, " ", reading.left)
    return re.sub(r"[^\w%.]+|(?<!\d)\.|\.(?!\d)", " ", text)


# ---- what is asked ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    sql: str
    column: ColumnInfo


def _nouns(reading: _Reading) -> None:
    """Orders, where a column is called "Order ID", are the rows themselves; "order 1005" is one of them."""
    for number, mention in enumerate(reading.mentions):
        if mention.value is not None or not mention.part or not _is_a_key(mention.column, reading.table):
            continue
        reading.used.add(number)
        named = re.search(rf"{phrases.OPEN}{number}{phrases.CLOSE}\s*(?:no\.?|number|#|号)?\s*(\d+)", reading.left)
        if named:
            reading.keys.append(f"{quoted(mention.column.name)} = {named[1]}")
            reading.left = reading.left[: named.start()] + " " + reading.left[named.end() :]


def _most_of(
    reading: _Reading, which: ColumnInfo | None, group: _Group | None, measures: list[ColumnInfo], kinds: list[str]
) -> list[ColumnInfo]:
    """Who sold the most: the sum of each one's rows; of the amounts, where nothing else is named. Adds that to `kinds`."""
    subject = which or (group.column if group else None)
    named = [column for column in measures if _numeric(column)]
    if not named and any(column.type == "text" for column in measures):  # the most items: rows are counted
        kinds.append("count")
        return measures
    if not named:
        named = [c for c in reading.table.columns if _numeric(c) and phrases.AMOUNTS.search(c.title.lower())][:1]
    if named and subject is not None and subject.distinct < reading.table.rows:
        reading.say(f"按「{named[0].title}」的总和比较", f'compared by the sums of "{named[0].title}"')
        kinds.append("sum")
        return named
    return measures


def _group(reading: _Reading, ranks: bool) -> _Group | None:
    found = phrases.GROUP.search(reading.left)
    if found:
        number = int(found[1])
        mention = reading.mentions[number]
        measured = mention.column.type == "number" or (ranks and mention.column.type == "integer")
        if phrases.NO_GROUP.match(reading.left[found.end() :]):
            measured = True
        if mention.value is None and number not in reading.used and not measured:
            reading.left = reading.left[: found.start()] + " " + reading.left[found.end() :]
            reading.used.add(number)
            return _Group(quoted(mention.column.name), mention.column)
    dates = [column for column in reading.table.columns if column.type in ("date", "timestamp")]
    for period, pattern in phrases.PERIODS.items():
        if dates and reading.take(pattern):
            named = [m.column for m in reading.mentions if m.column in dates]
            column = named[0] if named else dates[0]
            name = quoted(column.name)
            if period == "year":
                return _Group(f"year({name})", column)
            if period == "quarter":
                return _Group(f"year({name}) || '-Q' || quarter({name})", column)
            if period == "month":
                return _Group(f"strftime({name}, '%Y-%m')", column)
            return _Group(f"date_trunc('{period}', {name})", column)
    if phrases.COMPARE.search(reading.left):
        for mention in reading.mentions:
            same = {m.value for m in reading.mentions if m.column == mention.column and m.value is not None}
            if len(same) > 1:
                return _Group(quoted(mention.column.name), mention.column)
    return None


def _most(reading: _Reading) -> int:
    found = phrases.TOP.search(reading.left)
    said = next((part for part in found.groups() if part), "1") if found else "1"
    if found:  # the number goes, the word stays: it says which end
        reading.left = reading.left[: found.start()] + found[0].replace(said, "", 1) + reading.left[found.end() :]
        if found[0].startswith("前"):
            reading.left = reading.left.replace("前", " 最高 " if "最" not in reading.left else " ", 1)
        elif found[0].startswith("后"):
            reading.left = reading.left.replace("后", " 最低 " if "最" not in reading.left else " ", 1)
    return min(int(said) if said.isdigit() else phrases.DIGITS.get(said) or phrases.ENGLISH_DIGITS.get(said, 1), 1000)


def _kinds(reading: _Reading) -> list[str]:
    found = []
    for kind, pattern in phrases.KINDS:
        if reading.take(pattern):
            found.append(kind)
            while reading.take(pattern):
                continue
    if "distinct" in found and "count" in found:
        found.remove("count")
    return found


def _which(reading: _Reading, group: _Group | None) -> ColumnInfo | None:
    """The column that names what is looked for."""
    for found in re.finditer(phrases.WHICH, reading.left):
        number = int(found[1])
        if reading.mentions[number].value is None and reading.mentions[number].column.type not in NUMERIC:
            reading.used.add(number)
            return reading.mentions[number].column
    if reading.take(phrases.WHO):
        return _naming(reading.table)
    for number, mention in enumerate(reading.mentions):
        grouped = group is not None and mention.column == group.column
        if number not in reading.used and mention.value is None and mention.column.type == "text" and not grouped:
            reading.used.add(number)
            return mention.column
    return None


def _naming(table: TableInfo) -> ColumnInfo | None:
    """The column that tells rows apart for a person: called a name, or a text that is different in most rows; or their number."""
    texts = [column for column in table.columns if column.type == "text" and 2 * column.distinct > table.rows]
    named = [column for column in texts if phrases.NAMES.search(column.title.lower())]
    keys = [column for column in table.columns if _is_a_key(column, table) and column.distinct == table.rows]
    return max(named or texts or keys, key=lambda column: column.distinct, default=None)


def _measures(reading: _Reading, group: _Group | None, which: ColumnInfo | None) -> list[ColumnInfo]:
    """The columns that are asked about, in the question's order."""
    found: list[ColumnInfo] = []
    for number, mention in enumerate(reading.mentions):
        taken = [*found, which, group.column if group else None]
        if mention.value is None and number not in reading.used and mention.column not in taken:
            found.append(mention.column)
    return found


def _where(conditions: Sequence[Condition], reading: _Reading) -> str:
    """The filters: what conditions say, and the cells that are mentioned."""
    parts = [condition.sql for condition in conditions] + reading.keys
    by_column: dict[tuple[str, bool], list[str]] = {}
    for number, mention in enumerate(reading.mentions):
        if mention.value is None or number in reading.used:
            continue
        reading.used.add(number)
        before = reading.left.split(f"{phrases.OPEN}{number}{phrases.CLOSE}")[0][-24:]
        negated = bool(phrases.NOT_BEFORE.search(before))
        if negated:
            reading.left = phrases.NOT_LEFT.sub(" ", reading.left)
        by_column.setdefault((mention.column.name, negated), []).append(mention.value)
    for (name, negated), values in by_column.items():
        listed = ", ".join(sorted({_text(value) for value in values}))
        one = len(set(values)) == 1
        if negated:
            parts.append(f"{quoted(name)} IS DISTINCT FROM {listed}" if one else f"{quoted(name)} NOT IN ({listed})")
        else:
            parts.append(f"{quoted(name)} = {listed}" if one else f"{quoted(name)} IN ({listed})")
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# ---- the query -------------------------------------------------------------------------------------------------------------------


def _measure(
    reading: _Reading, measures: Sequence[ColumnInfo], fits: Callable[[ColumnInfo], bool]
) -> ColumnInfo | None:
    """The column that is summed or compared; the only one that could be, where none is named."""
    for column in measures:
        if fits(column):
            return column
    could = [column for column in reading.table.columns if fits(column) and not _is_a_key(column, reading.table)]
    for said, titles in phrases.HINTS:
        hinted = [column for column in could if titles.search(column.title.lower())]
        if hinted and said.search(reading.text):
            reading.say(f"比较的是「{hinted[0].title}」", f'"{hinted[0].title}" is compared')
            return hinted[0]
    if len(could) == 1:
        reading.say(
            f"没有指明列，用的是「{could[0].title}」",
            f'no column was named; "{could[0].title}" is the only one that fits',
        )
        return could[0]
    return None


def _is_a_key(column: ColumnInfo, table: TableInfo) -> bool:
    """A number that only tells rows apart."""
    return (
        column.type == "integer" and column.distinct <= table.rows and bool(phrases.KEYS.search(column.title.lower()))
    )


def _numeric(column: ColumnInfo) -> bool:
    return column.type in NUMERIC


def _called(reading: _Reading, kind: str, column: ColumnInfo) -> str:
    """An aggregate with a name that says what it is."""
    chinese, english = phrases.CALLED[kind]
    name = f"{column.title}{chinese}" if reading.chinese else f"{english} {column.title}"
    return f"{kind}({quoted(column.name)}) AS {quoted(name)}"


def _counting(reading: _Reading, call: str = "count(*)") -> str:
    return f"{call} AS {quoted('数量' if reading.chinese else 'count')}"


def _ordered(column: ColumnInfo) -> bool:
    return column.type in (*NUMERIC, "date", "timestamp", "time")


def _aggregated(
    reading: _Reading,
    kind: str,
    group: _Group | None,
    measures: Sequence[ColumnInfo],
    where: str,
    by_amount: bool = False,
    down: bool = False,
) -> str | None:
    fits = _ordered if kind in ("max", "min") else _numeric
    named = [column for column in measures if fits(column)]
    if not named:
        column = _measure(reading, measures, fits)
        if column is None:
            return None
        named = [column]
    calls = ", ".join(_called(reading, kind, column) for column in named[:8])
    source = f"FROM {quoted(reading.table.name)}{where}"
    if group is None:
        return f"SELECT {calls} {source}"
    order = f"2{' DESC' if down else ''}" if by_amount or down else "1"
    return f"SELECT {group.sql}, {calls} {source} GROUP BY 1 ORDER BY {order}"


def _counted(
    reading: _Reading,
    kind: str,
    group: _Group | None,
    which: ColumnInfo | None,
    measures: Sequence[ColumnInfo],
    where: str,
) -> str:
    of = which or (measures[0] if measures else None)
    # "How many products are there?" asks for different ones only where the rows are not one product each.
    different = of is not None and (
        kind == "distinct" or (of.type == "text" and of.distinct < reading.table.rows - of.empty)
    )
    if different and kind == "count":
        reading.say("数的是不同的值", "different values are counted")
    call = (
        f"count(DISTINCT {quoted(of.name)})" if different and of else f"count({quoted(of.name)})" if of else "count(*)"
    )
    source = f"FROM {quoted(reading.table.name)}{where}"
    call = _counting(reading, call)
    return f"SELECT {group.sql}, {call} {source} GROUP BY 1 ORDER BY 1" if group else f"SELECT {call} {source}"


def _ranked(
    reading: _Reading,
    extreme: str,
    aggregate: str | None,
    which: ColumnInfo | None,
    group: _Group | None,
    measures: Sequence[ColumnInfo],
    where: str,
    most: int,
) -> str | None:
    """Which X has the highest Y: of rows, or of the sums of rows that share an X."""
    table, way = reading.table, "DESC" if extreme == "max" else "ASC"
    source = quoted(table.name)
    subject = which or (group.column if group else None)
    if aggregate in ("count", "distinct") or (
        aggregate is None and not measures and subject and subject.distinct < table.rows
    ):
        numeric = [c for c in table.columns if _numeric(c) and not _is_a_key(c, table)]
        if subject and (aggregate in ("count", "distinct") or not numeric):
            name = group.sql if group else quoted(subject.name)
            ranked = f"QUALIFY rank() OVER (ORDER BY count(*) {way}) <= {most} ORDER BY 2 {way}, 1"
            return f"SELECT {name}, {_counting(reading)} FROM {source}{where} GROUP BY 1 {ranked}"
    measure = _measure(reading, measures, _ordered)
    if measure is None:
        return None
    value = quoted(measure.name)
    if group and which and which != group.column and aggregate is None:  # in each group, the row of the extreme
        call = "arg_max" if extreme == "max" else "arg_min"
        best = f"{call}({quoted(which.name)}, {value}), {extreme}({value})"
        return f"SELECT {group.sql}, {best} FROM {source}{where} GROUP BY 1 ORDER BY 1"
    if group and not which and aggregate is None and most == 1:
        return f"SELECT {group.sql}, {_called(reading, extreme, measure)} FROM {source}{where} GROUP BY 1 ORDER BY 1"
    if aggregate and subject:
        name = group.sql if group and group.column == subject else quoted(subject.name)
        rank = f"rank() OVER (ORDER BY {aggregate}({value}) {way} NULLS LAST)"  # all of them, where several are alike
        order = f"QUALIFY {rank} <= {most} ORDER BY 2 {way} NULLS LAST, 1"
        return f"SELECT {name}, {_called(reading, aggregate, measure)} FROM {source}{where} GROUP BY 1 {order}"
    if subject is None:
        subject = _naming(table)
    shown = f"{quoted(subject.name)}, {value}" if subject else "*"
    if most == 1:
        also = f"{where} AND" if where else " WHERE"
        return f"SELECT {shown} FROM {source}{also} {value} = (SELECT {extreme}({value}) FROM {source}{where})"
    return f"SELECT {shown} FROM {source}{where} ORDER BY {value} {way} NULLS LAST LIMIT {most}"


def _listed(
    reading: _Reading,
    which: ColumnInfo | None,
    measures: Sequence[ColumnInfo],
    compared: Sequence[ColumnInfo],
    where: str,
    sort: re.Match[str] | None,
    down: bool,
) -> str | None:
    columns = ([which] if which else []) + [column for column in measures if column != which]
    filtered = [m.column for m in reading.mentions if m.value is not None and m.column not in columns]
    if not columns and not where:
        return None
    if where and columns:  # the cells that were asked by stand beside what was asked for
        columns = [*dict.fromkeys(filtered), *columns, *(column for column in compared if column not in columns)]
        if not filtered and (naming := _naming(reading.table)) and naming not in columns:
            columns = [naming, *columns]
    distinct = "DISTINCT " if which and columns == [which] and which.distinct < reading.table.rows else ""
    shown = ", ".join(quoted(column.name) for column in columns) if columns else "*"
    order = ""
    if sort:
        number = int(next(part for part in sort.groups() if part))
        order = f" ORDER BY {quoted(reading.mentions[number].column.name)}{' DESC' if down else ''}"
    elif distinct:
        order = " ORDER BY 1"
    return f"SELECT {distinct}{shown} FROM {quoted(reading.table.name)}{where}{order}"
