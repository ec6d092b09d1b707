"""Generation against plain recomputation: every family, one prompt and many, greedy and drawn."""

import pytest
import torch
from small_models import CONFIGS, fresh

from tinyseek.engine.generate import generate, recompute, stream
from tinyseek.engine.params import SamplingParams
from tinyseek.errors import UserError


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_recomputation(name: str) -> None:
    model = fresh(name)
    prompts = [torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 9, 9, 30)]
    expected = [recompute(model, prompt, SamplingParams(max_tokens=20)) for prompt in prompts]
    params = SamplingParams(max_tokens=20)
    assert [list(stream(model, prompt, params)) for prompt in prompts] == expected
    assert generate(model, prompts, params) == expected
    assert generate(model, prompts, params, batch_size=2) == expected


def test_stop_ids_end_each_sequence_on_its_own() -> None:
    model = fresh("mla")
    prompts = [[5, 6, 7], [8], [9, 10]]
    plain = generate(model, prompts, SamplingParams(max_tokens=15))
    stop = frozenset({plain[0][4], plain[2][9]})
    stopped = generate(model, prompts, SamplingParams(max_tokens=15, stop_ids=stop))
    for tokens, full in zip(stopped, plain, strict=True):
        cut = next((i for i, token in enumerate(full) if token in stop), len(full))
        assert tokens == full[:cut]


def test_the_context_is_never_exceeded() -> None:
    model = fresh("gpt2")
    prompt = [1] * 125
    assert len(list(stream(model, prompt, SamplingParams(max_tokens=50)))) == 3
    assert [len(t) for t in generate(model, [prompt, [2, 3]], SamplingParams(max_tokens=50))] == [3, 50]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1] * 128, "128 tokens"), ([5, 97], "another model's tokenizer"), ([-1], "vocabulary")],
)
def test_bad_prompts(prompt: list[int], message: str) -> None:
    model = fresh("gpt2")
    with pytest.raises(UserError, match=message):
        generate(model, [prompt], SamplingParams())
    with pytest.raises(UserError, match=message):
        list(stream(model, prompt, SamplingParams()))


def test_the_same_seed_draws_the_same_text() -> None:
    model = fresh("mla")
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=7)
    assert list(stream(model, [1, 2], params)) == list(stream(model, [1, 2], params))
    other = SamplingParams(max_tokens=20, temperature=1.0, seed=8)
    assert list(stream(model, [1, 2], params)) != list(stream(model, [1, 2], other))


@pytest.mark.parametrize(
    "values", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}]
)
def test_bad_sampling(values: dict[str, float]) -> None:
    with pytest.raises(UserError):
        SamplingParams(**values)  # type: ignore[arg-type]
