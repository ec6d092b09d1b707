"""A reader of plain text in this process, and an embedder that counts: what tests of ingest need instead of the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from knowledge.memory_index import HashEmbedder
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Block, Document, Place


class PlainReader:
    """Paragraphs between blank lines; a file that says "broken" cannot be read."""

    def __init__(self) -> None:
        self.read_names: list[str] = []

    def read(self, files: Iterator[Path | tuple[Path, str]]) -> Iterator[tuple[Path, Document | UserError]]:
        for entry in files:
            file, name = entry if isinstance(entry, tuple) else (entry, entry.name)
            self.read_names.append(name)
            text = file.read_text(encoding="utf-8")
            if not text or text.startswith("broken"):
                yield file, UserError(f"{name}: {'is damaged' if text else 'is empty'}")
                continue
            title = text.splitlines()[0][2:] if text.startswith("# ") else ""
            blocks = [Block("paragraph", part, Place()) for part in text.split("\n\n")]
            yield file, Document(tuple(blocks), "text", title=title)


class CountingEmbedder(HashEmbedder):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[str] = []

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        return self.queries(texts)
