"""The layers as plain loops that numba compiles: a few rows, of any sequences, through attention over paged blocks and MLPs.

A small model spends most of a decoding step on starting operations, not on arithmetic: about seventy calls a layer of a few
microseconds each. Here a layer is two calls. The loops are the equations, which makes this the shortest description of the model in
the house; `model/` is the other form, and a test holds the two equal.

A row is one token of one sequence; N rows are one step's batch: the last token of each stream, a short prompt, drafts to be
verified. Row n writes its keys at `slots_N[n]` and attends to positions 0..`positions_N[n]` of its sequence, whose position p lies
in slot `tables_RB[rows_N[n], p // size] * size + p % size`. Activations are float32; x_ND is changed in place, by adding the
layer's update. Letters as in model/config.py; the formats of weights are those of products.py.
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from tinyseek.engine.products import (
    Array,
    add_product,
    at,
    blocks,
    compiled,
    copy,
    exp,
    gated_product,
    parallel,
    times_rows,
    visits_in,
    visits_out,
)
from tinyseek.engine.tiles import TILE

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LEAST = -np.float32(3e38)


@compiled
def rms_norm(x_D: Array, weight_D: Array, eps: float, out_D: Array) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight."""
    total = _ZERO
    for d in range(x_D.shape[0]):
        total += x_D[d] * x_D[d]
    inverse = np.float32(1.0 / np.sqrt(total / x_D.shape[0] + eps))
    for d in range(x_D.shape[0]):
        out_D[d] = x_D[d] * inverse * weight_D[d]


@compiled
def rms_norms(x_ND: Array, weight_D: Array, eps: float) -> Array:
    """Every row's, in a new array."""
    out_ND = np.empty_like(x_ND)
    for n in range(x_ND.shape[0]):
        rms_norm(x_ND[n], weight_D, eps, out_ND[n])
    return out_ND


@compiled
def rotate(x_R: Array, cos: Array, sin: Array, interleaved: bool, out_R: Array) -> None:
    """Turn each pair by its angle; pairs are neighbours or halves apart, and come out as halves (rope.rotate)."""
    half = cos.shape[0]
    for i in range(half):
        a = x_R[2 * i] if interleaved else x_R[i]
        b = x_R[2 * i + 1] if interleaved else x_R[i + half]
        out_R[i] = a * cos[i] - b * sin[i]
        out_R[i + half] = b * cos[i] + a * sin[i]


@compiled
def softmax(scores_S: Array) -> None:
    """In place."""
    top = scores_S[0]
    for s in range(scores_S.shape[0]):
        top = max(top, scores_S[s])
    total = _ZERO
    for s in range(scores_S.shape[0]):
        scores_S[s] = exp(scores_S[s] - top)
        total += scores_S[s]
    for s in range(scores_S.shape[0]):
        scores_S[s] /= total


