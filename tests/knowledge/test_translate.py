"""The dictionary: the lines of CC-CEDICT, both ways; and words that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyseek.knowledge import translate
from tinyseek.knowledge.stopwords import content_words, is_chinese
from tinyseek.knowledge.translate import Dictionary, meanings

LINES = """\
# CC-CEDICT
#! version=1
獎勵 奖励 [jiang3 li4] /to reward/reward (as encouragement)/
倉庫 仓库 [cang1 ku4] /depot/storehouse; warehouse/
個 个 [ge4] /CL:隻|只[zhi1]/
火車站 火车站 [huo3 che1 zhan4] /train station; railway station/
柏林 柏林 [Bo2 lin2] /Berlin, capital of Germany/
長 长 [chang2] /formal written explanation concerning railway wagons/long/
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dictionary:
    file = tmp_path / "cedict.txt"
    file.write_text(LINES, encoding="utf-8", newline="\r\n")  # as the package has it
    known = Dictionary(file)
    monkeypatch.setattr(translate, "dictionary", lambda: known)
    return known


def test_chinese_words_become_stems(small: Dictionary) -> None:
    assert small.to_english("奖励") == ["reward"]
    assert small.to_english("獎勵") == ["reward"]
    assert small.to_english("仓库") == ["depot", "storehous", "warehous"]
    assert small.to_english("个") == small.to_english("无此词") == []
    assert small.to_english("长") == ["long"]  # an explanation is no translation


def test_english_words_become_chinese_ones(small: Dictionary) -> None:
    assert small.to_chinese("warehouses") == ["仓库"]
    assert small.to_chinese("Rewarded") == small.to_chinese("rewarding") == ["奖励"]
    assert small.to_chinese("railway station") == ["火车站"]
    assert small.to_chinese("station") == small.to_chinese("") == []


def test_a_question_s_words_keep_what_is_alike_in_both(small: Dictionary) -> None:
    assert meanings("GRPO 的奖励") == [["grpo"], ["reward"]]
    assert ["grpo"] in meanings("What are the rewards of GRPO in 2024?")
    assert ["2024"] in meanings("What are the rewards of GRPO in 2024?")
    assert ["火车站"] in meanings("Where is the railway station?")


def test_without_the_package_nothing_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "dictionary", lambda: None)
    assert meanings("奖励是什么？") == []


def test_the_installed_dictionary_is_found_and_whole() -> None:
    known = translate.dictionary()
    assert known is not None
    assert {"distil", "distill"} & set(known.to_english("蒸馏"))
    assert "奖励" in known.to_chinese("reward")


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("What is it?", False),
        ("奖励是什么？", True),
        ("R1-Zero 在 AIME 2024 上的得分是多少？", True),
        ("DeepSeek-R1-Distill-Qwen-32B 的 Codeforces 等级分是多少？", True),
        ("The word 奖励 means reward", False),
        ("123", False),
        ("", False),
    ],
)
def test_which_language_a_text_is_in(text: str, chinese: bool) -> None:
    assert is_chinese(text) is chinese


def test_words_that_say_nothing_are_left_out_unless_there_are_no_others() -> None:
    assert content_words("What is the lift of a wing?") == ["lift", "wing"]
    assert content_words("这个奖励是什么？") == ["奖励"]
    assert content_words("what is it") == ["what", "is", "it"]
