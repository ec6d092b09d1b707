"""What a step runs: order, budget, shares, preemption; and the places where nano-vllm's users fell (its issues are named)."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch
from small_models import SMALL

from tinyseek.engine.blocks import BlockPool
from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.engine.generate import recompute
from tinyseek.engine.request import Request
from tinyseek.engine.sampler import Sampling
from tinyseek.engine.scheduler import Scheduler
from tinyseek.engine.sequence import Chunk, Outlet, Sequence
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(3)
    return CausalLM(ModelConfig(model_type="llama", **{**SMALL, "num_hidden_layers": 2})).eval()


def text(pool: BlockPool, tokens: list[int], **params: Any) -> Sequence:
    asked = SamplingParams(**{"max_tokens": 50, **params})
    request = Request(cast(Any, None), tokens, asked)
    return Sequence(request, 0, pool.root, 1000, {}, Outlet(None), Sampling(asked))


def plan(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """What is run of each text: its first token, from where, how many. Then every text that is ready gets a token."""
    chunks = scheduler.schedule()
    run(scheduler, chunks)
    return [(chunk.sequence.tokens[0], chunk.start, chunk.count) for chunk in chunks]


def run(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        scheduler.computed(chunk.sequence, chunk.start + chunk.count)
        if not chunk.sequence.remaining:
            chunk.sequence.tokens.append(0)


def make(blocks: int = 100, size: int = 4, sequences: int = 8, budget: int = 16) -> tuple[BlockPool, Scheduler]:
    pool = BlockPool(blocks, size)
    return pool, Scheduler(pool, sequences, budget)


def test_texts_first_then_prompts_half_to_the_oldest_and_the_rest_to_the_shortest() -> None:
    pool, scheduler = make()
    scheduler.add(text(pool, [1] * 3))
    assert plan(scheduler) == [(1, 0, 3)]
    for token, length in ((2, 50), (3, 40), (4, 5)):
        scheduler.add(text(pool, [token] * length))
    # one for the text, fifteen left: eight for the oldest, five for the shortest, two for the other
    assert plan(scheduler) == [(1, 3, 1), (2, 0, 8), (4, 0, 5), (3, 0, 2)]
    assert plan(scheduler) == [(1, 4, 1), (4, 5, 1), (2, 8, 4), (3, 2, 6)]  # chunks end with a block


def test_a_budget_is_never_exceeded_and_everything_ends() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(30):
        sequences = rng.randrange(1, 6)
        pool, scheduler = make(rng.randrange(12, 40), rng.randrange(1, 5), sequences, sequences + rng.randrange(10))
        room = pool.total * pool.block_size
        texts = [
            text(pool, [rng.randrange(3) for _ in range(rng.randrange(1, max(2, room // 2)))], max_tokens=5)
            for _ in range(8)
        ]
        for one in texts:
            scheduler.add(one)
        steps = 0
        while scheduler.waiting or scheduler.running:
            chunks = scheduler.schedule()
            assert 0 < sum(chunk.count for chunk in chunks) <= scheduler.max_batch_tokens
            assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks) <= sequences
            for chunk in chunks:
                assert len(chunk.tokens) == chunk.count
                assert chunk.start == chunk.sequence.computed
                assert pool.blocks_for(chunk.start + chunk.count) <= len(chunk.sequence.blocks)
            run(scheduler, chunks)
            for one in [*scheduler.running]:
                if one.output >= 5:
                    scheduler.finish(one)
            steps += 1
            assert steps < 2000
        assert pool.used == 0


def test_drafts_are_run_with_their_text_as_far_as_the_budget_goes() -> None:
    pool, scheduler = make(sequences=4, budget=8)
    first, second = text(pool, [1]), text(pool, [2])
    scheduler.add(first)
    scheduler.add(second)
    plan(scheduler)
    first.draft, second.draft = [7, 8, 9], [7, 8, 9]
    chunks = scheduler.schedule()
    assert [(chunk.tokens, chunk.wanted) for chunk in chunks] == [([0, 7, 8, 9], 4), ([0, 7, 8], 3)]
    assert sum(chunk.count for chunk in chunks) <= 8


def test_a_draft_is_given_up_before_another_text_is() -> None:
    pool, scheduler = make(blocks=5, size=2)
    first, second = text(pool, [1]), text(pool, [2])
    scheduler.add(first)
    scheduler.add(second)
    plan(scheduler)
    pool.allocate(pool.free)
    first.draft = [7, 8]
    assert [chunk.tokens for chunk in scheduler.schedule()] == [[0], [0]]
    assert scheduler.preemptions == 0


def test_the_latest_gives_way_and_comes_back_first() -> None:
    pool, scheduler = make(blocks=6, size=2, sequences=3)
    texts = [text(pool, [token]) for token in (1, 2, 3)]
    for one in texts:
        scheduler.add(one)
    while not scheduler.preemptions:
        plan(scheduler)
    assert scheduler.running == texts[:2]
    assert [*scheduler.waiting] == texts[2:]
    last = text(pool, [4])
    scheduler.add(last)
    scheduler.finish(texts[0])
    scheduler.finish(texts[1])
    plan(scheduler)
    assert scheduler.running == [texts[2], last]


# ---- nano-vllm's issues ----


def engine_of(model: CausalLM, **changes: Any) -> Engine:
    how = {"cache_tokens": 128, "block_size": 4, "max_sequences": 8, "max_batch_tokens": 64}
    return Engine(model, None, EngineSettings(**{**how, **changes}))


def output(request: Request) -> list[int]:
    pieces = list(request)
    assert pieces[-1].error is None
    return [token for piece in pieces for token in piece.ids]


@pytest.mark.parametrize("length", [4, 8, 12, 16])
def test_a_prompt_of_whole_blocks_that_are_all_known(model: CausalLM, length: int) -> None:
    """#114, #117, #144, #199: no token was left to run."""
    engine, prompt, params = engine_of(model), list(range(length)), SamplingParams(max_tokens=5)
    expected = recompute(model, prompt, params)
    for _ in range(3):
        assert output(engine.submit(prompt, params)) == expected


