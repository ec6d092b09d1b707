"""Chunks: within their budget, nothing lost, every character at home in its block; sections, overlaps, tables, captions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tinyseek.knowledge.chunks import joined, searched, split
from tinyseek.knowledge.documents.blocks import Block, Document, Kind, Place, Table
from tinyseek.knowledge.index.base import Chunk
from tinyseek.knowledge.options import ChunkSettings

SMALL = ChunkSettings(tokens=40, overlap=10, section_tokens=100)
TEXT = "The wing lifts. 机翼产生升力，气流绕过它。Heat flows from the nose, slowly! 激波很强。Is it so? "


def count(texts: Sequence[str]) -> list[int]:
    """A token a Chinese character, a token a word."""
    return [len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text)) for text in texts]


def of(*blocks: Block) -> Document:
    return Document(blocks, "text")


def some_blocks(draw: random.Random) -> list[Block]:
    blocks: list[Block] = []
    path: list[str] = []
    for number in range(draw.randint(1, 40)):
        kind = draw.choice(["paragraph"] * 5 + ["heading", "list", "code", "caption", "formula", "table"])
        place = Place(page=number // 7 + 1, lines=(number * 10 + 1, number * 10 + 1))
        if kind == "heading":
            level = draw.randint(1, min(len(path) + 1, 3))
            path = path[: level - 1]
            blocks.append(Block("heading", f"Title {number}", place, tuple(path), level))
            path.append(f"Title {number}")
        elif kind == "table":
            rows = tuple((f"r{number}x{row}", str(draw.randint(0, 99))) for row in range(draw.randint(1, 30)))
            table = Table((("name", "value"), *rows))
            blocks.append(Block("table", table.markdown(), place, tuple(path), table=table))
        else:
            text = "".join(draw.choice(re.split(r"(?<=[.。!?] )|(?<=。)", TEXT)) for _ in range(draw.randint(1, 20)))
            if kind in ("list", "code"):
                text = "\n".join(text.split())
            blocks.append(Block(_kind(kind), f"b{number} {text}".strip(), place, tuple(path)))
    return blocks


def _dense(text: str) -> str:
    return "".join(text.split())


def _kind(name: str) -> Kind:
    return name  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_and_everything_fits(seed: int) -> None:
    print("seed", seed)
    draw = random.Random(seed)
    blocks = some_blocks(draw)
    chunks = split(of(*blocks), SMALL, count)
    everything = _dense("".join(chunk.text[chunk.overlap :] for chunk in chunks))
    headings = {part for chunk in chunks for part in chunk.path}
    for block in blocks:
        if block.kind == "heading":
            assert block.text in headings or _dense(block.text) in everything
        elif block.table is not None:
            assert all(_dense(f"| {name} | {value} |") in everything for name, value in block.table.rows)
        else:
            assert _dense(block.text) in everything
    for chunk in chunks:
        assert chunk.text == chunk.text.strip("\n")
        assert count([chunk.text])[0] <= SMALL.tokens * 1.3  # a header, a caption or a joined heading may be more
        assert len(chunk.path) <= 3
    assert [chunk.section for chunk in chunks] == sorted(chunk.section for chunk in chunks)
    assert {chunk.section for chunk in chunks} == set(range(chunks[-1].section + 1))
    for section in range(chunks[-1].section + 1):
        members = [chunk for chunk in chunks if chunk.section == section]
        assert len({chunk.path for chunk in members}) == 1
        assert sum(count([chunk.text[chunk.overlap :]])[0] for chunk in members) <= SMALL.section_tokens * 1.2


@pytest.mark.parametrize("seed", range(6))
def test_every_character_is_at_home(seed: int) -> None:
    """The text under a place's span is a part of the block that stands there."""
    print("seed", seed)
    blocks = some_blocks(random.Random(seed))
    homes = {(block.place.page, block.place.lines): block for block in blocks if block.kind != "code"}
    for chunk in split(of(*blocks), SMALL, count):
        ends = [place.span for place in chunk.places if place.span]
        assert len(ends) == len(chunk.places)
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        for place in chunk.places:
            assert place.span is not None
            part = chunk.text[place.span[0] : place.span[1]]
            home = homes.get((place.page, place.lines))
            if home is not None and home.kind not in ("table", "heading"):
                assert part in home.text


