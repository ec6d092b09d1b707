"""A document's blocks as HTML with a passage marked: text of every kind, tables with every cell, sheets with letters and numbers.

All of it comes out of files that strangers may have written: it is escaped where it enters, and nothing in it links or loads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.documents.blocks import Block, Place, Table
from tinyseek.studio.kb_marks import Area, Spans, area, column_letters, overlap
from tinyseek.studio.words import Words

AROUND = 40  # blocks before and after the passage that are shown at first
MOST_CHARACTERS = 60_000  # at once
_ROWS, _COLUMNS = 120, 40  # of a table, at once
_LONGEST_CELL = 1000
_ITEM = re.compile(r"\s*(?:[-*•·]|\d{1,3}[.)])\s")


def where(places: Sequence[Place], kind: str, words: Words) -> str:
    """Where a passage stands, for people: `page 3`, `sheet Sales, B2:D9`, `lines 4–9`; nothing where that is not known."""
    pages = sorted({place.page for place in places if place.page is not None})
    if pages:
        return _pages(pages[0], pages[-1], kind, words)
    sheets = list(dict.fromkeys((place.sheet, place.cells) for place in places if place.sheet is not None))
    if sheets:
        sheet, cells = sheets[0]
        return ", ".join(filter(None, (words("sheet {name}", name=sheet) if sheet else "", _cells(sheets, cells))))
    lines = [place.lines for place in places if place.lines]
    if lines:
        first, last = min(line[0] for line in lines), max(line[1] for line in lines)
        return (
            words("line {number}", number=first) if first == last else words("lines {number}", number=f"{first}–{last}")
        )
    return ""


def _pages(first: int, last: int, kind: str, words: Words) -> str:
    number = str(first) if first == last else f"{first}–{last}"
    if kind == "pptx":
        return words("slide {number}", number=number)
    if kind == "image":
        return words("picture {number}", number=number) if last > 1 else ""
    return words("page {number}", number=number) if first == last else words("pages {number}", number=number)


def _cells(sheets: Sequence[tuple[str | None, str | None]], cells: str | None) -> str:
    if cells is None:
        return ""
    areas = [found for _, other in sheets if (found := area(other))]
    if len(areas) < 2:
        return cells
    top, left = min(a[0] for a in areas), min(a[1] for a in areas)
    bottom, right = max(a[2] for a in areas), max(a[3] for a in areas)
    return f"{column_letters(left)}{top}:{column_letters(right)}{bottom}"


def marked(text: str, spans: Sequence[tuple[int, int]]) -> Html:
    """A text with parts of it marked."""
    parts: list[str] = []
    at = 0
    for start, end in spans:
        parts += [text[at:start], el("mark", text[start:end])]
        at = end
    return join(*parts, text[at:])


def window(blocks: Sequence[Block], spans: Spans) -> tuple[int, int]:
    """Which blocks to show: those around the first that is marked, else the first ones; not too much text at once."""
    middle = min(spans, default=0)
    first = last = middle
    held = 0
    while held < MOST_CHARACTERS and (first > 0 or last < len(blocks)):
        if last < len(blocks) and last - middle <= AROUND:
            held += len(blocks[last].text)
            last += 1
        elif first > 0 and middle - first < AROUND:
            first -= 1
            held += len(blocks[first].text)
        else:
            break
    return first, max(last, min(middle + 1, len(blocks)))


def shown(
    blocks: Sequence[Block], spans: Spans, first: int, last: int, kind: str, words: Words, cells: Sequence[Place] = ()
) -> Html:
    """Some of a document's blocks.

    Args:
        first, last: which, `last` not among them.
        cells: places whose cells are marked in a sheet.
    """
    parts: list[str] = []
    before = Place()
    for number in range(first, min(last, len(blocks))):
        block = blocks[number]
        if (block.place.page, block.place.sheet) != (before.page, before.sheet):
            if separator := _separator(block.place, kind, words):
                parts.append(el("div", separator, class_="where"))
            before = block.place
        parts.append(_block(block, spans.get(number, ()), kind, words, cells))
    return join(*parts)


def _separator(place: Place, kind: str, words: Words) -> str:
    if place.sheet is not None:
        return words("sheet {name}", name=place.sheet)
    return where([Place(page=place.page)], kind, words) if place.page is not None else ""


def _block(block: Block, spans: Sequence[tuple[int, int]], kind: str, words: Words, cells: Sequence[Place]) -> Html:
    text = block.text
    if block.kind == "table" and block.table is not None:
        return table(block.table, text, spans, block.place, words, cells)
    if block.kind == "heading":
        return el(f"h{min(block.level + 2, 6) if block.level else 3}", marked(text, spans))
    if block.kind == "code" or kind == "code":
        first = block.place.lines[0] if block.place.lines else None
        return _code(text, spans, first)
    if block.kind == "list":
        return _list(text, spans)
    return el("p", marked(text, spans), class_=block.kind if block.kind in ("caption", "formula") else None)


def _list(text: str, spans: Sequence[tuple[int, int]]) -> Html:
    items: list[Html] = []
    at = 0
    for line in text.splitlines(keepends=True):
        inside = [(max(s - at, 0), min(e - at, len(line))) for s, e in spans if s < at + len(line) and e > at]
        depth = (len(line) - len(line.lstrip())) // 2
        items.append(
            el("li", marked(line.rstrip("\n"), inside), style=f"margin-left:{min(depth, 8)}em" if depth else None)
        )
        at += len(line)
    bulleted = bool(_ITEM.match(text))
    return el("ul", items, class_="own" if bulleted else None)


def _code(text: str, spans: Sequence[tuple[int, int]], first: int | None) -> Html:
    lines: list[Html] = []
    at = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        inside = [(max(s - at, 0), min(e - at, len(line))) for s, e in spans if s < at + len(line) and e > at]
        label = el("i", str(first + number), aria_hidden="true") if first is not None else ""
        lines.append(el("span", label, marked(line.rstrip("\n"), inside), class_="row"))
        at += len(line)
    return el("pre", lines)


def table(
    grid: Table,
    text: str,
    spans: Sequence[tuple[int, int]],
    place: Place,
    words: Words,
    cells: Sequence[Place] = (),
) -> Html:
    """A table with its merged cells; of a sheet, with its letters and numbers."""
    own = area(place.cells)
    sheet = own if own is not None and place.sheet is not None else None
    hit_rows = _hit_rows(grid, text, spans)
    wanted = [found for other in cells if other.sheet == place.sheet and (found := area(other.cells))]
    if wanted and hit_rows and sheet:
        exact = [found for found in wanted if any(found[0] <= sheet[0] + row <= found[2] for row in hit_rows)]
        wanted = exact or wanted
    first, last = _rows_shown(grid, hit_rows, wanted, sheet)
    covered = {
        (row + down, column + right): (row, column)
        for row, column, rows, columns in grid.merged
        for down in range(rows)
        for right in range(columns)
    }
    sizes = {(row, column): (rows, columns) for row, column, rows, columns in grid.merged}
    width = min(len(grid.rows[0]) if grid.rows else 0, _COLUMNS)
    parts: list[Html] = []
    if sheet is not None:
        letters = [el("th", column_letters(sheet[1] + column), class_="ruler") for column in range(width)]
        parts.append(el("tr", el("th", "", class_="ruler"), letters, aria_hidden="true"))
    heads = list(range(min(grid.header_rows, first)))
    for row in [*heads, *range(first, last)]:
        parts.append(_row(grid, row, width, sheet, covered, sizes, hit_rows, wanted))
    left = len(grid.rows) - (last - first) - len(heads)
    note = ""
    if left > 0 or (grid.rows and len(grid.rows[0]) > width):
        said = words("{count} of {total} rows are shown.", count=f"{last - first:,}", total=f"{len(grid.rows):,}")
        note = el("p", said, class_="cut")
    return join(el("div", el("table", parts, class_="grid" if sheet else None), class_="wide", tabindex="0"), note)


def _hit_rows(grid: Table, text: str, spans: Sequence[tuple[int, int]]) -> set[int]:
    """The rows that stand in the marked parts of the table's Markdown: its first line is the head, its second the rule."""
    rows: set[int] = set()
    at = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        if number != 1 and any(start < at + len(line) and end > at for start, end in spans):
            rows |= set(range(grid.header_rows)) if number == 0 else {max(grid.header_rows, 1) + number - 2}
        at += len(line)
    return rows


