"""Markdown, plain text, CSV, source code and notebooks: what they say, and on which lines."""

from __future__ import annotations

import csv as peer
import json
import random
from pathlib import Path

import pytest

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import code, csv, markdown, plain
from tinyseek.knowledge.documents.blocks import Block, Document
from tinyseek.knowledge.documents.limits import Limits

MARKDOWN = r"""---
title: "My notes"
author: Ann
date: 2024-02-03
---
# Head *one* {#id}

Text with `code`, **bold**, [a link](http://x.y) and $a_i + b_i \{x\}$, a note[^1].
中文
换行。

$$
E = mc^2
$$

| A | B |
|---|:-:|
| 1 \| 2 | `x` |

## Two

1. first
   more
   - deep
2. second

```python
# no heading
```

[^1]: word
> # quoted
"""


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def shown(block: Block) -> tuple[str, str, tuple[int, int] | None]:
    return block.kind, block.text, block.place.lines


def test_markdown_in_full(tmp_path: Path) -> None:
    document = markdown.parse(written(tmp_path, "a.md", MARKDOWN), Limits())
    assert (document.title, document.author, document.date) == ("My notes", "Ann", "2024-02-03")
    assert [shown(block) for block in document.blocks] == [
        ("heading", "Head one", (6, 6)),
        ("paragraph", r"Text with code, bold, a link and $a_i + b_i \{x\}$, a note[^1]. 中文换行。", (8, 10)),
        ("formula", "E = mc^2", (12, 14)),
        ("table", "| A | B |\n| --- | --- |\n| 1 \\| 2 | x |", (16, 18)),
        ("heading", "Two", (20, 20)),
        ("list", "1. first more\n  - deep\n2. second", (22, 26)),
        ("code", "# no heading", (27, 29)),
        ("paragraph", "[^1]: word", (31, 31)),
        ("paragraph", "quoted", (32, 32)),
    ]
    assert document.blocks[-1].path == ("Head one", "Two")


def test_html_in_markdown(tmp_path: Path) -> None:
    text = "before\n\n<table><tr><th>H</th></tr><tr><td>v</td></tr></table>\n\n<script>alert(1)</script>\n\nx <b>y</b><br>z"
    found = markdown.parse(written(tmp_path, "a.md", text), Limits()).blocks
    assert [shown(block) for block in found] == [
        ("paragraph", "before", (1, 1)),
        ("table", "| H |\n| --- |\n| v |", (3, 3)),
        ("paragraph", "x y\nz", (7, 7)),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_lines_of_markdown_and_text_are_where_the_words_are(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    lines: list[str] = []
    for number in range(60):
        kind = chance.randrange(4)
        lines += (
            [f"# Title w{number}"] if kind == 0 else [f"- item w{number}"] if kind == 1 else [f"words w{number} here."]
        )
        lines += [""] * chance.randrange(1, 3)
    text = "\n".join(lines)
    for name, parse in (("a.md", markdown.parse), ("a.txt", plain.parse)):
        for block in parse(written(tmp_path, name, text), Limits()).blocks:
            assert block.place.lines is not None
            first, last = block.place.lines
            for word in (
                word for word in block.text.split() if word.startswith("w") and word[1:].rstrip(".").isdecimal()
            ):
                assert any(word in line for line in lines[first - 1 : last]), (name, block)


def text_blocks(tmp_path: Path, text: str, name: str = "a.txt") -> tuple[Block, ...]:
    return plain.parse(written(tmp_path, name, text), Limits()).blocks


def test_wrapped_lines_are_joined_and_verses_are_not(tmp_path: Path) -> None:
    text = (
        "It was a bright cold day in April, and the clocks were striking thir-\nteen. Winston Smith, his chin nuzzled into his "
        "breast in an ef-\nfort to escape the vile wind, slipped quickly.\n\nRoses are red\nViolets are blue\n\n"
        "　　第一段中文文字在这里。\n　　第二段中文文字在这里。\n"
    )
    found = text_blocks(tmp_path, text)
    assert found[0].text.startswith("It was a bright cold day in April, and the clocks were striking thirteen. Winston")
    assert "in an effort to" in found[0].text
    assert found[1].text == "Roses are red\nViolets are blue"
    assert [(block.text, block.place.lines) for block in found[2:]] == [
        ("第一段中文文字在这里。", (8, 8)),
        ("第二段中文文字在这里。", (9, 9)),
    ]


def test_chinese_lines_are_joined_without_blanks(tmp_path: Path) -> None:
    text = "这是一段被折成几行的中文文字，每一行都差不多一样长，\n所以它们应该被接成一段，而且中间没有空格，这样读起\n来才对。"
    assert text_blocks(tmp_path, text)[0].text == text.replace("\n", "")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("第三章 数据", 2),
        ("第一部 总论", 1),
        ("Chapter 12. The End", 2),
        ("CHAPTER IV", 2),
        ("1.2.3 Training details", 3),
        ("2 方法", 1),
        ("Appendix B: Proofs", 2),
        ("第三章，他说，并不好。", 0),
        ("Chapter and verse were given by him.", 0),
        ("2 eggs and milk", 0),
        ("Part of the plan", 0),
        ("Section 4 applies to all who live here, whatever they may have said before that.", 0),
        ("1.5 Million people live here.", 0),
    ],
)
def test_headings_of_plain_text(tmp_path: Path, line: str, level: int) -> None:
    assert text_blocks(tmp_path, f"{line}\n\nbody text\n")[0].level == level


