"""A look inside: what the model expected at every token of a text, how that came about layer by layer, which experts each token
went to, and where it attended.

One plain forward over the text with hooks. Attention is kept as what it is made from, every layer's queries and keys, so that a
token's weights [layers, H, S] are computed when they are asked for and never the T x T matrix of all. Likewise the guess of each
layer: the residual stream after it, read by the last norm and the head (the "logit lens", nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model.attention import Attention, LatentAttention, causal_mask
from tinyseek.model.rope import angles, rotate
from tinyseek.model.transformer import CausalLM

ALTERNATIVES = 10  # likeliest tokens kept a position
MOST_BYTES = 512 << 20  # that one inspection may keep: 4,200 tokens of SmolLM2-135M in float32
_LOGITS = 1 << 22  # logits computed at once: 16 MB


@dataclass(frozen=True)
class Routing:
    """Where one layer's mixture sent every token."""

    experts_TA: NDArray[np.int32]  # the chosen experts, the heaviest first
    weights_TA: NDArray[np.float32]  # their weights in the sum; they add up to the model's routed_scaling_factor


@dataclass(frozen=True)
class Guesses:
    """What the model would have said had it stopped after each layer."""

    ids_L: NDArray[np.int32]  # the likeliest token after each layer
    probs_L: NDArray[np.float32]  # its probability
    own_L: NDArray[np.float32]  # the probability of the token that came


@dataclass(frozen=True)
class Inspection:
    """What one forward over a text showed. Position t of each array is about token t; at 0 nothing was expected yet."""

    ids: tuple[int, ...]
    probs_T: NDArray[np.float32]  # the token's own probability after the tokens before it, at temperature 1; nan at 0
    ranks_T: NDArray[np.int32]  # 1: no token was likelier; 0 at 0
    top_ids_TK: NDArray[np.int32]  # the likeliest tokens, best first
    top_probs_TK: NDArray[np.float32]
    entropy_T: NDArray[np.float32]  # bits of the whole distribution: how undecided the model was
    routing: dict[int, Routing]  # layer -> its mixture; dense layers are not in it
    routed: int  # experts E a sparse layer; 0 without
    shared: int  # experts that every token visits
    layers: int
    heads: int
    vocabulary: int
    _traces: tuple[_Trace, ...]
    _norm: nn.Module  # the last one, and the head, as they were: an adapter may have been on them
    _head: nn.Module

    def attention(self, token: int) -> NDArray[np.float32]:
        """How much each head of each layer looked at every position up to the token's own.

        Args:
            token: a position in `ids`.
        Returns:
            float32 [layers, H, token + 1]; each row sums to 1.
        """
        if not 0 <= token < len(self.ids):
            raise IndexError(f"token {token} of {len(self.ids)}")
        with torch.inference_mode():
            rows = torch.stack([trace.row(token) for trace in self._traces])
        return rows.cpu().numpy()

    def guesses(self, token: int) -> Guesses:
        """How the expectation of a token came about, layer by layer; the last layer's is the model's own.

        Args:
            token: a position in `ids` after the first.
        """
        if not 0 < token < len(self.ids):
            raise IndexError(f"token {token} of {len(self.ids)}")
        with torch.inference_mode():
            stream_LD = torch.stack([trace.stream[token - 1] for trace in self._traces])
            dtype = next(self._norm.parameters()).dtype
            probs_LV = self._head(self._norm(stream_LD.to(dtype))).float().softmax(dim=-1)
            top = probs_LV.max(dim=-1)
        own_L = probs_LV[:, self.ids[token]]
        return Guesses(top.indices.int().cpu().numpy(), top.values.cpu().numpy(), own_L.cpu().numpy())


