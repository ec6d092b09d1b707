"""Matrix products of a few rows with a large weight, as loops that numba compiles, in every format that a weight is kept in.

Decoding multiplies each weight with one row of a stream, or a handful: the time is that of reading the weights from memory,
so fewer bytes a weight are more tokens a second. A row of weights is widened in registers, on its way into the sum; with several
rows of x it is widened once and used by all.

A weight [P, Q] is a tuple of arrays, whose types choose the loops at compile time (formats: quantize.py):

    float32   (w_PQ,)                           bfloat16  (w_PQ as uint16,)
    int8      (w_PQ, scale_P float32)           int4      (w_PJ two in a byte, J = Q/2; scale_PG, least_PG float16 as uint16)
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

from tinyseek.engine import intrinsics
from tinyseek.engine.intrinsics import BYTES

# Threads through OpenMP, whose pool is then the one that torch already has: a parallel loop starts in two microseconds. Without it
# the loops run on one thread; numba's own pool may not be entered by two threads at once, which a server would do.
PARALLEL = importlib.util.find_spec("numba.np.ufunc.omppool") is not None
if PARALLEL:
    settings: Any = numba.config  # its settings are made at run time, unseen by type checkers
    settings.THREADING_LAYER = "omp"

wide: Any = intrinsics  # what they take is known to numba alone
Array = np.ndarray[Any, Any]
Number = Any  # a float of Python or of NumPy
Weight = Any  # a tuple of arrays, as above

# Sums may be reordered (that is what lets them run in vector registers), but a NaN stays a NaN.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_ZERO = np.float32(0.0)
compiled = njit(cache=True, nogil=True, fastmath=_FAST)
parallel = njit(cache=True, nogil=True, fastmath=_FAST, parallel=PARALLEL)


def _format(weight: Any) -> str:
    """Which format a weight's numba type is."""
    names = {numba.float32: "float32", numba.uint16: "bfloat16", numba.int8: "int8", numba.uint8: "int4"}
    return names[weight.types[0].dtype]


def dot(weight: Weight, row: int, x_Q: Array, sums_G: Array) -> Number:
    """One row of the weight times x. `sums_G`: of each 32 numbers of x, for int4 (see `group_sums`)."""
    raise NotImplementedError  # numba takes `_dot`


