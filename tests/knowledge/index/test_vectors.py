"""Vectors in memory against plain products, through random histories; the pre-selection by signs."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyseek.knowledge.index import vectors
from tinyseek.knowledge.index.vectors import Kind, Matrix, pack, quantize, unpack

WIDTH = 100  # no multiple of 64


def units(rng: np.random.Generator, count: int, around: float = 0.0) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, WIDTH)) + around * np.sin(np.arange(WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def add(matrix: Matrix, first: int, vectors_NW: NDArray[np.float32], kind: Kind, document: int = 1) -> None:
    count = len(vectors_NW)
    ids = np.arange(first, first + count)
    pages = np.stack([ids % 7, ids % 7 + 1], axis=1).astype(np.int32)
    matrix.add(ids, np.full(count, document), pages, np.ones(count, np.int32), pack(vectors_NW, kind))


def test_int8_is_near_and_keeps_the_length() -> None:
    vectors_NW = units(np.random.default_rng(0), 200)
    codes_NW, scales_N = quantize(vectors_NW)
    back_NW = codes_NW * scales_N[:, None]
    assert np.abs(back_NW - vectors_NW).max() < np.abs(vectors_NW).max() / 127
    assert np.linalg.norm(back_NW, axis=1) == pytest.approx(1, abs=1e-5)
    assert unpack(pack(vectors_NW, "float32"), WIDTH) == pytest.approx(vectors_NW, abs=1e-6)
    assert unpack(pack(vectors_NW, "int8"), WIDTH) == pytest.approx(back_NW, abs=1e-6)
    zeros_NW = np.zeros((2, WIDTH), np.float32)
    assert not unpack(pack(zeros_NW, "int8"), WIDTH).any()


@pytest.mark.parametrize("kind", ["int8", "float32"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history_ends_as_a_plain_product(kind: Kind, seed: int) -> None:
    print("seed", seed)
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    matrix = Matrix(WIDTH, kind)
    plain: dict[int, tuple[int, NDArray[np.float32]]] = {}
    following = 1
    for _ in range(120):
        what = draw.random()
        if what < 0.5 or not plain:
            vectors_NW = units(rng, draw.randint(1, 30))
            document = draw.randint(1, 5)
            add(matrix, following, vectors_NW, kind, document)
            plain |= {following + n: (document, row) for n, row in enumerate(vectors_NW)}
            following += len(vectors_NW) + draw.randint(0, 3)
        elif what < 0.8:
            first = draw.choice(list(plain))
            last = first + draw.randint(0, 40)
            matrix.drop(first, last)
            plain = {chunk: row for chunk, row in plain.items() if not first <= chunk <= last}
        else:
            chunk = draw.choice([*plain, 10**9])
            vector_1W = units(rng, 1)
            matrix.change(chunk, pack(vector_1W, kind)[0], 5)
            if chunk in plain:
                plain[chunk] = (plain[chunk][0], vector_1W[0])
        assert len(matrix) == len(plain)
        query_W = units(rng, 1)[0]
        documents = np.array(sorted(draw.sample(range(1, 6), 2)))
        pages = draw.choice([None, (2, 3)])
        allowed = {
            c: row @ query_W for c, (d, row) in plain.items() if d in documents and (not pages or 1 <= c % 7 <= 3)
        }
        expected = sorted(allowed.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
        found = matrix.search(query_W[None], 5, documents, pages)[0]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=0.005)
        everything = matrix.search(query_W[None], 1000)[0]
        assert {chunk for chunk, _ in everything} == set(plain)
        assert [s for _, s in everything] == sorted((s for _, s in everything), reverse=True)


def test_equals_come_in_the_order_of_their_age() -> None:
    matrix = Matrix(WIDTH, "int8")
    one_W = units(np.random.default_rng(0), 1)[0]
    add(matrix, 1, np.stack([one_W] * 20), "int8")
    assert [chunk for chunk, _ in matrix.search(one_W[None], 7)[0]] == [1, 2, 3, 4, 5, 6, 7]
    assert matrix.search(one_W[None], 0) == [[]]


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_signs_find_nearly_all_of_the_nearest(kind: Kind) -> None:
    """Vectors that crowd around one direction, as embedders make them; rows added, struck out and moved meanwhile."""
    rng = np.random.default_rng(3)
    topics_TW = units(rng, 400, 1.0)
    exact, fast = Matrix(WIDTH, kind), Matrix(WIDTH, kind, approximate_from=30_000)
    following = 1
    for _ in range(8):
        rows_NW = topics_TW[rng.integers(400, size=6000)] + 0.06 * rng.standard_normal((6000, WIDTH))
        rows_NW = (rows_NW / np.linalg.norm(rows_NW, axis=1, keepdims=True)).astype(np.float32)
        for matrix in (exact, fast):
            add(matrix, following, rows_NW, kind)
            matrix.drop(following, following + 500)
        following += 6000
    shares = []
    for topic_W in topics_TW[:60]:
        expected = [chunk for chunk, _ in exact.search(topic_W[None], 10)[0]]
        found = fast.search(topic_W[None], 10)[0]
        assert all(chunk % 6000 == 0 or chunk % 6000 > 501 for chunk, _ in found)
        shares.append(len(set(expected) & {chunk for chunk, _ in found}) / 10)
    print("share", np.mean(shares))
    assert np.mean(shares) > 0.93
    begun = time.thread_time()
    exact.search(topics_TW[:1], 10)
    middle = time.thread_time()
    fast.search(topics_TW[:1], 10)
    print("ms", (middle - begun) * 1e3, (time.thread_time() - middle) * 1e3)


@pytest.mark.parametrize("rows", [1, 255, 256, 1000])
def test_bytes_in_a_compiled_loop_are_plain_products(rows: int) -> None:
    products = pytest.importorskip("tinyseek.knowledge.index.byte_products").products
    seed = rows
    rng = np.random.default_rng(seed)
    codes_NW = rng.integers(-127, 128, (rows, 384)).astype(np.int8)
    queries_QW = rng.normal(size=(3, 384)).astype(np.float32)
    found_QN = products(codes_NW, queries_QW)
    expected_QN = queries_QW.astype(np.float64) @ codes_NW.T.astype(np.float64)
    np.testing.assert_allclose(found_QN, expected_QN, rtol=1e-5, atol=0.02, err_msg=f"seed {seed}")
    for query_W, found_N in zip(queries_QW, found_QN, strict=True):  # the same bits in any company
        np.testing.assert_array_equal(products(codes_NW, query_W[None])[0], found_N)


def test_large_indexes_take_the_compiled_loop_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tinyseek.knowledge.index.byte_products")
    rng = np.random.default_rng(5)
    codes_NW = rng.integers(-127, 128, (700, 64)).astype(np.int8)
    queries_QW = rng.normal(size=(2, 64)).astype(np.float32)
    plain_QN = vectors._products(codes_NW, queries_QW)
    monkeypatch.setattr(vectors, "_COMPILED_FROM", 1)
    np.testing.assert_allclose(vectors._products(codes_NW, queries_QW), plain_QN, rtol=1e-5, atol=0.01)
