"""Guessing ahead changes nothing that is written, only how many steps it takes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from small_models import CONFIGS, LATENT, SMALL
from torch import Tensor

from tinyseek.engine import speculate
from tinyseek.engine.ahead import Part
from tinyseek.engine.engine import Engine, EngineSettings, Piece, SamplingParams, Stats
from tinyseek.engine.grammar import Constraint
from tinyseek.engine.request import Request
from tinyseek.engine.runner import TorchForward
from tinyseek.engine.speculate import REST, Lookup, Pace
from tinyseek.errors import UserError
from tinyseek.model.attention import Context, causal_mask
from tinyseek.model.config import ModelConfig
from tinyseek.model.mtp import MTPModule
from tinyseek.model.rope import angles
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

GQA = ModelConfig(model_type="tinyseek", **SMALL, num_key_value_heads=2, sliding_window=9, num_nextn_predict_layers=1)
ONE = ModelConfig(model_type="deepseek_v3", **LATENT, num_nextn_predict_layers=1)
MODELS = {"mla-1": ONE, "mla-2": CONFIGS["mla"], "gqa-1": GQA}
KINDS = [("mla-1", "mtp"), ("mla-2", "mtp"), ("gqa-1", "mtp"), ("mla-1", "lookup")]


@torch.no_grad()
def agreeing(config: ModelConfig, share: float, seed: int = 0) -> CausalLM:
    """A model whose next token follows mostly from the last one, and whose modules, which read their token's embedding alone, say
    much the same. At `share` 0 they agree on everything."""
    torch.manual_seed(seed)
    model = CausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            parameter.mul_(share)
        if name.endswith("eh_proj.weight"):
            parameter.copy_(torch.eye(*parameter.shape))
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = ['{"name": "The quick brown fox", "age": 12, "tags": ["a", "b"]}\n' * 20, "你是谁？我是模型。" * 20]
    return Tokenizer.train(text, TokenizerSettings(vocab_size=360))


@pytest.fixture(scope="module")
def talking(tokenizer: Tokenizer) -> CausalLM:
    """A model of the tokenizer's vocabulary."""
    config = {**LATENT, "vocab_size": tokenizer.vocab_size + 7, "num_hidden_layers": 2, "max_position_embeddings": 256}
    return agreeing(ModelConfig(model_type="deepseek_v3", **config, num_nextn_predict_layers=1), 0.5)


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"cache_tokens": 1024, "block_size": 4, "max_sequences": 8, "max_batch_tokens": 64} | changes
    )


def all_of(
    engine: Engine, asked: Sequence[tuple[Sequence[int], SamplingParams]]
) -> tuple[list[Request], list[list[Piece]]]:
    """Requests that are served at the same time, and the pieces of each."""
    requests = [engine.submit(prompt, params) for prompt, params in asked]
    pieces = [list(request) for request in requests]
    assert engine.pool.used == 0
    return requests, pieces


def texts_of(pieces: Sequence[Piece]) -> dict[int, tuple[list[int], str, object, object]]:
    """Of each of a request's texts its ids, its letters and how it ended."""
    out: dict[int, tuple[list[int], str, object, object]] = {}
    for piece in pieces:
        ids, text, _, _ = out.get(piece.index, ([], "", None, None))
        out[piece.index] = ([*ids, *piece.ids], text + piece.text, piece.finish, piece.stop)
    return out


def right_and_wrong(stats: Stats) -> bool:
    """Whether some guesses were right and some were not, so that both ways were gone."""
    return 0 < stats.accepted < stats.drafted


