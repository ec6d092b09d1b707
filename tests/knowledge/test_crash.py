"""What must never hurt a base: a process killed at any moment, a full disk, two writers at once, readers beside them."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from knowledge.plain_reader import CountingEmbedder, PlainReader

from tinyseek.errors import UserError
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.index.base import Chunk, StoredDocument
from tinyseek.knowledge.index.sqlite import SqliteIndex
from tinyseek.knowledge.options import IndexSettings
from tinyseek.knowledge.segment import words

WRITES = str(Path(__file__).with_name("writes.py"))


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, WRITES, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def opened(home: Path) -> KnowledgeBase:
    return KnowledgeBase.open(home, embedder=CountingEmbedder(), readers=PlainReader())


def check_whole(file: Path) -> None:
    """Every part of the index tells the same story, and SQLite finds no fault in it."""
    db = sqlite3.connect(file)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.execute("INSERT INTO words (words) VALUES ('integrity-check')")  # FTS5's own look; raises where it fails
    documents: dict[int, int] = dict(db.execute("SELECT id, chunks FROM documents"))
    chunks: dict[int, tuple[int, int, str]] = {
        row[0]: row[1:] for row in db.execute("SELECT id, document, number, text FROM chunks ORDER BY document, number")
    }
    held = Counter(document for document, _, _ in chunks.values())
    assert {document: held[document] for document in documents} == documents
    assert set(held) <= set(documents)
    numbers: dict[int, list[int]] = {}
    for document, number, _ in chunks.values():
        numbers.setdefault(document, []).append(number)
    assert all(found == list(range(len(found))) for found in numbers.values())
    assert {row[0] for row in db.execute("SELECT chunk FROM vectors")} == set(chunks)
    texts = dict(db.execute("SELECT rowid, text FROM words"))
    assert {chunk: text.split() for chunk, text in texts.items()} == {
        i: words(text) for i, (_, _, text) in chunks.items()
    }
    terms = Counter(word for text in texts.values() for word in set(text.split()))
    assert dict(db.execute("SELECT term, chunks FROM terms")) == dict(terms)
    totals = (len(documents), len(chunks), sum(len(text.split()) for text in texts.values()))
    assert db.execute("SELECT documents, chunks, words FROM totals").fetchone() == totals
    db.close()


def some_files(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        paragraphs = [f"File {number:03}, part {part}: " + "word 词 " * 60 for part in range(4)]
        (folder / f"{number:03}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_ingest_leaves_what_was_done_and_goes_on(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    folder, home = tmp_path / "docs", tmp_path / "home"
    some_files(folder, 150)
    process = started("add", home, folder)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(random.Random(seed).randint(1, 100))]
    process.kill()
    told += process.stdout.readlines()
    process.wait()
    check_whole(home / "collections/default/index.db")
    with opened(home) as base:
        done = {document.name for document in base.documents()}
        assert {line.split()[1] for line in told} <= done
        assert len(done) < 150
        outcomes = Counter(progress.outcome for progress in base.add(folder))
        assert outcomes == {"unchanged": len(done), "added": 150 - len(done)}
        assert base.index.count()[0] == 150
    check_whole(home / "collections/default/index.db")


def test_writers_killed_at_any_moment_leave_it_whole(tmp_path: Path) -> None:
    """Two at once that put, replace and remove; both are killed, again and again, while this process reads."""
    draw = random.Random(5)
    with opened(tmp_path) as base:
        base.embedder  # noqa: B018
        for _ in range(2):
            processes = [started("endless", tmp_path, seed) for seed in (1, 2)]
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            end = time.monotonic() + draw.uniform(0.1, 0.5)
            while time.monotonic() < end:
                check_reading(base)
            for process in processes:
                process.kill()
                process.wait()
            check_whole(tmp_path / "collections/default/index.db")
            check_reading(base)
        assert base.index.count()[0] > 5


def check_reading(base: KnowledgeBase) -> None:
    """What is found is there, or is gone by now; documents are whole."""
    asked = base.embedder.queries(["document 3 word7 第2段"])[0]
    ids = [chunk for chunk, _ in base.index.dense(asked, 10)] + [
        chunk for chunk, _ in base.index.lexical("document 段", 10)
    ]
    for stored in base.index.chunks(ids):
        document = stored.chunk.text.split()[1]
        assert all(other.chunk.text.split()[1] == document for other in base.chunks_of(stored.document))


def test_the_matrix_follows_other_processes(tmp_path: Path) -> None:
    with opened(tmp_path) as base:
        embedder = base.embedder
        process = started("endless", tmp_path, 7)
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
            base.index.dense(embedder.queries(["word"])[0], 3)
        process.kill()
        process.wait()
        asked = embedder.queries(["document word5 第1段"])[0]
        found = base.index.dense(asked, 1000)
        with opened(tmp_path) as fresh:
            expected = fresh.index.dense(asked, 1000)
        assert found == expected
        assert len(found) == base.index.count()[1] > 0


@pytest.mark.parametrize("most", [100_000, 420_000])
def test_a_full_disk_is_a_line_and_nothing_is_half_written(tmp_path: Path, most: int) -> None:
    folder, home = tmp_path / "docs", tmp_path / "home"
    some_files(folder, 100)
    process = started("full", home, folder, most)
    told, _ = process.communicate()
    assert process.returncode == 0
    lines = told.splitlines()
    assert lines[-1].startswith("error")
    assert "index.db: " in lines[-1]
    assert "disk" in lines[-1]
    check_whole(home / "collections/default/index.db")
    with opened(home) as base:
        done = {document.name for document in base.documents()}
        assert {line.split()[1] for line in lines[:-1]} == done
        list(base.add(folder))
        assert base.index.count()[0] == 100
    check_whole(home / "collections/default/index.db")


def test_no_space_left_is_told_so(tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "index.db")
    embedder = CountingEmbedder()
    pages = index._file.writer.execute("PRAGMA page_count").fetchone()[0]
    index._file.writer.execute(f"PRAGMA max_page_count = {pages + 3}")
    texts = [f"text {n} " * 50 for n in range(50)]
    with pytest.raises(UserError, match=r"no space left on its disk.*run the same again"):
        index.put(StoredDocument("/a", "a", "", 0, "text"), [Chunk(text) for text in texts], embedder.passages(texts))
    assert index.count() == (0, 0)
    index._file.writer.execute("PRAGMA max_page_count = 1000000")
    index.put(StoredDocument("/a", "a", "", 0, "text"), [Chunk(text) for text in texts], embedder.passages(texts))
    assert index.count() == (1, 50)
    index.close()


def test_two_writers_at_once_wait_for_each_other(tmp_path: Path) -> None:
    folder, home = tmp_path / "docs", tmp_path / "home"
    some_files(folder, 60)
    processes = [started("add", home, folder), started("together", home, folder)]
    assert [process.wait(120) for process in processes] == [0, 0]
    check_whole(home / "collections/default/index.db")
    with opened(home) as base:
        assert base.index.count()[0] == 60


def test_a_writer_that_waits_in_vain_says_so(tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "index.db", IndexSettings(wait_seconds=0.2))
    other = sqlite3.connect(tmp_path / "index.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"another process has been writing for 0.2 s"):
        index.remove([1])
    assert index.count() == (0, 0)  # readers go on
    other.execute("ROLLBACK")
    index.remove([1])
    other.close()
    index.close()


def test_threads_read_while_one_writes(tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "index.db")
    embedder = CountingEmbedder()
    texts = [f"common word{n}" for n in range(10)]
    vectors = embedder.passages(texts)
    wrong: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                found = index.dense(vectors[0], 1000)
                documents, chunks = index.count()
                assert len(found) % 10 == 0
                assert chunks == documents * 10
                assert len(index.lexical("common", 1000)) % 10 == 0
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(60):
        index.put(StoredDocument(f"/{n % 20}", f"{n % 20}", "", 0, "text"), [Chunk(text) for text in texts], vectors)
        if n % 7 == 0:
            index.remove([document.id for document in index.by_name(f"{n % 20}")])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    index.close()


def test_what_is_no_index_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "index.db"
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"is damaged, or no index.*move it away"):
        SqliteIndex(file)
    newer = tmp_path / "newer.db"
    SqliteIndex(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer tinyseek"):
        SqliteIndex(newer)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("ALTER TABLE chunks DROP COLUMN overlap", "chunks.overlap"),
        ("DROP TABLE terms", "terms."),
        ("DROP TABLE words", "words"),
    ],
)
def test_an_index_of_another_form_says_what_to_do(tmp_path: Path, change: str, missing: str) -> None:
    file = tmp_path / "index.db"
    SqliteIndex(file).close()
    with sqlite3.connect(file) as db:
        db.execute(change)
    with pytest.raises(
        UserError, match=rf"another version of tinyseek.*{missing}.*move it away and add the documents again"
    ):
        SqliteIndex(file)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "index.db"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE documents (mine)")
    with pytest.raises(UserError, match="of another program"):
        SqliteIndex(file)
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("documents",)]


def test_a_document_that_cannot_be_replaced_for_want_of_space_is_kept(tmp_path: Path) -> None:
    index, embedder = SqliteIndex(tmp_path / "index.db"), CountingEmbedder()

    def put(*texts: str) -> None:
        document = StoredDocument("/a", "a", "", 0, "text")
        index.put(document, [Chunk(text) for text in texts], embedder.passages(texts))

    put("the old text", "and more of it")
    pages = index._file.writer.execute("PRAGMA page_count").fetchone()[0]
    index._file.writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(UserError, match="no space left"):
        put(*(f"new text {n} " * 60 for n in range(60)))
    assert [chunk.chunk.text for chunk in index.chunks_of(1)] == ["the old text", "and more of it"]
    assert [chunk for chunk, _ in index.lexical("old", 5)] == [1]
    assert index.lexical("new", 5) == []
    assert len(index.dense(embedder.passages(["x"])[0], 99)) == 2
    with pytest.raises(UserError, match="no space left"):  # and again
        put(*(f"new text {n} " * 60 for n in range(60)))
    index.close()
    check_whole(tmp_path / "index.db")


def test_the_index_is_for_its_owner_alone(tmp_path: Path) -> None:
    index = SqliteIndex(tmp_path / "deep/index.db")
    index.put(StoredDocument("/a", "a", "", 0, "text"), [Chunk("a")], np.ones((1, 4), np.float32))
    for file in (tmp_path / "deep").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    index.close()
