"""The engine as those who ask it see it: pieces, stops, log-probabilities, sharing, threads, cancelling, failing, closing."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import LATENT, SMALL, fresh
from torch import Tensor

from tinyseek.engine import blocks
from tinyseek.engine.engine import Engine, EngineSettings, Piece, QueueFullError, SamplingParams
from tinyseek.engine.generate import recompute
from tinyseek.engine.grammar import Constraint
from tinyseek.engine.request import Request
from tinyseek.engine.runner import TorchForward
from tinyseek.engine.sequence import Chunk, Outlet
from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

TEXT = ["The quick brown fox jumps over the lazy dog. 1, 2, 3 and 4!\n" * 20, "你是谁？我是模型，很高兴。😀" * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, TokenizerSettings(vocab_size=360))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CausalLM:
    torch.manual_seed(2)
    config = {**LATENT, "vocab_size": tokenizer.vocab_size + 7, "num_hidden_layers": 2, "max_position_embeddings": 256}
    return CausalLM(ModelConfig(model_type="deepseek_v3", **config)).eval()


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"cache_tokens": 1024, "block_size": 8, "max_sequences": 8, "max_batch_tokens": 64, **changes}
    )


@pytest.fixture
def engine(model: CausalLM, tokenizer: Tokenizer) -> Iterator[Engine]:
    engine = Engine(model, tokenizer, settings())
    yield engine
    engine.close()
    assert engine.pool.used == 0


class Script:
    """In the model's place: after `begin` tokens it says these, whatever stands there."""

    def __init__(self, engine: Engine, tokens: list[int], begin: int, vocabulary: int) -> None:
        self.tokens, self.begin, self.vocabulary = tokens, begin, vocabulary
        engine.runner.run = self.run  # type: ignore[method-assign]
        engine.runner.logits = self.logits  # type: ignore[method-assign]

    def run(self, chunks: list[Chunk]) -> list[Tensor]:
        return [
            torch.arange(chunk.start, chunk.start + chunk.count)[chunk.count - chunk.wanted :, None].float()
            for chunk in chunks
        ]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), self.vocabulary)
        for row, position in enumerate(hidden[:, 0].long().tolist()):
            at = position + 1 - self.begin
            logits[row, self.tokens[at] if at < len(self.tokens) else 0] = 50.0
        return logits


def said(engine: Engine, tokens: list[int], **params: Any) -> list[Piece]:
    """The pieces of a text for which the model says these tokens."""
    Script(engine, tokens, 1, engine.model.config.vocab_size)
    return list(engine.submit([5], SamplingParams(**{"max_tokens": len(tokens), **params})))


def ids_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.ids]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# ---- text ----


def test_text_is_whole_characters_and_ids_are_all(engine: Engine, tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("fox 😀 谁"), tokenizer.bos_id, *tokenizer.encode("!")]
    pieces = said(engine, tokens)
    assert ids_of(pieces) == tokens
    assert text_of(pieces) == "fox 😀 谁!"
    assert not any("\ufffd" in piece.text for piece in pieces)
    cut = tokenizer.encode("a😀")[:-1]
    assert text_of(said(engine, cut)) == "a\ufffd"  # nothing more comes: what was held is told


def test_the_end_token_ends_a_text_and_is_not_told(engine: Engine, tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("fox"), tokenizer.eos_id, *tokenizer.encode(" dog")]
    pieces = said(engine, tokens)
    assert (text_of(pieces), pieces[-1].finish, pieces[-1].stop) == ("fox", "stop", tokenizer.eos_id)
    assert text_of(said(engine, tokens, ignore_eos=True)) == "fox dog"
    (comma,) = tokenizer.encode(",")
    pieces = said(engine, tokenizer.encode("1,2"), stop_ids=frozenset({comma}))
    assert (text_of(pieces), pieces[-1].stop) == ("1", comma)


