"""A unigram tokenizer (SentencePiece's) as compiled loops over the file that carries its pieces.

The `tokenizers` library gives the same ids and takes 270 MB for 250,000 pieces; here they stay where they lie, and 2 MB find them.
Source: Kudo 2018, "Subword Regularization", 3.2: the likeliest way to cut a text is found by dynamic programming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]
compiled = njit(cache=True, nogil=True, error_model="numpy")

SPACE = "\u2581"  # stands for a space, and begins every word; pieces have it nowhere but in front
_SPACES = re.compile(" {2,}")
_UNKNOWN = 10.0  # a character that no piece has costs so much more than the least likely piece
_LEAD, _MIDDLE, _LAST = 0xE2, 0x96, 0x81  # SPACE in UTF-8
_SEED, _FACTOR = np.uint64(0x2545F4914F6CDD1D), np.uint64(0x9E3779B97F4A7C15)


class Unigram:
    """Text to token ids. Safe to call from several threads.

    Args:
        blob: all pieces in UTF-8, one after the other, uint8.
        offset_V: where each piece begins, and at the end where the last ends.
        score_V: logarithms of the pieces' probabilities.
        normal: what each character is replaced by before all else.
        unknown: the id of a character that no piece has.
    """

    def __init__(
        self,
        blob: NDArray[np.uint8],
        offset_V: NDArray[np.uint32],
        score_V: NDArray[np.float32],
        normal: Mapping[int, str],
        unknown: int,
    ) -> None:
        self._blob, self._offset, self._score = blob, offset_V, score_V
        self._normal, self._unknown = dict(normal), unknown
        bits = max(int(len(score_V) * 2 - 1).bit_length(), 4)
        self._slot, self._shift = np.full(1 << bits, -1, np.int32), np.uint64(64 - bits)
        self._longest: int = _fill(blob, offset_V, unknown, self._slot, self._shift)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The ids of each text, with no special tokens."""
        lines = [self._written(text).encode("utf-8", "replace") for text in texts]
        starts = np.zeros(len(lines) + 1, np.int64)
        np.cumsum([len(line) for line in lines], out=starts[1:])
        ids, counts = np.empty(int(starts[-1]), np.int64), np.empty(len(lines), np.int64)
        found = (self._blob, self._offset, self._score, self._slot, self._shift, self._longest)
        least = float(self._score.min()) - _UNKNOWN
        _segment(np.frombuffer(b"".join(lines), np.uint8), starts, *found, self._unknown, least, ids, counts)
        return [ids[start : start + count] for start, count in zip(starts, counts, strict=False)]

    def _written(self, text: str) -> str:
        """As pieces are: normalised, spaces visible, one in front."""
        text = _SPACES.sub(" ", text.translate(self._normal))
        return (text if text.startswith(" ") else " " + text).replace(" ", SPACE)


@compiled
def _mixed(hash_: Any, byte: Any) -> Any:
    return (hash_ ^ np.uint64(byte)) * _FACTOR


@compiled
def _fill(blob: Array, offset_V: Array, unknown: int, slot: Array, shift: Any) -> Any:
    """Put every piece but `unknown` where its bytes say; returns the longest's length."""
    longest: Any = 0
    for piece in range(offset_V.shape[0] - 1):
        begin, end = np.int64(offset_V[piece]), np.int64(offset_V[piece + 1])
        if piece == unknown or begin == end:
            continue
        hash_ = _SEED
        for i in range(begin, end):
            hash_ = _mixed(hash_, blob[i])
        place = np.int64(hash_ >> shift)
        while slot[place] >= 0:
            place = (place + 1) & (slot.shape[0] - 1)
        slot[place] = piece
        longest = max(longest, end - begin)
    return longest


@compiled
def _segment(
    text: Array,
    start_S: Array,
    blob: Array,
    offset_V: Array,
    score_V: Array,
    slot: Array,
    shift: Any,
    longest: int,
    unknown: int,
    unknown_score: float,
    ids: Array,
    count_S: Array,
) -> None:
    """The likeliest pieces of each text, written to `ids` from where the text begins in bytes; how many, to `count_S`."""
    size = 0
    for s in range(count_S.shape[0]):
        size = max(size, start_S[s + 1] - start_S[s])
    best, piece_at, from_at = np.empty(size + 1), np.empty(size + 1, np.int64), np.empty(size + 1, np.int64)
    for s in range(count_S.shape[0]):
        begin, end = start_S[s], start_S[s + 1]
        best[: end - begin + 1] = -np.inf
        best[0] = 0.0
        at = begin
        while at < end:
            step = _character(text[at])
            here = best[at - begin]
            hash_, known, stop = _SEED, False, at
            while stop < end and stop - at < longest:
                if stop > at and _is_space(text, stop, end):
                    break
                wide = _character(text[stop])
                for i in range(stop, stop + wide):
                    hash_ = _mixed(hash_, text[i])
                stop += wide
                piece = _find(text, at, stop, hash_, blob, offset_V, slot, shift)
                if piece >= 0:
                    known = known or stop - at == step
                    if here + score_V[piece] > best[stop - begin]:
                        best[stop - begin] = here + score_V[piece]
                        piece_at[stop - begin], from_at[stop - begin] = piece, at
            if not known and here + unknown_score > best[at + step - begin]:
                best[at + step - begin] = here + unknown_score
                piece_at[at + step - begin], from_at[at + step - begin] = unknown, at
            at += step
            if at < end and _is_space(text, at, end):
                best[at - begin] = 0.0  # words are cut apart from each other: sums do not grow with the text
        count, at = 0, end
        while at > begin:
            ids[begin + count] = piece_at[at - begin]
            at = from_at[at - begin]
            count += 1
        ids[begin : begin + count] = ids[begin : begin + count][::-1].copy()
        count_S[s] = count


@compiled
def _character(byte: Any) -> int:
    """Bytes of the character that begins with this one."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@compiled
def _is_space(text: Array, at: int, end: int) -> bool:
    return at + 2 < end and text[at] == _LEAD and text[at + 1] == _MIDDLE and text[at + 2] == _LAST


@compiled
def _find(text: Array, begin: int, end: int, hash_: Any, blob: Array, offset_V: Array, slot: Array, shift: Any) -> Any:
    """The piece that these bytes are, or -1."""
    place = np.int64(hash_ >> shift)
    while slot[place] >= 0:
        piece = slot[place]
        first = np.int64(offset_V[piece])
        if np.int64(offset_V[piece + 1]) - first == end - begin:
            same = True
            for i in range(end - begin):
                if blob[first + i] != text[begin + i]:
                    same = False
                    break
            if same:
                return piece
        place = (place + 1) & (slot.shape[0] - 1)
    return -1
