"""Blocks of dot products in registers: four rows of one matrix times up to four of another at a time.

A dot product alone loads two vectors for each multiplication, and adding its vector up across the register costs as much as
multiplying a hundred numbers. Sixteen of them share their loads, and their vectors are added up together, halving as in a
tournament: 30 shuffles instead of 64. Code in LLVM's portable vector form, as in intrinsics.py.
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic

TILE = 4  # rows of each matrix


def _lanes() -> int:
    """Numbers a vector: sixteen sums must stay in registers beside what they are made of."""
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


LANES = _lanes()
cgutils: Any = numba_cgutils  # untyped
_I1, _I8, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_V, _BITS, _MASK = (ir.VectorType(kind, LANES) for kind in (_F32, ir.IntType(16), _I1))
_FAST = ("reassoc", "contract", "nsz")


@intrinsic
def times(typing: Any, w_PQ: Any, row: Any, step: Any, count: Any, x_NQ: Any, out_M: Any) -> Any:
    """out[4 n + i] = w[row + i step] . x[n] for i below `count`, at most 4; beyond it the last of them again.

    float32, w also the bits of bfloat16.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        w, x, out = (context.make_array(signature.args[k])(context, b, arguments[k]) for k in (0, 4, 5))
        _blocks(b, [(w, arguments[1], x)], arguments[2], arguments[3], out)
        return context.get_dummy_value()

    whole = numba.int64
    return numba.void(w_PQ, whole, whole, whole, x_NQ, out_M), generate


@intrinsic
def times_both(typing: Any, w_PQ: Any, v_PR: Any, row: Any, count: Any, x_NQ: Any, y_NR: Any, out_M: Any) -> Any:
    """out[4 n + i] = w[row + i] . x[n] + v[row + i] . y[n] for i below `count`, at most 4."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        w, v, x, y, out = (context.make_array(signature.args[k])(context, b, arguments[k]) for k in (0, 1, 4, 5, 6))
        _blocks(b, [(w, arguments[2], x), (v, arguments[2], y)], ir.Constant(_I64, 1), arguments[3], out)
        return context.get_dummy_value()

    whole = numba.int64
    return numba.void(w_PQ, v_PR, whole, whole, x_NQ, y_NR, out_M), generate


@intrinsic
def add_rows(
    typing: Any, weight_NS: Any, first: Any, count: Any, rows_SQ: Any, row: Any, step: Any, out_NQ: Any
) -> Any:
    """out[n] += sum_i weight[n, first + i] rows[row + i step] over `count` of them, float32; the sums stay in registers."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        weights, rows, out = (context.make_array(signature.args[k])(context, b, arguments[k]) for k in (0, 3, 6))
        first, count, row, step = (arguments[k] for k in (1, 2, 4, 5))
        height, width = cgutils.unpack_tuple(b, out.shape, 2)
        begin, stride = b.gep(rows.data, [b.mul(row, width)]), b.mul(step, width)
        breadth = cgutils.unpack_tuple(b, weights.shape, 2)[1]
        zero, one, four = (ir.Constant(_I64, number) for number in (0, 1, TILE))
        broad, lanes = ir.Constant(_I64, TILE * LANES), ir.Constant(_I64, LANES)

        def block(n: Any, few: int, q: Any, vectors: int) -> None:
            """`few` rows from `n` on; whole vectors of columns from `q` on, or as much of one as there is."""
            mask = _first(b, b.sub(width, q)) if vectors == 1 else None
            columns = [b.add(q, ir.Constant(_I64, k * LANES)) for k in range(vectors)]
            targets, totals = [], []
            for i in range(few):
                start = b.gep(out.data, [b.mul(b.add(n, ir.Constant(_I64, i)), width)])
                for column in columns:
                    target, total = b.gep(start, [column]), cgutils.alloca_once(b, _V)
                    b.store(_load(b, target) if mask is None else _load_first(b, target, mask), total)
                    targets.append(target)
                    totals.append(total)
            starts = [
                b.gep(weights.data, [b.add(b.mul(b.add(n, ir.Constant(_I64, i)), breadth), first)]) for i in range(few)
            ]
            with cgutils.for_range(b, count, intp=_I64) as loop:
                source = b.gep(begin, [b.mul(loop.index, stride)])
                places = [b.gep(source, [column]) for column in columns]
                numbers = [_load(b, p) if mask is None else _load_first(b, p, mask) for p in places]
                for i, start in enumerate(starts):
                    weight = _everywhere(b, b.load(b.gep(start, [loop.index])), _V)
                    for number, total in zip(numbers, totals[i * vectors : (i + 1) * vectors], strict=True):
                        b.store(b.fadd(b.load(total), b.fmul(weight, number, flags=_FAST), flags=_FAST), total)
            for target, total in zip(targets, totals, strict=True):
                if mask is None:
                    _store(b, b.load(total), target)
                else:
                    _store_first(b, b.load(total), target, mask)

        whole_rows, whole_columns = b.sub(height, b.urem(height, four)), b.sub(width, b.urem(width, broad))
        for begin_n, end_n, stride_n, few in ((zero, whole_rows, four, TILE), (whole_rows, height, one, 1)):
            with cgutils.for_range_slice(b, begin_n, end_n, stride_n, intp=_I64) as (n, _):
                with cgutils.for_range_slice(b, zero, whole_columns, broad, intp=_I64) as (q, _):
                    block(n, few, q, TILE)
                with cgutils.for_range_slice(b, whole_columns, width, lanes, intp=_I64) as (q, _):
                    block(n, few, q, 1)
        return context.get_dummy_value()

    whole = numba.int64
    return numba.void(weight_NS, whole, whole, rows_SQ, whole, whole, out_NQ), generate


