"""Whether there is an answer: what is looked at is what it says it is, and what speaks for an answer raises the probability."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from knowledge.memory_index import MemoryBase, MemoryIndex

from tinyseek.knowledge import segment
from tinyseek.knowledge.answer.confidence import FEATURES, WEIGHTS, Evidence
from tinyseek.knowledge.retrieve import find


def test_words_are_counted_in_the_first_few_hits() -> None:
    base = MemoryBase(MemoryIndex(segment.words))
    base.put("a", ["The drill costs 80 dollars.", "A saw is sharp.", "Nothing of the kind stands here at all."])
    [own] = find(base, "What does the sharp drill cost in euros?", limit=3).evidence
    assert (own.across, own.how, own.chinese) == (
        False,
        "lexical",
        False,
    )  # of this embedder's cosines nothing is known
    assert own.asked == 4  # sharp, drill, cost, euros
    assert own.unknown == pytest.approx(1 / 4)  # euros
    assert own.covered == pytest.approx(2 / 4)
    assert own.covered_together == pytest.approx(3 / 4)


def test_words_of_the_other_language_are_covered_by_what_they_mean() -> None:
    base = MemoryBase(MemoryIndex(segment.words))
    base.put("a", ["The warehouse holds the reward."])
    [across] = find(base, "仓库里有什么奖励？", limit=3).evidence
    assert across.across
    assert across.covered == 1.0


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("how", ["hybrid", "dense", "lexical"])
def test_what_speaks_for_an_answer_makes_it_likelier(across: bool, chinese: bool, how: str) -> None:
    # Across languages cosines are smaller: the middle of the question's language was taken out of its vector.
    far, near = (0.1, 0.35) if across else (0.8, 0.9)
    weak = Evidence(
        across,
        chinese,
        how,
        nearest=far,
        background=far - 0.04,
        covered=0.2,
        covered_together=0.3,
        unknown=0.2,
        agreed=0.6,
        asked=5,
    )
    assert weak.probability < 0.5
    strong = replace(weak, nearest=near, covered=1.0, covered_together=1.0, unknown=0.0, agreed=1.0)
    assert strong.probability > 0.5
    assert replace(weak, covered=0.9).probability > weak.probability > replace(weak, unknown=0.5).probability
    assert 0 <= replace(weak, asked=1e9).probability <= 1


def test_every_way_has_its_weights() -> None:
    assert set(WEIGHTS) == set(itertools.product((False, True), (False, True), ("hybrid", "dense", "lexical")))
    assert all(len(weights) == len(FEATURES) + 1 for weights in WEIGHTS.values())


def test_nothing_found_is_no_answer() -> None:
    assert find(MemoryBase(), "wing").confidence == 0.0
