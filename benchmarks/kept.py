"""What the benchmarks of the knowledge base share: vectors that are kept from run to run, collections of plain texts, tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.chunks import searched, split
from tinyseek.knowledge.documents.blocks import Block, Document
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import StoredDocument

QUESTIONS = Path(__file__).parent / "questions"


class Kept(Embedder):
    """An embedder whose vectors are kept in a file: the same text is embedded once.

    Args:
        inner: makes what is not there.
        file: .npz; none to keep nothing.
    """

    def __init__(self, inner: Embedder, file: Path | None) -> None:
        self._inner, self._file = inner, file
        self.name, self.width, self.limit = inner.name, inner.width, inner.limit
        self._known: dict[str, NDArray[np.float32]] = {}
        if file is not None and file.is_file():
            with np.load(file) as data:
                self._known = dict(zip(data["keys"].tolist(), data["vectors"], strict=True))

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._all("q", texts, self._inner.queries)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._all("p", texts, self._inner.passages)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._inner.count_tokens(texts)

    def _all(
        self, kind: str, texts: Sequence[str], make: Callable[[Sequence[str]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        keys = [hashlib.blake2b(f"{self.name}\0{kind}\0{text}".encode(), digest_size=12).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            self._known |= dict(zip(new, make(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, self.width), np.float32)

    def close(self) -> None:
        """Write them down."""
        if self._file is not None:
            np.savez(self._file, keys=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))
        self._inner.close()


def put_texts(base: KnowledgeBase, texts: Iterable[tuple[str, str, str]]) -> None:
    """Put texts into a collection, without files: name, title and text of each."""
    for name, title, text in texts:
        document = Document((Block("paragraph", text),), "text", title)
        chunks = split(document, base.settings.chunks, base.embedder.count_tokens)
        vectors = base.embedder.passages([searched(chunk, title) for chunk in chunks])
        base.index.put(StoredDocument(f"/{name}", name, name, len(text), "text", title=title), chunks, vectors)


def put_files(base: KnowledgeBase, files: Iterable[Path]) -> None:
    """Add files as a user does."""
    for progress in base.add(list(files)):
        if progress.outcome == "failed":
            raise SystemExit(f"{progress.file}: {progress.why}")


def questions(name: str) -> list[dict[str, Any]]:
    """The lines of one of our files of questions."""
    return [json.loads(line) for line in (QUESTIONS / name).read_text(encoding="utf-8").splitlines()]


def plain(text: str) -> str:
    """A text without what differs by how it was read: blanks, hyphens, the marks of Markdown tables."""
    return re.sub(r"[\s|\\\ufffe\xad-]+", "", text.replace("<br>", " ")).casefold()


def cmrc(folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """CMRC 2018's paragraphs (id, text), and its questions (id, question, id of the paragraph)."""
    data = json.loads((folder / "cmrc2018_dev.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for entry in data for paragraph in entry["paragraphs"]]
    asked = [(qa["id"], qa["question"], paragraph["id"]) for paragraph in paragraphs for qa in paragraph["qas"]]
    return [(paragraph["id"], paragraph["context"]) for paragraph in paragraphs], asked


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
