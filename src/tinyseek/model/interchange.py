"""How our configs and tensors are called in Hugging Face checkpoints, both ways. No files here: see `checkpoint`.

transformers 5 reads `rope_parameters` and `dtype`; transformers 4 and Ollama read `rope_theta`, `rope_scaling` and
`torch_dtype`. Both are written. Experts are stacked in memory and one tensor each on disk, which transformers 4 and 5, vLLM
and Ollama all take. GPT-2 keeps its matrices as [in, out] and its three projections in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig, RopeScaling

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "tinyseek": "TinyseekForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
_ACTIVATIONS_IN = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Ours alone: kept in config.json under the key "tinyseek", which others pass over.
_OWN = ("num_nextn_predict_layers", "mtp_loss_weight", "balance_bias_rate", "balance_loss_weight")
_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
)
_DEEPSEEK = (
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "norm_topk_prob",
    "topk_method",
    "scoring_func",
)
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "norm_eps",
}


def config_to_hf(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The content of config.json for a model of ours."""
    family = config.model_type
    type_name = str(dtype).removeprefix("torch.")
    out: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": type_name,
        "torch_dtype": type_name,
        **{key: getattr(config, key) for key in _SAME},
        "tinyseek": {key: getattr(config, key) for key in _OWN},
    }
    if family == "tinyseek":  # nobody else reads it: every part as it stands
        return {**config.plain(), **out, "tinyseek": {}}
    if family == "gpt2":
        out |= {theirs: getattr(config, ours) for theirs, ours in _GPT2_NAMES.items()}
        out |= {
            "activation_function": _ACTIVATIONS[config.activation],
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
        return out
    out |= {
        "hidden_act": _ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "num_key_value_heads": config.kv_heads,
        "attention_dropout": 0.0,
        "use_cache": True,
        **_rope_to_hf(config),
    }
    if family == "llama":
        out |= {"head_dim": config.qk_dim, "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if family == "qwen2":
        out |= {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
        out |= {"max_window_layers": config.sliding_from_layer}
    if config.mla:
        out |= {key: getattr(config, key) for key in _DEEPSEEK}
        out |= {"attention_bias": False, "head_dim": config.qk_rope_head_dim, "qk_head_dim": config.qk_dim}
        out |= {"rope_interleave": config.rope_interleave, "moe_layer_freq": 1, "num_nextn_predict_layers": 0}
        if not config.n_routed_experts:  # DeepSeek's code has no dense model: no layer is sparse instead
            out |= {"n_routed_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": config.num_hidden_layers}
            out |= {"n_shared_experts": 1}
    return out


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {
            "rope_theta": config.rope_theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    used = {
        "linear": ("factor",),
        "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        "yarn": (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
        ),
    }[scaling.rope_type]
    values = {key: getattr(scaling, key) for key in used if getattr(scaling, key) is not None}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": {"type": scaling.rope_type, "rope_type": scaling.rope_type, **values},
        "rope_parameters": {"rope_type": scaling.rope_type, "rope_theta": config.rope_theta, **values},
    }


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """A ModelConfig from the content of a config.json of any supported family, transformers 4 or 5.

    Raises:
        UserError: a family, activation, rotary rule or quantisation that is not supported, with what is.
    """
    family = values.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(f'{where}: model_type "{family}" is not supported; supported: {", ".join(ARCHITECTURES)}')
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown")
        raise UserError(
            f"{where}: the weights are quantised ({method}); load the checkpoint in its float16 or bfloat16 form"
        )
    own = dict(values.get("tinyseek") or {})
    if family == "tinyseek":
        return ModelConfig.read({key: values[key] for key in ModelConfig.model_fields if key in values}, where)
    if family == "gpt2":
        values = {
            **values,
            **{ours: values[theirs] for theirs, ours in _GPT2_NAMES.items() if values.get(theirs) is not None},
        }
        values.setdefault("intermediate_size", 4 * values["hidden_size"])
        values.setdefault("tie_word_embeddings", True)
    out: dict[str, Any] = {"model_type": family, **{key: values[key] for key in _SAME if key in values}, **own}
    activation = (
        values.get("activation_function") or values.get("hidden_act") or ("gelu_new" if family == "gpt2" else "silu")
    )
    if activation not in _ACTIVATIONS_IN:
        raise UserError(f'{where}: activation "{activation}" is not supported; supported: {", ".join(_ACTIVATIONS_IN)}')
    out["activation"] = _ACTIVATIONS_IN[activation]
    if family == "gpt2":
        return ModelConfig.read(out | {"norm_eps": values.get("norm_eps", 1e-5)}, where)
    out["norm_eps"] = values.get("rms_norm_eps", 1e-6)
    out |= _rope_from_hf(values, where)
    if family in ("llama", "qwen2"):
        out |= {"num_key_value_heads": values.get("num_key_value_heads"), "head_dim": values.get("head_dim")}
    if family == "llama":
        biased = bool(values.get("attention_bias", False))
        out |= {"qkv_bias": biased, "output_bias": biased, "mlp_bias": bool(values.get("mlp_bias", False))}
    if family == "qwen2" and values.get("use_sliding_window"):
        out |= {
            "sliding_window": values.get("sliding_window"),
            "sliding_from_layer": values.get("max_window_layers", 0),
        }
    if family.startswith("deepseek"):
        out |= {key: values[key] for key in _DEEPSEEK if values.get(key) is not None}
        if family == "deepseek_v3":
            out["rope_interleave"] = values.get("rope_interleave", True)
            out.setdefault("num_nextn_predict_layers", values.get("num_nextn_predict_layers", 0))
        if out.get("first_k_dense_replace", 0) >= out["num_hidden_layers"]:
            out |= {"n_routed_experts": 0, "n_shared_experts": 0}
    return ModelConfig.read(out, where)


def _rope_from_hf(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    theta = rope.get("rope_theta") or values.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in ("linear", "yarn", "llama3"):
        raise UserError(f'{where}: rope_type "{kind}" is not supported; supported: default, linear, yarn, llama3')
    known = {key: value for key, value in rope.items() if key in RopeScaling.model_fields and value is not None}
    return {"rope_theta": theta, "rope_scaling": {**known, "rope_type": kind}}


def tensors_to_hf(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under the names and in the shapes of the family's checkpoints, one at a time. MTP modules come last."""
    if config.model_type == "gpt2":
        yield from _gpt2_to_hf(state)
        return
    for name, tensor in state.items():
        name = _mtp_name(name, config, outward=True)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("mlp.experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                for part, half in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    yield name.replace("experts.gate_up_proj", f"experts.{expert}.{part}.weight"), half
        elif name.endswith("mlp.experts.down_proj"):
            for expert, down in enumerate(tensor):
                yield name.replace("experts.down_proj", f"experts.{expert}.down_proj.weight"), down
        else:
            yield name, tensor


def is_mtp(name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint's tensor belongs to a multi-token prediction module: a layer beyond the model's last."""
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) >= config.num_hidden_layers


def _mtp_name(name: str, config: ModelConfig, outward: bool) -> str:
    """`mtp.0.enorm.weight` here is `model.layers.61.enorm.weight` there."""
    parts = name.split(".")
    if outward and parts[0] == "mtp":
        return ".".join(["model", "layers", str(config.num_hidden_layers + int(parts[1])), *parts[2:]])
    if not outward and is_mtp(name, config):
        return ".".join(["mtp", str(int(parts[2]) - config.num_hidden_layers), *parts[3:]])
    return name


def wanted(config: ModelConfig, shapes: Mapping[str, torch.Size]) -> dict[str, list[tuple[str, torch.Size]]]:
    """For each of our tensors, the checkpoint's tensors that make it, each with the shape that it must have.

    Args:
        shapes: our names and shapes.
    """
    out: dict[str, list[tuple[str, torch.Size]]] = {}
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for name, tensor in meta.items():
        out[name] = [(there, part.shape) for there, part in tensors_to_hf(config, {name: tensor})]
    return out


def assemble(name: str, parts: Iterable[Tensor]) -> Tensor:
    """One of our tensors out of the checkpoint's, in the order that `wanted` lists them."""
    tensors = list(parts)
    if name.endswith("experts.gate_up_proj"):
        return torch.stack([torch.cat(pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)])
    if name.endswith("experts.down_proj"):
        return torch.stack(tensors)
    return tensors[0]


_GPT2_PARTS = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_GPT2_TOP = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.embed_positions.weight": "transformer.wpe.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "model.norm.bias": "transformer.ln_f.bias",
}


def _gpt2_to_hf(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's names; its Conv1D matrices are [in, out], and q, k and v are one."""
    fused: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        if name in _GPT2_TOP:
            yield _GPT2_TOP[name], tensor
        elif name.startswith("model.layers."):
            _, _, layer, *rest, kind = name.split(".")
            part = ".".join(rest)
            if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                parts = fused.setdefault(f"transformer.h.{layer}.attn.c_attn.{kind}", [])
                parts.append(tensor)
                if len(parts) == 3:
                    joined = torch.cat(parts)
                    yield (
                        f"transformer.h.{layer}.attn.c_attn.{kind}",
                        joined.T.contiguous() if kind == "weight" else joined,
                    )
            else:
                matrix = kind == "weight" and part.startswith(("self_attn", "mlp"))
                yield f"transformer.h.{layer}.{_GPT2_PARTS[part]}.{kind}", tensor.T.contiguous() if matrix else tensor


def gpt2_from_hf(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and shapes out of a GPT-2 checkpoint's, with or without its `transformer.` prefix."""
    back = {there: ours for ours, there in _GPT2_PARTS.items()}
    top = {there.removeprefix("transformer."): ours for ours, there in _GPT2_TOP.items()}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if name in top:
            yield top[name], tensor
        elif name.startswith("h."):
            _, layer, *rest, kind = name.split(".")
            part = ".".join(rest)
            if part == "attn.c_attn":
                for letter, third in zip("qkv", tensor.chunk(3, dim=-1), strict=True):
                    yield f"model.layers.{layer}.self_attn.{letter}_proj.{kind}", third.T if kind == "weight" else third
            elif part in back:
                matrix = kind == "weight" and part.startswith(("attn", "mlp"))
                yield f"model.layers.{layer}.{back[part]}.{kind}", tensor.T if matrix else tensor
