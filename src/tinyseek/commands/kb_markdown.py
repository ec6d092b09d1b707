"""Markdown on a terminal: an answer block by block as its blocks become whole, tables drawn, citations as links."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

_MARKER = re.compile(r"\[(\d{1,3})\]")
_FENCE = re.compile(r" {0,3}(?:```|~~~)")
_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+\s*")
_CELL = re.compile(r"(?<!\\)\|")
_CITED = re.compile(r"\n(?=(?:\[\d{1,3}\]\s*)+$)")  # what follows a table's last row is no row


class Blocks:
    """Text that comes in pieces, cut where a block ends: at an empty line that is not within code."""

    def __init__(self) -> None:
        self.waiting = ""  # of the block that is not whole yet

    def feed(self, text: str) -> list[str]:
        """The blocks that are whole now."""
        self.waiting += text
        found: list[str] = []
        lines: list[str] = []
        fenced = False
        *whole, last = self.waiting.split("\n")
        for line in whole:
            if _FENCE.match(line):
                fenced = not fenced
            if line.strip() or fenced:
                lines.append(line)
            elif lines:
                found.append("\n".join(lines))
                lines = []
        self.waiting = "\n".join([*lines, last])
        return found

    def end(self) -> str:
        """The last block."""
        left, self.waiting = self.waiting.strip("\n"), ""
        return left


class Screen:
    """Prints an answer as it is written: what is not whole yet as it comes, and then in its form."""

    def __init__(self, out: Console, quoted: bool) -> None:
        """Nothing yet.

        Args:
            quoted: it is made of the documents' own words, which are no Markdown but for their tables.
        """
        self._out, self._quoted = out, quoted
        self._blocks = Blocks()
        self._live: Live | None = None

    def write(self, text: str, links: Mapping[int, str]) -> None:
        """A piece more.

        Args:
            links: where the numbers lead.
        """
        for block in self._blocks.feed(text):
            self._print(block, links)
        if not self._quoted:
            self._grow()

    def end(self, links: Mapping[int, str] | None = None) -> None:
        """It is whole, or was stopped."""
        if block := self._blocks.end():
            self._print(block, links or {})
        self._still()

    def _print(self, block: str, links: Mapping[int, str]) -> None:
        self._still()
        self._out.print(rendered(block, links, self._quoted), soft_wrap=self._quoted and not block.startswith("|"))
        self._out.print()

    def _grow(self) -> None:
        """Show the end of what is not whole yet."""
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._out, transient=True, auto_refresh=False)
            self._live.start()
        most = max(3, self._out.height - 4)
        shown = Text(self._blocks.waiting.strip("\n")).wrap(self._out, self._out.width)
        self._live.update(Text("\n").join(shown[-most:]), refresh=True)

    def _still(self) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None


def rendered(block: str, links: Mapping[int, str], quoted: bool = False) -> RenderableType:
    """A block as a terminal shows it: as Markdown; of `quoted` words the tables alone are drawn."""
    from rich.console import Group
    from rich.text import Text

    if quoted:
        body, *cited = _CITED.split(block, maxsplit=1)
        caption, drawn = table(body)
        if drawn is None:
            return _linked(block, links)
        above = [Text(caption, style="dim")] if caption else []
        return Group(*above, drawn, *(_linked(part, links) for part in cited))
    separate = _CITED.sub("\n\n", block) if block.lstrip().startswith("|") else block
    told = separate if _FENCE.match(block) else _MARKER.sub(lambda found: _leading(found, links), separate)
    return _markdown(told, links)


def _markdown(text: str, links: Mapping[int, str]) -> RenderableType:
    """rich's Markdown, where links of ours may lead to files: of those alone that we made."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    parser = MarkdownIt().enable("strikethrough").enable("table")
    usual, ours = parser.validateLink, {parser.normalizeLink(address) for address in links.values()}
    parser.validateLink = lambda url: url in ours or usual(url)  # type: ignore[method-assign]
    shown = Markdown("", hyperlinks=True)
    shown.parsed = parser.parse(text)
    return shown


def table(text: str) -> tuple[str, Table | None]:
    """A passage that is a Markdown table, and what stands above it. None: it is none."""
    from rich.table import Table
    from rich.text import Text

    lines = text.strip().splitlines()
    rule = next((number for number, line in enumerate(lines) if _RULE.fullmatch(line.strip())), 0)
    if not rule or not all(line.lstrip().startswith("|") for line in lines[rule - 1 :]):
        return "", None
    caption = "\n".join(lines[: rule - 1]).strip()
    drawn = Table(header_style="bold")
    for cell in _cells(lines[rule - 1]):
        drawn.add_column(Text(cell), overflow="fold")
    for line in lines[rule + 1 :]:
        drawn.add_row(*(Text(cell) for cell in _cells(line)))
    return caption, drawn


def _cells(line: str) -> list[str]:
    cells = _CELL.split(line.strip().removeprefix("|").removesuffix("|"))
    return [cell.strip().replace("\\|", "|").replace("<br>", "\n") for cell in cells]


def _linked(text: str, links: Mapping[int, str]) -> RenderableType:
    from rich.text import Text

    shown = Text(text)
    for marker in _MARKER.finditer(text):
        address = links.get(int(marker[1]))
        shown.stylize("bold cyan" + (f" link {address}" if address else ""), *marker.span())
    return shown


def _leading(marker: re.Match[str], links: Mapping[int, str]) -> str:
    address = links.get(int(marker[1]))
    return f"[\\[{marker[1]}\\]](<{address}>)" if address else f"\\[{marker[1]}\\]"
