"""The decoding step of a small model on a CPU: one token through compiled layers, on the model's own weights and cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinyseek.engine.cache import ContiguousCache
from tinyseek.model.attention import Attention, LatentAttention
from tinyseek.model.block import Block
from tinyseek.model.config import ModelConfig
from tinyseek.model.moe import MixtureOfExperts
from tinyseek.model.rope import angles
from tinyseek.model.transformer import CausalLM

# Above this, a matrix is better read by all cores at once than by one without a pause: torch's products are then as fast.
LARGEST_MATRIX_BYTES = 4 << 20


def is_compiled(model: CausalLM) -> bool:
    """Whether the compiled step serves this model: numba is there, a CPU, float32, a family that it knows, small matrices."""
    config = model.config
    known = (
        config.norm == "rmsnorm" and config.activation == "silu" and config.gated_mlp and config.positions == "rotary"
    )
    plain = not config.mlp_bias and model.device.type == "cpu" and model.lm_head.weight.dtype == torch.float32
    inner = max(config.intermediate_size, config.num_attention_heads * config.qk_dim)
    small = 4 * config.hidden_size * inner <= LARGEST_MATRIX_BYTES
    return known and plain and small and importlib.util.find_spec("numba") is not None


class CompiledStep:
    """One sequence's next-token logits, a token at a time.

    Args:
        cache: of one sequence, filled with the prompt by the model itself; its tensors are written in place.
    """

    def __init__(self, model: CausalLM, cache: ContiguousCache) -> None:
        import numba

        self.model, self.cache = model, cache
        settings: Any = numba.config
        threads = min(torch.get_num_threads(), settings.NUMBA_NUM_THREADS)
        numba.set_num_threads(threads)
        self.cos, self.sin = (table.numpy() for table in angles(model.config, cache.capacity))
        self.layers: list[Callable[..., None]] = []
        for index, block in enumerate(model.model.layers):
            assert isinstance(block, Block)
            self.layers.append(_attention(threads, block, model.config, cache.stores(index)))
            self.layers.append(_mlp(threads, block, model.config))

    @torch.inference_mode()
    def __call__(self, token: int) -> Tensor:
        """Append a token and return the logits after it, float32 [1, V]."""
        position = self.cache.length
        x_1D = self.model.model.embed_tokens.weight[token : token + 1].detach().clone()
        x_D, turn = x_1D[0].numpy(), (self.cos[position], self.sin[position], position)
        for layer in self.layers:
            layer(x_D, *turn)
        self.cache.length = position + 1
        logits: Tensor = self.model.lm_head(self.model.model.norm(x_1D))
        return logits


def _array(tensor: Tensor | nn.Module | None, dimensions: int = 2) -> Any:
    """A weight's memory as a NumPy array, without a copy; an empty one where there is no weight."""
    if tensor is None:
        return torch.zeros((0,) * dimensions).numpy()
    weight = tensor if isinstance(tensor, Tensor) else tensor.weight
    assert isinstance(weight, Tensor)
    return weight.detach().contiguous().numpy()


def _attention(threads: int, block: Block, config: ModelConfig, stores: list[Tensor]) -> Callable[..., None]:
    from tinyseek.engine import kernels

    layer, norm = block.self_attn, _array(block.input_layernorm)
    first, second = (store[0].numpy() for store in stores)
    if isinstance(layer, LatentAttention):
        low = layer.low_rank_query
        query = (_array(layer.q_a_proj if low else None), _array(layer.q_a_layernorm if low else None, 1))
        query_b = _array(layer.q_b_proj if low else layer.q_proj)
        rest = (
            _array(layer.kv_a_proj_with_mqa),
            _array(layer.kv_a_layernorm),
            _array(layer.kv_b_proj),
            _array(layer.o_proj),
        )
        sizes = (layer.heads, layer.nope, layer.value)

        def latent(x_D: Any, cos: Any, sin: Any, position: int) -> None:
            kernels.latent_attention(
                threads,
                x_D,
                norm,
                config.norm_eps,
                *query,
                query_b,
                *rest,
                sizes,
                cos,
                sin,
                layer.interleaved,
                layer.scale,
                first,
                second,
                position,
            )

        return latent
    assert isinstance(layer, Attention)
    projections = (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
    weights: Any = [_array(projection) for projection in projections]
    biases: Any = [_array(projection.bias, 1) for projection in projections]
    window = config.window(layer.layer) or 0
    grouped_kernel: Any = kernels.attention  # numba's types know nothing of unpacking

    def grouped(x_D: Any, cos: Any, sin: Any, position: int) -> None:
        grouped_kernel(
            threads,
            x_D,
            norm,
            config.norm_eps,
            *weights,
            *biases,
            cos,
            sin,
            layer.scale,
            window,
            first,
            second,
            position,
        )

    return grouped


def _mlp(threads: int, block: Block, config: ModelConfig) -> Callable[..., None]:
    from tinyseek.engine import kernels

    layer, norm = block.mlp, _array(block.post_attention_layernorm)
    if not isinstance(layer, MixtureOfExperts):
        weights = (_array(layer.gate_proj), _array(layer.up_proj), _array(layer.down_proj))
        return lambda x_D, *_: kernels.dense(threads, x_D, norm, config.norm_eps, *weights)
    gate, shared = layer.gate, layer.shared_experts
    biased = config.topk_method == "noaux_tc"
    bias = gate.e_score_correction_bias if biased else torch.zeros(config.n_routed_experts)
    arrays: Any = (
        _array(gate.weight),
        _array(bias),
        _array(layer.experts.gate_up_proj),
        _array(layer.experts.down_proj),
    )
    arrays += (
        tuple(_array(part) for part in (shared.gate_proj, shared.up_proj, shared.down_proj))
        if shared
        else (_array(None),) * 3
    )
    sigmoid = config.scoring_func == "sigmoid"
    groups = config.n_group if config.topk_method != "greedy" else 1
    kept = config.topk_group if groups > 1 else 1
    routing = (config.num_experts_per_tok, groups, kept, sigmoid, biased, config.norm_topk_prob and sigmoid)
    scaling = config.routed_scaling_factor
    kernel: Any = kernels.mixture
    return lambda x_D, *_: kernel(threads, x_D, norm, config.norm_eps, *arrays, routing, scaling)
