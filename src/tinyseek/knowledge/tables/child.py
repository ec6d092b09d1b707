"""The process that holds the tables and runs the queries, and can do nothing else.

    python -m tinyseek.knowledge.tables.child

A line of JSON comes in, lines of JSON go out. First the files are read; then the door is shut: the database takes no more settings
and reaches no file, and the process itself can open none, no socket either, nor write one. Whoever asked watches the clock from
outside.
"""

from __future__ import annotations

import datetime as dt
import decimal
import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.kinds import KINDS, kind_of
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.tables.check import LONGEST_SQL, RefusedError, check, tables_in
from tinyseek.knowledge.tables.find import Column, Found, identifier, tables_of
from tinyseek.knowledge.tables.schema import Cell, ColumnInfo, TableInfo, quoted
from tinyseek.knowledge.tables.trace import MOST_TRACED, ROW, rows_of, traced

KINDS_WITH_CELLS = ("xlsx", "csv")
LONGEST_CELL = 2_000  # characters of a result's cell
FEW = 40  # different texts of a column that are all told
_ZONED = "TIMESTAMP WITH TIME ZONE"
_BATCH = 20_000  # rows that are handed over at once


class Room:
    """The loaded tables."""

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self._limits = limits
        self._db = duckdb.connect(":memory:", config={"threads": "1", "temp_directory": ""})
        self._tables: dict[str, TableInfo] = {}  # by name without case
        self._cells = 0
        self._aggregates: frozenset[str] = frozenset()

    def load(self, files: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Read files into tables; says which one it is at, so that who watches knows which one it died of."""
        taken: set[str] = set()
        failed, notes = [], []
        for at, file in enumerate(files):
            yield {"at": at}
            try:
                notes += [f"{file['name']}: {note}" for note in self._load(file, taken)]
            except UserError as error:
                failed.append([at, str(error)])
            except (MemoryError, duckdb.OutOfMemoryException):
                failed.append([at, f"needs more than {self._limits['memory_mb']:,} MB of memory (memory_mb)"])
            except RecursionError:
                failed.append([at, "is nested too deeply to be read"])
            except Exception as error:
                failed.append([at, f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"])
        self._shut()
        yield {"tables": [table.plain() for table in self._tables.values()], "failed": failed, "notes": notes}

    def _load(self, file: Mapping[str, Any], taken: set[str]) -> Iterator[str]:
        path = Path(file["path"])
        kind = kind_of(path, file["name"])
        if kind not in KINDS_WITH_CELLS:
            raise UserError(f"is {kind}; questions are answered over sheets: {', '.join(KINDS_WITH_CELLS)}")
        sheets = importlib.import_module(KINDS[kind][0]).cells_of(path, Limits.read(self._limits["file"]))
        stem = Path(file["name"]).stem
        count = 0
        for sheet in sheets:
            self._cells += len(sheet.rows) * (len(sheet.rows[0]) if sheet.rows else 0)
            if self._cells > self._limits["cells"]:
                raise UserError(f"there are more than {self._limits['cells']:,} cells in all files together (cells)")
            found = tables_of(sheet.rows, sheet.top, sheet.left, sheet.merged)
            for table in found:
                title = stem if len(sheets) == 1 else f"{stem}_{sheet.name}"
                title = f"{title}_{table.title[:30]}" if len(found) > 1 and table.title else title
                hidden = ("its sheet is hidden in the workbook",) if sheet.hidden else ()
                table = replace(table, notes=(*table.notes, *sheet.notes, *hidden))
                self._put(table, identifier(title, taken, "table"), file, "" if kind == "csv" else sheet.name)
                count += 1
                for note in table.notes:
                    yield note if kind == "csv" else f"{sheet.name}: {note}"
        if not count:
            yield "no table is in it"

    def _put(self, found: Found, name: str, file: Mapping[str, Any], sheet: str) -> None:
        """One table, whole or not at all: with its rows' numbers, and as it is seen."""
        columns = found.columns
        types = {column.name: ColumnInfo("", "", column.type, 0, 0, 0).sql_type for column in columns}
        inner = rows_of(name)
        self._db.execute("BEGIN")
        try:
            listed = ", ".join(f"{quoted(column.name)} {types[column.name]}" for column in columns)
            self._db.execute(f"CREATE TABLE {quoted(inner)} ({ROW} BIGINT, {listed})")
            read = ", ".join(["unnest(?::BIGINT[])", *(f"unnest(?::{types[column.name]}[])" for column in columns)])
            for start in range(0, len(found.rows), _BATCH):
                part = slice(start, start + _BATCH)
                values = [list(found.rows[part]), *(column.values[part] for column in columns)]
                self._db.execute(f"INSERT INTO {quoted(inner)} SELECT {read}", values)
            names = ", ".join(quoted(column.name) for column in columns)
            self._db.execute(f"CREATE VIEW {quoted(name)} AS SELECT {names} FROM {quoted(inner)}")
            info = TableInfo(
                name,
                file["name"],
                file.get("document", 0),
                sheet,
                found.title,
                found.cells,
                len(found.rows),
                tuple(self._info(inner, column) for column in columns),
                tuple(
                    tuple(plain(value) for value in row)
                    for row in self._db.execute(
                        f"SELECT * FROM {quoted(name)} LIMIT {int(self._limits['sample_rows'])}"
                    ).fetchall()
                ),
                found.notes,
            )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._tables[name.casefold()] = info

    def _info(self, table: str, column: Column) -> ColumnInfo:
        name = quoted(column.name)
        distinct, empty, low, high = self._one(
            f"SELECT count(DISTINCT {name}), count(*) - count({name}), min({name}), max({name}) FROM {quoted(table)}"
        )
        values: tuple[str, ...] = ()
        if column.type == "text":
            low = high = None
            if distinct <= FEW:
                rows = self._db.execute(
                    f"SELECT {name} FROM {quoted(table)} WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1"
                ).fetchall()
                values = tuple(row[0][:80] for row in rows)
        return ColumnInfo(
            column.title, column.name, column.type, column.number, distinct, empty, values, plain(low), plain(high), column.percent
        )  # fmt: skip

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...]:
        row = self._db.execute(sql, list(values)).fetchone()
        assert row is not None
        return row

    def _shut(self) -> None:
        """Lock the database, then the process."""
        rows = self._db.execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
        ).fetchall()
        self._aggregates = frozenset(row[0] for row in rows)
        for setting in (
            f"memory_limit = '{int(self._limits['memory_mb'])}MB'",
            f"max_execution_time = {int(self._limits['seconds'] * 1000)}",
            "python_enable_replacements = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            self._db.execute(f"SET {setting}")
        opened = max((int(entry) for entry in os.listdir("/dev/fd") if entry.isdecimal()), default=2)  # noqa: PTH208
        bound(resource.RLIMIT_FSIZE, 0)
        bound(resource.RLIMIT_NOFILE, min(3, opened))

    # ---- queries ----

    def run(self, sql: str) -> dict[str, Any]:
        """Check a query and run it.

        Raises:
            RefusedError: it is not run.
            duckdb.Error: it failed.
        """
        if len(sql) > LONGEST_SQL:
            raise RefusedError(f"the query has {len(sql):,} characters; at most {LONGEST_SQL:,} are run")
        options = "skip_null := true, skip_empty := true, skip_default := true"
        tree = json.loads(self._one(f"SELECT json_serialize_sql(?::VARCHAR, {options})", sql)[0])
        views = {key: table.name for key, table in self._tables.items()}
        node = check(tree, views)
        most = int(self._limits["rows"])
        names, types, rows = self._fetch(sql, most + 1)
        return {
            "columns": names,
            "types": types,
            "rows": [[plain(value) for value in row] for row in rows[:most]],
            "more": len(rows) > most,
            "tables": tables_in(node, views),
            "cells": self._cells_behind(tree, node, rows[: min(most, MOST_TRACED)], len(names)),
        }

    def _fetch(self, sql: str, most: int) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
        self._db.execute("BEGIN TRANSACTION READ ONLY")
        try:
            self._db.execute(sql)
            described = self._db.description or []
            names, types = [str(column[0]) for column in described], [str(column[1]) for column in described]
            if any(_ZONED in kind for kind in types):  # as text: Python would want a module and its files for them
                given = ", ".join(f"c{at}" for at in range(len(types)))
                taken = ", ".join(f"c{at}::VARCHAR" if _ZONED in kind else f"c{at}" for at, kind in enumerate(types))
                self._db.execute(f"SELECT {taken} FROM ({sql.strip().rstrip(';')}\n) AS t({given})")
            return names, types, self._db.fetchmany(most)
        finally:
            self._db.execute("ROLLBACK")

    def _cells_behind(
        self, tree: dict[str, Any], node: Mapping[str, Any], rows: Sequence[tuple[Any, ...]], width: int
    ) -> list[tuple[str, ...]]:
        trace = traced(node, self._tables, self._aggregates)
        if trace is None:
            return []
        statement = tree | {"statements": [tree["statements"][0] | {"node": trace.statement}]}
        try:
            sql = self._one("SELECT json_deserialize_sql(?::JSON)", json.dumps(statement))[0]
            again = self._fetch(sql, len(rows))[2]
        except duckdb.Error:
            return []
        if [row[:width] for row in again] != list(rows):
            return []
        return [trace.cells(row[width:]) for row in again]

    def mentions(self, question: str) -> list[list[str]]:
        """The texts of cells that stand in a question, longest first: table, column, text."""
        found = []
        for table in self._tables.values():
            for column in table.columns:
                if column.type != "text":
                    continue
                name = quoted(column.name)
                rows = self._db.execute(
                    f"SELECT DISTINCT {name} FROM {quoted(table.name)} WHERE length({name}) BETWEEN 1 AND 80"
                    f" AND contains(?, lower({name})) ORDER BY length({name}) DESC, 1 LIMIT 20",
                    [question.lower()],
                ).fetchall()
                found += [[table.name, column.name, row[0]] for row in rows]
        return sorted(found, key=lambda mention: -len(mention[2]))


def plain(value: Any) -> Cell:
    """A value of the database as JSON has it: dates as ISO, what has no number as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, dt.datetime):
        return value.isoformat(" ")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "replace").decode()[:LONGEST_CELL]


def bound(what: int, most: int) -> None:
    """Limit this process, where the system has such a limit."""
    _, hard = resource.getrlimit(what)
    try:
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    except (OSError, ValueError):
        return


def answered(room: Room, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is to be said to a question."""
    try:
        if asked["do"] == "load":
            yield from room.load(asked["files"])
        elif asked["do"] == "mentions":
            yield {"mentions": room.mentions(asked["question"])}
        else:
            yield {"result": room.run(asked["sql"])}
    except RefusedError as error:
        yield {"refused": str(error)}
    except (MemoryError, duckdb.OutOfMemoryException):
        yield {"failed": "the query needs more memory than is allowed (memory_mb)"}
    except duckdb.InterruptException:
        yield {"slow": True}
    except duckdb.Error as error:
        yield {"failed": " ".join(str(error).split())[:600]}
    except RecursionError:
        yield {"refused": "the query is nested too deeply"}
    except Exception as error:  # a bug of ours costs this question, not the tables
        traceback.print_exc()
        yield {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between
    limits = json.loads(sys.stdin.readline())
    bound(resource.RLIMIT_CORE, 0)
    bound(
        resource.RLIMIT_DATA, (int(limits["memory_mb"]) + 600) << 20
    )  # the interpreter, a file being read, and the database
    room = Room(limits)
    for line in sys.stdin:
        for said in answered(room, json.loads(line)):
            answers.write(json.dumps(said, ensure_ascii=False) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
