"""The indexes, in a file and on a server, do what the index of plain lists does: over random histories, and one thing at a time."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from knowledge.memory_index import HashEmbedder, MemoryBase, MemoryIndex
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import Chunk, Filters, Index, StoredDocument
from tinyseek.knowledge.index.sqlite import SqliteIndex
from tinyseek.knowledge.options import IndexSettings
from tinyseek.knowledge.segment import words

EMBEDDER = HashEmbedder()
VOCABULARY = "the of lift wing flow plate shock wave heat 机翼 升力 流动 热 激波 边界层 的 了 数据库 café 79.8 don't x-ray".split()  # noqa: SIM905
TAGS = ("red", "green", "blue")

Reopen = Callable[[], Index]


@pytest.fixture(params=["file-int8", "file-float32", "server"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the same collection anew, as another process would."""
    opened: list[Index] = []
    name = uuid.uuid4().hex
    where = request.getfixturevalue("postgres") if request.param == "server" else ""

    def open_again() -> Index:
        index: Index
        if where:
            from tinyseek.knowledge.index.postgres import PostgresIndex

            index = PostgresIndex(where, name, IndexSettings(wait_seconds=20))
        else:
            vectors: Any = request.param.removeprefix("file-")
            index = SqliteIndex(tmp_path / "index.db", IndexSettings(vectors=vectors))
        index.adopt(EMBEDDER.name, EMBEDDER.width)
        opened.append(index)
        return index

    yield open_again
    for index in opened:
        index.close()


