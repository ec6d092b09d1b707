"""What numba has no words for: numbers of 4, 8 and 16 bits widened in registers, written in the compiler's own language.

The code is LLVM's portable vector form, not one processor's: AVX2, AVX-512 and NEON all have what it asks for.
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic

# int4: 64 neighbouring weights lie in 32 bytes, the first 32 in the low halves; each 32 have a scale and a least value.
BYTES = 32
LANES = 16  # numbers a vector: one register of AVX-512, two of AVX2, four of NEON

cgutils: Any = numba_cgutils  # untyped
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES_V, _FLOATS_V = ir.VectorType(_I8, LANES), ir.VectorType(_F32, LANES)
_FAST = ("reassoc", "contract", "nsz")


def _scalar(argument: Any, build: Any) -> Any:
    """An intrinsic of one number that comes out as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return build(builder, arguments[0])

    return numba.float32(argument), generate


@intrinsic
def bfloat16(typing: Any, bits: Any) -> Any:
    """The number whose upper half these 16 bits are."""
    return _scalar(numba.uint16, lambda b, x: b.bitcast(b.shl(b.zext(x, _I32), ir.Constant(_I32, 16)), _F32))


@intrinsic
def float16(typing: Any, bits: Any) -> Any:
    """The number in half precision that these 16 bits are."""
    return _scalar(numba.uint16, lambda b, x: b.fpext(b.bitcast(x, ir.HalfType()), _F32))


@intrinsic
def int8(typing: Any, number: Any) -> Any:
    """A small whole number, without the detour over 64 bits that numba makes."""
    return _scalar(numba.int8, lambda b, x: b.sitofp(x, _F32))


@intrinsic
def low(typing: Any, byte: Any) -> Any:
    """The lower four bits, 0 to 15."""
    return _scalar(numba.uint8, lambda b, x: b.uitofp(b.and_(x, ir.Constant(_I8, 15)), _F32))


@intrinsic
def high(typing: Any, byte: Any) -> Any:
    """The upper four bits, 0 to 15."""
    return _scalar(numba.uint8, lambda b, x: b.uitofp(b.lshr(x, ir.Constant(_I8, 4)), _F32))


@intrinsic
def rounded(typing: Any, number: Any) -> Any:
    """The nearest whole number, as float32."""

    def build(b: Any, x: Any) -> Any:
        rint = cgutils.get_or_insert_function(b.module, ir.FunctionType(_F32, [_F32]), "llvm.rint.f32")
        return b.call(rint, [x])

    return _scalar(numba.float32, build)


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, made out of its bits."""

    def build(b: Any, x: Any) -> Any:
        biased = b.add(b.fptosi(x, _I32), ir.Constant(_I32, 127))
        return b.bitcast(b.shl(biased, ir.Constant(_I32, 23)), _F32)

    return _scalar(numba.float32, build)


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the line of memory that an element lies in, and do not wait for it. The element need not exist."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, b, arguments[0]).data
        pointer = b.bitcast(b.gep(data, [arguments[1]]), ir.PointerType(_I8))
        kinds = [ir.PointerType(_I8), _I32, _I32, _I32]
        ask = cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
        b.call(ask, [pointer, *(ir.Constant(_I32, number) for number in (0, 3, 1))])  # to read, into all caches, data
        return context.get_dummy_value()

    return numba.void(array, index), generate


@intrinsic
def int4_dot(typing: Any, bytes_J: Any, scale_G: Any, least_G: Any, x_Q: Any, sums_G: Any) -> Any:
    """A row of int4 times x: over groups, scale * (nibbles . x) + least * (sum of x).

    Two accumulators stay in registers over the whole row, one for the low and one for the high halves; loops that numba vectorises
    by itself would add up every group across the register: half the speed.

    Args:
        bytes_J: uint8, J a multiple of 32; scale_G, least_G: float16 bits, J / 16 of each.
        x_Q: float32, Q = 2 J; sums_G: float32, of each 32 numbers of x.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        arrays = [context.make_array(t)(context, b, v) for t, v in zip(signature.args, arguments, strict=True)]
        weights, scales, leasts, xs, x_sums = (array.data for array in arrays)
        count = cgutils.unpack_tuple(b, arrays[0].shape, 1)[0]
        sums = [cgutils.alloca_once_value(b, ir.Constant(_FLOATS_V, [0.0] * LANES)) for _ in range(2)]

        rest = cgutils.alloca_once_value(b, ir.Constant(_F32, 0.0))

        def at(pointer: Any, base: Any, offset: int) -> Any:
            return b.gep(pointer, [b.add(base, ir.Constant(_I64, offset))])

        with cgutils.for_range(b, b.udiv(count, ir.Constant(_I64, BYTES)), intp=_I64) as loop:
            first_byte = b.mul(loop.index, ir.Constant(_I64, BYTES))
            first_x = b.mul(loop.index, ir.Constant(_I64, 2 * BYTES))
            first_scale = b.mul(loop.index, ir.Constant(_I64, 2))
            packed = [_load(b, at(weights, first_byte, k), _BYTES_V) for k in range(0, BYTES, LANES)]
            for half, total in enumerate(sums):
                products = []
                for k, lanes in enumerate(packed):
                    mask, shift = ir.Constant(_BYTES_V, [15] * LANES), ir.Constant(_BYTES_V, [4] * LANES)
                    nibbles = b.lshr(lanes, shift) if half else b.and_(lanes, mask)
                    x = _load(b, at(xs, first_x, half * BYTES + k * LANES), _FLOATS_V)
                    products.append(b.fmul(b.uitofp(nibbles, _FLOATS_V), x, flags=_FAST))
                group = products[0]
                for product in products[1:]:
                    group = b.fadd(group, product, flags=_FAST)
                scale, least = (
                    b.fpext(b.bitcast(b.load(at(bits, first_scale, half)), ir.HalfType()), _F32)
                    for bits in (scales, leasts)
                )
                x_sum = b.load(at(x_sums, first_scale, half))
                b.store(b.fadd(b.load(rest), b.fmul(least, x_sum, flags=_FAST), flags=_FAST), rest)
                b.store(b.fadd(b.load(total), b.fmul(group, _splat(b, scale), flags=_FAST), flags=_FAST), total)
        return _sum(b, b.load(rest), b.fadd(b.load(sums[0]), b.load(sums[1]), flags=_FAST))

    return numba.float32(bytes_J, scale_G, least_G, x_Q, sums_G), generate


