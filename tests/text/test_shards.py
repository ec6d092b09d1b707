"""Token shards: what was written comes back; windows, packing and sampling against naive references."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyseek.errors import UserError
from tinyseek.text import shards
from tinyseek.text.shards import (
    IGNORED,
    Packed,
    Sampler,
    TokenFile,
    TokensSettings,
    Windows,
    require_window,
    write_tokens,
)


def random_documents(seed: int, count: int = 80, longest: int = 60, vocab: int = 500) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(vocab) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def written(
    folder: Path, documents: list[list[int]], masks: list[list[bool]] | None = None, vocab: int = 500
) -> TokenFile:
    write_tokens(folder, "train", documents, vocab, masks)
    return TokenFile.open(folder, "train")


# ---- files


@pytest.mark.parametrize(("vocab", "width"), [(500, 2), (65535, 2), (65536, 4), (200_000, 4)])
def test_what_was_written_comes_back(tmp_path: Path, vocab: int, width: int) -> None:
    documents = [*random_documents(1, vocab=vocab), [0, vocab - 1]]
    counts = write_tokens(tmp_path, "train", iter([*documents, []]), vocab)
    file = TokenFile.open(tmp_path, "train")
    assert file.ids.tolist() == [token for document in documents for token in document]
    starts = [0, *file.ends.tolist()]
    assert [file.ids[a:b].tolist() for a, b in itertools.pairwise(starts)] == documents
    assert (counts.documents, counts.tokens, file.documents) == (len(documents), len(file), len(documents))
    assert file.path.stat().st_size == width * len(file)
    assert file.vocab_size == vocab
    assert not file.ids.flags.writeable
    write_tokens(tmp_path, "val", [], vocab)
    assert len(TokenFile.open(tmp_path, "val")) == 0
    assert len(TokenFile.open(tmp_path, "train")) == len(file)


def test_wrong_ids_and_masks_are_bugs(tmp_path: Path) -> None:
    for documents, masks in (([[1, 500]], None), ([[-1]], None), ([[1, 2]], [[True]])):
        with pytest.raises(ValueError, match=r"vocabulary|mask"):
            write_tokens(tmp_path, "train", documents, 500, masks)


@pytest.mark.parametrize("what", ["short", "odd", "gone", "ends", "ends cut", "index", "split", "folder"])
def test_damaged_shards_are_user_errors(tmp_path: Path, what: str) -> None:
    written(tmp_path, random_documents(2))
    ids, ends, folder = tmp_path / "train.bin", tmp_path / "train.ends.npy", tmp_path
    split = "train"
    if what in ("short", "odd"):
        ids.write_bytes(ids.read_bytes()[: -2 if what == "short" else -1])
    elif what == "gone":
        ids.unlink()
    elif what == "ends":
        np.save(ends, np.array([1, 2, 3]))
    elif what == "ends cut":
        ends.write_bytes(ends.read_bytes()[:100])
    elif what == "index":
        (tmp_path / "tokens.json").write_text("{}")
    elif what == "split":
        split = "test"
    else:
        folder = tmp_path / "elsewhere"
    with pytest.raises(UserError) as caught:
        TokenFile.open(folder, split)
    assert str(folder) in str(caught.value)


# ---- windows


@pytest.mark.parametrize("seed", range(6))
def test_windows_against_plain_slices(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    documents = random_documents(seed)
    masks = [[chance.random() < 0.7 for _ in document] for document in documents]
    file = written(tmp_path, documents, masks if seed % 2 else None)
    stream = [token for document in documents for token in document]
    owner = [number for number, document in enumerate(documents) for _ in document]
    learnt = [bit for mask in masks for bit in mask] if seed % 2 else [True] * len(stream)
    seq_len, stride = chance.randint(1, 40), chance.randint(1, 50)
    plain, masked = Windows(file, seq_len, stride), Windows(file, seq_len, stride, mask_documents=True)
    starts = [start for start in range(0, len(stream), stride) if start + seq_len + 1 <= len(stream)]
    assert len(plain) == len(starts)
    rows = plain[np.arange(len(plain))]
    assert rows.documents_BT is None
    for item, start in enumerate(starts):
        assert rows.ids_BT[item].tolist() == stream[start : start + seq_len]
        expected = [stream[t] if learnt[t] else IGNORED for t in range(start + 1, start + seq_len + 1)]
        assert rows.targets_BT[item].tolist() == expected
        one = masked[item]
        assert one.documents_BT is not None
        assert one.documents_BT[0].tolist() == [owner[t] - owner[start] for t in range(start, start + seq_len)]
        across = [owner[t] != owner[t - 1] for t in range(start + 1, start + seq_len + 1)]
        expected = [IGNORED if border else target for target, border in zip(expected, across, strict=True)]
        assert one.targets_BT[0].tolist() == expected
    with pytest.raises(IndexError):
        plain[len(plain)]


def test_corpus_shorter_than_a_window(tmp_path: Path) -> None:
    file = written(tmp_path, [[1, 2, 3, 4]])
    assert [len(Windows(file, seq_len)) for seq_len in (3, 4)] == [1, 0]
    require_window(file, 3)
    with pytest.raises(UserError, match=r"4 tokens, fewer than one window of seq_len \+ 1 = 5.*lower seq_len"):
        require_window(file, 4)


# ---- packing


@pytest.mark.parametrize("order", ["in_order", "best_fit"])
@pytest.mark.parametrize("seed", range(5))
def test_packing_keeps_every_transition_once(tmp_path: Path, order: Any, seed: int) -> None:
    chance = random.Random(seed)
    documents = random_documents(seed, count=150, longest=70, vocab=50_000)
    masks = [[chance.random() < 0.6 for _ in document] for document in documents]
    file = written(tmp_path, documents, masks if seed % 2 else None, vocab=50_000)
    seq_len = chance.randint(8, 50)
    packed = Packed(file, seq_len, order, buffer=chance.choice((1, 10, 1000)), pad_id=7)
    rows = packed[np.arange(len(packed))]
    assert rows.documents_BT is not None
    found: list[tuple[int, int]] = []
    positions = 0
    for ids, targets, numbers in zip(rows.ids_BT, rows.targets_BT, rows.documents_BT, strict=True):
        assert numbers[0] == 0
        assert set(np.diff(numbers).tolist()) <= {0, 1}
        found += [(int(a), int(b)) for a, b in zip(ids, targets, strict=True) if b != IGNORED]
        for number in range(int(numbers[-1]) + 1):
            part = np.flatnonzero(numbers == number)
            inner = [(int(ids[t]), int(targets[t])) for t in part]
            padding = all(pair == (7, IGNORED) for pair in inner)
            positions += 0 if padding else len(part)
            # Within a document the next id is the target, or is not learnt.
            assert padding or all(
                target in (ids[t + 1], IGNORED) for t, (_, target) in zip(part, inner[:-1], strict=False)
            )
    expected = [
        (document[t], document[t + 1])
        for document, mask in zip(documents, masks, strict=True)
        for t in range(len(document) - 1)
        if mask[t + 1] or not seed % 2
    ]
    assert sorted(found) == sorted(expected), f"seed {seed}"
    assert packed.fill == pytest.approx(positions / rows.ids_BT.size)
    again = Packed(file, seq_len, order, buffer=1000, pad_id=7)
    assert len(again) <= len(packed)


def test_documents_are_split_only_when_longer_than_a_row(tmp_path: Path) -> None:
    documents = random_documents(9, count=200, longest=21)  # at most 20 positions
    documents.append(list(range(100, 150)))  # 49 positions: 20 + 20 + 9
    file = written(tmp_path, documents)
    starts = {0, *file.ends.tolist()}
    for order in ("in_order", "best_fit"):
        packed = Packed(file, 20, order)  # type: ignore[arg-type]
        begins = set(packed._starts)
        assert begins - starts == {int(file.ends[-2]) + 20, int(file.ends[-2]) + 40}


def test_packing_order(tmp_path: Path) -> None:
    file = written(tmp_path, [[1] * 7, [2] * 6, [3] * 5, [4] * 4, [5] * 3])  # 6, 5, 4, 3, 2 positions
    in_order = Packed(file, 10, "in_order")
    assert [set(in_order[i].ids_BT[0].tolist()) - {0} for i in range(len(in_order))] == [{1}, {2, 3}, {4, 5}]
    best = Packed(file, 10, "best_fit")
    assert [set(best[i].ids_BT[0].tolist()) - {0} for i in range(len(best))] == [{1, 3}, {2, 4, 5}]
    assert best.fill == 1.0


def test_best_fit_fills_rows(tmp_path: Path) -> None:
    file = written(tmp_path, random_documents(3, count=2000, longest=200))
    assert Packed(file, 256).fill > 0.97 > 0.85 > Packed(file, 256, "in_order").fill


# ---- sampling


@pytest.mark.parametrize("n_items", [1, 2, 3, 10, 97, 256, 257, 5000])
def test_every_epoch_is_a_permutation_and_another_one(n_items: int) -> None:
    batch = 7 if n_items < 300 else 301
    sampler = Sampler(n_items, batch, seed=n_items)
    drawn = np.concatenate([sampler.next() for _ in range(4 * n_items // batch + 1)])[: 4 * n_items].reshape(4, n_items)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == list(range(n_items))
    if n_items >= 10:
        assert len({tuple(epoch) for epoch in drawn.tolist()}) == 4
        assert Sampler(n_items, 7, seed=1).next().tolist() != Sampler(n_items, 7, seed=2).next().tolist()


def test_order_looks_like_chance() -> None:
    """Where item 0 falls is uniform over epochs; neighbours are not kept together."""
    n = 20
    counts = np.zeros((n, n))
    sampler = Sampler(n, batch=n, seed=5)
    for _ in range(2000):
        counts[np.arange(n), sampler.next()] += 1
    chi_square = ((counts - 100) ** 2 / 100).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)
    order = Sampler(10_000, 10_000, seed=6).next()
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_sampler_resumes_exactly() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(30):
        n_items, batch = chance.randint(1, 300), chance.randint(1, 40)
        whole = Sampler(n_items, batch, seed)
        first = [whole.next().tolist() for _ in range(20)]
        stop = chance.randrange(20)
        cut = Sampler(n_items, batch, seed)
        for _ in range(stop):
            cut.next()
        state = json.loads(json.dumps(cut.state()))
        resumed = Sampler(n_items, batch, seed=0)
        resumed.restore(state)
        assert [resumed.next().tolist() for _ in range(20 - stop)] == first[stop:], f"seed {seed}"
    with pytest.raises(UserError, match="had 5 when"):
        Sampler(6, 1).restore(Sampler(5, 1).state())


def test_sampler_of_a_billion_items_is_instant() -> None:
    sampler = Sampler(1_000_000_007, 4, seed=1)
    sampler.restore({"n_items": 1_000_000_007, "seed": 1, "drawn": 999_999_999})
    assert all(0 <= item < 1_000_000_007 for item in sampler.next())


# ---- the stage


def test_build_tokenises_documents_and_ends_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

    chance = random.Random(8)
    documents = [
        " ".join(chance.choices(["the", "keeper", "灯塔", "é", "12"], k=chance.randint(1, 60))) for _ in range(120)
    ]
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", documents[:100]), ("val", documents[100:])):
        lines = "".join(json.dumps({"text": text, "source": "x"}) + "\n" for text in part)
        (data / f"{split}.jsonl").write_text(lines)
    tokenizer = Tokenizer.train(documents, TokenizerSettings(vocab_size=400))
    tokenizer.save(tmp_path / "tokenizer")
    monkeypatch.setattr(shards, "CHUNK_CHARS", 1000)
    settings = TokensSettings(data=str(data), tokenizer=str(tmp_path / "tokenizer"))
    shards.build(settings, tmp_path / "tokens")
    for split, part in (("train", documents[:100]), ("val", documents[100:])):
        file = TokenFile.open(tmp_path / "tokens", split)
        starts = [0, *file.ends.tolist()]
        for text, start, end in zip(part, starts, file.ends.tolist(), strict=False):
            assert file.ids[start:end].tolist() == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        assert file.bytes == sum(len(text.encode()) for text in part)
    (data / "train.jsonl").write_text('{"text": "good"}\n{"words": "bad"}\n')
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: no JSON object with a text"):
        shards.build(settings, tmp_path / "tokens")
    assert TokenFile.open(tmp_path / "tokens").documents == 100  # what was there is unharmed
    (data / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="no documents"):
        shards.build(settings, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))
