"""Whether what was found answers the question: a logistic regression over what the search itself knows.

It was fitted on questions that documents answer and questions that they do not, in both languages and across them; the hard half
of the latter are questions whose own paragraph was taken away among hundreds of others. `benchmarks/found.py` fits it anew and
prints its errors on questions that it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseek.knowledge.segment import words
from tinyseek.knowledge.stopwords import is_chinese

if TYPE_CHECKING:
    from tinyseek.knowledge.retrieve import Hit

FITTED = (
    "multilingual-e5-small-q4"  # whose cosines these weights know; with another embedder, words alone are judged by
)
_HEAD, _READ = 10, 3  # hits that are not the background; hits whose words are looked at
FEATURES = ("nearest", "background", "covered", "covered_together", "agreed", "chinese", "asked")
# By way (own language, across) and by what the search had: both halves, meaning, words. FEATURES in order, then the constant.
WEIGHTS: dict[tuple[bool, str], tuple[float, ...]] = {
    (False, "hybrid"): (25.535, -19.167, 5.666, 1.931, 8.698, 0.789, 0.082, -19.54),
    (False, "dense"): (45.719, -36.544, 6.039, 2.366, 0.0, -0.242, 0.058, -15.02),
    (False, "lexical"): (0.0, 0.0, 7.557, 2.521, 0.0, 0.177, 0.06, -6.618),
    (True, "hybrid"): (22.883, -6.67, 3.057, 0.821, 3.352, -0.541, 0.025, -6.577),
    (True, "dense"): (26.838, -10.922, 3.562, 1.198, 0.0, -0.182, 0.027, -4.736),
    (True, "lexical"): (0.0, 0.0, 5.491, 1.867, 0.0, -0.13, 0.118, -4.014),
}


@dataclass(frozen=True)
class Evidence:
    """What speaks for an answer among the hits of one way of finding them.

    Attributes:
        how: "hybrid", "dense" or "lexical": what there was to find them by.
        nearest: the greatest cosine of the hits.
        background: the mean cosine of what came after them.
        covered: the share of the question's words that one hit has, of the first few the best.
        covered_together: that the first few have together.
        agreed: the first hit's score: 1 where words and meaning both had it first.
        chinese: 1 for a Chinese question.
        asked: how many words of the question say something.
    """

    across: bool
    how: str
    nearest: float = 0.0
    background: float = 0.0
    covered: float = 0.0
    covered_together: float = 0.0
    agreed: float = 0.0
    chinese: float = 0.0
    asked: float = 0.0

    def features(self) -> tuple[float, ...]:
        """In the order of FEATURES; what the search did not have is 0."""
        found = dict.fromkeys(FEATURES, 0.0) | {name: float(getattr(self, name)) for name in FEATURES}
        if self.how != "hybrid":
            found["agreed"] = 0.0
        if self.how == "lexical":
            found["nearest"] = found["background"] = 0.0
        return tuple(found[name] for name in FEATURES)

    @property
    def probability(self) -> float:
        """That the hits hold the answer."""
        weights = WEIGHTS[self.across, self.how]
        score = sum(weight * feature for weight, feature in zip(weights, (*self.features(), 1.0), strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def evidence(
    question: str,
    meant: Sequence[Sequence[str]],
    across: bool,
    how: str,
    hits: Sequence[Hit],
    dense: Mapping[int, float],
) -> Evidence:
    """Of one way's hits.

    Args:
        meant: for each word of the question, the words that it may be found by.
        dense: the cosines of all that meaning found, by chunk.
    """
    texts = [
        frozenset(words("\n".join((hit.document.title, *hit.chunk.chunk.path, hit.chunk.chunk.text))))
        for hit in hits[:_READ]
    ]
    cosines = sorted(dense.values(), reverse=True)
    behind = cosines[_HEAD:] or cosines

    def share(held: frozenset[str]) -> float:
        return sum(any(word in held for word in group) for group in meant) / len(meant) if meant else 0.0

    return Evidence(
        across,
        how,
        nearest=max((hit.dense or 0.0 for hit in hits), default=0.0),
        background=sum(behind) / len(behind) if behind else 0.0,
        covered=max(map(share, texts), default=0.0),
        covered_together=share(frozenset().union(*texts)),
        agreed=hits[0].score if hits else 0.0,
        chinese=float(is_chinese(question)),
        asked=float(len(meant)),
    )
