"""What is known of tables and of a query's result: plain values that cross the border between processes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyseek.knowledge.documents.cells import column_name

_SQL_TYPES = {
    "integer": "BIGINT",
    "number": "DOUBLE",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "time": "TIME",
    "boolean": "BOOLEAN",
    "text": "VARCHAR",
}
NUMERIC = ("integer", "number")
Cell = str | int | float | bool | None


@dataclass(frozen=True)
class ColumnInfo:
    """A column of a loaded table."""

    title: str  # as it stands in the sheet
    name: str  # in SQL
    type: str  # of typed.Type
    number: int  # in the sheet, from 1
    distinct: int
    empty: int
    values: tuple[str, ...] = ()  # of text with few different ones: those that come most often
    smallest: Cell = None
    largest: Cell = None
    percent: bool = False

    @property
    def sql_type(self) -> str:
        return _SQL_TYPES[self.type]


@dataclass(frozen=True)
class TableInfo:
    """A loaded table."""

    name: str  # in SQL
    file: str  # the document's name
    document: int  # its id in the collection; 0 for none
    sheet: str
    title: str
    cells: str  # "A3:F20"
    rows: int
    columns: tuple[ColumnInfo, ...]
    samples: tuple[tuple[Cell, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return ", ".join(filter(None, (self.file, self.sheet, self.cells)))

    @classmethod
    def read(cls, plain: dict[str, Any]) -> TableInfo:
        """Back from `asdict` and JSON."""
        columns = tuple(ColumnInfo(**(column | {"values": tuple(column["values"])})) for column in plain["columns"])
        samples = tuple(tuple(row) for row in plain["samples"])
        return cls(**(plain | {"columns": columns, "samples": samples, "notes": tuple(plain["notes"])}))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a query gave.

    Attributes:
        types: of the columns, as the database calls them.
        more: there are more rows than were taken.
        tables: names of the tables that were read.
        cells: for each cell of `rows`, the cells of the sheet that it came from, "C5" or "C2:C13, C20"; empty where that is
            not known.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: bool = False
    tables: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Result:
        """Back from JSON."""
        return cls(
            tuple(plain["columns"]),
            tuple(plain["types"]),
            tuple(tuple(row) for row in plain["rows"]),
            plain["more"],
            tuple(plain["tables"]),
            tuple(tuple(row) for row in plain["cells"]),
        )


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def ranges(rows: Sequence[int], columns: Sequence[int], most: int = 8) -> str:
    """The cells of rows and columns, both counted from 1, as few ranges: "B2:D9, F2:F9"."""
    parts = []
    across, down = _runs(columns), _runs(rows)
    for top, bottom in down[:most]:
        for left, right in across[:most]:
            first = f"{column_name(left - 1)}{top}"
            last = f"{column_name(right - 1)}{bottom}"
            parts.append(first if first == last else f"{first}:{last}")
    cut = len(down) > most or len(across) > most or len(parts) > most
    return ", ".join(parts[:most]) + (f" ... {column_name(across[-1][1] - 1)}{down[-1][1]}" if cut else "")


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
