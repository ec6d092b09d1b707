"""The word-level tokenizer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseek.errors import UserError
from tinyseek.text.words import END_OF_TEXT, UNKNOWN, WordTokenizer, split

STORY = 'I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough, "so it was no great surprise".'


def test_splits_as_the_course_does() -> None:
    assert split("Hello, world. Is this-- a test?") == [
        "Hello", ",", "world", ".", "Is", "this", "--", "a", "test", "?",
    ]  # fmt: skip
    assert split("我爱北京，2024年 ok") == ["我", "爱", "北", "京", "，", "2024", "年", "ok"]
    assert split(f"one{END_OF_TEXT}two {UNKNOWN}") == ["one", END_OF_TEXT, "two", UNKNOWN]


def test_vocabulary_is_sorted_with_the_specials_last() -> None:
    tokenizer = WordTokenizer.train([STORY, "我爱你", STORY])
    assert tokenizer.words[:-2] == sorted(set(split(STORY)) | set("我爱你"))
    assert tokenizer.words[-2:] == [END_OF_TEXT, UNKNOWN]
    assert tokenizer.vocab_size == len(set(split(STORY))) + 5


def test_unknown_words_and_spaces() -> None:
    tokenizer = WordTokenizer.train([STORY, "你好，世界"])
    assert tokenizer.decode(tokenizer.encode("Jack Zyx, genius")) == f"Jack {UNKNOWN}, genius"
    assert tokenizer.decode(tokenizer.encode("你好， 世界")) == "你好，世界"
    assert tokenizer.encode(END_OF_TEXT) == [tokenizer.vocab_size - 2]
    with pytest.raises(UserError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(UserError):
        tokenizer.decode([-1])


@given(st.lists(st.sampled_from(["a", "b1", "你", "好", ",", "，", "(", ")", '"', "'", "--", "-", "$", "é", "“", "…"])))
@settings(max_examples=200, deadline=None)
def test_decoding_and_encoding_again_changes_no_id(words: list[str]) -> None:
    tokenizer = WordTokenizer.train([" ".join(words)])
    ids = [tokenizer.ids[word] for word in words]
    random.Random(0).shuffle(ids)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_saves_and_loads(tmp_path) -> None:
    tokenizer = WordTokenizer.train([STORY])
    tokenizer.save(tmp_path / "words.json")
    assert WordTokenizer.load(tmp_path / "words.json").words == tokenizer.words


@pytest.mark.parametrize("content", ["", "[]", '{"words": 3}', '{"words": ["a"]}', '{"words": ["a", "a"]}', "\x00"])
def test_a_damaged_file_is_a_clear_error(tmp_path, content: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"words\.json"):
        WordTokenizer.load(path)
    with pytest.raises(UserError, match="no such file"):
        WordTokenizer.load(tmp_path / "missing.json")
