"""HTML without a template language: elements are functions, and text is escaped unless it is `Html` already.

So what a model said can never become markup, wherever it is put. The page has no script and loads nothing; its policy forbids both.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable


class Html(str):
    """Markup that is safe as it stands. Only this module makes it."""

    __slots__ = ()


Child = str | Iterable[str]


def text(value: str) -> Html:
    """Text as markup that shows it: escaped; control characters, lone surrogates and overrides of direction made visible."""
    shown = "".join(
        character
        if character in "\n\t" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in _DIRECTIONS)
        else "\N{REPLACEMENT CHARACTER}"
        for character in value
    )
    return Html(html.escape(shown))


# Embeddings, overrides and isolates: they can make text read as something else than it is.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_VOID = frozenset({"meta", "br"})


def el(tag: str, /, *children: Child, **attributes: str | float | None) -> Html:
    """An element. Children that are no `Html` are escaped; `class_` means `class`, `text_anchor` `text-anchor`; None: left out."""
    inside = "".join(_markup(child) for child in children)
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>") if tag in _VOID else Html(f"<{tag}{given}>{inside}</{tag}>")


def _markup(child: Child) -> str:
    if isinstance(child, Html):
        return child
    return text(child) if isinstance(child, str) else "".join(_markup(part) for part in child)


def join(*parts: Child) -> Html:
    """Children beside each other, without an element around them."""
    return Html("".join(_markup(part) for part in parts))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where the screen is narrow; columns in `numbers` stand to the right."""
    right = set(numbers)

    def cells(kind: str, row: Iterable[Child]) -> Html:
        return el("tr", [el(kind, cell, class_="n" if column in right else None) for column, cell in enumerate(row)])

    body = el("tbody", [cells("td", row) for row in rows])
    return el("div", el("table", el("thead", cells("th", head)), body), class_="scroll")


def section(title: str, about: str, *parts: Html) -> Html:
    """A part of a page: its heading, a sentence on it, and what it shows."""
    return el("section", el("h2", title), el("p", about) if about else Html(""), *parts)


def card(*parts: Child) -> Html:
    """A box on the page."""
    return el("div", *parts, class_="card")


