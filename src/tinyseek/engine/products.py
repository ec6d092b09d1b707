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

from tinyseek.engine import intrinsics
from tinyseek.engine.intrinsics import BYTES

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
        file.stat().st_mtime for name in ("intrinsics", "products", "*loops") for file in here.glob(f"{name}.py")
    )
    for kept in (here / "__pycache__").glob("*.nbi"):
        with contextlib.suppress(OSError):  # another process has done so
            if kept.stat().st_mtime < newest:
                kept.unlink()


_forget_stale()

wide: Any = intrinsics  # what they take is known to numba alone
Array = np.ndarray[Any, Any]
Number = Any  # a float of Python or of NumPy
Weight = Any  # a tuple of arrays, as above

# Sums may be reordered (that is what lets them run in vector registers), but a NaN stays a NaN.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_ZERO = np.float32(0.0)
AHEAD = 4  # rows; 2 to 8 do as well, none reads large matrices at nine tenths of the speed
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
    """Prefetch a row that is wanted soon: a processor guesses what comes next within a page of 4 KB only."""
    if row < w_PQ.shape[0]:
        w_Q = w_PQ[row]
        for q in range(0, w_Q.shape[0], 64 // w_Q.itemsize):
            wide.prefetch(w_Q, q)


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
def swiglu(gate_P: Array, up_P: Array, out_P: Array) -> None:
    """out = silu(gate) * up."""
    for p in range(gate_P.shape[0]):
        out_P[p] = gate_P[p] / (np.float32(1.0) + exp(-gate_P[p])) * up_P[p]


@compiled
def times_two(a_Q: Array, b_Q: Array, x_NQ: Array, a_N: Array, b_N: Array) -> None:
    """Two rows of weights times all rows of x, four of these at a time: six loads for eight products."""
    rows, width = x_NQ.shape
    whole = rows - rows % 4
    for n in range(0, whole, 4):
        a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
        b0, b1, b2, b3 = _ZERO, _ZERO, _ZERO, _ZERO
        for q in range(width):
            a, b = a_Q[q], b_Q[q]
            a0 += a * x_NQ[n, q]
            a1 += a * x_NQ[n + 1, q]
            a2 += a * x_NQ[n + 2, q]
            a3 += a * x_NQ[n + 3, q]
            b0 += b * x_NQ[n, q]
            b1 += b * x_NQ[n + 1, q]
            b2 += b * x_NQ[n + 2, q]
            b3 += b * x_NQ[n + 3, q]
        a_N[n], a_N[n + 1], a_N[n + 2], a_N[n + 3] = a0, a1, a2, a3
        b_N[n], b_N[n + 1], b_N[n + 2], b_N[n + 3] = b0, b1, b2, b3
    for n in range(whole, rows):
        a0, b0 = _ZERO, _ZERO
        for q in range(width):
            a0 += a_Q[q] * x_NQ[n, q]
            b0 += b_Q[q] * x_NQ[n, q]
        a_N[n], b_N[n] = a0, b0


@parallel
def product(threads: int, weight: Weight, x_NQ: Array, add: bool, out_NP: Array) -> None:
    """out = x @ weight.T, or with `add` that much more: each thread takes a run of the weight's rows."""
    rows = weight[0].shape[0]
    if x_NQ.shape[0] == 1:
        sums_G = group_sums(weight, x_NQ[0])
        for thread in prange(threads):
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                ask_for(weight[0], p + AHEAD)
                total = dot(weight, p, x_NQ[0], sums_G)
                out_NP[0, p] = out_NP[0, p] + total if add else total
    else:
        for thread in prange(threads):
            wide_2Q, out_2N = np.empty((2, x_NQ.shape[1]), np.float32), np.empty((2, x_NQ.shape[0]), np.float32)
            last = (thread + 1) * rows // threads
            for p in range(thread * rows // threads, last, 2):
                other = min(p + 1, last - 1)
                ask_for(weight[0], p + AHEAD)
                ask_for(weight[0], p + AHEAD + 1)
                times_two(widen(weight, p, wide_2Q[0]), widen(weight, other, wide_2Q[1]), x_NQ, out_2N[0], out_2N[1])
                for n in range(out_2N.shape[1]):
                    if add:
                        out_NP[n, p] += out_2N[0, n]
                        if other > p:
                            out_NP[n, other] += out_2N[1, n]
                    else:
                        out_NP[n, p], out_NP[n, other] = out_2N[0, n], out_2N[1, n]


@parallel
def gated_product(threads: int, gate: Weight, up: Weight, x_NQ: Array, out_NP: Array) -> None:
    """out = silu(x @ gate.T) * (x @ up.T): both in one pass."""
    rows = gate[0].shape[0]
    if x_NQ.shape[0] == 1:
        sums_G = group_sums(gate, x_NQ[0])
        for thread in prange(threads):
            first, last = thread * rows // threads, (thread + 1) * rows // threads
            both_2P = np.empty((2, last - first), np.float32)
            for p in range(first, last):
                ask_for(gate[0], p + AHEAD)
                ask_for(up[0], p + AHEAD)
                both_2P[0, p - first] = dot(gate, p, x_NQ[0], sums_G)
                both_2P[1, p - first] = dot(up, p, x_NQ[0], sums_G)
            swiglu(both_2P[0], both_2P[1], out_NP[0, first:last])
    else:
        for thread in prange(threads):
            wide_2Q, both_2N = np.empty((2, x_NQ.shape[1]), np.float32), np.empty((2, x_NQ.shape[0]), np.float32)
            gated_N = np.empty(x_NQ.shape[0], np.float32)
            for p in range(thread * rows // threads, (thread + 1) * rows // threads):
                ask_for(gate[0], p + AHEAD)
                ask_for(up[0], p + AHEAD)
                times_two(widen(gate, p, wide_2Q[0]), widen(up, p, wide_2Q[1]), x_NQ, both_2N[0], both_2N[1])
                swiglu(both_2N[0], both_2N[1], gated_N)
                out_NP[:, p] = gated_N


@parallel
def visits_in(threads: int, gate_up: Weight, starts_E: Array, x_MD: Array, weight_M: Array, inner_MI: Array) -> None:
    """inner = weight * silu(x @ gate.T) * (x @ up.T) of every expert's own rows, which are `starts_E[e]` to `starts_E[e + 1]`.

    All experts in one parallel loop, each thread its share of every expert's weights: starting a loop costs as much as an expert.
    """
    inner = inner_MI.shape[1]
    for thread in prange(threads):
        wide_2Q, both_2M = np.empty((2, x_MD.shape[1]), np.float32), np.empty((2, x_MD.shape[0]), np.float32)
        for expert in range(starts_E.shape[0] - 1):
            start, count = starts_E[expert], starts_E[expert + 1] - starts_E[expert]
            if count == 0:
                continue
            gate, up = part(gate_up, expert, 0, inner), part(gate_up, expert, inner, 2 * inner)
            own_MD, gate_M, up_M = x_MD[start : start + count], both_2M[0, :count], both_2M[1, :count]
            sums_G = group_sums(gate, own_MD[0])
            for p in range(thread * inner // threads, (thread + 1) * inner // threads):
                ask_for(gate[0], p + AHEAD)
                ask_for(up[0], p + AHEAD)
                if count == 1:
                    gate_M[0], up_M[0] = dot(gate, p, own_MD[0], sums_G), dot(up, p, own_MD[0], sums_G)
                else:
                    times_two(widen(gate, p, wide_2Q[0]), widen(up, p, wide_2Q[1]), own_MD, gate_M, up_M)
                swiglu(gate_M, up_M, gate_M)
                for m in range(count):
                    inner_MI[start + m, p] = gate_M[m] * weight_M[start + m]


@parallel
def visits_out(threads: int, down: Weight, starts_E: Array, inner_MI: Array, visitor_M: Array, out_ND: Array) -> None:
    """out[visitor] += inner @ down.T of every expert's own rows. A thread adds to its own columns alone."""
    width = out_ND.shape[1]
    for thread in prange(threads):
        wide_2Q, both_2M = np.empty((2, inner_MI.shape[1]), np.float32), np.empty((2, inner_MI.shape[0]), np.float32)
        last = (thread + 1) * width // threads
        for expert in range(starts_E.shape[0] - 1):
            start, count = starts_E[expert], starts_E[expert + 1] - starts_E[expert]
            if count == 0:
                continue
            weight, own_MI = part(down, expert, 0, width), inner_MI[start : start + count]
            first_M, second_M = both_2M[0, :count], both_2M[1, :count]
            sums_G = group_sums(weight, own_MI[0])
            for p in range(thread * width // threads, last, 2):
                other = min(p + 1, last - 1)
                ask_for(weight[0], p + AHEAD)
                ask_for(weight[0], p + AHEAD + 1)
                if count == 1:
                    first_M[0], second_M[0] = dot(weight, p, own_MI[0], sums_G), dot(weight, other, own_MI[0], sums_G)
                else:
                    times_two(widen(weight, p, wide_2Q[0]), widen(weight, other, wide_2Q[1]), own_MI, first_M, second_M)
                for m in range(count):
                    row = visitor_M[start + m]
                    out_ND[row, p] += first_M[m]
                    if other > p:
                        out_ND[row, other] += second_M[m]


@parallel
def dense(threads: int, weight: Weight, out_PQ: Array) -> None:
    """The whole weight as float32: for many rows a product of torch's is faster, once the weight is wide."""
    rows = weight[0].shape[0]
    for thread in prange(threads):
        for p in range(thread * rows // threads, (thread + 1) * rows // threads):
            out_PQ[p] = widen(weight, p, out_PQ[p])
