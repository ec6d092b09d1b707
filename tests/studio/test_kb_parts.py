"""What the knowledge page is made of, without a browser: marks, tables, citations in markup, what is brought in."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from studio_payloads import PAYLOADS

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Block, Place, Table
from tinyseek.knowledge.ingest import Progress
from tinyseek.studio import kb_marks, kb_text
from tinyseek.studio.chats import Message
from tinyseek.studio.kb_app import is_here
from tinyseek.studio.kb_hits import emphasised, flattened, snippet
from tinyseek.studio.kb_intake import Intake
from tinyseek.studio.kb_talk import answer_blocks, with_citations
from tinyseek.studio.markdown import blocks
from tinyseek.studio.words import Words

EN = Words("en")


def marked_text(found: list[Block], spans: kb_marks.Spans) -> str:
    return "".join(found[number].text[a:b] for number in sorted(spans) for a, b in spans[number])


def test_a_passage_is_found_whatever_its_blanks_are() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        letters = "abc 的灯塔\n"
        found = [Block("paragraph", "".join(chance.choices(letters, k=chance.randint(0, 30)))) for _ in range(6)]
        whole = "\n\n".join(block.text for block in found)
        start = chance.randrange(len(whole))
        quote = whole[start : start + chance.randint(1, 40)]
        wanted = "".join(quote.split())
        spans = kb_marks.find(found, re.sub(r"\s+", " ", quote), ())
        assert "".join(marked_text(found, spans).split()) == wanted
        for number, parts in spans.items():
            for a, b in parts:
                assert 0 <= a < b <= len(found[number].text)


def test_the_place_decides_between_like_passages() -> None:
    found = [Block("paragraph", "The same line.", Place(lines=(n, n))) for n in range(1, 9)]
    assert list(kb_marks.find(found, "The same line.", (Place(lines=(5, 5)),))) == [4]
    assert list(kb_marks.find(found, "nowhere to be found", (Place(lines=(5, 6)),))) == [4, 5]
    assert kb_marks.find(found, "nowhere to be found", ()) == {}


def test_columns_have_letters() -> None:
    for number in (1, 26, 27, 52, 702, 703, 16_384):
        assert kb_marks.column_number(kb_marks.column_letters(number)) == number
    assert kb_marks.column_letters(16_384) == "XFD"
    assert kb_marks.area("B2:D9") == (2, 2, 9, 4)
    assert kb_marks.area("C7") == (7, 3, 7, 3)
    assert kb_marks.area("nothing") is None


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, bool]]] = []
        self._cell: list[str] | None = None
        self._hit = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and given.get("class") != "ruler":
            self._cell, self._hit = [], given.get("class") == "hit"

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append(("".join(self._cell), self._hit))
            self._cell = None


def cells(markup: str) -> list[list[tuple[str, bool]]]:
    parser = _Cells()
    parser.feed(markup)
    return [row for row in parser.rows if row]


def test_a_sheet_marks_the_cells_that_are_meant() -> None:
    rows = tuple(tuple(f"{letter}{number}" for letter in "BCD") for number in range(2, 7))
    grid = Table(rows, 1, ((1, 0, 2, 1),))
    place = Place(sheet="S", cells="B2:D6")
    text = grid.markdown()
    at = text.index("| B5")
    drawn = cells(kb_text.table(grid, text, [(at, at + 10)], place, EN, [Place(sheet="S", cells="C4:C9")]))
    assert [text for row in drawn for text, hit in row if hit] == ["C5"]
    assert [len(row) for row in drawn] == [3, 3, 2, 3, 3]  # B3 spans two rows
    drawn = cells(
        kb_text.table(grid, text, [], place, EN, [Place(sheet="S", cells="C4:D5"), Place(sheet="T", cells="B2")])
    )
    assert [text for row in drawn for text, hit in row if hit] == ["C4", "D4", "C5", "D5"]
    long = Table(tuple((f"r{n}", str(n)) for n in range(5000)), 1)
    at = long.markdown().index("| r4321 ")
    drawn = cells(kb_text.table(long, long.markdown(), [(at, at + 5)], Place(), EN))
    assert len(drawn) < 200
    assert [text for row in drawn for text, hit in row if hit] == ["r4321", "4321"]
    assert drawn[0][0][0] == "r0"  # the head stays


def test_markup_of_documents_is_text() -> None:
    for payload in PAYLOADS:
        table = Table(((payload, "x"), (payload, payload)))
        for block in (
            Block("heading", payload, level=1),
            Block("paragraph", payload),
            Block("list", payload),
            Block("code", payload, Place(lines=(1, 3))),
            Block("table", table.markdown(), Place(sheet=payload, cells="A1:B2"), table=table),
        ):
            spans = {0: [(0, min(9, len(block.text)))]}
            shown = kb_text.shown([block], spans, 0, 1, "text", EN, (block.place,))
            assert not re.search(r"<(?!/?(?:h[1-6]|p|ul|li|pre|span|i|mark|div|table|tr|td|th)[ >])", shown), shown
            assert not re.search(r"<[^>]*\son\w+=", shown)
        for drawn in (emphasised(snippet(payload, payload), payload), kb_text.passage(payload)):
            assert not re.search(r"<(?!/?(?:mark|div|p|table|tr|td|th)[ >])", drawn), drawn


def test_citations_in_markup_touch_only_text() -> None:
    marker = '<button class="cite">{}</button>'

    def cite(match: re.Match[str]) -> str:
        return marker.format(match[1])

    assert with_citations("<p>So [1], and [2][3].</p>", cite) == (
        f"<p>So{marker.format(1)}, and{marker.format(2)}{marker.format(3)}.</p>"
    )
    for held in (
        '<a title="x > [1] &quot;" href="https://a.example/[1]">t</a>',
        "<pre><code>a[1]</code></pre>",
        "<code>[1]</code>",
        '<p title="<img src=x> [1]">t</p>',
    ):
        assert with_citations(held, cite) == held
    for payload in PAYLOADS:
        for block in blocks(payload + " [1]"):
            plain = re.sub(r"\s*\[1\]", "", block)
            shown = with_citations(block, cite)
            assert re.sub(r"\s*" + re.escape(marker.format(1)), "", shown) == plain or "[1]" in shown


def answer(text: str, **facts: Any) -> Message:
    return Message(7, "c", 6, "assistant", text, facts={"how": "model", "model": "m", **facts})


def test_each_marker_leads_to_its_own_citation() -> None:
    entries = [
        {"number": n, "name": "a<b>.pdf", "kind": "pdf", "places": [], "quote": q}
        for n, q in ((1, "x"), (2, "y"), (1, "z"))
    ]
    shown = "".join(answer_blocks(answer("One [1]. Two [2]. Again [1]. None [9].", citations=entries), EN))
    assert re.findall(r'data-n="(\d+)"', shown) == ["0", "1", "2"]
    assert "[9]" in shown
    assert "a&lt;b&gt;.pdf" in shown
    assert answer_blocks(answer("The documents do not answer this.", found=False), EN) == []
    quoted = "".join(answer_blocks(answer("# no heading *at all* [1]", how="extractive", citations=entries), EN))
    assert "# no heading *at all*" in quoted
    table = "".join(
        answer_blocks(answer("| a | b |\n| --- | --- |\n| 1 | 2 |\n[1]", how="extractive", citations=entries), EN)
    )
    assert cells(table)[1] == [("1", False), ("2", False)]


def test_rows_as_a_line() -> None:
    assert flattened("| a | b\\|c |\n| --- | --- |\n| 1 |  |") == "a · b|c —\n1"
    assert flattened("no table") == "no table"


def test_places_in_words() -> None:
    zh = Words("zh")
    pages = [Place(page=3), Place(page=4)]
    assert kb_text.where(pages, "pdf", EN) == "pages 3–4"
    assert kb_text.where(pages, "pdf", zh) == "第 3–4 页"
    assert kb_text.where([Place(page=2)], "pptx", EN) == "slide 2"
    sheet = [Place(sheet="S", cells="B2:C2"), Place(sheet="S", cells="B5:D9")]
    assert kb_text.where(sheet, "xlsx", EN) == "sheet S, B2:D9"
    assert kb_text.where([Place(lines=(3, 3))], "text", EN) == "line 3"
    assert kb_text.where([], "docx", EN) == ""


def _request(host: str, client: str, **headers: str) -> Request:
    given = [
        (b"host", host.encode()),
        *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
    ]
    return Request(
        {"type": "http", "method": "GET", "path": "/kb", "headers": given, "client": (client, 1), "server": ("x", 80)}
    )


def test_who_sits_here() -> None:
    assert is_here(_request("127.0.0.1:8000", "127.0.0.1"))
    assert is_here(_request("localhost:8000", "127.0.0.1"))
    assert is_here(_request("[::1]:8000", "::1"))
    assert not is_here(_request("127.0.0.1:8000", "192.168.1.7"))
    assert not is_here(_request("kb.example.org", "127.0.0.1"))  # a proxy on this machine
    assert not is_here(_request("127.0.0.1:8000", "127.0.0.1", x_forwarded_for="203.0.113.9"))
    assert not is_here(_request("127.0.0.1:8000", "127.0.0.1", forwarded="for=203.0.113.9"))


class _Base:
    """A collection that remembers what was added."""

    def __init__(self) -> None:
        self.added: list[tuple[str, bytes]] = []
        self.go = threading.Event()
        self.go.set()

    def add_file(self, file: Path, name: str) -> Progress:
        self.go.wait(10)
        self.added.append((name, file.read_bytes()))
        if name.startswith("bad"):
            return Progress(name, "failed", "is no good")
        return Progress(name, "added", document=1)

    def add(self, paths: list[Path], say: Any) -> Iterator[Progress]:
        say("a line")
        for number in range(1, 5):
            self.go.wait(10)
            yield Progress(f"{paths[0].name}/{number}", "failed" if number == 2 else "added", "broken", 1, number, 4)

    def read_again(self, document: int) -> Progress:
        raise UserError(f"there is no document {document}")


def test_what_is_brought_in_goes_one_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    base = _Base()
    changes = []
    intake = Intake(base, lambda: changes.append(1))  # type: ignore[arg-type]
    for name in ("a.txt", "bad.pdf", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
        intake.upload(tmp_path / name, name)
    intake.add(tmp_path / "folder")
    intake.again(9, "old.txt")
    intake.join(20)
    assert base.added == [(name, name.encode()) for name in ("a.txt", "bad.pdf", "c.txt")]
    assert [(line.name, line.why) for line in intake.failed] == [
        ("bad.pdf", "is no good"),
        ("folder/2", "broken"),
        ("old.txt", "there is no document 9"),
    ]
    assert intake.tally == {"added": 5, "failed": 2}
    assert not intake.busy
    assert list(tmp_path.iterdir()) == []
    assert changes
    base.go.clear()
    (tmp_path / "d.txt").write_bytes(b"d")
    (tmp_path / "e.txt").write_bytes(b"e")
    intake.upload(tmp_path / "d.txt", "d.txt")
    intake.upload(tmp_path / "e.txt", "e.txt")
    intake.stop()
    base.go.set()
    intake.join(20)
    assert list(tmp_path.iterdir()) == []  # what was not brought in is not kept either
    assert base.added[-1][0] in ("c.txt", "d.txt")


def test_a_file_that_is_gone_is_a_line(tmp_path: Path) -> None:
    intake = Intake(_Base(), lambda: None)  # type: ignore[arg-type]
    intake.upload(tmp_path / "nowhere", "x.txt")
    intake.join(20)
    assert intake.failed[0].name == "x.txt"


@pytest.mark.parametrize("kind", ["pdf", "text"])
def test_windows_of_long_documents(kind: str) -> None:
    found = [Block("paragraph", "x" * 100) for _ in range(3000)]
    first, last = kb_text.window(found, {1500: [(0, 3)]})
    assert first <= 1500 - kb_text.AROUND < 1500 < last
    assert last - first <= 2 * kb_text.AROUND + 2
    assert kb_text.window([], {}) == (0, 0)
    huge = [Block("paragraph", "x" * 100_000) for _ in range(3)]
    assert kb_text.window(huge, {1: [(0, 1)]}) == (1, 2)


def test_rows_of_one_table_that_were_found_one_by_one_are_one_table() -> None:
    head = "| Code | Stock |\n| --- | --- |"
    parts = [f"{head}\n| A | {n} |\n[1]" for n in (450, 289)] + [f"{head}\n| B | 7 |\n[2]", "- *Knowledge*: 90.8% [2]"]
    kept = [{"number": n, "document": 1, "name": "a.pdf", "kind": "pdf", "places": [], "quote": ""} for n in (1, 2)]
    facts = {"how": "extractive", "citations": kept}
    message = Message(1, "c", None, "assistant", "\n\n".join(parts), facts=facts)
    shown = answer_blocks(message, EN)
    assert [block.count("<tr>") for block in shown] == [3, 2, 0]
    assert [block.count('class="cite"') for block in shown] == [1, 1, 1]
    assert "450" in shown[0]
    assert "289" in shown[0]
    assert re.sub("<[^>]*>", "", shown[2]).startswith("*Knowledge*: 90.8%")
