"""Hundreds of small random mixes of requests against plain recomputation, token for token.

Every mix has an engine of its own: block size, room, budget, guesses ahead, and requests whose prompts begin alike, end at block
borders, come and go at random, want one text or several, are read at once or later. The seed of each is printed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import CONFIGS, LATENT, SMALL

from tinyseek.engine.engine import Engine, EngineSettings
from tinyseek.engine.generate import recompute
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Piece, Request
from tinyseek.engine.runner import CompiledForward
from tinyseek.model.config import ModelConfig
from tinyseek.model.mtp import MTPModule
from tinyseek.model.transformer import CausalLM

LAYERS = {"num_hidden_layers": 2}
MODELS = {
    "mla-moe": ModelConfig(model_type="deepseek_v3", **{**LATENT, **LAYERS}, num_nextn_predict_layers=1),
    "mla-dense": ModelConfig(
        model_type="deepseek_v3", **{**LATENT, **LAYERS, "n_routed_experts": 0}, num_nextn_predict_layers=2
    ),
    "gqa": ModelConfig(model_type="llama", **{**SMALL, **LAYERS}, num_key_value_heads=2),
    "gqa-window": ModelConfig(**{**CONFIGS["qwen2-window"].plain(), **LAYERS}),
    "gpt2": ModelConfig(model_type="gpt2", **{**SMALL, **LAYERS}, tie_word_embeddings=True),
}
MIXES = 40  # of each model: 200 in all
VOCABULARY = 97
TIE = 1e-4  # logits nearer than this may change places by rounding

_models: dict[str, CausalLM] = {}


def model_of(name: str) -> CausalLM:
    if name not in _models:
        torch.manual_seed(1)
        _models[name] = model = CausalLM(MODELS[name]).eval()
        for module in model.mtp:  # so that it guesses from the token's embedding alone, and sometimes right
            assert isinstance(module, MTPModule)
            torch.nn.init.eye_(module.eh_proj.weight)
    return _models[name]


@torch.inference_mode()
def assert_likeliest(model: CausalLM, prompt: list[int], output: list[int]) -> int:
    """Every token of the output is the likeliest after all those before it, by one plain pass; returns how many were ties.

    By induction the output is then what recomputation for every token gives.
    """
    if not output:
        return 0
    logits = model(torch.tensor([prompt + output]))[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    behind = logits.amax(-1) - chosen
    assert behind.max() < TIE, (prompt, output, behind)
    return int((behind > 0).sum())


class Mix:
    """One random mix: how the engine is made, what is asked and when."""

    def __init__(self, model: CausalLM, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.tight = rng.random() < 0.4  # room for little more than one text, so that blocks run out
        size = rng.choice([1, 2, 3, 4] if self.tight else [2, 3, 4, 8, 8, 16])
        sequences = rng.choice([4, 8, 32] if self.tight else [1, 2, 3, 4, 8, 32])
        self.settings = EngineSettings(
            block_size=size,
            cache_tokens=rng.choice([32, 40, 50, 64] if self.tight else [64, 100, 200, 1000]),
            max_sequences=sequences,
            max_batch_tokens=sequences + rng.choice([0, 1, 3, 10, 40, 500]),
            prefix_cache=rng.random() < 0.8,
            speculate=rng.choice(["none", "lookup", "mtp" if model.mtp else "lookup"]),
            draft_tokens=rng.randrange(1, 6),
        )
        self.engine = Engine(model, None, self.settings)
        if isinstance(self.engine.runner.forward, CompiledForward):
            self.engine.runner.forward.few = rng.choice([0, 1, 8, 32])
        self.beginnings = [self.tokens(rng.randrange(1, 50)) for _ in range(2)]
        self.budget = self.settings.max_batch_tokens

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(count)]

    def prompt(self) -> list[int]:
        """At a block border or just beside it; often with a beginning that others have too, sometimes nothing else."""
        rng, size = self.rng, self.settings.block_size
        begin = rng.choice([[], *self.beginnings])
        if begin and rng.random() < 0.2:
            return begin[: self.engine.context - 1]
        length = max(
            1,
            size * rng.randrange(0, 1 + (20 if self.tight else 40) // size)
            + rng.choice([-1, 0, 0, 1, rng.randrange(size)]),
        )
        cut = begin[: rng.randrange(len(begin) + 1)]
        return (cut + self.tokens(length))[: min(length, self.engine.context - 1)]

    def params(self) -> SamplingParams:
        rng = self.rng
        drawn: dict[str, Any] = {"temperature": 1.0, "seed": rng.randrange(99)} if rng.random() < 0.15 else {}
        stops = frozenset(self.tokens(rng.choice([0, 0, 4])))
        scored = 2 if rng.random() < 0.15 else None
        count = rng.choice([1, 1, 1, 2, 3])
        return SamplingParams(
            rng.randrange(1, 24 if self.tight else 12), stop_ids=stops, n=count, prompt_logprobs=scored, **drawn
        )

    def run(self) -> list[tuple[Request, list[Piece]]]:
        """Submit, step, read and cancel at random until nothing is left."""
        rng, engine = self.rng, self.engine
        left = 32 if rng.random() < 0.04 else rng.choice([1, 1, 2, 3, 4, 4, 7, 11])
        asked: list[tuple[Request, list[Piece], Iterator[Piece]]] = []
        while left or engine.step():
            while left and rng.random() < 0.5:
                request = engine.submit(self.prompt(), self.params())
                asked.append((request, [], iter(request)))
                left -= 1
            if asked and rng.random() < 0.3:  # read a piece, which steps the engine till there is one
                _, pieces, reader = rng.choice(asked)
                pieces.extend(piece for piece in [next(reader, None)] if piece)
            if asked and rng.random() < 0.03:
                rng.choice(asked)[0].cancel()
            self.check_blocks()
        for _, pieces, reader in asked:
            pieces.extend(reader)
        return [(request, pieces) for request, pieces, _ in asked]

    def check_blocks(self) -> None:
        """Every block is held by exactly those texts that list it, and only full blocks by several."""
        pool, size = self.engine.pool, self.settings.block_size
        running, waiting = self.engine.scheduler.running, self.engine.scheduler.waiting
        assert not any(text.blocks for text in waiting)
        held = [block for text in running for block in text.blocks]
        counts = Counter(held)
        assert [pool.holders(block) for block in range(pool.total)] == [counts[block] for block in range(pool.total)]
        assert pool.used == len(set(held))
        for text in running:
            assert all(pool.holders(block) == 1 for block in text.blocks[text.computed // size :])


@pytest.mark.parametrize("name", MODELS)
def test_mixes_equal_recomputation(name: str) -> None:
    model = model_of(name)
    start = random.randrange(1 << 30)
    written = ties = preempted = reused = guessed = right = 0
    for seed in range(start, start + MIXES):
        print(f"{name}: seed {seed}")
        mix = Mix(model, seed)
        for request, pieces in mix.run():
            params, prompt = request.params, list(request.prompt)
            limit = min(params.max_tokens, mix.engine.context - len(prompt))
            if params.prompt_logprobs is not None and not request.cancelled:
                assert request.prompt_logprobs is not None
                assert len(request.prompt_logprobs) == len(prompt)
            for index in range(params.n):
                own = [piece for piece in pieces if piece.index == index]
                output = [token for piece in own for token in piece.ids]
                assert [piece.finish for piece in own[:-1]] == [None] * (len(own) - 1)
                finish, stop = own[-1].finish, own[-1].stop
                assert finish in ("stop", "length") or (finish == "cancelled" and request.cancelled), own[-1].error
                if finish == "length":
                    assert len(output) == limit
                if params.greedy:
                    full = [*output, stop] if isinstance(stop, int) else output
                    ties += assert_likeliest(model, prompt, full)
                    assert not set(output) & params.stop_ids
                written += len(output)
        pool = mix.engine.pool
        assert pool.used == 0
        assert pool.free == pool.total
        assert mix.engine.step() is False
        preempted += mix.engine.stats().preemptions
        reused += mix.engine.stats().cached_tokens
        guessed += mix.engine.stats().drafted
        right += mix.engine.stats().accepted
    print(
        f"{written} tokens, {ties} ties, {preempted} preemptions, {reused} prompt tokens reused, {right} of {guessed} guesses"
    )
    assert ties * 1000 <= written + 5000  # one in a thousand, and a few by chance
    assert preempted > 0
    assert reused > 20
    assert guessed > right > 0


@pytest.mark.parametrize("name", MODELS)
def test_one_mix_against_literal_recomputation(name: str) -> None:
    """What `assert_likeliest` shows by induction, once in the plain way."""
    model = model_of(name)
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (1, 7, 8, 9, 31)]
    engine = Engine(model, None, EngineSettings(block_size=8, cache_tokens=48, max_sequences=4, max_batch_tokens=7))
    params = SamplingParams(max_tokens=12)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    outputs = [[token for piece in request for token in piece.ids] for request in requests]
    assert outputs == [recompute(model, prompt, params) for prompt in prompts]
    assert engine.stats().preemptions > 0