@pytest.mark.parametrize(
    ("text", "stops", "expected", "met"),
    [
        ("The quick brown fox", ("own",), "The quick br", "own"),
        ("The quick brown fox", ("fox", "qu"), "The ", "qu"),
        ("The quick brown fox", ("x",), "The quick brown fo", "x"),
        ("The quick brown fox", ("The",), "", "The"),
        ("The quick brown fox", ("foxes", "owl", "z"), "The quick brown fox", None),
        ("aab aaab", ("aaab",), "aab ", "aaab"),
        ("谁？我是模型", ("我是",), "谁？", "我是"),
        ("1\n\n2", ("\n\n",), "1", "\n\n"),
    ],
)
def test_stop_strings(
    engine: Engine, tokenizer: Tokenizer, text: str, stops: tuple[str, ...], expected: str, met: str | None
) -> None:
    """Across the borders of tokens, and of bytes; no beginning of one is ever told."""
    for tokens in (tokenizer.encode(text), [tokenizer.encode(c)[0] for c in text] if text.isascii() else []):
        if not tokens:
            continue
        pieces = said(engine, tokens, stop=stops)
        assert (text_of(pieces), pieces[-1].stop) == (expected, met)
        assert pieces[-1].finish == ("stop" if met else "length")
        decoded = tokenizer.decode(ids_of(pieces), skip_specials=True)
        assert expected.startswith(decoded)
        assert ids_of(pieces) == tokens[: len(ids_of(pieces))]


@pytest.mark.parametrize("mark", ["<｜User｜>", "</think>"])
def test_stop_strings_that_are_control_tokens_are_met_as_tokens_and_as_letters(
    engine: Engine, tokenizer: Tokenizer, mark: str
) -> None:
    for middle in ([tokenizer.controls[mark]], tokenizer.encode(mark)):
        pieces = said(engine, [*tokenizer.encode("fox"), *middle, *tokenizer.encode("dog")], stop=(mark,))
        assert (text_of(pieces), pieces[-1].finish, pieces[-1].stop) == ("fox", "stop", mark)


def test_before_min_tokens_nothing_stops(engine: Engine, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.encode(character)[0] for character in "a.b.c.d"]
    assert text_of(said(engine, tokens, stop=(".",), min_tokens=3)) == "a.b"
    assert text_of(said(engine, tokens, stop=(".",), min_tokens=4)) == "a.b"
    assert text_of(said(engine, tokens, stop=(".",), min_tokens=5)) == "a.b.c"


@pytest.mark.parametrize("repeat", range(200))
def test_an_outlet_tells_all_that_is_certain_and_nothing_else(tokenizer: Tokenizer, repeat: int) -> None:
    """Random bytes as tokens, random stop strings, read at random moments, against the whole text looked at anew each time."""
    rng = random.Random(repeat)
    letters = rng.choice(["ab", "abc", "a你"])
    stops = tuple("".join(rng.choices(letters, k=rng.randrange(1, 5))) for _ in range(rng.randrange(4)))
    tokens = tokenizer.encode("".join(rng.choices(letters, k=30)))
    tokens += [token for token in tokenizer.encode("好")[:-1] if rng.random() < 0.5]
    outlet, reference = Outlet(tokenizer, stops), tokenizer.stream(skip_specials=True)
    whole, told, ids, met = "", "", [], None
    ends: list[int] = []  # where in the text each token ends
    for token in tokens:
        whole += reference.push(token)
        ends.append(len(whole))
        met = outlet.push(token, None)
        expected = min(((whole.find(stop), stop) for stop in stops if stop in whole), default=None)
        assert met == (expected and expected[1])
        if met:
            assert expected is not None
            whole = whole[: expected[0]]
            break
        if rng.random() < 0.7:
            piece = outlet.take(0)
            told, ids = told + piece.text, ids + list(piece.ids)
            beginnings = [length for stop in stops for length in range(1, len(stop)) if whole.endswith(stop[:length])]
            assert told == whole[: len(whole) - max(beginnings, default=0)]
            assert told.startswith(tokenizer.decode(ids).rstrip("\ufffd"))
    piece = outlet.take(0, "stop" if met else "length", met)
    assert told + piece.text == (whole if met else whole + reference.flush())
    ids += piece.ids
    before = [token for token, end in zip(tokens, ends, strict=False) if end <= len(whole)]
    assert ids == (before if met else tokens)


