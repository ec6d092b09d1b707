"""HTML tables as grids: cells that span rows and columns take their place. Source: HTML standard, 4.9.12 (forming a table)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lxml import etree

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Table

_WIDEST, _TALLEST = 1000, 65_534  # by the standard


def read_table(element: etree._Element, text_of: Callable[[etree._Element], str], most: int) -> Table | None:
    """A table; None for one without cells.

    Args:
        text_of: a cell's text.
        most: cells that there may be, those that spans make counted too.
    Raises:
        UserError: there are more.
    """
    rows: list[dict[int, str]] = []
    merged: list[tuple[int, int, int, int]] = []
    open_below: dict[int, int] = {}  # column -> rows that a cell above still takes there
    heads, only_heads, cells = 0, True, 0
    for number, row in enumerate(_rows(element)):
        texts: dict[int, str] = {}
        column = 0
        below: dict[int, int] = {}
        head = (above := row.getparent()) is not None and above.tag == "thead"
        cells_here = [cell for cell in row if cell.tag in ("td", "th")]
        for cell in cells_here:
            while open_below.get(column, 0) > 0:
                column += 1
            columns, tall = _number(cell.get("colspan"), _WIDEST), _number(cell.get("rowspan"), _TALLEST)
            texts[column] = text_of(cell)
            if columns > 1 or tall > 1:
                merged.append((number, column, tall, columns))
            for at in range(column, column + columns):
                if tall > 1:
                    below[at] = tall
                texts.setdefault(at, "")
            column += columns
        only_heads &= bool(cells_here) and (head or all(cell.tag == "th" for cell in cells_here))
        heads += only_heads
        open_below = {at: left - 1 for at, left in (open_below | below).items() if left > 1}
        cells += max(len(texts), 1)
        if cells > most:
            raise UserError("has more cells in its tables than may be; split it, or raise limits.cells")
        rows.append(texts)
    while rows and not rows[-1]:
        rows.pop()
    width = max((max(row, default=-1) + 1 for row in rows), default=0)
    if not width or width * len(rows) > most:
        return None
    kept = tuple(
        (row, column, min(tall, len(rows) - row), min(columns, width - column))
        for row, column, tall, columns in merged
        if row < len(rows)
    )
    grid = tuple(tuple(row.get(column, "") for column in range(width)) for row in rows)
    return Table(grid, min(heads, len(rows)) or 1, tuple(span for span in kept if span[2] * span[3] > 1))


def _rows(table: etree._Element) -> Iterator[etree._Element]:
    """The table's own rows, wherever they stand in it: its head first, its foot last."""
    groups = [child for child in table if child.tag in ("thead", "tbody", "tfoot", "tr")]
    order = {"thead": 0, "tfoot": 2}
    for group in sorted(groups, key=lambda child: order.get(str(child.tag), 1)):
        if group.tag == "tr":
            yield group
        else:
            yield from group.iterchildren("tr")


def _number(text: str | None, most: int) -> int:
    text = (text or "").strip()
    if not text.isdecimal() or len(text) > 9:
        return 1
    return min(int(text), most) or 1