def _latent(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, shared: Any, stores: Any, where: Any) -> None:
    """Multi-head latent attention, absorbed (attention.LatentAttention.absorbed): all heads read the cached latents themselves."""
    # Where the query has no low rank, low_query and query_norm are empty.
    norm_LD, low_query, query_norm_LP, query, kv_a, kv_norm_LC, kv_b, output, sizes, interleaved = weights
    cos, sin, scale, size = shared
    positions_N, slots_N, rows_N, tables_RB = where
    latents_SC, rotaries_SR, kv_b_PC = stores[0][layer], stores[1][layer], kv_b[layer]
    query_norm, kv_norm_C = query_norm_LP[layer], kv_norm_LC[layer]
    heads, nope, value = sizes
    latent, rope, rows = latents_SC.shape[1], rotaries_SR.shape[1], x_ND.shape[0]
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    query_NQ = np.zeros((rows, heads * (nope + rope)), np.float32)
    if query_norm.shape[0] > 0:
        low_NL = np.zeros((rows, query_norm.shape[0]), np.float32)
        add_product(threads, at(low_query, layer), normed_ND, low_NL)
        add_product(threads, at(query, layer), rms_norms(low_NL, query_norm, 1e-6), query_NQ)
    else:
        add_product(threads, at(query, layer), normed_ND, query_NQ)
    compressed_NJ = np.zeros((rows, latent + rope), np.float32)
    add_product(threads, at(kv_a, layer), normed_ND, compressed_NJ)
    for n in range(rows):
        slot, position = slots_N[n], positions_N[n]
        rms_norm(compressed_NJ[n, :latent], kv_norm_C, 1e-6, latents_SC[slot])
        rotate(compressed_NJ[n, latent:], cos[position], sin[position], interleaved, rotaries_SR[slot])

    query_HNC, context_HNC = np.zeros((heads, rows, latent), np.float32), np.zeros((heads, rows, latent), np.float32)
    out_NV = np.empty((rows, heads * value), np.float32)
    absorb(query_NQ, kv_b_PC, sizes, query_HNC)
    look(
        query_NQ,
        query_HNC,
        nope,
        cos,
        sin,
        interleaved,
        scale,
        latents_SC,
        rotaries_SR,
        size,
        positions_N,
        rows_N,
        tables_RB,
        context_HNC,
    )
    expand(context_HNC, kv_b_PC, sizes, out_NV)
    add_product(threads, at(output, layer), out_NV, x_ND)


@parallel
def absorb(query_NQ: Array, kv_b: Array, sizes: tuple[int, int, int], query_HNC: Array) -> None:
    """Each head's queries, but for their rotary part, through its key rows of kv_b: added to what is to look at latents."""
    heads, nope, value = sizes
    width = query_NQ.shape[1] // heads
    for head in prange(heads):
        blocks.add_rows(query_NQ, head * width, nope, kv_b, head * (nope + value), 1, query_HNC[head])


