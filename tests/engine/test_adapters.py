"""Several adapters over one base in one engine, against each one merged with the base, alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapted_models import make_adapter, merged
from small_models import LATENT, SMALL

from tinyseek.engine.adapters import Adapters, load_adapters, why_merged
from tinyseek.engine.engine import Engine, EngineSettings
from tinyseek.engine.generate import recompute
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.quantize import COMPILED, pack
from tinyseek.engine.request import Request
from tinyseek.engine.runner import CompiledForward
from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM

LAYERS = {"num_hidden_layers": 2}
MODELS = {
    "gqa": ModelConfig(model_type="llama", **{**SMALL, **LAYERS}, num_key_value_heads=2),
    "mla-moe": ModelConfig(
        model_type="deepseek_v3",
        **{**LATENT, **LAYERS},
        q_lora_rank=10,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    ),
}
TARGETS = {  # every matrix; some, of another rank; the head and one layer
    "gqa": {"all": {}, "some": {"rank": 5, "targets": ["q_proj", "down_proj"]}, "head": {"targets": ["lm_head", "layers.1.*"]}},
    "mla-moe": {
        "all": {"targets": ["*proj*", "mlp.gate"]},
        "some": {"rank": 4, "targets": ["kv_b_proj", "experts.down_proj", "shared_experts.up_proj"]},
        "head": {"targets": ["lm_head", "layers.1.*"]},
    },
}  # fmt: skip
MIXES = 12  # of each model
TIE = 1e-4  # logits nearer than this may change places by rounding


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class World:
    """A base, its adapters as folders, and what they are merged."""

    def __init__(self, name: str, where: Path) -> None:
        self.base = where / name
        torch.manual_seed(1)
        CausalLM(MODELS[name]).save(self.base)
        self.folders = {
            adapter: make_adapter(self.base, where / f"{name}-{adapter}", seed, **settings)
            for seed, (adapter, settings) in enumerate(TARGETS[name].items())
        }
        self.model = CausalLM.load(self.base)
        self.merged: dict[str | None, CausalLM] = {name: merged(folder) for name, folder in self.folders.items()}
        self.merged[None] = CausalLM.load(self.base)
        self.names: list[str | None] = [None, *self.folders]

    def adapters(self) -> Adapters:
        return load_adapters(self.folders, self.model, None, "the base")

    def engine(self, **settings: object) -> Engine:
        chosen = EngineSettings.read({"block_size": 4, "cache_tokens": 2000, **settings})
        return Engine(self.model, None, chosen, self.adapters())


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    where = tmp_path_factory.mktemp("adapters")
    return {name: World(name, where) for name in MODELS}


@pytest.fixture(params=MODELS)
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


def written(request: Request) -> list[int]:
    return [token for piece in request for token in piece.ids]


@torch.inference_mode()
def assert_likeliest(model: CausalLM, prompt: list[int], output: list[int]) -> int:
    """Every token is the likeliest after all those before it, by one plain pass; returns how many were ties."""
    logits = model(torch.tensor([prompt + output]))[0, len(prompt) - 1 : -1]
    behind = logits.amax(-1) - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    assert behind.max() < TIE, (prompt, output, behind)
    return int((behind > 0).sum())


def test_mixed_batches_equal_each_merged_model(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Random mixes: prompts that begin alike with every adapter, little room, small budgets, guesses, both ways to run."""
    start = random.randrange(1 << 30)
    ties = count = preempted = reused = accepted = 0
    for seed in range(start, start + MIXES):
        print(f"seed {seed}")
        rng = random.Random(seed)
        tight = seed % 2 == 0
        sequences = rng.choice([4, 8, 32])
        engine = world.engine(
            block_size=rng.choice([2, 3] if tight else [3, 4, 8]),
            cache_tokens=48 if tight else rng.choice([200, 1000]),
            max_sequences=sequences,
            max_batch_tokens=sequences + rng.choice([1, 10, 40, 500]),
            speculate=rng.choice(["none", "lookup", "mtp" if world.model.mtp else "lookup"]),
        )
        forward = engine.runner.forward
        if isinstance(forward, CompiledForward):
            forward.few = rng.choice([0, 4, 32, 32])
        begin = [rng.randrange(97) for _ in range(24)]
        asked = []
        while len(asked) < 10 or engine.step():
            if len(asked) < 10 and rng.random() < 0.6:
                length = rng.randrange(0, 8 if tight else 60)
                prompt = begin[: rng.randrange(1, 25)] + [rng.randrange(97) for _ in range(length)]
                prompt = prompt[: engine.context - 1]
                params = SamplingParams(rng.randrange(1, 20 if tight else 10), n=rng.choice([1, 1, 2]))
                name = rng.choice(world.names)
                asked.append((name, prompt, engine.submit(prompt, params, name)))
        for name, prompt, request in asked:
            pieces = list(request)
            for index in range(request.params.n):
                output = [token for piece in pieces if piece.index == index for token in piece.ids]
                limit = min(request.params.max_tokens, engine.context - len(prompt))
                assert len(output) == limit, pieces[-1].error
                ties += assert_likeliest(world.merged[name], prompt, output)
                count += limit
        stats = engine.stats()
        assert engine.pool.used == 0
        preempted, reused = preempted + stats.preemptions, reused + stats.cached_tokens
        accepted += stats.accepted
    print(f"{count} tokens, {ties} ties, {preempted} preemptions, {reused} tokens reused, {accepted} guesses right")
    assert not caplog.records  # a step that failed would have been done again, text by text
    assert ties * 1000 <= count + 5000  # one in a thousand, and a few by chance
    assert preempted > 0
    assert reused > 0


