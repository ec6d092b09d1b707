"""Markdown: CommonMark with tables, every block with its lines and the headings above it.

Front matter gives title, author and date; formulas and pieces of HTML are read; what marks text up is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from tinyseek.knowledge.documents import html
from tinyseek.knowledge.documents.blocks import Document, Place, Table
from tinyseek.knowledge.documents.decode import read_text
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of

_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$", re.S | re.M)
_FIELD = re.compile(r"^(title|author|authors|date|created)[ \t]*:[ \t]*(.+)$", re.I | re.M)
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})")
_TAG = re.compile(r"<[^<>]{1,500}>")
_ANCHOR = re.compile(r"\s*\{[#.:][^{}]*\}\s*$")
_EAST_BREAK = re.compile("(?<=[\u2e80-\u9fff\uff00-\uffef])\n(?=[\u2e80-\u9fff\uff00-\uffef])")


def parse(file: Path, limits: Limits) -> Document:
    """A Markdown file.

    Raises:
        UserError: it is too long.
    """
    decoded = read_text(file, limits)
    text = decoded.text
    said: dict[str, str] = {}
    if front := _FRONT.match(text):
        said = {name.lower(): value.strip().strip("\"'[]") for name, value in _FIELD.findall(front[1])}
        text = "\n" * front[0].count("\n") + text[front.end() :]  # its lines stay counted
    outline = Outline(limits)
    _Reader(outline, limits).read(_tokens(text))
    title = said.get("title") or next(
        (block.text for block in outline.blocks if block.kind == "heading" and block.level == 1), ""
    )
    date = re.match(r"\d{4}-\d{2}-\d{2}", said.get("date") or said.get("created") or "")
    return Document(
        tuple(outline.blocks),
        "markdown",
        title,
        said.get("author") or said.get("authors") or "",
        date[0] if date else "",
        language=language_of(text),
        notes=decoded.notes,
    )


def add_to(outline: Outline, text: str, limits: Limits) -> None:
    """Add what a piece of Markdown says to a document, without places: a notebook's cell."""
    _Reader(outline, limits, placed=False).read(_tokens(text))


def _tokens(text: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"maxNesting": 40}).enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser.parse(_prepared(text))


def _formula(state: StateInline, silent: bool) -> bool:
    """`$...$` and `$$...$$`: what is between is no Markdown. As Pandoc has it: no blank inside the signs, no digit after."""
    start, text = state.pos, state.src
    if text[start] != "$":
        return False
    sign = "$$" if text.startswith("$$", start) else "$"
    end = text.find(sign, start + len(sign))
    inside = text[start + len(sign) : end]
    if end < 0 or not inside.strip() or len(inside) > 2000:
        return False
    if sign == "$" and (
        inside[0].isspace() or inside[-1].isspace() or text[end + 1 : end + 2].isdecimal() or "\n\n" in inside
    ):
        return False
    if not silent:
        state.push("formula", "", 0).content = f"{sign}{inside}{sign}"
    state.pos = end + len(sign)
    return True


def _prepared(text: str) -> str:
    """The text with `$$` and `\\[` blocks as fences and footnotes as plain paragraphs, line for line."""
    if "$$" not in text and "\\[" not in text and "[^" not in text:
        return text
    lines = text.split("\n")
    fence, formula = "", ""
    for number, line in enumerate(lines):
        stripped = line.strip()
        if formula:
            if stripped == formula:
                lines[number], formula = "```", ""
        elif found := _FENCE.match(line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence) and stripped.strip(fence[0]) == "":
                fence = ""
        elif not fence and stripped in ("$$", "\\[") and _closes(lines, number, "$$" if stripped == "$$" else "\\]"):
            formula = "$$" if stripped == "$$" else "\\]"
            lines[number] = "```math"
        elif not fence and stripped.startswith("[^"):
            lines[number] = line.replace("[^", "\\[^", 1)  # else it may be read as where a link leads
    return "\n".join(lines)


def _closes(lines: Sequence[str], start: int, sign: str) -> bool:
    return any(line.strip() == sign for line in lines[start + 1 : start + 100])


