"""Byte-level BPE by hand: the readable twin of the Rust library that `tokenizer.py` wraps, with the same merges and the same ids.

The idea: start from the 256 bytes, so that no text is ever unknown, and give the most frequent neighbouring pair a token of its
own, again and again. Encoding replays the merges in the order in which they were learnt.
Sources: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1; Radford et al. 2019 (GPT-2), section 2.2, for bytes, not letters.

Tokens are written, as in every tokenizer.json, in the *byte alphabet*: one visible character a byte ("Ġ" is the space), so that a
vocabulary of arbitrary bytes can be JSON.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import regex

from tinyseek.errors import UserError

Pair = tuple[int, int]

# Bytes that print as themselves in Latin-1; the 68 others (controls, space, delete, soft hyphen) are shown as U+0100 onwards.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in set(_VISIBLE)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + n) for n, byte in enumerate(_HIDDEN)}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
ALPHABET = sorted(CHAR_TO_BYTE)  # by code point: the order in which the Rust trainer gives the bytes their ids

# How text is cut before any merge; a merge never crosses a cut. Each expression in turn cuts what the one before left whole.
PATTERNS: dict[str, list[str]] = {
    # GPT-2's: contractions, then runs of letters, digits or other signs, each with at most one leading space.
    "gpt2": [r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    # In DeepSeek-V3's manner, but digits stand alone (V3 takes them in threes): a small model then sees one place value a token.
    "deepseek": [
        r"\p{N}",
        r"[\p{Han}\p{Hiragana}\p{Katakana}]+",  # so that no token joins Chinese to punctuation or to Latin letters
        r"[!-/:-@\[-`{-~][A-Za-z]+"  # ASCII punctuation that begins a word: 's  _name  .com
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"  # a word with the space before it
        r"| ?[\p{P}\p{S}]+[\r\n]*"  # signs, with the line end that they close
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",  # blank lines, indents (leaving the last space to its word)
    ],
}


def pieces(text: str, patterns: Sequence[str]) -> list[str]:
    """Cut `text` so that joining the pieces gives it back: matches are pieces, and so is whatever lies between them."""
    parts = [text]
    for pattern in patterns:
        parts = [piece for part in parts for piece in _cut(part, pattern)]
    return parts


def _cut(text: str, pattern: str) -> Iterator[str]:
    done = 0
    for match in regex.finditer(pattern, text):
        if match.start() > done:
            yield text[done : match.start()]
        yield match.group()
        done = match.end()
    if done < len(text):
        yield text[done:]


def to_alphabet(data: bytes) -> str:
    """Bytes as the visible characters that a vocabulary writes them with."""
    return "".join(map(BYTE_TO_CHAR.__getitem__, data))


class ByteBPE:
    """A vocabulary and its merges: encode, decode.

    Args:
        vocab: token, written in the byte alphabet, to id.
        merges: pairs of ids in the order learnt.
        specials: control tokens, which `encode` sees only when asked to.
        patterns: see `PATTERNS`.
    """

    def __init__(
        self, vocab: Mapping[str, int], merges: Sequence[Pair], specials: Sequence[str], patterns: Sequence[str]
    ) -> None:
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.specials = list(specials)
        self.patterns = list(patterns)
        self.tokens = {index: token for token, index in self.vocab.items()}
        # pair -> (rank, id of the joined token); a pair learnt twice keeps its later rank, as in the Rust library
        self._join = {
            pair: (rank, self.vocab[self.tokens[pair[0]] + self.tokens[pair[1]]])
            for rank, pair in enumerate(self.merges)
        }
        self._byte_ids = {byte: self.vocab[char] for byte, char in BYTE_TO_CHAR.items()}
        self._encoded: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str] = (), patterns: Sequence[str] | None = None
    ) -> ByteBPE:
        """Learn merges until the vocabulary has `vocab_size` tokens or no pair is left.

        Ids: the special tokens, the 256 bytes in the order of `ALPHABET`, then one token a merge.

        Raises:
            UserError: a vocabulary with no room for the bytes and the special tokens.
        """
        patterns = PATTERNS["deepseek"] if patterns is None else patterns
        if vocab_size < len(specials) + 256:
            raise UserError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} special tokens need "
                f"{len(specials) + 256} at least"
            )
        names = list(dict.fromkeys([*specials, *ALPHABET]))
        ids = {name: index for index, name in enumerate(names)}
        seen = Counter(piece for text in texts for piece in pieces(text, patterns))
        words = [[ids[BYTE_TO_CHAR[byte]] for byte in piece.encode()] for piece in seen]
        times = list(seen.values())

        counts: Counter[Pair] = Counter()  # how often each pair stands in the text now
        places: dict[Pair, set[int]] = {}  # pairs just counted or just formed -> the words they are in
        for index, word in enumerate(words):
            for pair in itertools.pairwise(word):
                counts[pair] += times[index]
                places.setdefault(pair, set()).add(index)

        # The most frequent pair first, among equals the one with the smallest ids. Counts fall while a pair waits, so an entry
        # is only believed when its count is still true; otherwise it goes back with the true one. Correcting each when it surfaces
        # costs a few pushes; keeping all of them right would touch the whole heap at every merge.
        waiting: list[tuple[int, Pair, int, set[int]]] = []
        entry = itertools.count()  # keeps the heap from ever comparing two sets
        merges: list[Pair] = []
        while True:
            for pair, where in places.items():
                if counts[pair] > 0:
                    heapq.heappush(waiting, (-counts[pair], pair, next(entry), where))
            places = {}
            while waiting and -waiting[0][0] != counts[waiting[0][1]]:
                _, pair, number, where = waiting[0]
                heapq.heapreplace(waiting, (-counts[pair], pair, number, where))
            if len(ids) >= vocab_size or not waiting or -waiting[0][0] < 1:
                break
            _, pair, _, where = heapq.heappop(waiting)
            name = names[pair[0]] + names[pair[1]]
            if name not in ids:  # a special token may be spelled so, or a token that another pair made: it keeps its id
                ids[name] = len(names)
                names.append(name)
            merges.append(pair)
            for index in where:
                for changed, change in _merge(words[index], pair, ids[name]):
                    counts[changed] += change * times[index]
                    if change > 0:
                        places.setdefault(changed, set()).add(index)
        return cls(ids, merges, specials, patterns)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of `text`; with `specials`, the control tokens written in it are control tokens, else they are plain text."""
        if not specials or not self.specials:
            return [index for piece in pieces(text, self.patterns) for index in self._encode_piece(piece)]
        longest_first = sorted(self.specials, key=len, reverse=True)
        found = regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)
        ids: list[int] = []
        for number, part in enumerate(found):
            ids += [self.vocab[part]] if number % 2 else self.encode(part)
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        if piece in self._encoded:
            return self._encoded[piece]
        ids = [self._byte_ids[byte] for byte in piece.encode()]
        while True:
            # The merge learnt first, at its leftmost place. Quadratic in the piece, which is a word: plain beats fast here.
            ranked = [(self._join[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in self._join]
            if not ranked:
                break
            (_, joined), at = min(ranked)
            ids[at : at + 2] = [joined]
        if (
            len(self._encoded) < 100_000
        ):  # words repeat, so this saves nearly all the work; bounded because names do not
            self._encoded[piece] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        special = set(self.specials)
        data = bytearray()
        for index in ids:
            token = self.tokens[index]
            data += token.encode() if token in special else bytes(map(CHAR_TO_BYTE.__getitem__, token))
        return data.decode(errors="replace")


def _merge(word: list[int], pair: Pair, joined: int) -> Iterator[tuple[Pair, int]]:
    """Replace `pair` by `joined` in `word`, from the left, and yield how the counts of the neighbouring pairs change."""
    at = 0
    while at + 1 < len(word):
        if (word[at], word[at + 1]) == pair:
            if at > 0:
                yield (word[at - 1], pair[0]), -1
                yield (word[at - 1], joined), +1
            word[at : at + 2] = [joined]
            if at + 1 < len(word):
                yield (pair[1], word[at + 1]), -1
                yield (joined, word[at + 1]), +1
        at += 1