def _blocks(b: Any, pairs: Sequence[tuple[Any, Any, Any]], step: Any, count: Any, out: Any) -> None:
    """All rows of x, four at a time and then the rest, times four rows of w. `pairs` of w, its first row, and x are added up."""
    four = ir.Constant(_I64, TILE)
    rows = cgutils.unpack_tuple(b, pairs[0][2].shape, 2)[0]
    segments = []
    for w, first, x in pairs:
        width = cgutils.unpack_tuple(b, x.shape, 2)[1]
        at = []
        for i in range(TILE):  # beyond the last row the last one again
            last = b.sub(count, ir.Constant(_I64, 1))
            i_64 = ir.Constant(_I64, i)
            index = b.add(first, b.mul(step, b.select(b.icmp_signed("<", i_64, last), i_64, last)))
            at.append(b.gep(w.data, [b.mul(index, width)]))
        segments.append((at, x.data, width))
    whole = b.sub(rows, b.urem(rows, four))
    with cgutils.for_range_slice(b, ir.Constant(_I64, 0), whole, four, intp=_I64) as (n, _):
        _block(b, segments, n, TILE, out.data)
    for few in range(1, TILE):
        with b.if_then(b.icmp_unsigned("==", b.sub(rows, whole), ir.Constant(_I64, few))):
            _block(b, segments, whole, few, out.data)


def _block(b: Any, segments: Sequence[tuple[list[Any], Any, Any]], n: Any, few: int, out: Any) -> None:
    """Rows `n` to `n + few` of x times four rows of w."""
    zero, lanes = ir.Constant(_V, [0.0] * LANES), ir.Constant(_I64, LANES)
    totals = [[_zeroed(b, zero) for _ in range(TILE)] for _ in range(few)]

    def add(w: list[Any], x: list[Any]) -> None:
        for x_vector, row in zip(x, totals, strict=True):
            for w_vector, total in zip(w, row, strict=True):
                b.store(b.fadd(b.load(total), b.fmul(w_vector, x_vector, flags=_FAST), flags=_FAST), total)

    for w_rows, x_data, width in segments:
        x_rows = [b.gep(x_data, [b.mul(b.add(n, ir.Constant(_I64, i)), width)]) for i in range(few)]
        whole = b.mul(b.udiv(width, lanes), lanes)
        with cgutils.for_range_slice(b, ir.Constant(_I64, 0), whole, lanes, intp=_I64) as (q, _):
            add([_wide(b, b.gep(w, [q])) for w in w_rows], [_load(b, b.gep(x, [q])) for x in x_rows])
        with b.if_then(b.icmp_unsigned("<", whole, width)):
            left = _first(b, b.sub(width, whole))
            w_left = [_wide(b, b.gep(row, [whole]), left) for row in w_rows]
            add(w_left, [_load_first(b, b.gep(row, [whole]), left) for row in x_rows])
    sums = [b.load(total) for row in totals for total in row]
    place = b.gep(out, [b.mul(n, ir.Constant(_I64, TILE))])
    if LANES == TILE * TILE:
        whole_V = _added_up(b, [*sums, *[zero] * (LANES - len(sums))])
        for row in range(few) if few < TILE else ():
            part = [4 * row + i for i in range(TILE)]
            _store(b, _shuffle(b, whole_V, whole_V, part), b.gep(place, [ir.Constant(_I64, TILE * row)]))
        if few == TILE:
            _store(b, whole_V, place)
        return
    for start in range(0, len(sums), LANES):  # shorter vectors: several of them
        part_V = _added_up(b, [*sums[start : start + LANES], *[zero] * (start + LANES - len(sums))])
        kept = min(LANES, len(sums) - start)
        narrow = part_V if kept == LANES else _shuffle(b, part_V, part_V, [*range(kept)])
        _store(b, narrow, b.gep(place, [ir.Constant(_I64, start)]))


