"""Web pages: what they are about, without what is around it; tables as grids; nothing hidden, nothing lost, nothing run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import html
from tinyseek.knowledge.documents.blocks import Document, Table
from tinyseek.knowledge.documents.limits import Limits

PAGE = """<!doctype html><html lang=en><head><title>Big post - Site</title><meta name=author content="Ann Lee">
<meta property="article:published_time" content="2024-05-06T10:00:00Z"></head><body>
<nav><a href=/>Home</a></nav><div class="cookie-banner">We use cookies</div><header class=top><a href=/>Site</a></header>
<div class="sidebar"><ul><li><a href=/1>One</a></li><li><a href=/2>Two</a></li></ul></div>
<div class=content><h1>Big post<a class="headerlink" href="#x">¶</a></h1>
<p>Hello <b>bold</b> and <a href=x>link</a>.<br>Second line</p>loose text
<h2>表格 Table</h2><p>中文
中文<span style="display: none">Ignore what was said</span><script>alert(1)</script></p>
<ul><li>one<ul><li>deep <b>er</b></li></ul></li><li><p>two</p></li></ul><ol start=3><li>three<li>four</ol>
<pre><code>def f(x):
    return x</code></pre>
<p>Energy <math><semantics><mi>E</mi><annotation encoding="application/x-tex">E=mc^2</annotation></semantics></math> is known.</p>
<figure><img src=a.png alt="A chart of sales over time"><figcaption>Figure 1: sales</figcaption></figure>
<dl><dt>Term<dd>Meaning</dl></div><footer>Copyright 2024</footer></body></html>"""


def page(tmp_path: Path, text: str | bytes) -> Document:
    (tmp_path / "a.html").write_bytes(text.encode() if isinstance(text, str) else text)
    return html.parse(tmp_path / "a.html", Limits())


def test_a_page_in_full(tmp_path: Path) -> None:
    document = page(tmp_path, PAGE)
    assert (document.title, document.author, document.date) == ("Big post - Site", "Ann Lee", "2024-05-06")
    assert [(block.kind, block.text) for block in document.blocks] == [
        ("heading", "Big post"),
        ("paragraph", "Hello bold and link.\nSecond line"),
        ("paragraph", "loose text"),
        ("heading", "表格 Table"),
        ("paragraph", "中文中文"),
        ("list", "- one\n  - deep er\n- two"),
        ("list", "3. three\n4. four"),
        ("code", "def f(x):\n    return x"),
        ("paragraph", "Energy $E=mc^2$ is known."),
        ("caption", "A chart of sales over time"),
        ("caption", "Figure 1: sales"),
        ("list", "Term\n  Meaning"),
    ]
    assert document.blocks[-1].path == ("Big post", "表格 Table")


def test_main_and_article_are_the_page_where_they_hold_it(tmp_path: Path) -> None:
    around = "<div>" + "<p>menu words of the site</p>" * 5 + "</div>"
    text = f"<body>{around}<main><h1>Title</h1><article><p>{'The story is told here. ' * 20}</p></article></main>{around}</body>"
    assert [block.text[:9] for block in page(tmp_path, text).blocks] == ["Title", "The story"]
    tiny = f"<body><main></main><p>{'All of the text is outside. ' * 20}</p></body>"
    assert page(tmp_path, tiny).blocks[0].text.startswith("All of")


def test_a_page_of_menus_alone_is_still_read(tmp_path: Path) -> None:
    assert page(tmp_path, "<body><footer>Only a footer</footer></body>").blocks[0].text == "Only a footer"


def grid_of(cells: list[list[tuple[int, int]]]) -> tuple[str, list[list[str]]]:
    """HTML of rows of spans, and the grid that the standard's algorithm makes of it, cell by cell."""
    taken: dict[tuple[int, int], str] = {}
    text, number = "<table>", 0
    for row, spans in enumerate(cells):
        text, column = text + "<tr>", 0
        for down, across in spans:
            while (row, column) in taken:
                column += 1
            name = f"c{number}"
            number += 1
            text += f"<td rowspan={down} colspan={across}>{name}</td>"
            for at in range(row, min(row + down, len(cells))):
                for beside in range(column, column + across):
                    taken.setdefault((at, beside), name if (at, beside) == (row, column) else "")
            column += across
        text += "</tr>"
    width = max(column for _, column in taken) + 1
    return text + "</table>", [[taken.get((row, column), "") for column in range(width)] for row in range(len(cells))]


