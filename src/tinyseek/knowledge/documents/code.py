"""Source code in pieces that belong together: a function, a class, a run of lines; each with its lines and what it is part of.

Python is taken apart by its grammar, other languages by how they are indented and the words that begin a definition. Notebooks are
read as their cells, and data files (JSON, YAML ...) by their lines.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import markdown
from tinyseek.knowledge.documents.blocks import Document, Place
from tinyseek.knowledge.documents.decode import read_text
from tinyseek.knowledge.documents.kinds import language_of
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline

_PIECE = 60  # lines of a piece at most, where there is a choice
_PYTHON = 2_000_000  # characters that the grammar is asked about
_LONGEST_NAME = 120
_DEFINES = re.compile(
    r"^(?P<indent>[ \t]{0,8})(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|override|virtual|"
    r"inline|const|constexpr|extern|unsafe|pub(?:\([^)]*\))?|open|sealed|data|suspend|local|declare|partial|readonly|template\s*<[^>]*>)\s+)*"
    r"(?:(?:def|class|function\*?|func|fn|fun|struct|enum|interface|trait|impl|type|namespace|module|mod|record|object|protocol|"
    r"extension|sub|proc|union|macro_rules!|contract)\s+(?P<name>[^\s({:;=]+(?:\s+for\s+\w+)?|\([^)]*\)\s*\w+)"
    r"|(?:create\s+(?:or\s+replace\s+)?(?:table|view|function|procedure|index|trigger)\s+(?P<sql>[\w.\"`\[\]]+))"
    r"|(?P<command>\\(?:sub)*section\*?\{[^}]*\}|\\chapter\*?\{[^}]*\})"
    r"|(?P<toml>\[{1,2}[\w.\-\" ]+\]{1,2}\s*$)"
    r"|(?P<called>(?-i:(?:[A-Za-z_][\w:<>,*&\[\].]*[ \t*&]+)*[\w:~$]+)\s*\([^;{}]*\)?[^;{}=]*\{?\s*$))",
    re.I,
)
_NO_NAMES = re.compile(
    r"\s*(?:return|else|if|elif|for|foreach|while|until|switch|case|catch|try|do|with|throw|new|goto|delete|typedef|using|import|"
    r"package|type\s*[:=])\b"
)
_COMMENT = re.compile(r"\s*(?://|#(?!include|define|if|endif|else|pragma)|/\*|\*|@|--|;;|%)")
_SLASHES = frozenset(
    (
        "c", "cpp", "cuda", "csharp", "java", "javascript", "jsx", "typescript", "tsx", "go", "rust", "swift", "kotlin", "scala",
        "php", "css", "scss", "dart", "groovy",
    )
)  # fmt: skip
_LITTLE = 12  # lines of definitions that are put together with those beside them


def parse(file: Path, limits: Limits) -> Document:
    """A file of source code, a notebook, or data in text.

    Raises:
        UserError: it is too long, or a notebook that is none.
    """
    decoded = read_text(file, limits)
    text, language = decoded.text, language_of(file.name)
    outline = Outline(limits)
    title = ""
    if file.suffix.lower() == ".ipynb":
        language, title = _notebook(text, outline, limits)
    else:
        _pieces(text, language, outline)
    return Document(tuple(outline.blocks), "code", title, language=language, notes=decoded.notes)


def _pieces(text: str, language: str, outline: Outline, first: int = 1) -> None:
    """Add the pieces of code to a document.

    Args:
        first: the number of its first line.
    """
    lines = text.split("\n")
    definitions = (_python(text) if language == "python" else None) or list(_defined(lines, language in _SLASHES))
    for start, end, path in _together(_cut(lines, definitions)):
        code = "\n".join(lines[start:end])
        if code.strip():
            outline.end(1)
            for level, name in enumerate(path, 1):
                outline.enter(name, level)
            outline.add("code", code, Place(lines=(first + start, first + end - 1)))
    outline.end(1)


Definition = tuple[
    int, tuple[str, ...]
]  # the line that it begins on, from 0, and the names that it is in, its own last


def _python(text: str) -> list[Definition] | None:
    """Where functions and classes begin, their decorators and comments included; None where it is not today's Python."""
    if len(text) > _PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = text.split("\n")
    found: list[Definition] = []

    def inside(body: Sequence[ast.stmt], path: tuple[str, ...]) -> None:
        after = 0
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                start = min([statement.lineno, *(decorator.lineno for decorator in statement.decorator_list)]) - 1
                while start > after and lines[start - 1].startswith(" " * statement.col_offset + "#"):
                    start -= 1
                name = f"class {statement.name}" if isinstance(statement, ast.ClassDef) else statement.name
                found.append((start, (*path, name)))
                if isinstance(statement, ast.ClassDef) and (statement.end_lineno or 0) - start > _PIECE:
                    inside(statement.body, (*path, name))
            elif path == () and found and after:
                found.append((statement.lineno - 1, ()))
            after = statement.end_lineno or statement.lineno

    inside(module.body, ())
    return sorted(set(found), key=lambda definition: definition[0])