def test_a_preempted_text_that_finds_its_own_blocks_again(model: CausalLM) -> None:
    """#211, #233: how much to run was counted before the blocks were found."""
    engine, params = engine_of(model, cache_tokens=64), SamplingParams(max_tokens=25)
    requests = [engine.submit([token] * 9, params) for token in (1, 2, 3)]
    found = []
    reuse = engine.scheduler._reuse

    def watched(sequence: Sequence) -> None:
        before = sequence.computed
        reuse(sequence)
        if sequence.preempted and sequence.computed > before:
            found.append(sequence.computed)

    engine.scheduler._reuse = watched  # type: ignore[method-assign]
    assert [output(request) for request in requests] == [recompute(model, r.prompt, params) for r in requests]
    assert engine.stats().preemptions > 0
    assert found


def test_blocks_that_are_only_just_being_computed_are_not_found(model: CausalLM) -> None:
    """#208, #209: prompts of one batch found each other's blocks before anything was in them."""
    engine, params = engine_of(model, max_batch_tokens=100), SamplingParams(max_tokens=6)
    requests = [engine.submit([5] * 8 + [token] * 9, params) for token in (1, 2, 2, 3)]
    chunks = []
    compute = engine.runner.run
    engine.runner.run = lambda given: (chunks.append([*given]), compute(given))[1]  # type: ignore[method-assign, func-returns-value]
    engine.step()
    assert [(chunk.start, chunk.count) for chunk in chunks[0]] == [(0, 17)]
    engine.step()  # the others begin where the first one's blocks end
    assert [(chunk.start, chunk.count) for chunk in chunks[1]][1:] == [(8, 9), (8, 9)]
    assert [output(request) for request in requests] == [recompute(model, r.prompt, params) for r in requests]


@pytest.mark.parametrize("at", [3, 4, 5, 8, 9])
def test_preempted_just_at_a_block_border(model: CausalLM, at: int) -> None:
    """#217: the token that is drawn when a preempted text has been run again was lost, and the count of blocks with it."""
    engine, params = engine_of(model), SamplingParams(max_tokens=16)
    first, second = engine.submit([1, 2], params), engine.submit([3], params)
    while second.generated_tokens + 1 < at:
        engine.step()
    engine.scheduler._preempt(engine.scheduler.running[-1])
    assert output(second) == recompute(model, [3], params)
    assert output(first) == recompute(model, [1, 2], params)
    assert (second.generated_tokens, engine.stats().preemptions) == (16, 1)
