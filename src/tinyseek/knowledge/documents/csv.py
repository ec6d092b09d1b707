"""CSV and TSV: one table, its separator found, ragged rows filled up; and the same with typed values for questions by SQL."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Document, Place, Table
from tinyseek.knowledge.documents.cells import Sheet, cell_range
from tinyseek.knowledge.documents.decode import Decoded, read_text
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of

_SEPARATORS = ",\t;|"
_LOOK = 100_000  # characters that the separator is chosen by
_NUMERIC = frozenset("0123456789.,+-%$€¥£eE/: ()")


def parse(file: Path, limits: Limits) -> Document:
    """A file of values with separators.

    Raises:
        UserError: too long, or with too many cells.
    """
    decoded = read_text(file, limits)
    rows, last = _rows(decoded, limits)
    notes = list(decoded.notes)
    outline = Outline(limits)
    if rows:
        width = max(map(len, rows))
        ragged = sum(len(row) != width for row in rows)
        if ragged:
            notes.append(f"{ragged:,} of its {len(rows):,} rows have fewer than {width} values")
        table = Table(tuple(_filled(row, width) for row in rows), int(_has_header(rows)))
        outline.table(table, Place(cells=cell_range(0, 0, len(rows), width), lines=(1, last)))
    return Document(tuple(outline.blocks), "csv", language=language_of(decoded.text), notes=tuple(notes))


def cells_of(file: Path, limits: Limits) -> list[Sheet]:
    """The file as one sheet of texts: what they are, numbers or days, is for the reader to say.

    Raises: as `parse` does.
    """
    rows, _ = _rows(read_text(file, limits), limits)
    width = max(map(len, rows), default=0)
    return (
        [Sheet(file.stem, 1, 1, tuple(tuple(value or None for value in _filled(row, width)) for row in rows))]
        if width
        else []
    )


def _rows(decoded: Decoded, limits: Limits) -> tuple[list[list[str]], int]:
    """All rows, as many as spreadsheets show: an empty line is a row without values. And the number of the last one's line."""
    csv.field_size_limit(limits.characters)
    reader = csv.reader(_lines(decoded.text), delimiter=separator(decoded.text[:_LOOK]), skipinitialspace=True)
    rows: list[list[str]] = []
    ends: list[int] = []
    width = cells = 0
    try:
        for row in reader:
            rows.append([value.strip() for value in row])
            ends.append(reader.line_num)
            if len(row) > width:
                width = len(row)
            cells += len(row)
            if cells > limits.cells or width * len(rows) > 4 * limits.cells:
                raise UserError(f"has more than {limits.cells:,} cells; split it, or raise limits.cells")
    except csv.Error as error:
        raise UserError(f"is no CSV that can be read (line {reader.line_num:,}: {error})") from None
    while rows and not any(rows[-1]):
        rows.pop()
    return rows, ends[len(rows) - 1] if rows else 1


def _lines(text: str) -> Iterator[str]:
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start : end + 1]
        start = end + 1
    if start < len(text):
        yield text[start:]


def _filled(row: Sequence[str], width: int) -> tuple[str, ...]:
    return (*row, *[""] * (width - len(row)))


def separator(text: str) -> str:
    """The sign that most evenly parts the lines of a text; a comma where none does."""
    lines = text.split("\n")[:200]
    best, most = ",", 0.0
    for sign in _SEPARATORS:
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=sign) if row)
        if not counts:
            continue
        columns, times = max(counts.items(), key=lambda item: (item[1], item[0]))
        score = times / counts.total() * min(columns - 1, 5) ** 0.5
        if columns > 1 and score > most:
            best, most = sign, score
    return best


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names columns: no numbers in it, unless there are none below either and its names differ."""
    first = [value for value in rows[0] if value]
    return bool(first) and not any(_is_number(value) for value in first) and len(set(first)) == len(first)


def _is_number(text: str) -> bool:
    return not set(text) - _NUMERIC and any(letter.isdecimal() for letter in text)
