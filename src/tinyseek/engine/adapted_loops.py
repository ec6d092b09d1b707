"""The layers as compiled loops (loops.py) for rows that differ in their adapters: x W^T as ever, and beside it each row's own
(x A^T) B^T.

Rows of one adapter are neighbours, a *group*; what A and B of all adapters hold of one matrix is a stack (adapters.Stack), of which
a group reads its own part. Rows without an adapter are in no group. A batch in which nobody has an adapter never comes here.

    Low      (a_XQ, b_XP, starts_S)  the stack of one kind of matrix and where each adapter's rows begin in this layer
    groups   (groups_G3, number_N)   of each group its adapter, first row and end; of each row its adapter, -1 for none
"""

# ruff: noqa: ARG001 -- numba's overloads are told of arguments by their types

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from tinyseek.engine.loops import (
    DENSE,
    LATENT,
    _add_bias,
    _attend,
    by_expert,
    choose_experts,
    rms_norm,
    rms_norms,
    rotate,
    softmax,
)
from tinyseek.engine.products import (
    Array,
    Weight,
    add_product,
    at,
    compiled,
    copy,
    group_sums,
    parallel,
    part,
    swiglu,
    times_four,
    visits_in,
    visits_out,
    wide,
)
from tinyseek.engine.tiles import TILE

Low = Any  # a tuple of arrays, as above
Groups = Any

_ZERO = np.float32(0.0)


# ---- thin products ---------------------------------------------------------------------------------------------------------------


@compiled
def add_rows(low: Low, groups: Groups, first: int, last: int, x_NQ: Array, out_NP: Array) -> None:
    """out += (x A^T) B^T of the rows `first` to `last`, each with its group's A and B."""
    a_XQ, b_XP, starts_S = low
    groups_G3, _ = groups
    for g in range(groups_G3.shape[0]):
        number = groups_G3[g, 0]
        start, rank = starts_S[number], starts_S[number + 1] - starts_S[number]
        if rank == 0:
            continue
        low_R = np.empty(rank, np.float32)
        for n in range(max(groups_G3[g, 1], first), min(groups_G3[g, 2], last)):
            for r in range(rank):
                low_R[r] = wide.dot(x_NQ[n], a_XQ, start + r)
            wide.add_rows(low_R, 0, rank, b_XP, start, 1, out_NP[n])


@parallel
def add_low(
    threads: int,
    groups: Groups,
    x_NQ: Array,
    low: Low,
    out_NP: Array,
    second: Low,
    out_NS: Array,
    third: Low,
    out_NT: Array,
) -> None:
    """out += (x A^T) B^T for up to three matrices that x goes through: each thread takes a run of rows."""
    rows = x_NQ.shape[0]
    if low[0].shape[0] + second[0].shape[0] + third[0].shape[0] > 0:
        if rows == 1:
            add_rows(low, groups, 0, 1, x_NQ, out_NP)
            add_rows(second, groups, 0, 1, x_NQ, out_NS)
            add_rows(third, groups, 0, 1, x_NQ, out_NT)
        else:
            for thread in prange(threads):
                first, last = thread * rows // threads, (thread + 1) * rows // threads
                add_rows(low, groups, first, last, x_NQ, out_NP)
                add_rows(second, groups, first, last, x_NQ, out_NS)
                add_rows(third, groups, first, last, x_NQ, out_NT)