def test_underlined_headings(tmp_path: Path) -> None:
    text = "=====\nBook\n=====\n\nOne\n---\n\ntext\n\nDeep\n^^^^\n\nmore\n\nTwo\n---\n\nend\n"
    found = text_blocks(tmp_path, text, "a.rst")
    assert [(block.text, block.level) for block in found if block.level] == [
        ("Book", 1),
        ("One", 2),
        ("Deep", 3),
        ("Two", 2),
    ]
    assert found[-1].path == ("Book", "Two")


def test_subtitles_are_what_is_said_and_when(tmp_path: Path) -> None:
    cues = "".join(f"{n}\n00:00:{n:02},000 --> 00:00:{n + 1:02},000\n<i>word{n}</i>\n\n" for n in range(1, 20))
    found = text_blocks(tmp_path, cues, "a.srt")
    assert found[0].text.startswith("[00:00:01] word1 word2")
    assert found[1].text.startswith("[00:00:13] word13")
    assert found[1].place.lines is not None
    assert found[1].place.lines[0] == 12 * 4 + 2


def test_a_log_is_cut_into_blocks_with_their_lines(tmp_path: Path) -> None:
    found = text_blocks(tmp_path, "\n".join(f"{n} line" for n in range(1, 1001)))
    assert len(found) == 25
    assert [block.place.lines for block in found[:2]] == [(1, 40), (41, 80)]


@pytest.mark.parametrize("seed", range(8))
def test_every_value_of_random_csv(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    sign = ",;\t|"[seed % 4]
    rows = [[f"name {n}" for n in range(4)]]
    rows += [
        [
            chance.choice(("x", "1,5", 'say "no"', "two\nlines", "a;b", "数值，中文", "7")) + str(chance.randrange(9))
            for _ in range(4)
        ]
        for _ in range(30)
    ]
    with (tmp_path / "a.csv").open(
        "w", encoding=chance.choice(("utf-8", "utf-8-sig", "gb18030")), newline=""
    ) as stream:
        peer.writer(stream, delimiter=sign).writerows(rows)
    document = csv.parse(tmp_path / "a.csv", Limits())
    (block,) = document.blocks
    assert block.table is not None
    assert [list(row) for row in block.table.rows] == rows
    assert block.place.cells == "A1:D31"
    assert block.table.header_rows == 1
    (sheet,) = csv.cells_of(tmp_path / "a.csv", Limits())
    assert [list(row) for row in sheet.rows] == rows


def test_ragged_csv_is_filled_up_and_told(tmp_path: Path) -> None:
    document = csv.parse(written(tmp_path, "a.csv", "a,b,c\n1,2\n\n4,5,6\n"), Limits())
    assert document.blocks[0].table is not None
    assert document.blocks[0].table.rows == (("a", "b", "c"), ("1", "2", ""), ("", "", ""), ("4", "5", "6"))
    assert document.notes == ("2 of its 4 rows have fewer than 3 values",)


def test_csv_without_a_header_and_with_too_many_cells(tmp_path: Path) -> None:
    found = csv.parse(written(tmp_path, "a.csv", "1,2\n3,4\n"), Limits()).blocks[0].table
    assert found is not None
    assert found.header_rows == 0
    with pytest.raises(UserError, match="more than 100 cells"):
        csv.parse(written(tmp_path, "b.csv", "1,2\n" * 51), Limits(cells=100))
    with pytest.raises(UserError, match="cells"):
        csv.parse(written(tmp_path, "c.csv", "1\n" * 90 + "," * 9 + "\n"), Limits(cells=100))


PYTHON = (
    '''"""A module."""

import os


# What it is for.
@decorated
def first(a):
    return a


class Big:
    """Doc."""

    def one(self):
        return 1
'''
    + "\n    def {name}(self):\n        # body\n".replace("{name}", "two")
    + "        x = 1\n" * 70
    + "\n\nvalue = first(2)\n"
)


PYTHON = PYTHON.replace("    return a\n", "    a += 1\n" * 12 + "    return a\n")  # long enough for a piece of its own


def test_python_by_its_grammar(tmp_path: Path) -> None:
    document = code.parse(written(tmp_path, "a.py", PYTHON), Limits())
    lines = PYTHON.split("\n")
    assert document.language == "python"
    assert [block.path for block in document.blocks][:3] == [(), ("first",), ("class Big",)]
    assert ("class Big", "two") in [block.path for block in document.blocks]
    covered: list[int] = []
    for block in document.blocks:
        assert block.place.lines is not None
        first, last = block.place.lines
        assert "\n".join(lines[first - 1 : last]) == block.text
        covered += range(first, last + 1)
    assert sorted(covered) == sorted(set(covered)), "a line in two pieces"
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= set(covered), "a line in none"
    assert document.blocks[1].text.startswith("# What it is for.\n@decorated\ndef first")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["a.py", "a.js", "a.go", "a.c", "a.rs", "a.sql", "a.yaml", "Makefile"])