@parallel
def look(
    query_NQ: Array,
    query_HNC: Array,
    nope: int,
    cos: Array,
    sin: Array,
    interleaved: bool,
    scale: float,
    latents_SC: Array,
    rotaries_SR: Array,
    size: int,
    positions_N: Array,
    rows_N: Array,
    tables_RB: Array,
    context_HNC: Array,
) -> None:
    """Add to each head's and row's context the latents up to its position, as it attends to them. Four heads read them together."""
    heads, rows, latent = query_HNC.shape
    rope, width, groups = rotaries_SR.shape[1], query_NQ.shape[1] // heads, -(-heads // TILE)
    for task in prange(rows * groups):
        n, first = task // groups, task % groups * TILE
        position, table_B, some = positions_N[n], tables_RB[rows_N[n]], min(TILE, heads - first)
        query_HC, query_HR = np.empty((some, latent), np.float32), np.empty((some, rope), np.float32)
        scores_HS, out_M = np.empty((some, position + 1), np.float32), np.empty(some * TILE, np.float32)
        for h in range(some):
            copy(query_HNC[first + h, n], query_HC[h])
            begin = (first + h) * width
            rotate(query_NQ[n, begin + nope : begin + width], cos[position], sin[position], interleaved, query_HR[h])
        # Block by block, since a division for each position would take as long as its product.
        for start in range(0, position + 1, size):
            slot, end = table_B[start // size] * size, min(start + size, position + 1)
            for s in range(start, end, TILE):
                count = min(TILE, end - s)
                blocks.times_both(latents_SC, rotaries_SR, slot + s - start, count, query_HC, query_HR, out_M)
                for h in range(some):
                    for i in range(count):
                        scores_HS[h, s + i] = out_M[h * TILE + i] * scale
        for h in range(some):
            softmax(scores_HS[h])
        context_HC = np.zeros((some, latent), np.float32)
        for start in range(0, position + 1, size):
            slot, end = table_B[start // size] * size, min(start + size, position + 1)
            blocks.add_rows(scores_HS, start, end - start, latents_SC, slot, 1, context_HC)
        for h in range(some):
            copy(context_HC[h], context_HNC[first + h, n])


@parallel
def expand(context_HNC: Array, kv_b: Array, sizes: tuple[int, int, int], out_NV: Array) -> None:
    """Each head's contexts through its value rows of kv_b."""
    heads, nope, value = sizes
    for head in prange(heads):
        rows = context_HNC.shape[1]
        out_M, first = np.empty(rows * TILE, np.float32), head * (nope + value) + nope
        for v in range(0, value, TILE):
            count = min(TILE, value - v)
            times_rows(kv_b, first + v, 1, count, context_HNC[head], out_M)
            for n in range(rows):
                for i in range(count):
                    out_NV[n, head * value + v + i] = out_M[n * TILE + i]


def _grouped(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, shared: Any, stores: Any, where: Any) -> None:
    """Multi-head or grouped-query attention with rotary positions (attention.Attention)."""
    # Biases are of no length where there are none; a window is 0.
    norm_LD, query, key, value, output, query_bias, key_bias, value_bias, output_bias, windows_L, _ = weights
    cos, sin, scale, size = shared
    positions_N, slots_N, rows_N, tables_RB = where
    keys_SGK, values_SGK, window = stores[0][layer], stores[1][layer], windows_L[layer]
    groups, width, rows = keys_SGK.shape[1], keys_SGK.shape[2], x_ND.shape[0]
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    query_NQ = np.zeros((rows, query[0].shape[1]), np.float32)
    key_NJ, value_NJ = np.zeros((rows, groups * width), np.float32), np.zeros((rows, groups * width), np.float32)
    add_product(threads, at(query, layer), normed_ND, query_NQ)
    add_product(threads, at(key, layer), normed_ND, key_NJ)
    add_product(threads, at(value, layer), normed_ND, value_NJ)
    _add_bias(query_bias[layer], query_NQ)
    _add_bias(key_bias[layer], key_NJ)
    _add_bias(value_bias[layer], value_NJ)
    for n in range(rows):
        slot, position = slots_N[n], positions_N[n]
        for group in range(groups):
            first, last = group * width, (group + 1) * width
            rotate(key_NJ[n, first:last], cos[position], sin[position], False, keys_SGK[slot, group])
            copy(value_NJ[n, first:last], values_SGK[slot, group])
    out_NQ = np.zeros_like(query_NQ)
    _attend(query_NQ, cos, sin, scale, window, keys_SGK, values_SGK, size, positions_N, rows_N, tables_RB, out_NQ)
    add_product(threads, at(output, layer), out_NQ, x_ND)
    _add_bias(output_bias[layer], x_ND)


@parallel
def _attend(
    query_NQ: Array,
    cos: Array,
    sin: Array,
    scale: float,
    window: int,
    keys_SGK: Array,
    values_SGK: Array,
    size: int,
    positions_N: Array,
    rows_N: Array,
    tables_RB: Array,
    out_NQ: Array,
) -> None:
    """Every row's and head's attention to its group's keys and values, up to its position and within the window."""
    groups, width = keys_SGK.shape[1], keys_SGK.shape[2]
    heads = query_NQ.shape[1] // width
    keys_JK, values_JK = keys_SGK.reshape(-1, width), values_SGK.reshape(-1, width)
    own = heads // groups  # heads a group
    sets = -(-own // TILE)  # of at most four heads, which read the keys and values together
    for task in prange(query_NQ.shape[0] * groups * sets):
        n, group = task // (groups * sets), task // sets % groups
        head, position, table_B = group * own + task % sets * TILE, positions_N[n], tables_RB[rows_N[n]]
        some = min(TILE, (group + 1) * own - head)
        first = max(0, position + 1 - window) if window else 0
        query_HK, out_M = np.empty((some, width), np.float32), np.empty(some * TILE, np.float32)
        scores_HS, out_HK = np.empty((some, position + 1 - first), np.float32), np.zeros((some, width), np.float32)
        for h in range(some):
            begin = (head + h) * width
            rotate(query_NQ[n, begin : begin + width], cos[position], sin[position], False, query_HK[h])
        for start in range(first - first % size, position + 1, size):  # block by block, as above
            slot, end = table_B[start // size] * size, min(start + size, position + 1)
            for s in range(max(start, first), end, TILE):
                count = min(TILE, end - s)
                times_rows(keys_JK, (slot + s - start) * groups + group, groups, count, query_HK, out_M)
                for h in range(some):
                    for i in range(count):
                        scores_HS[h, s - first + i] = out_M[h * TILE + i] * scale
        for h in range(some):
            softmax(scores_HS[h])
        for start in range(first - first % size, position + 1, size):
            slot, end, begin = table_B[start // size] * size, min(start + size, position + 1), max(start, first)
            row = (slot + begin - start) * groups + group
            blocks.add_rows(scores_HS, begin - first, end - begin, values_JK, row, groups, out_HK)
        for h in range(some):
            copy(out_HK[h], out_NQ[n, (head + h) * width : (head + h + 1) * width])


@compiled
def _add_bias(bias_P: Array, out_NP: Array) -> None:
    for n in range(out_NP.shape[0]):
        for p in range(bias_P.shape[0]):
            out_NP[n, p] += bias_P[p]


def _dense(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any) -> None:
    """A SwiGLU MLP behind its norm (layers.MLP)."""
    norm_LD, gate, up, down = weights
    inner_NI = np.empty((x_ND.shape[0], gate[0].shape[1]), np.float32)
    gated_product(threads, at(gate, layer), at(up, layer), rms_norms(x_ND, norm_LD[layer], eps), inner_NI)
    add_product(threads, at(down, layer), inner_NI, x_ND)


@compiled
def choose_experts(
    scores_NE: Array,
    bias_E: Array,
    routing: tuple[
        int, int, int, bool, bool, bool
    ],  # active, groups, kept groups, sigmoid, two best a group, normalise
    scaling: float,
) -> tuple[Array, Array]:
    """Each row's experts and their weights, out of the affinities (moe.Router): [N, A] each."""
    active, groups, kept, sigmoid, two_best, normalise = routing
    rows, experts = scores_NE.shape
    chosen_NA, weights_NA = np.empty((rows, active), np.int64), np.empty((rows, active), np.float32)
    for n in range(rows):
        score_E = scores_NE[n]
        if sigmoid:
            for e in range(experts):
                score_E[e] = _ONE / (_ONE + exp(-score_E[e]))
        else:
            softmax(score_E)
        choice_E, total = score_E + bias_E, np.float32(1e-20)
        if kept < groups:
            _leave_best_groups(choice_E, groups, kept, two_best)
        for a in range(active):
            best = np.argmax(choice_E)
            chosen_NA[n, a], weights_NA[n, a] = best, score_E[best]
            choice_E[best] = _LEAST
            total += score_E[best]
        for a in range(active):
            weights_NA[n, a] *= np.float32(scaling / total) if normalise else np.float32(scaling)
    return chosen_NA, weights_NA


@compiled
def _leave_best_groups(choice_E: Array, groups: int, kept: int, two_best: bool) -> None:
    """Push down the experts of all but the best groups: best by the sum of their two best experts, or by their best."""
    size = choice_E.shape[0] // groups
    score_G = np.empty(groups, np.float32)
    for group in range(groups):
        best = second = _LEAST
        for e in range(group * size, (group + 1) * size):
            if choice_E[e] > best:
                best, second = choice_E[e], best
            elif choice_E[e] > second:
                second = choice_E[e]
        score_G[group] = best + second if two_best else best
    for _ in range(groups - kept):
        worst = np.argmin(score_G)
        score_G[worst] = -_LEAST
        for e in range(worst * size, (worst + 1) * size):
            choice_E[e] = _LEAST


@compiled
def by_expert(chosen_NA: Array, weights_NA: Array, experts: int) -> tuple[Array, Array, Array]:
    """The visits sorted by expert: where each expert's begin (and the last one's end), and each visit's row and weight."""
    rows, active = chosen_NA.shape
    starts_E = np.zeros(experts + 1, np.int64)
    for n in range(rows):
        for a in range(active):
            starts_E[chosen_NA[n, a] + 1] += 1
    for e in range(experts):
        starts_E[e + 1] += starts_E[e]
    next_E = starts_E.copy()
    visitor_M, weight_M = np.empty(rows * active, np.int64), np.empty(rows * active, np.float32)
    for n in range(rows):
        for a in range(active):
            place = next_E[chosen_NA[n, a]]
            next_E[chosen_NA[n, a]] += 1
            visitor_M[place], weight_M[place] = n, weights_NA[n, a]
    return starts_E, visitor_M, weight_M


def _mixed(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any) -> None:
    """Routed and shared experts behind their norm (moe.MixtureOfExperts); an expert is read once for all rows that chose it."""
    # gate_up and down are [L, E, 2I, D] and [L, E, D, I]; the shared ones have no rows where there are none.
    norm_LD, router, bias_LE, gate_up, down, shared_gate, shared_up, shared_down, routing, scaling = weights
    rows, width = x_ND.shape
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    scores_NE = np.zeros((rows, bias_LE.shape[1]), np.float32)
    add_product(threads, at(router, layer), normed_ND, scores_NE)
    chosen_NA, weights_NA = choose_experts(scores_NE, bias_LE[layer], routing, scaling)
    starts_E, visitor_M, weight_M = by_expert(chosen_NA, weights_NA, bias_LE.shape[1])
    x_MD = np.empty((visitor_M.shape[0], width), np.float32)
    for m in range(visitor_M.shape[0]):
        copy(normed_ND[visitor_M[m]], x_MD[m])
    inner_MI = np.empty((visitor_M.shape[0], gate_up[0].shape[2] // 2), np.float32)
    visits_in(threads, at(gate_up, layer), starts_E, x_MD, weight_M, inner_MI)
    visits_out(threads, at(down, layer), starts_E, inner_MI, visitor_M, x_ND)
    if shared_gate[0].shape[1] > 0:
        inner_NI = np.empty((rows, shared_gate[0].shape[1]), np.float32)
        gated_product(threads, at(shared_gate, layer), at(shared_up, layer), normed_ND, inner_NI)
        add_product(threads, at(shared_down, layer), inner_NI, x_ND)


# ---- all layers in one call ------------------------------------------------------------------------------------------------------
# Each call of a compiled function costs a quarter of a microsecond an array, and a layer has forty. So the layers' weights stand in
# stacks, and one call runs them all.


def attend(
    threads: int, x_ND: Array, layer: int, eps: float, weights: Any, shared: Any, stores: Any, where: Any
) -> None:
    """A layer's attention, of the kind that the weights are of."""
    raise NotImplementedError  # numba takes `_attend_of`


@overload(attend, jit_options={"nogil": True})
def _attend_of(
    threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, shared: Any, stores: Any, where: Any
) -> Any:
    return _latent if len(weights.types) == LATENT else _grouped


def transform(threads: int, x_ND: Array, layer: int, eps: float, weights: Any) -> None:
    """A layer's MLP, dense or a mixture."""
    raise NotImplementedError  # numba takes `_transform_of`


@overload(transform, jit_options={"nogil": True})
def _transform_of(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any) -> Any:
    return _dense if len(weights.types) == DENSE else _mixed


LATENT, DENSE = 10, 4  # parts that these kinds' weights have; grouped attention's have 11, a mixture's 10


@compiled
def run_layers(
    threads: int,
    x_ND: Array,
    eps: float,
    attention: Any,  # stacks over the layers, as `attend` takes them
    mlp: Any,  # likewise, as `transform` takes them
    shared: tuple[Array, Array, float, int],  # cos, sin, scale of the scores, positions a block
    stores: tuple[Array, Array],  # the layers' slots of the cache, [L, slots, ...]
    where: tuple[Array, Array, Array, Array],  # positions, slots, rows, tables
) -> None:
    """Layers that are alike, one after the other."""
    for layer in range(stores[0].shape[0]):
        attend(threads, x_ND, layer, eps, attention, shared, stores, where)
        transform(threads, x_ND, layer, eps, mlp)
