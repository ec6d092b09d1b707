"""Blocks put together one after the other: each gets the headings above it, and the whole stays within the limits."""

from __future__ import annotations

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Block, Kind, Place, Table
from tinyseek.knowledge.documents.limits import Limits

_NOWHERE = Place()


class Outline:
    """A document under way."""

    def __init__(self, limits: Limits) -> None:
        self.blocks: list[Block] = []
        self._limits = limits
        self._above: list[tuple[int, str]] = []  # level and text of the headings that stand over what comes next
        self._characters = self._cells = 0

    @property
    def path(self) -> tuple[str, ...]:
        """The headings above what comes next."""
        return tuple(text for _, text in self._above)

    def heading(self, text: str, level: int, place: Place = _NOWHERE) -> None:
        """A heading; it ends all sections of its level and deeper ones. An empty one is left out."""
        text = " ".join(text.split())
        if not text:
            return
        self.end(level)
        self._put(Block("heading", text, place, self.path, level))
        self._above.append((level, text))

    @property
    def cells_left(self) -> int:
        """How many more cells of tables there may be."""
        return self._limits.cells - self._cells

    def end(self, level: int) -> None:
        """End the sections of a level and deeper ones without a new heading."""
        while self._above and self._above[-1][0] >= level:
            self._above.pop()

    def enter(self, name: str, level: int) -> None:
        """Begin a section without a block of its own: a class of source code."""
        self.end(level)
        self._above.append((level, name))

    def add(self, kind: Kind, text: str, place: Place = _NOWHERE) -> None:
        """A block without a table; an empty one is left out."""
        text = text.strip("\n") if kind in ("code", "list") else text.strip()
        if text.strip():
            self._put(Block(kind, text, place, self.path))

    def table(self, table: Table, place: Place = _NOWHERE) -> None:
        """A table; one without any text is left out.

        Raises:
            UserError: with it there are more cells than may be.
        """
        if not any(cell for row in table.rows for cell in row):
            return
        self._cells += sum(map(len, table.rows))
        if self._cells > self._limits.cells:
            raise UserError(f"has more than {self._limits.cells:,} cells; split it, or raise limits.cells")
        self._put(Block("table", table.markdown(), place, self.path, table=table))

    def _put(self, block: Block) -> None:
        self._characters += len(block.text)
        if self._characters > self._limits.characters:
            most = self._limits.characters
            raise UserError(f"holds more than {most:,} characters of text; split it, or raise limits.characters")
        self.blocks.append(block)


def language_of(text: str) -> str:
    """ "zh" or "en", by which kind of letters there are more of in the beginning of a text; nothing where there are neither."""
    beginning = text[:20_000]
    chinese = sum("一" <= letter <= "鿿" for letter in beginning)
    kana = sum("぀" <= letter <= "ヿ" for letter in beginning)
    latin = sum("a" <= letter <= "z" for letter in beginning.lower())
    if kana * 10 > chinese and kana > 10:
        return ""
    if chinese * 3 > latin:  # a Chinese word is one or two letters, an English one five
        return "zh"
    return "en" if latin > 20 else ""