def test_sections_joined_are_the_text_once() -> None:
    sentences = [f"This is sentence number {n} of the text. " for n in range(40)]
    text = "".join(sentences).strip()
    chunks = split(
        of(Block("paragraph", text, path=("A",))), ChunkSettings(tokens=40, overlap=20, section_tokens=5000), count
    )
    assert len(chunks) > 5
    assert all(chunk.overlap > 0 for chunk in chunks[1:])
    assert joined(chunks).replace("\n\n", " ") == text
    lengths = [chunk.tokens for chunk in chunks]
    assert max(lengths) <= 40
    assert min(lengths) > 15


def test_an_overlap_is_the_end_of_the_chunk_before_it() -> None:
    text = "".join(f"第{n}句话说的是第{n}件事。" for n in range(30))
    chunks = split(of(Block("paragraph", text)), ChunkSettings(tokens=40, overlap=16, section_tokens=100), count)
    for before, after in pairwise(chunks):
        if after.section == before.section:
            assert after.overlap > 0
            assert before.text.endswith(after.text[: after.overlap].strip())
        else:
            assert after.overlap == 0


def test_chinese_is_cut_at_the_ends_of_sentences() -> None:
    text = "".join(f"第{n}句话说的是第{n}件事，它很长很长。" for n in range(30))
    for chunk in split(of(Block("paragraph", text)), SMALL, count):
        assert chunk.text.startswith("第")
        assert chunk.text.endswith("。")


def test_a_sentence_without_an_end_is_cut_at_blanks() -> None:
    chunks = split(of(Block("paragraph", "word " * 500)), SMALL, count)
    assert {word for chunk in chunks for word in chunk.text.split()} == {"word"}
    assert all(chunk.tokens <= SMALL.tokens for chunk in chunks)
    one = split(of(Block("paragraph", "x" * 10_000)), SMALL, lambda texts: [len(text) for text in texts])
    assert "".join(chunk.text[chunk.overlap :] for chunk in one) == "x" * 10_000


def test_a_long_table_repeats_its_head_and_knows_its_cells() -> None:
    rows = (("Name", "Preis"), *((f"Ding {n}", f"{n}.50") for n in range(60)))
    table = Table(rows)
    place = Place(sheet="S", cells="B3:C63")
    caption = Block("caption", "Table 1: prices")
    chunks = split(of(caption, Block("table", table.markdown(), place, table=table)), SMALL, count)
    assert len(chunks) > 4
    seen: list[str] = []
    for chunk in chunks:
        lines = chunk.text.splitlines()
        assert lines[:3] == ["Table 1: prices", "| Name | Preis |", "| --- | --- |"]
        assert chunk.kind == "table"
        first, last = (int(part[1:]) for part in chunk.places[0].cells.split(":"))  # type: ignore[union-attr]
        assert rows[first - 3 : last - 2] == tuple(tuple(line.strip("| ").split(" | ")) for line in lines[3:])
        seen += lines[3:]
    assert len(seen) == 60
    assert joined([chunk for chunk in chunks if chunk.section == 0]).count("Name") == 1


def test_a_caption_stands_with_its_table() -> None:
    table = Table((("a", "b"), ("1", "2")))
    block = Block("table", table.markdown(), table=table)
    text = Block("paragraph", "Some text that has nothing to do with it.")
    before = split(of(text, Block("caption", "Table 1"), block, text), SMALL, count)
    assert [chunk.kind for chunk in before] == ["text", "table", "text"]
    assert before[1].text.startswith("Table 1\n")
    after = split(of(text, block, Block("caption", "Table 1"), text), SMALL, count)
    assert after[1].text.endswith("Table 1")
    alone = split(of(Block("caption", "Figure 1: a wing"), text), SMALL, count)
    assert [chunk.kind for chunk in alone] == ["text"]