def test_all_say_something_else_and_what_they_say_merged(world: World) -> None:
    """The same prompt by all at once, in one step after the first: each its own answer, token for token."""
    engine, prompt, params = world.engine(), [5, 3, 8, 1], SamplingParams(20)
    asked = {name: engine.submit(prompt, params, name) for name in world.names}
    said = {name: written(request) for name, request in asked.items()}
    assert len({tuple(tokens) for tokens in said.values()}) == len(said)
    assert said == {name: recompute(world.merged[name], prompt, params) for name in world.names}


def test_one_copy_of_the_base(world: World) -> None:
    """In bytes: an engine with adapters holds the base's weights once, and of each adapter its own matrices."""
    before = {parameter.data_ptr() for parameter in world.model.parameters()}
    size = sum(parameter.nbytes for parameter in world.model.parameters())
    engine = world.engine()
    written(engine.submit([1, 2, 3] * 20, SamplingParams(3), "all"))
    assert engine.model is world.model
    assert sum(parameter.nbytes for parameter in engine.model.parameters()) == size
    if not isinstance(
        engine.runner.forward, CompiledForward
    ):  # whose loops stack layers, once, for whoever comes first
        assert {parameter.data_ptr() for parameter in engine.model.parameters()} == before
    again = world.engine()
    assert {p.data_ptr() for p in again.model.parameters()} == {p.data_ptr() for p in engine.model.parameters()}
    adapters = engine._adapters
    assert adapters is not None
    assert adapters.nbytes == sum(adapter.nbytes for adapter in adapters.all.values())
    sizes = {
        name: sum(t.nbytes for key, t in _tensors(folder).items() if "lora_" in key)
        for name, folder in world.folders.items()
    }
    assert {name: adapter.nbytes for name, adapter in adapters.all.items()} == sizes


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_the_prefix_cache_never_mixes_adapters(world: World) -> None:
    engine, prompt, params = world.engine(), list(range(40)), SamplingParams(4)
    for _ in range(2):
        for name in world.names:
            request = engine.submit(prompt, params, name)
            assert written(request) == recompute(world.merged[name], prompt, params)
    for name in world.names:
        request = engine.submit(prompt, params, name)
        assert written(request)
        assert request.cached_tokens == 36
    assert engine.stats().cached_tokens == 2 * len(world.names) * 36  # the first of each found nothing
    places = [engine.pool.beginning(name) if name else engine.pool.root for name in world.names]
    assert len({place.hash for place in places}) == len(places)