# ---- what is asked and refused ----


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "empty"),
        ([1] * 256, {}, "256 tokens"),
        ([1] * 257, {"max_tokens": 0, "prompt_logprobs": 0}, "257 tokens"),
        ([1, 9999], {}, "token 9999"),
        ([-1], {}, "token -1"),
        ([1], {"logit_bias": {9999: 1.0}}, "logit_bias: token 9999"),
        ([1], {"stop_ids": frozenset({9999})}, "stop_ids: token 9999"),
        ([1], {"constraint": Constraint("regex", "(")}, "regular expression"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    engine: Engine, prompt: list[int], params: dict[str, Any], message: str
) -> None:
    if "constraint" in params:
        pytest.importorskip("llguidance")
    with pytest.raises(UserError, match=message):
        engine.submit(prompt, SamplingParams(**params))
    assert engine.step() is False


def test_without_a_tokenizer_there_are_tokens_alone(model: CausalLM) -> None:
    engine = Engine(model, None, settings())
    pieces = list(engine.submit([1, 2], SamplingParams(max_tokens=5)))
    assert (len(ids_of(pieces)), text_of(pieces)) == (5, "")
    with pytest.raises(UserError, match="no tokenizer"):
        engine.submit([1], SamplingParams(stop=("a",)))


def test_the_context_is_a_limit_and_a_small_cache_a_smaller_one(model: CausalLM) -> None:
    engine = Engine(model, None, settings())
    assert engine.context == 256
    request = engine.submit([1] * 250, SamplingParams(max_tokens=10**9))
    assert len(ids_of(list(request))) == 6
    small = Engine(model, None, settings(cache_tokens=30))
    assert small.context == 32
    pieces = list(small.submit([1] * 20, SamplingParams(max_tokens=100)))
    assert (len(ids_of(pieces)), pieces[-1].finish) == (12, "length")
    with pytest.raises(UserError, match="the context is 32"):
        small.submit([1] * 32, SamplingParams())


