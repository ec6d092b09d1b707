"""An answer on a terminal: blocks that are whole, tables drawn, numbers that lead somewhere."""

from __future__ import annotations

import io
import random
import re

from rich.console import Console

from tinyseek.commands.kb_markdown import Blocks, Screen, rendered, table

TABLE = "| Model | AIME |\n| --- | --- |\n| R1 \\| 7B | 55.5 |\n| R1 32B | 72.6 |"


def printed(blocks: list[str], quoted: bool = False, links: dict[int, str] | None = None) -> str:
    out = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None, legacy_windows=False)
    for block in blocks:
        out.print(rendered(block, links or {}, quoted))
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_pieces_of_any_size_make_the_same_blocks() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    text = f"First,\nof two lines.\n\n```\nx = 1\n\n\ny = 2\n```\n\n{TABLE}\n[1]\n\n- a\n- b\n\n\n\nlast"
    wanted = ["First,\nof two lines.", "```\nx = 1\n\n\ny = 2\n```", f"{TABLE}\n[1]", "- a\n- b", "last"]
    for _ in range(100):
        blocks = Blocks()
        found, at = [], 0
        while at < len(text):
            size = chance.randint(1, 30)
            found += blocks.feed(text[at : at + size])
            at += size
        assert [*found, blocks.end()] == wanted


def test_tables_are_drawn_and_what_cites_them_is_no_row() -> None:
    for quoted in (True, False):
        shown = printed([f"{TABLE}\n[2]"], quoted)
        assert "| ---" not in shown
        rows = [re.split(r"\s{2,}|[│┃]", line.strip(" │┃")) for line in shown.splitlines()]
        cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
        assert ["R1 32B", "72.6"] in cells
        assert ["R1 | 7B", "55.5"] in cells
        assert ["[2]"] in cells
    assert table("no table")[1] is None
    assert table("| a |\nno rule")[1] is None
    captioned = printed([f"Table 5: distilled models\n{TABLE}\n[1]"], quoted=True)
    assert captioned.strip().startswith("Table 5: distilled models")


def test_quoted_words_are_no_markup() -> None:
    text = "- *Knowledge*: 2 * 3 * 4 = __main__ [bold]x[/bold] # no head [1]"
    assert printed([text], quoted=True).split() == text.split()


def test_numbers_lead_where_they_are_known() -> None:
    links = {1: "file:///tmp/a%20b.pdf#page=3"}
    out = Console(file=io.StringIO(), force_terminal=True, width=60, legacy_windows=False)
    for quoted in (True, False):
        out.print(rendered("It is so [1], and so [2].", links, quoted))
    seen = out.file.getvalue()  # type: ignore[attr-defined]
    assert len(re.findall(r"\x1b\]8;[^;]*;file:///tmp/a%20b.pdf#page=3\x1b\\", seen)) == 2
    plain = re.sub(r"\x1b\][^\x1b]*\x1b\\|\x1b\[[0-9;]*m", "", seen)
    assert [line.strip() for line in plain.splitlines()] == ["It is so [1], and so [2]."] * 2
    assert "[1]" in printed(["```\na[1] = 2\n```"])


def test_what_is_written_is_shown_as_it_comes_and_stays_once() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None, legacy_windows=False)
    screen = Screen(out, quoted=False)
    text = f"**Two** models:\n\n{TABLE}\n\nThat is all."
    for at in range(0, len(text), 7):
        screen.write(text[at : at + 7], {})
    growing = out.file.getvalue()  # type: ignore[attr-defined]
    assert "That is all." not in growing.split("72.6")[0]
    screen.end()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue())  # type: ignore[attr-defined]
    assert "Two models:" in shown
    assert shown.rstrip().endswith("That is all.")
