"""What only the index on a server has: its graph, its errors, its collections."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from tinyseek.errors import UserError
from tinyseek.knowledge.index.base import Chunk, Filters, StoredDocument
from tinyseek.knowledge.options import IndexSettings

pytest.importorskip("psycopg")
import psycopg

from tinyseek.knowledge.index import postgres as on_server
from tinyseek.knowledge.index.postgres import PostgresIndex


def units(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.standard_normal((count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_graph_finds_what_a_look_at_all_finds(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_server, "_HNSW_FROM", 300)
    index, rng = PostgresIndex(postgres, uuid.uuid4().hex), np.random.default_rng(1)
    index.adopt("random", 16)
    known = {}
    for document in range(8):
        vectors_NW = units(rng, 100)
        made = index.put(
            StoredDocument(f"/{document}", f"{document}", "", 0, "text"),
            [Chunk(f"c{n}") for n in range(100)],
            vectors_NW,
        )
        known |= {c.id: vectors_NW[c.number] for c in index.chunks_of(made)}
    with index._read() as db:
        assert index._totals(db)["graph"]
        db.execute("SET LOCAL enable_seqscan = off")
        query = "EXPLAIN SELECT chunk FROM {vectors} ORDER BY vector <#> %s::vector LIMIT 5"
        plan = index._all(db, query, on_server._vector(np.ones(16, np.float32)))
        assert any("graph" in str(row) for row in plan)
    shares = []
    for query_W in units(rng, 20):
        expected = sorted(known, key=lambda chunk: -float(known[chunk] @ query_W))[:10]
        found = [chunk for chunk, _ in index.dense(query_W, 10)]
        shares.append(len(set(found) & set(expected)) / 10)
        assert len(index.dense(query_W, 10, Filters(names=("3",)))) == 10  # filters never leave too few
    assert np.mean(shares) > 0.95
    index.close()


def test_collections_are_listed_and_deleted(postgres: str) -> None:
    name = f"集合 {uuid.uuid4().hex[:8]}"
    index = PostgresIndex(postgres, name)
    assert name in on_server.collections(postgres)
    on_server.delete_collection(postgres, name)
    assert name not in on_server.collections(postgres)
    with pytest.raises(UserError, match="was deleted meanwhile"):
        index.count()
    index.close()


def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: object) -> None:
    where = "postgresql://me:secret@/base?host=/nowhere"
    for attempt in (lambda: PostgresIndex(where, "x"), lambda: on_server.collections(where)):
        with pytest.raises(UserError, match="does not answer") as told:
            attempt()
        assert "secret" not in str(told.value)
    with pytest.raises(UserError, match="no address of a server"):
        PostgresIndex("postgresql://[", "x")


def test_a_writer_that_waits_in_vain_says_so(postgres: str) -> None:
    name = uuid.uuid4().hex
    one, two = PostgresIndex(postgres, name), PostgresIndex(postgres, name, IndexSettings(wait_seconds=0.2))
    with one._write():
        with pytest.raises(UserError, match=r"another has been writing for 0.2 s"):
            two.remove([1])
        assert two.count() == (0, 0)
    assert two.remove([1]) == 0
    one.close()
    two.close()


def test_a_collection_of_another_form_says_what_to_do(postgres: str) -> None:
    older, other = uuid.uuid4().hex, uuid.uuid4().hex
    for name in (older, other):
        PostgresIndex(postgres, name).close()
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("UPDATE tinyseek.collections SET version = 0 WHERE name = %s", (older,))
    with pytest.raises(UserError, match=r"older tinyseek; drop the collection"):
        PostgresIndex(postgres, older)
    index = PostgresIndex(postgres, other)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"ALTER TABLE tinyseek.chunks_{index._n} DROP COLUMN overlap")
    with pytest.raises(UserError, match=r"another version of tinyseek.*overlap.*drop the collection"):
        index.chunks_of(1)
    index.close()
