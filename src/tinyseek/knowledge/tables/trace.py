"""Which cells of the sheet a result came from.

Every loaded table has its rows' numbers in the sheet beside it. A query over one table is run once more with one column added: the
row's own number, or where rows are put together the list of them all. Its first columns must then be the result again; the added
one says the rows, and the expressions say the columns. What reads several tables is traced to the tables alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from typing import Any

from tinyseek.knowledge.tables.check import parts
from tinyseek.knowledge.tables.schema import TableInfo, ranges

ROW = "_row"  # the column with a row's number; no column of a sheet is called so
MOST_TRACED = 200  # rows of a result


def rows_of(name: str) -> str:
    """The name of the table behind the view `name`, with the rows' numbers."""
    return f"{name}#rows"


class Trace:
    """A query that says its rows, and how to read them off its result."""

    def __init__(self, statement: dict[str, Any], picks: list[list[int]], extremes: list[int | None]) -> None:
        self.statement = statement
        self._picks, self._extremes = picks, extremes

    def cells(self, extra: Sequence[Any]) -> tuple[str, ...]:
        """The cells behind each column of a row of the result, from what was added to it."""
        found = []
        for columns, extreme in zip(self._picks, self._extremes, strict=True):
            value = extra[0] if extreme is None else extra[extreme]
            rows = [] if value is None else [value] if isinstance(value, int) else list(value)
            found.append(ranges(rows, columns) if rows else "")
        return tuple(found)


def traced(node: Mapping[str, Any], tables: Mapping[str, TableInfo], aggregates: Set[str]) -> Trace | None:
    """The query with its rows' numbers added; None where that cannot be said.

    Args:
        node: of a checked query.
        tables: the loaded tables, by name without case.
        aggregates: names of the functions that put rows together.
    """
    source = node.get("from_table", {})
    if (
        node["type"] != "SELECT_NODE"
        or source.get("type") != "BASE_TABLE"
        or source["table_name"].casefold() not in tables
        or (node.get("cte_map") or {}).get("map")
        or node.get("sample")
        or source.get("sample")
        or source.get("column_name_alias")
        or len(node.get("group_sets", ())) > 1
        or any(modifier["type"] == "DISTINCT_MODIFIER" for modifier in node.get("modifiers", ()))
    ):
        return None
    table = tables[source["table_name"].casefold()]
    selected = node["select_list"]
    if any(part.get("class") == "STAR" and part.get("columns") for part in parts(selected)):
        return None  # COLUMNS(...): who knows how many
    together = bool(node.get("group_expressions") or node.get("having")) or any(
        _puts_together(expression, aggregates) for expression in selected
    )
    if not together and node.get("aggregate_handling", "STANDARD_HANDLING") != "STANDARD_HANDLING":
        return None
    alias = source.get("alias") or source["table_name"]
    statement = copy.deepcopy(dict(node))
    statement["from_table"] |= {
        "table_name": rows_of(table.name),
        "qualified_name": {"path": [rows_of(table.name)]},
        "alias": alias,
    }
    row = {"class": "COLUMN_REF", "type": "COLUMN_REF", "column_names": [alias, ROW]}
    picks = _columns(selected, table)
    extremes: list[int | None] = []
    added = [_call("list", row) if together else row]
    for expression in _spread(selected, table):
        if together and _is_extreme(expression):
            by = expression["arguments"][0]["expression"]
            name = "arg_max" if expression["function_name"].lower() in ("max", "arg_max") else "arg_min"
            if expression["function_name"].lower().startswith("arg_"):
                by = expression["arguments"][1]["expression"]
            extremes.append(len(added))
            added.append(_with_filter(_call(name, row, by), expression))
        else:
            extremes.append(None)
    statement["select_list"] = [
        expression if expression.get("class") != "STAR" else _star_without_row(expression)
        for expression in statement["select_list"]
    ] + added
    return Trace(statement, picks, extremes)


def _star_without_row(star: dict[str, Any]) -> dict[str, Any]:
    return star | {"exclude_list": [*star.get("exclude_list", []), ROW]}


def _call(name: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": "FUNCTION",
        "type": "FUNCTION",
        "function_name": name,
        "order_bys": {"type": "ORDER_MODIFIER"},
        "arguments": [{"expression": argument} for argument in arguments],
        "qualified_name": {"path": [name]},
    }


def _with_filter(call: dict[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    return call | {"filter": like["filter"]} if like.get("filter") else call


def _is_extreme(expression: Mapping[str, Any]) -> bool:
    """max(x): its value stands in one row, not in all."""
    return (
        expression.get("class") == "FUNCTION"
        and expression["function_name"].lower() in ("max", "min", "arg_max", "arg_min")
        and len(expression["arguments"]) == (2 if expression["function_name"].lower().startswith("arg_") else 1)
    )


def _puts_together(expression: Any, aggregates: Set[str]) -> bool:
    """Whether an aggregate is called, outside of windows and of queries within."""
    if isinstance(expression, list):
        return any(_puts_together(entry, aggregates) for entry in expression)
    if not isinstance(expression, dict) or expression.get("class") in ("WINDOW", "SUBQUERY"):
        return False
    if expression.get("class") == "FUNCTION" and expression["function_name"].lower() in aggregates:
        return True
    return any(_puts_together(value, aggregates) for value in expression.values())


def _spread(selected: Sequence[Mapping[str, Any]], table: TableInfo) -> list[Mapping[str, Any]]:
    """The expressions of a result's columns, `*` written out."""
    found: list[Mapping[str, Any]] = []
    for expression in selected:
        found += [expression] * len(_named(expression, table)) if expression.get("class") == "STAR" else [expression]
    return found


def _named(star: Mapping[str, Any], table: TableInfo) -> list[int]:
    """Numbers of the columns that `*` stands for."""
    out = {_name(entry).casefold() for entry in star.get("exclude_list", [])}
    return [column.number for column in table.columns if column.name.casefold() not in out]


def _name(entry: Any) -> str:
    return str(entry.get("column", "")) if isinstance(entry, dict) else str(entry)


def _columns(selected: Sequence[Mapping[str, Any]], table: TableInfo) -> list[list[int]]:
    """For each column of the result, the columns of the sheet that its expression reads; all, where it names none."""
    by_name = {column.name.casefold(): [column.number] for column in table.columns}
    everything = [column.number for column in table.columns]
    found: list[list[int]] = []
    for expression in selected:
        if expression.get("class") == "STAR":
            found += [[number] for number in _named(expression, table)]
            continue
        read: list[int] = []
        for part in parts(expression):
            if part.get("class") == "COLUMN_REF":
                read += by_name.get(part["column_names"][-1].casefold(), [])
        found.append(sorted(set(read)) or everything)
        if expression.get("alias"):
            by_name.setdefault(expression["alias"].casefold(), found[-1])
    return found
