"""A small encoder's forward pass over weights of four bits, as loops that numba compiles for processors that multiply bytes (VNNI).

The whole layer of a token but for its look at other tokens is one walk over a block of tokens, in the caches nearest to a core:
attention, its output, the norm, both halves of the MLP, the norm, the next layer's queries, keys and values. Activations are bytes
with a scale for each 32 (llama.cpp's Q8_0), weights bytes made from Q4_0 without loss; sums of bytes are exact.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

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


def _forget_stale() -> None:
    """Delete compiled loops older than either file: numba looks at a loop's own file alone, not at what it calls."""
    here = Path(__file__).parent
    newest = max((here / f"encoder_{name}.py").stat().st_mtime for name in ("intrinsics", "loops"))
    for kept in (here / "__pycache__").glob("encoder_loops.*.nbi"):
        with contextlib.suppress(OSError):  # another process has done so
            if kept.stat().st_mtime < newest:
                kept.unlink()


_forget_stale()

_FAST = {"reassoc", "contract", "arcp", "nsz"}
compiled = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
parallel = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy", parallel=PARALLEL)

BLOCK = 240  # tokens at most that are carried through a layer together: their bytes and a matrix fit into 2 MB
_ONE, _NEVER = np.float32(1), np.float32(-1e30)

# What queries' weights are multiplied with beforehand: scores are then ready for a softmax in powers of two.
QUERY_FACTOR = float(np.log2(np.e) / np.sqrt(GROUP))


class Matrix(NamedTuple):
    """Matrices of all layers, each a bias and panels of 32 outputs in the order in which `dots` reads them.

    Attributes:
        codes_LPGW: int8, W = 1024; start_LPGO, scale_LPGO: int32 and float32, O = 32.
        bias_LQ: float32.
    """

    codes_LPGW: Array
    start_LPGO: Array
    scale_LPGO: Array
    bias_LQ: Array


class Weights(NamedTuple):
    """An encoder's weights as the loops want them: L layers, heads of 32 numbers.

    Attributes:
        table_VGB: the words' vectors as they lie in a file of Q4_0: uint8 [V, D / 32, 18].
        positions_TD: float32, what else is added: the kind of text with it.
        norm_2D, out_norm_L2D, down_norm_L2D: float32, each norm's scale and shift.
        qkv: queries' heads, then keys', then values'; queries times QUERY_FACTOR.
    """

    table_VGB: Array
    positions_TD: Array
    norm_2D: Array
    qkv: Matrix
    out: Matrix
    out_norm_L2D: Array
    up: Matrix
    down: Matrix
    down_norm_L2D: Array
    eps: Any


