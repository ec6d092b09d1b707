"""A small encoder's forward pass over weights of four bits, as loops that numba compiles for processors that multiply bytes (VNNI).

The whole layer of a token but for its look at other tokens is one walk over a block of tokens, in the caches nearest to a core:
attention, its output, the norm, both halves of the MLP, the norm, the next layer's queries, keys and values. Activations are bytes
with a scale for each 32 (llama.cpp's Q8_0), weights bytes made from Q4_0 without loss; sums of bytes are exact.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from tinyseek.model import encoder_intrinsics
from tinyseek.model.encoder_intrinsics import GROUP, TILE

Array = np.ndarray[Any, Any]
wide: Any = encoder_intrinsics  # what they take is known to numba alone

# Threads through OpenMP: a parallel loop starts in two microseconds, and several threads may be in one at a time.
PARALLEL = importlib.util.find_spec("numba.np.ufunc.omppool") is not None
if PARALLEL:
    settings: Any = numba.config  # its settings are made at run time, unseen by type checkers
    settings.THREADING_LAYER = "omp"

_FAST = {"reassoc", "contract", "arcp", "nsz"}
compiled = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
parallel = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy", parallel=PARALLEL)

BLOCK = (
    240  # tokens at most that are carried through a layer together: their bytes and a matrix fit a core's cache of 2 MB
)
_ONE, _HALF, _NEVER = np.float32(1), np.float32(0.5), np.float32(-1e30)
_LOG2_E = np.float32(1.4426950408889634)
_ERF = (
    4.30638e-5,
    2.765672e-4,
    1.520143e-4,
    9.2705272e-3,
    0.0422820123,
    0.0705230784,
    1.0,
)  # Abramowitz and Stegun 7.1.28

Matrix = tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.float32]]  # weights, starts, scales: see `dots`


@dataclass(frozen=True)
class Weights:
    """An encoder's weights as the loops want them, L layers, heads of 32 numbers.

    Attributes:
        table: the words' vectors as they lie in the file, uint8 [V, D / 32, 18] (Q4_0).
        positions_TD: float32, what else is added: the kind of text with it. Norms float32 [2, D]: scale and shift.
    """

    table_VGB: NDArray[np.uint8]
    positions_TD: NDArray[np.float32]
    embedding_norm_2D: NDArray[np.float32]
    qkv: Matrix
    qkv_bias_LP: NDArray[np.float32]
    out: Matrix
    out_bias_LD: NDArray[np.float32]
    out_norm_L2D: NDArray[np.float32]
    up: Matrix
    up_bias_LI: NDArray[np.float32]
    down: Matrix
    down_bias_LD: NDArray[np.float32]
    down_norm_L2D: NDArray[np.float32]
    eps: float


def panels(codes_PQ: NDArray[np.int8], scale_PG: NDArray[np.float32]) -> Matrix:
    """A matrix in the order in which `dots` reads it.

    Args:
        codes_PQ: the weights divided by their scales; scale_PG: of each 32 inputs.
    """
    outputs, groups = scale_PG.shape
    codes = codes_PQ.reshape(outputs // GROUP, GROUP, groups, GROUP)
    sums = codes.sum(-1, dtype=np.int32).transpose(0, 2, 1)
    packed = codes.reshape(outputs // GROUP, GROUP, groups, GROUP // 4, 4).transpose(0, 2, 3, 1, 4)
    return (
        np.ascontiguousarray(packed).reshape(outputs // GROUP, groups, GROUP * GROUP),
        np.ascontiguousarray(-128 * sums),
        np.ascontiguousarray(scale_PG.reshape(outputs // GROUP, GROUP, groups).transpose(0, 2, 1)),
    )


@compiled
def _gelu(x: Any) -> Any:
    """x times the normal distribution up to x, within 4e-7: erfc(z) = (1 + a1 z + ... + a6 z^6)^-16."""
    z = abs(x) * np.float32(0.7071067811865476)
    series = np.float32(_ERF[0])
    for i in range(1, 7):
        series = series * z + np.float32(_ERF[i])
    tail = series * series
    tail *= tail
    tail *= tail
    tail *= tail
    return _HALF * (x + abs(x) - abs(x) / tail)


@compiled
def gather(table_VGB: Array, ids_N: Array, first: int, last: int, out_ND: Array) -> None:
    """out[n] = the table's row ids[n], out of Q4_0: a scale in half precision, then 16 bytes: 0 to 15 low, 16 to 31 high."""
    for n in range(first, last):
        for g in range(table_VGB.shape[1]):
            group = table_VGB[ids_N[n], g]
            scale = wide.half(np.uint16(group[0]) | np.uint16(np.uint16(group[1]) << np.uint16(8)))
            for i in range(16):
                byte = group[2 + i]
                out_ND[n, GROUP * g + i] = np.float32(np.int32(byte & 15) - 8) * scale
                out_ND[n, GROUP * g + 16 + i] = np.float32(np.int32(byte >> 4) - 8) * scale


