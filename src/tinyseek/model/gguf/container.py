"""The container: a header of typed keys, a table of tensors, then their data. Memory-mapped; nothing in it is believed.

Every length and offset is compared with what is left of the file before anything is allocated for it, so that a file cut short,
or made to lie, is told as such in a moment and in little memory. Numbers are little-endian.
Source: docs/gguf.md of github.com/ggml-org/ggml, versions 2 and 3 (which differ in allowing the other byte order, not read here).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.model.gguf.quants import BLOCKS, dequantize, type_name

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
_KEY_BYTES, _TENSOR_BYTES = 13, 32  # the shortest key with its value; the shortest entry of the tensor table
_DEEPEST = 4  # arrays of arrays; nothing published has more than one level
_STRING, _ARRAY = 8, 9
# Type number -> NumPy's. 7 is a bool of one byte.
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is NumPy's order: rows first, the numbers of a row, which are contiguous, last."""

    name: str
    shape: tuple[int, ...]
    type: int  # of its numbers: see `quants.BLOCKS`
    offset: int  # bytes from the beginning of the file
    nbytes: int


class _Cursor:
    """Reads forward through the mapped file, never past its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: damaged GGUF: {what} (at byte {self.at:,}); copy or download it again")

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.data) - self.at:
            raise self.damaged(
                f"{what} needs {count:,} bytes, but only {len(self.data) - self.at:,} are left of the file"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str, what: str) -> int:
        value: int = struct.unpack(f"<{layout}", self.take(struct.calcsize(layout), what))[0]
        return value

    def count(self, least: int, what: str) -> int:
        """A number of things of which each takes at least `least` bytes."""
        count = self.number("Q", f"the number of {what}")
        if count * least > len(self.data) - self.at:
            raise self.damaged(f"{count:,} {what} are announced, more than the file can hold")
        return count

    def string(self, what: str) -> str:
        raw = self.take(self.count(1, f"bytes of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is no UTF-8 text") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            dtype = _NUMBERS[kind]
            return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or depth == _DEEPEST:
            raise self.damaged(
                f"{what} has the unknown type {kind}" if kind != _ARRAY else f"{what} is nested too deep"
            )
        inner = self.number("I", what)
        if inner in _NUMBERS:
            dtype = _NUMBERS[inner]
            count = self.count(dtype.itemsize, f"numbers in {what}")
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        count = self.count(12 if inner == _ARRAY else 8, f"entries in {what}")
        return [self.value(inner, what, depth + 1) for _ in range(count)]


class Reader:
    """An open GGUF: `metadata` (arrays of numbers as NumPy's), `tensors`, and their numbers on request."""

    def __init__(self, path: Path) -> None:
        """Open and read the header.

        Raises:
            UserError: no file, no GGUF, a version or byte order that is not read, one part of a file in several, or a damaged one.
        """
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < 24:
                    raise UserError(f"{path}: too short for a GGUF file; copy or download it again")
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        cursor = _Cursor(self._data, path)
        tensors, keys = self._head(cursor)
        for _ in range(keys):
            name = cursor.string("the name of a key")
            if name in self.metadata:
                raise cursor.damaged(f'the key "{name}" stands there twice')
            self.metadata[name] = cursor.value(cursor.number("I", f'the type of "{name}"'), f'"{name}"')
        self._alignment = self._read_alignment(cursor)
        self._table(cursor, tensors)

    def _head(self, cursor: _Cursor) -> tuple[int, int]:
        if cursor.take(4, "the first word") != MAGIC:
            raise UserError(f"{self.path}: is no GGUF file (it does not begin with GGUF)")
        version = cursor.number("I", "the version")
        if version not in (2, 3):
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            why = "written for big-endian machines" if big_endian else f"GGUF version {version}"
            raise UserError(f"{self.path}: {why}; versions 2 and 3 in little-endian order are read")
        tensors = cursor.count(_TENSOR_BYTES, "tensors")
        return tensors, cursor.count(_KEY_BYTES, "keys")

    def _read_alignment(self, cursor: _Cursor) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
        parts = self.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise UserError(
                f"{self.path}: is one of {parts} parts of a model; join them first: llama-gguf-split --merge FIRST OUT"
            )
        return alignment

    def _table(self, cursor: _Cursor, count: int) -> None:
        found = []
        for _ in range(count):
            name = cursor.string("the name of a tensor")
            dims = cursor.number("I", f"the number of dimensions of {name}")
            if not 1 <= dims <= 4:
                raise cursor.damaged(f"{name} has {dims} dimensions")
            shape = tuple(reversed([cursor.number("Q", f"the shape of {name}") for _ in range(dims)]))
            found.append(
                (name, shape, cursor.number("I", f"the type of {name}"), cursor.number("Q", f"where {name} is"))
            )
        start = -(-cursor.at // self._alignment) * self._alignment
        room = len(self._data) - start
        total = 0
        for name, shape, kind, offset in found:
            nbytes = self._size(cursor, name, shape, kind)
            if offset % self._alignment:
                raise cursor.damaged(f"{name} begins at {offset:,}, which is no multiple of {self._alignment}")
            if offset + nbytes > room:
                raise cursor.damaged(
                    f"{name} should lie at {offset:,} and take {nbytes:,} bytes, but there are only {max(room, 0):,}"
                )
            if name in self.tensors:
                raise cursor.damaged(f"the tensor {name} stands there twice")
            self.tensors[name] = TensorInfo(name, shape, kind, start + offset, nbytes)
            total += nbytes
        if total > max(room, 0):  # or a small file could unfold into a disk full of copies
            raise cursor.damaged("its tensors overlap")

    def _size(self, cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int) -> int:
        if kind not in BLOCKS:
            known = ", ".join(block.name for block in BLOCKS.values())
            raise UserError(
                f"{self.path}: {name} is in the format {type_name(kind)}, which is not read; read are {known}"
            )
        block = BLOCKS[kind]
        numbers = 1
        for size in shape:
            numbers *= size
        if not numbers or shape[-1] % block.numbers:
            raise cursor.damaged(f"{name} of {block.name} cannot have the shape {list(shape)}")
        return numbers // block.numbers * block.nbytes

    def tensor(self, name: str, part: int | None = None) -> NDArray[np.float32]:
        """The numbers of a tensor, or of one entry of its first dimension (an expert of a stack), as float32.

        Raises:
            UserError: there is no such tensor.
        """
        if name not in self.tensors:
            raise UserError(f"{self.path}: the tensor {name} is not in it")
        info = self.tensors[name]
        shape, begin, nbytes = info.shape, info.offset, info.nbytes
        if part is not None:
            shape, nbytes = shape[1:], nbytes // shape[0]
            begin += part * nbytes
        raw = np.frombuffer(self._data, np.uint8, nbytes, begin)
        return dequantize(raw, info.type).reshape(shape)

    def close(self) -> None:
        """Let go of the file. Arrays given out before stay good: they are copies."""
        self._data.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- writing ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to write: what the table says of it, and how to get its bytes when their turn comes."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Callable[[], NDArray[np.uint8]]  # flat, as many bytes as `nbytes`

    @property
    def nbytes(self) -> int:
        block = BLOCKS[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // block.numbers * block.nbytes


class Kind:
    """A metadata value with the type that readers expect of it, where Python's own type does not say it."""

    def __init__(self, number: int, value: Any) -> None:
        self.number, self.value = number, value


def u32(value: int) -> Kind:
    """An unsigned number of 32 bits, which most keys are."""
    return Kind(4, value)


def f32(value: float) -> Kind:
    """A float of 32 bits."""
    return Kind(6, value)


def i32s(values: Iterable[int]) -> Kind:
    """An array of signed numbers of 32 bits."""
    return Kind(_ARRAY, np.asarray(list(values), "<i4"))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):  # of strings
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    assert isinstance(value, Kind), f"the type of {value!r} must be said"
    if value.number == _ARRAY:
        inner = next(number for number, dtype in _NUMBERS.items() if dtype == value.value.dtype)
        return struct.pack("<IIQ", _ARRAY, inner, value.value.size) + bytes(value.value.tobytes())
    number: bytes = np.asarray(value.value, _NUMBERS[value.number]).tobytes()
    return struct.pack("<I", value.number) + number


def write(
    stream: IO[bytes], metadata: Mapping[str, Any], tensors: Iterable[TensorPlan], done: Callable[[int], None]
) -> None:
    """Write a whole file, one tensor at a time.

    Args:
        stream: open for writing.
        metadata: text, bool, lists of text, or numbers with their type (`u32`, `f32`, `i32s`).
        tensors: their data is asked for once, in this order.
        done: is told the bytes of tensors written so far.
    """
    plans = list(tensors)
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(plans), len(metadata))]
    head += [_string(name) + _value(value) for name, value in metadata.items()]
    offset = 0
    for plan in plans:
        dims = struct.pack(f"<I{len(plan.shape)}Q", len(plan.shape), *reversed(plan.shape))
        head.append(_string(plan.name) + dims + struct.pack("<IQ", plan.type, offset))
        offset += -(-plan.nbytes // ALIGNMENT) * ALIGNMENT
    header = b"".join(head)
    stream.write(header + bytes(-len(header) % ALIGNMENT))
    written = 0
    for plan in plans:
        data = plan.data()
        assert data.nbytes == plan.nbytes, f"{plan.name}: {data.nbytes} bytes, {plan.nbytes} were announced"
        stream.write(data.data)
        stream.write(bytes(-data.nbytes % ALIGNMENT))
        written += data.nbytes
        done(written)
