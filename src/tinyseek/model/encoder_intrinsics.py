"""What numba has no words for in an encoder's loops: products of bytes four at a time (x86's VNNI), and tiles kept in registers.

A tile is TILE rows of 32 columns: 32 numbers are a group of the weights' format, an attention head, and two registers of AVX-512.
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

import math
import platform
from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic

GROUP = 32  # numbers that share a scale
TILE = 6  # rows: 12 sums of AVX-512 and what they are made of fill its 32 registers; 8 and 12 rows are a tenth slower

cgutils: Any = numba_cgutils  # untyped
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FAST = ("reassoc", "contract", "nsz")
# Highest power first: the series of 2^r, and what 1 / erfc is the sixteenth power of.
_EXP2 = tuple(math.log(2) ** n / math.factorial(n) for n in range(6, -1, -1))
_ERFC = (4.30638e-5, 2.765672e-4, 1.520143e-4, 9.2705272e-3, 0.0422820123, 0.0705230784, 1.0)


def _lanes() -> int:
    """Numbers of 32 bits in the widest register whose bytes this processor multiplies in one step; 0 if it cannot."""
    config: Any = numba.config  # its settings are made at run time, unseen by type checkers
    if platform.machine().lower() not in ("x86_64", "amd64") or config.CPU_NAME:
        return 0
    features = dict(binding.get_host_cpu_features())
    return 16 if features.get("avx512vnni") else 8 if features.get("avxvnni") else 0


LANES = _lanes()
_WIDE = LANES or 8  # for the tiles of floats, which any processor has
_COLUMNS = range(0, GROUP, _WIDE)
_FLOATS_V, _WHOLE_V = ir.VectorType(_F32, _WIDE), ir.VectorType(_I32, _WIDE)
_GROUP_F, _GROUP_I, _GROUP_B = (ir.VectorType(kind, GROUP) for kind in (_F32, _I32, _I8))


@intrinsic
def half(typing: Any, bits: Any) -> Any:
    """The number in half precision that these 16 bits are."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.fpext(b.bitcast(arguments[0], ir.HalfType()), _F32)

    return numba.float32(numba.uint16), generate


@intrinsic
def ask_for(typing: Any, w_PGW: Any, panel: Any, tile: Any, tiles: Any) -> Any:
    """Fetch one of so many shares of a panel's weights into the caches, and do not wait for it. The panel need not exist.

    A layer's weights are used once a block and lie far away by then: a tenth of the time was waiting for them.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        begin = b.bitcast(_at(context, b, signature, arguments, 0, arguments[1]), ir.PointerType(_I8))
        kinds = [ir.PointerType(_I8), _I32, _I32, _I32]
        ask = _function(b, "llvm.prefetch.p0", ir.VoidType(), *kinds)
        line = ir.Constant(_I64, 64)
        lines = b.mul(_shape(context, b, signature, arguments, 0)[1], ir.Constant(_I64, GROUP * GROUP // 64))
        tile, tiles = arguments[2:]
        first, last = (b.udiv(b.mul(lines, place), tiles) for place in (tile, _plus(b, tile, 1)))
        with cgutils.for_range_slice(b, b.mul(first, line), b.mul(last, line), line, intp=_I64) as (index, _):
            b.call(ask, [b.gep(begin, [index]), *(ir.Constant(_I32, number) for number in (0, 3, 1))])  # to read, data
        return context.get_dummy_value()

    at = numba.int64
    return numba.void(w_PGW, at, at, at), generate


@intrinsic
def to_bytes(typing: Any, x_RQ: Any, row: Any, column: Any, codes_NQ: Any, to_row: Any, to_column: Any) -> Any:
    """A group of numbers as bytes: x = scale (code - 128) with codes from 1 to 255. Returns the scale."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x = _load(b, _at(context, b, signature, arguments, 0, *arguments[1:3]), _GROUP_F)
        return _to_bytes(b, x, _at(context, b, signature, arguments, 3, *arguments[4:6]))

    at = numba.int64
    return numba.float32(x_RQ, at, at, codes_NQ, at, at), generate


