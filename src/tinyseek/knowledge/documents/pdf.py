"""PDF to blocks."""

from __future__ import annotations

from pathlib import Path

from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.documents.limits import Limits


def parse(file: Path, limits: Limits) -> Document:
    """Read a PDF."""
    raise NotImplementedError


def render_page(file: Path, page: int, scale: float) -> bytes:
    """A page as PNG."""
    raise NotImplementedError
