"""The settings of questions over tables. Nothing heavy here."""

from __future__ import annotations

from pydantic import Field

from tinyseek.settings import Settings


class TableSettings(Settings):
    """How much a question over tables may take, and what is shown of the answer."""

    seconds: float = Field(20, gt=0, le=3600, description="longest time of one query, seconds")
    load_seconds: float = Field(180, gt=0, le=3600, description="longest time for reading one file, seconds")
    memory_mb: int = Field(1024, ge=64, description="memory of the database, megabytes")
    rows: int = Field(1000, ge=1, le=100_000, description="most rows of an answer; of more, the first are shown")
    cells: int = Field(20_000_000, ge=1, description="most cells of all tables together")
    files: int = Field(200, ge=1, description="most files that are loaded for one question")
    tries: int = Field(
        3, ge=1, le=10, description="how often a model may write the query, told each time what was wrong"
    )
    tables_shown: int = Field(12, ge=1, description="most tables that a model is told of; the nearest to the question")
    sample_rows: int = Field(3, ge=0, le=50, description="rows of each table that a model is shown")
