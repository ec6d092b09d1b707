"""A knowledge base kept up to date: what is added, changed, moved, removed, and nothing else; bad names and bad files; uploads."""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from knowledge.plain_reader import CountingEmbedder, PlainReader

from tinyseek.errors import UserError
from tinyseek.knowledge import uploads
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.index.base import Filters
from tinyseek.knowledge.options import ChunkSettings, KnowledgeSettings

SMALL = KnowledgeSettings(chunks=ChunkSettings(tokens=32, overlap=0, section_tokens=64))


class Desk:
    """A folder, a base over it, and what happened."""

    def __init__(self, where: Path) -> None:
        self.folder, self.home = where / "docs", where / "home"
        self.folder.mkdir()
        self.reader, self.embedder = PlainReader(), CountingEmbedder()
        self.base = self.opened()

    def opened(self, collection: str = "default") -> KnowledgeBase:
        return KnowledgeBase.open(self.home, collection, SMALL, self.embedder, self.reader)

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        old = time.time() - 100 + len(text) / 1000  # well before it is added, and another time for another text
        os.utime(file, (old, old))
        return file

    def add(self, *paths: Path, tags: tuple[str, ...] = ()) -> dict[str, str]:
        self.reader.read_names.clear()
        self.embedder.embedded.clear()
        told = list(self.base.add(paths or (self.folder,), tags))
        assert [progress.done for progress in told] == list(range(1, len(told) + 1))
        assert not told or told[-1].total == len(told)
        return {progress.file: progress.outcome for progress in told}

    def names(self) -> list[str]:
        return [document.name for document in self.base.documents()]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.base.close()


def test_only_what_has_changed_is_read_and_embedded(desk: Desk) -> None:
    desk.write("a.txt", "alpha")
    desk.write("deep/b.md", "beta")
    assert desk.add() == {"a.txt": "added", "deep/b.md": "added"}
    assert desk.add() == {"a.txt": "unchanged", "deep/b.md": "unchanged"}
    assert desk.reader.read_names == desk.embedder.embedded == []
    desk.write("a.txt", "alpha has changed")
    assert desk.add() == {"a.txt": "changed", "deep/b.md": "unchanged"}
    assert desk.reader.read_names == ["a.txt"]
    assert desk.base.index.lexical("changed", 5)


def test_of_a_changed_file_only_new_passages_are_embedded(desk: Desk) -> None:
    paragraphs = [f"Paragraph {n}: " + "word " * 24 for n in range(6)]
    desk.write("a.txt", "\n\n".join(paragraphs))
    desk.add()
    assert len(desk.embedder.embedded) == 6
    paragraphs[3] = "Another one: " + "term " * 24
    desk.write("a.txt", "\n\n".join(paragraphs))
    assert desk.add() == {"a.txt": "changed"}
    assert [text[:11] for text in desk.embedder.embedded] == ["Another one"]


def test_a_touched_file_is_hashed_and_not_read(desk: Desk) -> None:
    file = desk.write("a.txt", "alpha")
    desk.add()
    os.utime(file, (5, 5))
    assert desk.add() == {"a.txt": "unchanged"}
    assert desk.base.documents()[0].modified == 5
    assert desk.reader.read_names == []


def test_a_change_within_the_clocks_tick_is_seen(desk: Desk) -> None:
    file = desk.write("a.txt", "alpha")
    now = time.time() + 1  # as it is written while it is added
    os.utime(file, (now, now))
    desk.add()
    file.write_text("omega")
    os.utime(file, (now, now))
    assert desk.add() == {"a.txt": "changed"}


def test_a_renamed_file_keeps_its_chunks(desk: Desk) -> None:
    file = desk.write("a.txt", "alpha")
    desk.add(tags=("red",))
    before = desk.base.documents()[0]
    chunks = desk.base.chunks_of(before.id)
    file.rename(desk.folder / "b.txt")
    assert desk.add() == {"b.txt": "moved"}
    after = desk.base.documents()[0]
    assert (after.id, after.name, after.tags) == (before.id, "b.txt", ("red",))
    assert desk.base.chunks_of(after.id) == chunks
    assert desk.embedder.embedded == []


