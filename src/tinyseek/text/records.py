"""Records out of files, one at a time: JSON arrays, JSONL, CSV, tab-separated text, parquet; .gz of the first two too.

A record that cannot be read is a `BadRecordError` with its place, and the rest goes on. Memory stays bounded, but for a JSON array,
which is one value.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from tinyseek.errors import UserError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
_LONGEST_LINE = 64 << 20  # bytes; a record that is longer is a file of another kind


class BadRecordError(ValueError):
    """Why one record cannot be used."""


def read_records(file: Path, header: bool = True) -> Iterator[tuple[str, Any]]:
    """(where, record) of each entry; an entry that cannot be read is a `BadRecordError`.

    Args:
        header: whether the first line of a table names its columns; without, they are called 0, 1, 2 ...
    Raises:
        UserError: a file that cannot be read at all, or is of another kind.
    """
    kind = suffix(file)
    if kind == ".parquet":
        return _parquet(file)
    if kind in (".csv", ".tsv", ".txt"):
        return _table(file, "," if kind == ".csv" else "\t", header)
    return _json(file)


def suffix(file: Path) -> str:
    """A file's kind by its name: `.jsonl` of `x.jsonl.gz`."""
    return (Path(file.stem) if file.suffix.lower() == ".gz" else file).suffix.lower()


def _open(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    """Of a JSON array or JSONL file; which of them is seen from its first character, whatever its name."""
    try:
        with _open(file) as stream:
            head = stream.read(4096)
            start = head.removeprefix(codecs.BOM_UTF8).lstrip()
            stream.seek(0)
            if start.startswith(b"["):
                yield from _array(stream.read().removeprefix(codecs.BOM_UTF8))
                return
            if suffix(file) == ".json" and (whole := _whole(stream.read().removeprefix(codecs.BOM_UTF8))) is not None:
                yield "record 1", whole
                return
            stream.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
            number = 0
            while line := stream.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    yield f"line {number}", BadRecordError(f"longer than {_LONGEST_LINE >> 20} MB")
                    while (more := stream.readline(_LONGEST_LINE)) and not more.endswith(b"\n"):
                        pass
                elif line.strip():
                    yield f"line {number}", _parsed(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged gzip file ({error}); fetch it anew") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _whole(data: bytes) -> Any:
    """A file that is one JSON value, or None: then it is JSONL under another name."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRecordError("not UTF-8; convert the file")
    except (ValueError, RecursionError) as error:
        return BadRecordError(f"not JSON ({error})")


def _array(data: bytes) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON array one by one, so that a broken one costs itself and not the file."""
    text = data.decode("utf-8", errors="surrogateescape")
    decoder = json.JSONDecoder()
    between, resume = re.compile(r"[\s,]*"), re.compile(r"\}\s*,\s*(?=\{)")
    at, index = text.index("[") + 1, 0
    while True:
        at = between.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string too
        if at >= len(text):
            yield f"record {index + 1}", BadRecordError("the file ends in the middle of the array")
            return
        if text[at] == "]":
            return
        index += 1
        try:
            record, end = decoder.raw_decode(text, at)
            if re.search("[\udc80-\udcff]", text[at:end]):
                record = BadRecordError("not UTF-8; convert the file")
            at = end
            yield f"record {index}", record
        except (ValueError, RecursionError) as error:
            yield f"record {index}", BadRecordError(f"not JSON ({error})")
            onwards = resume.search(text, getattr(error, "pos", at))
            if onwards is None:
                return
            at = onwards.end()


def _table(file: Path, separator: str, header: bool) -> Iterator[tuple[str, Any]]:
    """Of a table; between tabs a quotation mark is a letter like any other, as those who write such files mean it."""
    try:
        with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as stream:
            clean = _without_zeros(stream)
            if separator == "\t":
                rows = csv.reader(clean, delimiter=separator, quoting=csv.QUOTE_NONE)
            else:
                rows = csv.reader(clean, delimiter=separator)
            names: list[str] | None = None
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    yield f"line {rows.line_num}", BadRecordError(f"not a row of a table ({error})")
                    continue
                if row is None:
                    return
                if not any(cell.strip() for cell in row):
                    continue
                if names is None:
                    names = [name.strip() for name in row] if header else [str(n) for n in range(len(row))]
                    if header:
                        continue
                where = f"line {rows.line_num}"
                if len(row) != len(names):
                    yield where, BadRecordError(f"{len(row)} columns, and {len(names)} before")
                elif any("\udc80" <= char <= "\udcff" for cell in row for char in cell):
                    yield where, BadRecordError("not UTF-8; convert the file")
                else:
                    yield where, dict(zip(names, row, strict=True))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _without_zeros(stream: Iterator[str]) -> Iterator[str]:
    """Lines without zero bytes, at which the csv reader would stop."""
    return (line.replace("\0", "") for line in stream)


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{file}: parquet files need pyarrow; install it: pip install 'tinyseek[data]'") from None
    try:
        with parquet.ParquetFile(file) as table:
            numbers = itertools.count(1)
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    yield f"row {next(numbers)}", record
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged, or no parquet file ({str(error).splitlines()[0]:.200})") from None
