"""Citations: found in whatever pieces they come, kept where the passage says what their sentence says, dropped elsewhere."""

from __future__ import annotations

import random

import pytest
from knowledge.memory_index import HashEmbedder

from tinyseek.knowledge.answer.citations import Checker, cited_numbers
from tinyseek.knowledge.answer.support import Passage, Supporter, figures
from tinyseek.knowledge.documents.blocks import Place, Table
from tinyseek.knowledge.index.base import Chunk, StoredChunk, StoredDocument

REWARDS = (
    "The reward system has two kinds of rewards. Accuracy rewards check whether the answer is correct. "
    "Format rewards make the model put its reasoning between tags."
)
SAMPLES = (
    "In total about 600k training samples for reasoning were collected. The learning rate was 0.0003 and it was kept."
)
CHINESE = "模型在训练中使用了两种奖励。准确性奖励检查答案是否正确。蒸馏后的模型没有经过强化学习。"


def passage(number: int, *texts: str, kind: str = "text") -> Passage:
    """Two chunks of one section stand on pages 1 and 2 of their document."""
    document = StoredDocument(f"/d{number}.pdf", f"d{number}.pdf", "", 0, "pdf", id=number)
    chunks = []
    for at, text in enumerate(texts):
        chunk = Chunk(text, (Place(page=at + 1, span=(0, len(text))),), kind=kind)
        chunks.append(StoredChunk(10 * number + at, number, at, chunk))
    return Passage(document, chunks)


PASSAGES = [
    passage(1, REWARDS),
    passage(2, "A page about nothing of the kind. Nobody asked.", SAMPLES),
    passage(3, CHINESE),
]


def checked(text: str, sizes: random.Random | None = None) -> Checker:
    checker = Checker(PASSAGES, Supporter(PASSAGES, HashEmbedder()))
    at = 0
    shown = ""
    while at < len(text):
        size = sizes.randint(1, 9) if sizes else len(text)
        shown += checker.push(text[at : at + size]).text
        at += size
    shown += checker.finish().text
    assert shown == checker.text
    return checker


ANSWER = (
    "Accuracy rewards check whether the answer is correct [1]. "
    "About 600,000 training samples for reasoning were collected.[citation:2]\n"
    "The moon is made of green cheese [1]. 准确性奖励检查答案是否正确【3】。 See [the table](x) and a[0] and `x[1]` [9]."
)


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_comes_out_alike_in_whatever_pieces_it_came(seed: int) -> None:
    whole = checked(ANSWER)
    assert whole.text == (
        "Accuracy rewards check whether the answer is correct [1]. "
        "About 600,000 training samples for reasoning were collected.[2]\n"
        "The moon is made of green cheese. 准确性奖励检查答案是否正确[3]。 See [the table](x) and a[0] and `x[1]`."
    )
    pieces = checked(ANSWER, random.Random(seed))
    assert pieces.text == whole.text
    assert pieces.dropped == whole.dropped
    assert pieces.citations == whole.citations


def test_a_citation_carries_the_sentence_that_holds_it_and_where_it_stands() -> None:
    first, second, third = checked(ANSWER).citations
    assert (first.number, first.quote) == (1, "Accuracy rewards check whether the answer is correct.")
    assert (second.quote, second.places[0].page) == (
        "In total about 600k training samples for reasoning were collected.",
        2,
    )
    assert (third.document.name, third.quote) == ("d3.pdf", "准确性奖励检查答案是否正确。")
    assert second.claim == "About 600,000 training samples for reasoning were collected."


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("About 600k samples for reasoning were collected [2].", [2], 0),
        ("About 900k samples for reasoning were collected [2].", [], 1),  # another figure
        ("The learning rate was 0.0003 [2].", [2], 0),
        ("The learning rate was 0.003 [2].", [], 1),
        ("Accuracy rewards check whether the answer is correct [1, 2].", [1], 1),  # one of two says it
        (
            "Accuracy rewards check whether the answer is correct [1][1][3].",
            [1, 1, 3],
            0,
        ),  # the third says it in Chinese
        ("Accuracy rewards check the answer [1], and the learning rate was kept [2].", [1, 2], 0),  # each its own half
        ("According to [1], accuracy rewards check whether the answer is correct.", [1], 0),  # opens its sentence
        ("[2] says that 600k training samples for reasoning were collected. Nothing else.", [2], 0),
        ("Accuracy rewards check whether the answer is correct. [1]", [1], 0),  # after the full stop
        ("- Accuracy rewards check whether the answer is correct [1]\n- The pope lives in Rome [1]\n", [1], 1),
        ("Accuracy rewards check whether the answer is correct [7].", [], 1),  # no such passage
        ("Accuracy rewards check whether the answer is correct [0].", [], 1),
        ("```\nrewards[1] = accuracy rewards check answer [1]\n```\n", [], 0),  # code is code
        ("In [2024] accuracy rewards check whether the answer is correct.", [], 0),  # a year is no citation
        ("", [], 0),
        ("[", [], 0),
        ("[1", [], 0),
        ("准确性奖励检查答案是否正确。[citation:3]", [3], 0),
        ("准确性奖励检查天气是否晴朗，明天有雨，记得带伞。[citation:3]", [], 1),
    ],
)
def test_what_is_kept_and_what_is_dropped(text: str, kept: list[int], dropped: int) -> None:
    checker = checked(text)
    assert [citation.number for citation in checker.citations] == kept, checker.text
    assert checker.dropped == dropped, checker.text
    assert list(cited_numbers(checker.text)) == kept or "```" in text or "2024" in text


