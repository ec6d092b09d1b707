"""Tensors by GGUF's names and Hugging Face's, both ways, each made when it is asked for.

Where the two differ in more than names: Llama's query and key rows stand in the order of rotated pairs (0, 1), (2, 3), ..., not as
two halves; the experts of a layer are one stack; and the matrix that reads keys and values out of DeepSeek's latent is two, one a
head, the keys' transposed, so that attention can be absorbed (see `model.attention.LatentAttention`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.gguf.container import Reader
from tinyseek.model.gguf.hyperparameters import llama3_divisors

Floats = NDArray[np.float32]


class Part(NamedTuple):
    """A tensor that can be had: its shape, and how to make it."""

    shape: tuple[int, ...]
    make: Callable[[], Floats]


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_STACKS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_PASSED_OVER = {
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
}  # read with the keys, or unused


def to_pairs(rows: Floats, heads: int) -> Floats:
    """The rows of each head from two halves to pairs: (0, K/2), (1, K/2 + 1), ... become neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_halves(rows: Floats, heads: int) -> Floats:
    """The way back."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def parts_from_gguf(reader: Reader, config: ModelConfig) -> dict[str, Part]:
    """The tensors of a Hugging Face checkpoint out of an open file.

    Raises:
        UserError: a tensor that no model of the architecture has.
    """
    out: dict[str, Part] = {}
    for name, info in reader.tensors.items():
        if name in _TOP:
            out[_TOP[name]] = Part(info.shape, lambda name=name: reader.tensor(name))  # type: ignore[misc]
        elif match := re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name):
            layer, part, kind = int(match[1]), match[2], match[3]
            if layer < config.num_hidden_layers:  # beyond them are the multi-token prediction modules
                out |= _layer_from_gguf(reader, config, layer, part, kind)
        elif name not in _PASSED_OVER:
            raise UserError(f"{reader.path}: has a tensor {name}, which no model that tinyseek knows has")
    return out | _zero_biases(config, out)


def _layer_from_gguf(reader: Reader, config: ModelConfig, layer: int, part: str, kind: str) -> dict[str, Part]:
    """What one tensor of a layer is in a Hugging Face checkpoint: one, many (experts), or a half of one."""
    name, home = f"blk.{layer}.{part}.{kind}", f"model.layers.{layer}."
    info = reader.tensors[name]
    if config.model_type == "llama" and part in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if part == "attn_q" else config.kv_heads
        if info.shape[0] != heads * config.qk_dim:
            raise UserError(f"{reader.path}: {name} has {info.shape[0]} rows; its keys make it {heads * config.qk_dim}")
        return {f"{home}{_LAYER[part]}.{kind}": Part(info.shape, lambda: to_halves(reader.tensor(name), heads))}
    if part in _LAYER:
        return {f"{home}{_LAYER[part]}.{kind}": Part(info.shape, lambda: reader.tensor(name))}
    if part == "exp_probs_b":
        return {f"{home}mlp.gate.e_score_correction_bias": Part(info.shape, lambda: reader.tensor(name))}
    if part in _STACKS or part == "ffn_gate_up_exps":
        return dict(_experts_from_gguf(reader, config, name, home, part))
    if part in ("attn_k_b", "attn_v_b"):
        return {f"{home}self_attn.kv_b_proj.weight": _joined_latent(reader, config, layer)}
    if part in _PASSED_OVER or part == "rope_freqs":
        return {}
    raise UserError(f"{reader.path}: has a tensor {name}, which no model that tinyseek knows has")


def _experts_from_gguf(
    reader: Reader, config: ModelConfig, name: str, home: str, part: str
) -> Iterator[tuple[str, Part]]:
    info = reader.tensors[name]
    if len(info.shape) != 3 or info.shape[0] != config.n_routed_experts:
        raise UserError(f"{reader.path}: {name} is {list(info.shape)}, not {config.n_routed_experts} experts")
    for expert in range(info.shape[0]):
        whole = lambda expert=expert: reader.tensor(name, expert)  # noqa: E731
        if part in _STACKS:
            yield f"{home}mlp.experts.{expert}.{_STACKS[part]}.weight", Part(info.shape[1:], whole)
        else:
            inner = info.shape[1] // 2
            first = Part((inner, info.shape[2]), lambda whole=whole, inner=inner: whole()[:inner])  # type: ignore[misc]
            second = Part((info.shape[1] - inner, info.shape[2]), lambda whole=whole, inner=inner: whole()[inner:])  # type: ignore[misc]
            yield f"{home}mlp.experts.{expert}.gate_proj.weight", first
            yield f"{home}mlp.experts.{expert}.up_proj.weight", second


def _joined_latent(reader: Reader, config: ModelConfig, layer: int) -> Part:
    """kv_b_proj [H * (nope + v), C] out of attn_k_b [H, C, nope] and attn_v_b [H, v, C]."""
    names = [f"blk.{layer}.attn_{part}_b.weight" for part in "kv"]
    heads, latent = config.num_attention_heads, config.kv_lora_rank or 0
    wanted = [(heads, latent, config.qk_nope_head_dim), (heads, config.v_head_dim, latent)]
    for name, shape in zip(names, wanted, strict=True):
        if name not in reader.tensors:
            raise UserError(f"{reader.path}: the tensor {name} is not in it")
        if reader.tensors[name].shape != shape:
            raise UserError(
                f"{reader.path}: {name} is {list(reader.tensors[name].shape)}; its keys make it {list(shape)}"
            )

    def make() -> Floats:
        keys, values = (reader.tensor(name) for name in names)
        return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, latent)

    return Part((heads * (config.qk_nope_head_dim + config.v_head_dim), latent), make)


def _zero_biases(config: ModelConfig, found: Mapping[str, Part]) -> dict[str, Part]:
    """Llama's checkpoints have all biases of a kind or none; GGUF may leave some out, which are then nought."""
    if config.model_type != "llama" or not (config.qkv_bias or config.mlp_bias):
        return {}
    owners = [f"self_attn.{letter}_proj" for letter in "qkvo"] if config.qkv_bias else []
    owners += [f"mlp.{part}_proj" for part in ("gate", "up", "down")] if config.mlp_bias else []
    out = {}
    for layer in range(config.num_hidden_layers):
        for owner in owners:
            name = f"model.layers.{layer}.{owner}"
            if f"{name}.bias" not in found and f"{name}.weight" in found:
                rows = found[f"{name}.weight"].shape[0]
                out[f"{name}.bias"] = Part((rows,), lambda rows=rows: np.zeros(rows, np.float32))  # type: ignore[misc]
    return out


