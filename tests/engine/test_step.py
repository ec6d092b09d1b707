"""The compiled decoding step against the model itself: every family that it knows, token by token."""

import pytest
import torch
from small_models import CONFIGS, fresh

from tinyseek.engine.cache import ContiguousCache
from tinyseek.engine.step import CompiledStep, is_compiled
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM

pytest.importorskip("numba", reason="the compiled step needs the extra `fast`")
BIASED = ModelConfig(**{**CONFIGS["llama-gqa"].plain(), "qkv_bias": True, "output_bias": True})
HALVES = ModelConfig(**{**CONFIGS["mla"].plain(), "rope_interleave": False, "routed_scaling_factor": 2.5})
UNSHARED = ModelConfig(**{**CONFIGS["mla-q-lora-yarn-groups"].plain(), "n_shared_experts": 0, "norm_topk_prob": False})
GROUPED_V2 = ModelConfig(
    **{**CONFIGS["mla-softmax"].plain(), "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
)
KNOWN = {name: CONFIGS[name] for name in ("llama-gqa", "qwen2-window", "mla", "mla-q-lora-yarn-groups", "mla-softmax")}
KNOWN |= {"biased": BIASED, "halves": HALVES, "unshared": UNSHARED, "grouped-v2": GROUPED_V2}


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_compiled_step_equals_the_model(name: str) -> None:
    torch.manual_seed(3)
    model = CausalLM(KNOWN[name]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5)
    for _, mixture in model.experts():
        mixture.gate.e_score_correction_bias.normal_(0, 0.05)
    assert is_compiled(model)
    ids = torch.randint(0, 97, (1, 40))
    expected = model(ids)[0]
    cache = ContiguousCache(model.config, 1, 40)
    model(ids[:, :5], cache=cache)
    step = CompiledStep(model, cache)
    for position in range(5, 40):
        logits = step(int(ids[0, position]))
        assert (logits[0] - expected[position]).abs().max() < 1e-4, position
    assert cache.length == 40


def test_the_step_sees_changed_weights() -> None:
    """It reads the model's own memory: an optimiser's step between two texts needs no new preparation of copies."""
    model = fresh("mla")
    cache = ContiguousCache(model.config, 1, 10)
    with torch.no_grad():
        step = CompiledStep(model, cache)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        logits = step(7)
        assert (logits[0] - model(torch.tensor([[7]]))[0, -1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "sinusoidal"])
def test_other_families_go_the_plain_way(name: str) -> None:
    assert not is_compiled(fresh(name))
