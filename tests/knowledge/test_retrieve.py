"""Search: both halves and their joint order held against sums by hand; sections, filters, two languages, bad questions."""

from __future__ import annotations

import random

import pytest
from knowledge.answer.said import SaidModel
from knowledge.memory_index import HashEmbedder, MemoryBase, MemoryIndex

from tinyseek.errors import UserError
from tinyseek.knowledge import segment
from tinyseek.knowledge.index.base import Chunk, Filters
from tinyseek.knowledge.rerank import by_model, by_sentences, reranker
from tinyseek.knowledge.retrieve import fed_back, fused, passages_of, search

TEXTS = [
    "The lift of a wing grows with its angle until the flow leaves its upper side.",
    "Heat flows through a plate from the warm side to the cold one.",
    "A shock wave stands before a blunt body in supersonic flow.",
    "The boundary layer of a wing becomes turbulent behind its thickest part.",
    "奖励由准确性奖励和格式奖励两部分组成。",
    "蒸馏模型只经过监督微调，没有强化学习。",
]


def base(**known: object) -> MemoryBase:
    made = MemoryBase(MemoryIndex(segment.words), HashEmbedder())
    for number, text in enumerate(TEXTS):
        made.put(f"d{number}.pdf", [text], **known)
    return made


def test_each_half_is_the_index_s_own_order() -> None:
    made = base()
    question = "lift of a wing"
    lexical = made.index.lexical(question, 5)
    assert [(hit.chunk.id, hit.score) for hit in search(made, question, "lexical", 5)] == lexical
    [vector] = made.embedder.queries([question])
    dense = [chunk for chunk, _ in made.index.dense(vector, 9)][:3]
    found = [hit.chunk.id for hit in search(made, question, "dense", 3)]
    assert [chunk for chunk in found if chunk < 5] == [chunk for chunk in dense if chunk < 5]


def test_scores_are_joined_on_one_scale() -> None:
    joint = fused([(1, 9.0), (2, 3.0)], [(2, 0.9), (3, 0.8), (1, 0.7)], depth=100)
    # Words: 1 has 9/9, 2 has 3/9, as all that was found is there; meaning: 2 has 1, 3 half, 1 nothing.
    assert dict(joint) == pytest.approx({1: 0.5, 2: 1 / 6 + 0.5, 3: 0.25})
    assert [chunk for chunk, _ in joint] == [2, 1, 3]
    assert fused([], [], 10) == []
    assert fused([(4, 2.0)], [], 10) == [(4, 0.5)]
    cut = dict(fused([(1, 9.0), (2, 6.0)], [], depth=2))  # the list was cut: its last is the scale's end
    assert cut == pytest.approx({1: 0.5, 2: 0.0})


@pytest.mark.parametrize("seed", range(5))
def test_a_joint_order_has_everything_once_and_falls(seed: int) -> None:
    draw = random.Random(seed)
    halves = [
        sorted(
            ((chunk, draw.random()) for chunk in draw.sample(range(50), draw.randint(0, 30))), key=lambda pair: -pair[1]
        )
        for _ in range(2)
    ]
    joint = fused(*halves, depth=100)
    assert sorted(chunk for chunk, _ in joint) == sorted({chunk for half in halves for chunk, _ in half})
    scores = [score for _, score in joint]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_a_question_finds_passages_of_the_other_language() -> None:
    """By the dictionary: the embedder here knows nothing of languages."""
    made = base()
    assert search(made, "What do the rewards consist of, accuracy and format?", limit=1)[0].chunk.chunk.text == TEXTS[4]
    assert search(made, "机翼的升力与角度有什么关系？", limit=1)[0].document.name in ("d0.pdf", "d3.pdf")


def test_a_hit_comes_with_its_section_and_each_section_once() -> None:
    made = MemoryBase(MemoryIndex(segment.words))
    made.put("a", [Chunk("wing one.", section=0), Chunk("wing two.", section=0), Chunk("plate.", section=1)])
    first, second = search(made, "wing", "lexical", 5)
    assert first.context == second.context == "wing one.\n\nwing two."
    assert [hit.chunk.id for hit in passages_of([first, second], 5)] == [first.chunk.id]


def test_filters_hold_for_both_halves_and_both_languages() -> None:
    made = base()
    only = Filters(names=("d3*",))
    for how in ("lexical", "dense", "hybrid"):
        assert {hit.document.name for hit in search(made, "the lift of a wing", how, 10, only)} <= {"d3.pdf"}  # type: ignore[arg-type]
    assert search(made, "奖励是什么？", "hybrid", 10, Filters(names=("none",))) == []


@pytest.mark.parametrize(
    "question", ["?!", "''; DROP TABLE chunks --", '" OR * NEAR(', "\x00\ud800", "的", "🤖", "a" * 10_000]
)
def test_any_text_is_a_question(question: str) -> None:
    search(base(), question, limit=3)


def test_no_question_and_no_limit_are_refused() -> None:
    with pytest.raises(UserError, match="no question"):
        search(base(), "  \n")
    with pytest.raises(UserError, match="limit=0"):
        search(base(), "wing", limit=0)


def test_an_empty_collection_finds_nothing() -> None:
    assert search(MemoryBase(), "wing") == []


def test_sentences_and_models_order_anew() -> None:
    made = base()
    found = search(made, "How does heat get through a plate?", "hybrid", 3, rerank=by_sentences)
    assert found[0].document.name == "d1.pdf"
    model = SaidModel("<think>3 is best</think>[3], 1, 3, 99")
    plain = search(made, "wing flow", "lexical", 9)
    ordered = search(made, "wing flow", "lexical", 3, rerank=lambda _, hits: by_model(model, hits))
    assert [hit.chunk.id for hit in ordered][:2] == [plain[2].chunk.id, plain[0].chunk.id]
    assert [hit.score for hit in ordered] == sorted((hit.score for hit in ordered), reverse=True)
    with pytest.raises(UserError, match="needs a model"):
        reranker("model", None)
    assert reranker("none", None) is None


def test_what_is_like_the_best_is_raised() -> None:
    """Two passages share no word with the question; the one that is like the best hit goes before the other."""
    made = MemoryBase(MemoryIndex(segment.words), HashEmbedder())
    made.put("best", ["slipstream propeller lift distribution"])
    made.put("like", ["propeller distribution spanwise loading"])
    made.put("else", ["copper boiler pressure gauge"])
    [vector] = made.embedder.queries(["slipstream lift"])
    lexical, dense = made.index.lexical("slipstream lift", 9), made.index.dense(vector, 9)
    joint = fed_back(made.index, vector, lexical, dense, 100)
    assert [chunk for chunk, _ in joint] == [1, 2, 3]
    assert joint[0][1] == pytest.approx(1.0)
    plain = dict(fused(lexical, dense, 100))
    assert dict(joint)[2] - dict(joint)[3] > plain[2] - plain[3]
    assert fed_back(made.index, vector, [], [], 100) == []