def test_a_full_queue_refuses_until_there_is_room(model: CausalLM) -> None:
    engine = Engine(model, None, settings(max_sequences=2, max_waiting=3))
    requests = [engine.submit([1], SamplingParams(max_tokens=2, n=2)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="try again"):
        engine.submit([1], SamplingParams(max_tokens=2, n=2))
    requests.append(engine.submit([1], SamplingParams(max_tokens=2)))
    assert (engine.stats().waiting, engine.stats().running) == (5, 0)
    for request in requests:
        list(request)
    assert len(list(engine.submit([1], SamplingParams(max_tokens=1, n=20)))) == 20  # alone, however many


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(UserError, match="max_batch_tokens=4"):
        EngineSettings.read({"max_batch_tokens": 4, "max_sequences": 8})


# ---- sharing ----


def test_a_prompt_that_begins_alike_is_not_run_again(engine: Engine) -> None:
    rng = random.Random(1)
    prompt = [rng.randrange(300) for _ in range(41)]
    params = SamplingParams(max_tokens=9)
    first = engine.submit(prompt, params)
    output = ids_of(list(first))
    again = engine.submit(prompt, params)
    longer = engine.submit(prompt + output + [3, 4], params)  # the next turn of a conversation
    other = engine.submit([*prompt[:20], 1, *prompt[21:]], params)
    aligned = engine.submit(prompt[:40], params)  # all of it is known, and still one token must be run
    assert ids_of(list(again)) == output
    for request in (longer, other, aligned):
        assert ids_of(list(request)) == recompute(engine.model, request.prompt, params)
    assert [r.cached_tokens for r in (first, again, longer, other, aligned)] == [0, 40, 48, 16, 32]
    assert engine.stats().cached_tokens == 136
    engine.forget()
    cold = engine.submit(prompt, params)
    assert (ids_of(list(cold)), cold.cached_tokens) == (output, 0)


def test_without_the_prefix_cache_nothing_is_kept(model: CausalLM) -> None:
    engine = Engine(model, None, settings(prefix_cache=False))
    for _ in range(2):
        request = engine.submit([1] * 40, SamplingParams(max_tokens=3, n=2))
        list(request)
        assert request.cached_tokens == 0
        assert engine.stats().blocks_cached == 0


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_several_texts_share_their_prompt(model: CausalLM, prefix_cache: bool) -> None:
    """Eight texts over a prompt of 50 tokens: 6 blocks of 8 in common, and two of its own for each."""
    engine = Engine(model, None, settings(prefix_cache=prefix_cache))
    prompt = list(range(50))
    params = SamplingParams(max_tokens=8, n=8, temperature=1.0, seed=5)
    request = engine.submit(prompt, params)
    ran, run = [], engine.runner.run
    engine.runner.run = lambda chunks: (ran.append(sum(c.count for c in chunks)), run(chunks))[1]  # type: ignore[method-assign, func-returns-value]
    used, out = 0, {}
    for piece in request:
        used = max(used, engine.stats().blocks_used)
        out.setdefault(piece.index, []).extend(piece.ids)
    assert used <= 6 + 8 * 2
    assert sum(ran) <= 50 + 7 * 2 + 8 * 8
    assert len({tuple(tokens) for tokens in out.values()}) > 4
    alone = Engine(model, None, settings())
    for index in (0, 3):  # text 3 of 8 is what it would be among 4
        fewer = alone.submit(prompt, SamplingParams(max_tokens=8, n=4, temperature=1.0, seed=5))
        assert ids_of([piece for piece in fewer if piece.index == index]) == out[index]


def test_equal_prompts_at_once_are_run_once(model: CausalLM) -> None:
    engine = Engine(model, None, settings(max_batch_tokens=64))
    ran, run = [], engine.runner.run
    engine.runner.run = lambda chunks: (ran.append(sum(c.count for c in chunks)), run(chunks))[1]  # type: ignore[method-assign, func-returns-value]
    requests = [engine.submit([*range(100), last], SamplingParams(max_tokens=1)) for last in range(6)]
    outputs = [ids_of(list(request)) for request in requests]
    assert outputs == [recompute(model, request.prompt, request.params) for request in requests]
    assert sum(ran) <= 101 + 5 * 8
    assert [request.cached_tokens for request in requests] == [0, *[96] * 5]


def test_a_hash_that_always_collides_changes_nothing(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "chain_hash", lambda *_: 1)
    engine = Engine(model, None, settings(block_size=2, cache_tokens=256))
    rng = random.Random(2)
    prompts = [[rng.randrange(3) for _ in range(rng.randrange(1, 14))] for _ in range(40)]
    params = SamplingParams(max_tokens=4)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    assert [ids_of(list(r)) for r in requests] == [recompute(model, prompt, params) for prompt in prompts]
    assert engine.stats().cached_tokens > 20


# ---- seeds ----


def test_a_seed_gives_the_same_text_whatever_else_there_is(model: CausalLM) -> None:
    """Alone, among others, in chunks, after a preemption, from the prefix cache."""
    rng = random.Random(3)
    prompt = [rng.randrange(300) for _ in range(30)]
    params = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.95, seed=11, frequency_penalty=0.2)
    alone = ids_of(list(Engine(model, None, settings()).submit(prompt, params)))
    busy = Engine(model, None, settings(cache_tokens=80, block_size=4, max_batch_tokens=11))
    others = [
        busy.submit([rng.randrange(300) for _ in range(12)], SamplingParams(max_tokens=25, temperature=t, seed=1))
        for t in (0.0, 0.7, 1.5)
    ]
    mine = [busy.submit(prompt, params) for _ in range(2)]
    assert [ids_of(list(request)) for request in mine] == [alone, alone]
    for request in others:
        list(request)
    assert busy.stats().preemptions > 0
    assert ids_of(list(busy.submit(prompt, params))) == alone


# ---- log-probabilities ----


