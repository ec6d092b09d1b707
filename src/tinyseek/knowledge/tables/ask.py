"""Questions over the sheets of a collection: question -> query -> checked and run -> result, with the cells it came from.

    room = TableRoom(files_of(kb.index))
    reply = ask_tables(room, "Which region sold the most?", model)
    print(reply.markdown())

The numbers of an answer are the query's, never the model's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyseek.errors import UserError
from tinyseek.knowledge.index.base import Filters, Index
from tinyseek.knowledge.tables.chart import Chart, chart_of, drawable, png, shown
from tinyseek.knowledge.tables.mentions import is_chinese, mentions_in, normal
from tinyseek.knowledge.tables.plain import plain_query
from tinyseek.knowledge.tables.room import QueryError, SheetFile, TableRoom
from tinyseek.knowledge.tables.schema import Result, TableInfo
from tinyseek.knowledge.tables.written import fitting, mended, write
from tinyseek.llm.base import ChatModel, Message, Usage

KINDS = ("xlsx", "csv")
MOST_ROWS_SHOWN = 50


@dataclass(frozen=True)
class Source:
    """Where an answer's numbers stand."""

    file: str
    document: int
    sheet: str
    cells: str  # of the result where they are known; else of the whole table


@dataclass(frozen=True)
class TableReply:
    """An answer over tables.

    Attributes:
        how: a model wrote the query, or rules did; "none" where there is no query.
        text: the answer in a sentence, in the question's language.
        notes: what to know of it, a line each: what was assumed, left out, not understood.
        usage: of the model, all tries together.
    """

    question: str
    how: Literal["model", "rules", "none"]
    text: str
    sql: str = ""
    result: Result | None = None
    sources: tuple[Source, ...] = ()
    chart: Chart | None = None
    notes: tuple[str, ...] = ()
    usage: Usage | None = None

    def picture(self) -> bytes | None:
        """The chart as PNG, where one helps and there is a font for it."""
        there = self.chart is not None and self.result is not None and drawable(self.chart, self.result)
        return png(self.chart, self.result) if there and self.chart and self.result else None

    def markdown(self, rows: int = MOST_ROWS_SHOWN) -> str:
        """All of it to be read: the answer, the result, the query, where it stands, what to know."""
        zh = is_chinese(self.question)
        parts = [self.text]
        if self.result and (len(self.result.rows) > 1 or len(self.result.columns) > 1):
            parts.append(_table(self.result, rows, zh))
        if self.sql:
            parts.append(f"```sql\n{self.sql}\n```")
        if self.sources:
            listed = "; ".join(", ".join(filter(None, (s.file, s.sheet, s.cells))) for s in self.sources)
            parts.append(f"{'出处：' if zh else 'From '}{listed}")
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the picture."""
        result = self.result
        return {
            "question": self.question,
            "how": self.how,
            "text": self.text,
            "sql": self.sql,
            "columns": list(result.columns) if result else [],
            "types": list(result.types) if result else [],
            "rows": [list(row) for row in result.rows] if result else [],
            "more": bool(result and result.more),
            "cells": [list(row) for row in result.cells] if result else [],
            "sources": [vars(source) for source in self.sources],
            "chart": self.chart.plain() if self.chart else None,
            "notes": list(self.notes),
        }


def files_of(index: Index, filters: Filters | None = None) -> list[SheetFile]:
    """The files with tables of a collection that are still where they were."""
    documents = [document for document in index.documents(filters or Filters()) if document.kind in KINDS]
    return [SheetFile(Path(d.source), d.name, d.id, d.sha256) for d in documents if Path(d.source).is_file()]


def ask_tables(
    room: TableRoom, question: str, model: ChatModel | None = None, history: Sequence[Message] = ()
) -> TableReply:
    """Answer a question over tables.

    Args:
        model: that writes the query; without one, and where it fails, rules do.
        history: what was said before, for "and in 2023?".
    Raises:
        UserError: there is no table to ask, or the question is empty or too long.
    """
    question = question.strip()
    if not question or len(question) > 4_000:
        raise UserError("a question over tables has 1 to 4,000 characters")
    if not room.tables:
        why = "; ".join(f"{file.name}: {reason}" for file, reason in room.loaded.failed[:3])
        raise UserError(f"there is no table to ask{': ' + why if why else '; add XLSX or CSV files first'}")
    values = room.mentions(question)
    nearest = _nearest(question, room.tables, values)[: room.settings.tables_shown]
    notes: list[str] = []
    usage: Usage | None = None
    if model is not None:
        reply, usage = _by_model(room, question, nearest, model, history, notes)
        if reply is not None:
            return reply
    return _by_rules(room, question, nearest, values, notes, usage)


def _by_model(
    room: TableRoom,
    question: str,
    tables: Sequence[TableInfo],
    model: ChatModel,
    history: Sequence[Message],
    notes: list[str],
) -> tuple[TableReply | None, Usage | None]:
    zh = is_chinese(question)
    messages = fitting(question, tables, history, model)
    spent: Usage | None = None
    error = ""
    for _ in range(room.settings.tries):
        try:
            written = write(messages, model)
        except UserError as problem:
            notes.append(f"{'模型没有回答' if zh else 'the model did not answer'}: {problem}")
            return None, spent
        spent = _added(spent, written.usage)
        if written.why_not:
            text = (
                written.why_not
                if len(written.why_not) > 1
                else ("表格里没有答案。" if zh else "The tables do not answer this.")
            )
            return TableReply(question, "none", text, notes=tuple(notes), usage=spent), spent
        if written.sql:
            try:
                return _reply(room, question, "model", written.sql, room.run(written.sql), notes, spent), spent
            except QueryError as problem:
                error = str(problem)
        messages = mended(messages, written, error)
    told = error or ("没有写出查询" if zh else "it wrote no query")
    times = room.settings.tries
    notes.append(
        f"模型写的查询{times}次都不能用（{told}）"
        if zh
        else f"the model's query would not do in {times} tries ({told})"
    )
    return None, spent


def _by_rules(
    room: TableRoom,
    question: str,
    tables: Sequence[TableInfo],
    values: Sequence[tuple[str, str, str]],
    notes: list[str],
    usage: Usage | None,
) -> TableReply:
    zh = is_chinese(question)
    query = plain_query(question, tables, values)
    if query is None:
        return TableReply(question, "none", _not_understood(tables, zh), notes=tuple(notes), usage=usage)
    if query.unused:  # first: it may be half of the question
        words = "、".join(query.unused) if zh else ", ".join(f'"{word}"' for word in query.unused)
        notes.append(f"没有用到的词：{words}" if zh else f"not used of the question: {words}")
    notes += query.assumed
    notes.append("由规则而非模型写成查询" if zh else "the query was written by rules, without a model")
    try:
        result = room.run(query.sql)
    except QueryError as problem:
        notes.append(str(problem))
        return TableReply(question, "none", _not_understood(tables, zh), query.sql, notes=tuple(notes), usage=usage)
    return _reply(room, question, "rules", query.sql, result, notes, usage)


def _reply(
    room: TableRoom,
    question: str,
    how: Literal["model", "rules"],
    sql: str,
    result: Result,
    notes: Sequence[str],
    usage: Usage | None,
) -> TableReply:
    by_name = {table.name: table for table in room.tables}
    read = [by_name[name] for name in result.tables]
    told = [*notes, *(f"{table.place}: {note}" for table in read for note in table.notes)]
    for file, why in room.loaded.failed:
        told.append(f"{file.name}: {why}")
    sources = tuple(Source(t.file, t.document, t.sheet, _cells(result, t, len(read) == 1)) for t in read)
    return TableReply(
        question, how, _sentence(result, is_chinese(question)), sql, result, sources, chart_of(result, question), tuple(told), usage
    )  # fmt: skip


def _cells(result: Result, table: TableInfo, alone: bool) -> str:
    """The cells behind a short result; of a long one, or where they are not known, the table's."""
    if not alone or not result.cells or len(result.rows) > 1:
        return table.cells
    return ", ".join(dict.fromkeys(filter(None, result.cells[0]))) or table.cells