@compiled
def _normed(x_D: Array, norm_2D: Array, eps: Any) -> None:
    """Layer norm, in place."""
    width = x_D.shape[0]
    mean = np.float32(0)
    for d in range(width):
        mean += x_D[d]
    mean /= np.float32(width)
    variance = np.float32(0)
    for d in range(width):
        variance += (x_D[d] - mean) * (x_D[d] - mean)
    inverse = _ONE / np.sqrt(variance / np.float32(width) + eps)
    for d in range(width):
        x_D[d] = (x_D[d] - mean) * inverse * norm_2D[0, d] + norm_2D[1, d]


@compiled
def _project(
    first: int,
    last: int,
    codes_ND: Array,
    scale_NG: Array,
    matrix: Any,
    bias_P: Array,
    q_HNK: Array,
    k_HKN: Array,
    v_HNK: Array,
) -> None:
    """Queries, keys and values: a panel of weights is a head of one of them. Keys are written as columns, for `floats`."""
    heads = q_HNK.shape[0]
    tile = np.empty((TILE, GROUP), np.float32)
    scale = np.float32(1 / np.sqrt(GROUP)) * _LOG2_E  # softmax in powers of two
    for panel in range(3 * heads):
        head, bias = panel % heads, bias_P[GROUP * panel : GROUP * panel + GROUP]
        for n in range(first, last, TILE):
            wide.dots(codes_ND, scale_NG, n, matrix[0], matrix[1], matrix[2], panel, tile, 0, 0)
            for t in range(TILE):
                if panel < heads:
                    for i in range(GROUP):
                        q_HNK[head, n + t, i] = (tile[t, i] + bias[i]) * scale
                elif panel < 2 * heads:
                    for i in range(GROUP):
                        k_HKN[head, i, n + t] = tile[t, i] + bias[i]
                else:
                    for i in range(GROUP):
                        v_HNK[head, n + t, i] = tile[t, i] + bias[i]


