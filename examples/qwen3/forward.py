"""The forward pass of Qwen3 in numpy: plain functions over arrays, float32 throughout.

Both a direct loop (`direct.py`) and the kernels of `programs.py` call these. The KV caches are
(layers, batch, kv_heads, positions, head_dim). What is folded into the weights stands in `weights.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from examples.qwen3.attention import attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.weights import Array, Weights

Ids = NDArray[np.int64]

# For so many rows, products with tiles of the matrix are faster than one with all of it: BLAS multiplies small matrices as they are
# (OpenBLAS, while rows x TILE is below 100 cubed) and packs large ones first, which so few rows do not pay for. A tile is 240 KB of L2.
TILED_ROWS = range(2, 17)
TILE = 60_000  # elements
WIDTH = 3072  # columns of a tile, at most: the sums for them stay in the cache too


def multiply(x: Array, matrix: Array, out: Array) -> None:
    """`out = x @ matrix`, (n, K) by (K, N), in the fastest way for n rows and one BLAS thread."""
    if len(x) not in TILED_ROWS or matrix.size <= TILE:
        np.matmul(x, matrix, out=out)
        return
    inner, columns = matrix.shape
    width = -(-columns // -(-columns // WIDTH))
    height = TILE // width
    product = np.empty((len(x), width), np.float32)
    for left in range(0, columns, width):
        tiles, sums = matrix[:, left : left + width], out[:, left : left + width]
        addend = product[:, : sums.shape[1]]
        np.matmul(x[:, :height], tiles[:height], out=sums)
        for top in range(height, inner, height):
            np.matmul(x[:, top : top + height], tiles[top : top + height], out=addend)
            sums += addend


def normalize(x: Array, eps: float, out: Array) -> None:
    """`x / sqrt(sum(x²) + eps)` over the last axis: an RMSNorm, with its weight and sqrt(n) folded in behind it."""
    if x.ndim == 2 and len(x) == 1:
        row = x[0]
        np.multiply(x, 1 / math.sqrt(float(row.dot(row)) + eps), out=out)
        return
    length = np.matmul(x[..., None, :], x[..., :, None])[..., 0]
    length += eps
    np.sqrt(length, out=length)
    np.divide(x, length, out=out)


def swiglu(gate_up: Array, out: Array) -> None:
    """`silu(gate) * up`; `gate_up` (n, 2 I), `out` (n, I). An overflow of exp gives 0, as it should."""
    inner = out.shape[-1]
    gate, up = gate_up[:, :inner], gate_up[:, inner:]
    np.negative(gate, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(gate, out, out=out)
    out *= up


class Step:
    """Scratch of one pass over n rows, used again by each layer: it is made once for each pass, never shared."""

    def __init__(self, config: Config, weights: Weights, rows: int) -> None:
        self.config = config
        self.weights = weights
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        self.eps = config.rms_norm_eps * config.hidden_size
        self.qk_eps = config.rms_norm_eps * dim
        self.normed = np.empty((rows, config.hidden_size), np.float32)
        self.qkv = np.empty((rows, config.q_size + 2 * config.kv_size), np.float32)
        split = config.q_size + config.kv_size
        self.qk = self.qkv[:, :split].reshape(rows, heads + kv_heads, dim)
        self.values = self.qkv[:, split:].reshape(rows, kv_heads, dim)
        self.attended = np.empty((rows, kv_heads, config.group, dim), np.float32)
        self.gate_up = np.empty((rows, 2 * config.intermediate_size), np.float32)
        self.inner = np.empty((rows, config.intermediate_size), np.float32)
        rotated = self.qk.view(np.complex64)
        self.rotated = rotated
        self.queries = self.qk[:, :heads].reshape(rows, kv_heads, config.group, dim)
        self.keys = self.qk[:, heads:]

    def project(self, x: Array, layer: int, rotation: NDArray[np.complex64]) -> None:
        """Fill `queries`, `keys` (normed, rotated) and `values` from `x` (n, H)."""
        normalize(x, self.eps, self.normed)
        multiply(self.normed, self.weights.w_qkv[layer], self.qkv)
        if self.config.attention_bias:
            self.qkv += self.weights.b_qkv[layer]
        normalize(self.qk, self.qk_eps, self.qk)
        self.qk *= self.weights.qk_norm[layer]
        self.rotated *= rotation

    def finish(self, x: Array, layer: int) -> None:
        """Add what was attended, and the MLP, to `x`."""
        weights = self.weights
        multiply(self.attended.reshape(len(x), -1), weights.w_o[layer], self.normed)
        if self.config.attention_bias:
            x += weights.b_o[layer]
        x += self.normed
        normalize(x, self.eps, self.normed)
        multiply(self.normed, weights.w_gate_up[layer], self.gate_up)
        swiglu(self.gate_up, self.inner)
        multiply(self.inner, weights.w_down[layer], self.normed)
        x += self.normed


def decode_step(config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, positions: Ids, logits: Array) -> None:
    """One token for each of n sequences, the first n of the cache.

    `tokens`, `positions`: (n,) integers, each sequence at its own position; `keys`, `values`: the caches, written at
    those positions; `logits`: (n, V), written. Positions must lie inside the cache and the rotary table.
    """
    rows = len(tokens)
    last = int(positions.max())
    same = bool((positions == last).all())
    step = Step(config, weights, rows)
    scores = np.empty((rows, config.kv_heads, config.group, last + 1), np.float32)
    mask = None
    if not same:
        visible = np.arange(last + 1) <= positions[:, None]
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))[:, None, None]
    rotation = weights.rope.view(np.complex64)[positions][:, None]
    which = np.arange(rows)
    x = weights.embed[tokens]
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in range(config.layers):
            step.project(x, layer, rotation)
            layer_keys, layer_values = keys[layer], values[layer]
            if same:
                layer_keys[:rows, :, last] = step.keys
                layer_values[:rows, :, last] = step.values
            else:
                layer_keys[which, :, positions] = step.keys
                layer_values[which, :, positions] = step.values
            seen = slice(None, rows), slice(None), slice(None, last + 1)
            bound = float(weights.score_bound[layer, 0])
            attend_decode(step.queries, layer_keys[seen], layer_values[seen], mask, bound, scores, step.attended)
            step.finish(x, layer)
        normalize(x, step.eps, step.normed)
        multiply(step.normed, weights.head, logits)


def prefill(config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, slot: int, logits: Array) -> None:
    """A whole prompt of one sequence, from position 0.

    `tokens`: (n,) integers; `keys`, `values`: the caches, written at `slot` for positions 0 to n-1; `logits`: (V,),
    written, of the last token only.
    """
    rows = len(tokens)
    step = Step(config, weights, rows)
    rotation = weights.rope.view(np.complex64)[:rows, None]
    x = weights.embed[tokens]
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in range(config.layers):
            step.project(x, layer, rotation)
            layer_keys, layer_values = keys[layer, slot, :, :rows], values[layer, slot, :, :rows]
            layer_keys[:] = step.keys.swapaxes(0, 1)
            layer_values[:] = step.values.swapaxes(0, 1)
            bound = float(weights.score_bound[layer, 0])
            if layer + 1 < config.layers:
                attend_prefill(step.queries, layer_keys, layer_values, bound, step.attended)
                step.finish(x, layer)
        # Of the last layer only the last token's output is wanted; the others have left their keys and values.
        scores = np.empty((1, config.kv_heads, config.group, rows), np.float32)
        tail, x = Step(config, weights, 1), x[-1:]
        attend_decode(step.queries[-1:], layer_keys[None], layer_values[None], None, bound, scores, tail.attended)
        tail.finish(x, layer)
        normalize(x, tail.eps, tail.normed)
        multiply(tail.normed, weights.head, logits[None])
