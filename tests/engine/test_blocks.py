"""The pool of blocks: what is held, what is kept, what goes first; and that a hash is never believed."""

import random

import pytest

from tinyseek.engine import blocks
from tinyseek.engine.blocks import BlockPool, Prefix


def publish_all(pool: BlockPool, tokens: list[int], held: list[int]) -> list[int]:
    """Publish a text's full blocks; returns the blocks that hold them."""
    place, out = pool.root, list(held)
    for at in range(len(tokens) // pool.block_size):
        place = pool.publish(place, tuple(tokens[at * pool.block_size : (at + 1) * pool.block_size]), out[at])
        out[at] = place.block
    return out


def written(pool: BlockPool, tokens: list[int]) -> list[int]:
    held = pool.allocate(pool.blocks_for(len(tokens)))
    assert held is not None
    return publish_all(pool, tokens, held)


def test_only_full_blocks_are_found_and_only_from_the_beginning() -> None:
    pool = BlockPool(8, 4)
    held = written(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert [place.block for place in pool.match(pool.root, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])] == held[:2]
    assert [place.block for place in pool.match(pool.root, [1, 2, 3, 4, 5, 6, 7])] == held[:1]
    assert pool.match(pool.root, [5, 6, 7, 8]) == []
    assert pool.match(pool.root, [1, 2, 3]) == []
    assert pool.match(Prefix(), [1, 2, 3, 4]) == []


def test_what_was_released_is_kept_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, 2)
    held = written(pool, [1, 2, 3, 4, 5])
    assert (pool.used, pool.free, pool.cached) == (3, 1, 0)
    pool.release(held)
    assert (pool.used, pool.free, pool.cached) == (0, 4, 2)
    pool.allocate(2)  # the two blocks with nothing in them go first
    assert len(pool.match(pool.root, [1, 2, 3, 4])) == 2
    pool.allocate(1)  # then the end of the text, and its beginning last
    assert [place.block for place in pool.match(pool.root, [1, 2, 3, 4])] == held[:1]
    assert pool.allocate(2) is None
    assert (pool.used, pool.free, pool.cached) == (3, 1, 1)


def test_the_text_longest_unused_is_forgotten_first() -> None:
    pool = BlockPool(6, 2)
    texts = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 8]]
    held = [written(pool, text) for text in texts]
    for blocks_of in held:
        pool.release(blocks_of)
    for place in pool.match(pool.root, texts[0]):  # the first is used once more
        pool.hold(place.block)
    pool.release(held[0])
    pool.allocate(2)
    assert [len(pool.match(pool.root, text)) for text in texts] == [2, 0, 2]
    pool.allocate(1)
    assert [len(pool.match(pool.root, text)) for text in texts] == [2, 0, 1]


def test_blocks_with_nothing_to_find_go_before_those_that_are_kept() -> None:
    pool = BlockPool(4, 2)
    kept, empty = written(pool, [1, 2, 3, 4]), pool.allocate(2)
    assert empty is not None
    pool.release(kept)
    pool.release(empty)
    pool.allocate(2)
    assert len(pool.match(pool.root, [1, 2, 3, 4])) == 2


def test_equal_texts_written_at_once_come_to_share() -> None:
    pool = BlockPool(8, 2)
    first, second = pool.allocate(2), pool.allocate(2)
    assert first is not None
    assert second is not None
    assert publish_all(pool, [1, 2, 3, 4], first) == first
    assert publish_all(pool, [1, 2, 3, 4], second) == first
    assert pool.used == 2
    assert [pool.holders(block) for block in first] == [2, 2]


def test_what_is_not_to_be_kept_is_not_found() -> None:
    pool = BlockPool(4, 2)
    held = written(pool, [1, 2, 3, 4])
    pool.hold(held[0])
    pool.release(held, keep=False)
    assert len(pool.match(pool.root, [1, 2, 3, 4])) == 1  # the other is held still
    pool.release(held[:1], keep=False)
    assert (pool.match(pool.root, [1, 2]), pool.cached, pool.free) == ([], 0, 4)


def test_after_clearing_nothing_is_found_and_what_is_held_stays_held() -> None:
    pool = BlockPool(6, 2)
    held, other = written(pool, [1, 2, 3, 4]), written(pool, [7, 8])
    pool.release(other)
    pool.clear()
    assert (pool.match(pool.root, [1, 2]), pool.match(pool.root, [7, 8])) == ([], [])
    assert (pool.used, pool.cached, pool.free) == (2, 0, 4)
    pool.release(held)
    assert (pool.used, pool.cached, pool.free) == (0, 0, 6)


def test_releasing_more_often_than_holding_is_a_mistake() -> None:
    pool = BlockPool(2, 2)
    held = pool.allocate(1)
    assert held is not None
    pool.release(held)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(held)


@pytest.mark.parametrize("colliding", [False, True])
def test_random_use_against_a_plain_model(colliding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts out of three tokens come and go. What is found in a block is what was written there, even if every hash is the same."""
    if colliding:
        monkeypatch.setattr(blocks, "chain_hash", lambda *_: 7)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool, size = BlockPool(12, 2), 2
    contents: dict[int, tuple[int, ...]] = {}  # block -> the whole text up to its end
    texts: list[list[int]] = []  # blocks
    found = 0
    for _ in range(2000):
        if texts and rng.random() < 0.5:
            pool.release(texts.pop(rng.randrange(len(texts))), keep=rng.random() < 0.9)
        else:
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
            places = pool.match(pool.root, tokens)
            for at, place in enumerate(places):
                assert contents[place.block] == tuple(tokens[: (at + 1) * size])
                pool.hold(place.block)
            found += len(places)
            held = [place.block for place in places]
            new = pool.allocate(pool.blocks_for(len(tokens)) - len(held))
            if new is None:
                pool.release(held)
                continue
            for at, block in enumerate(new, len(held)):
                contents[block] = tuple(tokens[: (at + 1) * size])
            texts.append(publish_all(pool, tokens, held + new))
        counts = [sum(block in text for text in texts) for block in range(12)]
        assert [pool.holders(block) for block in range(12)] == counts
        assert pool.used == sum(count > 0 for count in counts)
        assert pool.free == 12 - pool.used
        assert 0 <= pool.cached <= pool.free
    assert found > 100