@pytest.mark.parametrize(
    ("claim", "number", "held"),
    [
        ("Accuracy rewards check whether the answer is correct.", 0, True),
        ("Accuracy rewards check whether the answer is correct, because lawyers demanded expensive audits.", 0, False),
        ("Accuracy rewards check whether the answer is correct, because of the reward system, as it were.", 0, True),
        ("准确性奖励检查答案是否正确，因为律师要求昂贵的审计。", 2, False),
        ("准确性奖励检查答案是否正确，因为模型使用了奖励。", 2, True),
    ],
)
def test_a_reason_of_which_the_passage_says_nothing_is_not_held(claim: str, number: int, held: bool) -> None:
    assert (Supporter(PASSAGES, HashEmbedder()).support(claim, number) is not None) == held


def test_nothing_that_is_no_marker_is_ever_lost() -> None:
    """Random text with brackets in random pieces comes back as it was."""
    draw = random.Random(4)
    letters = "ab [](){}`*\n.。，12:【】中文"
    for seed in range(300):
        text = "".join(draw.choice(letters) for _ in range(draw.randint(0, 60)))
        if not list(cited_numbers(text)):
            assert checked(text, random.Random(seed)).text == text, f"seed {seed}: {text!r}"


def test_a_row_of_a_table_is_quoted_with_its_head() -> None:
    table = Table((("Code", "Cost"), ("SKU-1", "45.00"), ("SKU-2", "32.50"))).markdown()
    passages = [passage(1, table, kind="table")]
    checker = Checker(passages, Supporter(passages, HashEmbedder()))
    checker.push("SKU-2 has a cost of 32.50 [1].")
    checker.finish()
    assert [citation.quote for citation in checker.citations] == ["| Code | Cost |\n| SKU-2 | 32.50 |"]


def test_places_are_those_of_the_sentence() -> None:
    """A chunk that runs over two pages: each sentence has its own."""
    first, second = "The first page says one.", "The second page says two."
    text = f"{first} {second}"
    places = (Place(page=4, span=(0, len(first))), Place(page=5, span=(len(first) + 1, len(text))))
    document = StoredDocument("/a", "a", "", 0, "pdf", id=1)
    [one] = [Passage(document, [StoredChunk(1, 1, 0, Chunk(text, places))])]
    assert [one.places(sentence.span)[0].page for sentence in one.sentences] == [4, 5]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("79.8% of 1,400", [79.8, 1400]),
        ("800k, 800K, 800 thousand, 80万, 0.8 million", [800_000] * 5),
        ("3亿 and 2 billion", [3e8, 2e9]),
        ("DeepSeek-R1 and v2 and A100", []),  # names, not numbers
        ("R1 以 97.3% 领先", [97.3]),
    ],
)
def test_figures_are_read_in_every_way_of_writing(text: str, values: list[float]) -> None:
    assert figures(text) == pytest.approx(values)


def test_numbers_in_words_are_found_where_a_claim_has_digits() -> None:
    assert {2.0, 3.0} <= set(figures("two RL stages and 三个阶段", told=True))