@parallel
def add_visits(
    threads: int,
    low: Low,
    groups: Groups,
    starts_E: Array,
    visitor_M: Array,
    x_MQ: Array,
    out_MP: Array,
) -> None:
    """out += (x A^T) B^T of every visit, with its expert's and its row's adapter's A and B."""
    a_XQ, b_XP, starts_S = low
    _, number_N = groups
    visits, experts = visitor_M.shape[0], starts_E.shape[0] - 1
    for thread in prange(threads):
        expert = 0
        for m in range(thread * visits // threads, (thread + 1) * visits // threads):
            while starts_E[expert + 1] <= m:
                expert += 1
            number = number_N[visitor_M[m]]
            if number < 0:
                continue
            rank = (starts_S[number + 1] - starts_S[number]) // experts
            begin = starts_S[number] + expert * rank
            low_R = np.empty(rank, np.float32)
            for r in range(rank):
                low_R[r] = wide.dot(x_MQ[m], a_XQ, begin + r)
            wide.add_rows(low_R, 0, rank, b_XP, begin, 1, out_MP[m])


@compiled
def low_at(low: Low, layer: int) -> Low:
    """One layer's."""
    return low[0], low[1], low[2][layer]


@compiled
def nothing(low: Low) -> Low:
    """A change by nothing, of the same types."""
    return low[0][:0], low[1][:0], np.zeros_like(low[2])


@compiled
def add_one(threads: int, groups: Groups, x_NQ: Array, low: Low, out_NP: Array) -> None:
    """`add_low` for one matrix."""
    add_low(threads, groups, x_NQ, low, out_NP, nothing(low), out_NP, nothing(low), out_NP)


# ---- attention -------------------------------------------------------------------------------------------------------------------


def attend(
    threads: int,
    x_ND: Array,
    layer: int,
    eps: float,
    weights: Any,
    shared: Any,
    stores: Any,
    where: Any,
    groups: Any,
    lows: Any,
) -> None:
    """A layer's attention, of the kind that the weights are of; arguments as in loops.py, and the adapters' changes."""
    raise NotImplementedError  # numba takes `_attend_of`


@overload(attend, jit_options={"nogil": True})
def _attend_of(
    threads: Any,
    x_ND: Any,
    layer: Any,
    eps: Any,
    weights: Any,
    shared: Any,
    stores: Any,
    where: Any,
    groups: Any,
    lows: Any,
) -> Any:
    return _latent if len(weights.types) == LATENT else _grouped


def _grouped(
    threads: Any,
    x_ND: Any,
    layer: Any,
    eps: Any,
    weights: Any,
    shared: Any,
    stores: Any,
    where: Any,
    groups: Any,
    lows: Any,
) -> None:
    """loops.grouped_attention, changed."""
    norm_LD, query, key, value, output, query_bias, key_bias, value_bias, output_bias, windows_L, _ = weights
    cos, sin, scale, size = shared
    positions_N, slots_N, rows_N, tables_RB = where
    keys_SGK, values_SGK = stores[0][layer], stores[1][layer]
    width, rows = keys_SGK.shape[2], x_ND.shape[0]
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    query_NQ = np.zeros((rows, query[0].shape[1]), np.float32)
    key_NJ, value_NJ = np.zeros((rows, key[0].shape[1]), np.float32), np.zeros((rows, value[0].shape[1]), np.float32)
    add_product(threads, at(query, layer), normed_ND, query_NQ)
    add_product(threads, at(key, layer), normed_ND, key_NJ)
    add_product(threads, at(value, layer), normed_ND, value_NJ)
    query_low, key_low, value_low = low_at(lows[0], layer), low_at(lows[1], layer), low_at(lows[2], layer)
    add_low(threads, groups, normed_ND, query_low, query_NQ, key_low, key_NJ, value_low, value_NJ)
    _add_bias(query_bias[layer], query_NQ)
    _add_bias(key_bias[layer], key_NJ)
    _add_bias(value_bias[layer], value_NJ)
    for n in range(rows):
        slot, position = slots_N[n], positions_N[n]
        for group in range(keys_SGK.shape[1]):
            first, last = group * width, (group + 1) * width
            rotate(key_NJ[n, first:last], cos[position], sin[position], False, keys_SGK[slot, group])
            copy(value_NJ[n, first:last], values_SGK[slot, group])
    out_NQ, window = np.zeros_like(query_NQ), windows_L[layer]
    _attend(query_NQ, cos, sin, scale, window, keys_SGK, values_SGK, size, positions_N, rows_N, tables_RB, out_NQ)
    add_product(threads, at(output, layer), out_NQ, x_ND)
    add_one(threads, groups, out_NQ, low_at(lows[3], layer), x_ND)
    _add_bias(output_bias[layer], x_ND)


def _latent(
    threads: Any,
    x_ND: Any,
    layer: Any,
    eps: Any,
    weights: Any,
    shared: Any,
    stores: Any,
    where: Any,
    groups: Any,
    lows: Any,
) -> None:
    """loops.latent_attention, changed."""
    norm_LD, low_query, query_norm, query, kv_a, kv_norm_LC, kv_b, output, sizes, interleaved = weights
    cos, sin, scale, size = shared
    positions_N, slots_N, rows_N, tables_RB = where
    latents_SC, rotaries_SR = stores[0][layer], stores[1][layer]
    heads, nope, value = sizes
    latent, rope, rows = latents_SC.shape[1], rotaries_SR.shape[1], x_ND.shape[0]
    query_a_low, query_low, kv_a_low = low_at(lows[0], layer), low_at(lows[1], layer), low_at(lows[2], layer)
    none = nothing(kv_a_low)
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    query_NQ = np.zeros((rows, heads * (nope + rope)), np.float32)
    compressed_NJ = np.zeros((rows, latent + rope), np.float32)
    add_product(threads, at(kv_a, layer), normed_ND, compressed_NJ)
    if query_norm.shape[1] > 0:
        low_NL = np.zeros((rows, query_norm.shape[1]), np.float32)
        add_product(threads, at(low_query, layer), normed_ND, low_NL)
        add_low(threads, groups, normed_ND, query_a_low, low_NL, kv_a_low, compressed_NJ, none, low_NL)
        low_normed_NL = rms_norms(low_NL, query_norm[layer], 1e-6)
        add_product(threads, at(query, layer), low_normed_NL, query_NQ)
        add_one(threads, groups, low_normed_NL, query_low, query_NQ)
    else:
        add_product(threads, at(query, layer), normed_ND, query_NQ)
        add_low(threads, groups, normed_ND, query_low, query_NQ, kv_a_low, compressed_NJ, none, query_NQ)
    for n in range(rows):
        slot, position = slots_N[n], positions_N[n]
        rms_norm(compressed_NJ[n, :latent], kv_norm_LC[layer], 1e-6, latents_SC[slot])
        rotate(compressed_NJ[n, latent:], cos[position], sin[position], interleaved, rotaries_SR[slot])
    out_NV = np.empty((rows, heads * value), np.float32)
    _attend_to_latents(
        query_NQ,
        kv_b[layer],
        low_at(lows[3], layer),
        groups,
        sizes,
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
        out_NV,
    )
    add_product(threads, at(output, layer), out_NV, x_ND)
    add_one(threads, groups, out_NV, low_at(lows[4], layer), x_ND)


@parallel
def _attend_to_latents(
    query_NQ: Array,
    kv_b: Array,
    low: Low,
    groups: Groups,
    sizes: tuple[int, int, int],
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
    out_NV: Array,
) -> None:
    """loops._attend_to_latents, read in and out through the head's rows of kv_b + B A."""
    heads, nope, value = sizes
    a_XC, b_XP, starts_S = low
    _, number_N = groups
    latent, rope = latents_SC.shape[1], rotaries_SR.shape[1]
    for task in prange(query_NQ.shape[0] * heads):
        n, head = task // heads, task % heads
        position, table_B = positions_N[n], tables_RB[rows_N[n]]
        query, kv_rows = query_NQ[n, head * (nope + rope) : (head + 1) * (nope + rope)], head * (nope + value)
        query_C, query_R = np.zeros(latent, np.float32), np.empty(rope, np.float32)
        scores_S, context_C = np.empty(position + 1, np.float32), np.zeros(latent, np.float32)
        first = last = 0
        if number_N[n] >= 0:
            first, last = starts_S[number_N[n]], starts_S[number_N[n] + 1]
        for k in range(nope):
            for c in range(latent):
                query_C[c] += query[k] * kv_b[kv_rows + k, c]
        for r in range(first, last):
            total = _ZERO
            for k in range(nope):
                total += query[k] * b_XP[r, kv_rows + k]
            for c in range(latent):
                query_C[c] += total * a_XC[r, c]
        rotate(query[nope:], cos[position], sin[position], interleaved, query_R)
        for s in range(position + 1):
            slot, total = table_B[s // size] * size + s % size, _ZERO
            for c in range(latent):
                total += query_C[c] * latents_SC[slot, c]
            for r in range(rope):
                total += query_R[r] * rotaries_SR[slot, r]
            scores_S[s] = total * scale
        softmax(scores_S)
        for s in range(position + 1):
            slot = table_B[s // size] * size + s % size
            for c in range(latent):
                context_C[c] += scores_S[s] * latents_SC[slot, c]
        out_V = out_NV[n, head * value : (head + 1) * value]
        for v in range(value):
            total = _ZERO
            for c in range(latent):
                total += kv_b[kv_rows + nope + v, c] * context_C[c]
            out_V[v] = total
        for r in range(first, last):
            total = _ZERO
            for c in range(latent):
                total += a_XC[r, c] * context_C[c]
            for v in range(value):
                out_V[v] += total * b_XP[r, kv_rows + nope + v]


# ---- MLPs ------------------------------------------------------------------------------------------------------------------------


def transform(threads: int, x_ND: Array, layer: int, eps: float, weights: Any, groups: Any, lows: Any) -> None:
    """A layer's MLP, dense or a mixture."""
    raise NotImplementedError  # numba takes `_transform_of`


@overload(transform, jit_options={"nogil": True})
def _transform_of(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, groups: Any, lows: Any) -> Any:
    return _dense if len(weights.types) == DENSE else _mixed


def _dense(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, groups: Any, lows: Any) -> None:
    """loops.dense_mlp, changed."""
    norm_LD, gate, up, down = weights
    gate_low, up_low = low_at(lows[0], layer), low_at(lows[1], layer)
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    gate_NI = np.zeros((x_ND.shape[0], gate[0].shape[1]), np.float32)
    up_NI = np.zeros_like(gate_NI)
    add_product(threads, at(gate, layer), normed_ND, gate_NI)
    add_product(threads, at(up, layer), normed_ND, up_NI)
    add_low(threads, groups, normed_ND, gate_low, gate_NI, up_low, up_NI, nothing(up_low), up_NI)
    for n in range(x_ND.shape[0]):
        swiglu(gate_NI[n], up_NI[n], gate_NI[n])
    add_product(threads, at(down, layer), gate_NI, x_ND)
    add_one(threads, groups, gate_NI, low_at(lows[2], layer), x_ND)


def _mixed(threads: Any, x_ND: Any, layer: Any, eps: Any, weights: Any, groups: Any, lows: Any) -> None:
    """loops.mixture, changed."""
    norm_LD, router, bias_LE, gate_up, down, shared_gate, shared_up, shared_down, routing, scaling = weights
    rows, width = x_ND.shape
    normed_ND = rms_norms(x_ND, norm_LD[layer], eps)
    scores_NE = np.zeros((rows, bias_LE.shape[1]), np.float32)
    gate_NI = np.zeros((rows, shared_gate[0].shape[1]), np.float32)
    up_NI = np.zeros_like(gate_NI)
    add_product(threads, at(router, layer), normed_ND, scores_NE)
    if gate_NI.shape[1] > 0:
        add_product(threads, at(shared_gate, layer), normed_ND, gate_NI)
        add_product(threads, at(shared_up, layer), normed_ND, up_NI)
    router_low, gate_low, up_low = low_at(lows[0], layer), low_at(lows[3], layer), low_at(lows[4], layer)
    add_low(threads, groups, normed_ND, router_low, scores_NE, gate_low, gate_NI, up_low, up_NI)
    chosen_NA, weights_NA = choose_experts(scores_NE, bias_LE[layer], routing, scaling)
    starts_E, visitor_M, weight_M = by_expert(chosen_NA, weights_NA, bias_LE.shape[1])
    x_MD = np.empty((visitor_M.shape[0], width), np.float32)
    for m in range(visitor_M.shape[0]):
        copy(normed_ND[visitor_M[m]], x_MD[m])
    inner_MI = np.empty((visitor_M.shape[0], gate_up[0].shape[2] // 2), np.float32)
    if lows[1][0].shape[0] > 0:
        change_MJ = np.zeros((visitor_M.shape[0], gate_up[0].shape[2]), np.float32)
        add_visits(threads, low_at(lows[1], layer), groups, starts_E, visitor_M, x_MD, change_MJ)
        changed_visits_in(threads, at(gate_up, layer), starts_E, x_MD, weight_M, change_MJ, inner_MI)
    else:
        visits_in(threads, at(gate_up, layer), starts_E, x_MD, weight_M, inner_MI)
    visits_out(threads, at(down, layer), starts_E, inner_MI, visitor_M, x_ND)
    if lows[2][0].shape[0] > 0:
        change_MD = np.zeros_like(x_MD)
        add_visits(threads, low_at(lows[2], layer), groups, starts_E, visitor_M, inner_MI, change_MD)
        for m in range(visitor_M.shape[0]):
            for d in range(width):
                x_ND[visitor_M[m], d] += change_MD[m, d]
    if gate_NI.shape[1] > 0:
        for n in range(rows):
            swiglu(gate_NI[n], up_NI[n], gate_NI[n])
        add_product(threads, at(shared_down, layer), gate_NI, x_ND)
        add_one(threads, groups, gate_NI, low_at(lows[5], layer), x_ND)


@parallel
def changed_visits_in(
    threads: int, gate_up: Weight, starts_E: Array, x_MD: Array, weight_M: Array, change_MJ: Array, inner_MI: Array
) -> None:
    """products.visits_in, with what is to be added to each visit's gate and up."""
    inner = inner_MI.shape[1]
    for thread in prange(threads):
        wide_4Q = np.empty((TILE, x_MD.shape[1]), np.float32)
        gates, ups = np.empty(x_MD.shape[0] * TILE, np.float32), np.empty(x_MD.shape[0] * TILE, np.float32)
        last = (thread + 1) * inner // threads
        for expert in range(starts_E.shape[0] - 1):
            start, count_M = starts_E[expert], starts_E[expert + 1] - starts_E[expert]
            if count_M == 0:
                continue
            gate, up = part(gate_up, expert, 0, inner), part(gate_up, expert, inner, 2 * inner)
            own_MD, gate_M, up_M = x_MD[start : start + count_M], gates[: count_M * TILE], ups[: count_M * TILE]
            sums_G = group_sums(gate, own_MD[0])
            for p in range(thread * inner // threads, last, TILE):
                count = min(TILE, last - p)
                times_four(gate, p, count, own_MD, sums_G, wide_4Q, gate_M)
                times_four(up, p, count, own_MD, sums_G, wide_4Q, up_M)
                for m in range(count_M):
                    for i in range(count):
                        gate_M[m * TILE + i] += change_MJ[start + m, p + i]
                        up_M[m * TILE + i] += change_MJ[start + m, inner + p + i]
                swiglu(gate_M, up_M, gate_M)
                for m in range(count_M):
                    for i in range(count):
                        inner_MI[start + m, p + i] = gate_M[m * TILE + i] * weight_M[start + m]


@compiled
def run_layers(
    threads: int,
    x_ND: Array,
    eps: float,
    attention: Any,
    mlp: Any,
    shared: tuple[Array, Array, float, int],
    stores: tuple[Array, Array],
    where: tuple[Array, Array, Array, Array],
    groups: Groups,
    attention_lows: Any,
    mlp_lows: Any,
) -> None:
    """loops.run_layers, changed."""
    for layer in range(stores[0].shape[0]):
        attend(threads, x_ND, layer, eps, attention, shared, stores, where, groups, attention_lows)
        transform(threads, x_ND, layer, eps, mlp, groups, mlp_lows)