def _added_up(b: Any, vectors: Sequence[Any]) -> Any:
    """Each vector's sum, in a vector: as many vectors as lanes.

    Two vectors that hold sources in runs of 2k partial sums become one of runs of k, of twice as many sources. Runs of up to four
    stay within four lanes, which costs less than to cross them.
    """
    order = _order()
    turned = [vectors[0]] * LANES
    for place, source in enumerate(order):
        turned[source] = vectors[place]
    run = LANES
    while len(turned) > 1:
        run //= 2
        low, high = _masks(run)
        turned = [
            b.fadd(_shuffle(b, a, c, low), _shuffle(b, a, c, high), flags=_FAST)
            for a, c in zip(turned[::2], turned[1::2], strict=True)
        ]
    return turned[0]


def _masks(run: int) -> tuple[list[int], list[int]]:
    """Which lanes of two vectors, one after the other, hold the first and the second halves of runs of 2 `run`."""
    first = [lane for lane in range(LANES) if lane // run % 2 == 0]
    if run >= TILE:
        low = first + [lane + LANES for lane in first]
    else:
        low = []
        for four in range(0, LANES, TILE):
            own = [lane for lane in first if four <= lane < four + TILE]
            low += own + [lane + LANES for lane in own]
    return low, [lane + run for lane in low]


def _order() -> list[int]:
    """The vector whose sum `_added_up` would leave in each lane if it took them as they come."""
    labels = [[source] * LANES for source in range(LANES)]
    run = LANES
    while len(labels) > 1:
        run //= 2
        low, _ = _masks(run)
        labels = [[(a + c)[lane] for lane in low] for a, c in zip(labels[::2], labels[1::2], strict=True)]
    return labels[0]


def _zeroed(b: Any, zero: Any) -> Any:
    """A vector to add up in, zero from here on: also the next time that this place is passed."""
    place = cgutils.alloca_once(b, _V)
    b.store(zero, place)
    return place


def _load(b: Any, pointer: Any, kind: Any = _V) -> Any:
    return b.load(b.bitcast(pointer, ir.PointerType(kind)), align=2)


def _wide(b: Any, pointer: Any, mask: Any = None) -> Any:
    """Numbers of a weight, or as many as a mask has, as float32."""
    if pointer.type.pointee == _F32:
        return _load(b, pointer) if mask is None else _load_first(b, pointer, mask)
    kind = ir.VectorType(_I32, LANES)
    sixteen = _load(b, pointer, _BITS) if mask is None else _load_first(b, pointer, mask, _BITS)
    return b.bitcast(b.shl(b.zext(sixteen, kind), ir.Constant(kind, [16] * LANES)), _V)


def _store(b: Any, vector: Any, pointer: Any) -> None:
    b.store(vector, b.bitcast(pointer, ir.PointerType(vector.type)), align=4)


def _shuffle(b: Any, left: Any, right: Any, lanes: Sequence[int]) -> Any:
    return b.shuffle_vector(left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), [*lanes]))


def _first(b: Any, count: Any) -> Any:
    """A mask of the first lanes."""
    kind = ir.VectorType(_I64, LANES)
    return b.icmp_signed("<", ir.Constant(kind, [*range(LANES)]), _everywhere(b, count, kind))


def _everywhere(b: Any, number: Any, kind: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(kind, ir.Undefined)
    return _shuffle(b, b.insert_element(undefined, number, ir.Constant(_I32, 0)), undefined, [0] * LANES)


def _load_first(b: Any, pointer: Any, mask: Any, kind: Any = _V) -> Any:
    """The lanes of a mask; 0 in the others, whose memory is not touched."""
    where, name = ir.PointerType(kind), f"llvm.masked.load.v{LANES}{'f32' if kind is _V else 'i16'}.p0"
    load = cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [where, _I32, _MASK, kind]), name)
    return b.call(load, [b.bitcast(pointer, where), ir.Constant(_I32, 2), mask, ir.Constant(kind, None)])


def _store_first(b: Any, vector: Any, pointer: Any, mask: Any) -> None:
    """Write the lanes of a mask."""
    where = ir.PointerType(_V)
    kind = ir.FunctionType(ir.VoidType(), [_V, where, _I32, _MASK])
    store = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    b.call(store, [vector, b.bitcast(pointer, where), ir.Constant(_I32, 4), mask])
