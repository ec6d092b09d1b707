"""Tables."""

from __future__ import annotations

from tinyseek.knowledge.documents.blocks import Box, Table
from tinyseek.knowledge.documents.pdf_page import Page, Word


def tables_of(page: Page, words: list[Word]) -> tuple[list[Word], list[tuple[Table, Box]]]:
    """None yet."""
    return words, []
