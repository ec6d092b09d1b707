"""BM25, exact for the best, without reading the postings of words that are everywhere.

A question like "what is the effect of ..." names words that stand in most chunks; their postings are most of the work and decide
next to nothing, since a word in half of all chunks weighs a fifteenth of one in a thousandth. So chunks are looked for by the rarer
words only, within a budget of postings, and the best of them are then scored by all words (benchmarks/index.py has how much of
bm25s' first ten that finds). Source: Robertson & Zaragoza 2009, with Lucene's idf, which is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

K1, B = 1.5, 0.75
MOST_WORDS = 48  # of a question that are looked for: its rarest
BUDGET = 20_000  # postings that are read to find chunks: 4 ms out of FTS5
CANDIDATES = 200  # chunks, at least, that are scored by all words


def idf(chunks: int, frequency: int) -> float:
    """Weight of a word that stands in `frequency` of all `chunks`."""
    return math.log(1 + (chunks - frequency + 0.5) / (frequency + 0.5))


@dataclass(frozen=True)
class Question:
    """A question's known words with their weights.

    Attributes:
        sought: those that chunks are looked for by, rarest first.
        common: the others.
    """

    sought: Mapping[str, float]
    common: Mapping[str, float]

    @classmethod
    def of(cls, words: Sequence[str], frequencies: Mapping[str, int], chunks: int) -> Question:
        """Choose.

        Args:
            words: of the question; a repeated one counts once.
            frequencies: the chunks that each stands in; unknown words are left out.
            chunks: how many there are.
        """
        known = sorted((frequencies[word], word) for word in set(words) if frequencies.get(word, 0) > 0)[:MOST_WORDS]
        sought: list[str] = []
        spent = 0
        for frequency, word in known:
            if sought and spent + frequency > BUDGET:
                break
            sought.append(word)
            spent += frequency
        weights = {word: idf(chunks, frequency) for frequency, word in known}
        common = {word: weight for word, weight in weights.items() if word not in sought}
        return cls({word: weights[word] for word in sought}, common)

    def rest(self, text: str, length: int, average: float) -> float:
        """What the words that were not sought add to a chunk's score.

        Args:
            text: the chunk's words, a blank between each two.
            length: how many they are.
            average: length of all chunks.
        """
        norm = K1 * (1 - B + B * length / max(average, 1e-9))
        there = [word for word in text.split(" ") if word in self.common]
        return sum(self.common[word] * (count := there.count(word)) / (count + norm) for word in set(there))
