"""Quantised numbers: small blocks of integers, each block with its own scale. NumPy, whole tensors at once.

A block of the first kind ("_0") is d * q, of the second ("_1") d * q + m; the K kinds share one float16 scale among sixteen small
blocks of a superblock of 256, whose own scales are integers of 4 to 8 bits. Every format here is equal, bit for bit, to ggml's.
Source: ggml-quants.c and ggml-common.h of github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
_AT_ONCE = 1 << 22  # numbers: what is worked on at a time, so that a large matrix needs no copies of itself
# IQ4_NL's sixteen levels, denser near zero, where most weights are.
_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_OTHER_NAMES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}


def _half(b: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, [n, 1]."""
    return b[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(b: Bytes) -> Bytes:
    """[n, 16] bytes to [n, 32]: the low halves, then the high ones."""
    return np.concatenate([b & 15, b >> 4], axis=1)


def _fifth_bits(b: Bytes) -> Bytes:
    """[n, 4] bytes, one bit a number, to [n, 32] of 0 or 16."""
    return np.left_shift(np.unpackbits(b, axis=1, bitorder="little"), 4, dtype=np.uint8)


def _f32(b: Bytes) -> Floats:
    return b.copy().view("<f4")


def _f16(b: Bytes) -> Floats:
    return b.copy().view("<f2").astype(np.float32)


def _bf16(b: Bytes) -> Floats:
    return (b.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.float32) - 16)


def _q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(b: Bytes) -> Floats:
    return _half(b, 0) * _LEVELS[_nibbles(b[:, 2:])]


def _pairs(b: Bytes, shifts: tuple[int, ...], width: int) -> Bytes:
    """[n, m, 32] bytes to [n, m, len(shifts), 32]: for each shift, `width` bits of every byte."""
    return (b[:, :, None, :] >> np.array(shifts, np.uint8)[:, None]) & np.uint8((1 << width) - 1)


def _q2_k(b: Bytes) -> Floats:
    """16 blocks of 16: scale and minimum of 4 bits each, numbers of 2 bits."""
    scales = b[:, :16]
    q = _pairs(b[:, 16:80].reshape(-1, 2, 32), (0, 2, 4, 6), 2).reshape(-1, 16, 16)
    d, dmin = _half(b, 80), _half(b, 82)
    scale, minimum = d * (scales & 15).astype(np.float32), dmin * (scales >> 4).astype(np.float32)
    return (scale[:, :, None] * q.astype(np.float32) - minimum[:, :, None]).reshape(-1, 256)