def test_a_renamed_folder_moves_all_its_files(desk: Desk) -> None:
    for n in range(5):
        desk.write(f"old/{n}.txt", f"text {n}")
    desk.add()
    (desk.folder / "old").rename(desk.folder / "new")
    assert set(desk.add().values()) == {"moved"}
    assert desk.names() == [f"new/{n}.txt" for n in range(5)]


def test_files_that_are_gone_are_forgotten(desk: Desk) -> None:
    desk.write("a.txt", "alpha").unlink()
    desk.write("b.txt", "beta")
    gone = desk.write("c.txt", "gamma")
    desk.add()
    gone.unlink()
    assert desk.add() == {"b.txt": "unchanged", "c.txt": "removed"}
    assert desk.names() == ["b.txt"]
    assert desk.base.index.lexical("gamma", 5) == []
    assert desk.base.index.count() == (1, 1)


def test_a_folder_that_is_empty_of_a_sudden_loses_nothing(desk: Desk) -> None:
    """A disk that is not mounted looks like an empty folder."""
    file = desk.write("a.txt", "alpha")
    desk.add()
    file.unlink()
    assert desk.add() == {str(desk.folder): "failed"}
    assert desk.names() == ["a.txt"]
    with pytest.raises(StopIteration):
        next(desk.base.add([]))


def test_the_same_content_is_kept_once(desk: Desk) -> None:
    first = desk.write("a.txt", "alpha")
    desk.write("b.txt", "alpha")
    told = list(desk.base.add(desk.folder))
    assert sorted((p.file, p.outcome, p.why) for p in told) == [
        ("a.txt", "added", ""),
        ("b.txt", "unchanged", "has the same content as a.txt"),
    ]
    first.unlink()
    assert desk.add() == {"b.txt": "moved"}


def test_bad_files_are_told_and_the_rest_goes_on(desk: Desk) -> None:
    outside = desk.folder.parent / "secret.txt"
    outside.write_text("secret")
    desk.write("a.txt", "alpha")
    desk.write("broken.txt", "broken")
    desk.write("empty.txt", "")
    desk.write("z.txt", "omega")
    desk.write("program.exe", "binary")
    desk.write(".hidden.txt", "hidden")
    (desk.folder / "link.txt").symlink_to(outside)
    (desk.folder / "linked").symlink_to(desk.folder.parent)
    (desk.folder / "inner.txt").symlink_to(desk.folder / "a.txt")
    said: list[str] = []
    told = {p.file: p for p in desk.base.add([desk.folder, desk.folder / "none.txt"], say=said.append)}
    outcomes = {name: progress.outcome for name, progress in told.items()}
    assert outcomes == {
        "a.txt": "added",
        "z.txt": "added",
        "broken.txt": "failed",
        "empty.txt": "failed",
        "link.txt": "failed",
        "linked": "failed",
        str(desk.folder / "none.txt"): "failed",
    }
    assert told["broken.txt"].why == "is damaged"
    assert "leads out of its folder" in told["link.txt"].why
    assert said == ["1 files of no known kind were left out (.exe 1)"]
    assert desk.base.index.lexical("secret", 5) == []


def test_a_file_that_breaks_keeps_what_was_read_of_it(desk: Desk) -> None:
    desk.write("a.txt", "alpha")
    desk.add()
    desk.write("a.txt", "broken now")
    progress = next(desk.base.add(desk.folder))
    assert (progress.outcome, progress.why) == ("failed", "is damaged; what was read of it before is kept")
    assert desk.base.index.lexical("alpha", 5)


def test_names_in_answers_are_told_apart(desk: Desk) -> None:
    one, two = desk.write("one/notes.txt", "alpha"), desk.write("two/notes.txt", "beta")
    desk.add(one, two)
    assert desk.names() == ["notes.txt", "two/notes.txt"]
    desk.add(desk.folder / "one", desk.folder / "two")
    assert desk.names() == ["notes.txt", "two/notes.txt"]


