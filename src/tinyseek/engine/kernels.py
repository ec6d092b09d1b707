"""One token through one layer, as plain loops that numba compiles: decoding on a CPU without the cost of a hundred small calls.

A small model spends most of a decoding step on starting operations, not on arithmetic: about seventy calls a layer of a few
microseconds each. Here a layer is two calls. The loops are the equations, which makes this the shortest description of the model
in the house; `model/` is the other form, and a test holds the two equal.

Everything is float32 and one token of one sequence. Letters as in model/config.py; x_D is changed in place, by adding the
layer's update.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numba
import numpy as np
from numba import njit, prange

# Threads through OpenMP, whose pool is then the one that torch already has: a parallel loop starts in two microseconds. Without it
# the loops run on one thread; numba's own pool may not be entered by two threads at once, which a server would do.
PARALLEL = importlib.util.find_spec("numba.np.ufunc.omppool") is not None
if PARALLEL:
    settings: Any = numba.config  # its settings are made at run time, unseen by type checkers
    settings.THREADING_LAYER = "omp"

Array = np.ndarray[Any, Any]
Number = Any  # a float of Python or of NumPy

# Sums may be reordered (that is what lets them run in vector registers), but a NaN stays a NaN.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
compiled = njit(cache=True, nogil=True, fastmath=_FAST)
parallel = njit(cache=True, nogil=True, fastmath=_FAST, parallel=PARALLEL)


@parallel
def matvec(threads: int, weight_PQ: Array, x_Q: Array, out_P: Array) -> None:
    """out = weight @ x, at the speed that the weight can be read: each thread a run of rows."""
    rows = weight_PQ.shape[0]
    for thread in prange(threads):
        for p in range(thread * rows // threads, (thread + 1) * rows // threads):
            total = _ZERO
            for q in range(weight_PQ.shape[1]):
                total += weight_PQ[p, q] * x_Q[q]
            out_P[p] = total


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
        scores_S[s] = np.exp(scores_S[s] - top)
        total += scores_S[s]
    for s in range(scores_S.shape[0]):
        scores_S[s] /= total


@compiled
def latent_attention(
    threads: int,
    x_D: Array,
    norm_D: Array,
    eps: float,
    query_a: Array,  # [0, 0] where the query has no low rank
    query_norm: Array,
    query_b: Array,
    kv_a: Array,
    kv_norm_C: Array,
    kv_b: Array,
    output: Array,
    sizes: tuple[int, int, int],  # heads, nope, value
    cos: Array,
    sin: Array,
    interleaved: bool,
    scale: float,
    cached_SC: Array,
    cached_SR: Array,
    position: int,
) -> None:
    """Multi-head latent attention, absorbed (attention.LatentAttention.absorbed): all heads read the cached latents themselves."""
    heads, nope, value = sizes
    latent, rope = cached_SC.shape[1], cached_SR.shape[1]
    normed_D = np.empty_like(x_D)
    rms_norm(x_D, norm_D, eps, normed_D)
    query = np.empty(heads * (nope + rope), np.float32)
    if query_a.shape[0] > 0:
        low = np.empty(query_a.shape[0], np.float32)
        matvec(threads, query_a, normed_D, low)
        rms_norm(low, query_norm, 1e-6, low)
        matvec(threads, query_b, low, query)
    else:
        matvec(threads, query_b, normed_D, query)
    compressed = np.empty(latent + rope, np.float32)
    matvec(threads, kv_a, normed_D, compressed)
    rms_norm(compressed[:latent], kv_norm_C, 1e-6, cached_SC[position])
    rotate(compressed[latent:], cos, sin, interleaved, cached_SR[position])

    out = np.empty(heads * value, np.float32)
    _attend_to_latents(query, kv_b, sizes, cos, sin, interleaved, scale, cached_SC, cached_SR, position, out)
    _add_matvec(threads, output, out, x_D)


@parallel
def _attend_to_latents(
    query: Array,
    kv_b: Array,
    sizes: tuple[int, int, int],
    cos: Array,
    sin: Array,
    interleaved: bool,
    scale: float,
    cached_SC: Array,
    cached_SR: Array,
    position: int,
    out: Array,
) -> None:
    """Every head's attention to the latents up to `position`, read in and out through its rows of kv_b."""
    heads, nope, value = sizes
    latent, rope = cached_SC.shape[1], cached_SR.shape[1]
    for head in prange(heads):
        start, rows = head * (nope + rope), head * (nope + value)
        query_C, query_R = np.zeros(latent, np.float32), np.empty(rope, np.float32)
        scores_S, context_C = np.empty(position + 1, np.float32), np.zeros(latent, np.float32)
        for n in range(nope):
            for c in range(latent):
                query_C[c] += query[start + n] * kv_b[rows + n, c]
        rotate(query[start + nope : start + nope + rope], cos, sin, interleaved, query_R)
        for s in range(position + 1):
            total = _ZERO
            for c in range(latent):
                total += query_C[c] * cached_SC[s, c]
            for r in range(rope):
                total += query_R[r] * cached_SR[s, r]
            scores_S[s] = total * scale
        softmax(scores_S)
        for s in range(position + 1):
            for c in range(latent):
                context_C[c] += scores_S[s] * cached_SC[s, c]
        for v in range(value):
            total = _ZERO
            for c in range(latent):
                total += kv_b[rows + nope + v, c] * context_C[c]
            out[head * value + v] = total