def test_short_sections_side_by_side_become_one_with_their_headings() -> None:
    blocks = []
    for n in range(3):
        blocks += [
            Block("heading", f"Q{n}", path=("FAQ",), level=2),
            Block("paragraph", f"Answer {n}.", path=("FAQ", f"Q{n}")),
        ]
    chunks = split(of(Block("heading", "FAQ", level=1), *blocks), SMALL, count)
    assert [chunk.path for chunk in chunks] == [("FAQ",)]
    assert chunks[0].text == "Q0\nAnswer 0.\nQ1\nAnswer 1.\nQ2\nAnswer 2."


def test_a_heading_without_text_is_text() -> None:
    chunks = split(of(Block("heading", "Alone", level=1)), SMALL, count)
    assert [chunk.text for chunk in chunks] == ["Alone"]
    assert split(of(), SMALL, count) == []
    assert split(of(Block("paragraph", " \n ")), SMALL, count) == []


def test_lines_are_those_of_the_sentences() -> None:
    text = "".join(f"Line {n} says {n}.\n" for n in range(50)).rstrip("\n")
    chunks = split(of(Block("paragraph", text, Place(lines=(11, 60)))), SMALL, count)
    for chunk in chunks:
        numbers = [int(number) for number in re.findall(r"Line (\d+)", chunk.text)]
        assert chunk.places[0].lines == (numbers[0] + 11, numbers[-1] + 11)


def test_rows_of_a_long_table_know_their_lines() -> None:
    rows = (("name", "value"), *((f"row {n}", "word " * 6) for n in range(12)))
    table = Table(rows)
    for place, first in (
        (Place(cells="A1:B13", lines=(1, 13)), 2),  # a CSV: the n-th row is the n-th line
        (Place(lines=(5, 18)), 7),  # Markdown, with a line below the head
        (Place(cells="A1:B13", lines=(1, 14)), None),  # a cell of two lines: which row is where is not known
    ):
        chunks = split(of(Block("table", table.markdown(), place, table=table)), SMALL, count)
        assert len(chunks) > 1
        at = first
        for chunk in chunks:
            body = chunk.text.splitlines()[2:]
            lines = chunk.places[0].lines
            assert lines == ((at, at + len(body) - 1) if at else place.lines)
            at = at + len(body) if at else None


def test_a_sentence_over_a_page_s_end_is_one_again() -> None:
    def halves(first: str, second: str) -> list[Block]:
        return [
            Block("paragraph", first, Place(page=1)),
            Block("paragraph", second, Place(page=2), continued=True),
            Block("paragraph", "Another paragraph.", Place(page=2)),
        ]

    [chunk] = split(of(*halves("The wing lifts because the", "flow bends. It is so.")), SMALL, count)
    assert chunk.text == "The wing lifts because the flow bends. It is so.\n\nAnother paragraph."
    assert [(place.page, chunk.text[slice(*place.span or ())]) for place in chunk.places] == [
        (1, "The wing lifts because the"),
        (2, "flow bends. It is so."),
        (2, "Another paragraph."),
    ]
    [chunk] = split(of(*halves("机翼产生升力，因为", "气流弯曲。")), SMALL, count)
    assert chunk.text == "机翼产生升力，因为气流弯曲。\n\nAnother paragraph."
    long = "One short sentence. " * 8
    chunks = split(of(*halves(long + "The wing lifts because the", "flow bends. " + long)), SMALL, count)
    assert any("because the flow bends." in c.text for c in chunks)


def test_what_is_searched_has_title_and_headings() -> None:
    chunk = Chunk("text", path=("One", "Two"))
    assert searched(chunk) == "One > Two\ntext"
    assert searched(chunk, "One") == "One > Two\ntext"
    assert searched(chunk, " Title ") == "Title > One > Two\ntext"
    assert searched(Chunk("text")) == "text"
    long = Chunk("text", path=("x" * 400, "near"))
    assert searched(long) == "near\ntext"