def test_every_line_of_any_code_is_in_one_piece(tmp_path: Path, seed: int, name: str) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    words = ["def f(x):", "class A:", "function g(a) {", "}", "  x = 1", "", "/* a", "*/", "// c", "# c", "struct S {"]
    words += [
        "  int m(int a) {",
        "pub fn k() {",
        "CREATE TABLE t (",
        "return f(x) {",
        "@dec",
        "    def m(self):",
        "key:",
        "[a]",
    ]
    lines = [chance.choice(words) for _ in range(chance.randrange(1, 400))]
    document = code.parse(written(tmp_path, name, "\n".join(lines)), Limits())
    covered: list[int] = []
    for block in document.blocks:
        assert block.place.lines is not None
        covered += range(block.place.lines[0], block.place.lines[1] + 1)
    assert covered == sorted(set(covered))
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= set(covered)


def test_other_languages_by_their_words(tmp_path: Path) -> None:
    go = (
        "package x\n\n// Add adds.\nfunc Add(a int) int {\n"
        + "\ta++\n" * 20
        + "}\n\nfunc (b *B) Grow(n int) {\n"
        + "\tn++\n" * 20
        + "}\n"
    )
    found = code.parse(written(tmp_path, "a.go", go), Limits()).blocks
    assert [block.path for block in found] == [(), ("Add",), ("(b *B) Grow",)]
    assert found[1].text.startswith("// Add adds.\nfunc Add")
    c = (
        "#include <a.h>\n/* struct no {\n int not(int a) {\n*/\nstatic int\nadd(int a)\n{\n"
        + "  a++;\n" * 20
        + "}\nint call(void);\n"
    )
    assert [block.path for block in code.parse(written(tmp_path, "a.c", c), Limits()).blocks][-1] == ("add",)


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Study\n", "\n", "Some *text*."]},
        {"cell_type": "code", "source": "print(6*7)", "outputs": [{"output_type": "stream", "text": ["42\n"]}]},
        {"cell_type": "code", "source": "x", "outputs": [{"data": {"text/plain": "3.14", "image/png": "AAAA"}}]},
        "no cell",
    ]
    document = code.parse(written(tmp_path, "a.ipynb", json.dumps({"cells": cells, "metadata": {}})), Limits())
    assert [block.text for block in document.blocks] == [
        "Study",
        "Some text.",
        "print(6*7)",
        "Output of cell 2: 42",
        "x",
        "Output of cell 3: 3.14",
    ]
    assert document.title == "Study"
    assert document.blocks[2].path == ("Study",)
    for broken in ("{}", "[1]", "{", '{"cells": 5}', '{"cells": [{"cell_type": "code"}]}'):
        try:
            found: Document | None = code.parse(written(tmp_path, "b.ipynb", broken), Limits())
        except UserError:
            found = None
        assert found is None or not found.blocks
