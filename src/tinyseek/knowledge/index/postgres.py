"""The index on a PostgreSQL server with pgvector: one collection for several users and machines.

The same as in one file, by a server's means: vectors are pgvector's, looked through one by one, and from a size on by its HNSW
graph; words are postings (word, chunk, count), and BM25 is a sum over them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge import segment
from tinyseek.knowledge.chunks import searched
from tinyseek.knowledge.index import bm25
from tinyseek.knowledge.index.base import ALL, Chunk, Filters, StoredChunk, StoredDocument
from tinyseek.knowledge.index.filters import Facts, admitted, restricts
from tinyseek.knowledge.index.postgres_server import Connection, Row, Server
from tinyseek.knowledge.index.postgres_server import collections as collections
from tinyseek.knowledge.index.postgres_server import delete_collection as delete_collection
from tinyseek.knowledge.index.rows import (
    CHUNK,
    CHUNK_COLUMNS,
    DOCUMENT,
    DOCUMENT_COLUMNS,
    FACTS,
    chunk_values,
    corrected,
    document_values,
    pages_of,
    read_chunk,
    read_document,
    read_facts,
)
from tinyseek.knowledge.index.stored import NEAR, StoredIndex
from tinyseek.knowledge.options import IndexSettings

DEFAULT = IndexSettings()
_HNSW_FROM = 50_000  # chunks


class PostgresIndex(StoredIndex):
    """One collection on a server."""

    def __init__(self, where: str, collection: str, settings: IndexSettings = DEFAULT) -> None:
        """Connect, and make the collection if it is not there; its tables come with the first vectors' width.

        Args:
            where: postgresql://user@host/database.
        Raises:
            UserError: no such server, or it has no pgvector, or may not be written.
        """
        self._server = Server(where, collection, settings.wait_seconds)
        self._read, self._write, self._own = self._server.read, self._server.write, self._server.own
        self._all, self._many, self._n = self._server.all, self._server.many, self._server.number

    def close(self) -> None:
        """End the connections."""
        self._server.close()

    @property
    def _shown(self) -> str:
        return self._server.shown

    # ---- writing ----

    def _embedder(self) -> tuple[str, int, str] | None:
        with self._read() as db:
            return self._embedder_of(db)

    def _embedder_of(self, db: Connection) -> tuple[str, int, str] | None:
        row = db.execute("SELECT embedder FROM tinyseek.collections WHERE id = %s", (self._n,)).fetchone()
        return (row["embedder"][0], row["embedder"][1], row["embedder"][2]) if row and row["embedder"] else None

    def _claim(self, embedder: str, width: int, where: str) -> tuple[str, int, str]:
        with self._write() as db:
            known = self._embedder_of(db)
            if known is None:
                known = (embedder, width, where)
                db.execute(self._own(f"ALTER TABLE {{vectors}} ALTER COLUMN vector TYPE vector({int(width)})"))
                said = "UPDATE tinyseek.collections SET embedder = %s::jsonb WHERE id = %s"
                db.execute(said, (json.dumps(known), self._n))
        return known

    def _store(
        self, document: StoredDocument, chunks: Sequence[Chunk], texts: list[list[str]], vectors_NW: NDArray[np.float32]
    ) -> int:
        document = replace(document, chunks=len(chunks))
        with self._write() as db:
            row = db.execute(self._own("SELECT id FROM {documents} WHERE source = %s"), (document.source,)).fetchone()
            if row is not None:
                self._forget(db, [row["id"]])
                self._set(db, replace(document, id=row["id"]))
            else:
                marks = ", ".join(["%s"] * (len(DOCUMENT_COLUMNS) - 1))
                made = f"INSERT INTO {{documents}} ({', '.join(DOCUMENT_COLUMNS[1:])}) VALUES ({marks}) RETURNING id"
                row = db.execute(self._own(made), document_values(document)).fetchone()
            assert row is not None
            known = int(row["id"])
            self._insert(db, known, chunks, texts, vectors_NW)
            self._counted(db)
        self._build_graph()
        return known

    def _insert(
        self,
        db: Connection,
        document: int,
        chunks: Sequence[Chunk],
        texts: Sequence[Sequence[str]],
        vectors_NW: NDArray[np.float32],
    ) -> None:
        if not chunks:
            return
        numbers = self._all(
            db,
            "SELECT nextval(pg_get_serial_sequence('{chunks}', 'id')) AS id FROM generate_series(1, %s)",
            len(chunks),
        )
        ids = [int(row["id"]) for row in numbers]
        rows = [
            (i, document, number, *chunk_values(chunk))
            for number, (i, chunk) in enumerate(zip(ids, chunks, strict=True))
        ]
        self._many(db, f"COPY {{chunks}} ({CHUNK}) FROM STDIN", rows)
        placed = [(i, document, *pages_of(c), _vector(v)) for i, c, v in zip(ids, chunks, vectors_NW, strict=True)]
        self._many(db, "COPY {vectors} (chunk, document, first, last, vector) FROM STDIN", placed)
        self._post(db, ids, texts)

    def _post(self, db: Connection, ids: Sequence[int], texts: Sequence[Sequence[str]]) -> None:
        """Write the words of chunks down."""
        counts = Counter(word for words in texts for word in set(words))
        terms = sorted(counts)
        known = self._all(
            db,
            "INSERT INTO {terms} AS t (term, chunks) SELECT * FROM unnest(%s::text[], %s::int[])"
            " ON CONFLICT (term) DO UPDATE SET chunks = t.chunks + excluded.chunks RETURNING id, term",
            terms,
            [counts[term] for term in terms],
        )
        numbers = {row["term"]: row["id"] for row in known}
        postings = [
            (numbers[word], i, count, len(words))
            for i, words in zip(ids, texts, strict=True)
            for word, count in Counter(words).items()
        ]
        self._many(db, "COPY {postings} (term, chunk, count, length) FROM STDIN", postings)
        self._total(db, len(ids), sum(map(len, texts)))

    def _unpost(self, db: Connection, ids: Sequence[int]) -> None:
        """Take the words of chunks back."""
        row = self._all(
            db,
            "WITH gone AS (DELETE FROM {postings} WHERE chunk = ANY(%s) RETURNING term, count),"
            " fewer AS (UPDATE {terms} AS t SET chunks = t.chunks - g.n"
            "   FROM (SELECT term, count(*) AS n FROM gone GROUP BY term) AS g WHERE t.id = g.term)"
            " SELECT coalesce(sum(count), 0) AS words FROM gone",
            list(ids),
        )[0]
        self._total(db, -len(ids), -int(row["words"]))

    def _total(self, db: Connection, chunks: int, words: int) -> None:
        changed = "UPDATE tinyseek.collections SET chunks = chunks + %s, words = words + %s WHERE id = %s"
        db.execute(changed, (chunks, words, self._n))

    def _counted(self, db: Connection) -> None:
        """One more change."""
        db.execute(
            self._own(
                "UPDATE tinyseek.collections SET revision = revision + 1, documents = (SELECT count(*) FROM {documents})"
                " WHERE id = %s"
            ),
            (self._n,),
        )

    def _forget(self, db: Connection, documents: Sequence[int]) -> None:
        rows = self._all(db, "DELETE FROM {chunks} WHERE document = ANY(%s) RETURNING id", list(documents))
        ids = [row["id"] for row in rows]
        if ids:
            db.execute(self._own("DELETE FROM {vectors} WHERE chunk = ANY(%s)"), (ids,))
            self._unpost(db, ids)

    def update(self, document: StoredDocument) -> None:
        with self._write() as db:
            row = db.execute(self._own("SELECT chunks FROM {documents} WHERE id = %s"), (document.id,)).fetchone()
            if row is not None:
                self._set(db, replace(document, chunks=row["chunks"]))
                self._counted(db)

    def _set(self, db: Connection, document: StoredDocument) -> None:
        changes = ", ".join(f"{name} = %s" for name in DOCUMENT_COLUMNS[1:])
        db.execute(
            self._own(f"UPDATE {{documents}} SET {changes} WHERE id = %s"), (*document_values(document), document.id)
        )

    def remove(self, documents: Sequence[int]) -> int:
        with self._write() as db:
            self._forget(db, documents)
            gone = db.execute(self._own("DELETE FROM {documents} WHERE id = ANY(%s)"), (list(documents),)).rowcount
            self._counted(db)
        return gone

    def correct(self, chunk: int, text: str, vector_W: NDArray[np.float32]) -> None:
        with self._write() as db:
            row = db.execute(self._own(f"SELECT {CHUNK} FROM {{chunks}} WHERE id = %s"), (chunk,)).fetchone()
            if row is None:
                raise UserError(f"there is no chunk {chunk} any more: its file has changed")
            new = corrected(read_chunk(row).chunk, text)
            title = self._all(db, "SELECT title FROM {documents} WHERE id = %s", row["document"])[0]["title"]
            self._unpost(db, [chunk])
            self._post(db, [chunk], [segment.words(searched(new, title))])
            changes = ", ".join(f"{name} = %s" for name in CHUNK_COLUMNS[3:])
            db.execute(self._own(f"UPDATE {{chunks}} SET {changes} WHERE id = %s"), (*chunk_values(new), chunk))
            db.execute(self._own("UPDATE {vectors} SET vector = %s WHERE chunk = %s"), (_vector(vector_W), chunk))
            self._counted(db)

    def _build_graph(self) -> None:
        """Once there are so many chunks, look for neighbours by a graph."""
        row = self._collection()
        if row["graph"] or row["chunks"] < _HNSW_FROM:
            return
        with self._write() as db:
            db.execute(
                self._own(
                    "CREATE INDEX IF NOT EXISTS graph_{n} ON {vectors} USING hnsw (vector vector_ip_ops)".replace(
                        "{n}", str(self._n)
                    )
                )
            )
            db.execute("UPDATE tinyseek.collections SET graph = true WHERE id = %s", (self._n,))

    # ---- reading ----

    def under(self, folder: str) -> list[StoredDocument]:
        return self._documents_where("starts_with(source, ?)", folder.rstrip("/") + "/")

    def _documents_where(self, condition: str, *values: Any) -> list[StoredDocument]:
        with self._read() as db:
            query = f'SELECT {DOCUMENT} FROM {{documents}} WHERE {condition.replace("?", "%s")} ORDER BY name COLLATE "C", id'
            return [read_document(row) for row in self._all(db, query, *values)]

    def _documents_among(self, column: str, values: Sequence[Any]) -> list[StoredDocument]:
        return self._documents_where(f"{column} = ANY(?)", list(values))

    def _chunks_where(self, condition: str, *values: Any) -> list[StoredChunk]:
        with self._read() as db:
            rows = self._all(
                db, f"SELECT {CHUNK} FROM {{chunks}} WHERE {condition.replace('?', '%s')} ORDER BY number", *values
            )
        return [read_chunk(row) for row in rows]

    def _chunks_among(self, ids: Sequence[int]) -> list[StoredChunk]:
        return self._chunks_where("id = ANY(?)", list(ids))

    def _chunks_near(self, wanted: Sequence[StoredChunk]) -> list[StoredChunk]:
        with self._read() as db:
            rows = self._all(
                db,
                f"SELECT {CHUNK} FROM unnest(%s::bigint[], %s::int[], %s::int[]) AS w (of, part, around) JOIN {{chunks}}"
                f" ON document = of AND section = part AND number BETWEEN around - {NEAR} AND around + {NEAR}"
                " ORDER BY document, number",
                [stored.document for stored in wanted],
                [stored.chunk.section for stored in wanted],
                [stored.number for stored in wanted],
            )
        return [read_chunk(row) for row in rows]

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        with self._read() as db:
            rows = self._all(
                db,
                "SELECT p.chunk, array_agg(t.term) AS words FROM {postings} AS p JOIN {terms} AS t ON t.id = p.term"
                " WHERE p.chunk = ANY(%s) GROUP BY p.chunk",
                list(ids),
            )
        return {row["chunk"]: frozenset(row["words"]) for row in rows}

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        with self._read() as db:
            rows = self._all(db, "SELECT chunk, vector::float4[] AS v FROM {vectors} WHERE chunk = ANY(%s)", list(ids))
        return {row["chunk"]: np.array(row["v"], np.float32) for row in rows}

    def count(self) -> tuple[int, int]:
        row = self._collection()
        return row["documents"], row["chunks"]

    def revision(self) -> int:
        return int(self._collection()["revision"])

    def _collection(self) -> Row:
        with self._read() as db:
            return self._totals(db)

    def _totals(self, db: Connection) -> Row:
        query = "SELECT documents, chunks, words, revision, graph FROM tinyseek.collections WHERE id = %s"
        row = db.execute(query, (self._n,)).fetchone()
        if row is None:
            raise UserError(f"{self._shown}: the collection was deleted meanwhile")
        return row

    # ---- searching ----

    def lexical(self, words: str, limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        asked = list(dict.fromkeys(segment.words(words)))
        if not asked or limit < 1:
            return []
        with self._read() as db:
            totals = self._totals(db)
            rows = self._all(db, "SELECT id, term, chunks FROM {terms} WHERE term = ANY(%s)", asked)
            question = bm25.Question.of(asked, {row["term"]: row["chunks"] for row in rows}, totals["chunks"])
            if not question.sought:
                return []
            numbers = {row["term"]: row["id"] for row in rows}
            average = totals["words"] / max(totals["chunks"], 1)
            condition, values = self._condition(db, filters)
            sought, weights = dict(question.sought), {**question.sought, **question.common}
            if question.common:  # two steps: by the rare words, then by all
                most = max(bm25.CANDIDATES, 2 * limit)
                found = self._scored(db, sought, numbers, average, most, condition, values)
                condition, values = "p.chunk = ANY(%s)", [[chunk for chunk, _ in found]]
            return self._scored(db, weights, numbers, average, limit, condition, values)

    def has_word(self, words: str) -> bool:
        asked = segment.words(words)
        with self._read() as db:
            return bool(self._all(db, "SELECT 1 FROM {terms} WHERE term = ANY(%s) AND chunks > 0 LIMIT 1", asked))

    def _scored(
        self,
        db: Connection,
        weights: dict[str, float],
        numbers: dict[str, int],
        average: float,
        limit: int,
        condition: str,
        values: Sequence[Any],
    ) -> list[tuple[int, float]]:
        """The best chunks by some words."""
        join = "JOIN {vectors} AS v ON v.chunk = p.chunk" if "v." in condition else ""
        rows = self._all(
            db,
            "SELECT p.chunk, sum(q.weight * p.count / (p.count + %s + %s * p.length)) AS score"
            " FROM unnest(%s::int[], %s::float8[]) AS q (term, weight)"
            f" JOIN {{postings}} AS p ON p.term = q.term {join} WHERE {condition}"
            " GROUP BY p.chunk ORDER BY score DESC, p.chunk LIMIT %s",
            bm25.K1 * (1 - bm25.B),
            bm25.K1 * bm25.B / max(average, 1e-9),
            [numbers[word] for word in weights],
            list(weights.values()),
            *values,
            limit,
        )
        return [(row["chunk"], float(row["score"])) for row in rows]

    def dense(self, vector_W: NDArray[np.float32], limit: int, filters: Filters = ALL) -> list[tuple[int, float]]:
        if limit < 1:
            return []
        with self._read() as db:
            condition, values = self._condition(db, filters)
            if condition != "true":
                db.execute("SET LOCAL enable_indexscan = off")  # the graph does not know the filters; a scan does
            elif self._totals(db)["graph"]:
                db.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(min(max(2 * limit, 100), 1000)),))
            query = "SELECT chunk, v.vector <#> %s::vector AS away FROM {vectors} AS v"
            rows = self._all(
                db,
                f"{query} WHERE {condition.replace('p.', 'v.')} ORDER BY away LIMIT %s",
                _vector(vector_W),
                *values,
                limit,
            )
        return sorted(((row["chunk"], -float(row["away"])) for row in rows), key=lambda pair: (-pair[1], pair[0]))

    def _condition(self, db: Connection, filters: Filters) -> tuple[str, list[Any]]:
        """What filters ask of `v`, a row of vectors."""
        conditions: list[str] = []
        values: list[Any] = []
        if restricts(filters):
            light: list[Facts] = [read_facts(row) for row in self._all(db, f"SELECT {FACTS} FROM {{documents}}")]
            conditions.append("v.document = ANY(%s)")
            values.append(admitted(light, filters))
        if filters.pages:
            conditions.append("v.first BETWEEN 1 AND %s AND v.last >= %s")
            values += [filters.pages[1], filters.pages[0]]
        return " AND ".join(conditions) or "true", values


def _vector(vector_W: NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, np.asarray(vector_W, np.float32).tolist())) + "]"
