"""Blocks of products in registers, against float64, over widths and counts around their vectors' and blocks' sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from numba import njit

from tinyseek.engine import tiles
from tinyseek.engine.tiles import TILE

Array = np.ndarray[Any, Any]
wide: Any = tiles
WIDTHS = (1, 5, 16, 24, 64, 257)


@njit
def times(w_PQ: Array, row: int, step: int, count: int, x_NQ: Array, out_M: Array) -> None:
    wide.times(w_PQ, row, step, count, x_NQ, out_M)


@njit
def times_both(w_PQ: Array, v_PR: Array, row: int, count: int, x_NQ: Array, y_NR: Array, out_M: Array) -> None:
    wide.times_both(w_PQ, v_PR, row, count, x_NQ, y_NR, out_M)


@njit
def add_rows(weight_NS: Array, first: int, count: int, rows_SQ: Array, row: int, step: int, out_NQ: Array) -> None:
    wide.add_rows(weight_NS, first, count, rows_SQ, row, step, out_NQ)


def some(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16])
def test_products_are_those_of_float64(rows: int) -> None:
    """What is beyond `count` rows is the last of them again, so no memory beyond a matrix is read."""
    rng = np.random.default_rng(rows)
    for width in WIDTHS:
        for count in range(1, TILE + 1):
            w, x, out = (
                some(rng, 3 + 2 * count, width),
                some(rng, rows, width),
                np.full(rows * TILE, np.nan, np.float32),
            )
            bits = (w.view(np.uint32) >> 16).astype(np.uint16)
            cut = (bits.astype(np.uint32) << 16).view(np.float32)
            for matrix, numbers in ((w, w), (bits, cut)):
                times(matrix, 3, 2, count, x, out)
                expected = x.astype(np.float64) @ numbers[3 : 3 + 2 * count : 2].T.astype(np.float64)
                beyond = np.repeat(expected[:, -1:], TILE - count, axis=1)
                np.testing.assert_allclose(out.reshape(rows, TILE), np.hstack([expected, beyond]), atol=2e-4)


def test_two_products_are_added_up() -> None:
    rng = np.random.default_rng(7)
    for rows, width, other in ((1, 64, 32), (4, 40, 8), (3, 16, 5)):
        w, v, x, y = some(rng, 9, width), some(rng, 9, other), some(rng, rows, width), some(rng, rows, other)
        out = np.empty(rows * TILE, np.float32)
        times_both(w, v, 5, 4, x, y, out)
        np.testing.assert_allclose(out.reshape(rows, TILE), x @ w[5:].T + y @ v[5:].T, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_weighted_rows_are_added(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for width in WIDTHS:
        for count in (0, 1, 7):
            weight, numbers, out = some(rng, rows, 10), some(rng, 2 + 3 * 7, width), some(rng, rows, width)
            expected = out.astype(np.float64) + weight[:, 2 : 2 + count].astype(np.float64) @ numbers[2::3][:count]
            add_rows(weight, 2, count, numbers, 2, 3, out)
            np.testing.assert_allclose(out, expected, atol=1e-4)