def _q3_k(b: Bytes) -> Floats:
    """16 blocks of 16: scales of 6 bits, numbers of 2 bits and a third one, kept apart, that says "do not subtract 4"."""
    high, q, packed = b[:, :32], b[:, 32:96].reshape(-1, 2, 32), b[:, 96:108]
    low4 = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top2 = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = _half(b, 108) * ((low4 | (top2 << 4)).astype(np.float32) - 32)
    kept = (high[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    numbers = _pairs(q, (0, 2, 4, 6), 2).reshape(-1, 8, 32).astype(np.int8) - ((kept ^ 1) << 2).astype(np.int8)
    out: Floats = scale[:, :, None] * numbers.reshape(-1, 16, 16).astype(np.float32)
    return out.reshape(-1, 256)


def _scales_6bit(b: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes that hold 8 scales and 8 minima of 6 bits, [n, 8] each."""
    first, second, third = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _k4(b: Bytes, q: NDArray[np.integer]) -> Floats:
    """8 blocks of 32 numbers `q` with scales and minima of 6 bits, d and dmin before them."""
    scales, minima = _scales_6bit(b[:, 4:16])
    scale, minimum = _half(b, 0) * scales.astype(np.float32), _half(b, 2) * minima.astype(np.float32)
    return (scale[:, :, None] * q.astype(np.float32) - minimum[:, :, None]).reshape(-1, 256)


def _q4_k(b: Bytes) -> Floats:
    return _k4(b, _pairs(b[:, 16:].reshape(-1, 4, 32), (0, 4), 4).reshape(-1, 8, 32))


def _q5_k(b: Bytes) -> Floats:
    fifth = ((b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1) * np.uint8(16)
    return _k4(b, _pairs(b[:, 48:].reshape(-1, 4, 32), (0, 4), 4).reshape(-1, 8, 32) | fifth)


def _q6_k(b: Bytes) -> Floats:
    """16 blocks of 16: scales of 8 bits, numbers of 4 bits and 2 more, kept apart."""
    low = b[:, :128].reshape(-1, 2, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 8, 32)
    high = _pairs(b[:, 128:192].reshape(-1, 2, 32), (0, 2, 4, 6), 2).reshape(-1, 8, 32)
    scale = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    q = ((low | (high << 4)).astype(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    return (scale[:, :, None] * q.astype(np.float32)).reshape(-1, 256)


def _iq4_xs(b: Bytes) -> Floats:
    """8 blocks of 32 of IQ4_NL's levels: scales of 6 bits, two of them kept apart."""
    high = b[:, 2:4].copy().view("<u2")
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    top = ((high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8)
    scale = _half(b, 0) * ((low | (top << 4)).astype(np.float32) - 32)
    q = b[:, 8:].reshape(-1, 8, 16)
    out: Floats = scale[:, :, None] * _LEVELS[np.concatenate([q & 15, q >> 4], axis=2)]
    return out.reshape(-1, 256)


class Block(NamedTuple):
    """One format: how many numbers a block holds, in how many bytes, and how to read them."""

    name: str
    numbers: int
    nbytes: int
    read: Callable[[Bytes], Floats]


BLOCKS: dict[int, Block] = {
    F32: Block("F32", 1, 4, _f32),
    F16: Block("F16", 1, 2, _f16),
    Q4_0: Block("Q4_0", 32, 18, _q4_0),
    Q4_1: Block("Q4_1", 32, 20, _q4_1),
    6: Block("Q5_0", 32, 22, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    Q8_0: Block("Q8_0", 32, 34, _q8_0),
    10: Block("Q2_K", 256, 84, _q2_k),
    11: Block("Q3_K", 256, 110, _q3_k),
    12: Block("Q4_K", 256, 144, _q4_k),
    13: Block("Q5_K", 256, 176, _q5_k),
    14: Block("Q6_K", 256, 210, _q6_k),
    20: Block("IQ4_NL", 32, 18, _iq4_nl),
    23: Block("IQ4_XS", 256, 136, _iq4_xs),
    BF16: Block("BF16", 1, 2, _bf16),
}


def type_name(kind: int) -> str:
    """What people call a format, also one that is not read."""
    return BLOCKS[kind].name if kind in BLOCKS else _OTHER_NAMES.get(kind, f"number {kind}")


def dequantize(raw: Bytes, kind: int) -> Floats:
    """The numbers, flat float32, that the bytes of whole blocks stand for."""
    block = BLOCKS[kind]
    blocks = raw.reshape(-1, block.nbytes)
    out = np.empty((blocks.shape[0], block.numbers), np.float32)
    step = max(_AT_ONCE // block.numbers, 1)
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale may be infinite: that is what the file says
        for start in range(0, blocks.shape[0], step):
            part = blocks[start : start + step]
            out[start : start + step] = block.read(part).reshape(part.shape[0], -1)
    return out.reshape(-1)


# ---- the other way ---------------------------------------------------------------------------------------------------------------


def quantize(numbers: Floats, kind: int) -> Bytes:
    """The bytes, flat, of `numbers` (their last dimension whole blocks) in F32, F16, BF16, Q8_0, Q4_0 or Q4_1."""
    write = _WRITERS[kind]
    flat = np.ascontiguousarray(numbers, np.float32).reshape(-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        parts = [write(flat[start : start + _AT_ONCE]).reshape(-1) for start in range(0, flat.size, _AT_ONCE)]
    return np.concatenate(parts)


def _to_bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(values.shape[0], -1)


def _write_f16(flat: Floats) -> Bytes:
    return _to_bytes(flat.astype("<f2"))


def _write_bf16(flat: Floats) -> Bytes:
    """Rounded to the nearest, ties to even; what is no number stays none."""
    bits = flat.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return _to_bytes(np.where(np.isnan(flat), (bits >> 16) | 64, rounded).astype("<u2"))


def _inverse(d: Floats) -> Floats:
    return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _joined(*parts: NDArray[np.generic]) -> Bytes:
    return np.concatenate([_to_bytes(part) for part in parts], axis=1)


def _packed(q: Bytes) -> Bytes:
    return q[:, :16] | (q[:, 16:] * np.uint8(16))


def _write_q8_0(flat: Floats) -> Bytes:
    x = flat.reshape(-1, 32)
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    q = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)  # C's roundf: halves away from zero
    return _joined(d.astype("<f2"), q.astype(np.int8))


def _write_q4_0(flat: Floats) -> Bytes:
    x = flat.reshape(-1, 32)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-8)
    # In float64, because C may fuse the product and the sum and then round once.
    q = np.trunc(x.astype(np.float64) * _inverse(d).astype(np.float64) + 8.5).clip(0, 15).astype(np.uint8)
    return _joined(d.astype("<f2"), _packed(q))


def _write_q4_1(flat: Floats) -> Bytes:
    x = flat.reshape(-1, 32)
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.trunc((x - low) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return _joined(d.astype("<f2"), low.astype("<f2"), _packed(q))


_WRITERS: dict[int, Callable[[Floats], Bytes]] = {
    F32: lambda flat: _to_bytes(flat.astype("<f4")),
    F16: _write_f16,
    BF16: _write_bf16,
    Q8_0: _write_q8_0,
    Q4_0: _write_q4_0,
    Q4_1: _write_q4_1,
}