# ---- nothing that is written changes ----


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_same_tokens_with_and_without(name: str, kind: str, compiled: bool) -> None:
    """Greedy and seeded, several texts, chunked prompts, shared beginnings, preemption."""
    model, rng = agreeing(MODELS[name], 0.6), random.Random(4)
    total = Counter[str]()
    for round_ in range(3):
        begin = [rng.randrange(97) for _ in range(30)]
        asked = []
        for place in range(4):
            prompt = begin[: rng.randrange(30)] + [rng.randrange(12) for _ in range(rng.randrange(1, 30))]
            drawn = {"temperature": rng.choice([0.3, 0.7]), "seed": place} if place % 2 else {}
            top = {"top_k": 5, "top_p": 0.9} if place == 3 else {}
            asked.append((prompt, SamplingParams(rng.randrange(1, 40), n=1 + place // 2, **drawn, **top)))
        outputs = []
        for speculating in ("none", kind):
            tight = {"cache_tokens": 80, "max_batch_tokens": 13} if round_ else {}
            engine = Engine(model, None, settings(speculate=speculating, draft_tokens=1 + 2 * round_, **tight))
            if not compiled:
                engine.runner.forward = TorchForward(model, engine.cache)
            _, pieces = all_of(engine, asked)
            outputs.append([texts_of(own) for own in pieces])
            stats = engine.stats()
        assert outputs[0] == outputs[1]
        total.update(drafted=stats.drafted, accepted=stats.accepted, preemptions=stats.preemptions)
    assert total["preemptions"] > 0
    assert total["drafted"] > total["accepted"] > total["drafted"] / 20


@pytest.mark.parametrize("kind", ["mtp", "lookup"])
def test_all_that_a_request_may_ask_for(kind: str, talking: CausalLM, tokenizer: Tokenizer) -> None:
    """Penalties, bias, stops, limits, constraints, log-probabilities: the same pieces of information as without guesses."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["age"],
    }
    listed = Constraint("regex", r"(\[(fox, )+brown\] ){3,9}")
    wishes: list[dict[str, Any]] = [
        {"constraint": Constraint("json_schema", schema), "temperature": 0.5},
        {"constraint": listed},
        {"constraint": listed, "temperature": 1.0, "logprobs": 2},
        {"repetition_penalty": 1.3, "logprobs": 3},
        {"frequency_penalty": 0.2, "presence_penalty": 0.1, "temperature": 0.4, "n": 2},
        {"logit_bias": {7: 3.0, 9: 2.0}, "temperature": 0.6, "min_p": 0.05},
        {"stop": ("a", "x", "fo"), "min_tokens": 6},
        {"stop_ids": frozenset(range(20, 200, 3)), "min_tokens": 9},
        {"prompt_logprobs": 1, "logprobs": 0, "n": 2},
        {"max_tokens": 1},
        {"max_tokens": 2, "temperature": 0.5},
    ]
    prompt = tokenizer.encode('{"name": "The quick fox", "age": 12}\n' * 2 + '{"name": "')
    asked = [
        (prompt, SamplingParams(**{"max_tokens": 30, "seed": seed, **wish})) for seed in range(2) for wish in wishes
    ]
    seen = []
    for speculating in ("none", kind):
        engine = Engine(talking, tokenizer, settings(speculate=speculating, max_sequences=5))
        requests, pieces = all_of(engine, asked)
        told = [
            [
                (logprob.id, logprob.logprob, *logprob.top)
                for piece in own
                for logprob in piece.logprobs
                if piece.index == 0
            ]
            for own in pieces
        ]
        counts = [(request.generated_tokens, len(request.prompt_logprobs or [])) for request in requests]
        seen.append(([texts_of(own) for own in pieces], counts, [[row[0] for row in rows] for rows in told], told))
        stats = engine.stats()
        assert stats.generated_tokens == sum(request.generated_tokens for request in requests)
    assert seen[0][:3] == seen[1][:3]
    assert {end for texts in seen[0][0] for _, _, end, _ in texts.values()} == {"stop", "length"}
    for before, after in zip(seen[0][3], seen[1][3], strict=True):
        assert [row[1] for row in before] == pytest.approx([row[1] for row in after], abs=1e-4)
    assert right_and_wrong(stats)


@pytest.mark.parametrize("kind", ["mtp", "lookup"])
def test_the_distribution_is_the_models(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens that follow one prompt, 2,000 times, against their exact joint probabilities: Pearson's chi-square."""
    monkeypatch.setattr(speculate, "MOST_TEXTS", 10_000)
    small = {**LATENT, "vocab_size": 5, "num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    model = agreeing(ModelConfig(model_type="deepseek_v3", **small), 1.0)
    prompt, count, temperature = [1, 2, 3, 1, 2, 4, 1, 2], 2000, 0.8
    ways = torch.cartesian_prod(*[torch.arange(5)] * 3)
    with torch.no_grad():
        logits = model(torch.cat((torch.tensor([prompt]).expand(len(ways), -1), ways), dim=1))[:, -4:-1] / temperature
    expected = logits.log_softmax(-1).gather(-1, ways[:, :, None]).sum((1, 2)).exp().double() * count
    engine = Engine(
        model, None, settings(speculate=kind, max_sequences=1000, max_batch_tokens=4000, cache_tokens=16_000)
    )
    met: Counter[tuple[int, ...]] = Counter()
    for seed in range(count // 100):
        params = SamplingParams(3, temperature=temperature, n=100, seed=seed)
        _, (pieces,) = all_of(engine, [(prompt, params)])
        met.update(tuple(ids) for ids, *_ in texts_of(pieces).values())
    assert right_and_wrong(engine.stats())
    observed = torch.tensor([met[tuple(way.tolist())] for way in ways]).double()
    often = expected >= 5
    parts = [(observed[often], expected[often]), (observed[~often].sum()[None], expected[~often].sum()[None])]
    chi = sum(float(((o - e).square() / e.clamp(min=1)).sum()) for o, e in parts)
    freedom = int(often.sum())
    assert chi < freedom + 4 * (2 * freedom) ** 0.5, (chi, freedom)


# ---- the guesses ----


@pytest.mark.parametrize("name", ["mla-1", "mla-2"])
def test_modules_that_agree_are_always_right(name: str) -> None:
    """A model that goes by its last token alone, in a circle of all of them: whatever a module guesses comes."""
    model = agreeing(MODELS[name], 0.0)
    with torch.no_grad():
        table = torch.nn.functional.normalize(torch.randn(97, 32), dim=-1)
        model.model.embed_tokens.weight.copy_(table)
        model.lm_head.weight.copy_(table.roll(1, 0))  # after a token comes the one whose row is next
    engine = Engine(model, None, settings(speculate="mtp", draft_tokens=4))
    pieces = list(engine.submit([5], SamplingParams(60)))
    assert [token for piece in pieces for token in piece.ids] == [(5 + step) % 97 for step in range(1, 61)]
    stats = engine.stats()
    assert (stats.drafted, stats.accepted) == (47, 47)  # a token, eleven steps of five, and one of four


def test_a_repetition_is_taken_to_go_on() -> None:
    """What repeats is guessed whole; a text that never repeats is not guessed at."""
    lookup = Lookup()
    assert lookup.guess([1, 2, 3, 4], 3) == []
    assert lookup.guess([1, 2, 3, 4, 2, 3], 3) == [4, 2, 3]
    assert lookup.guess([1, 2, 3, 4, 2, 3, 9, 3], 2) == [9, 3]  # the last time that 3 came
    assert lookup.guess([1, 2, 3, 4, 2, 3, 9, 3, 4, 2, 3], 3) == [9, 3, 4]  # 4 2 3 came before
    assert Lookup().guess([7, 7], 5) == [7] * 5
    assert Lookup().guess([1, 2, 1, 2, 1], 4) == [2, 1, 2, 1]


def test_a_longer_match_goes_first() -> None:
    """Against looking at every place, over random texts."""
    rng = random.Random(0)
    for _ in range(50):
        tokens, lookup = [rng.randrange(4)], Lookup()
        for _ in range(40):
            guess = lookup.guess(tokens, 1)
            expected = []
            for length in (3, 2, 1):
                places = [p for p in range(length, len(tokens)) if tokens[p - length : p] == tokens[-length:]]
                if places:
                    expected = [tokens[places[-1]]]
                    break
            assert guess == expected
            tokens.append(rng.randrange(4))


def test_the_pace_follows_what_was_right() -> None:
    pace = Pace(4)
    assert pace.next() == 4
    pace.learn(4, 2)
    assert pace.next() == 2
    pace.learn(2, 2)
    assert pace.next() == 3
    for _ in range(4):
        assert pace.next() > 0
        pace.learn(3, 0)
    assert [pace.next() for _ in range(REST + 1)] == [0] * REST + [1]
    pace.learn(1, 0)  # still nothing: it rests at once
    assert pace.next() == 0


def test_guessing_stops_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch, and a text of which nothing is guessed right."""
    model = agreeing(MODELS["mla-1"], 0.6)
    asked = [([token] * 5, SamplingParams(20)) for token in range(8)]
    monkeypatch.setattr(speculate, "MOST_TEXTS", 7)
    engine = Engine(model, None, settings(speculate="lookup"))
    all_of(engine, asked)
    assert engine.stats().drafted == 0
    all_of(engine, asked[:7])
    assert engine.stats().drafted > 0
    engine, engine_of_none = Engine(model, None, settings(speculate="lookup")), Engine(model, None, settings())
    engine._speculator._looked_up = lambda _, count: [96] * count  # type: ignore[method-assign, union-attr]
    one = [([3] * 5, SamplingParams(100))]
    assert [texts_of(p) for p in all_of(engine, one)[1]] == [texts_of(p) for p in all_of(engine_of_none, one)[1]]
    assert engine.stats().drafted <= 3 + 3 + 100 // REST


def test_no_text_stops_for_a_guess() -> None:
    """Where blocks are scarce there are no more preemptions than without guesses."""
    model, counts = agreeing(MODELS["mla-1"], 0.6), []
    asked = [([token] * 20, SamplingParams(40)) for token in range(5)]
    for kind in ("none", "lookup"):
        engine = Engine(model, None, settings(speculate=kind, block_size=1, cache_tokens=150, draft_tokens=8))
        all_of(engine, asked)
        counts.append(engine.stats().preemptions)
    assert engine.stats().drafted > 0
    assert 0 < counts[1] <= counts[0]


# ---- the modules over the cache ----


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_modules_see_what_they_see_in_training(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hidden state that follows from written tokens alone, over chunks, drafts taken back, rests and a found prefix."""
    wanted = itertools.cycle([4, 4, 0, 0, 3, 0, 0, 0, 0, 0, 1])
    monkeypatch.setattr(Pace, "next", lambda _: next(wanted))
    monkeypatch.setattr(speculate, "TOGETHER", 3)
    model = agreeing(MODELS[name], 1.0)
    engine = Engine(model, None, settings(speculate="mtp", draft_tokens=4, max_batch_tokens=9))
    if not compiled:
        engine.runner.forward = TorchForward(model, engine.cache)
    speculator = engine._speculator
    assert speculator is not None
    modules = speculator._modules
    assert modules is not None
    ran: list[tuple[int, Part, Tensor]] = []

    def listening(depth: int, parts: Sequence[Part]) -> list[Tensor]:
        out = type(modules).__call__(modules, depth, parts)
        ran.extend((depth, part, rows) for part, rows in zip(parts, out, strict=True))
        return out

    listening.count = modules.count  # type: ignore[attr-defined]
    speculator._modules = listening  # type: ignore[assignment]
    generator = random.Random(2)
    prompt = [generator.randrange(97) for _ in range(23)]
    for _ in range(2):
        ran.clear()
        pieces = list(engine.submit(prompt, SamplingParams(30, temperature=0.5, seed=1)))
        ids = prompt + [token for piece in pieces for token in piece.ids]
        hidden, _, _ = model.hidden(torch.tensor([ids]))
        for depth, module in enumerate(model.mtp):
            assert isinstance(module, MTPModule)
            count = len(ids) - depth - 1
            window = causal_mask(count, count, model.device, model.config.sliding_window)
            context = Context(*angles(model.config, count), None, window, None)
            following = model.model.embed_tokens(torch.tensor([ids[depth + 1 :]]))
            hidden, _ = module.predict(hidden[:, :-1], following, context)
            last: dict[int, Tensor] = {}  # what was run last at a position is what its keys are of
            for _, part, rows in [one for one in ran if one[0] == depth]:
                last |= {part.start + place: row for place, row in enumerate(rows)}
            assert min(last) == engine.stats().cached_tokens
            for position in range(min(last), count - 1):
                assert (last[position] - hidden[0, position]).abs().max() < 1e-4
    assert engine.stats().cached_tokens == 20


@pytest.mark.parametrize("kind", ["mtp", "lookup"])
def test_every_tensor_is_made_on_the_models_device(kind: str) -> None:
    """What would fail on a GPU: here a tensor made without saying where lands on `meta`, and meets none from the CPU."""
    model = agreeing(MODELS["gqa-1"], 0.3)
    engine = Engine(model, None, settings(speculate=kind))
    engine.runner.forward = TorchForward(model, engine.cache)
    model(torch.zeros(1, 128, dtype=torch.long))  # the model's table of angles is moved there when it is made
    with torch.device("meta"):
        all_of(engine, [([token] * 7, SamplingParams(30, temperature=token / 4, seed=1)) for token in range(3)])
    assert right_and_wrong(engine.stats())


def test_a_model_without_modules_is_refused() -> None:
    with pytest.raises(UserError, match="no MTP module"):
        Engine(agreeing(CONFIGS["llama-gqa"], 1.0), None, settings(speculate="mtp"))


def test_a_failing_guess_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    model = agreeing(MODELS["mla-1"], 0.6)
    asked = [([token] * 5, SamplingParams(20)) for token in range(3)]
    _, expected = all_of(Engine(model, None, settings()), asked)
    engine = Engine(model, None, settings(speculate="mtp"))
    assert engine._speculator is not None
    calls: Iterator[int] = iter(range(1000))
    draw = engine._speculator._draw

    def sometimes(*arguments: Any) -> None:
        if next(calls) % 3 == 1:
            raise RuntimeError("broken")
        draw(*arguments)

    engine._speculator._draw = sometimes  # type: ignore[method-assign]
    _, pieces = all_of(engine, asked)
    assert [texts_of(own) for own in pieces] == [texts_of(own) for own in expected]
    assert "guessing ahead failed" in caplog.text
