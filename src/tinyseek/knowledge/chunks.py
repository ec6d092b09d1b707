"""A document to chunks: passages small enough to be found by, along the structure that the document has.

Blocks become units (sentences, items of lists, rows of tables, lines of code); units in a row under one heading are a section,
which is what an answer reads; a section is cut into chunks of whole units, about equally long, each repeating the last sentences of
the one before it. A table is a chunk of its own, with its caption; one that is too long is cut between rows, its header repeated.
Every chunk knows which of its characters stand where in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tinyseek.knowledge import segment
from tinyseek.knowledge.documents.blocks import Block, Document, Place, Table
from tinyseek.knowledge.documents.layout import CJK
from tinyseek.knowledge.index.base import Chunk
from tinyseek.knowledge.options import ChunkSettings

CountTokens = Callable[[Sequence[str]], list[int]]
_PATH_CHARACTERS = 300  # of the headings that are put before a passage when it is searched
_CJK = re.compile(f"[{CJK}]")
_CELLS = re.compile(r"([A-Z]{1,3})([0-9]{1,7}):([A-Z]{1,3})([0-9]{1,7})")


@dataclass
class _Unit:
    """What is not cut: a sentence, an item, a row, a line."""

    text: str
    place: Place
    block: int  # number of its block
    kind: str  # "text", "table", "code", "caption"
    tokens: int = 0
    header: str = ""  # of a row: the table's head, which every piece repeats
    joint: str = ""  # what stands between it and the unit before it
    goes_on: bool = False  # the sentence that the block before it began


@dataclass
class _Section:
    """Units in a row under one heading."""

    path: tuple[str, ...]
    units: list[_Unit] = field(default_factory=list)
    heading: Block | None = None

    @property
    def tokens(self) -> int:
        return sum(unit.tokens for unit in self.units)


def split(document: Document, settings: ChunkSettings, count_tokens: CountTokens) -> list[Chunk]:
    """Cut a document into chunks.

    Args:
        count_tokens: how long texts are for the embedder.
    Returns:
        Chunks in reading order; none for a document without text.
    """
    sections = _sections(document.blocks, settings, count_tokens)
    chunks: list[Chunk] = []
    for section in _merged(sections, settings, count_tokens):
        chunks += _cut(section, settings, chunks[-1].section + 1 if chunks else 0)
    return chunks


def searched(chunk: Chunk, title: str = "") -> str:
    """What is embedded and indexed of a chunk: the title and the headings above it, then its text."""
    path = list(dict.fromkeys(part for part in (title.strip(), *chunk.path) if part))
    head = " > ".join(path)
    while len(head) > _PATH_CHARACTERS and len(path) > 1:
        path.pop(0)  # the nearest heading says most
        head = " > ".join(path)
    return f"{head[:_PATH_CHARACTERS]}\n{chunk.text}" if head else chunk.text


def joined(chunks: Sequence[Chunk]) -> str:
    """Chunks in a row as one text, without what they repeat."""
    parts: list[str] = []
    for number, chunk in enumerate(chunks):
        follows = number > 0 and chunk.section == chunks[number - 1].section
        text = chunk.text[chunk.overlap :] if follows else chunk.text
        if parts:
            parts.append("\n" if chunk.kind == "table" and follows and chunk.overlap else "\n\n")
        parts.append(text.strip("\n"))
    return "".join(parts)


# ---- blocks to units ------------------------------------------------------------------------------------------------------------


def _sections(blocks: Sequence[Block], settings: ChunkSettings, count_tokens: CountTokens) -> list[_Section]:
    sections: list[_Section] = []
    headings: dict[tuple[str, ...], Block] = {}
    for number, block in enumerate(blocks):
        path = block.path
        if block.kind == "heading":
            below = (*block.path, block.text)
            headings[below] = block
            following = blocks[number + 1].path if number + 1 < len(blocks) else ()
            if following[: len(below)] == below:
                continue  # it will be in the path of what follows; else it is text like any other
        goes_on = _goes_on(blocks, number)
        parted = goes_on or _goes_on(blocks, number + 1)
        units = list(_units(block, number, settings, count_tokens, goes_on, parted))
        if not units:
            continue
        if not sections or sections[-1].path != path:
            sections.append(_Section(path, heading=headings.get(path)))
        sections[-1].units += units
    for section in sections:
        counted = [unit for unit in section.units if not unit.tokens]
        for unit, tokens in zip(counted, count_tokens([unit.text for unit in counted]), strict=True):
            unit.tokens = max(tokens, 1)
        lengths = _lengths(section.units)
        for unit in section.units:
            if unit.kind == "caption" and lengths[unit.block] > settings.tokens // 4:
                unit.kind = "text"  # too long to be read with every piece of a table
            elif unit.kind == "code" and lengths[unit.block] < settings.tokens // 8:
                unit.kind = "text"  # a line or two: no chunk of its own
    return sections


def _goes_on(blocks: Sequence[Block], number: int) -> bool:
    """Whether a block is one with the block right before it: a sentence or a table over a page's end."""
    return 0 < number < len(blocks) and blocks[number].continued and blocks[number - 1].kind == blocks[number].kind


