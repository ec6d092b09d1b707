"""What of a question is said in the tables' own words: columns by their titles, cells by their texts.

Longest first, none over another. What is left of the question is then free of them: a column called "Total" is no longer a sum.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyseek.knowledge import segment
from tinyseek.knowledge.tables.schema import ColumnInfo, TableInfo

_HAN = re.compile(r"[\u3400-\u9fff]")
EACH = "\ue002"  # before a form that counts only after a word like "each"
_UNIT = re.compile(r"[(（\[【].*?[)）\]】]")


@dataclass(frozen=True)
class Mention:
    """A piece of a question that is a column or a cell of a table."""

    start: int
    end: int
    column: ColumnInfo
    value: str | None = None  # a cell's text; none: the column itself
    part: bool = False  # only a word of the column's title


def normal(text: str) -> str:
    """A text as mentions are looked for: one width, no capitals. No character more or less, so that places stay."""
    return "".join(folded if len(folded := unicodedata.normalize("NFKC", c).lower()) == 1 else c for c in text)


def mentions_in(question: str, table: TableInfo, values: Sequence[tuple[str, str, str]]) -> list[Mention]:
    """The mentions of one table, in the question's order.

    Args:
        question: as `normal` makes it.
        values: of `TableRoom.mentions`.
    """
    columns = {column.name: column for column in table.columns}
    found: list[Mention] = []
    for column in table.columns:
        for form, part in _forms(column, table.columns):
            found += [Mention(start, end, column, None, part) for start, end in _places(form, question)]
    for name, column_name, text in values:
        if name == table.name:
            found += [Mention(start, end, columns[column_name], text) for start, end in _places(normal(text), question)]
    found.sort(key=lambda m: (m.start - m.end, m.part, m.value is not None, m.start))
    taken: list[Mention] = []
    for mention in found:
        if all(mention.end <= other.start or mention.start >= other.end for other in taken):
            taken.append(mention)
    return sorted(taken, key=lambda m: m.start)


def _forms(column: ColumnInfo, columns: Sequence[ColumnInfo]) -> Iterator[tuple[str, bool]]:
    """How a column may be called: its title, without its unit; and each word that no other column's title has."""
    title = normal(column.title)
    plain = " ".join(_UNIT.sub(" ", title).replace("_", " ").split())
    for form in {title.strip(), plain, normal(column.name), normal(column.name).replace("_", " ")}:
        if len(form) > 1 or (form and not form.isascii()):
            yield form, False
    others = {word for other in columns if other is not column for word in segment.words(other.title)}
    for word in set(re.findall(r"[a-z]{3,}|[\u3400-\u9fff]+", plain)):
        for piece in [word] if word.isascii() else [w for w in segment.words(word) if len(w) > 1]:
            if piece != plain and not (set(segment.words(piece)) & others):
                yield piece, True
    if re.fullmatch(r"[\u4e00-\u9fff]{2}", plain) and not any(
        other.title.startswith(plain[0]) for other in columns if other is not column
    ):
        yield f"{EACH}{plain[0]}", True  # 各班, where the column is called 班级


def _places(form: str, question: str) -> Iterator[tuple[int, int]]:
    """Where a form stands: whole words, a plural too; Chinese anywhere."""
    if not form.strip():
        return
    if form.startswith(EACH):
        for match in re.finditer(
            rf"(?<=[各每哪按分])个?({re.escape(form[1:])})(?![\u4e00-\u9fff](?<!的|人|有|最|平))", question
        ):
            yield match.span(1)
        return
    pattern = r"[\s_-]+".join(re.escape(word) for word in re.split(r"[\s_]+", form.strip()))
    if form[-1:].isalpha() and form[-1:].isascii():
        if form.endswith("y"):
            pattern = f"{pattern[:-1]}(?:y|ies)"
        else:
            pattern += "(?:'s|s|es)?"
    before = r"(?<![a-z0-9])" if form[0].isascii() else ""
    after = r"(?![a-z0-9])" if form[-1].isascii() else ""
    for match in re.finditer(before + pattern + after, question):
        yield match.span()


def is_chinese(text: str) -> bool:
    """Whether a question is asked in Chinese."""
    return bool(_HAN.search(text))
