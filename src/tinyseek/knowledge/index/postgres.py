"""The index on a PostgreSQL server with pgvector: one collection for several users and machines.

The same as in one file, by a server's means: every change is a transaction that holds the collection's own row, so that writers
come one after the other and readers are never kept waiting; vectors are pgvector's, looked through one by one, and from a size on
by its HNSW graph; words are postings (word, chunk, count), and BM25 is a sum over them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge import segment
from tinyseek.knowledge.chunks import searched
from tinyseek.knowledge.index import bm25
from tinyseek.knowledge.index.base import ALL, NEAR, Chunk, Filters, Index, StoredChunk, StoredDocument, whole
from tinyseek.knowledge.index.filters import Facts, admitted, restricts
from tinyseek.knowledge.index.rows import (
    CHUNK,
    CHUNK_COLUMNS,
    DOCUMENT,
    DOCUMENT_COLUMNS,
    FACTS,
    chunk_values,
    corrected,
    document_values,
    facts_of,
    pages_of,
    read_chunk,
    read_document,
    read_facts,
)
from tinyseek.knowledge.options import IndexSettings

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import DictRow, dict_row
    from psycopg.types.json import Jsonb
except ImportError:
    raise UserError("an index on PostgreSQL needs psycopg: pip install 'tinyseek[postgres]'") from None

Connection = psycopg.Connection[DictRow]
DEFAULT = IndexSettings()
_VERSION = 1
_IDLE = 4  # connections kept
_HNSW_FROM = 50_000  # chunks
_COMMON = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS tinyseek;
CREATE TABLE IF NOT EXISTS tinyseek.collections (
    id serial PRIMARY KEY, name text NOT NULL UNIQUE, version int NOT NULL, embedder jsonb, revision bigint NOT NULL DEFAULT 0,
    documents bigint NOT NULL DEFAULT 0, chunks bigint NOT NULL DEFAULT 0, words bigint NOT NULL DEFAULT 0,
    graph bool NOT NULL DEFAULT false
);
"""
_TABLES = """
CREATE TABLE tinyseek.documents_{n} (
    id bigserial PRIMARY KEY, source text NOT NULL UNIQUE, name text NOT NULL, sha256 text NOT NULL, size bigint NOT NULL,
    kind text NOT NULL, folder text NOT NULL, modified float8 NOT NULL, added float8 NOT NULL, title text NOT NULL,
    author text NOT NULL, date text NOT NULL, pages int, language text NOT NULL, tags text NOT NULL, notes text NOT NULL,
    details text NOT NULL, chunks int NOT NULL
);
CREATE INDEX ON tinyseek.documents_{n} (sha256);
CREATE INDEX ON tinyseek.documents_{n} (name);
CREATE TABLE tinyseek.chunks_{n} (
    id bigserial PRIMARY KEY, document bigint NOT NULL, number int NOT NULL, section int NOT NULL, kind text NOT NULL,
    text text NOT NULL, path text NOT NULL, places text NOT NULL, tokens int NOT NULL, overlap int NOT NULL,
    corrected int NOT NULL, original text NOT NULL, UNIQUE (document, number)
);
CREATE TABLE tinyseek.vectors_{n} (
    chunk bigint PRIMARY KEY, document bigint NOT NULL, first int NOT NULL, last int NOT NULL, vector vector NOT NULL
);
ALTER TABLE tinyseek.vectors_{n} ALTER COLUMN vector SET STORAGE plain;
CREATE INDEX ON tinyseek.vectors_{n} (document);
CREATE TABLE tinyseek.terms_{n} (id serial PRIMARY KEY, term text NOT NULL UNIQUE, chunks int NOT NULL);
CREATE TABLE tinyseek.postings_{n} (
    term int NOT NULL, chunk bigint NOT NULL, count int NOT NULL, length int NOT NULL, PRIMARY KEY (term, chunk)
);
CREATE INDEX ON tinyseek.postings_{n} (chunk);
"""
_KINDS_OF_TABLE = ("documents", "chunks", "vectors", "terms", "postings")


