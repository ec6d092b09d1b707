"""Questions that lean on the conversation, and questions to go on with."""

from __future__ import annotations

import pytest
from knowledge.answer.said import SaidModel
from knowledge.memory_index import HashEmbedder, MemoryBase, MemoryIndex

from tinyseek.knowledge import segment
from tinyseek.knowledge.answer.ask import answer, ask
from tinyseek.knowledge.answer.follow_up import follow_ups
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.answer.rewrite import leans, rewrite
from tinyseek.knowledge.answer.support import Passage
from tinyseek.knowledge.index.base import Chunk, StoredChunk, StoredDocument
from tinyseek.llm.base import ContextError

TALK = [
    {"role": "user", "content": "How long is the warranty of the drill?"},
    {"role": "assistant", "content": "24 months [1]."},
]


@pytest.mark.parametrize(
    ("question", "does"),
    [
        ("And what does it cost?", True),
        ("What about the saw?", True),
        ("Why?", True),
        ("How are they charged?", True),
        ("那它的价格是多少？", True),
        ("为什么？", True),
        ("电池呢？", True),
        ("How long is the warranty of the drill?", False),
        ("Tell me more about that.", True),
        ("Is there a reward that is given for the format?", False),
        ("应该怎样使用少样本提示？", False),  # 该 is no word of its own here
        ("奖励模型的其他局限是什么？", False),
        ("Which two kinds of rewards does the paper describe?", False),
        ("训练 R1-Zero 用了哪两类奖励？", False),
        ("蒸馏模型有没有再做强化学习？", False),
    ],
)
def test_a_question_that_leans_is_known(question: str, does: bool) -> None:
    assert leans(question) is does


def test_without_a_model_the_words_before_go_along() -> None:
    assert rewrite("And what does it cost?", TALK) == "And what does it cost? long warranty drill"
    assert rewrite("那价格呢？", [{"role": "user", "content": "电钻的保修期多长？"}]) == "那价格呢？ 电钻的保修期多长？"
    assert rewrite("And what does it cost?", []) == "And what does it cost?"
    assert rewrite("What does the saw cost in the shop?", TALK) == "What does the saw cost in the shop?"


@pytest.mark.parametrize(
    ("written", "searched"),
    [
        ("What does the drill cost?", "What does the drill cost?"),
        ('<think>the drill</think>\nQuestion: "What does the drill cost?"', "What does the drill cost?"),
        ("", "And what does it cost? long warranty drill"),
        ("word " * 200, "And what does it cost? long warranty drill"),  # no question of a sensible length
        ("one\ntwo", "And what does it cost? long warranty drill"),
    ],
)
def test_a_model_writes_it_and_nonsense_is_not_taken(written: str, searched: str) -> None:
    model = SaidModel(written)
    assert rewrite("And what does it cost?", TALK, model) == searched
    assert "24 months" in str(model.asked[0][0])


def test_a_rewritten_question_is_told_and_searched_for() -> None:
    base = MemoryBase(MemoryIndex(segment.words), HashEmbedder())
    base.put(
        "shop.pdf", ["The drill costs 80 dollars.", "The saw costs 30 dollars.", "A boat costs more than it is worth."]
    )
    parts = list(ask(base, "And what does it cost?", [{"role": "user", "content": "Do you sell a drill?"}]))
    assert "drill" in parts[0].question
    assert parts[-1].reply is not None
    assert parts[-1].reply.citations[0].quote == "The drill costs 80 dollars."
    off = AnswerSettings(rewrite=False, found_from=0)
    assert answer(base, "And what does it cost?", TALK, settings=off).question == "And what does it cost?"


def passages() -> list[Passage]:
    document = StoredDocument("/p.pdf", "p.pdf", "", 0, "pdf", id=1)
    paths = [("2. Approach", "2.1 Rewards"), ("3. Results",), (), ("2. Approach", "2.1 Rewards")]
    return [Passage(document, [StoredChunk(n, 1, n, Chunk("text", path=path))]) for n, path in enumerate(paths)]


def test_headings_of_what_else_was_found_make_questions() -> None:
    asked = follow_ups("Which rewards?", "Two.", passages(), used=[0], most=3)
    assert asked[0] == "What does “Results” say?"
    assert len(asked) == len(set(asked)) <= 3
    assert follow_ups("有哪些奖励？", "两种。", passages(), [0], 1) == ["“Results”讲了什么？"]
    assert follow_ups("x", "y", passages(), [], 0) == []
    assert follow_ups("x", "y", [], [], 3) == []


def test_a_model_that_fails_costs_no_answer() -> None:
    class Full(SaidModel):
        def stream(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise ContextError(9000, 4096)

    assert follow_ups("q", "a", passages(), [0], 1, Full("")) == ["What does “Results” say?"]
    assert rewrite("And what does it cost?", TALK, Full("")) == "And what does it cost? long warranty drill"


def test_a_model_s_questions_are_taken_where_they_are_questions() -> None:
    model = SaidModel(
        "<think>?</think>Here you are:\n1. What is accuracy?\n- What is format?\n* Call the tool!\n2) What is accuracy?"
    )
    assert follow_ups("q", "a", passages(), [0], 3, model) == ["What is accuracy?", "What is format?"]
    silent = SaidModel("I cannot.")
    assert follow_ups("q", "a", passages(), [0], 3, silent)[0] == "What does “Results” say?"
