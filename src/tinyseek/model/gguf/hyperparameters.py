"""The shape of a model as GGUF's keys say it, and our ModelConfig: llama, qwen2 and deepseek2 (DeepSeek-V2 and V3), both ways.

Two things hide in other places than keys. Llama 3's stretching of the rotary frequencies is a tensor of divisors, `rope_freqs`.
And llama.cpp knows YaRN's temperature of DeepSeek by one number, which stands for two of ours: see `_yarn_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig, RopeScaling
from tinyseek.model.gguf.container import Reader, f32, u32

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}  # ours: theirs
LONGEST = 1 << 24  # positions; a larger number in a file is damage
_SOFTMAX, _SIGMOID = 1, 2  # expert_gating_func
_LLAMA3 = {
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # all that was published


class _Keys:
    """A file's keys with their types checked."""

    def __init__(self, reader: Reader, architecture: str) -> None:
        self.reader, self.prefix = reader, architecture

    def get(self, name: str) -> Any:
        value = self.reader.metadata.get(f"{self.prefix}.{name}")
        if isinstance(value, np.ndarray):  # a number for each layer: one for all is what we can use
            if not value.size or (value != value[0]).any():
                raise self.bad(name, "differs from layer to layer, which is not supported")
            value = value[0].item()
        return value

    def bad(self, name: str, why: str) -> UserError:
        return UserError(f"{self.reader.path}: {self.prefix}.{name} {why}")

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = 1 << 31) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.bad(name, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(name, f"is {value!r}; a whole number from {least} to {most} is expected")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.bad(name, "is missing" if value is None else f"is {value!r}; a number is expected")
        return float(str(np.float32(value)))  # 1e-05 was meant by 9.999999747378752e-06

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise self.bad(name, f"is {value!r}; true or false is expected")
        return bool(value)

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str | None):
            raise self.bad(name, f"is {value!r}; text is expected")
        return value or ""


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def config_from_gguf(reader: Reader) -> ModelConfig:
    """The config of the model in a file; token ids are left to `vocabulary`.

    Raises:
        UserError: another architecture, a key that is missing or cannot be, a shape that contradicts the tensors.
    """
    architecture = reader.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES.values():
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise UserError(f'{reader.path}: holds a "{architecture}" model; tinyseek reads {known}')
    keys = _Keys(reader, architecture)
    embedding = reader.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{reader.path}: no token_embd.weight with rows and columns in it, so no language model")
    width = keys.whole("embedding_length")
    if embedding.shape[1] != width:
        raise keys.bad("embedding_length", f"is {width}, but token_embd.weight has rows of {embedding.shape[1]}")
    layers = keys.whole("block_count", most=len(reader.tensors))
    layers -= keys.whole("nextn_predict_layers", 0, least=0, most=layers - 1)
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": keys.whole("attention.head_count", most=1 << 16),
        "intermediate_size": keys.whole("feed_forward_length", most=1 << 24),
        "max_position_embeddings": keys.whole("context_length", most=LONGEST),
        "tie_word_embeddings": "output.weight" not in reader.tensors,
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
    }
    values |= _latent(keys) if architecture == "deepseek2" else _plain(keys, architecture, values)
    values["rope_scaling"] = _scaling(keys, values["rope_theta"])
    return ModelConfig.read(values, str(reader.path))


