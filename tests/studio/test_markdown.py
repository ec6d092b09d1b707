"""Markdown: what it shows, and that nothing in it can run."""

from __future__ import annotations

import threading
import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studio_payloads import PAYLOADS

from tinyseek.studio import markdown
from tinyseek.studio.formulas import mathml
from tinyseek.studio.markdown import blocks


class Checker(HTMLParser):
    """Collects every tag and attribute, and fails on what must not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag in markdown._TAGS | markdown._MATH, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "id", "name", "formaction", "xlink:href"), (tag, name)
            if name == "href":
                assert tag == "a"
                assert urlsplit(value or "").scheme in ("http", "https", "mailto"), value
            if name == "style":
                assert "url" not in (value or "")
                assert "expression" not in (value or "")
            if name == "data-act":
                assert value == "copy-code"
        if tag == "a":
            self.links.append(dict(attrs))


def checked(text: str) -> Checker:
    checker = Checker()
    for block in blocks(text):
        checker.feed(block)
    checker.close()
    for link in checker.links:
        assert set((link["rel"] or "").split()) == {"noopener", "noreferrer", "nofollow"}
        assert link["target"] == "_blank"
    return checker


AROUND = ["{}", "text {} text", "> {}", "- {}", "**{}**", "| a |\n|---|\n| {} |", "$$\n{}\n$$"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_can_run(payload: str) -> None:
    for around in AROUND:
        checked(around.replace("{}", payload))


PARTS = st.sampled_from(
    [*PAYLOADS, "\n", "\n\n", "```", "$$", "$", "\\(", "\\)", "|", "[", "](", ")", "*", "_", "<", ">", "&", '"', "'"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(PARTS, st.text(max_size=6)), max_size=12))
def test_nothing_can_run_however_it_is_put_together(parts: list[str]) -> None:
    checked("".join(parts))


def shown(text: str) -> str:
    return "".join(blocks(text)).replace("\n", "")


def test_markdown_as_people_write_it() -> None:
    assert shown("# Hi\n\na *b* **c** ~~d~~ `e`") == (
        "<h1>Hi</h1><p>a <em>b</em> <strong>c</strong> <s>d</s> <code>e</code></p>"
    )
    assert shown("one\ntwo") == "<p>one<br>two</p>"
    assert shown("1. a\n2. b") == "<ol><li>a</li><li>b</li></ol>"
    assert shown("3. c") == '<ol start="3"><li>c</li></ol>'
    assert '<td style="text-align:right">1</td>' in shown("|a|\n|-:|\n|1|")
    assert shown("灯塔**很高**。") == "<p>灯塔<strong>很高</strong>。</p>"
    assert shown("a < b && c > d") == "<p>a &lt; b &amp;&amp; c &gt; d</p>"
    assert 'href="https://x.example/?a=1&amp;b=2"' in shown("[x](https://x.example/?a=1&b=2)")


def test_code_keeps_every_character() -> None:
    code = 'if a < b and "</code>":\n\treturn `x`  # 注释\n'
    for language in ("python", "nosuchlanguage", ""):
        checker = Checker()
        texts: list[str] = []
        checker.handle_data = texts.append  # type: ignore[method-assign]
        checker.feed("".join(blocks(f"```{language}\n{code}```")))
        assert "".join(texts).endswith(code)
        assert texts[:-1] == [] or texts[0] == language
    assert 'class="hl-k"' in shown("```python\nif x: pass\n```")
    assert "hl-" not in shown("```nosuchlanguage\nif x: pass\n```")


def test_pictures_become_links() -> None:
    html = shown("![a cat](https://cats.example/cat.png)")
    assert "<img" not in html
    assert 'class="picture" href="https://cats.example/cat.png"' in html
    assert ">a cat</a>" in html


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("$x^2$", False),
        ("\\(x^2\\)", False),
        ("$$x^2$$", True),
        ("\\[x^2\\]", True),
        ("$$\nx^2\n$$", True),
        ("\\[\nx^2\n\\]", True),
    ],
)
def test_formulas(text: str, display: bool) -> None:
    for around in ("{}", "so {} is", "- {}", "**{}**"):
        html = shown(around.replace("{}", text))
        assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
        assert ('display="block"' in html) == display


def test_what_is_no_formula() -> None:
    for text in ("costs $5 and $10", "a $ b $ c", "`$x$`", "\\$x\\$", "$$ unclosed", "\\( open", "US$ 5, A$6"):
        assert "<math" not in shown(text), text
    assert "<code>\\frac{</code>" in shown("$\\frac{$").replace(' class="formula"', "")
    assert "<math" not in shown("```\n$$x$$\n```")
    assert "<math" not in shown("    $$x$$")
    long = "$" + "x+" * 2000 + "x$"
    assert "<math" not in shown(long)


def test_a_growing_text_changes_only_its_end() -> None:
    text = "# Title\n\nFirst.\n\n- a\n- b\n\n```python\nx = 1\n```\n\n$$x$$\n\nLast words."
    seen: list[str] = []
    changes = 0
    for length in range(1, len(text) + 1):
        now = blocks(text[:length])
        common = min(len(seen), len(now))
        changes += sum(seen[at] != now[at] for at in range(max(0, common - 1)))
        seen = now
    assert seen == blocks(text)
    assert len(seen) == 6
    assert changes == 0


HOSTILE = {
    "brackets": "[" * 19_000,
    "open links": "[a](" * 9_900,
    "pictures": "![a](" * 7_900,
    "stars": "*a " * 13_000,
    "underscores": "_a" * 19_000,
    "backticks": "`" * 39_900 + "a",
    "quotes": "> " * 19_000 + "a",
    "lists": "- " * 19_000 + "a",
    "formulas": "$a" * 19_000,
    "open formulas": "\\(" * 19_000,
    "display formulas": "\\[" * 19_000,
    "dollars": "$" * 39_900,
    "braces": "$" + "{" * 1990 + "$",
    "roots": "$" + "\\sqrt{" * 280 + "}" * 280 + "$",
    "code": "```python\n" + "('\"" * 6_000,
    "tables": "|a|b|\n|-|-|\n" + "|x|y|\n" * 6_000,
    "lines": "a\n" * 19_000,
    "entities": "&" * 39_000,
    "references": "".join(f"[{n}]: x\n" for n in range(4_000)),
    "too long": "*a* " * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_their_time_but_not_more(name: str) -> None:
    began = time.process_time()
    checked(HOSTILE[name])
    assert time.process_time() - began < 6


def test_deep_formulas_on_a_small_stack() -> None:
    """Other systems give threads half a megabyte."""
    size = threading.stack_size(512 * 1024)
    try:
        results: list[str] = []
        deep = "\\sqrt{" * 280 + "}" * 280
        thread = threading.Thread(target=lambda: results.extend([mathml(deep, False), "".join(blocks(f"${deep}$"))]))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
    assert len(results) == 2