@dataclass
class _Trace:
    """One layer's queries and keys, and how they meet."""

    attention: Attention | LatentAttention
    queries: Tensor  # [T, H, width], not rotated yet
    keys: tuple[Tensor, ...]  # grouped: k [T, G, K]; latent: latent [T, C] and rotated key [T, R]
    turn: tuple[Tensor, Tensor] | None  # cos and sin [T, rotary / 2]
    window: int | None
    stream: Tensor  # [T, D] after the block, in bfloat16: good enough for a guess
    kv_b: nn.Module | None  # latent: what reads keys out of the latent

    def row(self, token: int) -> Tensor:
        """One query's weights, float32 [H, token + 1]."""
        first = 0 if self.window is None else max(0, token + 1 - self.window)
        scores_HS = self._scores(token, first) * self.attention.scale
        row_HS = scores_HS.new_zeros(scores_HS.shape[0], token + 1)
        row_HS[:, first:] = scores_HS.softmax(dim=-1)
        return row_HS

    def _scores(self, token: int, first: int) -> Tensor:
        """q k of the positions from `first` to the token's own, float32 [H, S]."""
        query, attention = self.queries[token], self.attention
        if isinstance(attention, LatentAttention):
            latent_SC, k_rope_SR = (part[first : token + 1] for part in self.keys)
            q_nope, q_rope = query.split((attention.nope, attention.rope), dim=-1)
            q_rope = self._turned(q_rope, token, attention.interleaved)
            assert self.kv_b is not None
            k_nope = self.kv_b(latent_SC).unflatten(-1, (attention.heads, -1))[..., : attention.nope]
            nope_HS = torch.einsum("hk,shk->hs", q_nope.float(), k_nope.float())
            return nope_HS + q_rope.float() @ k_rope_SR.float().T
        if attention.rotary:
            query = self._turned(query, token, False)
        k_SGK = self.keys[0][first : token + 1].float()
        scores = torch.einsum("gnk,sgk->gns", query.float().unflatten(0, (attention.groups, -1)), k_SGK)
        return scores.flatten(0, 1)

    def _turned(self, query: Tensor, token: int, interleaved: bool) -> Tensor:
        assert self.turn is not None
        cos, sin = (table[token] for table in self.turn)
        return rotate(query, cos, sin, interleaved)


class _Recorder:
    """A cache in name only: it hands back what it is given, as one prefill, and remembers the keys."""

    def __init__(self, device: torch.device) -> None:
        self.keys: dict[int, tuple[Tensor, ...]] = {}
        self._device = device

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        kept = new[:1] if new[0].ndim == 4 else new  # grouped attention's values are not needed
        self.keys[layer] = tuple(part[0] for part in kept)
        return new

    def positions(self, new: int) -> Tensor:
        return torch.arange(new, device=self._device)

    def mask(self, new: int, window: int | None = None) -> Tensor | None:
        return None if window is None or new <= window else causal_mask(new, new, self._device, window)


@torch.inference_mode()
def inspect(model: CausalLM, ids: Sequence[int], most_bytes: int = MOST_BYTES) -> Inspection:
    """Read a text once and keep what went on inside. No other thread may run the model meanwhile.

    Args:
        ids: the text, control tokens included.
        most_bytes: to be kept.
    Raises:
        UserError: no token, one beyond the vocabulary, more than the context holds, or more than `most_bytes` allow.
    """
    config = model.config
    _check(model, ids, most_bytes)
    device = model.device
    recorder = _Recorder(device)
    queries: dict[int, Tensor] = {}
    streams: dict[int, Tensor] = {}
    routes: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = []
    for layer, block in enumerate(model.model.layers):
        attention: Any = block.self_attn
        latent_query = isinstance(attention, LatentAttention) and attention.low_rank_query
        projection = attention.q_b_proj if latent_query else attention.q_proj
        hooks.append(projection.register_forward_hook(_keep_queries(queries, layer, attention.heads)))
        hooks.append(block.register_forward_hook(_keep_stream(streams, layer)))
    for layer, mixture in model.experts():
        if layer < config.num_hidden_layers:
            hooks.append(mixture.gate.register_forward_hook(_keep_routes(routes, layer)))
    try:
        hidden_BTD, _, _ = model.hidden(torch.tensor([list(ids)], device=device), cache=recorder)
    finally:
        for hook in hooks:
            hook.remove()
    turn = angles(config, len(ids), device) if config.positions == "rotary" else None
    traces = tuple(
        _Trace(
            block.self_attn,  # type: ignore[arg-type]
            queries[layer],
            recorder.keys[layer],
            turn,
            config.window(layer),
            streams[layer],
            getattr(block.self_attn, "kv_b_proj", None),
        )
        for layer, block in enumerate(model.model.layers)
    )
    probs, ranks, top_ids, top_probs, entropy = _expectations(model.lm_head, config.vocab_size, hidden_BTD[0], ids)
    return Inspection(
        tuple(ids),
        probs,
        ranks,
        top_ids,
        top_probs,
        entropy,
        {layer: _routing(*route) for layer, route in routes.items()},
        config.n_routed_experts,
        config.n_shared_experts if config.n_routed_experts else 0,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.vocab_size,
        traces,
        model.model.norm,
        model.lm_head,
    )