def _defined(lines: Sequence[str], slashes: bool) -> Iterator[Definition]:
    """Where definitions begin in other languages, as far as their first words and their indentation say.

    Args:
        slashes: the language has comments between /* and */.
    """
    above: list[tuple[int, str]] = []
    comment = False
    for number, line in enumerate(lines):
        if slashes and (comment or "/*" in line):
            comment = line.rfind("/*") >= line.rfind("*/") if "/*" in line else "*/" not in line
            continue
        if len(line) > 400 or not (found := _DEFINES.match(line)) or _NO_NAMES.match(line):
            continue
        if (found["called"] and not _opens(lines, number)) or (slashes and line.rstrip().endswith(";")):
            continue
        indent = len(found["indent"].expandtabs(4))
        name = found["name"] or found["sql"] or found["command"] or found["toml"]
        name = " ".join((name or line.split("(")[0].split()[-1].lstrip("*&")).split()).rstrip(" {")
        while above and above[-1][0] >= indent:
            above.pop()
        above.append((indent, name[:_LONGEST_NAME]))
        start = number
        while start and _COMMENT.match(lines[start - 1]) and number - start < 40:
            start -= 1
        yield start, tuple(name for _, name in above)


def _opens(lines: Sequence[str], number: int) -> bool:
    """Whether a body begins with a line or with the next one, so that it is no call."""
    after = lines[number + 1].strip() if number + 1 < len(lines) else ""
    return lines[number].rstrip().endswith("{") or (lines[number].rstrip().endswith(")") and after == "{")


def _cut(lines: Sequence[str], definitions: Sequence[Definition]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Pieces from one definition to the next; what is defined in a small one stays with it, a long one is cut at empty lines."""
    starts: list[Definition] = [(0, ())] if not definitions or definitions[0][0] > 0 else []
    marks = [*starts, *definitions, (len(lines), ())]
    at = 0
    while at < len(marks) - 1:
        start, path = marks[at]
        after = at + 1
        while path and marks[after][1][: len(path)] == path and marks[after + 1][0] - start <= _PIECE:
            after += 1
        for begin, end in _parts(lines, start, marks[after][0]):
            yield begin, end, path
        at = after


def _together(pieces: Iterable[tuple[int, int, tuple[str, ...]]]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Pieces of which small ones beside each other are made one, under what they are all part of."""
    held: tuple[int, int, tuple[str, ...]] | None = None
    for start, end, path in pieces:
        if held is not None:
            both = held[2] and path and held[2][: len(path) - 1] == path[:-1] and end - held[0] <= _PIECE
            little = end - start <= _LITTLE and (held[1] - held[0] <= _LITTLE or held[2] == path[:-1])
            if both and little and len(held[2]) <= len(path):
                held = (held[0], end, path[:-1])
                continue
            yield held
        held = (start, end, path)
    if held is not None:
        yield held


def _parts(lines: Sequence[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """A long run of lines cut at its emptiest places."""
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    while end - start > _PIECE * 3 // 2:
        choices = range(start + _PIECE // 2, start + _PIECE + 1)
        cut = max(choices, key=lambda at: (not lines[at].strip(), -_indent(lines[at]), at))
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else 0


def _notebook(text: str, outline: Outline, limits: Limits) -> tuple[str, str]:
    """A Jupyter notebook's cells in order, what its code printed too. Returns its language and its first heading.

    Raises:
        UserError: it is no notebook.
    """
    try:
        book: Any = json.loads(text)
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        language = str(book.get("metadata", {}).get("kernelspec", {}).get("language") or "python")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is no notebook: its JSON cannot be read; save it again in Jupyter") from None
    for number, cell in enumerate(cells if isinstance(cells, list) else [], 1):
        if not isinstance(cell, dict):
            continue
        source = _joined(cell.get("source", cell.get("input", "")))
        if cell.get("cell_type") == "markdown":
            markdown.add_to(outline, source, limits)
        elif cell.get("cell_type") == "heading":
            outline.heading(source, int(cell.get("level") or 1))
        elif source.strip():
            outline.add("code", source)
            for output in cell.get("outputs", ()) if isinstance(cell.get("outputs", ()), list) else ():
                if isinstance(output, dict) and (said := _output(output)):
                    outline.add("paragraph", f"Output of cell {number}: {said[:4000]}")
    title = next((block.text for block in outline.blocks if block.kind == "heading"), "")
    return language.lower(), title


def _output(output: dict[str, Any]) -> str:
    """What a cell printed or gave back, as text."""
    data = output.get("data")
    return _joined(output.get("text") or (data.get("text/plain") if isinstance(data, dict) else "") or "").strip()


def _joined(source: Any) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source)