def some_chunks(draw: random.Random) -> list[Chunk]:
    found = []
    for number in range(draw.randint(0, 4)):
        text = " ".join(draw.choices(VOCABULARY, k=draw.randint(1, 25)))
        pages = tuple(Place(page=page, span=(0, len(text))) for page in draw.sample(range(1, 9), draw.randint(0, 2)))
        path = tuple(draw.sample(VOCABULARY, draw.randint(0, 2)))
        found.append(Chunk(text, pages, path, number // 2, draw.choice(["text", "table"]), number))
    return found


def vectors_of(chunks: list[Chunk]) -> NDArray[np.float32]:
    return EMBEDDER.passages([chunk.text for chunk in chunks])


def some_document(draw: random.Random) -> StoredDocument:
    name = f"{draw.choice(['a', 'b', '文件'])}/{draw.randint(1, 12)}.{draw.choice(['pdf', 'md'])}"
    return StoredDocument(
        f"/home/{name}",
        name,
        f"{draw.getrandbits(64):x}",
        draw.randint(1, 1 << 40),
        name.rsplit(".", 1)[1],
        folder="/home",
        modified=float(draw.randint(0, 2_000_000_000)),
        added=1.0,
        date=draw.choice(["", "2024-05-01", "1999-12-31"]),
        pages=draw.choice([None, 3]),
        tags=tuple(draw.sample(TAGS, draw.randint(0, 2))),
        notes=("page 2 has no text",) if draw.random() < 0.3 else (),
        details={"sizes": [[1.5, 2]], "名": "x"} if draw.random() < 0.3 else {},
    )


def some_filters(draw: random.Random) -> Filters:
    return draw.choice(
        [
            Filters(),
            Filters(tags=(draw.choice(TAGS),)),
            Filters(kinds=("pdf",), pages=(2, 5)),
            Filters(names=("a/*", "*1.md")),
            Filters(folders=("文件", "b/")),
            Filters(since="2000-01-01", until="2024-12-31"),
            Filters(documents=tuple(range(1, 30, 3))),
            Filters(pages=(1, 3)),
            Filters(kinds=("nothing",)),
        ]
    )


def same_ranking(found: list[tuple[int, float]], expected: list[tuple[int, float]], tolerance: float) -> None:
    """The same scores in order, and the same chunks wherever scores tell them apart."""
    assert len(found) == len(expected)
    assert np.allclose([score for _, score in found], [score for _, score in expected], atol=tolerance)
    known = dict(expected)
    last = expected[-1][1] if expected else 0.0
    for chunk, score in found:
        assert abs(score - known.get(chunk, last)) <= 2 * tolerance


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history_ends_as_in_plain_lists(reopen: Reopen, seed: int) -> None:
    print("seed", seed)
    draw = random.Random(seed)
    index, other, plain = reopen(), reopen(), MemoryIndex(words)
    ids: dict[int, int] = {}  # chunk in the index -> in plain lists
    documents: dict[int, int] = {}
    for step in range(40):
        what = draw.random()
        writer = index if draw.random() < 0.5 else other
        if what < 0.6 or not documents:
            document, chunks = some_document(draw), some_chunks(draw)
            made = writer.put(document, chunks, vectors_of(chunks))
            documents[made] = plain.put(document, chunks, vectors_of(chunks))
            pairs = zip(writer.chunks_of(made), plain.chunks_of(documents[made]), strict=True)
            ids |= {a.id: b.id for a, b in pairs}
        elif what < 0.75:
            gone = draw.choice(list(documents))
            assert writer.remove([gone, 10**9]) == plain.remove([documents.pop(gone)]) == 1
        elif what < 0.9:
            known = draw.choice(writer.documents())
            tags = tuple(draw.sample(TAGS, 1))
            writer.update(replace(known, tags=tags))
            plain.update(replace(known, id=documents[known.id], tags=tags))
        else:
            there = [c for d in documents for c in writer.chunks_of(d)]
            if there:
                chunk = draw.choice(there)
                text = " ".join(draw.choices(VOCABULARY, k=5))
                writer.correct(chunk.id, text, EMBEDDER.passages([text])[0])
                plain.correct(ids[chunk.id], text, EMBEDDER.passages([text])[0])
        if step % 4:
            continue
        for reader in (index, other):
            assert reader.count() == plain.count()
            filters = some_filters(draw)
            theirs = filters
            if filters.documents:
                theirs = Filters(documents=tuple(documents.get(i, 10**9) for i in filters.documents))
            assert [d.source for d in reader.documents(filters)] == [d.source for d in plain.documents(theirs)]
            asked = " ".join(draw.choices(VOCABULARY, k=draw.randint(1, 5)))
            limit = draw.choice([1, 3, 100])
            vector_W = EMBEDDER.queries([asked])[0]
            found = [(ids[c], s) for c, s in reader.lexical(asked, limit, filters)]
            same_ranking(found, plain.lexical(asked, limit, theirs), 1e-6)
            assert reader.has_word(asked) == plain.has_word(asked)
            found = [(ids[c], s) for c, s in reader.dense(vector_W, limit, filters)]
            same_ranking(found, plain.dense(vector_W, limit, theirs), 0.01)
    fresh = reopen()
    for made, expected in documents.items():
        for a, b in zip(fresh.chunks_of(made), plain.chunks_of(expected), strict=True):
            assert (a.document, a.number) == (made, b.number)
            assert replace(a.chunk, original="", places=()) == replace(b.chunk, original="", places=())
    assert fresh.revision() == index.revision() > 0


def put(index: Index, name: str, *texts: str, **known: Any) -> int:
    document = StoredDocument(f"/x/{name}", name, "", 0, "text", **known)
    return index.put(document, [Chunk(text) for text in texts], EMBEDDER.passages(texts))


def test_a_document_comes_back_as_it_was_put(reopen: Reopen) -> None:
    index = reopen()
    place = Place(3, ((1.5, 2.0, 3.0, 4.5),), "Sheet 1", "B2:D9", (4, 7), (0, 9))
    chunk = Chunk("水 \ud800 a\0b", (place, Place(page=2)), ("第一章", "1.1"), 4, "table", 17, 2)
    document = StoredDocument(
        "/x", "n", "ab", 5, "pdf", 0, "/f", 1.25, 2.5, "T", "A", "2024", 7, "zh", ("t", "标"), ("n",), {"k": [1, None]}
    )
    made = index.put(document, [chunk], EMBEDDER.passages(["水"]))
    known = reopen().documents()[0]
    assert known == replace(document, id=made, chunks=1)
    stored = index.chunks_of(made)[0]
    assert stored.chunk == replace(chunk, text="水 ? a b")
    assert index.chunks([stored.id, 999, stored.id]) == [stored, stored]
    assert index.by_source(["/x", "/y"]) == index.by_content("ab") == index.by_name("n") == [known]
    assert index.by_source(["/y"]) == index.by_content("cd") == index.by_name("m") == []
    assert index.vectors([stored.id, 999])[stored.id] == pytest.approx(EMBEDDER.passages(["水"])[0], abs=0.01)


def test_files_under_a_folder_are_found_and_not_those_beside_it(reopen: Reopen) -> None:
    index = reopen()
    for name in ("a/1", "a/b/2", "ab/3", "a", "a0/4", "A/5", "a/中/6"):
        put(index, name, name)
    assert [d.name for d in index.under("/x/a")] == ["a/1", "a/b/2", "a/中/6"]
    assert [d.name for d in index.under("/x/a/")] == ["a/1", "a/b/2", "a/中/6"]


def test_sections_and_neighbours(reopen: Reopen) -> None:
    index = reopen()
    chunks = [Chunk(f"c{n}", section=n // 3) for n in range(8)]
    made = index.put(StoredDocument("/x", "x", "", 0, "text"), chunks, vectors_of(chunks))
    assert [c.chunk.text for c in index.section(made, 1)] == ["c3", "c4", "c5"]
    assert [c.number for c in index.chunks_between(made, 6, 99)] == [6, 7]


def test_several_sections_at_once_are_each_one_whole(reopen: Reopen) -> None:
    """Sections that end near the passage, and one that goes on far behind it, after it and before it."""
    index = reopen()
    lengths = (2, 1, 200, 70, 3)
    chunks = [Chunk(f"c{n}", section=section) for section, length in enumerate(lengths) for n in range(length)]
    for name in ("a", "b"):
        index.put(StoredDocument(f"/{name}", name, "", 0, "text"), chunks, vectors_of(chunks))
    asked = [
        c for d in index.documents() for c in index.chunks_of(d.id) if c.number in (0, 2, 3, 100, 202, 203, 272, 275)
    ]
    assert index.sections_of([]) == {}
    for some in (asked, asked[::-1], asked[2:3]):
        found = index.sections_of(some)
        assert set(found) == {(c.document, c.chunk.section) for c in some}
        assert all(section == index.section(*key) for key, section in found.items())


def test_words_and_vectors_of_chunks(reopen: Reopen) -> None:
    index, other = reopen(), reopen()
    put(index, "a", "lift of a wing, a wing", "热流过平板", "", title="Flows")
    ids = [c.id for c in index.chunks_of(index.documents()[0].id)]
    found = index.words_of([*ids[1:], ids[0], 10**9])
    expected = [frozenset(words(text)) for text in ("flows lift of a wing", "flows 热流过平板", "flows")]
    assert [found[i] for i in ids] == expected
    assert index.words_of([]) == {}
    queries_QW = EMBEDDER.queries(["wing", "热", "nothing of it"])
    assert index.dense_each(queries_QW, 3) == [index.dense(query_W, 3) for query_W in queries_QW]
    loaded, fresh = index.vectors([*ids, 999]), other.vectors([*ids, 999])  # out of memory, and out of the file
    assert loaded.keys() == fresh.keys() == set(ids)
    assert all(np.array_equal(loaded[i], fresh[i]) for i in ids)
    index.remove([index.documents()[0].id])
    assert index.vectors(ids) == index.words_of(ids) == {}


def test_what_replaces_a_document_takes_its_id_and_its_chunks_are_new(reopen: Reopen) -> None:
    index = reopen()
    made = put(index, "a", "alpha", "beta")
    before = [c.id for c in index.chunks_of(made)]
    assert put(index, "a", "gamma") == made
    assert index.count() == (1, 1)
    assert index.chunks(before) == []
    assert index.lexical("alpha", 5) == []
    assert [c for c, _ in index.lexical("gamma", 5)] == [c for c, _ in index.dense(EMBEDDER.queries(["gamma"])[0], 5)]
    assert min(c.id for c in index.chunks_of(made)) > max(before)


QUESTIONS = [
    "",
    " ",
    '"',
    "'; DROP TABLE chunks; --",
    "NEAR(a b)",
    "a* OR b:c",
    "^lift",
    "{text}: lift",
    "\0",
    "\ud800",
    "🛫",
    "ﬀ",
]
QUESTIONS += ["的" * 5000, "wing " * 3000, "(" * 99, "%s %d $1", "NOT lift", "-lift +wing", "lift\twing\nflow"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_any_text_is_a_question(reopen: Reopen, question: str) -> None:
    index = reopen()
    put(index, "a", "lift of a wing", 'near "quotes" 的')
    found = index.lexical(question, 10)
    assert all(score > 0 for _, score in found)
    if "lift" in question or "wing" in question:
        assert found


def test_an_empty_index_finds_nothing(reopen: Reopen) -> None:
    index = reopen()
    assert index.lexical("wing", 5) == index.dense(EMBEDDER.queries(["wing"])[0], 5) == index.documents() == []
    assert index.count() == (0, 0)
    made = put(index, "empty")  # a file without text
    assert index.chunks_of(made) == []
    assert index.dense(EMBEDDER.queries(["wing"])[0], 5) == []


def test_words_that_are_everywhere_are_still_found_by(reopen: Reopen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of postings is spent on rare words; a question of common words alone spends it all the same."""
    monkeypatch.setattr("tinyseek.knowledge.index.bm25.BUDGET", 10)
    index, plain = reopen(), MemoryBase(MemoryIndex(words), EMBEDDER)
    texts = [
        f"the wing of {name}" + " the" * (number % 3)
        for number, name in enumerate(("ash", "birch", "ash oak", "elm") * 5)
    ]
    put(index, "a", *texts)
    plain.put("a", list(texts))
    for question in ("the", "the wing of ash", "the oak", "wing of the elm birch"):
        same_ranking(index.lexical(question, 4), plain.index.lexical(question, 4), 1e-6)


def test_vectors_of_another_embedder_are_refused(reopen: Reopen) -> None:
    index = reopen()
    index.adopt(EMBEDDER.name, EMBEDDER.width, "elsewhere")
    with pytest.raises(UserError, match=r"hashed words.*not of other"):
        index.adopt("other", EMBEDDER.width)
    with pytest.raises(UserError, match="width"):
        index.adopt(EMBEDDER.name, 3)


def test_a_corrected_chunk_is_found_by_its_new_text_alone(reopen: Reopen) -> None:
    index, other = reopen(), reopen()
    made = put(index, "a", "a mistake", "something else")
    chunk = index.chunks_of(made)[0].id
    other.dense(EMBEDDER.queries(["x"])[0], 1)
    index.correct(chunk, "the truth", EMBEDDER.passages(["the truth"])[0])
    for reader in (index, other):
        assert reader.lexical("mistake", 5) == []
        assert reader.lexical("truth", 5)[0][0] == reader.dense(EMBEDDER.queries(["the truth"])[0], 1)[0][0] == chunk
    stored = index.chunks([chunk])[0].chunk
    assert (stored.text, stored.original, stored.corrected) == ("the truth", "a mistake", True)
    index.correct(chunk, "the whole truth", EMBEDDER.passages(["the whole truth"])[0])
    assert index.chunks([chunk])[0].chunk.original == "a mistake"
    with pytest.raises(UserError, match="no chunk"):
        index.correct(10**9, "x", EMBEDDER.passages(["x"])[0])


def test_a_closed_index_says_so(reopen: Reopen) -> None:
    index = reopen()
    index.close()
    with pytest.raises(UserError, match="closed"):
        index.count()