@torch.inference_mode()
def plain_logprobs(model: CausalLM, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[0].double().log_softmax(-1)


def test_logprobs_of_output_and_prompt_against_a_plain_forward(engine: Engine) -> None:
    rng = random.Random(4)
    prompt = [rng.randrange(300) for _ in range(150)]  # three chunks
    list(engine.submit(prompt, SamplingParams(max_tokens=1)))  # now its blocks are known, which must not leave gaps
    how: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 3,
        "logit_bias": {7: 5.0},
        "top_k": 5,
    }  # none of it is in what is told
    request = engine.submit(prompt, SamplingParams(max_tokens=12, logprobs=3, prompt_logprobs=5, n=2, **how))
    pieces = list(request)
    assert request.prompt_logprobs is not None
    assert request.prompt_logprobs[0] is None
    assert len(request.prompt_logprobs) == 150
    for index in range(2):
        output = ids_of([piece for piece in pieces if piece.index == index])
        told = [entry for piece in pieces if piece.index == index for entry in piece.logprobs]
        assert [entry.id for entry in told] == output
        expected = plain_logprobs(engine.model, prompt + output)
        entries = [*request.prompt_logprobs[1:], *told]
        for at, entry in enumerate(entries, 1):
            assert entry is not None
            assert entry.id == (prompt + output)[at]
            assert entry.logprob == pytest.approx(expected[at - 1, entry.id].item(), abs=1e-4)
            top = expected[at - 1].topk(5 if at < 150 else 3)
            assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert [value for token, value in entry.top if token == entry.id] in ([], [entry.logprob])


def test_a_prompt_can_be_scored_without_writing(engine: Engine) -> None:
    prompt = list(range(256))  # the whole context
    request = engine.submit(prompt, SamplingParams(max_tokens=0, prompt_logprobs=1))
    pieces = list(request)
    assert [(piece.ids, piece.finish) for piece in pieces] == [((), "length")]
    assert request.prompt_logprobs is not None
    expected = plain_logprobs(engine.model, prompt)
    greedy = 0
    for at, entry in enumerate(request.prompt_logprobs[1:], 1):
        assert entry is not None
        likeliest = entry.logprob == max(value for _, value in entry.top)
        assert likeliest == (expected[at - 1].argmax() == entry.id)
        greedy += likeliest
    assert request.generated_tokens == 0
    assert request.cached_tokens == 0


def test_greedy_logprobs_equal_the_highest_exactly(engine: Engine) -> None:
    pieces = list(engine.submit([1, 2, 3], SamplingParams(max_tokens=30, logprobs=1)))
    assert all(entry.logprob == entry.top[0][1] for piece in pieces for entry in piece.logprobs)


# ---- constraints ----