def _plain(keys: _Keys, architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What Llama and Qwen2 have beside the rest."""
    tensors, heads = keys.reader.tensors, values["num_attention_heads"]
    width = keys.whole("attention.key_length", values["hidden_size"] // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(name, width) != width:
            raise keys.bad(name, f"is {keys.get(name)} with heads of {width}, which is not supported")
    if keys.whole("expert_count", 0, least=0):
        raise UserError(f"{keys.reader.path}: a {architecture} model with experts (Mixtral), which is not supported")
    out: dict[str, Any] = {"model_type": architecture}
    out["num_key_value_heads"] = keys.whole("attention.head_count_kv", heads)
    out["head_dim"] = width if width * heads != values["hidden_size"] or architecture == "llama" else None
    if architecture == "llama":
        biased = any(f"blk.0.attn_{part}.bias" in tensors for part in ("q", "k", "v", "output"))
        mlp = any(f"blk.0.ffn_{part}.bias" in tensors for part in ("gate", "up", "down"))
        out |= {"qkv_bias": biased, "output_bias": biased, "mlp_bias": mlp}
    return out


def _latent(keys: _Keys) -> dict[str, Any]:
    """What DeepSeek-V2 and V3 have beside the rest: latent attention and experts."""
    tensors = keys.reader.tensors
    split = (
        keys.get("attention.key_length_mla") is not None
    )  # older files: kv_b whole, and the lengths are the heads' own
    rope = keys.whole("rope.dimension_count", least=2, most=1 << 16)
    head = keys.whole("attention.key_length_mla" if split else "attention.key_length", most=1 << 20)
    if head <= rope:
        raise keys.bad("rope.dimension_count", f"is {rope}, but a head has only {head} numbers")
    layers, dense = keys.whole("block_count"), keys.whole("leading_dense_block_count", 0, least=0)
    out: dict[str, Any] = {
        "kv_lora_rank": keys.whole("attention.kv_lora_rank", most=1 << 20),
        "q_lora_rank": None if "blk.0.attn_q.weight" in tensors else keys.whole("attention.q_lora_rank", most=1 << 20),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": head - rope,
        "v_head_dim": keys.whole("attention.value_length_mla" if split else "attention.value_length", most=1 << 20),
        "rope_interleave": True,
        "first_k_dense_replace": dense,
    }
    experts = keys.whole("expert_count", 0, least=0, most=1 << 16)
    if not experts or dense >= layers:
        return out | {"model_type": "deepseek_v3"}
    biased = any(name.endswith("exp_probs_b.bias") for name in tensors)
    gate = keys.whole("expert_gating_func", _SIGMOID if biased else _SOFTMAX)
    if gate not in (_SOFTMAX, _SIGMOID):
        raise keys.bad("expert_gating_func", f"is {gate}; 1 (softmax) and 2 (sigmoid) are supported")
    stacked = next((info.shape[0] for name, info in tensors.items() if name.endswith("ffn_down_exps.weight")), 0)
    if stacked != experts:
        raise keys.bad("expert_count", f"is {experts}, but {stacked} experts are stacked in the tensors")
    groups = keys.whole("expert_group_count", 1, least=0) or 1
    normed = keys.flag("expert_weights_norm")
    out |= {
        "n_routed_experts": experts,
        "num_experts_per_tok": keys.whole("expert_used_count", most=experts),
        "n_shared_experts": keys.whole("expert_shared_count", 0, least=0, most=1 << 10),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length", most=1 << 24),
        "n_group": groups,
        "topk_group": keys.whole("expert_group_used_count", 1, least=0) or 1,
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": normed,
    }
    if gate == _SIGMOID:
        return out | {"model_type": "deepseek_v3"}
    if normed:
        raise keys.bad("expert_weights_norm", "is true with softmax scores, which is not supported")
    return out | {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _scaling(keys: _Keys, theta: float) -> dict[str, Any] | None:
    """The stretching of the rotary frequencies: of a key, or of the tensor of divisors that Llama 3 has."""
    if "rope_freqs.weight" in keys.reader.tensors:
        return _llama3(keys, keys.reader.tensor("rope_freqs.weight"), theta)
    kind = keys.text("rope.scaling.type")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0) or 1.0) or 1.0
    if kind in ("", "linear"):
        return {"rope_type": "linear", "factor": factor} if factor != 1 else None
    if kind == "none":
        return None
    if kind != "yarn":
        raise keys.bad("rope.scaling.type", f'is "{kind}"; none, linear and yarn are supported')
    out: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.whole("rope.scaling.original_context_length", most=LONGEST),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    usual = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
    extra = keys.number("rope.scaling.attn_factor", 1.0)
    if keys.prefix != "deepseek2":
        whole = keys.number(
            "rope.scaling.yarn_attn_factor", usual * extra
        )  # Hugging Face's attention_factor, as it stands
        return out | ({"attention_factor": whole} if whole != usual else {})
    weight = keys.number("rope.scaling.yarn_log_multiplier", 0.0)  # 0.1 * mscale_all_dim
    if weight and extra == 1:
        mscale = round(10 * weight, 6)
        return out | {"mscale": mscale, "mscale_all_dim": mscale}
    rotated = (1.0 if weight else usual) * extra
    softmax = rotated * (1 + weight * math.log(factor)) if factor > 1 else 1.0
    all_dim = 10 * (softmax - 1) / math.log(factor) if factor > 1 else 0.0
    return out | {"attention_factor": rotated, "mscale_all_dim": all_dim or None}


def _llama3(keys: _Keys, divisors: NDArray[np.float32], theta: float) -> dict[str, Any] | None:
    factor = float(divisors.max(initial=1.0))
    if factor == 1:
        return None
    values: dict[str, Any] = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    if not math.isfinite(factor) or not np.allclose(
        llama3_divisors(RopeScaling(**values), theta, 2 * divisors.size), divisors, rtol=1e-4
    ):
        raise UserError(f"{keys.reader.path}: rope_freqs.weight stretches the positions in another way than Llama 3's")
    return values


def llama3_divisors(scaling: RopeScaling, theta: float, width: int) -> NDArray[np.float32]:
    """What Llama 3's rule divides each rotary frequency by, [width / 2]: 1 for the fast ones, `factor` for the slow ones."""
    original = scaling.original_max_position_embeddings or _LLAMA3["original_max_position_embeddings"]
    wavelength = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    turns = original / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    fast = smooth.clip(0, 1)
    divisors: NDArray[np.float32] = (1 / ((1 - fast) / scaling.factor + fast)).astype(np.float32)
    return divisors


# ---- writing ---------------------------------------------------------------------------------------------------------------------


def keys_from_config(config: ModelConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """The keys of a model's shape, architecture and context included.

    Args:
        say: is told where other programs will compute something else than tinyseek does.
    Raises:
        UserError: a family that has no GGUF architecture here.
    """
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"a {config.model_type} model cannot be written as GGUF; the families that can are {', '.join(ARCHITECTURES)}"
        )
    name = ARCHITECTURES[config.model_type]
    keys: dict[str, Any] = {
        "block_count": u32(config.num_hidden_layers),
        "context_length": u32(config.max_position_embeddings),
        "embedding_length": u32(config.hidden_size),
        "feed_forward_length": u32(config.intermediate_size),
        "vocab_size": u32(config.vocab_size),
        "attention.head_count": u32(config.num_attention_heads),
        "attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        "rope.freq_base": f32(config.rope_theta),
        "rope.dimension_count": u32(config.rotary_dim),
    }
    if config.mla:
        keys |= _latent_keys(config, say)
    else:
        keys |= {
            "attention.head_count_kv": u32(config.kv_heads),
            "attention.key_length": u32(config.qk_dim),
            "attention.value_length": u32(config.qk_dim),
        }
        if config.sliding_window and config.sliding_window < config.max_position_embeddings:
            say(
                f"llama.cpp has no sliding window for {name}: it looks further back than {config.sliding_window} tokens"
            )
        if name == "qwen2" and config.qk_dim * config.num_attention_heads != config.hidden_size:
            raise UserError("a qwen2 whose heads are not as wide together as the model cannot be run by llama.cpp")
    keys |= _scaling_keys(config)
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in keys.items()}