def test_without_an_adapter_nothing_is_added(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in which nobody has an adapter take the way that they take in an engine without any."""
    engine = world.engine()
    monkeypatch.setattr(engine.runner, "_adapted", None)
    prompt, params = [4, 4, 7], SamplingParams(8)
    assert written(engine.submit(prompt, params)) == recompute(world.merged[None], prompt, params)
    assert not any(module.__class__.__name__.startswith("Worn") for module in engine.model.modules())


def test_embeddings_and_a_look_inside_are_the_merged_models(world: World) -> None:
    engine, ids = world.engine(), [7, 1, 9, 2, 30, 11]
    for name in world.names:
        alone = Engine(world.merged[name], None, EngineSettings(cache_tokens=128))
        assert engine.embed([ids], name)[0] == pytest.approx(alone.embed([ids])[0], abs=1e-4)
        seen, expected = engine.inspect(ids, name), alone.inspect(ids)
        written(engine.submit([1, 2], SamplingParams(2), "all"))  # what is worn later changes nothing of a look
        assert seen.probs_T == pytest.approx(expected.probs_T, abs=1e-4, nan_ok=True)
        assert seen.attention(5) == pytest.approx(expected.attention(5), abs=1e-4)
        assert seen.guesses(5).own_L == pytest.approx(expected.guesses(5).own_L, abs=1e-2)
        for layer, routing in seen.routing.items():
            assert routing.weights_TA == pytest.approx(expected.routing[layer].weights_TA, abs=1e-4)


def test_log_probabilities_of_the_prompt_are_the_adapters(world: World) -> None:
    engine, prompt = world.engine(), [7, 1, 9, 2, 30, 11]
    params = SamplingParams(2, prompt_logprobs=0, logprobs=0)
    for name in world.names:
        request = engine.submit(prompt, params, name)
        told = [entry.logprob for piece in request for entry in piece.logprobs]
        with torch.inference_mode():
            text = prompt + recompute(world.merged[name], prompt, params)
            logprobs = world.merged[name](torch.tensor([text]))[0].log_softmax(-1)
        expected = [float(logprobs[at, token]) for at, token in enumerate(text[1:])]
        known = [entry.logprob for entry in request.prompt_logprobs or [] if entry]
        assert known + told == pytest.approx(expected, abs=1e-3)


@pytest.mark.skipif(not COMPILED, reason="the compiled loops need the extra `fast`")
@pytest.mark.slow  # it compiles the loops for one more format
def test_beside_equals_worn_over_a_packed_base(worlds: dict[str, World]) -> None:
    """Few tokens by the loops, or the model itself wearing each adapter in turn: the same, also where the base is packed."""
    world = worlds["gqa"]
    model = CausalLM.load(world.base)
    adapters = load_adapters(world.folders, model, None, "the base")
    pack(model, "int8")
    engine = Engine(model, None, EngineSettings(block_size=4, cache_tokens=1000), adapters)
    asked = [(name, engine.submit([5, 3, 8], SamplingParams(12, logprobs=0), name)) for name in world.names]
    for name, request in asked:
        pieces = list(request)
        text = [5, 3, 8] + [token for piece in pieces for token in piece.ids]
        adapter = adapters.all[name] if name else None
        with torch.inference_mode(), adapters.worn(adapter):
            logprobs = model(torch.tensor([text]))[0].log_softmax(-1)
        told = [entry.logprob for piece in pieces for entry in piece.logprobs]
        assert told == pytest.approx([float(logprobs[2 + at, token]) for at, token in enumerate(text[3:])], abs=1e-3)


# ---- what is refused -------------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused_by_name(worlds: dict[str, World], tmp_path: Path) -> None:
    world = worlds["gqa"]
    other = tmp_path / "other"
    torch.manual_seed(9)
    CausalLM(MODELS["gqa"]).save(other)
    stranger = make_adapter(other, tmp_path / "stranger", 5)
    with pytest.raises(
        UserError, match=r'adapter "guest": .*was trained on other .*and the weights in the base are others'
    ):
        load_adapters({**world.folders, "guest": stranger}, world.model, None, "the base")
    with pytest.raises(UserError, match=r'adapter "guest": .*was trained on'):
        load_adapters({"guest": worlds["mla-moe"].folders["all"]}, world.model, None, "the base")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dora": True}, "DoRA"),
        ({"save": ["model.norm"]}, "trained whole"),
        ({"save": ["embed_tokens"]}, "trained whole"),
    ],
)
def test_what_cannot_share_a_base_is_refused_with_a_way_out(
    worlds: dict[str, World], tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    world = worlds["gqa"]
    folder = make_adapter(world.base, tmp_path / "odd", 5, targets=["o_proj"], **settings)
    assert why in why_merged(folder)
    assert not why_merged(world.folders["all"])
    with pytest.raises(UserError, match=rf'adapter "odd": .*{why}.*tinyseek merge'):
        load_adapters({"odd": folder}, world.model, None, "the base")


def test_an_unknown_adapter_is_an_error(worlds: dict[str, World]) -> None:
    engine = worlds["gqa"].engine()
    with pytest.raises(UserError, match='no adapter "al" over this model; did you mean "all"'):
        engine.submit([1], SamplingParams(1), "al")
    with pytest.raises(UserError, match="which has none"):
        Engine(worlds["gqa"].model).embed([[1]], "all")


def test_a_foreign_adapter_that_does_not_fit_is_refused(worlds: dict[str, World], tmp_path: Path) -> None:
    """PEFT's say nothing of their base's weights; names and shapes tell."""
    import json
    import shutil

    world = worlds["gqa"]
    narrow = ModelConfig(**{**MODELS["gqa"].plain(), "hidden_size": 16})
    torch.manual_seed(2)
    CausalLM(narrow).save(tmp_path / "narrow")
    folder = make_adapter(tmp_path / "narrow", tmp_path / "narrow-a", 1)
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    from safetensors.torch import save_file

    save_file(_tensors(folder), bare / "adapter_model.safetensors")  # without our header
    assert json.loads((bare / "adapter_config.json").read_text())["peft_type"] == "LORA"
    with pytest.raises(UserError, match=r'adapter "bare": .*its change of .* is .* and the matrix here'):
        load_adapters({"bare": bare}, world.model, None, "the base")
