"""How a text falls into tokens, in colours: what `tinyseek tokenizer show` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
_CONTROL = "bold white on red"
_MOST_ROWS = 200


def show(tokenizer: Tokenizer, text: str, *, specials: bool = False, table: bool = True) -> RenderableType:
    """The tokens of `text` on alternating backgrounds, a table of their ids and bytes, and the counts.

    A token that is only a part of a character is shown by its bytes in hexadecimal; a line end is marked "⏎".

    Args:
        tokenizer: whose tokens.
        text: any text.
        specials: read control tokens written in `text` as such.
        table: also list the tokens, the first 200 of them.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ids = tokenizer.encode(text, specials=specials)
    controls = {index: name for name, index in tokenizer.controls.items()}
    line = Text()
    rows = Table("#", "id", "token", "bytes", box=None, pad_edge=False, header_style="bold")
    for number, index in enumerate(ids):
        data = controls[index].encode() if index in controls else tokenizer.token_bytes(index)
        shown = cell(data, _CONTROL if index in controls else _COLOURS[number % len(_COLOURS)])
        line.append_text(shown)
        if data.endswith(b"\n"):
            line.append("\n")
        if number < _MOST_ROWS:
            rows.add_row(str(number), str(index), shown, data.hex(" "))
    size = len(text.encode(errors="replace"))
    counts = f"{len(ids):,} tokens, {len(text):,} characters, {size:,} bytes"
    if ids:
        counts += f"; {size / len(ids):.2f} bytes a token"
    parts: list[RenderableType] = [line, Text("")]
    if table and ids:
        parts += [rows, Text("")]
        if len(ids) > _MOST_ROWS:
            parts.append(Text(f"... and {len(ids) - _MOST_ROWS:,} more\n"))
    return Group(*parts, Text(counts, style="bold"))


def cell(data: bytes, style: str) -> Text:
    """A token's bytes as they can be shown."""
    from rich.text import Text

    try:
        shown = data.decode()
    except UnicodeDecodeError:
        return Text(f"⟨{data.hex(' ')}⟩", style=style)
    # Control characters would move the cursor; a tab would be as wide as the terminal likes.
    marks = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
    return Text(
        "".join(marks.get(char, char if char.isprintable() else f"⟨U+{ord(char):04X}⟩") for char in shown), style
    )
