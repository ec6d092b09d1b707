"""Adapters' tensors and settings as PEFT names them, both ways. No files here: see `adapter`.

On Llama and Qwen2 every change is a linear layer's. On DeepSeek, PEFT with transformers 5 takes gate_proj, up_proj and down_proj
among `target_modules` for the routed experts alone and drops the dense layers' and the shared experts' in silence; so there all of
the MLP goes by `target_parameters`, which PEFT holds to the letter. Measured with peft 0.21.2 and transformers 5.23.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.lora_config import LoraConfig

PREFIX = "base_model.model."
_PEFT_VERSION = "0.21.2"


@dataclass(frozen=True)
class Part:
    """The change of one matrix, or of a stack of experts' matrices."""

    a: Tensor  # [R, Q] or [E, R, Q]
    b: Tensor  # [P, R] or [E, P, R]
    magnitude: Tensor | None  # [P] or [E, P]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


def unfit(family: str, parts: Mapping[str, Part]) -> str:
    """Why PEFT could not hold these changes; empty where it can."""
    if family == "tinyseek":
        return "no other program knows a model of free parts (model_type tinyseek)"
    if family == "gpt2":
        return "transformers' GPT-2 has query, key and value in one matrix"
    long = [name for name in parts if by_parameter(family, name) and parts[name].magnitude is not None]
    if long:
        return f"PEFT has no DoRA for the MLPs of {family} ({long[0]})"
    return ""


def by_parameter(family: str, name: str) -> bool:
    """Whether PEFT knows a matrix only as a parameter of its own (`target_parameters`)."""
    return family.startswith("deepseek") and ".mlp." in name


# ---- our own form ----------------------------------------------------------------------------------------------------------------


