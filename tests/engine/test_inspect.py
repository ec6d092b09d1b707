"""A look inside, held against what transformers says of the same checkpoint."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CONFIGS, fresh

from tinyseek.engine.inspect import inspect, most_tokens
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM

SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 12,
    "v_head_dim": 8,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"vocab_size": 101, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "llama-gqa": ("LlamaConfig", {**SMALL, "num_key_value_heads": 2}),
    "llama-mha": ("LlamaConfig", {**SMALL, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2Config",
        {**SMALL, "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1},
    ),
    "deepseek_v3": ("DeepseekV3Config", {**SMALL, **LATENT, "q_lora_rank": 24, "rope_parameters": YARN}),
    "deepseek_v3-halves": ("DeepseekV3Config", {**SMALL, **LATENT, "q_lora_rank": None, "rope_interleave": False}),
}


@pytest.mark.parametrize("name", PEERS)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(3)
    kind, values = PEERS[name]
    config = getattr(transformers, kind)(**values, attn_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    routes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    if kind == "DeepseekV3Config":
        for layer, block in enumerate(theirs.model.layers):
            if hasattr(block.mlp, "gate"):
                block.mlp.gate.register_forward_hook(
                    lambda _module, _args, out, layer=layer: routes.update({layer: (out[2], out[1])})
                )
    theirs.save_pretrained(tmp_path)
    ids = random.Random(name).choices(range(101), k=70)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)

    seen = inspect(CausalLM.load(tmp_path), ids)
    assert (seen.layers, seen.heads, seen.vocabulary) == (3, 4, 101)

    for token in (0, 1, 16, 17, 40, 69):
        attended = seen.attention(token)
        assert attended.shape == (3, 4, token + 1)
        assert attended.sum(-1) == pytest.approx(1, abs=1e-5)
        for layer in range(3):
            their_row = expected.attentions[layer][0, :, token, : token + 1].numpy()
            assert np.abs(attended[layer] - their_row).max() < 2e-5, (layer, token)

    probs = expected.logits[0].double().softmax(-1)
    for token in range(1, 70):
        row = probs[token - 1]
        assert seen.probs_T[token] == pytest.approx(row[ids[token]].item(), abs=1e-5)
        assert seen.ranks_T[token] == int((row > row[ids[token]]).sum()) + 1
        top = row.topk(10)
        assert seen.top_probs_TK[token] == pytest.approx(top.values.numpy(), abs=1e-5)
        assert row[torch.from_numpy(seen.top_ids_TK[token]).long()].numpy() == pytest.approx(
            top.values.numpy(), abs=1e-5
        )
        assert seen.entropy_T[token] == pytest.approx(-(row * row.log2()).sum().item(), abs=1e-4)

    norm = theirs.transformer.ln_f if kind == "GPT2Config" else theirs.model.norm
    for token in (1, 40, 69):
        guesses = seen.guesses(token)
        assert guesses.own_L[-1] == pytest.approx(seen.probs_T[token], rel=0.1, abs=0.01)
        for layer in range(2):  # transformers norms what it gives out as the last
            with torch.no_grad():
                guess = theirs.lm_head(norm(expected.hidden_states[layer + 1][0, token - 1])).softmax(-1)
            assert guesses.own_L[layer] == pytest.approx(guess[ids[token]].item(), rel=0.1, abs=0.01)
            assert guesses.probs_L[layer] == pytest.approx(guess.max().item(), rel=0.1, abs=0.01)
            assert guess[guesses.ids_L[layer]].item() == pytest.approx(guess.max().item(), rel=0.1)

    assert set(seen.routing) == set(routes) == ({1, 2} if routes else set())
    assert (seen.routed, seen.shared) == ((8, 2) if routes else (0, 0))
    for layer, (chosen, weights) in routes.items():
        ours = seen.routing[layer]
        for token in range(70):
            there = dict(zip(chosen[token].tolist(), weights[token].tolist(), strict=True))
            here = dict(zip(ours.experts_TA[token].tolist(), ours.weights_TA[token].tolist(), strict=True))
            assert here == pytest.approx(there, abs=1e-5)
            assert list(here.values()) == sorted(here.values(), reverse=True)
            assert sum(here.values()) == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_and_length(name: str) -> None:
    """A text's first tokens show the same whatever follows them, and looking changes nothing in the model."""
    model = fresh(name)
    ids = torch.randint(0, 97, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        before = model(torch.tensor([ids]))
    whole = inspect(model, ids)
    for length in (1, 2, 9, 30):
        part = inspect(model, ids[:length])
        assert part.probs_T == pytest.approx(whole.probs_T[:length], abs=1e-5, nan_ok=True)
        assert np.abs(part.attention(length - 1) - whole.attention(length - 1)).max() < 1e-5
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([ids])), before)


def test_logits_are_computed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("mla")
    whole = inspect(model, [5, 6, 7, 8, 9])
    monkeypatch.setattr("tinyseek.engine.inspect._LOGITS", 2 * 97)
    sliced = inspect(model, [5, 6, 7, 8, 9])
    assert sliced.probs_T == pytest.approx(whole.probs_T, abs=1e-6, nan_ok=True)
    assert (sliced.top_ids_TK == whole.top_ids_TK).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_what_was_promised(name: str) -> None:
    model = fresh(name)
    ids = [3] * 40
    kept = [tensor for trace in inspect(model, ids)._traces for tensor in (trace.queries, *trace.keys, trace.stream)]
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept)
    assert most_tokens(model, held) == 40
    inspect(model, ids, held)
    with pytest.raises(UserError, match="40 tokens; a look inside takes at most 39"):
        inspect(model, ids, held - 1)


@pytest.mark.parametrize(
    ("ids", "message"), [([], "no token"), ([1] * 129, "at most 128"), ([97], "vocabulary"), ([-1], "vocabulary")]
)
def test_bad_texts(ids: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect(fresh("gpt2"), ids)


def test_tokens_beyond_the_text() -> None:
    seen = inspect(fresh("gpt2"), [1, 2])
    for token in (-1, 2):
        with pytest.raises(IndexError):
            seen.attention(token)
    for token in (0, 2):
        with pytest.raises(IndexError):
            seen.guesses(token)