def test_an_upload_is_kept_found_and_deleted(desk: Desk) -> None:
    first = desk.base.add_bytes("notes.txt", b"alpha", ["x"])
    assert (first.outcome, first.file) == ("added", "notes.txt")
    again = desk.base.add_bytes("notes.txt", b"alpha", ["y"])
    assert (again.outcome, again.document) == ("unchanged", first.document)
    assert desk.base.document(first.document).tags == ("x", "y")
    other = desk.base.add_bytes("notes.txt", b"beta")
    assert other.file == "notes (2).txt"
    source = Path(desk.base.document(first.document).source)
    assert source.read_bytes() == b"alpha"
    assert oct(source.parent.stat().st_mode & 0o777) == "0o700"
    desk.base.remove([first.document])
    assert not source.parent.exists()
    broken = desk.base.add_bytes("bad.txt", b"broken")
    assert broken.outcome == "failed"
    assert [file.name for file in (desk.base.folder / "files").rglob("*.txt")] == ["notes.txt"]


def test_an_upload_in_a_file_is_moved_in_and_never_held_whole(desk: Desk, tmp_path: Path) -> None:
    small = tmp_path / "part"
    small.write_bytes(b"alpha")
    first = desk.base.add_file(small, "notes.txt", ["x"])
    assert (first.outcome, first.file) == ("added", "notes.txt")
    assert not small.exists()
    assert Path(desk.base.document(first.document).source).read_bytes() == b"alpha"
    small.write_bytes(b"alpha")
    assert desk.base.add_file(small, "other.txt").outcome == "unchanged"
    assert small.exists()  # it is whoever's wrote it
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(48 << 20)
    tracemalloc.start()
    try:
        with desk.base.incoming("large.txt") as incoming, large.open("rb") as stream:
            incoming.write_all(stream)
            with pytest.raises(UserError, match="no name for a file"):
                desk.base.add_file(incoming.path, "../large.txt")
            moved = desk.base.folder / "files" / "aside" / "large.txt"
            uploads.move_in(incoming.path, moved)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    assert moved.stat().st_size == 48 << 20
    assert not incoming.path.exists()


def test_an_upload_that_is_too_large_or_stops_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    folder = desk.base.folder / "incoming"
    with (
        pytest.raises(UserError, match=r"big.txt: is 3 MB, more than 2 MB"),
        uploads.Incoming(tmp_path, "big.txt", 2) as big,
    ):
        for _ in range(4):
            big.write(b"x" * 900_000)
    assert list((tmp_path / "incoming").iterdir()) == []
    left = desk.base.incoming("left.txt")
    left.write(b"half")
    assert [file.read_bytes() for file in folder.iterdir()] == [b"half"]
    del left  # whoever was sending went away
    gc.collect()
    assert list(folder.iterdir()) == []
    old = folder / "0123.part"  # what a killed process left
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    with desk.base.incoming("next.txt") as following:
        assert list(folder.iterdir()) == [following.path]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../x.txt",
        "a/../../x.txt",
        "/etc/passwd",
        "C:\\x.txt",
        "a\0.txt",
        "a\n.txt",
        ".",
        "..",
        "x" * 300,
        "水" * 90,
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(UserError, match="no name for a file"):
        desk.base.add_bytes(name, b"x")
    assert desk.names() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a" * 65, "a ", "a\n"])
def test_a_collection_has_a_plain_name(desk: Desk, name: str) -> None:
    with pytest.raises(UserError, match="no name for a collection"):
        desk.opened(name)
    with pytest.raises(UserError):
        KnowledgeBase.delete_collection(name, desk.home)


def test_collections_are_apart(desk: Desk) -> None:
    desk.base.add_bytes("a.txt", b"alpha")
    with desk.opened("其他 2") as other:
        other.add_bytes("b.txt", b"beta")
        assert other.collections() == ["default", "其他 2"]
        assert other.index.lexical("alpha", 5) == []
        assert [document.name for document in other.documents()] == ["b.txt"]
    KnowledgeBase.delete_collection("其他 2", desk.home)
    assert desk.base.collections() == ["default"]
    assert desk.names() == ["a.txt"]
    with pytest.raises(UserError, match="did you mean"):
        KnowledgeBase.delete_collection("defualt", desk.home)