def test_constraints_end_by_themselves_and_hold_among_others(engine: Engine, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    free = engine.submit([1, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))
    how = SamplingParams(max_tokens=30, temperature=1.0, n=3, constraint=Constraint("regex", "(fox|dog){2}"))
    bound = engine.submit([1, 2, 3], how)
    pieces = list(bound)
    for index in range(3):
        own = [piece for piece in pieces if piece.index == index]
        assert text_of(own) in {"foxfox", "foxdog", "dogfox", "dogdog"}
        assert own[-1].finish == "stop"
    assert ids_of(list(free)) == recompute(engine.model, [1, 2, 3], SamplingParams(max_tokens=30))


# ---- fairness ----


def test_a_long_prompt_starves_neither_running_texts_nor_short_prompts(model: CausalLM) -> None:
    engine = Engine(model, None, settings(max_batch_tokens=16, cache_tokens=2048))
    running = engine.submit([1], SamplingParams(max_tokens=60))
    engine.step()
    long = engine.submit([2] * 200, SamplingParams(max_tokens=1))
    engine.step()
    short = engine.submit([3] * 10, SamplingParams(max_tokens=1))
    reader, steps = iter(running), []
    while not short.generated_tokens:
        written = running.generated_tokens
        engine.step()
        steps.append(running.generated_tokens - written)
    assert len(steps) < 4  # not after the long one's thirteen steps
    assert steps == [1] * len(steps)  # a token in every step
    more = 0
    while not long.generated_tokens:
        more += 1
        engine.step()
    assert more < 30  # it had at least half of what was left
    assert next(reader).ids
    for request in (running, short, long):
        request.cancel()
    engine.step()


def test_texts_are_served_in_their_order_when_blocks_are_few(model: CausalLM) -> None:
    """Twelve texts in a cache that holds three: the first to come are the first to go, whatever is preempted."""
    engine = Engine(model, None, settings(cache_tokens=96, block_size=4))
    requests = [engine.submit([token] * 10, SamplingParams(max_tokens=20)) for token in range(1, 13)]
    ended: list[int] = []
    while engine.step():
        ended += [i for i, request in enumerate(requests) if request.generated_tokens == 20 and i not in ended]
    ended += [i for i in range(12) if i not in ended]
    assert ended == sorted(ended)
    for request in requests:
        assert ids_of(list(request)) == recompute(model, request.prompt, request.params)
    assert engine.stats().preemptions > 0


# ---- cancelling, threads, failing, closing ----


def test_cancelling_frees_the_blocks_at_the_next_step(engine: Engine) -> None:
    keep, drop = (engine.submit([token] * 20, SamplingParams(max_tokens=50, n=2)) for token in (1, 2))
    waiting = engine.submit([3] * 20, SamplingParams(max_tokens=50, n=8))
    for _ in range(5):
        engine.step()
    used = engine.pool.used
    drop.cancel()
    waiting.cancel()
    engine.step()
    assert engine.pool.used < used
    assert {text.request for text in engine.scheduler.running} == {keep}
    finishes = [piece.finish for piece in drop if piece.finish]
    assert finishes == ["cancelled"] * 2
    assert [piece.finish for piece in waiting if piece.finish] == ["cancelled"] * 8
    keep.cancel()
    engine.step()
    assert (engine.pool.used, engine.stats().finished) == (0, {"cancelled": 12})


def test_leaving_the_loop_early_cancels(engine: Engine) -> None:
    request = engine.submit([1, 2], SamplingParams(max_tokens=100))
    for _ in request:
        break
    assert request.cancelled
    engine.step()
    assert engine.pool.used == 0


def test_many_threads_ask_one_engine(engine: Engine) -> None:
    engine.start()
    rng = random.Random(6)
    prompts = [[rng.randrange(300) for _ in range(rng.randrange(1, 60))] for _ in range(24)]
    params = SamplingParams(max_tokens=10)
    outputs: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        request = engine.submit(prompts[index], params)
        if index % 6 == 5:
            next(iter(request))  # and away
            outputs[index] = []
            return
        outputs[index] = ids_of(list(request))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for index, prompt in enumerate(prompts):
        if index % 6 != 5:
            assert outputs[index] == recompute(engine.model, prompt, params)
    engine.close(5)
    assert engine.pool.used == 0
    assert sum(engine.stats().finished.values()) == 24


@pytest.mark.parametrize("threaded", [True, False])
def test_event_loops_ask_the_same_engine(engine: Engine, threaded: bool) -> None:
    """Two loops in two threads, several readers each. A task that is cancelled cancels its request, and so does one that leaves."""
    if threaded:
        engine.start()
    params = SamplingParams(max_tokens=10)
    expected = {token: recompute(engine.model, [token] * 9, params) for token in range(1, 9)}

    async def read(token: int) -> None:
        request = engine.submit([token] * 9, params)
        assert ids_of([piece async for piece in request.pieces()]) == expected[token]

    async def leave() -> Request:
        request = engine.submit([9] * 9, SamplingParams(max_tokens=200))
        async for _ in request.pieces():
            break
        return request

    async def everybody(tokens: range) -> None:
        hung_up = engine.submit([10] * 9, SamplingParams(max_tokens=200))
        task = asyncio.create_task(collect(hung_up))
        request, *_ = await asyncio.gather(leave(), *(read(token) for token in tokens))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert request.cancelled
        assert hung_up.cancelled

    async def collect(request: Request) -> list[Piece]:
        return [piece async for piece in request.pieces()]

    failures: list[BaseException] = []

    def run(tokens: range) -> None:
        try:
            asyncio.run(everybody(tokens))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(tokens,)) for tokens in (range(1, 5), range(5, 9))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    engine.close()
    assert engine.pool.used == 0