def _units(
    block: Block, number: int, settings: ChunkSettings, count_tokens: CountTokens, goes_on: bool, parted: bool
) -> Iterator[_Unit]:
    """What a block is made of.

    Args:
        goes_on: the block before it.
        parted: it does, or the block after it goes on this one.
    """
    if not block.text.strip():
        return
    if block.kind == "table":
        yield from _rows(block, number, settings, count_tokens, goes_on, parted)
        return
    kind = block.kind if block.kind in ("code", "caption") else "text"
    at = 0
    for text in _lines(block.text) if block.kind in ("code", "list") else segment.sentences(block.text):
        # A sentence that is longer than a passage is cut at commas and blanks.
        parts = [text]
        if len(text) > settings.tokens:  # a token is seldom less than a character
            parts = segment.pieces(text, settings.tokens, lambda part: count_tokens([part])[0])
        for part in parts:
            if part.strip():
                yield _Unit(
                    part,
                    _narrowed(block, at, at + len(part.rstrip())),
                    number,
                    kind,
                    goes_on=goes_on and at == 0,
                )
            at += len(part)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _narrowed(block: Block, start: int, end: int) -> Place:
    """The place of a part of a block: its own lines, where the block's text is its file's lines."""
    lines, text = block.place.lines, block.text
    if not lines or text.count("\n") != lines[1] - lines[0]:
        return block.place
    first = lines[0] + text.count("\n", 0, start)
    return replace(block.place, lines=(first, first + text.count("\n", start, end)))


def _rows(
    block: Block, number: int, settings: ChunkSettings, count_tokens: CountTokens, goes_on: bool, parted: bool
) -> Iterator[_Unit]:
    """A table as it is, or, if it is too long or goes over a page's end, its rows."""
    tokens = count_tokens([block.text])[0]
    if (tokens <= settings.tokens and not parted) or block.table is None or not block.table.rows:
        if tokens <= settings.tokens:
            yield _Unit(block.text, block.place, number, "table", tokens)
        else:
            for part in segment.pieces(block.text, settings.tokens, lambda part: count_tokens([part])[0]):
                yield _Unit(part, block.place, number, "table")
        return
    table = block.table
    heads = min(max(table.header_rows, 1), len(table.rows))
    header = Table(table.rows[:heads], heads).markdown()
    room = settings.tokens - count_tokens([header])[0]
    if room < settings.tokens // 2:  # a head that leaves no room is not repeated
        header, room = "", settings.tokens
    lines = block.text.splitlines()
    body = lines[heads + 1 :] if header or goes_on else lines
    counts = count_tokens(body)
    for index, (line, count) in enumerate(zip(body, counts, strict=True)):
        row = (
            heads + index if header or goes_on else max(0, index - (index >= heads))
        )  # the rule below the head is no row
        place = _row(block.place, row, len(table.rows))
        if count <= room:
            yield _Unit(line, place, number, "table", max(count, 1), header, "\n", goes_on)
        else:
            for part in segment.pieces(line, room, lambda part: count_tokens([part])[0]):
                yield _Unit(part, place, number, "table", 0, header, "\n", goes_on)
    if header and not body and not goes_on:
        yield _Unit(header, block.place, number, "table")


