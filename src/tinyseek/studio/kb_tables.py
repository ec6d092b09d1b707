"""An answer over sheets on the page: the result, a chart where one helps, the query, and the cells behind each number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.knowledge.tables.ask import TableReply
from tinyseek.knowledge.tables.chart import is_numeric, shown
from tinyseek.studio.chats import Chats, Message
from tinyseek.studio.kb_chart import chart
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.kb_writing import Writing
from tinyseek.studio.pieces import icon
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.tables.rooms import Rooms
    from tinyseek.llm.base import ChatModel

KINDS = ("xlsx", "csv")
_MOST_ROWS = 200  # of a result that are kept and shown
_CELLS = re.compile(r"[A-Z]{1,3}[0-9]{1,7}(?::[A-Z]{1,3}[0-9]{1,7})?")


class Reckoning(Writing[TableReply]):
    """One answer over tables."""

    def __init__(
        self,
        base: KnowledgeBase,
        rooms: Rooms,
        talks: Chats,
        message: Message,
        before: Sequence[Message],
        model: ChatModel | None,
        filters: Filters = ALL,
    ) -> None:
        """Prepare to answer the last message of `before`."""
        self._question = before[-1].content
        super().__init__(
            talks, message, {"task": "tables", "model": model.name if model else "", "asked": self._question}
        )
        self._base, self._rooms, self._model, self._filters = base, rooms, model, filters
        self._history = [{"role": said.role, "content": said.content} for said in before[:-1] if said.content]

    def steps(self) -> Iterator[TableReply]:
        yield self._rooms.ask(self._base, self._question, self._model, self._filters, self._history)

    def take(self, reply: TableReply) -> None:
        plain = reply.plain()
        self.message.content = reply.markdown()
        self.message.facts |= {
            "how": reply.how,
            "found": reply.how != "none",
            "table": plain
            | {
                "count": len(plain["rows"]),
                "rows": plain["rows"][:_MOST_ROWS],
                "cells": plain["cells"][:_MOST_ROWS],
            },
        }
        if reply.usage is not None:
            facts = self.message.facts
            facts["prompt_tokens"], facts["completion_tokens"] = (
                reply.usage.prompt_tokens,
                reply.usage.completion_tokens,
            )


def answer(message: Message, words: Words) -> Html:
    """The answer in a sentence, the chart, the result, the query, where it stands, and what to know of it."""
    found = _table(message)
    if not found:
        return Html("")
    rows, columns = found.get("rows") or [], [str(name) for name in found.get("columns") or []]
    parts: list[Html] = [_sentence(message, found, rows)]
    if found.get("chart") and rows:
        parts.append(chart(found["chart"], columns, rows))
    if len(rows) > 1 or len(columns) > 1:
        parts.append(_rows(message, found, columns, rows, words))
    if found.get("sql"):
        query = el("pre", el("code", str(found["sql"])))
        parts.append(el("details", el("summary", icon("right"), words("The query")), query, class_="looked query"))
    parts += [_sources(message, found, words), _notes(found)]
    return el("div", parts, class_="reckoned")


def _sentence(message: Message, found: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> Html:
    """One number alone is a button that leads to its cells, as those of a table are."""
    text = str(found.get("text", ""))
    if len(rows) == 1 and len(rows[0]) == 1 and (cells := _at(found, 0, 0)):
        before, _, value = text.rpartition(": ")
        return el("p", f"{before}: " if before else "", _cell(message, value, 0, 0, cells), class_="result")
    lines = text.splitlines()
    kind = "told" if len(rows) > 1 else "result" if len(lines) == 1 and rows else "said-of-tables"
    return el("div", [el("p", line) for line in lines], class_=kind)


def _rows(
    message: Message, found: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]], words: Words
) -> Html:
    numeric = [is_numeric(str(kind)) for kind in found.get("types") or []]
    head = [el("th", name, scope="col", class_="n" if number else None) for name, number in zip(columns, numeric)]  # noqa: B905
    body = []
    for at, row in enumerate(rows):
        cells = []
        for column, value in enumerate(row):
            behind_it = _at(found, at, column)
            inside = _cell(message, shown(value), at, column, behind_it) if behind_it else shown(value)
            cells.append(el("td", inside, class_="n" if column < len(numeric) and numeric[column] else None))
        body.append(el("tr", cells))
    count = int(found.get("count") or len(rows))
    cut = ""
    if count > len(rows) or found.get("more"):
        total = f"{count:,}+" if found.get("more") else f"{count:,}"
        cut = el("p", words("{count} of {total} rows are shown.", count=f"{len(rows):,}", total=total), class_="told")
    table = el("table", el("thead", el("tr", head)), el("tbody", body))
    return join(el("div", table, class_="wide", tabindex="0"), cut)


def _cell(message: Message, value: str, row: int, column: int, cells: str) -> Html:
    return el(
        "button",
        value or "–",
        type="button",
        class_="from-cells",
        data_act="cells",
        data_id=message.id,
        data_row=row,
        data_column=column,
        title=cells,
    )


def _sources(message: Message, found: Mapping[str, Any], words: Words) -> Html:
    chips = []
    for number, source in enumerate(_list(found, "sources")):
        kind = "csv" if str(source.get("file", "")).lower().endswith((".csv", ".tsv")) else "xlsx"
        place = ", ".join(filter(None, (str(source.get("sheet", "")), str(source.get("cells", "")))))
        chips.append(
            el(
                "button",
                kind_mark(kind),
                el("b", str(source.get("file", ""))),
                el("span", place if len(place) < 60 else place[:58] + " …", class_="place"),
                type="button",
                data_act="cells",
                data_id=message.id,
                data_source=number,
            )
        )
    return el("div", chips, class_="sheets", role="group", aria_label=words("Sources")) if chips else Html("")


def _notes(found: Mapping[str, Any]) -> Html:
    notes = [el("li", str(note)) for note in found.get("notes") or []]
    return el("ul", notes, class_="table-notes") if notes else Html("")


def behind(message: Message, said: Mapping[str, Any]) -> tuple[int, list[Place]] | None:
    """The document, and the cells in it, that a click on a number or a source means."""
    found = _table(message)
    sources = _list(found, "sources")
    try:
        if "source" in said:
            source = sources[int(str(said["source"]))]
            cells = str(source["cells"])
        else:
            source = sources[0]
            cells = _at(found, int(str(said.get("row"))), int(str(said.get("column"))))
        document = int(source["document"])
    except (ValueError, IndexError, KeyError, TypeError):
        return None
    sheet = str(source.get("sheet", ""))
    return document, [Place(sheet=sheet, cells=area) for area in _CELLS.findall(cells)]


def _table(message: Message) -> Mapping[str, Any]:
    found = message.facts.get("table")
    return found if isinstance(found, dict) else {}


def _list(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [entry for entry in found.get(name) or [] if isinstance(entry, dict)]


def _at(found: Mapping[str, Any], row: int, column: int) -> str:
    """The cells behind one of the result's, where they are known: of a query over one table."""
    cells = found.get("cells") or []
    if len(_list(found, "sources")) != 1 or not 0 <= row < len(cells) or not 0 <= column < len(cells[row]):
        return ""
    return str(cells[row][column] or "")