def matrix(codes_LQR: NDArray[np.int8], scale_LQG: NDArray[np.float32], bias_LQ: NDArray[np.float32]) -> Matrix:
    """Bring matrices [Q outputs, R inputs] into the order in which they are read.

    Args:
        codes_LQR: the weights divided by their scales; scale_LQG: of each 32 inputs.
    """
    layers, outputs, groups = scale_LQG.shape
    codes = codes_LQR.reshape(layers, outputs // GROUP, GROUP, groups, GROUP)
    start = -128 * codes.sum(-1, dtype=np.int32).swapaxes(2, 3)
    packed = codes.reshape(*codes.shape[:-1], GROUP // 4, 4).transpose(0, 1, 3, 4, 2, 5)
    scale = scale_LQG.reshape(*codes.shape[:-1]).swapaxes(2, 3)
    return Matrix(
        np.ascontiguousarray(packed).reshape(layers, outputs // GROUP, groups, GROUP * GROUP),
        np.ascontiguousarray(start),
        np.ascontiguousarray(scale),
        np.ascontiguousarray(bias_LQ),
    )


@compiled
def _of(stack: Any, layer: int) -> Any:
    """One layer's matrix: codes, starts, scales, bias."""
    codes_LPGW, start_LPGO, scale_LPGO, bias_LQ = stack
    return codes_LPGW[layer], start_LPGO[layer], scale_LPGO[layer], bias_LQ[layer]


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
    first: int, last: int, codes_ND: Array, scale_NG: Array, qkv: Any, q_HNK: Array, k_HKN: Array, v_HNK: Array
) -> None:
    """Queries, keys and values: a panel of weights is a head of one of them. Keys are written as columns, for `floats`."""
    codes, start, scale, bias = qkv
    heads = q_HNK.shape[0]
    tile = np.empty((TILE, GROUP), np.float32)
    tiles = (last - first) // TILE
    for head in range(heads):
        q_NK, k_KN, v_NK = q_HNK[head], k_HKN[head], v_HNK[head]
        for n in range(first, last, TILE):
            wide.ask_for(codes, heads + head, (n - first) // TILE, tiles)
            wide.dots(codes_ND, scale_NG, n, codes, start, scale, bias, head, q_NK, n, 0)
        for n in range(first, last, TILE):
            wide.ask_for(codes, 2 * heads + head, (n - first) // TILE, tiles)
            wide.dots(codes_ND, scale_NG, n, codes, start, scale, bias, heads + head, tile, 0, 0)
            for i in range(GROUP):
                for t in range(TILE):
                    k_KN[i, n + t] = tile[t, i]
        for n in range(first, last, TILE):
            wide.ask_for(codes, head + 1, (n - first) // TILE, tiles)
            wide.dots(codes_ND, scale_NG, n, codes, start, scale, bias, 2 * heads + head, v_NK, n, 0)


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
    seen, tile = np.empty((TILE, longest + GROUP), np.float32), np.empty((TILE, GROUP), np.float32)
    for head in range(q_HNK.shape[0]):
        q_NK, k_KN, v_NK = q_HNK[head], k_HKN[head], v_HNK[head]
        text = np.searchsorted(starts_S, first, side="right") - 1
        while text < starts_S.shape[0] - 1 and starts_S[text] < last:
            begin, length = starts_S[text], starts_S[text + 1] - starts_S[text]
            whole = (length + GROUP - 1) // GROUP * GROUP
            own_last = min(last, begin + length)
            for n in range(max(first, begin), own_last, TILE):
                for key in range(0, length, GROUP):
                    wide.floats(q_NK, n, GROUP, k_KN, 0, begin + key, seen, 0, key)
                rows = min(TILE, own_last - n)
                for t in range(rows):
                    for key in range(length, whole):
                        seen[t, key] = _NEVER
                    scale_NG[n + t, head] = _ONE / wide.soften(seen, t, whole)
                wide.floats(seen, 0, length, v_NK, begin, 0, tile, 0, 0)
                for t in range(rows):
                    scale_NG[n + t, head] *= wide.to_bytes(tile, t, 0, codes_ND, n + t, GROUP * head)
            text += 1


@compiled
def _settle(
    first: int, last: int, y_ND: Array, norm_2D: Array, eps: Any, x_ND: Array, codes_ND: Array, scale_NG: Array
) -> None:
    """x = norm(x + y), and the same as bytes."""
    for n in range(first, last):
        for d in range(x_ND.shape[1]):
            x_ND[n, d] += y_ND[n - first, d]
        _normed(x_ND[n], norm_2D, eps)
        for g in range(scale_NG.shape[1]):
            scale_NG[n, g] = wide.to_bytes(x_ND, n, GROUP * g, codes_ND, n, GROUP * g)


@compiled
def _feed(first: int, last: int, codes_ND: Array, scale_NG: Array, up: Any, down: Any, y_ND: Array) -> None:
    """y = down gelu(up x): what is between lives as bytes alone."""
    codes, start, scale, bias = up
    rows, inner = last - first, bias.shape[0]
    inner_codes, inner_scale = np.empty((rows, inner), np.uint8), np.empty((rows, inner // GROUP), np.float32)
    tile = np.empty((TILE, GROUP), np.float32)
    for panel in range(inner // GROUP):
        for n in range(0, rows, TILE):
            wide.ask_for(codes, panel + 1, n // TILE, rows // TILE)
            wide.dots(codes_ND, scale_NG, first + n, codes, start, scale, bias, panel, tile, 0, 0)
            for t in range(TILE):
                inner_scale[n + t, panel] = wide.gelu_to_bytes(tile, t, 0, inner_codes, n + t, GROUP * panel)
    _times(0, rows, inner_codes, inner_scale, down, y_ND)


@compiled
def _times(first: int, last: int, codes_ND: Array, scale_NG: Array, matrix: Any, y_ND: Array) -> None:
    """y[0] = matrix x[first], and so on."""
    codes, start, scale, bias = matrix
    for panel in range(codes.shape[0]):
        for n in range(first, last, TILE):
            wide.ask_for(codes, panel + 1, (n - first) // TILE, (last - first) // TILE)
            wide.dots(codes_ND, scale_NG, n, codes, start, scale, bias, panel, y_ND, n - first, GROUP * panel)


@parallel
def _run(
    blocks: int,
    ids_N: Array,
    place_N: Array,
    starts_S: Array,
    longest: int,
    table_VGB: Array,
    positions_TD: Array,
    norm_2D: Array,
    qkv: Any,
    out: Any,
    out_norm_L2D: Array,
    up: Any,
    down: Any,
    down_norm_L2D: Array,
    eps: Any,
    x_ND: Array,
) -> None:
    """See `forward`; the tokens are cut into so many blocks, one after the other if there are more than threads."""
    tokens, width = x_ND.shape
    layers, heads, tiles = down_norm_L2D.shape[0], width // GROUP, tokens // TILE
    codes_ND, scale_NG = np.empty((tokens, width), np.uint8), np.empty((tokens, heads), np.float32)
    q_HNK = np.empty((heads, tokens + TILE, GROUP), np.float32)
    columns = (tokens + GROUP + 15) // 16 | 1  # an odd number of cache lines: rows of keys do not fall on each other
    # Two of each in turn: others may still read a layer's keys when a block is at the next layer's.
    k_2HKN = np.zeros((2, heads, GROUP, 16 * columns), np.float32)
    v_2HNK = np.empty((2, heads, tokens, GROUP), np.float32)
    for block in prange(blocks):
        first, last = TILE * (block * tiles // blocks), TILE * ((block + 1) * tiles // blocks)
        gather(table_VGB, ids_N, first, last, x_ND)
        for n in range(first, last):
            for d in range(width):
                x_ND[n, d] += positions_TD[place_N[n], d]
            _normed(x_ND[n], norm_2D, eps)
            for g in range(heads):
                scale_NG[n, g] = wide.to_bytes(x_ND, n, GROUP * g, codes_ND, n, GROUP * g)
        _project(first, last, codes_ND, scale_NG, _of(qkv, 0), q_HNK, k_2HKN[0], v_2HNK[0])
    for layer in range(layers):
        now, then = layer % 2, (layer + 1) % 2
        for block in prange(blocks):
            first, last = TILE * (block * tiles // blocks), TILE * ((block + 1) * tiles // blocks)
            y_ND = np.empty((last - first, width), np.float32)
            _attend(first, last, starts_S, longest, q_HNK, k_2HKN[now], v_2HNK[now], codes_ND, scale_NG)
            _times(first, last, codes_ND, scale_NG, _of(out, layer), y_ND)
            _settle(first, last, y_ND, out_norm_L2D[layer], eps, x_ND, codes_ND, scale_NG)
            _feed(first, last, codes_ND, scale_NG, _of(up, layer), _of(down, layer), y_ND)
            _settle(first, last, y_ND, down_norm_L2D[layer], eps, x_ND, codes_ND, scale_NG)
            if layer + 1 < layers:
                following = _of(qkv, layer + 1)
                _project(first, last, codes_ND, scale_NG, following, q_HNK, k_2HKN[then], v_2HNK[then])


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
    where: tuple[Any, ...] = (blocks, padded, place, starts_S, int(lengths.max()))
    # Inside of parallel loops numba knows plain tuples alone.
    run: Any = _run
    run(*where, *(tuple(part) if isinstance(part, Matrix) else part for part in weights), x_ND)
    return x_ND[:count]