@compiled
def attention(
    threads: int,
    x_D: Array,
    norm_D: Array,
    eps: float,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    query_bias: Array,  # [0] where there is none, and so the next three
    key_bias: Array,
    value_bias: Array,
    output_bias: Array,
    cos: Array,
    sin: Array,
    scale: float,
    window: int,  # 0 for none
    keys_SGK: Array,
    values_SGK: Array,
    position: int,
) -> None:
    """Multi-head or grouped-query attention with rotary positions (attention.Attention)."""
    groups, width = keys_SGK.shape[1], keys_SGK.shape[2]
    heads = query.shape[0] // width
    normed_D = np.empty_like(x_D)
    rms_norm(x_D, norm_D, eps, normed_D)
    queries, fresh = np.empty(query.shape[0], np.float32), np.empty(key.shape[0], np.float32)
    matvec(threads, query, normed_D, queries)
    _add(query_bias, queries)
    matvec(threads, key, normed_D, fresh)
    _add(key_bias, fresh)
    for group in range(groups):
        rotate(fresh[group * width : (group + 1) * width], cos, sin, False, keys_SGK[position, group])
    matvec(threads, value, normed_D, fresh)
    _add(value_bias, fresh)
    for group in range(groups):
        values_SGK[position, group] = fresh[group * width : (group + 1) * width]

    first = max(0, position + 1 - window) if window else 0
    out = np.zeros(heads * width, np.float32)
    _attend(queries, heads, cos, sin, scale, first, keys_SGK, values_SGK, position, out)
    _add_matvec(threads, output, out, x_D)
    _add(output_bias, x_D)


@parallel
def _attend(
    queries: Array,
    heads: int,
    cos: Array,
    sin: Array,
    scale: float,
    first: int,
    keys_SGK: Array,
    values_SGK: Array,
    position: int,
    out: Array,
) -> None:
    """Every head's attention to its group's keys and values from `first` to `position`, added to `out`."""
    groups, width = keys_SGK.shape[1], keys_SGK.shape[2]
    for head in prange(heads):
        group = head // (heads // groups)
        query_K, scores_S = np.empty(width, np.float32), np.empty(position + 1 - first, np.float32)
        rotate(queries[head * width : (head + 1) * width], cos, sin, False, query_K)
        for s in range(first, position + 1):
            total = _ZERO
            for k in range(width):
                total += query_K[k] * keys_SGK[s, group, k]
            scores_S[s - first] = total * scale
        softmax(scores_S)
        for s in range(first, position + 1):
            for k in range(width):
                out[head * width + k] += scores_S[s - first] * values_SGK[s, group, k]


@compiled
def _add(bias: Array, out: Array) -> None:
    for i in range(bias.shape[0]):
        out[i] += bias[i]