class PostgresIndex(Index):
    """One collection on a server."""

    def __init__(self, where: str, collection: str, settings: IndexSettings = DEFAULT) -> None:
        """Connect, and make the collection if it is not there; its tables come with the first vectors' width.

        Args:
            where: postgresql://user@host/database.
        Raises:
            UserError: no such server, or it has no pgvector, or may not be written.
        """
        self._where, self._name, self._settings = where, collection, settings
        self._pooling = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        try:
            conninfo_to_dict(where)
        except psycopg.Error:
            raise UserError("index.where: is no address of a server; write postgresql://user@host/database") from None
        with self._told(), self._connected() as db:
            self._n = self._prepared(db)

    def _prepared(self, db: Connection) -> int:
        """The collection's number, its tables made."""
        with db.transaction():
            # One at a time: of two that make the same schema at once one would fail.
            db.execute("SELECT pg_advisory_xact_lock(hashtext('tinyseek'))")
            if db.execute("SELECT to_regclass('tinyseek.collections') AS there").fetchone() == {"there": None}:
                db.execute(_sql(_COMMON))
            row = db.execute("SELECT id, version FROM tinyseek.collections WHERE name = %s", (self._name,)).fetchone()
            if row is None:
                made = "INSERT INTO tinyseek.collections (name, version) VALUES (%s, %s) RETURNING id, version"
                row = db.execute(made, (self._name, _VERSION)).fetchone()
                assert row is not None
                db.execute(_sql(_TABLES.format(n=row["id"])))
        if row["version"] > _VERSION:
            raise UserError(f"{self._shown}: was written by a newer tinyseek (version {row['version']} of the index)")
        return int(row["id"])

    @property
    def _shown(self) -> str:
        """The server and collection, without a password."""
        return f"{_shown(self._where)}, collection {self._name}"

    # ---- connections ----

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise UserError(f"{self._shown}: {self._meaning(error)}") from error

    def _meaning(self, error: psycopg.Error) -> str:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return f"another has been writing for {self._settings.wait_seconds:g} s; try again when it is done"
        if isinstance(error, psycopg.errors.DiskFull):
            return "no space left on the server's disk; nothing was half-written: free some and run the same again"
        if isinstance(error, psycopg.errors.UndefinedFile | psycopg.errors.FeatureNotSupported):
            return f"the server has no pgvector ({line}); install it there (Debian: postgresql-NN-pgvector)"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return f"this user may not do that ({line}); pgvector is installed by: CREATE EXTENSION vector"
        if isinstance(error, psycopg.errors.UndefinedTable):
            return "the collection was deleted meanwhile"
        if isinstance(error, psycopg.OperationalError):
            return f"the server does not answer ({line})"
        raise error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection; one that an error hit is not used again."""
        if self._closed:
            raise UserError(f"{self._shown}: is closed")
        with self._pooling:
            db = self._idle.pop() if self._idle else None
        if db is None:
            db = psycopg.connect(self._where, autocommit=True, row_factory=dict_row, connect_timeout=10)
            db.execute("SELECT set_config('lock_timeout', %s, false)", (str(int(self._settings.wait_seconds * 1000)),))
        keep = False
        try:
            yield db
            keep = not db.closed
        except UserError:
            keep = not db.closed
            raise
        finally:
            with self._pooling:
                keep = keep and not self._closed and len(self._idle) < _IDLE
                if keep:
                    self._idle.append(db)
            if not keep:
                db.close()

    @contextlib.contextmanager
    def _write(self) -> Iterator[Connection]:
        """One transaction, alone in this collection."""
        with self._told(), self._connected() as db, db.transaction():
            held = db.execute("SELECT id FROM tinyseek.collections WHERE id = %s FOR UPDATE", (self._n,)).fetchone()
            if held is None:
                raise UserError(f"{self._shown}: the collection was deleted meanwhile")
            yield db

    @contextlib.contextmanager
    def _read(self) -> Iterator[Connection]:
        """A view of one moment."""
        with self._told(), self._connected() as db, db.transaction():
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield db

    def close(self) -> None:
        """End the connections."""
        with self._pooling:
            self._closed = True
            for db in self._idle:
                db.close()
            self._idle.clear()

    def _own(self, query: str) -> LiteralString:
        """A query with this collection's tables, which are numbered: {chunks} is tinyseek.chunks_7."""
        for kind in _KINDS_OF_TABLE:
            query = query.replace("{" + kind + "}", f"tinyseek.{kind}_{self._n}")
        return _sql(query)

    def _all(self, db: Connection, query: str, *values: Any) -> list[DictRow]:
        return db.execute(self._own(query), values).fetchall()

    def _many(self, db: Connection, query: str, rows: Sequence[Sequence[Any]]) -> None:
        with db.cursor() as cursor, cursor.copy(self._own(query)) as copy:
            for row in rows:
                copy.write_row(row)

    # ---- writing ----

    def adopt(self, embedder: str, width: int, where: str = "") -> None:
        known = self._embedder()
        if known is None:
            with self._write() as db:
                known = self._embedder_of(db)
                if known is None:
                    known = (embedder, width, where)
                    db.execute(self._own(f"ALTER TABLE {{vectors}} ALTER COLUMN vector TYPE vector({int(width)})"))
                    said = "UPDATE tinyseek.collections SET embedder = %s WHERE id = %s"
                    db.execute(said, (Jsonb(list(known)), self._n))
        if known[:2] != (embedder, width):
            raise UserError(
                f"{self._shown}: its vectors are of the embedder {known[0]} (width {known[1]}), not of {embedder} (width {width}); "
                "use that one, or add the documents to another collection"
            )

    def embedder(self) -> str | None:
        known = self._embedder()
        return known[2] if known else None

    def _embedder(self) -> tuple[str, int, str] | None:
        with self._read() as db:
            return self._embedder_of(db)

    def _embedder_of(self, db: Connection) -> tuple[str, int, str] | None:
        row = db.execute("SELECT embedder FROM tinyseek.collections WHERE id = %s", (self._n,)).fetchone()
        return (row["embedder"][0], row["embedder"][1], row["embedder"][2]) if row and row["embedder"] else None

    def put(self, document: StoredDocument, chunks: Sequence[Chunk], vectors_NW: NDArray[np.float32]) -> int:
        if len(chunks) != len(vectors_NW):
            raise ValueError(f"{len(chunks)} chunks, {len(vectors_NW)} vectors")
        texts = [segment.words(searched(chunk, document.title)) for chunk in chunks]  # before others are kept waiting
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
        with self._told(), self._connected() as db:
            row = db.execute("SELECT chunks, graph FROM tinyseek.collections WHERE id = %s", (self._n,)).fetchone()
        if row is None or row["graph"] or row["chunks"] < _HNSW_FROM:
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

    def documents(self, filters: Filters = ALL) -> list[StoredDocument]:
        if filters.documents:
            found = self._documents_where("id = ANY(%s)", list(filters.documents))
        else:
            found = self._documents_where("true")
        if not restricts(filters):
            return found
        kept = set(admitted(map(facts_of, found), filters))
        return [document for document in found if document.id in kept]

    def by_source(self, sources: Sequence[str]) -> list[StoredDocument]:
        return self._documents_where("source = ANY(%s)", list(sources))

    def by_content(self, sha256: str) -> list[StoredDocument]:
        return self._documents_where("sha256 = %s", sha256)

    def by_name(self, name: str) -> list[StoredDocument]:
        return self._documents_where("name = %s", name)

    def under(self, folder: str) -> list[StoredDocument]:
        return self._documents_where("starts_with(source, %s)", folder.rstrip("/") + "/")

    def _documents_where(self, condition: str, *values: Any) -> list[StoredDocument]:
        with self._read() as db:
            query = f'SELECT {DOCUMENT} FROM {{documents}} WHERE {condition} ORDER BY name COLLATE "C", id'
            return [read_document(row) for row in self._all(db, query, *values)]

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        with self._read() as db:
            rows = self._all(db, f"SELECT {CHUNK} FROM {{chunks}} WHERE id = ANY(%s)", list(ids))
        found = {row["id"]: read_chunk(row) for row in rows}
        return [found[i] for i in ids if i in found]

    def chunks_of(self, document: int) -> list[StoredChunk]:
        return self._chunks_where("document = %s", document)

    def chunks_between(self, document: int, first: int, last: int) -> list[StoredChunk]:
        return self._chunks_where("document = %s AND number BETWEEN %s AND %s", document, first, last)

    def section(self, document: int, section: int) -> list[StoredChunk]:
        return self._chunks_where("document = %s AND section = %s", document, section)

    def sections_of(self, chunks: Sequence[StoredChunk]) -> dict[tuple[int, int], list[StoredChunk]]:
        wanted = {(stored.document, stored.chunk.section): stored for stored in chunks}
        found: dict[tuple[int, int], list[StoredChunk]] = {key: [] for key in wanted}
        with self._read() as db:
            rows = self._all(
                db,
                f"SELECT {CHUNK} FROM unnest(%s::bigint[], %s::int[], %s::int[]) AS w (of, part, around) JOIN {{chunks}}"
                f" ON document = of AND section = part AND number BETWEEN around - {NEAR} AND around + {NEAR}"
                " ORDER BY document, number",
                [document for document, _ in wanted],
                [section for _, section in wanted],
                [stored.number for stored in wanted.values()],
            )
        for stored in map(read_chunk, rows):
            found[stored.document, stored.chunk.section].append(stored)
        return {key: near if whole(near, wanted[key]) else self.section(*key) for key, near in found.items()}

    def words_of(self, ids: Sequence[int]) -> dict[int, frozenset[str]]:
        with self._read() as db:
            rows = self._all(
                db,
                "SELECT p.chunk, array_agg(t.term) AS words FROM {postings} AS p JOIN {terms} AS t ON t.id = p.term"
                " WHERE p.chunk = ANY(%s) GROUP BY p.chunk",
                list(ids),
            )
        return {row["chunk"]: frozenset(row["words"]) for row in rows}

    def _chunks_where(self, condition: str, *values: int) -> list[StoredChunk]:
        with self._read() as db:
            rows = self._all(db, f"SELECT {CHUNK} FROM {{chunks}} WHERE {condition} ORDER BY number", *values)
        return [read_chunk(row) for row in rows]

    def vectors(self, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        with self._read() as db:
            rows = self._all(db, "SELECT chunk, vector::float4[] AS v FROM {vectors} WHERE chunk = ANY(%s)", list(ids))
        return {row["chunk"]: np.array(row["v"], np.float32) for row in rows}

    def count(self) -> tuple[int, int]:
        row = self._collection()
        return row["documents"], row["chunks"]

    def revision(self) -> int:
        return int(self._collection()["revision"])

    def _collection(self) -> DictRow:
        with self._read() as db:
            return self._totals(db)

    def _totals(self, db: Connection) -> DictRow:
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
            " FROM unnest(%s::int[], %s::float8[]) AS q (term, weight) JOIN {postings} AS p ON p.term = q.term "
            f"{join} WHERE {condition} GROUP BY p.chunk ORDER BY score DESC, p.chunk LIMIT %s",
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


def collections(where: str) -> list[str]:
    """The collections on a server, by name.

    Raises:
        UserError: it does not answer.
    """
    with _on_server(where) as db:
        if db.execute("SELECT to_regclass('tinyseek.collections') AS there").fetchone() == {"there": None}:
            return []
        return sorted(row["name"] for row in db.execute("SELECT name FROM tinyseek.collections"))


def delete_collection(where: str, name: str) -> None:
    """Delete a collection's tables, all at once."""
    with _on_server(where) as db, db.transaction():
        row = db.execute("DELETE FROM tinyseek.collections WHERE name = %s RETURNING id", (name,)).fetchone()
        if row is not None:
            for kind in _KINDS_OF_TABLE:
                db.execute(_sql(f"DROP TABLE IF EXISTS tinyseek.{kind}_{row['id']}"))


@contextlib.contextmanager
def _on_server(where: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(where, autocommit=True, row_factory=dict_row, connect_timeout=10) as db:
            yield db
    except psycopg.Error as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_shown(where)}: the server does not answer ({line})") from None


def _shown(where: str) -> str:
    """A server without its password."""
    try:
        known = conninfo_to_dict(where)
    except psycopg.Error:
        return "the address of the PostgreSQL server"
    return f"PostgreSQL at {known.get('host') or 'this computer'}, database {known.get('dbname') or 'of its user'}"


def _sql(query: str) -> LiteralString:
    """A query that is put together here, of this file's text and whole numbers alone."""
    return query  # mypy takes LiteralString for str


def _vector(vector_W: NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, np.asarray(vector_W, np.float32).tolist())) + "]"
