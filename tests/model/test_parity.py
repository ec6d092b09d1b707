"""The same function as transformers: random configs and weights, loaded here from their folder and there from ours."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyseek.model.checkpoint as checkpoint
from tinyseek.model.transformer import CausalLM

transformers = pytest.importorskip("transformers", reason="the parity tests need the dev extra")
transformers.utils.logging.disable_progress_bar()
TOLERANCE = 1e-4


def random_deepseek_v3(rng: random.Random) -> dict[str, Any]:
    groups = rng.choice([1, 2, 4])
    experts = groups * rng.choice([2, 4])
    kept = rng.randint(1, groups)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if rng.random() < 0.6:
        rope = {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": rng.choice([2.0, 4.0, 40.0]),
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": rng.choice([0.7, 1.0]),
            "mscale_all_dim": rng.choice([0.7, 1.0]),
        }
    return {
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": experts,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": rng.randint(1, kept * experts // groups),
        "n_shared_experts": rng.choice([1, 2]),
        "first_k_dense_replace": rng.choice([0, 1, 3]),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "q_lora_rank": rng.choice([None, 24]),
        "kv_lora_rank": 16,
        "qk_rope_head_dim": rng.choice([4, 8]),
        "qk_nope_head_dim": 12,
        "v_head_dim": rng.choice([8, 16, 24]),
        "norm_topk_prob": rng.choice([True, False]),
        "rope_interleave": rng.choice([True, False]),
        "max_position_embeddings": 256,
        "rope_parameters": rope,
    }


def random_deepseek_v2(rng: random.Random) -> dict[str, Any]:
    values = random_deepseek_v3(rng)
    del values["rope_interleave"]
    method = rng.choice(["greedy", "group_limited_greedy"])
    return values | {"topk_method": method, "norm_topk_prob": False, "first_k_dense_replace": rng.choice([0, 1])}


def random_llama(rng: random.Random) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    kind = rng.choice(["default", "linear", "llama3", "yarn"])
    if kind != "default":
        rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind in ("llama3", "yarn"):
        rope |= {"original_max_position_embeddings": 32}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": rng.choice([1, 2, 4]),
        "head_dim": rng.choice([8, 12]),
        "attention_bias": rng.choice([True, False]),
        "mlp_bias": rng.choice([True, False]),
        "tie_word_embeddings": rng.choice([True, False]),
        "max_position_embeddings": 256,
        "rope_parameters": rope,
    }


def random_qwen2(rng: random.Random) -> dict[str, Any]:
    return {
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": rng.choice([1, 2, 4]),
        "tie_word_embeddings": rng.choice([True, False]),
        "use_sliding_window": rng.choice([True, False]),
        "sliding_window": 17,
        "max_window_layers": 2,
        "max_position_embeddings": 256,
        "attn_implementation": "eager",
    }


def random_gpt2(rng: random.Random) -> dict[str, Any]:
    return {
        "vocab_size": 101,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": rng.choice([2, 4]),
        "n_positions": 128,
        "n_inner": rng.choice([None, 80]),
    }


FAMILIES = {
    "gpt2": ("GPT2Config", random_gpt2),
    "llama": ("LlamaConfig", random_llama),
    "qwen2": ("Qwen2Config", random_qwen2),
    "deepseek_v2": ("DeepseekV2Config", random_deepseek_v2),
    "deepseek_v3": ("DeepseekV3Config", random_deepseek_v3),
}


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights large enough that a mistake shows, norms away from 1, balancing biases away from 0."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.15)
        else:
            parameter.uniform_(0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05).abs_()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_both_ways(family: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{family}-{seed}")
    torch.manual_seed(seed)
    config_name, draw = FAMILIES[family]
    values = draw(rng)
    print(f"seed {seed}: {values}")
    theirs = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_name)(**values)).eval()
    randomise(theirs)
    ids = torch.randint(0, 101, (2, 70))
    with torch.no_grad():
        expected = theirs(ids).logits
    theirs.save_pretrained(tmp_path / "theirs")

    ours = CausalLM.load(tmp_path / "theirs")
    with torch.no_grad():
        assert (ours(ids) - expected).abs().max() < TOLERANCE

    ours.save(tmp_path / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert (again.eval()(ids).logits - expected).abs().max() < TOLERANCE


def test_fresh_deepseek_with_mtp_loads_in_transformers_without_a_word(tmp_path: Path) -> None:
    from tinyseek.model.presets import from_preset

    torch.manual_seed(0)
    small = {
        "vocab_size": 101,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
    }
    ours = CausalLM(from_preset("quickstart", small)).eval()
    ours.save(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(0, 101, (2, 40))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() < TOLERANCE
    assert checkpoint.read_config(tmp_path).num_nextn_predict_layers == 1
    back = CausalLM.load(tmp_path)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_large_checkpoints_are_cut_into_shards_that_transformers_reads(tmp_path: Path) -> None:
    from tinyseek.model.presets import from_preset

    ours = CausalLM(from_preset("quickstart", {"vocab_size": 101, "num_hidden_layers": 2})).eval()
    checkpoint.save(ours, tmp_path, shard_bytes=1 << 20)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    ids = torch.randint(0, 101, (1, 20))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = ours(ids)
        assert (theirs(ids).logits - expected).abs().max() < TOLERANCE
        assert torch.equal(CausalLM.load(tmp_path)(ids), expected)
