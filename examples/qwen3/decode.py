"""Decode of Qwen3 in numpy: one token for each of n sequences in a step.

It computes what the parts in `forward.py` do, but in one function, over scratch that is made once for many steps. Weights stream through
the core's caches, so what runs between two products finds them empty: a call, of Python or of numpy, costs some 2 µs there, and a quarter
of that in a hot loop. Made of those parts, a step over 80 MB takes 4 to 6 % longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from examples.qwen3 import cores
from examples.qwen3.attention import SAFE_SCORE, Scores, attend_decode, in_one_tile
from examples.qwen3.config import Config
from examples.qwen3.forward import Ids, Norm, Product, product_of
from examples.qwen3.weights import GAP, Array, Weights, without_gap

DecodeStep = Callable[[Ids, Ids, Array], None]

# A product of a vector with a smaller matrix has one thread (OpenBLAS for x86-64, `interface/gemv.c`, and so it is measured).
LEAST_SHARED = 460_800  # elements
MOST_STRETCHED = 4 / 3  # times as many elements are read, by two threads: a step takes 1 to 4 % less at 1.17


def stretched(matrices: Array, layer: int) -> tuple[Array, int]:
    """`matrices[layer]`, of (layers, K, N + GAP), with so many rows of its neighbour that BLAS shares a product out; and its own first row
    there.

    As it is, where it is large enough, or so small that this would not pay.
    """
    inner, columns = without_gap(matrices).shape[1:]
    rows = -(-LEAST_SHARED // columns)
    if not inner < rows <= MOST_STRETCHED * inner:
        return matrices[layer], 0
    first = 0 if layer == 0 else (layer + 1) * inner - rows
    return matrices.reshape(-1, columns + GAP)[first : first + rows], layer * inner - first


def make_decode_step(config: Config, weights: Weights, all_keys: Array, all_values: Array, rows: int) -> DecodeStep:
    """`step(tokens, positions, logits)` for the first `rows` sequences of the caches (layers, batch, kv_heads, positions, head_dim).

    `tokens`, `positions`: (rows,) integers, each sequence at its own position; the caches are written there, and `logits` (rows, V).
    Positions must lie inside the cache and the rotary table. Steps share their scratch: one at a time.
    """
    # An axis for the sequences is in front, if there are several: numpy is faster with fewer axes.
    single = rows == 1
    lead: tuple[int, ...] = () if single else (rows,)
    all_keys, all_values = (all_keys[:, 0], all_values[:, 0]) if single else (all_keys[:, :rows], all_values[:, :rows])
    rope = weights.rope.view(np.complex64)
    rope = rope if single else rope[:, None]
    which = np.arange(rows)
    hidden, inner_size, kv_heads, group, dim = config.hidden_size, config.intermediate_size, config.kv_heads, config.group, config.head_dim
    eps, qk_eps = config.rms_norm_eps * hidden, config.rms_norm_eps * dim
    bias, bounded = config.attention_bias, bool(weights.score_bound.max() <= SAFE_SCORE)

    def scratch(*shape: int) -> Array:
        return np.empty((*lead, *shape), np.float32)

    # `dot` takes only matrices that are contiguous, with their gaps, so a single sequence has room for the zeros that come from these.
    gap = GAP if single else 0
    matrices = weights.w_qkv, weights.w_o, weights.w_gate_up, weights.w_down
    w_qkvs, w_os, w_gate_ups, w_downs = matrices if single else map(without_gap, matrices)
    several = cores.blas.threads() > 1
    stretch = [stretched(w_qkvs, number) if single and several else (w_qkv, 0) for number, w_qkv in enumerate(w_qkvs)]
    margin = max(len(matrix) for matrix, _ in stretch) - hidden
    wide = np.zeros((*lead, margin + hidden + margin), np.float32)  # `normed` in the middle, and 0 for the rows of neighbours
    entries = [wide[..., margin - own : margin - own + len(matrix)] for matrix, own in stretch]
    into_qkv, bounds = [matrix for matrix, _ in stretch], weights.score_bound[:, 0].tolist()
    layers = list(zip(entries, into_qkv, weights.b_qkv, weights.qk_norm, bounds, w_os, weights.b_o, w_gate_ups, w_downs, strict=True))

    x, normed, sum_and_gap = scratch(hidden), wide[..., margin : margin + hidden], scratch(hidden + gap)
    summed = sum_and_gap[..., :hidden]
    qkv_and_gap, split = scratch(config.q_size + 2 * config.kv_size + gap), config.q_size + config.kv_size
    qkv = qkv_and_gap[..., : split + config.kv_size]
    qk, new_values = qkv[..., :split].reshape(*lead, -1, dim), qkv[..., split:].reshape(*lead, kv_heads, dim)
    qk_rows, qk_columns, rotated = qk[..., None, :], qk[..., None], qk.view(np.complex64)
    queries, new_keys = qk[..., : config.heads, :].reshape(*lead, kv_heads, group, dim), qk[..., config.heads :, :]
    squares = scratch(config.heads + kv_heads, 1, 1)
    lengths = squares[..., 0]
    attended = scratch(kv_heads, group, dim)
    concatenated = attended.reshape(*lead, config.q_size)
    gate_up_and_gap, inner = scratch(2 * inner_size + gap), scratch(inner_size)
    gate, up = gate_up_and_gap[..., :inner_size], gate_up_and_gap[..., inner_size : 2 * inner_size]

    product: Product = np.ndarray.dot if single else product_of(rows)
    head = without_gap(weights.head)
    normalize = Norm(x, eps, normed)
    matmul, add, multiplied, divide, sqrt, exp, root = np.matmul, np.add, np.multiply, np.divide, np.sqrt, np.exp, math.sqrt

    def step(tokens: Ids, positions: Ids, logits: Array) -> None:
        last = int(positions.max())
        count = last + 1
        mask: Array | None = None
        place: tuple[Any, ...] = ..., last, slice(None)
        if not single and not (positions == last).all():
            mask = np.where(np.arange(count) <= positions[:, None], np.float32(0), np.float32(-np.inf))[:, None, None]
            place = which, slice(None), positions
        rotation = rope[last] if single else rope[positions]
        seen = scores, sums, ones = Scores.of((*lead, kv_heads, group), count)
        short = bounded and mask is None and in_one_tile(count, group)
        x[:] = weights.embed[tokens[0] if single else tokens]
        with np.errstate(over="ignore", invalid="ignore"):
            for layer, keys, values in zip(layers, all_keys[..., :count, :], all_values[..., :count, :], strict=True):
                entry, w_qkv, b_qkv, qk_norm, bound, w_o, b_o, w_gate_up, w_down = layer
                if single:
                    multiplied(x, 1 / root(float(x.dot(x)) + eps), normed)
                else:
                    normalize()
                product(entry, w_qkv, qkv_and_gap)
                if bias:
                    add(qkv, b_qkv, qkv)
                matmul(qk_rows, qk_columns, squares)
                add(lengths, qk_eps, lengths)
                sqrt(lengths, lengths)
                divide(qk, lengths, qk)
                multiplied(qk, qk_norm, qk)
                multiplied(rotated, rotation, rotated)
                keys[place] = new_keys
                values[place] = new_values
                if short:  # `attend_decode` in four lines
                    matmul(queries, keys.swapaxes(-1, -2), scores)
                    exp(scores, scores)
                    matmul(scores, ones, sums)
                    matmul(scores, values, attended)
                    divide(attended, sums, attended)
                else:
                    attend_decode(queries, keys, values, mask, bound, seen, attended)
                product(concatenated, w_o, sum_and_gap)
                if bias:
                    add(x, b_o, x)
                add(x, summed, x)
                if single:
                    multiplied(x, 1 / root(float(x.dot(x)) + eps), normed)
                else:
                    normalize()
                product(normed, w_gate_up, gate_up_and_gap)
                exp(gate, inner)  # `swiglu`
                add(inner, 1, inner)
                divide(gate, inner, inner)
                multiplied(inner, up, inner)
                product(inner, w_down, sum_and_gap)
                add(x, summed, x)
            if single:
                multiplied(x, 1 / root(float(x.dot(x)) + eps), normed)
                matmul(normed, head, logits[0])  # `dot` would want room for zeros in the logits
            else:
                normalize()
                product(normed, head, logits)
        if several:
            cores.blas.mark_shared_out()

    return step
