"""How much one file may ask for before it is given up. What is generous for a person's files stops a hostile one in time."""

from __future__ import annotations

from pydantic import Field

from tinyseek.settings import Settings


class Limits(Settings):
    """Limits of reading one file; each that is crossed is one clear line, and the other files go on."""

    file_mb: float = Field(500, gt=0, description="largest file, megabytes")
    seconds: float = Field(600, gt=0, description="longest time for one file, seconds on the clock")
    cpu_seconds: float = Field(900, gt=0, description="longest time for one file, seconds of computing on all cores")
    memory_mb: int = Field(2000, ge=256, description="memory of the process that reads a file, megabytes")
    pages: int = Field(10_000, ge=1, description="most pages of a PDF, slides of a presentation, frames of a picture")
    characters: int = Field(50_000_000, ge=1, description="most characters of text in one file")
    cells: int = Field(5_000_000, ge=1, description="most cells of all tables in one file")
    unpacked_mb: float = Field(
        1000, gt=0, description="most that a packed file (DOCX, XLSX, PPTX) may unpack to, megabytes"
    )
    parts: int = Field(10_000, ge=1, description="most files inside a file, and attachments of an e-mail")
    depth: int = Field(
        100, ge=1, description="deepest nesting: of elements, of tables in tables, of e-mails in e-mails"
    )
    pixels: int = Field(100_000_000, ge=1, description="largest picture, pixels")
    ocr: bool = Field(True, description="read scanned pages and pictures, where rapidocr-onnxruntime is installed")
    tables: bool = Field(True, description="look for tables in PDF")


DEFAULT = Limits()