@intrinsic
def dot(typing: Any, a_Q: Any, b_SQ: Any, row: Any) -> Any:
    """a . b[row], float32. For short vectors: a loop that numba vectorises spends most of its time on beginning and ending, and
    an array cut out of another on counting who holds it.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        left, right = (
            context.make_array(t)(context, b, v) for t, v in zip(signature.args[:2], arguments[:2], strict=True)
        )
        width, lanes = cgutils.unpack_tuple(b, left.shape, 1)[0], ir.Constant(_I64, LANES)
        begin = b.gep(right.data, [b.mul(arguments[2], cgutils.unpack_tuple(b, right.shape, 2)[1])])
        total, rest = _variable(b, _FLOATS_V), _variable(b, _F32)
        whole = b.mul(b.udiv(width, lanes), lanes)
        with cgutils.for_range_slice(b, ir.Constant(_I64, 0), whole, lanes, intp=_I64) as (index, _):
            product = b.fmul(*(_load(b, b.gep(data, [index]), _FLOATS_V) for data in (left.data, begin)), flags=_FAST)
            b.store(b.fadd(b.load(total), product, flags=_FAST), total)
        with cgutils.for_range_slice(b, whole, width, ir.Constant(_I64, 1), intp=_I64) as (index, _):
            product = b.fmul(*(b.load(b.gep(data, [index])) for data in (left.data, begin)), flags=_FAST)
            b.store(b.fadd(b.load(rest), product, flags=_FAST), rest)
        return _sum(b, b.load(rest), b.load(total))

    return numba.float32(a_Q, b_SQ, numba.int64), generate


@intrinsic
def add_rows(typing: Any, weight_S: Any, first: Any, count: Any, rows_SQ: Any, row: Any, step: Any, out_Q: Any) -> Any:
    """out += sum_i weight[first + i] rows[row + i step] over `count` of them, float32; each vector of out stays in a register."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        first, count, row, step = arguments[1], arguments[2], arguments[4], arguments[5]
        weights, rows, out = (
            context.make_array(signature.args[place])(context, b, arguments[place]) for place in (0, 3, 6)
        )
        width = cgutils.unpack_tuple(b, out.shape, 1)[0]
        begin, stride = b.gep(rows.data, [b.mul(row, width)]), b.mul(step, width)
        lanes, one = ir.Constant(_I64, LANES), ir.Constant(_I64, 1)
        whole = b.mul(b.udiv(width, lanes), lanes)

        def column(place: Any, kind: Any) -> None:
            target = b.bitcast(b.gep(out.data, [place]), ir.PointerType(kind))
            total = cgutils.alloca_once(b, kind)
            b.store(b.load(target, align=4), total)
            with cgutils.for_range(b, count, intp=_I64) as loop:
                weight = b.load(b.gep(weights.data, [b.add(first, loop.index)]))
                number = _load(b, b.gep(begin, [b.add(b.mul(loop.index, stride), place)]), kind)
                product = b.fmul(_splat(b, weight) if kind is _FLOATS_V else weight, number, flags=_FAST)
                b.store(b.fadd(b.load(total), product, flags=_FAST), total)
            b.store(b.load(total), target, align=4)

        with cgutils.for_range_slice(b, ir.Constant(_I64, 0), whole, lanes, intp=_I64) as (index, _):
            column(index, _FLOATS_V)
        with cgutils.for_range_slice(b, whole, width, one, intp=_I64) as (index, _):
            column(index, _F32)
        return context.get_dummy_value()

    whole = numba.int64
    return numba.void(weight_S, whole, whole, rows_SQ, whole, whole, out_Q), generate


def _variable(builder: Any, kind: Any) -> Any:
    """A number or a vector to add up in, zero from here on: also the next time that this place is passed."""
    place = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, [0.0] * LANES if kind is _FLOATS_V else 0.0), place)
    return place


def _sum(builder: Any, number: Any, vector: Any) -> Any:
    """A number and all of a vector's, added up."""
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32, _FLOATS_V]), name)
    return builder.call(reduce, [number, vector], fastmath=_FAST)


def _load(builder: Any, pointer: Any, vector: Any) -> Any:
    return builder.load(builder.bitcast(pointer, ir.PointerType(vector)), align=1)


def _splat(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(_FLOATS_V, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))
