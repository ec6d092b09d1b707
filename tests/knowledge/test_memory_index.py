"""The oracle is checked too: its BM25 against bm25s, its cosine against a matrix product, its filters one by one."""

from __future__ import annotations

import random

import bm25s
import numpy as np
import pytest
from knowledge.memory_index import K1, B, HashEmbedder, MemoryBase, MemoryIndex, plain_words

from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import Chunk, Filters

WORDS = "the lift of a wing in 水 流 中 slipstream boundary layer heat 飞 机 flow plate shock wave".split()  # noqa: SIM905


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bm25_is_that_of_bm25s(seed: int) -> None:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(60)]
    base = MemoryBase(MemoryIndex())
    base.put("a", texts)
    oracle = bm25s.BM25(k1=K1, b=B, method="lucene")
    oracle.index([plain_words(text) for text in texts], show_progress=False)
    for _ in range(20):
        asked = list(dict.fromkeys(draw.choices(WORDS, k=draw.randint(1, 6))))
        expected = oracle.get_scores(asked)
        found = dict(base.index.lexical(" ".join(asked), 100))
        assert set(found) == {number + 1 for number in np.flatnonzero(expected)}
        for number, score in found.items():
            assert score == pytest.approx(expected[number - 1], rel=1e-5)


def test_cosine_is_a_matrix_product() -> None:
    texts = ["lift of a wing", "heat in a plate", "shock wave", "the boundary layer"]
    embedder = HashEmbedder()
    base = MemoryBase(embedder=embedder)
    base.put("a", texts)
    [asked] = embedder.queries(["wing lift"])
    expected = embedder.passages(texts) @ asked
    found = base.index.dense(asked, 3)
    assert [number for number, _ in found] == [int(at) + 1 for at in np.argsort(-expected)[:3]]
    assert [score for _, score in found] == pytest.approx(sorted(expected, reverse=True)[:3])


def test_filters_say_what_may_be_found() -> None:
    base = MemoryBase()
    base.put("old/a.pdf", ["wing one", "wing two"], tags=("x", "y"), date="2020-05-01")
    base.put(
        "new/b.pdf", ["wing three", Chunk("wing four", (Place(page=2), Place(page=3)))], tags=("x",), date="2024-01-31"
    )

    def pages(filters: Filters) -> list[str]:
        return sorted(c.chunk.text for c in base.index.chunks([n for n, _ in base.index.lexical("wing", 9, filters)]))

    assert len(pages(Filters())) == 4
    assert pages(Filters(names=("*/b.*",))) == pages(Filters(folders=("new",))) == ["wing four", "wing three"]
    assert pages(Filters(tags=("x", "y"))) == pages(Filters(until="2023")) == ["wing one", "wing two"]
    assert pages(Filters(pages=(3, 9))) == ["wing four"]
    assert pages(Filters(documents=(1,), pages=(1, 1))) == ["wing one"]
    assert pages(Filters(since="2024-01-31", kinds=("docx",))) == []


def test_what_is_put_again_replaces_and_what_is_removed_is_gone() -> None:
    base = MemoryBase()
    first = base.put("a", ["wing one", "wing two"])
    assert base.put("a", ["plate"]) == first
    assert base.index.lexical("wing", 9) == []
    [(chunk, _)] = base.index.lexical("plate", 9)
    base.index.correct(chunk, "shock", base.embedder.passages(["shock"])[0])
    assert base.index.lexical("plate", 9) == []
    assert base.index.chunks([chunk, 99])[0].chunk.corrected
    assert base.index.remove([first, 99]) == 1
    assert base.index.count() == (0, 0)
