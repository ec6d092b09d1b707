"""Texts written together are those that an engine writes: the same tokens, log-probabilities and endings."""

import numpy as np
import pytest
import torch
from small_models import fresh

from tinyseek.engine.engine import Engine, EngineSettings
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.sampler import uniform
from tinyseek.engine.together import Together, Written, is_compiled, uniforms
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM

COMPILED = ("llama-gqa", "qwen2-window", "mla", "mla-q-lora-yarn-groups", "mla-softmax")
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(0, 97, 3 + 13 * n)] for n in range(5)]
SEEDS = [11, 2, 2**62, 7, 5]


def by_engine(model: CausalLM, params: SamplingParams, each: int) -> list[list[Written]]:
    engine = Engine(model, None, EngineSettings(max_sequences=64, cache_tokens=4096, device="cpu"))
    out = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        values = {
            field: getattr(params, field) for field in ("max_tokens", "temperature", "top_p", "top_k", "stop_ids")
        }
        texts = [Written() for _ in range(each)]
        for piece in engine.submit(prompt, SamplingParams(**values, seed=seed, n=each, logprobs=0)):
            text = texts[piece.index]
            text.ids += piece.ids
            text.logps += [told.logprob for told in piece.logprobs]
            if piece.finish == "stop":
                text.ids.append(int(piece.stop))
                text.finished = True
        out.append(texts)
    return out


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6, "top_k": 9, "top_p": 0.8}, {"temperature": 0.0}])
def test_tokens_are_the_engines(name: str, changes: dict[str, float]) -> None:
    torch.set_num_threads(1)
    model = fresh(name)
    assert is_compiled(model)
    params = SamplingParams(**{"max_tokens": 40, "temperature": 1.0, "stop_ids": frozenset(range(0, 97, 17))} | changes)
    expected = by_engine(model, params, each=3)
    # The second has room for so few texts that they are written in several waves.
    for together in (Together(model, 4096), Together(model, 416)):
        found = together.write(PROMPTS, 3, params, SEEDS)
        for one, other in zip(found, expected, strict=True):
            for text, reference in zip(one, other, strict=True):
                assert text.ids == reference.ids
                assert text.finished == reference.finished
                told = len(reference.logps)
                assert text.logps[:told] == pytest.approx(reference.logps, abs=1e-4)
                assert len(text.logps) == len(text.ids)


def test_ends_at_the_context() -> None:
    model = fresh("llama-gqa")
    prompts = [[5] * 120, [6] * 3]
    params = SamplingParams(max_tokens=20, temperature=1.0)
    (long,), (short,) = Together(model, 1024).write(prompts, 1, params, [1, 2])
    assert (len(long.ids), long.finished) == (8, False)  # a context of 128
    assert (len(short.ids), short.finished) == (20, False)
    with pytest.raises(UserError, match="context is 128"):
        Together(model, 1024).write([[5] * 128], 1, params, [1])
    with pytest.raises(UserError, match="does not fit"):
        Together(model, 64).write([[5] * 100], 1, params, [1])
    with pytest.raises(UserError, match="alone"):
        Together(model, 1024).write(prompts, 1, SamplingParams(repetition_penalty=1.2), [1, 2])


def test_weights_that_overflowed_are_told() -> None:
    model = fresh("mla")
    together = Together(model, 1024)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        together.write([[1, 2, 3]], 2, SamplingParams(temperature=1.0), [0])


def test_uniforms_equal_the_samplers() -> None:
    rng = np.random.default_rng(0)
    seeds, index = rng.integers(0, 2**63 - 1, 50), rng.integers(0, 128, 50)
    for position in (0, 1, 77, 5000):
        found = uniforms(seeds.astype(np.uint64), index, position)
        assert found.tolist() == [uniform(int(s), int(i), position) for s, i in zip(seeds, index, strict=True)]
