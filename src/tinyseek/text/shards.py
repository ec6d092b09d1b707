"""Token ids on disk, memory-mapped, and the rows that training draws from them.

A split is `{split}.bin` (all documents' ids one after another, uint16 or uint32), `{split}.ends.npy` (where each document ends)
and, for fine-tuning, `{split}.mask.bin` (which ids the loss is taken on). Rows come as fixed windows over the stream, or as
whole documents packed without attention across them (Krell et al. 2021). NumPy only: training makes tensors of them.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import StageSettings, taken_from
from tinyseek.text.progress import progress

INDEX = "tokens.json"
IGNORED = -100  # a target that no loss is taken on, as in PyTorch
CHUNK_CHARS = 500_000  # text that is tokenised at a time; the Rust library needs some 100 bytes a token meanwhile

Int64 = NDArray[np.int64]
Indices = int | Sequence[int] | Int64


# ---- writing and opening


@dataclass
class Counts:
    """What `write_tokens` wrote."""

    documents: int
    tokens: int
    targets: int  # ids that the loss is taken on: all but each document's first, or as the masks say


def write_tokens(
    folder: str | Path,
    split: str,
    id_lists: Iterable[Sequence[int]],
    vocab_size: int,
    loss_masks: Iterable[Sequence[bool]] | None = None,
) -> Counts:
    """Write documents' ids as one split, and enter it in `tokens.json`.

    Args:
        folder: an existing folder, usually one that `artifact.writing` gave.
        split: the name of the split: train, val.
        id_lists: the ids of each document, its end token included; empty ones are left out.
        vocab_size: ids are below it; below 65,536 they take two bytes each.
        loss_masks: for each document, which ids are to be learnt.
    Raises:
        ValueError: an id outside the vocabulary, or a mask of another length than its document.
    """
    folder = Path(folder)
    dtype = np.dtype("<u2" if vocab_size < 65536 else "<u4")
    ends = array("q")
    total = targets = 0
    masks = iter(loss_masks) if loss_masks is not None else None
    mask_file = (folder / f"{split}.mask.bin").open("wb") if masks is not None else None
    try:
        with (folder / f"{split}.bin").open("wb") as stream:
            for ids in id_lists:
                row = np.asarray(ids, np.int64)
                mask = np.asarray(next(masks), np.bool_) if masks is not None else None
                if mask is not None and len(mask) != len(row):
                    raise ValueError(f"document {len(ends)}: {len(row)} ids but a mask of {len(mask)}")
                if not len(row):
                    continue
                if row.min() < 0 or row.max() >= vocab_size:
                    raise ValueError(
                        f"document {len(ends)}: ids {row.min()} to {row.max()}, the vocabulary has {vocab_size}"
                    )
                stream.write(row.astype(dtype).tobytes())
                if mask_file is not None and mask is not None:
                    mask_file.write(mask.astype(np.uint8).tobytes())
                total += len(row)
                targets += len(row) - 1 if mask is None else int(mask[1:].sum())
                ends.append(total)
    finally:
        if mask_file is not None:
            mask_file.close()
    np.save(folder / f"{split}.ends.npy", np.frombuffer(ends, np.int64) if ends else np.zeros(0, np.int64))
    counts = Counts(len(ends), total, targets)
    new: dict[str, Any] = {"vocab_size": vocab_size, "splits": {}}
    index = _read_index(folder) if (folder / INDEX).is_file() else new
    if index["vocab_size"] != vocab_size:
        raise ValueError(f"{folder}: written with a vocabulary of {index['vocab_size']} before, now of {vocab_size}")
    index["splits"][split] = {"dtype": dtype.str, "masked": masks is not None, **asdict(counts)}
    artifact.write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return counts


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if not isinstance(index["vocab_size"], int) or not isinstance(index["splits"], dict):
            raise TypeError("not an index of tokens")
    except FileNotFoundError:
        missing = f"no {INDEX} in it; it is no folder of tokens" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {missing}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX}: damaged ({error}); delete the folder and build it again") from None
    return dict(index)


@dataclass(frozen=True)
class TokenFile:
    """One split, memory-mapped: nothing is read before it is used, and nothing can be written."""

    path: Path
    vocab_size: int
    ids: NDArray[np.uint16] | NDArray[np.uint32]  # of all documents
    ends: Int64  # where each document ends in `ids`
    mask: NDArray[np.uint8] | None  # 1 where the loss is taken
    bytes: int | None  # of UTF-8 text that the ids stand for, where known

    @staticmethod
    def open(folder: str | Path, split: str = "train") -> TokenFile:
        """Map a split that `write_tokens` wrote.

        Raises:
            UserError: no such split, or files that do not fit together (one was cut off, for example).
        """
        folder = Path(folder)
        index = _read_index(folder)
        entry = index["splits"].get(split)
        if entry is None:
            raise UserError(f'{folder}: no split "{split}" in it; it has {", ".join(index["splits"]) or "none"}')
        path = folder / f"{split}.bin"
        again = "delete the folder and build it again"
        try:
            dtype, tokens = np.dtype(entry["dtype"]), int(entry["tokens"])
            ends = np.load(folder / f"{split}.ends.npy", allow_pickle=False)
            ids = _mapped(path, dtype, tokens)
            mask = _mapped(folder / f"{split}.mask.bin", np.dtype(np.uint8), tokens) if entry["masked"] else None
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error}); {again}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); {again}") from None
        if ends.dtype != np.int64 or ends.ndim != 1 or int(ends[-1] if len(ends) else 0) != tokens:
            raise UserError(
                f"{folder / f'{split}.ends.npy'}: does not fit to the {tokens:,} ids of {path.name}; {again}"
            )
        return TokenFile(path, index["vocab_size"], ids, ends, mask, entry.get("bytes"))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> int:
        return len(self.ends)


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise ValueError(f"{size:,} bytes instead of {count * dtype.itemsize:,}: cut off, or another run's")
    if not count:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


# ---- rows


@dataclass
class Rows:
    """A batch for training. Position t predicts `targets_BT[:, t]` from ids up to t."""

    ids_BT: Int64
    targets_BT: Int64  # IGNORED where no loss is taken
    documents_BT: NDArray[np.int32] | None  # which document of its row a position is in; None: one document, no masking


class Windows:
    """Fixed windows over the stream of all documents.

    Window i holds the ids [i stride, i stride + seq_len] and predicts the last seq_len of them. With stride = seq_len each id
    is a target exactly once (the last incomplete window apart); a smaller stride gives overlapping windows.

    With `mask_documents` a row says where its documents are, so that attention stays within each, and no loss is taken on a
    document's first id, which nothing before it in the same document could tell.
    """

    def __init__(self, file: TokenFile, seq_len: int, stride: int | None = None, mask_documents: bool = False) -> None:
        self.file = file
        self.seq_len = seq_len
        self.stride = stride or seq_len
        self.mask_documents = mask_documents
        if seq_len < 1 or self.stride < 1:
            raise ValueError("seq_len and stride must be at least 1")

    def __len__(self) -> int:
        spare = len(self.file) - self.seq_len - 1
        return spare // self.stride + 1 if spare >= 0 else 0

    def __getitem__(self, items: Indices) -> Rows:
        at = np.atleast_1d(np.asarray(items, np.int64))
        if len(at) and not (-len(self) <= at.min() and at.max() < len(self)):
            raise IndexError(f"window {at} of {len(self)}")
        places_BT = (at % max(1, len(self)) * self.stride)[:, None] + np.arange(self.seq_len + 1)
        ids = np.asarray(self.file.ids[places_BT], np.int64)
        targets_BT = ids[:, 1:].copy()
        if self.file.mask is not None:
            targets_BT[self.file.mask[places_BT[:, 1:]] == 0] = IGNORED
        documents_BT = None
        if self.mask_documents:
            numbers = np.searchsorted(self.file.ends, places_BT, side="right")
            targets_BT[numbers[:, 1:] != numbers[:, :-1]] = IGNORED
            documents_BT = (numbers[:, :-1] - numbers[:, :1]).astype(np.int32)
        return Rows(ids[:, :-1], targets_BT, documents_BT)


class Packed:
    """Whole documents packed into rows of seq_len positions, each with its own number, so that none sees another.

    A document of L ids takes L - 1 positions, for its last id is only a target. One longer than a row is cut into
    parts that share an id, so that every id but the first is a target exactly once. What is left of a row is padding: a document of
    its own, without loss.

    Args:
        order: "in_order" takes documents as they come, and begins a row when the next one does not fit; "best_fit" keeps
            `buffer` documents at hand and always adds the longest that fits. Both give the same rows each time.
        pad_id: what stands in the padding.
    """

    def __init__(
        self,
        file: TokenFile,
        seq_len: int,
        order: Literal["in_order", "best_fit"] = "best_fit",
        buffer: int = 1_000,
        pad_id: int = 0,
    ) -> None:
        if seq_len < 1 or buffer < 1:
            raise ValueError("seq_len and buffer must be at least 1")
        self.file = file
        self.seq_len = seq_len
        self.pad_id = pad_id
        parts = _parts(file.ends, seq_len)
        rows = _in_order(parts, seq_len) if order == "in_order" else _best_fit(parts, seq_len, buffer)
        starts, lengths, borders = array("q"), array("q"), array("q", [0])
        for row in rows:
            for start, length in row:
                starts.append(start)
                lengths.append(length)
            borders.append(len(starts))
        self._starts, self._lengths, self._borders = starts, lengths, borders

    def __len__(self) -> int:
        return len(self._borders) - 1

    @property
    def fill(self) -> float:
        """The share of positions that are not padding."""
        return sum(self._lengths) / (len(self) * self.seq_len) if len(self) else 0.0

    def __getitem__(self, items: Indices) -> Rows:
        at = np.atleast_1d(np.asarray(items, np.int64))
        shape = (len(at), self.seq_len)
        ids_BT = np.full(shape, self.pad_id, np.int64)
        targets_BT = np.full(shape, IGNORED, np.int64)
        documents_BT = np.zeros(shape, np.int32)
        for row, item in enumerate(at.tolist()):
            if not -len(self) <= item < len(self):
                raise IndexError(f"row {item} of {len(self)}")
            item %= len(self)
            place = 0
            first, last = self._borders[item], self._borders[item + 1]
            for number, part in enumerate(range(first, last)):
                start, length = self._starts[part], self._lengths[part]
                positions = slice(place, place + length)
                ids_BT[row, positions] = self.file.ids[start : start + length]
                targets_BT[row, positions] = self.file.ids[start + 1 : start + length + 1]
                if self.file.mask is not None:
                    targets_BT[row, positions][self.file.mask[start + 1 : start + length + 1] == 0] = IGNORED
                documents_BT[row, positions] = number
                place += length
            documents_BT[row, place:] = last - first
        return Rows(ids_BT, targets_BT, documents_BT)


class EndToEnd:
    """Documents as they come: a batch is one row of them all, each with its own number, and nothing is padding.

    A document of L ids takes L - 1 positions, for its last id is only a target.
    """

    def __init__(self, file: TokenFile) -> None:
        self.file = file
        starts = np.concatenate((np.zeros(1, np.int64), file.ends[:-1]))
        kept = file.ends - starts > 1  # one id alone predicts nothing
        self._starts, self._ends = starts[kept], file.ends[kept]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, items: Indices) -> Rows:
        at = np.atleast_1d(np.asarray(items, np.int64))
        if len(at) and not (-len(self) <= at.min() and at.max() < len(self)):
            raise IndexError(f"documents {at} of {len(self)}")
        spans = [slice(start, end) for start, end in zip(self._starts[at], self._ends[at], strict=True)]
        ids_T = np.concatenate([self.file.ids[span][:-1] for span in spans]).astype(np.int64)
        targets_T = np.concatenate([self.file.ids[span][1:] for span in spans]).astype(np.int64)
        if self.file.mask is not None:
            targets_T[np.concatenate([self.file.mask[span][1:] for span in spans]) == 0] = IGNORED
        lengths = [span.stop - span.start - 1 for span in spans]
        documents_T = np.repeat(np.arange(len(at), dtype=np.int32), lengths)
        return Rows(ids_T[None], targets_T[None], documents_T[None])


Part = tuple[int, int]  # where it starts in the ids, and how many positions it takes


def _parts(ends: Int64, seq_len: int) -> Iterator[Part]:
    """Each document as a run of positions, or several where it is longer than a row. One id alone predicts nothing."""
    start = 0
    for end in ends.tolist():
        last = end - 1
        while start < last:
            length = min(seq_len, last - start)
            yield start, length
            start += length
        start = end


def _in_order(parts: Iterable[Part], seq_len: int) -> Iterator[list[Part]]:
    row: list[Part] = []
    room = seq_len
    for part in parts:
        if part[1] > room:
            yield row
            row, room = [], seq_len
        row.append(part)
        room -= part[1]
    if row:
        yield row


def _best_fit(parts: Iterable[Part], seq_len: int, buffer: int) -> Iterator[list[Part]]:
    """Rows from the `buffer` parts at hand: the one that came first begins a row, then always the longest that fits."""
    stream = iter(parts)
    by_length: list[
        tuple[int, int]
    ] = []  # (length, -start): of equal ones the first is the last of the list, and taken first
    by_start: dict[int, int] = {}  # start -> length, in the order of coming

    def fill() -> None:
        while len(by_start) < buffer and (part := next(stream, None)):
            by_start[part[0]] = part[1]
            insort(by_length, (part[1], -part[0]))

    def take(length: int, start: int) -> Part:
        del by_start[start]
        del by_length[bisect_right(by_length, (length, -start)) - 1]
        return start, length

    fill()
    while by_start:
        start, length = next(iter(by_start.items()))  # so that no document waits for ever
        row = [take(length, start)]
        room = seq_len - length
        while room and (place := bisect_right(by_length, (room, 1))):
            length, minus_start = by_length[place - 1]
            row.append(take(length, -minus_start))
            room -= length
        yield row
        fill()


def require_window(file: TokenFile, seq_len: int) -> None:
    """Check that there is at least one window to train on.

    Raises:
        UserError: the split is shorter than seq_len + 1 ids.
    """
    if len(file) < seq_len + 1:
        raise UserError(
            f"{file.path}: {len(file):,} tokens, fewer than one window of seq_len + 1 = {seq_len + 1:,}; "
            "give a larger corpus, or lower seq_len"
        )


# ---- the order of training


class Sampler:
    """Batches of item indices: every epoch all items once, in another order, from a few integers.

    The order is a keyed permutation that is computed, not stored (a Feistel network with cycle walking: Black and Rogaway 2002), so
    that it takes no memory for a billion windows, resumes at once at any place, and is the same in every version of NumPy.
    A batch that an epoch cannot fill takes the rest from the next one.
    """

    def __init__(self, n_items: int, batch: int, seed: int = 0) -> None:
        if n_items < 1 or batch < 1:
            raise ValueError(f"nothing to draw from: {n_items} items, batches of {batch}")
        self.n_items = n_items
        self.batch = batch
        self.seed = seed  # from 0 to 2^64 - 1
        self.drawn = 0  # items so far

    @property
    def epoch(self) -> float:
        """Passes over the items so far."""
        return self.drawn / self.n_items

    def next(self) -> Int64:
        """The indices [batch] of the next batch."""
        at = np.arange(self.drawn, self.drawn + self.batch, dtype=np.uint64)
        self.drawn += self.batch
        epochs, places = np.divmod(at, np.uint64(self.n_items))
        return self._permuted(places, epochs).astype(np.int64)

    def _permuted(self, places: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Item number `places` of the order of `epochs`: a bijection of [0, n_items) for each epoch."""
        half = np.uint64(max(1, ((self.n_items - 1).bit_length() + 1) // 2))  # bits of each of the two halves
        low = (np.uint64(1) << half) - np.uint64(1)
        keys = _mixed(_mixed(np.array([self.seed], np.uint64)) ^ _mixed(epochs + np.uint64(1)))
        values = places
        outside = np.ones(len(values), bool)
        # The network permutes [0, 4^half); whoever lands outside of [0, n_items) walks on along his cycle until he is back.
        while outside.any():
            left, right = values[outside] >> half, values[outside] & low
            for step in range(6):
                left, right = right, left ^ (_mixed(right + keys[outside] + np.uint64(step << 58)) & low)
            values = values.copy()
            values[outside] = left << half | right
            outside = values >= self.n_items
        return values

    def state(self) -> dict[str, int]:
        """All there is to know to go on from here."""
        return {"n_items": self.n_items, "seed": self.seed, "drawn": self.drawn}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a `state()`.

        Raises:
            UserError: the data has another number of items than then.
        """
        if state["n_items"] != self.n_items:
            raise UserError(
                f"the training data has {self.n_items:,} rows now, and had {state['n_items']:,} when this run was stopped; "
                "start it anew, or bring the old data back"
            )
        self.seed, self.drawn = state["seed"], state["drawn"]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, of arrays: they wrap around, which is meant, where scalars would warn."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- the stage


class TokensSettings(StageSettings):
    """From clean documents to token ids."""

    data: str = taken_from("data", "the folder with train.jsonl and val.jsonl")
    tokenizer: str = taken_from("tokenizer", "the folder with the tokenizer")
    text_field: str = Field("text", description="the field that holds the text")


def build(settings: TokensSettings, folder: Path) -> None:
    """Write train.bin, train.ends.npy, val.bin, val.ends.npy and tokens.json: each document's ids between begin and end token.

    Raises:
        UserError: no data or tokenizer there, or nothing to train on.
    """
    from tinyseek.text.tokenizer import Tokenizer

    data = Path(settings.data)
    tokenizer = Tokenizer.load(settings.tokenizer)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    inputs = {"data": data, "tokenizer": Path(settings.tokenizer)}
    with artifact.writing(folder, "tokens", settings.essence(), inputs=inputs) as (target, figures):
        for split in ("train", "val"):
            source = data / f"{split}.jsonl"
            if not source.is_file():
                raise UserError(f"{source}: no such file; is {data} a folder that the data stage made?")
            size = source.stat().st_size
            text_bytes = 0

            def encoded(source: Path = source, size: int = size, split: str = split) -> Iterator[Sequence[int]]:
                nonlocal text_bytes
                with progress(f"tokenising {split}", size) as update:
                    for texts, done in _text_chunks(source, settings.text_field):
                        text_bytes += sum(len(text.encode()) for text in texts)
                        for ids in tokenizer.encode_batch(texts):
                            yield [*begin, *ids, tokenizer.eos_id]
                        update(done, "")

            counts = write_tokens(target, split, encoded(), tokenizer.vocab_size)
            figures[split] = {**asdict(counts), "bytes": text_bytes}
            index = _read_index(target)
            index["splits"][split]["bytes"] = text_bytes
            index["eos_id"] = tokenizer.eos_id
            artifact.write_text(target / INDEX, json.dumps(index, indent=2) + "\n")
        if not figures["train"]["tokens"]:
            raise UserError(f"{data / 'train.jsonl'}: no documents in it")


def _text_chunks(path: Path, text_field: str) -> Iterator[tuple[list[str], int]]:
    """A jsonl file's texts, some `CHUNK_CHARS` at a time, and how many bytes have been read."""
    texts: list[str] = []
    size = done = 0
    with path.open("rb") as stream:
        for number, line in enumerate(chain(stream, [b""]), 1):
            done += len(line)
            if line.strip():
                try:
                    text = json.loads(line)[text_field]
                    if not isinstance(text, str):
                        raise TypeError(f"{text_field} is no text")
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f'{path}, line {number}: no JSON object with a text "{text_field}" ({error})'
                    ) from None
                texts.append(text)
                size += len(text)
            if texts and (size >= CHUNK_CHARS or not line):
                yield texts, done
                texts, size = [], 0