def document(title: str, language: str, body: Child) -> Html:
    """A whole page."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return Html("<!doctype html>\n" + el("html", head, el("body", el("main", body)), lang=language) + "\n")


STYLE = """
:root {
  --ground: #f6f7f9; --card: #ffffff; --ink: #16191d; --soft: #5b6470; --faint: #8b949f; --line: #e3e6ea;
  --deep: 37 84 214; --models-0: #a3adba; --models-1: rgb(37 84 214); --models-2: #0f8f83; --models-3: #b7791f;
  --models-4: #8a4fbf; --models-5: #c2476b;
  --right: #14804a; --wrong: #c0392f; --wash: #f0f3f8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1216; --card: #171b21; --ink: #e8ebef; --soft: #a3adb9; --faint: #77818d; --line: #2a3039;
    --deep: 122 162 255; --models-0: #66707d; --models-1: rgb(122 162 255); --models-2: #4fc7b9; --models-3: #e0b060;
    --models-4: #c39bef; --models-5: #f08aa5;
    --right: #4cc38a; --wrong: #f0857b; --wash: #1e242c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 28px; }
header p { margin: 0; color: var(--soft); }
header .over { font-size: 12px; letter-spacing: .08em; text-transform: uppercase; color: rgb(var(--deep)); font-weight: 600; }
h1 { font-size: 32px; line-height: 1.2; margin: 6px 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 0 0 10px; color: var(--soft); font-weight: 600; }
section > p { margin: 0 0 14px; color: var(--soft); max-width: 46em; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; min-width: 0; }
.card + .card, .grid + .card, .card + .grid { margin-top: 14px; }
.grid { display: grid; gap: 14px; align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.grid .card + .card { margin-top: 0; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.tile b { display: block; font-size: 28px; line-height: 1.2; letter-spacing: -.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.tile small { display: block; color: var(--faint); font-size: 12.5px; margin-top: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
tr.total td { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin-bottom: 12px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; vertical-align: -1px; }
.bars { display: grid; gap: 3px 14px; align-items: center; line-height: 1.35;
  grid-template-columns: minmax(84px, max-content) 1fr minmax(52px, max-content); }
.bars .name { font-size: 14px; grid-column: 1; }
.bars .apart { grid-column: 1 / -1; height: 7px; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; font-size: 13px; color: var(--soft); }
.bars .value b { color: var(--ink); font-weight: 600; }
.track { position: relative; height: 14px; background: var(--wash); border-radius: 4px; grid-column: 2; }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; min-width: 2px; }
.track u { position: absolute; top: 50%; height: 0; border-top: 1.5px solid var(--ink); opacity: .55; }
.track u::before, .track u::after { content: ""; position: absolute; top: -4.5px; height: 8px;
  border-left: 1.5px solid var(--ink); }
.track u::before { left: 0; } .track u::after { right: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .rule { stroke: var(--line); } svg .axis { stroke: var(--faint); }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .band { opacity: .16; }
.story .bars { grid-template-columns: minmax(120px, 300px) 1fr minmax(52px, max-content); gap: 4px 18px; align-items: start; }
.story .name { grid-row: span var(--bars); font-weight: 600; line-height: 1.3; } .story .name:empty { display: none; }
.story .name small { font-weight: 400; color: var(--faint); margin-left: 8px; font-size: 12.5px; }
.story .name .gain { display: block; margin: 1px 0 0; } .story .name .gain b:not(.right):not(.wrong) { color: var(--soft); }
.story .value { grid-column: 3; line-height: 14px; } .story .apart { height: 10px; }
.panels { display: grid; gap: 16px 22px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); }
.panels svg text { font-size: 16px; } .panels .legend { font-size: 12.5px; gap: 2px 14px; margin-bottom: 8px; }
.panels h4 { font-size: 13px; font-weight: 500; color: var(--soft); margin: 0 0 6px; }
.pair { display: grid; gap: 0 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); align-items: start; }
.turn + .turn { margin-top: 20px; }
.question { font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; unicode-bidi: isolate; }
.question .tag { font-weight: 400; font-size: 12px; color: var(--faint); margin-left: 10px; }
.stack { display: flex; gap: 2px; height: 18px; border-radius: 5px; overflow: hidden; } .stack i { min-width: 3px; }
.sample .dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
.sample .who .tag { margin-left: 8px; } .sample details { margin: 2px 0 4px; }
.folded summary { font-size: 13px; color: var(--faint); }
.other { background: rgb(var(--deep) / .13); border-radius: 3px; box-decoration-break: clone; }
.heat { display: grid; gap: 3px; align-items: stretch; font-size: 12px; font-variant-numeric: tabular-nums; }
.heat > * { text-align: center; padding: 6px 1px; border-radius: 4px; min-width: 0; overflow: hidden; }
.heat .side { text-align: right; padding-right: 8px; color: var(--soft); white-space: nowrap; }
.heat .top { color: var(--faint); padding: 0; }
.heat .strong { color: #fff; }
@media (prefers-color-scheme: dark) { .heat .strong { color: #0f1216; } }
.sample { display: grid; gap: 4px 24px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.sample .asked { grid-column: 1 / -1; font-size: 16px; font-weight: 600; }
.sample .tag { font-weight: 400; font-size: 12px; color: var(--faint); margin-left: 10px; white-space: nowrap; }
.sample .expected { grid-column: 1 / -1; font-size: 13px; color: var(--soft); margin-bottom: 6px; }
.sample .who { font-size: 12.5px; color: var(--soft); }
.facts { margin: 10px 0 0; color: var(--soft); font-size: 13.5px; }
.sample p, .quote { margin: 2px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.think { color: var(--faint); font-size: 13.5px; display: block; }
.mark { font-weight: 700; margin-left: 6px; } .right { color: var(--right); } .wrong { color: var(--wrong); }
details { margin-top: 8px; } summary { cursor: pointer; color: rgb(var(--deep)); font-size: 14px; }
.quote { background: var(--wash); border-radius: 8px; padding: 8px 12px; font-size: 13px; margin-top: 8px;
  max-height: 15em; overflow: auto; }
.quote small { display: block; color: var(--faint); }
pre { background: var(--wash); border-radius: 8px; padding: 10px 12px; font-size: 12.5px; overflow-x: auto; margin: 8px 0 0; }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--soft); overflow-wrap: anywhere; }
.tree { padding-left: calc(var(--depth) * 22px); }
.tree + .tree { margin-top: 10px; }
.tree b { font-weight: 600; } .tree .facts { margin: 0; }
.pending { color: var(--faint); }
footer { margin-top: 44px; color: var(--faint); font-size: 13px; border-top: 1px solid var(--line); padding-top: 14px; }
@media (max-width: 640px) {
  main { padding: 24px 14px 40px; } h1 { font-size: 26px; }
  .sample { grid-template-columns: minmax(0, 1fr); } .sample .who { margin-top: 6px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .tile { padding: 12px 14px; } .tile b { font-size: 22px; }
  .story .bars { grid-template-columns: 1fr minmax(52px, max-content); } .story .name { grid-column: 1 / -1; grid-row: auto; }
  .story .track { grid-column: 1; } .story .value { grid-column: 2; }
  .card { padding: 14px; } .tree { padding-left: calc(var(--depth) * 12px); } svg text { font-size: 14px; }
}
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""
