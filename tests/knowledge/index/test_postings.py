"""The chunks that words stand in, read once and kept: always those of the revision that is asked for, and never too many."""

from __future__ import annotations

import random
import sqlite3

from tinyseek.knowledge.index.postings import TABLE, Postings, read


def made(texts: list[str]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
    db.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", enumerate(texts, 1))
    db.execute(TABLE)
    return db


def test_they_are_where_the_word_stands_and_how_often() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(0, 9))) for _ in range(300)]
    db = made(texts)
    for word in "abcdefg":
        chunks, counts = read(db, word)
        assert list(zip(chunks.tolist(), counts.tolist(), strict=True)) == [
            (number, text.count(word)) for number, text in enumerate(texts, 1) if word in text
        ]


def test_another_revision_is_read_anew_and_an_older_reader_keeps_its_own_view() -> None:
    old, new = made(["a"]), made(["a", "a"])
    postings = Postings()
    assert len(postings.of(old, 1, "a")[0]) == 1
    assert len(postings.of(new, 1, "a")[0]) == 1  # kept: the same revision
    assert len(postings.of(new, 2, "a")[0]) == 2
    assert len(postings.of(old, 1, "a")[0]) == 1
    assert len(postings.of(old, 2, "a")[0]) == 2


def test_only_so_many_are_kept_and_the_latest_of_them() -> None:
    db = made(["a b c d e " * 2] * 10)
    postings = Postings(most=40)
    for word in "abcda":
        postings.of(db, 1, word)
    postings.of(db, 1, "e")
    empty = made([])
    assert [len(postings.of(empty, 1, word)[0]) for word in "acdeb"] == [10, 10, 10, 10, 0]
    assert len(Postings(most=39).of(db, 1, "a")[0]) == 10  # too many to keep, and found all the same
