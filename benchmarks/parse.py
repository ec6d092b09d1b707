"""Pages a second: PDF to blocks in worker processes, beside pdfplumber on the same pages.

python benchmarks/parse.py [FILE.pdf ...] [--processes 2] [--rounds 3] [--pages 200] [--theirs 10]

Without files, two are made: pages of text in two columns, and pages with two tables each. Every process reads the whole file, with
everything on. Seconds on the clock count from the file's name to its blocks in the process that asked; beside them stand those of
computing in one worker process, which other work on the machine touches less.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pdfplumber
import psutil
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table, TableStyle
from rich.console import Console
from rich.table import Table as Shown

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.read import Readers

WORDS = "the model learns from data and answers questions about long documents with numbers tables figures and methods"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=200, help="of each file that is made")
    parser.add_argument("--theirs", type=int, default=10, help="pages of each file that pdfplumber reads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [text_file(Path(folder), arguments.pages), table_file(Path(folder), arguments.pages)]
        rows = [measured(file, Path(folder), arguments) for file in files]
    shown = Shown(title=f"PDF, {arguments.processes} processes")
    for column in (
        "file",
        "pages",
        "tables",
        "pages/s",
        "a CPU second",
        "pdfplumber text",
        "pdfplumber text and tables",
    ):
        shown.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        shown.add_row(row["file"], str(row["pages"]), str(row["tables"]), *(f"{row[key]:,.1f}" for key in _FIGURES))
    Console(width=120).print(shown)
    print(json.dumps({"benchmark": "PDF", "unit": "pages/s", "processes": arguments.processes, "files": rows}))


_FIGURES = ("tinyseek", "tinyseek_cpu", "pdfplumber_text", "pdfplumber_tables")


def measured(file: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """One file's row."""
    copies = [Path(shutil.copy(file, folder / f"copy-{number}.pdf")) for number in range(arguments.processes)]
    rates, computing = [], []
    with Readers(arguments.processes) as readers:
        list(readers.read(copies))  # warm
        for _ in range(arguments.rounds):
            busy, began = computed(), time.perf_counter()
            found = [read for _, read in readers.read(copies)]
            seconds = time.perf_counter() - began
            pages = sum(0 if isinstance(read, UserError) else read.pages or 0 for read in found)
            rates.append(pages / seconds)
            computing.append(pages / (computed() - busy))
    document = found[0]
    if isinstance(document, UserError):
        raise document
    tables = sum(block.table is not None for block in document.blocks)
    text, both = theirs(file, arguments.theirs)
    figures = {"tinyseek": statistics.median(rates), "tinyseek_cpu": statistics.median(computing)}
    figures |= {"pdfplumber_text": text, "pdfplumber_tables": both}
    rounded = {key: round(value, 2) for key, value in figures.items()}
    return {"file": file.name, "pages": document.pages or 0, "tables": tables, **rounded}


def computed() -> float:
    """Seconds of computing in the worker processes so far."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(each.user + each.system for each in times)


def theirs(file: Path, most: int) -> tuple[float, float]:
    """pdfplumber's pages/s: text alone, text and tables; one process."""
    with pdfplumber.open(file) as document:
        pages = document.pages[:most]
        with took() as text:
            for page in pages:
                page.extract_text()
        with took() as tables:
            for page in pages:
                page.extract_tables()
    return len(pages) / text[0], len(pages) / (text[0] + tables[0])


@contextmanager
def took() -> Iterator[list[float]]:
    seconds = [0.0]
    began = time.perf_counter()
    yield seconds
    seconds[0] = time.perf_counter() - began


def text_file(folder: Path, pages: int) -> Path:
    """Two columns of running text, 90 lines a page."""
    file, rng = folder / "text.pdf", random.Random(1)
    canvas = Canvas(str(file), pagesize=A4)
    for _ in range(pages):
        for x in (60, 315):
            for number in range(45):
                line = ""
                while stringWidth(line, "Times-Roman", 10) < 205:
                    line = f"{line} {rng.choice(WORDS.split())}".strip()
                canvas.setFont("Times-Roman", 10)
                canvas.drawString(x, 770 - 15 * number, line)
        canvas.showPage()
    canvas.save()
    return file


def table_file(folder: Path, pages: int) -> Path:
    """Text and two tables a page: one with all its lines, one with three."""
    file, rng = folder / "tables.pdf", random.Random(2)
    canvas = Canvas(str(file), pagesize=A4)
    for _ in range(pages):
        for top, style in (
            (780, ("GRID", (0, 0), (-1, -1), 0.5, colors.black)),
            (420, ("LINEBELOW", (0, 0), (-1, 0), 1, colors.black)),
        ):
            rows = [["Model", *(f"Set {number}" for number in range(6))]]
            rows += [[f"model {row}", *(f"{rng.uniform(0, 100):.1f}" for _ in range(6))] for row in range(12)]
            drawn = Table(rows)
            drawn.setStyle(
                TableStyle(
                    [
                        style,
                        ("LINEABOVE", (0, 0), (-1, 0), 1, colors.black),
                        ("LINEBELOW", (0, -1), (-1, -1), 1, colors.black),
                    ]
                )
            )
            _, height = drawn.wrapOn(canvas, 500, 700)
            drawn.drawOn(canvas, 70, top - height)
            for number in range(4):
                canvas.drawString(
                    70, top - height - 30 - 14 * number, " ".join(rng.choice(WORDS.split()) for _ in range(14))
                )
        canvas.showPage()
    canvas.save()
    return file


if __name__ == "__main__":
    main()