def test_documents_are_removed_by_name_pattern_folder_and_id(desk: Desk) -> None:
    for name in ("a.txt", "b.txt", "x/1.md", "x/2.md", "y/3.md", "z.txt"):
        desk.write(name, name)
    desk.add()
    assert [d.name for d in desk.base.remove(["a.txt", "y/*"])] == ["a.txt", "y/3.md"]
    with pytest.raises(UserError, match=r"c.txt: no document .* did you mean"):
        desk.base.remove(["x", "c.txt"])
    assert [d.name for d in desk.base.remove(["x"])] == ["x/1.md", "x/2.md"]
    desk.base.remove([desk.base.documents()[0].id, str(desk.folder / "z.txt")])
    assert desk.base.index.count() == (0, 0)
    assert (desk.folder / "a.txt").exists()


def test_tags(desk: Desk) -> None:
    desk.write("a.txt", "alpha")
    desk.add(tags=("red",))
    desk.add(tags=(" blue ", "red"))
    known = desk.base.documents(Filters(tags=("blue",)))[0]
    assert known.tags == ("red", "blue")
    assert desk.base.set_tags(known.id, ["绿"]).tags == desk.base.documents()[0].tags == ("绿",)
    for wrong in (["x" * 101], [""], ["a\nb"], [str(n) for n in range(101)]):
        with pytest.raises(UserError, match="tag"):
            desk.base.set_tags(known.id, wrong)


def test_a_correction_is_found_and_outlives_another_reading(desk: Desk) -> None:
    desk.write("a.txt", "The wing lifst.\n\n" + "word " * 30)
    desk.add()
    document = desk.base.documents()[0].id
    chunk = desk.base.chunks_of(document)[0]
    corrected = desk.base.correct(chunk.id, "The wing lifts 100 kg.")
    assert corrected.chunk.original == chunk.chunk.text
    assert desk.base.index.lexical("100", 5)[0][0] == chunk.id
    assert desk.base.read_again(document).outcome == "changed"
    assert desk.base.chunks_of(document)[0].chunk == corrected.chunk
    desk.write("a.txt", "The wing lifst.\n\n" + "word " * 28 + "changed here")
    desk.add()
    assert desk.base.chunks_of(document)[0].chunk.text == "The wing lifts 100 kg."
    for wrong in ("", " \n", "x" * 100_001):
        with pytest.raises(UserError):
            desk.base.correct(chunk.id, wrong)
    with pytest.raises(UserError, match="no chunk"):
        desk.base.correct(chunk.id, "gone")


def test_what_the_embedder_was_is_remembered(desk: Desk) -> None:
    desk.write("a.txt", "alpha")
    desk.add()
    other = CountingEmbedder()
    other.name = "another"
    with KnowledgeBase.open(desk.home, embedder=other) as base, pytest.raises(UserError, match="not of another"):
        base.embedder  # noqa: B018


def test_a_watched_folder_is_followed(desk: Desk) -> None:
    desk.write("a.txt", "alpha")
    stop = threading.Event()
    told = []

    def follow() -> None:
        for progress in desk.base.watch(desk.folder, stop):
            told.append((progress.file, progress.outcome))

    thread = threading.Thread(target=follow)
    thread.start()

    def waited(*expected: tuple[str, str]) -> None:
        end = time.monotonic() + 20
        while not set(expected) <= set(told) and time.monotonic() < end:
            time.sleep(0.05)
        assert set(expected) <= set(told)

    waited(("a.txt", "added"))
    time.sleep(0.3)
    desk.write("b.txt", "beta")
    desk.write("bad.txt", "broken")
    waited(("b.txt", "added"), ("bad.txt", "failed"))
    (desk.folder / "b.txt").rename(desk.folder / "c.txt")
    waited(("c.txt", "moved"))
    (desk.folder / "c.txt").unlink()
    waited(("c.txt", "removed"))
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert told.count(("bad.txt", "failed")) == 1


def test_a_folder_that_is_not_there_is_not_watched(desk: Desk) -> None:
    with pytest.raises(UserError, match="no such folder"):
        next(desk.base.watch(desk.folder / "none", threading.Event()))