class _Reader:
    """markdown-it's tokens to blocks."""

    def __init__(self, outline: Outline, limits: Limits, placed: bool = True) -> None:
        self._outline, self._limits, self._placed = outline, limits, placed

    def read(self, tokens: Sequence[Token], quoted: bool = False) -> None:
        """Add what tokens say. A heading in a quotation heads nothing."""
        at = 0
        while at < len(tokens):
            token = tokens[at]
            end = _end(tokens, at)
            place = _place(token) if self._placed else Place()
            if token.type == "heading_open" and not quoted:
                self._outline.heading(_ANCHOR.sub("", _inline(tokens[at + 1])), int(token.tag[1]), place)
            elif token.type in ("paragraph_open", "heading_open"):
                self._paragraph(tokens[at + 1], place)
            elif token.type in ("bullet_list_open", "ordered_list_open"):
                self._outline.add("list", "\n".join(_items(tokens[at : end + 1], 0)), place)
            elif token.type in ("fence", "code_block"):
                kind = "formula" if token.info.strip() == "math" else "code"
                self._outline.add("formula" if kind == "formula" else "code", token.content.rstrip("\n"), place)
            elif token.type == "html_block":
                html.blocks_of(token.content, self._outline, self._limits.depth, place)
            elif token.type == "table_open":
                self._outline.table(_table(tokens[at : end + 1]), place)
            elif token.type == "blockquote_open":
                self.read(tokens[at + 1 : end], True)
            at = end + 1

    def _paragraph(self, inline: Token, place: Place) -> None:
        children = inline.children or []
        text = _inline(inline)
        if len(children) == 1 and children[0].type == "formula":
            self._outline.add("formula", text.strip("$").strip(), place)
        elif children and all(child.type == "image" or not child.content.strip() for child in children):
            self._outline.add("caption", text, place)
        else:
            self._outline.add("paragraph", text, place)


def _end(tokens: Sequence[Token], start: int) -> int:
    """Where what opens at `start` closes."""
    if tokens[start].nesting != 1:
        return start
    level = tokens[start].level
    return next(
        (at for at in range(start + 1, len(tokens)) if tokens[at].nesting == -1 and tokens[at].level == level),
        len(tokens) - 1,
    )


def _place(token: Token) -> Place:
    return Place(lines=(token.map[0] + 1, max(token.map[1], token.map[0] + 1))) if token.map else Place()


def _inline(token: Token) -> str:
    """A paragraph's text without its marks."""
    texts: list[str] = []
    for child in token.children or []:
        if child.type in ("text", "code_inline", "formula"):
            texts.append(child.content)
        elif child.type == "softbreak":
            texts.append("\n")
        elif child.type == "hardbreak":
            texts.append("\f")
        elif child.type == "image":
            texts.append(child.content)
        elif child.type == "html_inline":
            texts.append("\f" if child.content.lower().startswith("<br") else _TAG.sub("", child.content))
    return _EAST_BREAK.sub("", "".join(texts)).replace("\n", " ").replace("\f", "\n").strip()


def _items(tokens: Sequence[Token], level: int) -> list[str]:
    """A list's lines: with its numbers, deeper ones indented."""
    ordered = tokens[0].type == "ordered_list_open"
    number = int(str(tokens[0].attrs.get("start", 1)))
    lines: list[str] = []
    at = 1
    while at < len(tokens) - 1:
        end = _end(tokens, at)
        own: list[str] = []
        inner = at + 1
        while inner < end:
            inside = tokens[inner : _end(tokens, inner) + 1]
            token = inside[0]
            if token.type in ("bullet_list_open", "ordered_list_open"):
                own += [f"\0{line}" for line in _items(inside, level + 1)]
            elif token.type == "table_open":
                own += _table(inside).markdown().split("\n")
            else:
                texts = (part.content if part.type != "inline" else _inline(part) for part in inside if part.content)
                own += [line for text in texts for line in text.rstrip("\n").split("\n")]
            inner += len(inside)
        label = f"{number}. " if ordered else "- "
        indent = "  " * level
        first = 0 if own and not own[0].startswith("\0") else -1
        if first < 0:
            lines.append(f"{indent}{label}".rstrip())
        for place, line in enumerate(own):
            if line.startswith("\0"):
                lines.append(line[1:])
            else:
                lines.append(f"{indent}{label if place == first else '  '}{line}")
        number += 1
        at = end + 1
    return lines


def _table(tokens: Sequence[Token]) -> Table:
    rows: list[tuple[str, ...]] = []
    row: list[str] = []
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append(_inline(token))
        elif token.type == "tr_close":
            rows.append(tuple(row))
    return Table(tuple(rows))