@parallel
def _add_matvec(threads: int, weight_PQ: Array, x_Q: Array, out_P: Array) -> None:
    rows = weight_PQ.shape[0]
    for thread in prange(threads):
        for p in range(thread * rows // threads, (thread + 1) * rows // threads):
            total = _ZERO
            for q in range(weight_PQ.shape[1]):
                total += weight_PQ[p, q] * x_Q[q]
            out_P[p] += total


@parallel
def _gated(threads: int, x_D: Array, gate_ID: Array, up_ID: Array, weight: Number, inner_I: Array) -> None:
    """inner = weight * silu(gate @ x) * (up @ x)."""
    rows = gate_ID.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            gate, up = _ZERO, _ZERO
            for d in range(x_D.shape[0]):
                gate += gate_ID[i, d] * x_D[d]
                up += up_ID[i, d] * x_D[d]
            inner_I[i] = gate / (_ONE + np.exp(-gate)) * up * weight


@compiled
def swiglu(
    threads: int, x_D: Array, gate_ID: Array, up_ID: Array, down_DI: Array, weight: Number, out_D: Array
) -> None:
    """out += weight * down @ (silu(gate @ x) * (up @ x))."""
    inner_I = np.empty(gate_ID.shape[0], np.float32)
    _gated(threads, x_D, gate_ID, up_ID, weight, inner_I)
    _add_matvec(threads, down_DI, inner_I, out_D)


@compiled
def dense(threads: int, x_D: Array, norm_D: Array, eps: float, gate_ID: Array, up_ID: Array, down_DI: Array) -> None:
    """A dense MLP behind its norm."""
    normed_D = np.empty_like(x_D)
    rms_norm(x_D, norm_D, eps, normed_D)
    swiglu(threads, normed_D, gate_ID, up_ID, down_DI, _ONE, x_D)


@compiled
def mixture(
    threads: int,
    x_D: Array,
    norm_D: Array,
    eps: float,
    router_ED: Array,
    bias_E: Array,
    gate_up_EJD: Array,
    down_EDI: Array,
    shared_gate: Array,  # [0, 0] where there are no shared experts
    shared_up: Array,
    shared_down: Array,
    routing: tuple[
        int, int, int, bool, bool, bool
    ],  # active, groups, kept groups, sigmoid, two best a group, normalise
    scaling: float,
) -> None:
    """Routed and shared experts behind their norm (moe.MixtureOfExperts)."""
    active, groups, kept, sigmoid, two_best, normalise = routing
    experts, inner = router_ED.shape[0], down_EDI.shape[2]
    normed_D = np.empty_like(x_D)
    rms_norm(x_D, norm_D, eps, normed_D)
    scores_E = np.empty(experts, np.float32)
    matvec(threads, router_ED, normed_D, scores_E)
    if sigmoid:
        for e in range(experts):
            scores_E[e] = _ONE / (_ONE + np.exp(-scores_E[e]))
    else:
        softmax(scores_E)
    choice_E = scores_E + bias_E
    if kept < groups:
        _leave_best_groups(choice_E, groups, kept, two_best)
    chosen = np.empty(active, np.int64)
    total = np.float32(1e-20)
    for slot in range(active):
        best = np.argmax(choice_E)
        chosen[slot] = best
        choice_E[best] = -np.float32(3e38)
        total += scores_E[best]
    for slot in range(active):
        expert = chosen[slot]
        weight = scores_E[expert] / total if normalise else scores_E[expert]
        gate_up = gate_up_EJD[expert]
        swiglu(threads, normed_D, gate_up[:inner], gate_up[inner:], down_EDI[expert], np.float32(weight * scaling), x_D)
    if shared_gate.shape[0] > 0:
        swiglu(threads, normed_D, shared_gate, shared_up, shared_down, _ONE, x_D)


@compiled
def _leave_best_groups(choice_E: Array, groups: int, kept: int, two_best: bool) -> None:
    """Push down the experts of all but the best groups: best by the sum of their two best experts, or by their best."""
    size = choice_E.shape[0] // groups
    score_G = np.empty(groups, np.float32)
    for group in range(groups):
        members = np.sort(choice_E[group * size : (group + 1) * size])
        score_G[group] = members[-1] + members[-2] if two_best else members[-1]
    for _ in range(groups - kept):
        worst = np.argmin(score_G)
        score_G[worst] = np.float32(3e38)
        choice_E[worst * size : (worst + 1) * size] = -np.float32(3e38)