@intrinsic
def gelu_to_bytes(typing: Any, x_RQ: Any, row: Any, column: Any, codes_NQ: Any, to_row: Any, to_column: Any) -> Any:
    """`to_bytes` of x times the normal distribution up to x, within 4e-7: erfc(z) = (1 + a1 z + ... + a6 z^6)^-16.

    Source: Abramowitz and Stegun 7.1.28.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x = _load(b, _at(context, b, signature, arguments, 0, *arguments[1:3]), _GROUP_F)
        magnitude = _magnitude(b, x)
        z = b.fmul(magnitude, _all(2**-0.5))
        series = _all(_ERFC[0])
        for coefficient in _ERFC[1:]:
            series = b.fadd(b.fmul(series, z, flags=_FAST), _all(coefficient), flags=_FAST)
        for _ in range(4):
            series = b.fmul(series, series)
        tail = b.fdiv(b.fmul(magnitude, _all(0.5)), series)  # where x is so large that the power is infinite: 0
        gelu = b.fsub(b.fmul(b.fadd(x, magnitude), _all(0.5)), tail, flags=_FAST)
        return _to_bytes(b, gelu, _at(context, b, signature, arguments, 3, *arguments[4:6]))

    at = numba.int64
    return numba.float32(x_RQ, at, at, codes_NQ, at, at), generate


@intrinsic
def dots(
    typing: Any,
    codes_NQ: Any,
    scale_NG: Any,
    row: Any,
    w_PGW: Any,
    start_PGW: Any,
    scale_PGW: Any,
    bias_P: Any,
    panel: Any,
    out_RQ: Any,
    to_row: Any,
    to_column: Any,
) -> Any:
    """TILE rows of bytes times a panel of 32 outputs' weights, and these outputs' bias: float32 [TILE, 32], written to out.

    Over groups: row's scale * output's scale * (start + codes . weights), where start = -128 * (sum of the group's weights) takes
    the codes' shift back. Sums of bytes are exact; a group's go to float32 once. Scales are applied by the units that multiply
    bytes too, so that 8/11 of these units' peak is the most that there is to have.

    Args:
        codes_NQ, scale_NG: uint8 and float32, as `to_bytes` makes them; G = Q / 32.
        w_PGW: int8 [P, G, 1024]: of each four inputs in turn, the four weights of each of 32 outputs.
        start_PGW, scale_PGW: int32 and float32 [P, G, 32].
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        row, panel = arguments[2], arguments[7]
        zero, four = ir.Constant(_I64, 0), 4 * GROUP
        codes, scales = (
            [_at(context, b, signature, arguments, array, _plus(b, row, t), zero) for t in range(TILE)]
            for array in (0, 1)
        )
        weights, starts, out_scales = (_at(context, b, signature, arguments, array, panel) for array in (3, 4, 5))
        groups = _shape(context, b, signature, arguments, 1)[1]
        bias = _at(context, b, signature, arguments, 6, b.mul(panel, ir.Constant(_I64, GROUP)))
        sums = [[cgutils.alloca_once(b, _FLOATS_V) for _ in _COLUMNS] for _ in range(TILE)]
        for row_sums in sums:
            for c, total in zip(_COLUMNS, row_sums, strict=True):
                b.store(_load(b, b.gep(bias, [ir.Constant(_I64, c)]), _FLOATS_V), total)
        dot = _function(b, f"llvm.x86.avx512.vpdpbusd.{32 * _WIDE}", _WHOLE_V, _WHOLE_V, _WHOLE_V, _WHOLE_V)
        with cgutils.for_range(b, groups, intp=_I64) as loop:
            first_code = b.mul(loop.index, ir.Constant(_I64, GROUP))
            first_weight = b.mul(loop.index, ir.Constant(_I64, GROUP * GROUP))
            begun = [_load(b, b.gep(starts, [_plus(b, first_code, c)]), _WHOLE_V) for c in _COLUMNS]
            whole = [list(begun) for _ in range(TILE)]
            for step in range(GROUP // 4):
                packed = [
                    _load(b, b.gep(weights, [_plus(b, first_weight, step * four + 4 * c)]), _WHOLE_V) for c in _COLUMNS
                ]
                for t in range(TILE):
                    inputs = _splat(b, _load(b, b.gep(codes[t], [_plus(b, first_code, 4 * step)]), _I32), _WHOLE_V)
                    whole[t] = [b.call(dot, [w, inputs, p]) for w, p in zip(whole[t], packed, strict=True)]
            factors = [_load(b, b.gep(out_scales, [_plus(b, first_code, c)]), _FLOATS_V) for c in _COLUMNS]
            for t in range(TILE):
                scale = _splat(b, b.load(b.gep(scales[t], [loop.index])), _FLOATS_V)
                for total, w, factor in zip(sums[t], whole[t], factors, strict=True):
                    product = b.fmul(b.sitofp(w, _FLOATS_V), b.fmul(factor, scale), flags=_FAST)
                    b.store(b.fadd(b.load(total), product, flags=_FAST), total)
        _put(context, b, signature, arguments, 8, sums)
        return context.get_dummy_value()

    at = numba.int64
    return numba.void(codes_NQ, scale_NG, at, w_PGW, start_PGW, scale_PGW, bias_P, at, out_RQ, at, at), generate


@intrinsic
def floats(
    typing: Any,
    a_NQ: Any,
    row: Any,
    inner: Any,
    b_QP: Any,
    from_row: Any,
    from_column: Any,
    out_RQ: Any,
    to_row: Any,
    to_column: Any,
) -> Any:
    """out = a[row : row + TILE, :inner] @ b[from_row : from_row + inner, from_column : from_column + 32], float32."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        row, inner, from_row, from_column = (arguments[place] for place in (1, 2, 4, 5))
        zero = ir.Constant(_I64, 0)
        left = [_at(context, b, signature, arguments, 0, _plus(b, row, t), zero) for t in range(TILE)]
        right = _at(context, b, signature, arguments, 3, from_row, from_column)
        stride = _shape(context, b, signature, arguments, 3)[1]
        sums = [[cgutils.alloca_once(b, _FLOATS_V) for _ in _COLUMNS] for _ in range(TILE)]
        for total in (total for row_sums in sums for total in row_sums):
            b.store(ir.Constant(_FLOATS_V, [0.0] * _WIDE), total)
        with cgutils.for_range(b, inner, intp=_I64) as loop:
            begin = b.mul(loop.index, stride)
            columns = [_load(b, b.gep(right, [_plus(b, begin, c)]), _FLOATS_V) for c in _COLUMNS]
            for t in range(TILE):
                factor = _splat(b, b.load(b.gep(left[t], [loop.index])), _FLOATS_V)
                for total, column in zip(sums[t], columns, strict=True):
                    b.store(b.fadd(b.load(total), b.fmul(factor, column, flags=_FAST), flags=_FAST), total)
        _put(context, b, signature, arguments, 6, sums)
        return context.get_dummy_value()

    at = numba.int64
    return numba.void(a_NQ, at, at, b_QP, at, at, out_RQ, at, at), generate


@intrinsic
def soften(typing: Any, x_RQ: Any, row: Any, count: Any) -> Any:
    """x = 2^(x - the greatest), in place, of a row's first `count`; returns their sum. `count` is a multiple of LANES.

    Within two units in the last place: x = n + r with |r| <= 1/2; 2^r by its series; 2^n by its bits. Less than 2^-100 is 2^-100.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        begin = _at(context, b, signature, arguments, 0, arguments[1])
        zero, step = ir.Constant(_I64, 0), ir.Constant(_I64, _WIDE)
        name = f"v{_WIDE}f32"
        greatest = cgutils.alloca_once(b, _FLOATS_V)
        b.store(ir.Constant(_FLOATS_V, [-3e38] * _WIDE), greatest)
        with cgutils.for_range_slice(b, zero, arguments[2], step, intp=_I64) as (index, _):
            x, top = _load(b, b.gep(begin, [index]), _FLOATS_V), b.load(greatest)
            b.store(b.select(b.fcmp_ordered(">", x, top), x, top), greatest)
        top = b.call(
            _function(b, f"llvm.vector.reduce.fmax.{name}", _F32, _FLOATS_V), [b.load(greatest)], fastmath=("nnan",)
        )
        tops, least = _splat(b, top, _FLOATS_V), ir.Constant(_FLOATS_V, [-100.0] * _WIDE)
        total = cgutils.alloca_once(b, _FLOATS_V)
        b.store(ir.Constant(_FLOATS_V, [0.0] * _WIDE), total)
        rint = _function(b, f"llvm.rint.{name}", _FLOATS_V, _FLOATS_V)
        with cgutils.for_range_slice(b, zero, arguments[2], step, intp=_I64) as (index, _):
            place = b.bitcast(b.gep(begin, [index]), ir.PointerType(_FLOATS_V))
            x = b.fsub(b.load(place, align=4), tops)
            x = b.select(b.fcmp_ordered(">", x, least), x, least)
            whole = b.call(rint, [x])
            rest = b.fsub(x, whole)
            series = ir.Constant(_FLOATS_V, [_EXP2[0]] * _WIDE)
            for coefficient in _EXP2[1:]:
                product = b.fmul(series, rest, flags=_FAST)
                series = b.fadd(product, ir.Constant(_FLOATS_V, [coefficient] * _WIDE), flags=_FAST)
            biased = b.add(b.fptosi(whole, _WHOLE_V), ir.Constant(_WHOLE_V, [127] * _WIDE))
            power = b.bitcast(b.shl(biased, ir.Constant(_WHOLE_V, [23] * _WIDE)), _FLOATS_V)
            x = b.fmul(series, power)
            b.store(x, place, align=4)
            b.store(b.fadd(b.load(total), x, flags=_FAST), total)
        add = _function(b, f"llvm.vector.reduce.fadd.{name}", _F32, _F32, _FLOATS_V)
        return b.call(add, [ir.Constant(_F32, 0.0), b.load(total)], fastmath=_FAST)

    at = numba.int64
    return numba.float32(x_RQ, at, at), generate


def _to_bytes(builder: Any, x: Any, place: Any) -> Any:
    """Write a group's codes, and give its scale."""
    reduce = _function(builder, f"llvm.vector.reduce.fmax.v{GROUP}f32", _F32, _GROUP_F)
    greatest = builder.call(reduce, [_magnitude(builder, x)], fastmath=("nnan",))
    none = builder.fcmp_ordered("==", greatest, ir.Constant(_F32, 0.0))
    inverse = builder.select(none, ir.Constant(_F32, 0.0), builder.fdiv(ir.Constant(_F32, 127.0), greatest))
    rint = _function(builder, f"llvm.rint.v{GROUP}f32", _GROUP_F, _GROUP_F)
    whole = builder.call(rint, [builder.fmul(x, _splat(builder, inverse, _GROUP_F))])
    codes = builder.add(builder.fptosi(whole, _GROUP_I), ir.Constant(_GROUP_I, [128] * GROUP))
    builder.store(builder.trunc(codes, _GROUP_B), builder.bitcast(place, ir.PointerType(_GROUP_B)), align=1)
    return builder.fmul(greatest, ir.Constant(_F32, 1 / 127))


def _magnitude(builder: Any, x: Any) -> Any:
    return builder.call(_function(builder, f"llvm.fabs.v{GROUP}f32", _GROUP_F, _GROUP_F), [x])


def _all(number: float) -> Any:
    """A group of one constant."""
    return ir.Constant(_GROUP_F, [number] * GROUP)


def _function(builder: Any, name: str, result: Any, *kinds: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name)


def _shape(context: Any, builder: Any, signature: Any, arguments: Any, array: int) -> Any:
    kind = signature.args[array]
    return cgutils.unpack_tuple(builder, context.make_array(kind)(context, builder, arguments[array]).shape, kind.ndim)


def _at(context: Any, builder: Any, signature: Any, arguments: Any, array: int, *place: Any) -> Any:
    """Where an element of an array lies; places that are not said are 0."""
    kind = signature.args[array]
    data = context.make_array(kind)(context, builder, arguments[array]).data
    offset = ir.Constant(_I64, 0)
    for length, index in zip(
        _shape(context, builder, signature, arguments, array),
        (*place, *[ir.Constant(_I64, 0)] * (kind.ndim - len(place))),
        strict=True,
    ):
        offset = builder.add(builder.mul(offset, length), index)
    return builder.gep(data, [offset])


def _put(context: Any, builder: Any, signature: Any, arguments: Any, array: int, sums: Any) -> None:
    """Write a tile to the array; the two arguments after it say where."""
    row, column = arguments[array + 1], arguments[array + 2]
    for t in range(TILE):
        place = _at(context, builder, signature, arguments, array, _plus(builder, row, t), column)
        for c, total in zip(_COLUMNS, sums[t], strict=True):
            target = builder.bitcast(builder.gep(place, [ir.Constant(_I64, c)]), ir.PointerType(_FLOATS_V))
            builder.store(builder.load(total), target, align=4)


def _plus(builder: Any, number: Any, more: int) -> Any:
    return builder.add(number, ir.Constant(_I64, more))


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(pointer, ir.PointerType(kind)), align=1)


def _splat(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))
