"""The settings of a knowledge base: one tree, and where it lives. Nothing heavy here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tinyseek.knowledge.documents.limits import Limits
from tinyseek.settings import Settings


class ChunkSettings(Settings):
    """How documents are cut into passages that are found, and sections that are read."""

    tokens: int = Field(256, ge=32, le=8192, description="most tokens of a passage, as the embedder counts them")
    overlap: int = Field(32, ge=0, le=2048, description="tokens of whole sentences that a passage repeats of the last")
    section_tokens: int = Field(
        1024, ge=32, le=65_536, description="most tokens of a section: passages in a row under one heading"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.overlap > self.tokens // 2:
            raise ValueError(f"an overlap of {self.overlap} is more than half of a passage of {self.tokens} tokens")
        if self.section_tokens < self.tokens:
            raise ValueError("section_tokens must be at least tokens")
        return self


class IndexSettings(Settings):
    """Where chunks and vectors are kept, and how exactly."""

    where: str = Field(
        "",
        description="none for a file of its own; or a PostgreSQL server with pgvector, postgresql://user@host/database "
        "(its password is best given as PGPASSWORD in the environment)",
    )
    vectors: Literal["int8", "float32"] = Field(
        "int8",
        description="a number of a vector takes one byte or four; of the first ten by float32, int8 finds 97 of 100",
    )
    approximate_from: int = Field(
        200_000,
        ge=1,
        description="from so many passages on a search by meaning first picks a twenty-fifth of them by their signs; up to "
        "there it looks at all (12 ms for 100,000)",
    )
    wait_seconds: float = Field(60, gt=0, le=3600, description="how long to wait for another writer")


class KnowledgeSettings(Settings):
    """A knowledge base."""

    embedder: str = Field(
        "",
        description="what makes vectors: e5 (English, Chinese and a hundred more languages, without a network), a "
        "sentence-transformers folder, or a server, http://host:port#model; if none, what the collection was made with, and e5 "
        "for a new one",
    )
    chunks: ChunkSettings = ChunkSettings()
    index: IndexSettings = IndexSettings()
    limits: Limits = Limits()
    processes: int = Field(2, ge=1, le=64, description="files that are read at once, each in a process of its own")
    batch: int = Field(64, ge=1, le=4096, description="passages that are embedded at once")


def knowledge_home() -> Path:
    """Where knowledge bases lie if nothing else is said: TINYSEEK_HOME/knowledge, or ~/.tinyseek/knowledge."""
    return Path(os.environ.get("TINYSEEK_HOME") or Path.home() / ".tinyseek") / "knowledge"