# ---- writing ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Layer:
    """One layer's tensors on their way out."""

    config: ModelConfig
    number: int
    given: dict[str, Part]  # by their names in the layer

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Names in the layer and tensors, in the order of `_LAYER`."""
        config, given = self.config, self.given
        for there, here in _LAYER.items():
            for kind in ("weight", "bias"):
                part = given.get(f"{here}.{kind}")
                if part is None:
                    continue
                if there == "attn_kv_b":
                    yield from self._split_latent(part)
                else:
                    yield f"{there}.{kind}", self._turned(there, part)
        if "mlp.gate.e_score_correction_bias" in given:
            yield "exp_probs_b.bias", given["mlp.gate.e_score_correction_bias"]
        if config.is_sparse(self.number):
            for there, here in _STACKS.items():
                yield f"{there}.weight", self._stack(here)
            if not config.n_shared_experts:
                yield from self._idle_expert()

    def _turned(self, there: str, part: Part) -> Part:
        """The rows that are rotated, in pairs: Llama's queries and keys, and DeepSeek's where they are kept as halves."""
        config = self.config
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.kv_heads}.get(there)
        if config.model_type == "llama" and heads:
            return Part(part.shape, lambda: to_pairs(part.make(), heads))
        if not config.mla or config.rope_interleave or there not in ("attn_q", "attn_q_b", "attn_kv_a_mqa"):
            return part

        def make() -> Floats:
            rows = part.make().copy()
            rotated = rows.reshape(1 if there == "attn_kv_a_mqa" else config.num_attention_heads, -1, rows.shape[1])
            for head in rotated:
                head[-config.qk_rope_head_dim :] = to_pairs(head[-config.qk_rope_head_dim :], 1)
            return rows

        return Part(part.shape, make)

    def _split_latent(self, part: Part) -> Iterator[tuple[str, Part]]:
        config = self.config
        heads, nope, latent = config.num_attention_heads, config.qk_nope_head_dim, part.shape[1]

        def keys() -> Floats:
            return np.ascontiguousarray(part.make().reshape(heads, -1, latent)[:, :nope].swapaxes(1, 2))

        def values() -> Floats:
            return np.ascontiguousarray(part.make().reshape(heads, -1, latent)[:, nope:])

        yield "attn_k_b.weight", Part((heads, latent, nope), keys)
        yield "attn_v_b.weight", Part((heads, config.v_head_dim, latent), values)

    def _stack(self, here: str) -> Part:
        experts = [self.given[f"mlp.experts.{e}.{here}.weight"] for e in range(self.config.n_routed_experts)]
        return Part((len(experts), *experts[0].shape), lambda: np.stack([part.make() for part in experts]))

    def _idle_expert(self) -> Iterator[tuple[str, Part]]:
        """llama.cpp must have a shared expert: one of noughts adds nothing."""
        inner, width = self.config.moe_intermediate_size, self.config.hidden_size
        for part, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            yield f"ffn_{part}_shexp.weight", Part(shape, lambda shape=shape: np.zeros(shape, np.float32))  # type: ignore[misc]


def parts_to_gguf(config: ModelConfig, given: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    """A file's tensors out of a Hugging Face checkpoint's, without its multi-token prediction modules.

    Args:
        given: the checkpoint's tensors by name, complete for `config`.
    """
    for there, here in _TOP.items():
        if here in given and not (there == "output.weight" and config.tie_word_embeddings):
            yield there, given[here]
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3":
        divisors = llama3_divisors(config.rope_scaling, config.rope_theta, config.rotary_dim)
        yield "rope_freqs.weight", Part(divisors.shape, lambda: divisors)
    for number in range(config.num_hidden_layers):
        home = f"model.layers.{number}."
        layer = {name.removeprefix(home): part for name, part in given.items() if name.startswith(home)}
        for name, part in _Layer(config, number, layer).parts():
            yield f"blk.{number}.{name}", part