def test_a_failing_text_leaves_the_others_alone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A step that fails is run again text by text: only the one to blame ends."""
    run = engine.runner.run

    def sometimes(chunks: list[Chunk]) -> list[Tensor]:
        if any(13 in chunk.tokens for chunk in chunks):
            raise RuntimeError("unlucky")
        return run(chunks)

    engine.runner.run = sometimes  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=6)
    good, bad, more = (engine.submit(prompt, params) for prompt in ([1, 2], [1, 13], [3, 4]))
    with caplog.at_level(logging.ERROR):
        assert ids_of(list(good)) == recompute(engine.model, [1, 2], params)
        (piece,) = bad
    assert piece.finish == "error"
    assert str(piece.error) == f"the model failed at this text; the log says why under request {bad.id[:12]}"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert bad.id[:12] in record.getMessage()
    assert "unlucky" in str(record.exc_info)
    with caplog.at_level(logging.CRITICAL):
        assert ids_of(list(more)) == recompute(engine.model, [3, 4], params)
    assert engine.stats().finished == {"length": 2, "error": 1}


def test_after_a_failure_of_the_engine_itself_it_goes_on(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.start()
    params = SamplingParams(max_tokens=6)
    expected = recompute(engine.model, [1, 2], params)
    assert ids_of(list(engine.submit([1, 2], params))) == expected
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with caplog.at_level(logging.CRITICAL):
        (piece,) = engine.submit([1, 2], params)
    assert piece.finish == "error"
    assert "division" not in str(piece.error)
    assert engine.scheduler.schedule is not schedule
    assert ids_of(list(engine.submit([1, 2], params))) == expected


@pytest.mark.parametrize("threaded", [True, False])
def test_closing_finishes_what_runs_or_cancels_it(model: CausalLM, threaded: bool) -> None:
    for drain, finish in ((20.0, "length"), (0.0, "cancelled")):
        engine = Engine(model, None, settings(max_sequences=2))
        if threaded:
            engine.start()
        requests = [engine.submit([1], SamplingParams(max_tokens=60)) for _ in range(4)]
        engine.close(drain)
        assert [list(request)[-1].finish for request in requests] == [finish] * 4
        assert engine.pool.used == 0
        assert not engine.threaded
        with pytest.raises(UserError, match="closed"):
            engine.submit([1], SamplingParams())
        with pytest.raises(UserError, match="closed"):
            engine.start()
        engine.close()


def test_a_drain_ends_when_its_time_is_over(model: CausalLM) -> None:
    engine = Engine(model, None, settings())
    run = engine.runner.run
    engine.runner.run = lambda chunks: (time.sleep(0.02), run(chunks))[1]  # type: ignore[method-assign, func-returns-value]
    engine.start()
    request = engine.submit([1], SamplingParams(max_tokens=200))
    started = time.monotonic()
    engine.close(0.2)
    assert time.monotonic() - started < 5
    pieces = list(request)
    assert pieces[-1].finish == "cancelled"
    assert len(ids_of(pieces)) > 1


# ---- besides writing ----


@pytest.mark.parametrize("threaded", [True, False])
def test_embeddings_are_the_mean_of_the_last_hidden_states(engine: Engine, threaded: bool) -> None:
    if threaded:
        engine.start()
        busy = engine.submit([1], SamplingParams(max_tokens=100))
    prompts = [[1, 2, 3], [4], [5] * 200]
    vectors = engine.embed(prompts)
    for prompt, vector in zip(prompts, vectors, strict=True):
        with torch.inference_mode():
            mean = engine.model.hidden(torch.tensor([prompt]))[0][0].double().mean(0)
        assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="empty"):
        engine.embed([[1], []])
    if threaded:
        assert len(ids_of(list(busy))) == 100


def test_a_look_inside_between_steps(engine: Engine) -> None:
    engine.start()
    busy = engine.submit([1], SamplingParams(max_tokens=50))
    seen = engine.inspect([1, 2, 3])
    assert seen.ids == (1, 2, 3)
    assert len(ids_of(list(busy))) == 50


def test_stats_count_what_happened(engine: Engine) -> None:
    before = engine.stats()
    assert (before.running, before.waiting, before.blocks, before.block_size) == (0, 0, 128, 8)
    assert before.bytes_per_token == 2 * (12 + 4) * 4
    requests = [engine.submit([1] * 17, SamplingParams(max_tokens=5, n=2)) for _ in range(2)]
    assert engine.stats().waiting == 4
    for request in requests:
        list(request)
    after = engine.stats()
    assert (after.requests, after.finished, after.generated_tokens) == (2, {"length": 4}, 20)
    assert (after.prompt_tokens, after.cached_tokens) == (34, 16)
    assert after.blocks_used == 0
    assert after.blocks_cached > 0
    assert after.first_token_count == 2
    assert after.first_token_seconds == pytest.approx(sum(after.first_token_recent))
    assert after.tokens_per_second == 2.0


def test_a_folder_is_loaded_in_every_format(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = CausalLM(ModelConfig(model_type="llama", **{**SMALL, "vocab_size": tokenizer.vocab_size})).eval()
    model.save(tmp_path)
    tokenizer.save(tmp_path)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    plain = Engine.load(tmp_path, EngineSettings(cache_tokens=256))
    assert ids_of(list(plain.submit([1, 2], params))) == recompute(model, [1, 2], params)
    short = Engine.load(tmp_path, EngineSettings(cache_tokens=256, dtype="bfloat16"))
    assert len(ids_of(list(short.submit([1, 2], params)))) == 8
    with pytest.raises(UserError, match="no such"):
        Engine.load(tmp_path / "nothing")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda"):
            Engine.load(tmp_path, EngineSettings(device="cuda"))


@torch.inference_mode()
def test_bfloat16_through_the_model_itself() -> None:
    """Weights and cache in bfloat16: each token is among the likeliest of a plain pass, but for the rounding."""
    model = fresh("gpt2").bfloat16()
    engine = Engine(model, None, settings())
    assert engine.cache.layers[0][0].dtype == torch.bfloat16
    requests = [engine.submit([token] * token, SamplingParams(max_tokens=20)) for token in (3, 9, 30)]
    for request in requests:
        ids = [*request.prompt, *ids_of(list(request))]
        logits = model(torch.tensor([ids]))[0, request.prompt_tokens - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ids[request.prompt_tokens :])[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 0.1 * logits.std()


@pytest.mark.parametrize("name", ["gpt2", "mla", "qwen2-window"])
def test_every_tensor_is_made_on_the_models_device(name: str) -> None:
    """What would fail on a GPU: here a tensor made without saying where lands on `meta`, and meets none from the CPU."""
    model = fresh(name)
    engine = Engine(model, None, settings(block_size=4))
    engine.runner.forward = TorchForward(model, engine.cache)
    model(torch.zeros(1, 128, dtype=torch.long))  # the model's table of angles is moved there when it is made
    params = SamplingParams(max_tokens=6, n=2, logprobs=2, prompt_logprobs=2)
    drawn = SamplingParams(
        max_tokens=6,
        temperature=1.0,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        frequency_penalty=0.1,
        logit_bias={3: 1.0},
        min_tokens=3,
    )
    with torch.device("meta"):
        requests = [engine.submit([token] * 11, params if token % 2 else drawn) for token in range(4)]
        assert all(len(ids_of(list(request))) == 6 * request.params.n for request in requests)


def test_a_program_may_end_while_the_thread_is_writing() -> None:
    program = """
import torch
from small_models import CONFIGS
from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.model.transformer import CausalLM

torch.manual_seed(3)
engine = Engine(CausalLM(CONFIGS["gpt2"]).eval(), None, EngineSettings(cache_tokens=1024, block_size=8))
engine.start()
pieces = iter(engine.submit([1, 2, 3], SamplingParams(max_tokens=100)))
next(pieces)
"""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
