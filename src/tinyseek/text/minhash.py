"""Near-duplicates: shingles, MinHash signatures and an index of bands, all vectorised in NumPy over a batch of documents.

Two documents are near-duplicates when their sets of shingles (runs of five words, or of five characters in scripts without spaces)
have a Jaccard similarity of at least a threshold. A signature keeps, for each of 120 hash functions, the least hash of any
shingle; the share of equal entries estimates the similarity (Broder 1997). Documents whose signatures agree in all
rows of one band are candidates, and are then compared (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3). Of each
entry only 8 bits are kept (b-bit minwise hashing, Li and Koenig 2010): 120 bytes a document.

Letters: n documents, S shingles, H hash functions.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # words (or characters of Chinese) in a shingle; 5 tells documents apart, and a changed word changes only 5 of them
HASHES = 120  # many divisors, so that bands can have 1, 2, 3, 4, 5, 6, 8, 10, 12, ... rows
CHUNK = 1 << 15  # shingles hashed at a time: 128 KB of uint32 stay in the second-level cache

SYMBOL, LETTER, ALONE, SPACE = 0, 1, 2, 3  # what a character is: part of no word, part of one, a word of its own, white
# Scripts that put no spaces between words; their characters stand alone. (Chinese, Japanese; Thai, Lao, Burmese, Khmer, Tibetan.)
UNSPACED = (
    "CJK ",
    "HIRAGANA",
    "KATAKANA",
    "HENTAIGANA",
    "BOPOMOFO",
    "YI ",
    "THAI ",
    "LAO ",
    "MYANMAR ",
    "KHMER ",
    "TIBETAN ",
)

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]


@functools.cache
def character_classes() -> U8:
    """For every code point: SYMBOL, LETTER (digits and marks too), ALONE or SPACE."""
    classes = np.full(0x110000, SYMBOL, np.uint8)
    for code in range(0x40000):  # beyond lie only tags and private use
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LMN":
            alone = category[0] == "L" and unicodedata.name(character, "").startswith(UNSPACED)
            classes[code] = ALONE if alone else LETTER
        elif category[0] == "Z" or character in "\t\n\r":
            classes[code] = SPACE
    return classes


def mix(values: U64) -> U64:
    """A bijection of 64-bit integers that spreads every bit (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _character_hashes() -> U64:
    return mix(np.arange(0x110000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))


@functools.cache
def _powers(count: int) -> U64:
    return np.cumprod(np.full(count, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)


@dataclass(frozen=True)
class Characters:
    """The characters of a batch of documents in one row, a zero after each document."""

    codes: NDArray[np.uint32]
    classes: U8
    starts: NDArray[np.int64]  # where each document begins
    lengths: NDArray[np.int64]

    @staticmethod
    def of(texts: Sequence[str]) -> Characters:
        lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
        joined = "\0".join(texts) + "\0"
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        starts = np.concatenate(([0], np.cumsum(lengths + 1)[:-1])).astype(np.int64)
        return Characters(codes, character_classes()[codes], starts, lengths)

    def count(self, kind: int) -> NDArray[np.int64]:
        """How many characters of each document are of this class."""
        ended = np.add.reduceat(self.classes == kind, self.starts, dtype=np.int64)
        ended -= character_classes()[0] == kind  # without the zero after it
        return ended


@dataclass(frozen=True)
class Shingles:
    """The shingles of a batch of documents in one row, in their order and with repetitions."""

    hashes: U64  # [S]
    starts: NDArray[np.int64]  # [n]: where each document begins; every document has at least one
    words: NDArray[
        np.int64
    ]  # [n]: words (or lone characters); a document without any has one shingle that means nothing
    long_letters: NDArray[np.int64]  # [n]: characters in words longer than 40


def shingles(characters: Characters, width: int = SHINGLE) -> Shingles:
    """Runs of `width` words of each document; of all its words where it has fewer.

    Letters are compared without case; spaces, punctuation and symbols do not count.
    """
    letters = characters.classes == LETTER
    inside = letters | (characters.classes == ALONE)
    begins = inside.copy()
    begins[1:] &= ~(letters[1:] & letters[:-1])
    word_begins = np.flatnonzero(begins)
    n = len(characters.starts)
    first_word = np.searchsorted(word_begins, characters.starts)
    words = np.diff(np.append(first_word, len(word_begins)))

    # A word's hash: sum of h(c_i) B^i over its letters, by running sums over the letters alone.
    codes = characters.codes[inside]
    at = np.cumsum(begins[inside]) - 1  # the word of each letter
    letter_begins = np.flatnonzero(begins[inside])
    depth = np.arange(len(codes)) - letter_begins[at] if len(codes) else np.zeros(0, np.int64)
    values = _character_hashes()[codes]
    longest = int(depth.max(initial=0)) + 1
    values *= _powers(1 << (longest - 1).bit_length())[depth]
    word_hashes = mix(np.add.reduceat(values, letter_begins)) if len(codes) else np.zeros(0, np.uint64)
    word_lengths = np.diff(np.append(letter_begins, len(codes)))

    counts = np.maximum(words - width + 1, 1)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    document = np.repeat(np.arange(n), counts)
    begin = first_word[document] + np.arange(int(counts.sum())) - starts[document]
    end = (first_word + words)[document]
    padded = np.append(word_hashes, np.zeros(width, np.uint64))
    hashes = np.zeros(len(begin), np.uint64)
    for offset in range(width):
        there = begin + offset
        hashes = hashes * np.uint64(0xD6E8FEB86659FD93) + np.where(
            there < end, padded[np.minimum(there, len(padded) - 1)], 0
        )
    long_words = np.where(word_lengths > 40, word_lengths, 0)
    long_letters = np.zeros(n, np.int64)
    np.add.at(
        long_letters,
        np.searchsorted(characters.starts, word_begins[long_words > 0], "right") - 1,
        long_words[long_words > 0],
    )
    return Shingles(mix(hashes), starts, words, long_letters)


def repetition(batch: Shingles) -> NDArray[np.float64]:
    """The share of each document's shingles that stand in it already: 0 for all different, near 1 for one line again and again."""
    ends = np.append(batch.starts[1:], len(batch.hashes))
    shares = np.zeros(len(ends))
    for index, (start, end) in enumerate(zip(batch.starts.tolist(), ends.tolist(), strict=True)):
        if end - start > 1:
            part = np.sort(batch.hashes[start:end])
            shares[index] = np.count_nonzero(part[1:] == part[:-1]) / (end - start)
    return shares


@functools.cache
def _functions() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    seeds = mix(np.arange(1, 2 * HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (seeds[:HASHES] >> np.uint64(32)).astype(np.uint32) | np.uint32(1), (seeds[HASHES:] >> np.uint64(32)).astype(
        np.uint32
    )


def signatures(batch: Shingles) -> U8:
    """MinHash signatures [n, H] of a batch: for each hash function 8 bits of the least hash in the document.

    The functions are x -> a x + b modulo 2^32 with odd a, over shingles that are well mixed already.
    """
    values = (batch.hashes >> np.uint64(32)).astype(np.uint32)
    n, total = len(batch.starts), len(values)
    factors, shifts = _functions()
    least = np.full((HASHES, n), 0xFFFFFFFF, np.uint32)
    scratch = np.empty(min(CHUNK, total), np.uint32)
    for start in range(0, total, CHUNK):
        chunk = values[start : start + CHUNK]
        room = scratch[: len(chunk)]
        first = int(np.searchsorted(batch.starts, start, "right")) - 1
        last = int(np.searchsorted(batch.starts, start + len(chunk), "left"))
        borders = np.maximum(batch.starts[first:last] - start, 0)
        for row in range(HASHES):
            np.multiply(chunk, factors[row], out=room)
            np.add(room, shifts[row], out=room)
            here = least[row, first:last]
            np.minimum(here, np.minimum.reduceat(room, borders), out=here)
    # The low bits of a x + b hang on the low bits of x alone, so the 8 bits kept are taken after a multiplication.
    return np.ascontiguousarray(((least * np.uint32(0x9E3779B1)) >> np.uint32(24)).T).astype(np.uint8)


def similarity(a: U8, b: U8) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures [..., H]. Equal bytes by chance (1 in 256) are taken out.

    The standard error is sqrt(J (1 - J) / 120): 0.037 at 0.8.
    """
    equal: NDArray[np.float64] = (a == b).mean(axis=-1)
    return np.clip((equal - 1 / 256) / (1 - 1 / 256), 0.0, 1.0)


def rows_per_band(threshold: float) -> int:
    """The longest bands that still find at least 95 in 100 of the pairs with just this similarity: 1 - (1 - s^r)^(H/r)."""
    fitting = [r for r in range(1, 25) if HASHES % r == 0 and 1 - (1 - threshold**r) ** (HASHES // r) >= 0.95]
    return max(fitting, default=1)


class _Generation:
    """Signatures of kept documents, and one open-addressing table from the hash of (band, its bytes) to a document.

    A slot holds a document's number only (4 bytes); whether it is a match is seen in its signature.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.bands = HASHES // rows
        self.signatures = np.empty((1024, HASHES), np.uint8)
        self.ids = np.empty(1024, np.int64)
        self.count = 0
        self.table = np.full(1 << 16, -1, np.int32)

    def find(self, signatures: U8, keys: U64) -> NDArray[np.int64]:
        """For every signature and band [n, bands] the number of a document here with the same band, or -1."""
        found = np.full(keys.size, -1, np.int64)
        mask = len(self.table) - 1
        entry = np.arange(keys.size)  # signature * bands + band
        slot = (keys.ravel() & np.uint64(mask)).astype(np.int64)
        while len(slot):
            there = self.table[slot]
            full = np.flatnonzero(there >= 0)
            entry, slot, there = entry[full], slot[full], there[full]
            same = self._same_band(signatures, entry // self.bands, there, entry % self.bands)
            found[entry[same]] = there[same]
            entry, slot = entry[~same], (slot[~same] + 1) & mask
        return found.reshape(keys.shape)

    def _same_band(
        self, signatures: U8, rows: NDArray[np.int64], there: NDArray[np.int32], band: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether `signatures[rows]` and this generation's documents `there` have the same bytes in `band`."""
        ours = rows * HASHES + band * self.rows
        theirs = there.astype(np.int64) * HASHES + band * self.rows
        a, b = signatures.ravel(), self.signatures.ravel()
        same: NDArray[np.bool_] = a[ours] == b[theirs]
        for row in range(1, self.rows):
            same &= a[ours + row] == b[theirs + row]
        return same

    def add(self, signatures: U8, keys: U64, ids: NDArray[np.int64]) -> None:
        count = self.count + len(ids)
        if count > len(self.ids):
            size = max(count, 2 * len(self.ids))
            self.signatures = np.concatenate(
                (self.signatures[: self.count], np.empty((size - self.count, HASHES), np.uint8))
            )
            self.ids = np.concatenate((self.ids[: self.count], np.empty(size - self.count, np.int64)))
        self.signatures[self.count : count] = signatures
        self.ids[self.count : count] = ids
        old, self.count = self.count, count
        if count * self.bands > 0.6 * len(self.table):
            self.table = np.full(1 << (2 * count * self.bands - 1).bit_length(), -1, np.int32)
            for start in range(0, count, 4096):
                self._insert(start, band_keys(self.signatures[start : min(start + 4096, count)], self.rows))
        else:
            self._insert(old, keys)

    def _insert(self, first: int, keys: U64) -> None:
        """Put the bands of documents `first`, `first + 1`, ... in. A band that is there already keeps its first document."""
        mask = len(self.table) - 1
        entry = np.arange(keys.size)  # (document - first) * bands + band
        slot = (keys.ravel() & np.uint64(mask)).astype(np.int64)
        while len(slot):
            free = np.flatnonzero(self.table[slot] < 0)
            # Of several that want one slot the first gets it: written backwards, the first is the last to write.
            self.table[slot[free[::-1]]] = (first + entry[free[::-1]] // self.bands).astype(np.int32)
            there = self.table[slot]
            left = np.flatnonzero(there != first + entry // self.bands)
            entry, slot, there = entry[left], slot[left], there[left]
            same = self._same_band(self.signatures, first + entry // self.bands, there, entry % self.bands)
            entry, slot = entry[~same], (slot[~same] + 1) & mask


def band_keys(signatures: U8, rows: int) -> U64:
    """Hashes [n, bands] of each band's bytes, different for the same bytes in another band."""
    n = len(signatures)
    parts = signatures.reshape(n, HASHES // rows, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, HASHES // rows + 1, dtype=np.uint64), parts.shape[:2]).copy()
    for row in range(rows):
        keys = keys * np.uint64(0x100000001B3) + parts[..., row] + np.uint64(1)
    return mix(keys)


class NearDuplicates:
    """An index of kept documents that tells whether a new one is nearly the same as one of them.

    Memory is bounded: about 120 bytes of signature and 4 to 13 bytes a band (20 bands at 0.8) for each of `remember` documents.
    When half of them are there a new generation begins, and the older half is forgotten when that is full too.
    """

    def __init__(self, threshold: float = 0.8, remember: int = 1_000_000) -> None:
        self.threshold = threshold
        self.rows = rows_per_band(threshold)
        self.half = max(1, remember // 2)
        self.generations = [_Generation(self.rows)]
        self.forgotten = 0

    def add(self, signatures: U8, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Match a batch in order against all kept before, the batch's own earlier ones included; keep those without a match.

        Args:
            signatures: [n, H].
            ids: the caller's numbers for the documents.
        Returns:
            For each document the id of the kept one that it repeats (the most similar candidate), or -1; and their similarity.
        """
        keys = band_keys(signatures, self.rows)
        matched = np.full(len(ids), -1, np.int64)
        score = np.zeros(len(ids))
        taken = np.zeros(keys.shape, bool)  # bands that an earlier document stands for already
        for generation in self.generations:
            candidates = generation.find(signatures, keys)
            taken |= candidates >= 0
            for row in np.flatnonzero((candidates >= 0).any(axis=1)).tolist():
                numbers = np.unique(candidates[row])
                numbers = numbers[numbers >= 0]
                alike = similarity(signatures[row], generation.signatures[numbers])
                best = int(alike.argmax())
                if alike[best] >= self.threshold and alike[best] > score[row]:
                    matched[row], score[row] = generation.ids[numbers[best]], alike[best]
        self._match_within(signatures, keys, taken, ids, matched, score)
        kept = np.flatnonzero(matched < 0)
        self._keep(signatures[kept], keys[kept], ids[kept])
        return matched, score

    def _match_within(
        self,
        signatures: U8,
        keys: U64,
        taken: NDArray[np.bool_],
        ids: NDArray[np.int64],
        matched: NDArray[np.int64],
        score: NDArray[np.float64],
    ) -> None:
        seen: dict[int, int] = {}
        # Only keys that occur twice in the batch can make a pair.
        values, counts = np.unique(keys, return_counts=True)
        shared = np.isin(keys, values[counts > 1]) & ~taken
        for row in np.flatnonzero(shared.any(axis=1) & (matched < 0)).tolist():
            own = keys[row, shared[row]].tolist()
            for other in sorted({seen[key] for key in own if key in seen}):
                alike = float(similarity(signatures[row], signatures[other]))
                if alike >= self.threshold and alike > score[row]:
                    matched[row], score[row] = ids[other], alike
            if matched[row] < 0:
                for key in own:
                    seen.setdefault(key, row)

    def _keep(self, signatures: U8, keys: U64, ids: NDArray[np.int64]) -> None:
        start = 0
        while start < len(ids):
            newest = self.generations[-1]
            room = self.half - newest.count
            if room == 0:
                self.generations.append(_Generation(self.rows))
                if len(self.generations) > 2:
                    self.forgotten += self.generations.pop(0).count
                continue
            part = slice(start, start + room)
            newest.add(signatures[part], keys[part], ids[part])
            start += room
