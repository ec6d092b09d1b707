"""A model's forward pass over a few rows as compiled loops, on the model's own weights and the engine's paged cache.

`runner.py` chooses between this and the model itself; it serves a CPU and the families with RMSNorm, SwiGLU and rotary positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyseek.engine.quantize import COMPILED, FEW, PackedExperts, PackedWeight, arrays, threads
from tinyseek.model.attention import LatentAttention
from tinyseek.model.block import Block
from tinyseek.model.layers import MLP
from tinyseek.model.moe import MixtureOfExperts
from tinyseek.model.mtp import MTPModule
from tinyseek.model.rope import angles, softmax_scale
from tinyseek.model.transformer import CausalLM


def is_compiled(model: CausalLM) -> bool:
    """Whether the loops serve this model: numba is there, a CPU, float32 beside the packed matrices, a family that they know."""
    config = model.config
    known = (
        config.norm == "rmsnorm" and config.activation == "silu" and config.gated_mlp and config.positions == "rotary"
    )
    norm = next(model.model.norm.parameters())
    return COMPILED and known and not config.mlp_bias and norm.device.type == "cpu" and norm.dtype == torch.float32


class CompiledModel:
    """The model as runs of layers that are alike, each one call.

    The weights stay the model's own: those of a run are moved into one stack, whose parts the model's parameters then are.

    Args:
        stores: the cache's two tensors [layers, slots, ...], float32; the MTP modules' layers come after the model's own.
        size: positions a block of the cache.
        length: the longest sequence.
    """

    def __init__(self, model: CausalLM, stores: tuple[Tensor, Tensor], size: int, length: int) -> None:
        from tinyseek.engine import loops  # numba is an extra

        self.loops: Any = loops  # whose types know nothing of tuples of many kinds
        self.model, self.stores = model, stores
        self.threads = threads()
        cos, sin = angles(model.config, length)
        self._shared = (cos.numpy(), sin.numpy(), float(softmax_scale(model.config)), size)
        self._runs = [self._run_of(first, blocks) for first, blocks in _alike(model, stores[0].shape[0])]

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
        return self._normed(x_ND, self.model.model.norm)

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
        return self._normed(x_ND, module.shared_head.norm)

    def _normed(self, x_ND: Tensor, norm: nn.Module) -> Tensor:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        return torch.from_numpy(self.loops.rms_norms(x_ND.numpy(), weight.detach().numpy(), self.model.config.norm_eps))

    @torch.inference_mode()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head, float32 [N, V]: by the loops for a few rows, of which torch's products make more fuss than use."""
        head, rows = self.model.lm_head, hidden_ND.shape[0]
        if not isinstance(head, nn.Linear) or head.bias is not None or rows > FEW:
            logits_NV: Tensor = head(hidden_ND)
            return logits_NV
        out_NV = torch.zeros(rows, head.out_features)
        weight = (head.weight.detach().numpy(),)
        self.loops.add_product(threads(), weight, hidden_ND.contiguous().numpy(), out_NV.numpy())
        return out_NV

    def _run(self, first: int, last: int, x_ND: Tensor, *where: Tensor) -> None:
        """Layers `first` to `last`, each of which begins or ends a run."""
        count = threads()  # this may be another thread than the one that made the model ready
        at, x = tuple(tensor.numpy() for tensor in where), x_ND.numpy()
        for start, attention, mlp, stores in self._runs:
            if first <= start < last:
                self.loops.run_layers(count, x, self.model.config.norm_eps, attention, mlp, self._shared, stores, at)

    def _run_of(self, first: int, blocks: list[Block]) -> tuple[int, Any, Any, Any]:
        """What `loops.run_layers` wants to know of layers that are alike."""
        stores = tuple(store[first : first + len(blocks)].numpy() for store in self.stores)
        attention = [block.self_attn for block in blocks]
        norm = _vectors([block.input_layernorm for block in blocks])
        if isinstance(attention[0], LatentAttention):
            return first, (norm, *self._latent(attention)), self._mlp(blocks), stores
        return first, (norm, *self._grouped(attention)), self._mlp(blocks), stores

    def _latent(self, layers: Sequence[Any]) -> Any:
        low, none = layers[0].low_rank_query, [None] * len(layers)
        return (
            _weights([layer.q_a_proj for layer in layers] if low else none),
            _vectors([layer.q_a_layernorm for layer in layers] if low else none),
            _weights([layer.q_b_proj if low else layer.q_proj for layer in layers]),
            _weights([layer.kv_a_proj_with_mqa for layer in layers]),
            _vectors([layer.kv_a_layernorm for layer in layers]),
            _stack([layer.kv_b_proj.weight for layer in layers]).numpy(),
            _weights([layer.o_proj for layer in layers]),
            (layers[0].heads, layers[0].nope, layers[0].value),
            layers[0].interleaved,
        )

    def _grouped(self, layers: Sequence[Any]) -> Any:
        kinds = [[getattr(layer, f"{kind}_proj") for layer in layers] for kind in "qkvo"]
        windows = [self.model.config.window(layer.layer) or 0 for layer in layers]
        biases = [_vectors([projection.bias for projection in kind]) for kind in kinds]
        return (*(_weights(kind) for kind in kinds), *biases, np.array(windows), 0)

    def _mlp(self, blocks: list[Block]) -> Any:
        config, layers = self.model.config, [block.mlp for block in blocks]
        norm = _vectors([block.post_attention_layernorm for block in blocks])
        if isinstance(layers[0], MLP):
            return (norm, *(_weights([getattr(layer, part) for layer in layers]) for part in _PARTS))
        mixtures = [layer for layer in layers if isinstance(layer, MixtureOfExperts)]
        routers = [mixture.gate for mixture in mixtures]
        biased, sigmoid = config.topk_method == "noaux_tc", config.scoring_func == "sigmoid"
        bias_LE = torch.zeros(len(routers), config.n_routed_experts)
        if biased:
            bias_LE = _stack([router.e_score_correction_bias for router in routers])
        groups = config.n_group if config.topk_method != "greedy" else 1
        kept = config.topk_group if groups > 1 else 1
        experts = [mixture.experts for mixture in mixtures]
        if isinstance(experts[0], PackedExperts):
            stacks = [_packed([getattr(expert, part) for expert in experts]) for part in ("gate_up", "down")]
        else:
            parts = ("gate_up_proj", "down_proj")
            stacks = [(_stack([getattr(expert, part) for expert in experts]).numpy(),) for part in parts]
        shared = [[getattr(mixture.shared_experts, part, None) for mixture in mixtures] for part in _PARTS]
        return (
            norm,
            (_stack([router.weight for router in routers]).numpy(),),
            bias_LE.numpy(),
            *stacks,
            *(_weights(part) for part in shared),
            (config.num_experts_per_tok, groups, kept, sigmoid, biased, config.norm_topk_prob and sigmoid),
            config.routed_scaling_factor,
        )


