"""A model's forward pass over a few rows as compiled loops, on the model's own weights and the engine's paged cache.

`runner.py` chooses between this and the model itself; it serves a CPU and the families with RMSNorm, SwiGLU and rotary positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinyseek.engine.quantize import COMPILED, PackedExperts, PackedWeight, arrays, threads
from tinyseek.model.attention import Attention, LatentAttention
from tinyseek.model.block import Block
from tinyseek.model.config import ModelConfig
from tinyseek.model.layers import MLP
from tinyseek.model.moe import MixtureOfExperts
from tinyseek.model.mtp import MTPModule
from tinyseek.model.rope import angles
from tinyseek.model.transformer import CausalLM

# A layer's work on a step: hidden states, changed in place, then positions, slots, rows and tables (see loops.py).
Layer = Callable[[Any, Any, Any, Any, Any], None]


def is_compiled(model: CausalLM) -> bool:
    """Whether the loops serve this model: numba is there, a CPU, float32 beside the packed matrices, a family that they know."""
    config = model.config
    known = (
        config.norm == "rmsnorm" and config.activation == "silu" and config.gated_mlp and config.positions == "rotary"
    )
    norm = next(model.model.norm.parameters())
    return COMPILED and known and not config.mlp_bias and norm.device.type == "cpu" and norm.dtype == torch.float32


class CompiledModel:
    """The model as a list of layers over rows.

    Args:
        stores: of every layer (the MTP modules' after the model's own) the cache's two tensors [slots, ...], float32.
        size: positions a block of the cache.
        length: the longest sequence.
    """

    def __init__(self, model: CausalLM, stores: list[tuple[Tensor, Tensor]], size: int, length: int) -> None:
        self.model = model
        self.threads = threads()
        cos, sin = angles(model.config, length)
        self._turn = (cos.numpy(), sin.numpy())
        blocks = [*model.model.layers, *model.mtp]
        self._layers: list[list[Layer]] = []
        for block, store in zip(blocks, stores, strict=False):
            assert isinstance(block, Block)
            self._layers.append([self._attention(block, store, size), self._mlp(block)])

    @torch.inference_mode()
    def forward(
        self, tokens_N: Tensor, positions_N: Tensor, slots_N: Tensor, rows_N: Tensor, tables_RB: Tensor
    ) -> Tensor:
        """Hidden states after the last norm, float32 [N, D]; the rows' keys are in the cache afterwards.

        Args:
            tokens_N, positions_N, slots_N: each row's token, its position, and the slot for its keys; int64. Several rows may be
                of one sequence: each sees the earlier ones.
            rows_N: which row of `tables_RB` is its sequence's; tables_RB: block numbers, int64.
        """
        x_ND = self.model.model.embed_tokens(tokens_N).float()
        self._run(0, self.model.config.num_hidden_layers, x_ND, positions_N, slots_N, rows_N, tables_RB)
        hidden_ND: Tensor = self.model.model.norm(x_ND)
        return hidden_ND

    @torch.inference_mode()
    def ahead(self, depth: int, hidden_ND: Tensor, following_N: Tensor, *where: Tensor) -> Tensor:
        """A multi-token prediction module's hidden states [N, D]: the head turns row i's into the token after the following one.

        Args:
            hidden_ND: the previous depth's, for depth 0 what `forward` gave; following_N: the token after each row's.
            where: positions, slots, rows and tables as `forward` takes them.
        """
        model = self.model
        module = model.mtp[depth]
        assert isinstance(module, MTPModule)
        embedded_ND = model.model.embed_tokens(following_N).to(hidden_ND.dtype)
        x_ND = module.eh_proj(torch.cat((module.enorm(embedded_ND), module.hnorm(hidden_ND)), dim=-1))
        layer = model.config.num_hidden_layers + depth
        self._run(layer, layer + 1, x_ND, *where)
        out_ND: Tensor = module.shared_head.norm(x_ND)
        return out_ND

    @torch.inference_mode()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head, float32 [N, V]."""
        head: Tensor = self.model.lm_head(hidden_ND)
        return head

    def _run(self, first: int, last: int, x_ND: Tensor, *where: Tensor) -> None:
        threads()  # this may be another thread than the one that made the model ready
        at, x = tuple(tensor.numpy() for tensor in where), x_ND.numpy()
        for layer in self._layers[first:last]:
            for half in layer:
                half(x, *at)

    def _attention(self, block: Block, stores: tuple[Tensor, Tensor], size: int) -> Layer:
        from tinyseek.engine import loops

        config: ModelConfig = self.model.config
        layer, start = block.self_attn, (self.threads,)
        norm, cache = (_vector(block.input_layernorm), config.norm_eps), (*(s.numpy() for s in stores), size)
        if isinstance(layer, LatentAttention):
            low = layer.low_rank_query
            weights: Any = (
                _weight(layer.q_a_proj) if low else _no_weight(),
                _vector(layer.q_a_layernorm) if low else _vector(None),
                _weight(layer.q_b_proj if low else layer.q_proj),
                _weight(layer.kv_a_proj_with_mqa),
                _vector(layer.kv_a_layernorm),
                layer.kv_b_proj.weight.detach().numpy(),
                _weight(layer.o_proj),
            )
            rest = ((layer.heads, layer.nope, layer.value), *self._turn, layer.interleaved, layer.scale, *cache)
            latent: Any = loops.latent_attention  # numba's types know nothing of unpacking
            return lambda x, positions, slots, rows, tables: latent(
                *start, x, *norm, *weights, *rest, positions, slots, rows, tables
            )
        assert isinstance(layer, Attention)
        projections = (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
        weights = (*(_weight(p) for p in projections), *(_vector(p.bias) for p in projections))
        rest = (*self._turn, layer.scale, config.window(layer.layer) or 0, *cache)
        grouped: Any = loops.grouped_attention
        return lambda x, positions, slots, rows, tables: grouped(
            *start, x, *norm, *weights, *rest, positions, slots, rows, tables
        )

    def _mlp(self, block: Block) -> Layer:
        from tinyseek.engine import loops

        config, layer = self.model.config, block.mlp
        before = (_vector(block.post_attention_layernorm), config.norm_eps)
        if isinstance(layer, MLP):
            weights: Any = (_weight(layer.gate_proj), _weight(layer.up_proj), _weight(layer.down_proj))
            dense: Any = loops.dense_mlp
            return lambda x, *_: dense(self.threads, x, *before, *weights)
        assert isinstance(layer, MixtureOfExperts)
        gate, shared = layer.gate, layer.shared_experts
        biased = config.topk_method == "noaux_tc"
        bias = gate.e_score_correction_bias if biased else torch.zeros(config.n_routed_experts)
        experts = layer.experts
        if isinstance(experts, PackedExperts):
            stacks: Any = (arrays(experts.gate_up.parts), arrays(experts.down.parts))
        else:
            stacks = ((experts.gate_up_proj.detach().numpy(),), (experts.down_proj.detach().numpy(),))
        always = (shared.gate_proj, shared.up_proj, shared.down_proj) if shared else (None, None, None)
        weights = ((gate.weight.detach().numpy(),), bias.numpy(), *stacks, *(_weight(part) for part in always))
        sigmoid = config.scoring_func == "sigmoid"
        groups = config.n_group if config.topk_method != "greedy" else 1
        kept = config.topk_group if groups > 1 else 1
        routing = (config.num_experts_per_tok, groups, kept, sigmoid, biased, config.norm_topk_prob and sigmoid)
        mixture: Any = loops.mixture
        return lambda x, *_: mixture(self.threads, x, *before, *weights, routing, config.routed_scaling_factor)


def _weight(module: nn.Module | None) -> Any:
    """A linear layer's weight as products.py takes it."""
    if module is None:
        return _no_weight()
    if isinstance(module, PackedWeight):
        return arrays(module.parts)
    assert isinstance(module, nn.Linear)
    return (module.weight.detach().numpy(),)


def _no_weight() -> Any:
    return (torch.zeros(0, 0).numpy(),)


def _vector(source: nn.Module | Tensor | None) -> Any:
    """A norm's weight or a bias; an empty array where there is none."""
    if source is None:
        return torch.zeros(0).numpy()
    weight = source if isinstance(source, Tensor) else source.weight
    assert isinstance(weight, Tensor)
    return weight.detach().numpy()