@overload(dot, jit_options={"fastmath": _FAST, "nogil": True})
def _dot(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:  # noqa: ARG001
    def float32(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:  # noqa: ARG001
        w_Q, total = weight[0][row], _ZERO
        for q in range(x_Q.shape[0]):
            total += w_Q[q] * x_Q[q]
        return total

    def bfloat16(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:  # noqa: ARG001
        w_Q, total = weight[0][row], _ZERO
        for q in range(x_Q.shape[0]):
            total += wide.bfloat16(w_Q[q]) * x_Q[q]
        return total

    def int8(weight: Any, row: Any, x_Q: Any, sums_G: Any) -> Any:  # noqa: ARG001
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
def _widen(weight: Any, row: Any, out_Q: Any) -> Any:  # noqa: ARG001
    def float32(weight: Any, row: Any, out_Q: Any) -> Any:  # noqa: ARG001
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
def _part(stack: Any, index: Any, first: Any, last: Any) -> Any:  # noqa: ARG001
    def one(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last],)

    def two(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last], stack[1][index, first:last])

    def three(stack: Any, index: Any, first: Any, last: Any) -> Any:
        return (stack[0][index, first:last], stack[1][index, first:last], stack[2][index, first:last])

    return (one, two, three)[len(stack.types) - 1]


def group_sums(weight: Weight, x_Q: Array) -> Array:
    """What `dot` wants to know of x beforehand: for int4 the sums of its groups, else nothing."""
    raise NotImplementedError  # numba takes `_group_sums`


@overload(group_sums, jit_options={"fastmath": _FAST, "nogil": True})
def _group_sums(weight: Any, x_Q: Any) -> Any:  # noqa: ARG001
    def none(weight: Any, x_Q: Any) -> Any:  # noqa: ARG001
        return np.empty(0, np.float32)

    def int4(weight: Any, x_Q: Any) -> Any:  # noqa: ARG001
        sums_G = np.zeros(x_Q.shape[0] // BYTES, np.float32)
        for g in range(sums_G.shape[0]):
            total = _ZERO
            for i in range(BYTES):
                total += x_Q[g * BYTES + i]
            sums_G[g] = total
        return sums_G

    return int4 if _format(weight) == "int4" else none


@compiled
def times_rows(w_Q: Array, x_NQ: Array, out_N: Array) -> None:
    """out = x @ w for one row of weights: four rows of x at a time, so that each weight is loaded once for four products."""
    rows, width = x_NQ.shape
    whole = rows - rows % 4
    for n in range(0, whole, 4):
        a, b, c, d = _ZERO, _ZERO, _ZERO, _ZERO
        for q in range(width):
            a += w_Q[q] * x_NQ[n, q]
            b += w_Q[q] * x_NQ[n + 1, q]
            c += w_Q[q] * x_NQ[n + 2, q]
            d += w_Q[q] * x_NQ[n + 3, q]
        out_N[n], out_N[n + 1], out_N[n + 2], out_N[n + 3] = a, b, c, d
    for n in range(whole, rows):
        total = _ZERO
        for q in range(width):
            total += w_Q[q] * x_NQ[n, q]
        out_N[n] = total


@parallel
def product(threads: int, weight: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out = x @ weight.T: each thread a run of the weight's rows, at the speed that these can be read."""
    rows = weight[0].shape[0]
    if x_NQ.shape[0] == 1:
        sums_G = group_sums(weight, x_NQ[0])
        for thread in prange(threads):
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                out_NP[0, p] = dot(weight, p, x_NQ[0], sums_G)
    else:
        for thread in prange(threads):
            wide_Q, out_N = np.empty(x_NQ.shape[1], np.float32), np.empty(x_NQ.shape[0], np.float32)
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                times_rows(widen(weight, p, wide_Q), x_NQ, out_N)
                out_NP[:, p] = out_N


@parallel
def add_product(threads: int, weight: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out += x @ weight.T."""
    rows = weight[0].shape[0]
    if x_NQ.shape[0] == 1:
        sums_G = group_sums(weight, x_NQ[0])
        for thread in prange(threads):
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                out_NP[0, p] += dot(weight, p, x_NQ[0], sums_G)
    else:
        for thread in prange(threads):
            wide_Q, out_N = np.empty(x_NQ.shape[1], np.float32), np.empty(x_NQ.shape[0], np.float32)
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                times_rows(widen(weight, p, wide_Q), x_NQ, out_N)
                for n in range(out_N.shape[0]):
                    out_NP[n, p] += out_N[n]


@parallel
def gated_product(threads: int, gate: Weight, up: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out = silu(x @ gate.T) * (x @ up.T): both in one pass."""
    rows = gate[0].shape[0]
    if x_NQ.shape[0] == 1:
        sums_G = group_sums(gate, x_NQ[0])
        for thread in prange(threads):
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                gated = dot(gate, p, x_NQ[0], sums_G)
                out_NP[0, p] = gated / (np.float32(1.0) + np.exp(-gated)) * dot(up, p, x_NQ[0], sums_G)
    else:
        for thread in prange(threads):
            wide_Q = np.empty(x_NQ.shape[1], np.float32)
            gate_N, up_N = np.empty(x_NQ.shape[0], np.float32), np.empty(x_NQ.shape[0], np.float32)
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                times_rows(widen(gate, p, wide_Q), x_NQ, gate_N)
                times_rows(widen(up, p, wide_Q), x_NQ, up_N)
                for n in range(gate_N.shape[0]):
                    out_NP[n, p] = gate_N[n] / (np.float32(1.0) + np.exp(-gate_N[n])) * up_N[n]


@parallel
def dense(threads: int, weight: Weight, out_PQ: Array) -> None:
    """The whole weight as float32: for many rows a product of torch's is faster, once the weight is wide."""
    rows = weight[0].shape[0]
    for thread in prange(threads):
        for p in range(thread * rows // threads, (thread + 1) * rows // threads):
            out_PQ[p] = widen(weight, p, out_PQ[p])
