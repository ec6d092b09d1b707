"""What may run: one SELECT over the tables that were loaded, and nothing else.

The query is taken apart by the database's own parser, and everything in the tree must be on a list of what is allowed: so what a
newer version learns (a SELECT whose WITH inserts, files as tables) is refused until someone allows it. This is the first of four
locks; the others are a transaction that only reads, a database shut off from files and settings, and a process that can open none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tinyseek.errors import UserError

LONGEST_SQL = 20_000  # characters
_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_SOURCES = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT"}
_MODIFIERS = {"ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER"}
_ORDERS = {"ASCENDING", "DESCENDING", "ORDER_DEFAULT", "INVALID"}
_TYPES = _NODES | _SOURCES | _MODIFIERS | _ORDERS
_CLASSES = {
    "COLUMN_REF", "CONSTANT", "FUNCTION", "CAST", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "SUBQUERY",
    "WINDOW", "STAR", "LAMBDA", "LAMBDA_REF", "COLLATE", "POSITIONAL_REFERENCE", "TYPE",
}  # fmt: skip
_TABLE_FUNCTIONS = {"unnest", "range", "generate_series"}
# What changes something or tells of the process rather than of the tables. Asking for a random row is fine.
_FUNCTIONS = {
    "sleep_ms", "write_log", "nextval", "currval", "setval", "setseed", "current_setting", "getvariable", "getenv", "current_query",
    "current_query_id", "current_connection_id", "current_transaction_id", "txid_current", "current_database", "current_schema",
    "current_schemas", "current_user", "user", "session_user", "version", "stats", "vector_type", "query", "query_table",
    "add_parquet_key", "json_execute_serialized_sql", "json_serialize_sql", "json_deserialize_sql", "json_serialize_plan",
    "read_text", "read_blob", "glob", "parse_duckdb_log_message", "error",
}  # fmt: skip


class RefusedError(UserError):
    """A query that is not run."""


def check(tree: Mapping[str, Any], views: Mapping[str, str]) -> dict[str, Any]:
    """The one statement's node, if it may run.

    Args:
        tree: of `json_serialize_sql`.
        views: the names of the tables, by themselves without case.
    Raises:
        RefusedError: it may not, and why.
    """
    if tree.get("error"):
        message = str(tree.get("error_message", "it cannot be read"))
        if "Only SELECT" in message:
            raise RefusedError("only a SELECT is run: nothing here may be changed, and nothing else read")
        raise RefusedError(f"not a query: {message}")
    statements = tree.get("statements", [])
    if len(statements) != 1:
        raise RefusedError(f"one SELECT is expected, not {len(statements)} statements")
    if statements[0].get("named_param_map"):
        raise RefusedError("a query with parameters has nothing to fill them with")
    node: dict[str, Any] = statements[0]["node"]
    try:
        _look(node, views, frozenset())
    except RecursionError:
        raise RefusedError("the query is nested too deeply") from None
    return node


def _look(part: Any, views: Mapping[str, str], known: frozenset[str]) -> None:
    """Refuse what is not on the lists, at any depth. `known` are the names of WITH that hold here."""
    if isinstance(part, list):
        for entry in part:
            _look(entry, views, known)
        return
    if not isinstance(part, dict):
        return
    kind, what = part.get("type"), part.get("class")
    if what is not None:
        if what not in _CLASSES:
            raise RefusedError(f"{str(what).lower().replace('_', ' ')} is not allowed in a query here")
        if "function_name" in part:
            _check_function(str(part["function_name"]))
    elif isinstance(kind, str) and kind not in _TYPES:
        raise RefusedError(_why(kind))
    if kind == "TABLE_FUNCTION":
        name = str(part.get("function", {}).get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            raise RefusedError(f"{name}() is no table that was loaded; there are: {', '.join(views.values())}")
    if kind == "BASE_TABLE" and what is None:
        path = part.get("qualified_name", {}).get("path") or [part.get("table_name", "")]
        if len(path) != 1 or (path[0].casefold() not in views and path[0].casefold() not in known):
            raise RefusedError(f'there is no table "{".".join(path)}"; there are: {", ".join(views.values())}')
    within = known | {str(entry["key"]).casefold() for entry in (part.get("cte_map") or {}).get("map", [])}
    if kind == "RECURSIVE_CTE_NODE":
        within |= {str(part.get("cte_name", "")).casefold()}
    for name, inner in part.items():
        if name == "cte_map":
            _look_at_ctes(inner, views, known, within)
        else:
            _look(inner, views, within)


def _look_at_ctes(
    ctes: Mapping[str, Any], views: Mapping[str, str], known: frozenset[str], within: frozenset[str]
) -> None:
    """Each part of WITH sees those before it, and itself where it is recursive."""
    seen = known
    for entry in ctes.get("map", []):
        _look(entry["value"], views, seen)
        seen |= {str(entry["key"]).casefold()} & within


def _check_function(name: str) -> None:
    lower = name.lower()
    if lower in _FUNCTIONS or lower.startswith(("pg_", "duckdb_", "pragma_", "has_")):
        raise RefusedError(f"{name}() is not allowed in a query here")


def _why(kind: str) -> str:
    if kind.endswith("_QUERY_NODE") or kind.endswith("_NODE"):
        return "only a SELECT is run: nothing here may be changed"
    if kind == "SHOW_REF":
        return "only a SELECT is run; which tables and columns there are is shown beside the answer"
    return f"{kind.lower().replace('_', ' ')} is not allowed in a query here"


def tables_in(node: Any, views: Mapping[str, str]) -> list[str]:
    """Names of the loaded tables that a checked query reads, each once."""
    found: dict[str, None] = {}
    for part in parts(node):
        if part.get("type") == "BASE_TABLE" and "class" not in part and part["table_name"].casefold() in views:
            found[views[part["table_name"].casefold()]] = None
    return list(found)


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a tree, outermost first."""
    todo = [node]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            yield part
            todo += reversed(list(part.values()))
        elif isinstance(part, list):
            todo += reversed(part)