def _row(place: Place, row: int, rows: int) -> Place:
    """One row of a table: of its range of cells, if that has as many rows, and of its lines, if each row has one."""
    match = _CELLS.fullmatch(place.cells or "")
    if match and int(match[4]) - int(match[2]) + 1 == rows:
        line = int(match[2]) + row
        place = replace(place, cells=f"{match[1]}{line}:{match[3]}{line}")
    if place.lines:
        first, last = place.lines
        ruled = int(last - first == rows and not match)  # Markdown has a line below the head
        if last - first + 1 == rows + ruled:
            line = first + row + (ruled if row else 0)
            place = replace(place, lines=(line, line))
    return place


# ---- sections -------------------------------------------------------------------------------------------------------------------


def _merged(sections: list[_Section], settings: ChunkSettings, count_tokens: CountTokens) -> list[_Section]:
    """Short sections that stand side by side as one, their headings in the text: a line or two alone say little."""
    found: list[_Section] = []
    short = settings.tokens // 4
    for section in sections:
        last = found[-1] if found else None
        if last is not None and min(last.tokens, section.tokens) < short:
            shared = _shared(last.path, section.path)
            near = len(shared) >= max(len(last.path), len(section.path)) - 1
            both = last.units + section.units
            if near and sum(u.tokens for u in both) <= settings.tokens and all(u.kind == "text" for u in both):
                _heading_to_text(last, shared, count_tokens)
                _heading_to_text(section, shared, count_tokens)
                found[-1] = _Section(shared, last.units + section.units, last.heading if last.path == shared else None)
                continue
        found.append(section)
    return found


