"""Matrix products of a few rows with a large weight, as loops that numba compiles, in every format that a weight is kept in.

Decoding multiplies each weight with one row of a stream, or a handful: the time is that of reading the weights from memory,
so fewer bytes a weight are more tokens a second. A row of weights is widened in registers, on its way into the sum; with several
rows of x it is widened once and used by all.

A weight [P, Q] is a tuple of arrays, whose types choose the loops at compile time (formats: quantize.py):

    float32   (w_PQ,)                           bfloat16  (w_PQ as uint16,)
    int8      (w_PQ, scale_P float32)           int4      (w_PJ two in a byte, J = Q/2; scale_PG, least_PG float16 as uint16)
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

from tinyseek.engine import intrinsics, tiles
from tinyseek.engine.intrinsics import BYTES
from tinyseek.engine.tiles import TILE

# Threads through OpenMP, whose pool is then the one that torch already has: a parallel loop starts in two microseconds. Without it
# the loops run on one thread; numba's own pool may not be entered by two threads at once, which a server would do.
PARALLEL = importlib.util.find_spec("numba.np.ufunc.omppool") is not None
if PARALLEL:
    settings: Any = numba.config  # its settings are made at run time, unseen by type checkers
    settings.THREADING_LAYER = "omp"


def _forget_stale() -> None:
    """Delete compiled loops older than any of the loops' files: numba looks at a loop's own file alone, not at what it calls."""
    here = Path(__file__).parent
    newest = max(
        file.stat().st_mtime
        for name in ("intrinsics", "tiles", "products", "*loops")
        for file in here.glob(f"{name}.py")
    )
    for kept in (here / "__pycache__").glob("*.nbi"):
        with contextlib.suppress(OSError):  # another process has done so
            if kept.stat().st_mtime < newest:
                kept.unlink()


_forget_stale()

wide: Any = intrinsics  # what they take is known to numba alone
blocks: Any = tiles
Array = np.ndarray[Any, Any]
Number = Any  # a float of Python or of NumPy
Weight = Any  # a tuple of arrays, as above

# Sums may be reordered (that is what lets them run in vector registers), but a NaN stays a NaN.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_ZERO = np.float32(0.0)
# Division by zero gives infinity as in NumPy: Python's check for it would keep a loop out of the vector registers.
compiled = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
parallel = njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy", parallel=PARALLEL)


def _format(weight: Any) -> str:
    """Which format a weight's numba type is."""
    names = {numba.float32: "float32", numba.uint16: "bfloat16", numba.int8: "int8", numba.uint8: "int4"}
    return names[weight.types[0].dtype]


def dot(weight: Weight, row: int, x_Q: Array, sums_G: Array) -> Number:
    """One row of the weight times x. `sums_G`: of each 32 numbers of x, for int4 (see `group_sums`)."""
    raise NotImplementedError  # numba takes `_dot`


