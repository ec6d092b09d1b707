"""Whether what was found answers the question: a logistic regression over what the search itself knows.

It was fitted on questions that documents answer and questions that they do not, in both languages and across them; the hard half
of the latter are questions whose own paragraph was taken away among hundreds of others. `benchmarks/found.py` fits it anew and
prints its errors on questions that it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseek.knowledge.stopwords import is_chinese

if TYPE_CHECKING:
    from tinyseek.knowledge.retrieve import Hit

FITTED = (
    "multilingual-e5-small-q4"  # whose cosines these weights know; with another embedder, words alone are judged by
)
_HEAD, READ = 10, 3  # hits that are not the background; hits whose words are looked at
FEATURES = ("nearest", "background", "covered", "covered_together", "unknown", "agreed", "asked")
# By way (across languages or not), by whether the question is Chinese, and by what the search had: both halves, meaning, words.
# FEATURES in order, then the constant.
WEIGHTS: dict[tuple[bool, bool, str], tuple[float, ...]] = {
    (False, False, "hybrid"): (0.771, -5.175, 3.637, 2.624, -4.211, 3.01, 0.073, -2.356),
    (False, False, "dense"): (1.052, -5.252, 3.809, 2.77, -4.353, 0.0, 0.069, 0.161),
    (False, False, "lexical"): (0.0, 0.0, 3.798, 2.764, -4.286, 0.0, 0.052, -3.021),
    (False, True, "hybrid"): (65.139, -48.939, 3.007, 2.072, -4.827, 7.837, -0.071, -26.407),
    (False, True, "dense"): (78.821, -55.956, 3.146, 2.117, -5.26, 0.0, -0.056, -25.512),
    (False, True, "lexical"): (0.0, 0.0, 5.608, 2.268, -6.195, 0.0, -0.015, -4.281),
    (True, False, "hybrid"): (29.576, -16.016, 4.024, -2.52, -4.265, 3.917, 0.145, -6.484),
    (True, False, "dense"): (32.382, -19.907, 4.375, -1.744, -4.0, 0.0, 0.139, -3.835),
    (True, False, "lexical"): (0.0, 0.0, 2.906, -0.107, -4.542, 0.0, 0.155, -1.288),
    (True, True, "hybrid"): (10.287, 2.95, 1.975, 1.938, -2.492, 9.059, 0.098, -11.586),
    (True, True, "dense"): (15.336, 0.605, 2.652, 2.148, -2.592, 0.0, 0.084, -4.295),
    (True, True, "lexical"): (0.0, 0.0, 4.34, 3.683, -3.211, 0.0, 0.172, -4.626),
}


@dataclass(frozen=True)
class Evidence:
    """What speaks for an answer among the hits of one way of finding them.

    Attributes:
        chinese: whether the question is.
        how: "hybrid", "dense" or "lexical": what there was to find them by.
        nearest: the greatest cosine of the hits.
        background: the mean cosine of what came after them.
        covered: the share of the question's words that one hit has, of the first few the best.
        covered_together: that the first few have together.
        unknown: the share of the question's words that no passage has at all.
        agreed: the first hit's score: 1 where words and meaning both had it first.
        asked: how many words of the question say something.
    """

    across: bool
    chinese: bool
    how: str
    nearest: float = 0.0
    background: float = 0.0
    covered: float = 0.0
    covered_together: float = 0.0
    unknown: float = 0.0
    agreed: float = 0.0
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
        weights = WEIGHTS[self.across, self.chinese, self.how]
        score = sum(weight * feature for weight, feature in zip(weights, (*self.features(), 1.0), strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def evidence(
    question: str,
    meant: Sequence[Sequence[str]],
    across: bool,
    how: str,
    hits: Sequence[Hit],
    dense: Mapping[int, float],
    held: Sequence[frozenset[str]],
    stands: Callable[[Sequence[str]], bool],
) -> Evidence:
    """Of one way's hits.

    Args:
        meant: for each word of the question, the words that it may be found by.
        held: the words of the first `READ` hits.
        dense: the cosines of all that meaning found, by chunk.
        stands: whether any passage has one of these words.
    """
    cosines = sorted(dense.values(), reverse=True)
    behind = cosines[_HEAD:] or cosines

    def share(words: frozenset[str]) -> float:
        return sum(any(word in words for word in group) for group in meant) / len(meant) if meant else 0.0

    together: frozenset[str] = frozenset().union(*held)
    missing = [group for group in meant if group and together.isdisjoint(group)]
    return Evidence(
        across,
        is_chinese(question),
        how,
        nearest=max((hit.dense or 0.0 for hit in hits), default=0.0),
        background=sum(behind) / len(behind) if behind else 0.0,
        covered=max(map(share, held), default=0.0),
        covered_together=share(together),
        unknown=sum(not stands(group) for group in missing) / len(meant) if meant else 0.0,
        agreed=hits[0].score if hits else 0.0,
        asked=float(len(meant)),
    )