def _sentence(result: Result, zh: bool) -> str:
    if not result.rows or all(cell is None for row in result.rows for cell in row):
        return "没有符合条件的行。" if zh else "No row fits."
    if len(result.rows) == 1:
        pairs = [f"{name}: {shown(cell)}" for name, cell in zip(result.columns, result.rows[0], strict=True)]
        return ("；" if zh else "; ").join(pairs)
    count = f"{len(result.rows):,}"
    if result.more:
        return f"前 {count} 行（还有更多）：" if zh else f"The first {count} rows, of more:"
    return f"{count} 行：" if zh else f"{count} rows:"


def _table(result: Result, most: int, zh: bool) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [line(result.columns), "|" + " --- |" * len(result.columns)]
    lines += [line([shown(cell) for cell in row]) for row in result.rows[:most]]
    left = len(result.rows) - most
    if left > 0:
        lines.append(f"\n{'另有' if zh else 'and'} {left:,} {'行' if zh else 'more rows'}")
    return "\n".join(lines)


def _not_understood(tables: Sequence[TableInfo], zh: bool) -> str:
    listed = "\n".join(f"- {t.name} ({t.place}): {', '.join(c.title for c in t.columns[:12])}" for t in tables[:8])
    if zh:
        return (
            f"没有读懂这个问题。请用表格里的列名来问，例如“各地区的销售额总和”“价格最高的3个产品”。现有的表：\n{listed}"
        )
    return (
        'The question was not understood. Ask with the words of the tables: "total revenue by region", "top 3 products by price". '
        f"There are:\n{listed}"
    )


def _nearest(question: str, tables: Sequence[TableInfo], values: Sequence[tuple[str, str, str]]) -> list[TableInfo]:
    """The tables, those first of which most is mentioned."""
    text = normal(question)

    def score(table: TableInfo) -> float:
        said = sum(m.end - m.start for m in mentions_in(text, table, values))
        names = re.findall(r"[^\W_]{2,}", normal(f"{table.file} {table.sheet} {table.title}"))
        return said + 2 * sum(name in text for name in set(names))

    return sorted(tables, key=score, reverse=True)


def _added(spent: Usage | None, more: Usage | None) -> Usage | None:
    if spent is None or more is None:
        return spent or more
    cost = None if spent.cost is None and more.cost is None else (spent.cost or 0) + (more.cost or 0)
    return Usage(
        spent.prompt_tokens + more.prompt_tokens,
        spent.completion_tokens + more.completion_tokens,
        spent.cached_tokens + more.cached_tokens,
        spent.reasoning_tokens + more.reasoning_tokens,
        cost,
    )