@overload(dot, jit_options={"fastmath": _FAST, "nogil": True})
def _dot(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:
    def float32(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:
        w_Q, total = weight[0][row], _ZERO
        for q in range(x_Q.shape[0]):
            total += w_Q[q] * x_Q[q]
        return total

    def bfloat16(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:
        w_Q, total = weight[0][row], _ZERO
        for q in range(x_Q.shape[0]):
            total += wide.bfloat16(w_Q[q]) * x_Q[q]
        return total

    def int8(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:
        w_Q, total = weight[0][row], _ZERO
        for q in range(x_Q.shape[0]):
            total += wide.int8(w_Q[q]) * x_Q[q]
        return total * weight[1][row]

    def int4(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:
        return wide.int4_dot(weight[0][row], weight[1][row], weight[2][row], x_Q, sums_G)

    return {"float32": float32, "bfloat16": bfloat16, "int8": int8, "int4": int4}[_format(weight)]


def widen(weight: Weight, row: int, out_Q: Array) -> Array:
    """One row of the weight as float32: written to `out_Q`, or where it is float32 the row itself."""
    raise NotImplementedError  # numba takes `_widen`


@overload(widen, jit_options={"fastmath": _FAST, "nogil": True})
def _widen(weight: Any, row: Any, out_Q: Any) -> Any:
    def float32(weight: Any, row: Any, out_Q: Any) -> Any:
        return weight[0][row]

    def bfloat16(weight: Any, row: Any, out_Q: Any) -> Any:
        w_Q = weight[0][row]
        for q in range(out_Q.shape[0]):
            out_Q[q] = wide.bfloat16(w_Q[q])
        return out_Q

    def int8(weight: Any, row: Any, out_Q: Any) -> Any:
        w_Q, scale = weight[0][row], weight[1][row]
        for q in range(out_Q.shape[0]):
            out_Q[q] = wide.int8(w_Q[q]) * scale
        return out_Q

    def int4(weight: Any, row: Any, out_Q: Any) -> Any:
        w_J, scale_G, least_G = weight[0][row], weight[1][row], weight[2][row]
        for pair in range(w_J.shape[0] // BYTES):
            low_scale, low_least = wide.float16(scale_G[2 * pair]), wide.float16(least_G[2 * pair])
            high_scale, high_least = wide.float16(scale_G[2 * pair + 1]), wide.float16(least_G[2 * pair + 1])
            for i in range(BYTES):
                byte = w_J[pair * BYTES + i]
                out_Q[2 * pair * BYTES + i] = wide.low(byte) * low_scale + low_least
                out_Q[2 * pair * BYTES + BYTES + i] = wide.high(byte) * high_scale + high_least
        return out_Q

    return {"float32": float32, "bfloat16": bfloat16, "int8": int8, "int4": int4}[_format(weight)]


def part(stack: Weight, index: int, first: int, last: int) -> Weight:
    """Rows `first` to `last` of one weight in a stack of them."""
    raise NotImplementedError  # numba takes `_part`


@overload(part, jit_options={"nogil": True})
def _part(stack: Any, index: Any, first: Any, last: Any) -> Any:
    def one(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last],)

    def two(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last], stack[1][index, first:last])

    def three(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last], stack[1][index, first:last], stack[2][index, first:last])

    return (one, two, three)[len(stack.types) - 1]


def at(stack: Weight, index: int) -> Weight:
    """One weight, or one stack, of a stack of them."""
    raise NotImplementedError  # numba takes `_at`


@overload(at, jit_options={"nogil": True})
def _at(stack: Any, index: Any) -> Any:
    def one(stack: Any, index: Any) -> Any:
        return (stack[0][index],)

    def two(stack: Any, index: Any) -> Any:
        return (stack[0][index], stack[1][index])

    def three(stack: Any, index: Any) -> Any:
        return (stack[0][index], stack[1][index], stack[2][index])

    return (one, two, three)[len(stack.types) - 1]


@compiled
def ask_for(w_PQ: Array, row: int) -> None:
    """Prefetch four rows that are wanted soon: a processor guesses what comes next within a page of 4 KB only."""
    for p in range(row, min(row + TILE, w_PQ.shape[0])):
        for q in range(0, w_PQ.shape[1], 64 // w_PQ.itemsize):
            wide.prefetch(w_PQ, p * w_PQ.shape[1] + q)


def group_sums(weight: Weight, x_Q: Array) -> Array:
    """What `dot` wants to know of x beforehand: for int4 the sums of its groups, else nothing."""
    raise NotImplementedError  # numba takes `_group_sums`


@overload(group_sums, jit_options={"fastmath": _FAST, "nogil": True})
def _group_sums(weight: Any, x_Q: Any) -> Any:
    def none(weight: Any, x_Q: Any) -> Any:
        return np.empty(0, np.float32)

    def int4(weight: Any, x_Q: Any) -> Any:
        sums_G = np.zeros(x_Q.shape[0] // BYTES, np.float32)
        for g in range(sums_G.shape[0]):
            total = _ZERO
            for i in range(BYTES):
                total += x_Q[g * BYTES + i]
            sums_G[g] = total
        return sums_G

    return int4 if _format(weight) == "int4" else none


@njit(cache=True, nogil=True, error_model="numpy")  # no reordering here: the two parts of ln 2 would become one
def exp(x: Number) -> Number:
    """e to the x, within three units in the last place, in a form that compilers turn into vectors; libm's is one number at a time.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its series; 2^n by its bits.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = wide.rounded(x * np.float32(1.4426950408889634))
    r = (
        x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    )  # ln 2 in two parts: the first is exact in few bits
    series = np.float32(1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * r + np.float32(coefficient)
    return series * wide.power_of_two(n)


@compiled
def copy(from_Q: Array, to_Q: Array) -> None:
    """to = from. numba's own `to[:] = from` compiles the words of an error for another shape: a second each."""
    for q in range(to_Q.shape[0]):
        to_Q[q] = from_Q[q]


@compiled
def swiglu(gate_P: Array, up_P: Array, out_P: Array) -> None:
    """out = silu(gate) * up."""
    for p in range(gate_P.shape[0]):
        out_P[p] = gate_P[p] / (np.float32(1.0) + exp(-gate_P[p])) * up_P[p]


@compiled
def times_rows(w_PQ: Array, row: int, step: int, count: int, x_NQ: Array, out_M: Array) -> None:
    """out[4 n + i] = w[row + i step] . x[n] for i below `count`, at most 4; beyond it the last of them again."""
    blocks.times(w_PQ, row, step, count, x_NQ, out_M)


def times_four(weight: Weight, p: int, count: int, x_NQ: Array, sums_G: Array, wide_4Q: Array, out_M: Array) -> None:
    """out[4 n + i] = row p + i of the weight times x[n], likewise; the next four are asked for.

    Args:
        sums_G: `group_sums` of x[0].
        wide_4Q: where rows are widened that several of x share.
    """
    raise NotImplementedError  # numba takes `_times_four`


@overload(times_four, jit_options={"nogil": True})
def _times_four(weight: Any, p: Any, count: Any, x_NQ: Any, sums_G: Any, wide_4Q: Any, out_M: Any) -> Any:
    def float32(weight: Any, p: Any, count: Any, x_NQ: Any, sums_G: Any, wide_4Q: Any, out_M: Any) -> None:
        _four_of_32_bits(weight[0], p, count, x_NQ, out_M)

    def bfloat16(weight: Any, p: Any, count: Any, x_NQ: Any, sums_G: Any, wide_4Q: Any, out_M: Any) -> None:
        _four_of_16_bits(weight[0], p, count, x_NQ, wide_4Q, out_M)

    def packed(weight: Any, p: Any, count: Any, x_NQ: Any, sums_G: Any, wide_4Q: Any, out_M: Any) -> None:
        ask_for(weight[0], p + TILE)
        if x_NQ.shape[0] == 1:
            for i in range(count):
                out_M[i] = dot(weight, p + i, x_NQ[0], sums_G)
        else:
            for i in range(count):
                widen(weight, p + i, wide_4Q[i])
            times_rows(wide_4Q, 0, 1, count, x_NQ, out_M)

    return {"float32": float32, "bfloat16": bfloat16}.get(_format(weight), packed)


# Functions of their own: an array taken out of a tuple is counted, atomically, unless one call is all that is done with it.
@compiled
def _four_of_32_bits(w_PQ: Array, p: int, count: int, x_NQ: Array, out_M: Array) -> None:
    ask_for(w_PQ, p + TILE)
    blocks.times(w_PQ, p, 1, count, x_NQ, out_M)


@compiled
def _four_of_16_bits(w_PQ: Array, p: int, count: int, x_NQ: Array, wide_4Q: Array, out_M: Array) -> None:
    ask_for(w_PQ, p + TILE)
    if x_NQ.shape[0] <= 2 * TILE:  # widened twice at most, on their way into the products
        blocks.times(w_PQ, p, 1, count, x_NQ, out_M)
    else:
        for i in range(count):
            for q in range(wide_4Q.shape[1]):
                wide_4Q[i, q] = wide.bfloat16(w_PQ[p + i, q])
        blocks.times(wide_4Q, 0, 1, count, x_NQ, out_M)


@parallel
def add_product(threads: int, weight: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out += x @ weight.T: each thread takes a run of the weight's rows."""
    rows, sums_G = weight[0].shape[0], group_sums(weight, x_NQ[0])
    for thread in prange(threads):
        wide_4Q = np.empty((TILE, x_NQ.shape[1]), np.float32)
        out_M = np.empty(x_NQ.shape[0] * TILE, np.float32)
        last = (thread + 1) * rows // threads
        for p in range(thread * rows // threads, last, TILE):
            count = min(TILE, last - p)
            times_four(weight, p, count, x_NQ, sums_G, wide_4Q, out_M)
            for n in range(x_NQ.shape[0]):
                for i in range(count):
                    out_NP[n, p + i] += out_M[n * TILE + i]


@parallel
def gated_product(threads: int, gate: Weight, up: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out = silu(x @ gate.T) * (x @ up.T): both in one pass."""
    rows, sums_G = gate[0].shape[0], group_sums(gate, x_NQ[0])
    for thread in prange(threads):
        wide_4Q = np.empty((TILE, x_NQ.shape[1]), np.float32)
        gate_M, up_M = np.empty(x_NQ.shape[0] * TILE, np.float32), np.empty(x_NQ.shape[0] * TILE, np.float32)
        last = (thread + 1) * rows // threads
        for p in range(thread * rows // threads, last, TILE):
            count = min(TILE, last - p)
            times_four(gate, p, count, x_NQ, sums_G, wide_4Q, gate_M)
            times_four(up, p, count, x_NQ, sums_G, wide_4Q, up_M)
            swiglu(gate_M, up_M, gate_M)
            for n in range(x_NQ.shape[0]):
                for i in range(count):
                    out_NP[n, p + i] = gate_M[n * TILE + i]


@parallel
def visits_in(threads: int, gate_up: Weight, starts_E: Array, x_MD: Array, weight_M: Array, inner_MI: Array) -> None:
    """inner = weight * silu(x @ gate.T) * (x @ up.T) of every expert's own rows, which are `starts_E[e]` to `starts_E[e + 1]`.

    All experts in one parallel loop, each thread its share of every expert's weights: starting a loop costs as much as an expert.
    """
    inner = inner_MI.shape[1]
    for thread in prange(threads):
        wide_4Q = np.empty((TILE, x_MD.shape[1]), np.float32)
        gates, ups = np.empty(x_MD.shape[0] * TILE, np.float32), np.empty(x_MD.shape[0] * TILE, np.float32)
        last = (thread + 1) * inner // threads
        for expert in range(starts_E.shape[0] - 1):
            start, count_M = starts_E[expert], starts_E[expert + 1] - starts_E[expert]
            if count_M == 0:
                continue
            gate, up = part(gate_up, expert, 0, inner), part(gate_up, expert, inner, 2 * inner)
            own_MD, gate_M, up_M = x_MD[start : start + count_M], gates[: count_M * TILE], ups[: count_M * TILE]
            sums_G = group_sums(gate, own_MD[0])
            for p in range(thread * inner // threads, last, TILE):
                count = min(TILE, last - p)
                times_four(gate, p, count, own_MD, sums_G, wide_4Q, gate_M)
                times_four(up, p, count, own_MD, sums_G, wide_4Q, up_M)
                swiglu(gate_M, up_M, gate_M)
                for m in range(count_M):
                    for i in range(count):
                        inner_MI[start + m, p + i] = gate_M[m * TILE + i] * weight_M[start + m]


@parallel
def visits_out(threads: int, down: Weight, starts_E: Array, inner_MI: Array, visitor_M: Array, out_ND: Array) -> None:
    """out[visitor] += inner @ down.T of every expert's own rows. A thread adds to its own columns alone."""
    width = out_ND.shape[1]
    for thread in prange(threads):
        wide_4Q = np.empty((TILE, inner_MI.shape[1]), np.float32)
        outs = np.empty(inner_MI.shape[0] * TILE, np.float32)
        last = (thread + 1) * width // threads
        for expert in range(starts_E.shape[0] - 1):
            start, count_M = starts_E[expert], starts_E[expert + 1] - starts_E[expert]
            if count_M == 0:
                continue
            weight, own_MI = part(down, expert, 0, width), inner_MI[start : start + count_M]
            out_M, sums_G = outs[: count_M * TILE], group_sums(weight, own_MI[0])
            for p in range(thread * width // threads, last, TILE):
                count = min(TILE, last - p)
                times_four(weight, p, count, own_MI, sums_G, wide_4Q, out_M)
                for m in range(count_M):
                    row = visitor_M[start + m]
                    for i in range(count):
                        out_ND[row, p + i] += out_M[m * TILE + i]


@parallel
def dense(threads: int, weight: Weight, out_PQ: Array) -> None:
    """The whole weight as float32: for many rows a product of torch's is faster, once the weight is wide."""
    rows = weight[0].shape[0]
    for thread in prange(threads):
        for p in range(thread * rows // threads, (thread + 1) * rows // threads):
            copy(widen(weight, p, out_PQ[p]), out_PQ[p])