_PARTS = ("gate_proj", "up_proj", "down_proj")


def _alike(model: CausalLM, count: int) -> Iterator[tuple[int, list[Block]]]:
    """Runs of neighbouring layers of one kind: the first one's number, and the blocks. Each MTP module is a run of its own."""
    start, blocks, config = 0, [*model.model.layers], model.config
    while start < len(blocks):
        end = start + 1
        while end < len(blocks) and config.is_sparse(end) == config.is_sparse(start):
            end += 1
        yield start, [block for block in blocks[start:end] if isinstance(block, Block)]
        start = end
    for layer in range(len(blocks), count):
        module = model.mtp[layer - len(blocks)]
        assert isinstance(module, Block)
        yield layer, [module]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one; where they do not lie so yet, they are moved, and stay what they were as its parts."""
    first, size = tensors[0].detach(), tensors[0].numel()
    together = all(
        tensor.is_contiguous()
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + place * size
        for place, tensor in enumerate(tensors)
    )
    if together:
        return first.as_strided((len(tensors), *first.shape), (size, *first.stride()))
    whole = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, whole, strict=True):
        tensor.data = part
    return whole


def _weights(modules: Sequence[nn.Module | None]) -> Any:
    """Linear layers' weights as products.py takes a stack of them; one without rows where there are none."""
    if modules[0] is None:
        return (torch.zeros(len(modules), 0, 0).numpy(),)
    if isinstance(modules[0], PackedWeight):
        return _packed(modules)
    return (_stack([linear.weight for linear in modules if isinstance(linear, nn.Linear)]).numpy(),)


def _packed(modules: Sequence[Any]) -> Any:
    return arrays(tuple(_stack(parts) for parts in zip(*(module.parts for module in modules), strict=True)))


def _vectors(sources: Sequence[Any]) -> Any:
    """Norms' weights, or biases; of no length where there are none."""
    if sources[0] is None:
        return torch.zeros(len(sources), 0).numpy()
    return _stack([source if isinstance(source, Tensor) else source.weight for source in sources]).numpy()