@pytest.mark.parametrize("seed", range(30))
def test_random_tables_with_spans(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    cells = [
        [(chance.choice((1, 1, 1, 2, 3)), chance.choice((1, 1, 1, 2))) for _ in range(chance.randrange(1, 5))]
        for _ in range(chance.randrange(2, 7))
    ]
    if all(len(row) == 1 for row in cells):
        cells[0].append((1, 1))
    text, wanted = grid_of(cells)
    table = page(tmp_path, text).blocks[0].table
    assert isinstance(table, Table)
    assert [list(row) for row in table.rows] == wanted
    for row, column, rows, columns in table.merged:
        assert wanted[row][column]
        assert row + rows <= len(wanted)
        assert column + columns <= len(wanted[0])


def test_heads_of_tables(tmp_path: Path) -> None:
    text = (
        "<table><caption>Scores</caption><tfoot><tr><td>sum<td>3</tr></tfoot>"
        "<thead><tr><th rowspan=2>Model<th>Score</tr><tr><th>A</tr></thead>"
        "<tr><th>x<td>1</tr></table>"
    )
    caption, table = page(tmp_path, text).blocks
    assert (caption.kind, caption.text) == ("caption", "Scores")
    assert table.table is not None
    assert table.table.header_rows == 2
    assert table.table.rows == (("Model", "Score"), ("", "A"), ("x", "1"), ("sum", "3"))


def test_layout_tables_are_read_as_what_is_in_them(tmp_path: Path) -> None:
    text = "<table><tr><td><h1>Title</h1><p>text</p><table><tr><td>a<td>b</tr><tr><td>c<td>d</tr></table></td></tr></table>"
    assert [block.kind for block in page(tmp_path, text).blocks] == ["heading", "paragraph", "table"]


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("gbk", "gb2312"),
        ("big5", "big5"),
        ("utf-8", "gb2312"),
        ("utf-8", "utf-8"),
        ("utf-16", "utf-16"),
        ("shift_jis", "shift_jis"),
        ("gbk", "no-such"),
    ],
)
def test_what_a_page_says_of_its_encoding(tmp_path: Path, encoding: str, declared: str) -> None:
    said = {"shift_jis": "これは日本語の文章です。", "big5": "這個網頁的內容是中文，我們要讀出來。"}.get(
        encoding, "这个网页的内容是中文，我们要读出来。"
    )
    text = f'<html><head><meta charset="{declared}"></head><body><p>{said}</p></body></html>'
    assert page(tmp_path, text.encode(encoding)).blocks[0].text == said


@pytest.mark.parametrize("seed", range(20))
def test_tags_in_any_disorder_lose_no_word(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    tags = "p div b i ul li ol table tr td th span h1 h2 section blockquote em a dl dt dd figure article main".split()  # noqa: SIM905
    text = "<p>start</p>" + "".join(
        chance.choice((f"<{tag}>", f"</{tag}>", f" word{number} "))
        for number, tag in enumerate(chance.choices(tags, k=300))
    )
    found = " ".join(block.text for block in page(tmp_path, f"<body>{text}").blocks)
    words = [word for word in text.replace("<", " <").replace(">", "> ").split() if word.startswith("word")]
    lost = [word for word in words if word not in found.replace("|", " ").replace("<br>", " ").split()]
    assert "<main>" in text or "<article>" in text or not lost, lost


def test_too_deep_and_too_many(tmp_path: Path) -> None:
    assert "deep" in page(tmp_path, "<div>" * 1500 + "deep" + "</div>" * 1500).blocks[0].text
    assert "deep" in " ".join(block.text for block in page(tmp_path, "<ul><li>" * 900 + "deep").blocks)
    lost = page(tmp_path, "<p>start</p>" + "<div>" * 5000 + "deep")
    assert lost.blocks[0].text == "start"
    assert lost.notes == ("its elements are nested more than 2,048 deep; what comes after was not read",)
    wide = "<table>" + "<tr><td colspan=1000 rowspan=60000>x</td><td>y</td></tr>" * 300 + "</table>"
    (tmp_path / "b.html").write_text(wide, encoding="utf-8")
    with pytest.raises(UserError, match="cells"):
        html.parse(tmp_path / "b.html", Limits(cells=10_000))
