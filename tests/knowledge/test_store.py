"""The store under conversations: what is kept when a process dies, and what is said of a file that is none, newer, or full."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tinyseek.errors import UserError
from tinyseek.knowledge.conversations import Conversations
from tinyseek.knowledge.store import Store, like
from tinyseek.studio.chats import Chats

SCHEMA = "CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL);"


def opened(file: Path) -> Store:
    return Store(file, SCHEMA, 3, "; say data=")


def test_a_store_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    store = opened(tmp_path / "deep" / "notes.db")
    with store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES ('a')")
    with pytest.raises(ZeroDivisionError), store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES ('b')")
        1 / 0  # noqa: B018
    store.close()
    again = opened(store.file)
    assert [row["text"] for row in again.read("SELECT text FROM notes")] == ["a"]
    assert again.read("PRAGMA journal_mode")[0][0] == "wal"
    again.close()
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["text", "foreign", "foreign of some version", "newer"])
def test_what_is_no_store_of_ours_is_told_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "notes.db"
    if kind == "text":
        file.write_text("Dear diary, " * 400)
    else:
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE places (url TEXT)")
            db.execute("INSERT INTO places VALUES ('about:blank')")
            version = {"foreign": 0, "foreign of some version": 3, "newer": 4}[kind]
            db.execute(f"PRAGMA user_version = {version}")
        db.close()
    for make in (opened, Chats, Conversations):
        with pytest.raises(UserError, match="newer tinyseek" if kind == "newer" else "no store of conversations|newer"):
            make(file)
    if kind == "text":
        assert file.read_text() == "Dear diary, " * 400
    else:
        assert not list(tmp_path.glob("*-wal"))
        with sqlite3.connect(file) as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
            assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("places",)]
        db.close()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*; say data="):
        opened(tmp_path / "file" / "notes.db")


def test_a_full_disk_loses_what_was_written_last_and_nothing_else(tmp_path: Path) -> None:
    store = opened(tmp_path / "notes.db")
    with store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES ('kept')")
    pages = store.read("PRAGMA page_count")[0][0]
    store.read(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(UserError, match=r"cannot be written \(the disk is full"), store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES ('small')")
        db.execute("INSERT INTO notes (text) VALUES (?)", ("x" * 100_000,))
    assert [row["text"] for row in store.read("SELECT text FROM notes")] == ["kept"]
    store.read(f"PRAGMA max_page_count = {pages + 200}")
    with store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES ('after')")
    assert len(store.read("SELECT text FROM notes")) == 2
    store.close()


def test_threads_and_stores_of_one_file_write_side_by_side(tmp_path: Path) -> None:
    stores = [opened(tmp_path / "notes.db") for _ in range(3)]

    def work(store: Store, name: int) -> None:
        for number in range(20):
            with store.write() as db:
                db.execute("INSERT INTO notes (text) VALUES (?)", (f"{name}.{number}",))

    threads = [threading.Thread(target=work, args=(stores[name % 3], name)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = {row["text"] for row in stores[0].read("SELECT text FROM notes")}
    assert texts == {f"{name}.{number}" for name in range(6) for number in range(20)}
    for store in stores:
        store.close()


WRITER = """
import sys
from pathlib import Path
from tinyseek.knowledge.store import Store
store = Store(Path(sys.argv[1]), sys.argv[2], 3)
number = 0
while True:
    with store.write() as db:
        db.execute("INSERT INTO notes (text) VALUES (?)", (f"{number} begins",))
        db.execute("INSERT INTO notes (text) VALUES (?)", (f"{number} ends",))
    number += 1
    print(number, flush=True)
"""


def test_a_killed_process_leaves_whole_transactions(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    file = tmp_path / "notes.db"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), SCHEMA],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    wanted = chance.randint(3, 300)
    told = 0
    for line in process.stdout:
        told = int(line)
        if told >= wanted:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = opened(file)
    texts = [row["text"] for row in store.read("SELECT text FROM notes ORDER BY id")]
    store.close()
    assert len(texts) % 2 == 0
    assert len(texts) // 2 >= told
    assert texts == [f"{number} {word}" for number in range(len(texts) // 2) for word in ("begins", "ends")]


def test_a_word_as_a_pattern_means_itself() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    db = sqlite3.connect(":memory:")
    for _ in range(300):
        text, word = ("".join(chance.choices("ab%_\\", k=length)) for length in (12, 2))
        found = db.execute("SELECT ? LIKE ? ESCAPE '\\'", (text, like(word))).fetchone()[0]
        assert bool(found) == (word in text), (text, word)
    db.close()