def _rows_shown(grid: Table, hits: set[int], wanted: Sequence[Area], sheet: Area | None) -> tuple[int, int]:
    count = len(grid.rows)
    if count <= _ROWS:
        return 0, count
    middle = min(hits, default=max(wanted[0][0] - sheet[0], 0) if wanted and sheet else 0)
    first = max(0, min(middle - _ROWS // 3, count - _ROWS))
    return first, first + _ROWS


def _row(
    grid: Table,
    row: int,
    width: int,
    sheet: Area | None,
    covered: dict[tuple[int, int], tuple[int, int]],
    sizes: dict[tuple[int, int], tuple[int, int]],
    hits: set[int],
    wanted: Sequence[Area],
) -> Html:
    cells: list[Html] = []
    if sheet is not None:
        cells.append(el("th", str(sheet[0] + row), class_="ruler", aria_hidden="true"))
    for column in range(width):
        if covered.get((row, column), (row, column)) != (row, column):
            continue
        rows, columns = sizes.get((row, column), (1, 1))
        value = grid.rows[row][column]
        if sheet is not None and wanted:
            at = (sheet[0] + row, sheet[1] + column, sheet[0] + row + rows - 1, sheet[1] + column + columns - 1)
            is_hit = any(overlap(at, other) for other in wanted) and (not hits or row in hits)
        else:
            is_hit = row in hits
        inside = value if len(value) <= _LONGEST_CELL else value[:_LONGEST_CELL] + " …"
        cells.append(
            el(
                "th" if row < grid.header_rows else "td",
                el("mark", inside) if is_hit and inside else inside,
                class_="hit" if is_hit else None,
                rowspan=rows if rows > 1 else None,
                colspan=min(columns, width - column) if columns > 1 else None,
            )
        )
    return el("tr", cells)


def markdown_table(text: str) -> Html | None:
    """A passage that is a Markdown table, drawn; None if it is none. What stands before it (its caption) stays text."""
    lines = text.strip().splitlines()
    rule = next((n for n, line in enumerate(lines) if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip())), None)
    if rule is None or rule == 0 or not all(line.startswith("|") for line in lines[rule - 1 :]):
        return None
    head = [split_row(line) for line in lines[rule - 1 : rule]]
    body = [split_row(line) for line in lines[rule + 1 :]]
    caption = [el("p", line) for line in lines[: rule - 1] if line.strip()]
    drawn = el(
        "table",
        [el("tr", [el("th", cell) for cell in row]) for row in head],
        [el("tr", [el("td", cell) for cell in row]) for row in body],
    )
    return join(*caption, el("div", drawn, class_="wide", tabindex="0"))


def split_row(line: str) -> list[str]:
    """The cells of a row of `Table.markdown`."""
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [cell.strip().replace("\\|", "|").replace("<br>", "\n") for cell in cells]


def passage(text: str) -> Html:
    """A passage's text: its table drawn, its lines kept."""
    return markdown_table(text) or el("div", text, class_="plain")
