"""Tables that run over a page's end: what stands on the next page goes on with the first page's head.

A table goes on where it is the last thing on its page and another with as many columns, as far to the left and to the right, is the
first on the next; both reach to the pages' ends. The head may be repeated there: then it is not read twice. Where it is not, what
stands there first must be no other head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tinyseek.knowledge.documents.blocks import Block, Table

_AGAIN = re.compile(
    r"(?:(?:table|tab\.|表)\s*[A-Z]?[\d.-]*\s*)?[(（]?\s*(?:continued|cont(?:['’]d|\.)|续表?|續表?|接上[页頁表])\s*[\d.-]*\s*[)）]?",
    re.I,
)  # "Table 3 (continued)", 续表 3
_EDGES = 4.0  # points that the edges of both may be apart
_LOW, _HIGH = 0.65, 0.35  # of a page's height: where the first ends at least, and the second begins at most
_FIGURES = re.compile(r"\d")


def tables_on(blocks: Sequence[Block], heights: Mapping[int, float]) -> Iterator[Block]:
    """The blocks; a table that goes on the one before it is marked so, and has its head.

    Args:
        heights: of the pages, points.
    """
    last: Block | None = None  # a table, as long as nothing but a remark that it goes on has come after it
    remarks: list[Block] = []
    for block in blocks:
        if last is not None and block.table is not None and (whole := _on(last, block, heights)) is not None:
            remarks.clear()  # they say no more than `continued` does
            yield whole
            last = whole
            continue
        if (
            last is not None
            and not remarks
            and block.place.page != last.place.page
            and _AGAIN.fullmatch(block.text.strip())
        ):
            remarks.append(block)
            continue
        yield from remarks
        remarks.clear()
        yield block
        last = block if block.table is not None else None
    yield from remarks


def _on(first: Block, second: Block, heights: Mapping[int, float]) -> Block | None:
    """The second table with the first one's head, if it goes on the first."""
    above, below = first.table, second.table
    assert above is not None
    assert below is not None
    if (
        not _meet(first, second, heights)
        or not above.rows
        or not below.rows
        or len(above.rows[0]) != len(below.rows[0])
    ):
        return None
    heads = min(max(above.header_rows, 1), len(above.rows))
    head = above.rows[:heads]
    if below.rows[:heads] == head:
        rest = below.rows[heads:]
        moved = 0
    elif _is_head(below.rows[0], above):
        return None
    else:
        rest, moved = below.rows, heads
    merged = tuple((row + moved, *others) for row, *others in below.merged if row + moved >= heads)
    own = tuple(part for part in above.merged if part[0] + part[2] <= heads)
    table = Table((*head, *rest), heads, (*own, *merged))  # type: ignore[arg-type]
    return replace(second, text=table.markdown(), table=table, path=first.path, continued=True)


def _meet(first: Block, second: Block, heights: Mapping[int, float]) -> bool:
    """Whether one ends a page and the other, as wide, begins the next."""
    page, following = first.place.page, second.place.page
    if page is None or following != page + 1 or len(first.place.boxes) != 1 or len(second.place.boxes) != 1:
        return False
    (x0, _, x1, bottom), (left, top, right, _) = first.place.boxes[0], second.place.boxes[0]
    reaches = bottom > _LOW * heights.get(page, 0.0) and top < _HIGH * heights.get(following, 0.0)
    return reaches and abs(x0 - left) < _EDGES and abs(x1 - right) < _EDGES


def _is_head(row: Sequence[str], above: Table) -> bool:
    """Whether a row is a head of its own: words where the table above has figures in nearly every row."""
    body = above.rows[max(above.header_rows, 1) :] or above.rows
    columns = [
        column
        for column in range(len(row))
        if sum(bool(_FIGURES.search(cells[column])) for cells in body) > 0.8 * len(body)
    ]
    return bool(columns) and not any(_FIGURES.search(row[column]) for column in columns)
