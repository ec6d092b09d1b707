"""The tokenizer against the `tokenizers` library, token for token, over small and random vocabularies."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("numba")
from tokenizers import Tokenizer, models, pre_tokenizers

from tinyseek.knowledge.embed.unigram import SPACE, Unigram

NORMAL = {9: " ", 10: " ", 0x3000: " ", 0xAD: "", 0xFF21: "A", 0x2581: " ", 0xA8: " \u0308", 0x0132: "IJ"}


def both(pieces: list[tuple[str, float]]) -> tuple[Unigram, Tokenizer]:
    blobs = [piece.encode() for piece, _ in pieces]
    offsets = np.cumsum([0, *map(len, blobs)]).astype(np.uint32)
    scores = np.array([score for _, score in pieces], np.float32)
    ours = Unigram(np.frombuffer(b"".join(blobs), np.uint8), offsets, scores, NORMAL, 0)
    theirs = Tokenizer(models.Unigram([(piece, float(np.float32(score))) for piece, score in pieces], unk_id=0))
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    return ours, theirs


def expected(theirs: Tokenizer, text: str) -> list[int]:
    """The library makes one token of unknown characters that follow each other; here each is one."""
    plain = text.translate(NORMAL)
    while "  " in plain:
        plain = plain.replace("  ", " ")
    found = theirs.encode(plain or " ", add_special_tokens=False)  # of nothing it makes nothing
    ids = []
    for token, (begin, end) in zip(found.ids, found.offsets, strict=True):
        ids += [0] * (end - begin) if token == 0 else [token]
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_library_on_random_texts(seed: int) -> None:
    rng = random.Random(seed)
    letters = "abcd好的了𝄞é" + SPACE
    pieces = {"<unk>": 0.0, SPACE: -6.0}
    for _ in range(rng.choice((20, 200))):
        piece = rng.choice(("", SPACE)) + "".join(rng.choices(letters[:-1], k=rng.randint(1, 4)))
        pieces[piece] = -rng.random() * 12
    ours, theirs = both(list(pieces.items()))
    texts = ["".join(rng.choices(letters + "x龘 \t\n\u3000\u00adＡ¨Ĳ", k=rng.randint(0, 60))) for _ in range(300)]
    found = ours.encode(texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == expected(theirs, text), (seed, text)


def test_what_is_no_text_at_all() -> None:
    ours, _ = both([("<unk>", 0.0), (SPACE, -2.0), ("a", -1.0), ("?", -3.0), ("a" * 40, -0.5)])
    assert ours.encode([]) == []
    assert [ids.tolist() for ids in ours.encode(["", " ", "   ", "a"])] == [[1], [1], [1], [1, 2]]
    assert sorted(ours.encode(["a" * 81])[0].tolist()) == [1, 2, 4, 4]
    assert ours.encode(["\ud800a"])[0].tolist() == [1, 3, 2]  # half a surrogate pair, as broken files have them
    assert len(ours.encode(["龘" * 1000])[0]) == 1001


def test_a_word_is_cut_the_same_wherever_it_stands() -> None:
    rng = random.Random(1)
    pieces = [("<unk>", 0.0), (SPACE, -3.1), *((a + b, -rng.random() * 9) for a in ("", SPACE, "a") for b in "abc")]
    ours, _ = both(list(dict(pieces).items()))
    words = ["".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(5000)]
    alone = [token for ids in ours.encode(words) for token in ids.tolist()]
    assert ours.encode([" ".join(words)])[0].tolist() == alone
