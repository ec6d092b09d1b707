"""Words and sentences, in both languages."""

from __future__ import annotations

import random
import unicodedata

import jieba
import pytest
import snowballstemmer
from hypothesis import given
from hypothesis import strategies as st

from tinyseek.knowledge.segment import LONGEST_WORD, pieces, sentences, spans, words

CHINESE = (
    "知识库把用户的文档切成段落，再按词和按意义检索；回答里的每一句话都注明出自哪一页。"
    "飞机在高速飞行时，机翼前缘的气动加热不可忽视，激波与边界层的相互作用决定了热流的分布。"
    "北京大学的学生在图书馆里研究生命的起源，他们不应得到这样的结果。"
)


def test_chinese_words_are_those_of_jieba() -> None:
    jieba.setLogLevel(60)
    expected = [word for word in jieba.cut_for_search(CHINESE) if word not in "，；。"]
    assert words(CHINESE) == expected


def test_english_words_are_snowballs_stems() -> None:
    text = "The running foxes' relational databases were quickly generalised; WINGS and flows, heated slipstreams"
    stem = snowballstemmer.stemmer("english").stemWord
    plain = "the running foxes relational databases were quickly generalised wings and flows heated slipstreams"
    assert words(text) == [stem(word) if len(word) > 2 else word for word in plain.split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("79.8% of 1,000,000 at 3.14", ["79.8", "of", "1000000", "at", "3.14"]),
        ("v1.2.3 on 2024-05-01, 1,2", ["v1", "2", "3", "on", "2024", "05", "01", "1", "2"]),
        ("DeepSeek-R1使用GRPO算法", ["deepseek", "r1", "使用", "grpo", "算法"]),
        ("Café CAFÉ cafe\u0301 ｃａｆｅ", ["cafe"] * 4),
        ("ﬁnd naïve Straße STRASSE", ["find", "naiv", "strass", "strass"]),
        ("it's John’s don't", ["it", "john", "dont"]),
        ("Москвы йод", ["москвы", "иод"]),
        ("ひらがな 한국어", ["ひら", "らが", "がな", "한국", "국어"]),
        ("snake_case x²", ["snake", "case", "x2"]),
        ("", []),
        ("。，!?—", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(max_size=300))
def test_words_of_any_text_are_whole_short_and_without_blanks(text: str) -> None:
    for word in words(text):
        assert 0 < len(word) <= LONGEST_WORD
        assert not any(character.isspace() for character in word)
        assert word == word.casefold()


@given(st.text(max_size=200))
def test_words_do_not_depend_on_how_characters_are_composed(text: str) -> None:
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))


@given(st.text(alphabet=st.sampled_from(list('ab .。!?\n”"-1)…；;,，中A'))))
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert all(sentence.strip() for sentence in sentences(text)) or not text.strip()
    assert [text[a:b] for a, b in spans(text)] == sentences(text)


@pytest.mark.parametrize(
    "expected",
    [
        ["It costs 3.50 dollars. ", "Dr. Smith said so. ", "He left!"],
        ["“Is it?” ", "She asked. ", "Yes… ", "No."],
        ["第一句。", "第二句！", "他说：“好。”", "第三句"],
        ["See Fig. 3 and e.g. Sec. 4. ", "The U.S. economy grew."],
        ["first paragraph\n\n", "second one"],
        ["He saw:\n", "- one\n", "- two\n", "1. three\n", "2) four"],
        ["中文。", "English follows. ", "再来一句；", "完了。"],
        ["Version 1.2.3 works. ", "And on."],
    ],
)
def test_sentences(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


@given(st.text(min_size=1, max_size=400), st.integers(1, 50))
def test_pieces_are_the_text_and_short(text: str, longest: int) -> None:
    found = pieces(text, longest, len)
    assert "".join(found) == text
    assert all(len(piece) <= longest for piece in found)


def test_pieces_are_cut_at_commas_and_blanks() -> None:
    draw = random.Random(3)
    text = ", ".join("word" * draw.randint(1, 3) for _ in range(40))
    assert all(piece.endswith((",", " ", "word")) for piece in pieces(text, 60, len))
