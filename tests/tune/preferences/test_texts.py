"""How likely answers are, many at once: as each alone in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import CONFIGS

from tinyseek.model.transformer import CausalLM
from tinyseek.tune.preferences.texts import Row, Text, likelihood

CPU = torch.device("cpu")


def random_text(rng: np.random.Generator, prompt: int, answer: int, vocab: int, gap: bool = False) -> Text:
    said = np.arange(prompt + answer) >= prompt
    if gap and answer > 3:  # what a tool said in the middle of an answer is not the assistant's
        said[prompt + 1 : prompt + 3] = False
    return Text(rng.integers(0, vocab, prompt + answer), said)


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "qwen2-window", "mla"])
def test_end_to_end_is_as_each_alone(name: str) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = CONFIGS[name]
    model = CausalLM(config).double().eval()
    lengths = [(5, 3), (1, 1), (17, 9), (2, 6), (9, 1)]
    texts = [random_text(rng, *pair, config.vocab_size, gap=True) for pair in lengths]
    found = likelihood(model, Row.of(texts, CPU))
    every = likelihood(model, Row.of(texts, CPU, whole=2))
    entropy = 0.0
    for number, text in enumerate(texts):
        ids_1T = torch.from_numpy(text.ids_L)[None]
        logp_TV = model.hidden(ids_1T)[0][0] @ model.lm_head.weight.T
        logp_TV = logp_TV.log_softmax(-1)[:-1]
        picked_T = logp_TV.gather(-1, ids_1T[0, 1:, None]).squeeze(-1)
        said_T = torch.from_numpy(text.said_L[1:])
        entropy -= (logp_TV.exp() * logp_TV).sum(-1)[said_T].sum().item()
        assert found.answers_S[number].item() == pytest.approx(picked_T[said_T].sum().item(), rel=1e-5)
        assert every.answers_S[number].item() == pytest.approx(picked_T[said_T].sum().item(), rel=1e-5)
        if number < 2:  # the prompt's tokens too
            own = every.logps_N[Row.of(texts, CPU, whole=2).owners_N == number]
            torch.testing.assert_close(own.double(), picked_T, rtol=1e-5, atol=1e-5)
    assert found.entropy.item() == pytest.approx(entropy, rel=1e-5)
    assert every.entropy.item() == pytest.approx(entropy, rel=1e-5)


def test_a_prompt_with_anothers_answer() -> None:
    rng = np.random.default_rng(1)
    one, other = random_text(rng, 4, 3, 90), random_text(rng, 6, 5, 90)
    mixed = one.with_answer_of(other, 100)
    assert mixed.ids_L.tolist() == [*one.ids_L[:4], *other.ids_L[6:]]
    assert mixed.said_L.tolist() == [False] * 4 + [True] * 5
    assert len(one.with_answer_of(other, 7).ids_L) == 7
