"""What a document is made of: blocks in reading order, each with the place where it stands in its file.

A place says only what its format knows: page and boxes in a PDF, a slide, sheet and cells in a workbook, lines in a plain file. The
headings above a block are its path, in every format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["heading", "paragraph", "list", "table", "caption", "formula", "code"]
Box = tuple[float, float, float, float]  # left, top, right, bottom in points, from the page's upper left corner


@dataclass(frozen=True)
class Place:
    """Where something stands in its file. Pages, slides and lines count from 1."""

    page: int | None = None  # of a PDF; a slide of a presentation
    boxes: tuple[Box, ...] = ()  # on that page: usually one, more where a passage runs over columns
    sheet: str | None = None
    cells: str | None = None  # "B2:D9"
    lines: tuple[int, int] | None = None  # first and last
    span: tuple[int, int] | None = None  # of a chunk's text, from and to: which of its characters stand here

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without what is not known."""
        known = {"page": self.page, "sheet": self.sheet, "cells": self.cells}
        found: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
        if self.boxes:
            found["boxes"] = [[round(edge, 1) for edge in box] for box in self.boxes]
        if self.lines:
            found["lines"] = list(self.lines)
        if self.span:
            found["span"] = list(self.span)
        return found

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Place:
        """Back from `plain`."""
        boxes = tuple((left, top, right, bottom) for left, top, right, bottom in plain.get("boxes", ()))
        lines, span = plain.get("lines"), plain.get("span")
        return cls(
            plain.get("page"),
            boxes,
            plain.get("sheet"),
            plain.get("cells"),
            (lines[0], lines[1]) if lines else None,
            (span[0], span[1]) if span else None,
        )


@dataclass(frozen=True)
class Table:
    """A table's cells, all rows of one length; a merged cell's text stands in its first cell, the others are empty."""

    rows: tuple[tuple[str, ...], ...]
    header_rows: int = 1
    merged: tuple[tuple[int, int, int, int], ...] = ()  # row, column, rows, columns of every merged cell

    def markdown(self) -> str:
        """As a GFM table: one line a row, `|` and line ends in cells escaped. Several header rows become one, each under what
        spans it."""
        if not self.rows:
            return ""
        rows = [list(row) for row in self.rows]
        if self.header_rows > 1:
            heads = rows[: self.header_rows]
            for row, column, _, columns in self.merged:
                if row < len(heads) and columns > 1:
                    heads[row][column : column + columns] = [heads[row][column]] * columns
            rows[: self.header_rows] = [[" ".join(filter(None, parts)) for parts in zip(*heads, strict=True)]]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in rows
        ]
        lines.insert(1, "|" + " --- |" * len(rows[0]))
        return "\n".join(lines)


@dataclass(frozen=True)
class Block:
    """A piece of a document that belongs together."""

    kind: Kind
    text: str  # of a table: its Markdown; of a list: its items, a line each
    place: Place = Place()
    path: tuple[str, ...] = ()  # the headings above it, outermost first; a heading's own text is not in its path
    level: int = 0  # of a heading, from 1
    table: Table | None = None  # of a table
    continued: bool = (
        False  # goes on the last paragraph, in the middle of a sentence, or table before it: over a page's end
    )


@dataclass(frozen=True)
class Document:
    """A file, read."""

    blocks: tuple[Block, ...]
    kind: str  # "pdf", "docx", "xlsx", "pptx", "html", "markdown", "text", "csv", "mail", "code", "image"
    title: str = ""
    author: str = ""
    date: str = ""  # of the document itself, ISO, as far as it is known
    pages: int | None = None
    language: str = ""  # of code: "python"; else "en", "zh" or nothing
    notes: tuple[str, ...] = ()  # what could not be read, a line each, for the user
    details: dict[str, Any] = field(default_factory=dict)  # plain JSON that a format's own viewer needs: page sizes ...