def _shared(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return a[:count]


def _heading_to_text(section: _Section, path: tuple[str, ...], count_tokens: CountTokens) -> None:
    """Put the headings that leave a section's path before its text."""
    if section.path == path:
        return
    text = " > ".join(section.path[len(path) :])
    place = section.heading.place if section.heading else section.units[0].place
    heading = _Unit(text, place, -1 - section.units[0].block, "text", max(count_tokens([text])[0], 1))
    section.units.insert(0, heading)
    section.path = path


# ---- units to chunks ------------------------------------------------------------------------------------------------------------


def _cut(section: _Section, settings: ChunkSettings, number: int) -> list[Chunk]:
    """The chunks of a section, with the numbers of the one or more sections that its length allows, from `number`."""
    chunks: list[Chunk] = []
    held = 0
    for run in _runs(section.units):
        packed = _packed(run, settings)
        previous: list[_Unit] = []
        for units in packed:
            tokens = sum(unit.tokens for unit in units)
            if held and held + tokens > settings.section_tokens:
                number, held, previous = number + 1, 0, []
            repeated = _repeated(previous, settings) if previous else []
            chunks.append(_chunk(repeated, units, section.path, number, bool(previous)))
            held += tokens
            previous = units
    return chunks


def _runs(units: list[_Unit]) -> Iterator[list[_Unit]]:
    """Units that may share a chunk: text with text, each table by itself with the caption before it, or else after it."""
    runs: list[list[_Unit]] = []
    for unit in units:
        last = runs[-1] if runs else []
        if (
            last
            and unit.kind == last[-1].kind
            and (unit.kind == "text" or unit.block == last[-1].block or (unit.kind == "table" and unit.goes_on))
        ):
            last.append(unit)
        else:
            runs.append([unit])
    found: list[list[_Unit]] = []
    for number, run in enumerate(runs):
        kind = run[0].kind
        before_table = number + 1 < len(runs) and runs[number + 1][0].kind == "table"
        last = found[-1] if found else []
        if kind == "table" and last and all(unit.kind == "caption" for unit in last):
            _with_caption(last, run)
        elif _joins(last, kind, before_table):
            last += run
        else:
            found.append(run)
    yield from found


def _joins(last: list[_Unit], kind: str, before_table: bool) -> bool:
    """Whether a run of text, or a caption that is not of the next table, goes on with what is before it."""
    if not last or kind not in ("text", "caption") or (kind == "caption" and before_table):
        return False
    if any(unit.kind == "table" for unit in last):
        return kind == "caption" and last[-1].kind == "table" and not last[0].header
    return last[-1].kind != "code"


def _with_caption(caption: list[_Unit], table: list[_Unit]) -> None:
    """Put a caption before a table: in the head that is repeated, if there is one."""
    if not table[0].header:
        caption += table
        return
    words = " ".join(unit.text.strip() for unit in caption)
    caption[:] = [replace(unit, header=f"{words}\n{unit.header}") for unit in table]


def _packed(units: list[_Unit], settings: ChunkSettings) -> list[list[_Unit]]:
    """Units in chunks of about equal length, cut between blocks where that is near."""
    most = settings.tokens
    total = sum(unit.tokens for unit in units)
    tables = [unit for unit in units if unit.kind == "table"]
    if total <= most or (len(tables) == 1 and not tables[0].header):  # one table, and its caption
        return [units]
    most -= settings.overlap if units[0].kind in ("text", "caption") else 0
    wanted = total / -(-total // most)
    whole = _lengths(units)
    found: list[list[_Unit]] = [[]]
    held, left = 0, total  # tokens of the chunk at hand, and of all that is not in a chunk before it
    for unit in units:
        begins = not found[-1] or (unit.block != found[-1][-1].block and not unit.goes_on)
        early = begins and held >= 0.6 * wanted and held + whole[unit.block] > most
        enough = (held >= wanted or early) and left > most
        if found[-1] and (held + unit.tokens > most or enough):
            found.append([])
            left -= held
            held = 0
        found[-1].append(unit)
        held += unit.tokens
    return found


def _lengths(units: list[_Unit]) -> dict[int, int]:
    found: dict[int, int] = {}
    for unit in units:
        found[unit.block] = found.get(unit.block, 0) + unit.tokens
    return found


def _repeated(units: list[_Unit], settings: ChunkSettings) -> list[_Unit]:
    """The last sentences of a chunk that fit into the overlap."""
    if any(unit.kind not in ("text", "caption") for unit in units):
        return []
    found: list[_Unit] = []
    room = settings.overlap
    for unit in reversed(units[1:]):  # never all of it
        if unit.tokens > room or unit.block < 0:
            break
        found.insert(0, unit)
        room -= unit.tokens
    return found


def _chunk(repeated: list[_Unit], units: list[_Unit], path: tuple[str, ...], section: int, follows: bool) -> Chunk:
    text, overlap = "", 0
    places: list[tuple[int, Place]] = []
    header = units[0].header
    if header:
        text = header
        overlap = len(header) + 1 if follows else 0
    for unit in [*repeated, *units]:
        if text and unit.goes_on and unit.kind != "table":
            text = text.rstrip() + ("" if _CJK.match(text.rstrip()[-1:]) and _CJK.match(unit.text) else " ")
        elif text and places and unit.block != places[-1][0] and not unit.goes_on:
            text = text.rstrip() + ("\n" if unit.block < 0 or places[-1][0] < 0 else "\n\n")
        elif text:
            text += unit.joint
        if unit is units[0] and repeated:
            overlap = len(text)
        start = len(text)
        text += unit.text
        end = start + len(unit.text.rstrip())
        place = replace(unit.place, span=(start, end))
        if places and places[-1][0] == unit.block:
            places[-1] = (unit.block, _extended(places[-1][1], place))
        else:
            places.append((unit.block, place))
    text = text.rstrip()
    tokens = sum(unit.tokens for unit in [*repeated, *units])
    found = tuple(replace(place, span=_within(place, len(text))) for _, place in places)
    kinds = {unit.kind for unit in units}
    kind = "table" if "table" in kinds else "code" if "code" in kinds else "text"
    return Chunk(text, found, path, section, kind, tokens, overlap)


def _extended(a: Place, b: Place) -> Place:
    """Two places of one block as one."""
    assert a.span is not None
    assert b.span is not None
    lines = (a.lines[0], b.lines[1]) if a.lines and b.lines else a.lines
    cells = a.cells
    first, last = _CELLS.fullmatch(a.cells or ""), _CELLS.fullmatch(b.cells or "")
    if first and last:
        cells = f"{first[1]}{first[2]}:{last[3]}{last[4]}"
    return replace(a, lines=lines, cells=cells, span=(a.span[0], b.span[1]))


def _within(place: Place, length: int) -> tuple[int, int]:
    assert place.span is not None
    return place.span[0], min(place.span[1], length)