@compiled
def _attend(
    first: int,
    last: int,
    starts_S: Array,
    longest: int,
    q_HNK: Array,
    k_HKN: Array,
    v_HNK: Array,
    codes_ND: Array,
    scale_NG: Array,
) -> None:
    """What the tokens `first` to `last` see of their own texts, as bytes. Text s is the tokens starts[s] to starts[s + 1]."""
    weights, tile = np.empty((TILE, longest + GROUP), np.float32), np.empty((TILE, GROUP), np.float32)
    inverse = np.empty(TILE, np.float32)
    text = np.searchsorted(starts_S, first, side="right") - 1
    while text < starts_S.shape[0] - 1 and starts_S[text] < last:
        begin, length = starts_S[text], starts_S[text + 1] - starts_S[text]
        whole = -(-length // GROUP) * GROUP
        own_first, own_last = max(first, begin), min(last, begin + length)
        for head in range(q_HNK.shape[0]):
            for n in range(own_first, own_last, TILE):
                rows = min(TILE, own_last - n)
                for key in range(0, length, GROUP):
                    wide.floats(q_HNK[head], n, GROUP, k_HKN[head], 0, begin + key, weights, 0, key)
                for t in range(rows):
                    weights[t, length:whole] = _NEVER
                    inverse[t] = _ONE / wide.soften(weights, t, whole)
                wide.floats(weights, 0, length, v_HNK[head], begin, 0, tile, 0, 0)
                for t in range(rows):
                    scale_NG[n + t, head] = wide.to_bytes(tile, t, 0, codes_ND, n + t, GROUP * head) * inverse[t]
        text += 1


@compiled
def _settle(
    first: int,
    last: int,
    y_ND: Array,
    bias_D: Array,
    norm_2D: Array,
    eps: Any,
    x_ND: Array,
    codes_ND: Array,
    scale_NG: Array,
) -> None:
    """x = norm(x + y + bias), and the same as bytes."""
    for n in range(first, last):
        for d in range(x_ND.shape[1]):
            x_ND[n, d] += y_ND[n - first, d] + bias_D[d]
        _normed(x_ND[n], norm_2D, eps)
        for g in range(scale_NG.shape[1]):
            scale_NG[n, g] = wide.to_bytes(x_ND, n, GROUP * g, codes_ND, n, GROUP * g)


@compiled
def _feed(
    first: int, last: int, codes_ND: Array, scale_NG: Array, up: Any, up_bias_I: Array, down: Any, y_ND: Array
) -> None:
    """y = down gelu(up x + bias): what is between lives as bytes alone."""
    rows, inner = last - first, up_bias_I.shape[0]
    inner_codes, inner_scale = np.empty((rows, inner), np.uint8), np.empty((rows, inner // GROUP), np.float32)
    tile = np.empty((TILE, GROUP), np.float32)
    for panel in range(inner // GROUP):
        bias = up_bias_I[GROUP * panel : GROUP * panel + GROUP]
        for n in range(0, rows, TILE):
            wide.dots(codes_ND, scale_NG, first + n, up[0], up[1], up[2], panel, tile, 0, 0)
            for t in range(TILE):
                for i in range(GROUP):
                    tile[t, i] = _gelu(tile[t, i] + bias[i])
                inner_scale[n + t, panel] = wide.to_bytes(tile, t, 0, inner_codes, n + t, GROUP * panel)
    for panel in range(down[0].shape[0]):
        for n in range(0, rows, TILE):
            wide.dots(inner_codes, inner_scale, n, down[0], down[1], down[2], panel, y_ND, n, GROUP * panel)


@parallel
def _run(
    blocks: int,
    ids_N: Array,
    place_N: Array,
    starts_S: Array,
    longest: int,
    table_VGB: Array,
    positions_TD: Array,
    embedding_norm_2D: Array,
    qkv: Any,
    qkv_bias_LP: Array,
    out: Any,
    out_bias_LD: Array,
    out_norm_L2D: Array,
    up: Any,
    up_bias_LI: Array,
    down: Any,
    down_bias_LD: Array,
    down_norm_L2D: Array,
    eps: Any,
    x_ND: Array,
) -> None:
    """See `forward`; the tokens are cut into so many blocks, one after the other if there are more than threads."""
    tokens, width = x_ND.shape
    layers, heads, tiles = qkv_bias_LP.shape[0], width // GROUP, tokens // TILE
    codes_ND, scale_NG = np.empty((tokens, width), np.uint8), np.empty((tokens, heads), np.float32)
    q_HNK = np.empty((heads, tokens + TILE, GROUP), np.float32)
    columns = (tokens + GROUP + 15) // 16 | 1  # an odd number of cache lines: rows of keys do not fall on each other
    k_2HKN = np.zeros((2, heads, GROUP, 16 * columns), np.float32)
    v_2HNK = np.empty((2, heads, tokens, GROUP), np.float32)
    for block in prange(blocks):
        first, last = TILE * (block * tiles // blocks), TILE * ((block + 1) * tiles // blocks)
        gather(table_VGB, ids_N, first, last, x_ND)
        for n in range(first, last):
            for d in range(width):
                x_ND[n, d] += positions_TD[place_N[n], d]
            _normed(x_ND[n], embedding_norm_2D, eps)
            for g in range(heads):
                scale_NG[n, g] = wide.to_bytes(x_ND, n, GROUP * g, codes_ND, n, GROUP * g)
        first_qkv = (qkv[0][0], qkv[1][0], qkv[2][0])
        _project(first, last, codes_ND, scale_NG, first_qkv, qkv_bias_LP[0], q_HNK, k_2HKN[0], v_2HNK[0])
    for layer in range(layers):
        now, then = (
            layer % 2,
            (layer + 1) % 2,
        )  # others may still read this layer's keys when a block is at the next one's
        for block in prange(blocks):
            first, last = TILE * (block * tiles // blocks), TILE * ((block + 1) * tiles // blocks)
            y_ND = np.empty((last - first, width), np.float32)
            own_out = (out[0][layer], out[1][layer], out[2][layer])
            own_up = (up[0][layer], up[1][layer], up[2][layer])
            own_down = (down[0][layer], down[1][layer], down[2][layer])
            _attend(first, last, starts_S, longest, q_HNK, k_2HKN[now], v_2HNK[now], codes_ND, scale_NG)
            for panel in range(heads):
                for n in range(first, last, TILE):
                    wide.dots(
                        codes_ND, scale_NG, n, own_out[0], own_out[1], own_out[2], panel, y_ND, n - first, GROUP * panel
                    )
            _settle(first, last, y_ND, out_bias_LD[layer], out_norm_L2D[layer], eps, x_ND, codes_ND, scale_NG)
            _feed(first, last, codes_ND, scale_NG, own_up, up_bias_LI[layer], own_down, y_ND)
            _settle(first, last, y_ND, down_bias_LD[layer], down_norm_L2D[layer], eps, x_ND, codes_ND, scale_NG)
            if layer + 1 < layers:
                next_qkv = (qkv[0][layer + 1], qkv[1][layer + 1], qkv[2][layer + 1])
                _project(
                    first, last, codes_ND, scale_NG, next_qkv, qkv_bias_LP[layer + 1], q_HNK, k_2HKN[then], v_2HNK[then]
                )


def forward(weights: Weights, ids_N: NDArray[np.int64], starts_S: NDArray[np.int64]) -> NDArray[np.float32]:
    """Hidden states [N, D] of texts that lie one after the other.

    Args:
        ids_N: all texts' token ids; starts_S: where each text begins, and at the end N.
    """
    count, lengths = len(ids_N), np.diff(starts_S)
    tokens = -(-count // TILE) * TILE
    padded, place = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
    padded[:count] = ids_N
    place[:count] = np.arange(count) - np.repeat(starts_S[:-1], lengths)
    threads = numba.get_num_threads() if PARALLEL else 1
    blocks = min(threads * -(-tokens // (threads * BLOCK)), tokens // TILE)
    x_ND = np.empty((tokens, weights.positions_TD.shape[1]), np.float32)
    w = weights
    _run(
        blocks,
        padded,
        place,
        starts_S,
        int(lengths.max()),
        w.table_VGB,
        w.positions_TD,
        w.embedding_norm_2D,
        w.qkv,
        w.qkv_bias_LP,
        w.out,
        w.out_bias_LD,
        w.out_norm_L2D,
        w.up,
        w.up_bias_LI,
        w.down,
        w.down_bias_LD,
        w.down_norm_L2D,
        np.float32(w.eps),
        x_ND,
    )
    return x_ND[:count]