def most_tokens(model: CausalLM, most_bytes: int = MOST_BYTES) -> int:
    """The longest text that `inspect` takes, tokens."""
    config = model.config
    queries = config.num_hidden_layers * config.num_attention_heads * config.qk_dim
    keys = config.cache_numbers() if config.mla else config.cache_numbers() // 2
    stream = config.num_hidden_layers * config.hidden_size
    per_token = (queries + keys) * next(model.model.norm.parameters()).element_size() + stream * 2
    return min(config.max_position_embeddings, most_bytes // per_token)


def _check(model: CausalLM, ids: Sequence[int], most_bytes: int) -> None:
    if not len(ids):
        raise UserError("there is no token to look into")
    most = most_tokens(model, most_bytes)
    if len(ids) > most:
        raise UserError(f"the text has {len(ids)} tokens; a look inside takes at most {most}")
    if not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
        raise UserError(f"token {max(ids)} is beyond the model's vocabulary of {model.config.vocab_size}")


Hook = Callable[[nn.Module, Any, Any], None]


def _keep_queries(kept: dict[int, Tensor], layer: int, heads: int) -> Hook:
    def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
        kept[layer] = out[0].unflatten(-1, (heads, -1))

    return hook


def _keep_stream(kept: dict[int, Tensor], layer: int) -> Hook:
    def hook(_module: nn.Module, _args: Any, out: tuple[Tensor, ...]) -> None:
        kept[layer] = out[0][0].bfloat16()

    return hook


def _keep_routes(kept: dict[int, tuple[Tensor, Tensor]], layer: int) -> Hook:
    def hook(_module: nn.Module, _args: Any, out: tuple[Tensor, ...]) -> None:
        kept[layer] = (out[0], out[1])

    return hook


def _routing(chosen_TA: Tensor, weights_TA: Tensor) -> Routing:
    weights_TA, order_TA = weights_TA.float().sort(dim=-1, descending=True)
    chosen_TA = chosen_TA.gather(-1, order_TA)
    return Routing(chosen_TA.int().cpu().numpy(), weights_TA.cpu().numpy())


def _expectations(head: nn.Module, vocabulary: int, hidden_TD: Tensor, ids: Sequence[int]) -> tuple[NDArray[Any], ...]:
    """Each token's probability and rank among what was expected in its place, the likeliest tokens, and the entropy.

    Position by position in slices, so that [T, V] never exists.
    """
    count = len(ids)
    most = min(ALTERNATIVES, vocabulary)
    probs = np.full(count, np.nan, np.float32)
    entropy = np.full(count, np.nan, np.float32)
    ranks = np.zeros(count, np.int32)
    top_ids = np.zeros((count, most), np.int32)
    top_probs = np.zeros((count, most), np.float32)
    targets_T = torch.tensor(list(ids), device=hidden_TD.device)
    size = max(1, _LOGITS // vocabulary)
    for start in range(1, count, size):
        end = min(count, start + size)
        logprobs_SV = head(hidden_TD[start - 1 : end - 1]).float().log_softmax(dim=-1)
        own_S1 = logprobs_SV.gather(-1, targets_T[start:end, None])
        top = logprobs_SV.topk(most, dim=-1)
        probs[start:end] = own_S1[:, 0].exp().cpu().numpy()
        ranks[start:end] = ((logprobs_SV > own_S1).sum(-1) + 1).int().cpu().numpy()
        top_ids[start:end] = top.indices.int().cpu().numpy()
        top_probs[start:end] = top.values.exp().cpu().numpy()
        nats = torch.special.entr(logprobs_SV.exp()).sum(-1)
        entropy[start:end] = (nats / np.log(2.0)).cpu().numpy()
    return probs, ranks, top_ids, top_probs, entropy