def _latent_keys(config: ModelConfig, say: Callable[[str], None]) -> dict[str, Any]:
    assert config.kv_lora_rank is not None
    cached = config.kv_lora_rank + config.qk_rope_head_dim
    dense = config.first_k_dense_replace if config.n_routed_experts else config.num_hidden_layers
    keys: dict[str, Any] = {
        # To llama.cpp attention is absorbed: one head of keys and values for all, the latent itself.
        "attention.head_count_kv": u32(1),
        "attention.key_length": u32(cached),
        "attention.value_length": u32(config.kv_lora_rank),
        "attention.key_length_mla": u32(config.qk_dim),
        "attention.value_length_mla": u32(config.v_head_dim),
        "attention.kv_lora_rank": u32(config.kv_lora_rank),
        "attention.q_lora_rank": u32(config.q_lora_rank or 0),
        "leading_dense_block_count": u32(min(dense, config.num_hidden_layers)),
        "expert_count": u32(config.n_routed_experts),
        "expert_used_count": u32(config.num_experts_per_tok if config.n_routed_experts else 0),
        "expert_shared_count": u32(max(config.n_shared_experts, 1) if config.n_routed_experts else 0),
        "expert_feed_forward_length": u32(config.moe_intermediate_size),
        "expert_weights_scale": f32(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob and config.scoring_func == "sigmoid",
        "expert_gating_func": u32(_SIGMOID if config.scoring_func == "sigmoid" else _SOFTMAX),
    }
    if config.n_group > 1:
        keys |= {"expert_group_count": u32(config.n_group), "expert_group_used_count": u32(config.topk_group)}
        if config.topk_method == "group_limited_greedy":
            say(
                "llama.cpp scores a group of experts by its two best, DeepSeek-V2 by its best: some tokens go elsewhere there"
            )
    if config.num_hidden_layers in (26, 27) and config.q_lora_rank:
        say(
            f"llama.cpp takes every DeepSeek of {config.num_hidden_layers} layers for V2-Lite and will not find its query matrix"
        )
    if not math.isclose(config.norm_eps, 1e-6):
        say(f"llama.cpp uses norm_eps {config.norm_eps:g} in the low-rank norms too, where DeepSeek has 1e-6")
    return keys


def _scaling_keys(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "llama3":  # Llama 3's is the tensor rope_freqs
        return {}
    keys: dict[str, Any] = {"rope.scaling.type": scaling.rope_type, "rope.scaling.factor": f32(scaling.factor)}
    if scaling.rope_type == "yarn":
        keys |= {
            "rope.scaling.original_context_length": u32(
                scaling.original_max_position_embeddings or config.max_position_embeddings
            ),
            "rope.scaling.yarn_beta_fast": f32(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": f32(scaling.beta_slow),
            **_yarn_keys(config, scaling),
        }
    return keys


def _yarn_keys(config: ModelConfig, scaling: RopeScaling) -> dict[str, Any]:
    """YaRN's two temperatures: r on the rotated numbers, s on the softmax (DeepSeek's mscale, squared there).

    llama.cpp computes r = u * a, where a is a key and u = 1 + 0.1 ln(factor), and for DeepSeek s = r * (1 + w ln(factor)), where w
    is `yarn_log_multiplier`; and there u counts as 1 wherever w is not 0.
    """
    from tinyseek.model.rope import frequencies, mscale, softmax_scale

    rotated, usual = frequencies(config)[1], mscale(scaling.factor, 1.0)
    keys, extra = {}, rotated / usual
    if config.mla and scaling.factor > 1:
        softmax = math.sqrt(softmax_scale(config) * math.sqrt(config.qk_dim))
        weight = (softmax / rotated - 1) / math.log(scaling.factor)
        weight = 0.0 if abs(weight) < 1e-9 else weight
        keys, extra = {"rope.scaling.yarn_log_multiplier": f32(weight)}, rotated if weight else rotated / usual
    return keys if math.isclose(extra, 1) else keys | {"rope.scaling.attn_factor": f32(extra)}