def own_tensors(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """Every change under the name of what it changes."""
    out: dict[str, Tensor] = {}
    for name, part in parts.items():
        out |= {f"{PREFIX}{name}.lora_A.weight": part.a, f"{PREFIX}{name}.lora_B.weight": part.b}
        if part.magnitude is not None:
            out[f"{PREFIX}{name}.lora_magnitude_vector"] = part.magnitude
    return out


def from_own(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> tuple[dict[str, Part], dict[str, Tensor]]:
    """Changes and whole tensors out of `own_tensors` and what lies beside."""
    found, whole = _gathered(tensors)
    return {name: Part(k["lora_A"], k["lora_B"], k.get("magnitude"), scales[name]) for name, k in found.items()}, whole


_KEY = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")


def _gathered(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """A, B and magnitude by the module they lie on, and what else there is."""
    found: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(name)
        if match is None:
            for inner in (".modules_to_save.default", ".modules_to_save", ".base_layer"):
                name = name.replace(inner, "")
            whole[name] = tensor.float()
        else:
            kind = match[2].replace("lora_magnitude_vector", "magnitude")
            found.setdefault(match[1], {})[kind] = tensor.float()
    return found, whole


# ---- to PEFT ---------------------------------------------------------------------------------------------------------------------


def to_peft(
    config: ModelConfig, there: set[str], parts: Mapping[str, Part], settings: LoraConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under PEFT's names, and the content of adapter_config.json for them.

    Args:
        config: the base's.
        there: every matrix of the base that could be changed, by which short names are told from ambiguous ones.
        parts: the changes, which `unfit` has nothing against.
    """
    family = config.model_type
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    parameters: list[str] = []
    for name, part in parts.items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            both = (
                f"{name.rpartition('.')[0]}.gate_up_proj" in parts and f"{name.rpartition('.')[0]}.down_proj" in parts
            )
            key = name.rpartition(".")[0] + (".base_layer" if both and name.endswith("gate_up_proj") else "")
            parameters.append(name)
            # Experts lie behind one another in A's rows; in B's columns they come in turn, rank by rank.
            tensors[f"{PREFIX}{key}.lora_A.weight"] = part.a.flatten(0, 1)
            tensors[f"{PREFIX}{key}.lora_B.weight"] = part.b.permute(1, 2, 0).flatten(1)
            continue
        tensors |= own_tensors({name: part})
        (parameters if by_parameter(family, name) else modules).append(name)
    ranks = {name: part.rank for name, part in parts.items()}
    alphas = {name: alpha_of(part.scale, part.rank, settings.rslora) for name, part in parts.items()}
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    known = {name for name in there if not by_parameter(family, name)}
    other = {name for name in there if by_parameter(family, name)}
    values = {
        "task_type": "CAUSAL_LM",
        "peft_version": _PEFT_VERSION,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {re.escape(name): own for name, own in alphas.items() if own != alpha},
        # PEFT has no dropout for parameters; it would refuse the adapter for it.
        "lora_dropout": 0.0 if parameters else settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": any(part.magnitude is not None for part in parts.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _shortest(modules, known),
    }
    if parameters:
        stacks = {name for name in other if ".experts." in name}
        values["target_parameters"] = _shortest([p for p in parameters if p in stacks], stacks) + [
            f"{name}.weight" for name in parameters if name not in stacks
        ]
    return tensors, values


def alpha_of(scale: float, rank: int, rslora: bool) -> float:
    """The alpha that gives a scale, as a whole number where it is one."""
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha


def _usual(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _shortest(names: list[str], there: set[str]) -> list[str]:
    """Last parts of names (`q_proj`) where they mean exactly these, else the names themselves."""
    last = {name.rpartition(".")[2] for name in names}
    meant = {name for name in there if name.rpartition(".")[2] in last}
    return sorted(last) if meant == set(names) else sorted(names)


# ---- from PEFT -------------------------------------------------------------------------------------------------------------------

# What changes the base, or what the adapter computes, in ways that are not LoRA's.
_UNKNOWN = (
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "lora_bias",
)
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def from_peft(
    config: ModelConfig, values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Part], dict[str, Tensor]]:
    """Changes by our names, and whole tensors, out of an adapter of PEFT's.

    Args:
        config: the base's.
        values, where: adapter_config.json and its name.
    Raises:
        UserError: parts of PEFT that are not known here.
    """
    strange = [name for name in _UNKNOWN if values.get(name)]
    if strange:
        raise UserError(
            f"{where}: {strange[0]} is not supported; merge the adapter with PEFT (merge_and_unload) and load the model"
        )
    start = values.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        raise UserError(
            f"{where}: init_lora_weights={start} also changes the base; convert the adapter with PEFT, or merge it there"
        )
    odd = [key for key in tensors if "lora_embedding" in key]
    if odd:
        raise UserError(f"{where}: LoRA on an embedding ({odd[0]}) is not supported; merge the adapter with PEFT")
    found, whole = _gathered(tensors)
    parts: dict[str, Part] = {}
    for name, kinds in found.items():
        if "lora_A" not in kinds or "lora_B" not in kinds:
            raise UserError(f"{where}: {name} has only one of lora_A and lora_B; the file is not whole")
        if name.endswith((".experts", ".experts.base_layer")):
            stack = _stack_name(name, set(found), values)
            parts[stack] = _stacked(config, kinds, values, stack)
        else:
            rank = kinds["lora_A"].shape[0]
            parts[name] = Part(kinds["lora_A"], kinds["lora_B"], kinds.get("magnitude"), _scale(values, name, rank))
    parts = _joined_experts(config, parts)
    if config.model_type == "gpt2":
        parts, whole = _gpt2(parts), _gpt2_whole(whole)
    return parts, whole


def _scale(values: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = values.get("alpha_pattern") or {}
    alpha = next(
        (own for key, own in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), values.get("lora_alpha", 8)
    )
    return float(alpha) / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _stack_name(name: str, found: set[str], values: Mapping[str, Any]) -> str:
    """Which stack a change of PEFT's on `...mlp.experts` is of: of two nested ones the inner is the first that it met."""
    experts = name.removesuffix(".base_layer")
    if name != experts:
        return f"{experts}.gate_up_proj"
    if f"{experts}.base_layer" in found:
        return f"{experts}.down_proj"
    stack = f"{experts}.gate_up_proj"
    asked = any(f".{stack}".endswith(f".{target}") for target in values.get("target_parameters") or ())
    return stack if asked else f"{experts}.down_proj"


def _stacked(config: ModelConfig, kinds: Mapping[str, Tensor], values: Mapping[str, Any], name: str) -> Part:
    experts = config.n_routed_experts
    if not experts or kinds["lora_A"].shape[0] % experts:
        raise UserError(
            f"the adapter changes {name}, and this model has {experts or 'no'} experts; it is for another model"
        )
    a = kinds["lora_A"].unflatten(0, (experts, -1))
    b = kinds["lora_B"].unflatten(1, (-1, experts)).permute(2, 0, 1)
    return Part(a.contiguous(), b.contiguous(), None, _scale(values, name, a.shape[1]))


_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)")


def _joined_experts(config: ModelConfig, parts: Mapping[str, Part]) -> dict[str, Part]:
    """Each expert's own changes, as PEFT with transformers 4 writes them, as stacks; gate and up are one of twice the rank."""
    out: dict[str, Part] = {}
    single: dict[str, dict[tuple[int, str], Part]] = {}
    for name, part in parts.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            out[name] = part
        else:
            single.setdefault(match[1], {})[int(match[2]), match[3]] = part
    for experts, entries in single.items():
        downs = _filled(entries, "down_proj", config)
        if downs is not None:
            out[f"{experts}.down_proj"] = downs
        gate, up = (_filled(entries, kind, config) for kind in ("gate_proj", "up_proj"))
        if gate is not None or up is not None:
            out[f"{experts}.gate_up_proj"] = _side_by_side(gate, up, config)
    return out


def _filled(entries: Mapping[tuple[int, str], Part], kind: str, config: ModelConfig) -> Part | None:
    """One kind's changes of all experts; those that have none get zeros."""
    mine = {expert: part for (expert, own), part in entries.items() if own == kind}
    if not mine:
        return None
    first = next(iter(mine.values()))
    if any(part.magnitude is not None or part.rank != first.rank for part in mine.values()):
        raise UserError(
            f"DoRA, or several ranks, among the experts' {kind} is not supported; merge the adapter with PEFT"
        )
    zero = Part(torch.zeros_like(first.a), torch.zeros_like(first.b), None, first.scale)
    every = [mine.get(expert, zero) for expert in range(config.n_routed_experts)]
    b = torch.stack([part.b * (part.scale / first.scale) for part in every])
    return Part(torch.stack([part.a for part in every]), b, None, first.scale)


def _side_by_side(gate: Part | None, up: Part | None, config: ModelConfig) -> Part:
    one = gate or up
    assert one is not None
    zero = Part(torch.zeros_like(one.a[:, :0]), one.b.new_zeros(*one.b.shape[:2], 0), None, one.scale)
    gate, up = gate or zero, up or zero
    a = torch.cat((gate.a, up.a), dim=1)
    b = one.b.new_zeros(config.n_routed_experts, 2 * one.b.shape[1], a.shape[1])
    b[:, : one.b.shape[1], : gate.rank] = gate.b
    b[:, one.b.shape[1] :, gate.rank :] = up.b * (up.scale / gate.scale)
    return Part(a, b, None, gate.scale)


_GPT2 = {
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
}
_GPT2_TOP = {
    "transformer.wte": "model.embed_tokens",
    "transformer.wpe": "model.embed_positions",
    "transformer.ln_f": "model.norm",
}


def _gpt2_name(name: str) -> str:
    if name in _GPT2_TOP:
        return _GPT2_TOP[name]
    match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", name)
    return f"model.layers.{match[1]}.{_GPT2.get(match[2], match[2])}" if match else name


def _gpt2(parts: Mapping[str, Part]) -> dict[str, Part]:
    out = {}
    for name, part in parts.items():
        ours = _gpt2_name(name)
        if not ours.endswith("attn.c_attn"):
            out[ours] = part
            continue
        lengths = (None,) * 3 if part.magnitude is None else part.magnitude.chunk(3)
        for letter, b, length in zip("qkv", part.b.chunk(3), lengths, strict=True):
            stem = ours.removesuffix("attn.c_attn")
            out[f"{stem}self_attn.{letter}_proj"] = Part(part.a.clone(), b.contiguous(), length, part.scale)
    return out


def _gpt2_whole(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in whole.items():
        module, _, kind = name.rpartition(".")
        ours = _gpt2_name(module)
        if ours.endswith("c_attn"):
            raise UserError(f"{name} trained whole is not supported for GPT-2; merge the adapter with PEFT")
        matrix = kind == "weight" and ours.endswith("_proj")
        out[f"{ours}.{kind}"] = tensor.T.contiguous() if matrix else tensor
    return out
