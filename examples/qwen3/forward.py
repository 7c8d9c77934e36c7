"""The forward pass of Qwen3 in numpy, float32 throughout: its parts, and the prefill; `decode.py` has the decode.

Both a direct loop (`direct.py`) and the kernels of `programs.py` call these. The KV caches are
(layers, batch, kv_heads, positions, head_dim). What is folded into the weights stands in `weights.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.qwen3.attention import Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.weights import Array, Heads, Layer, Weights

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


class Norm:
    """Fills `out` with `x / sqrt(sum(x²) + eps)` over the last axis: an RMSNorm, with its weight and sqrt(n) folded in behind it.

    `x` may change between calls, and may be `out`.
    """

    def __init__(self, x: Array, eps: float, out: Array) -> None:
        self._x, self._eps, self._out = x, eps, out
        self._rows, self._columns = x[..., None, :], x[..., :, None]
        self._squares = np.empty((*x.shape[:-1], 1, 1), np.float32)
        self._lengths = self._squares[..., 0]

    def __call__(self) -> None:
        lengths = self._lengths
        np.matmul(self._rows, self._columns, self._squares)
        np.add(lengths, self._eps, lengths)
        np.sqrt(lengths, lengths)
        np.divide(self._x, lengths, self._out)


def swiglu(gate_up: Array, out: Array) -> None:
    """`silu(-gate) * -up`; `gate_up` (n, 2 I), `out` (n, I). Where exp overflows, the quotient is 0, as it should be."""
    inner = out.shape[-1]
    gate, up = gate_up[:, :inner], gate_up[:, inner:]
    np.exp(gate, out)
    np.add(out, 1, out)
    np.divide(gate, out, out)
    np.multiply(out, up, out)


class Projection:
    """The first half of a layer, up to the attention, over `x` (n, H): scratch that each layer uses again. `normed`: like `x`, written."""

    def __init__(self, config: Config, x: Array, normed: Array) -> None:
        rows, heads, kv_heads, dim = len(x), config.heads, config.kv_heads, config.head_dim
        self._bias = config.attention_bias
        self._normed = normed
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, normed)
        self._qkv = np.empty((rows, config.q_size + 2 * config.kv_size), np.float32)
        split = config.q_size + config.kv_size
        self._qk = self._qkv[:, :split].reshape(rows, heads + kv_heads, dim)
        self._normalize_qk = Norm(self._qk, config.rms_norm_eps * dim, self._qk)
        self._rotated = self._qk.view(np.complex64)
        self.queries = self._qk[:, :heads].reshape(rows, kv_heads, config.group, dim)
        self.keys = self._qk[:, heads:]
        self.values = self._qkv[:, split:].reshape(rows, kv_heads, dim)

    def project(self, heads: Heads, rotation: NDArray[np.complex64]) -> None:
        """Fill `queries`, `keys` (normed, rotated) and `values` from `x`; `rotation`: (n, 1, D / 2)."""
        self._normalize()
        multiply(self._normed, heads.w_qkv, self._qkv)
        if self._bias:
            self._qkv += heads.b_qkv
        self._normalize_qk()
        np.multiply(self._qk, heads.qk_norm, self._qk)
        np.multiply(self._rotated, rotation, self._rotated)


class Mlp:
    """The second half of a layer, over `x` (n, H): scratch that each layer uses again. `normed`: like `x`, written."""

    def __init__(self, config: Config, x: Array, normed: Array) -> None:
        self._normed = normed
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, normed)
        self._gate_up = np.empty((len(x), 2 * config.intermediate_size), np.float32)
        self._inner = np.empty((len(x), config.intermediate_size), np.float32)

    def feed(self, w_gate_up: Array, w_down: Array, out: Array) -> None:
        """Fill `out` (n, H) from `x`."""
        self._normalize()
        multiply(self._normed, w_gate_up, self._gate_up)
        swiglu(self._gate_up, self._inner)
        multiply(self._inner, w_down, out)


class Step:
    """A pass over `x` (n, H), which goes from layer to layer. Never shared."""

    def __init__(self, config: Config, x: Array) -> None:
        self.x = x
        self.attended = np.empty((len(x), config.kv_heads, config.group, config.head_dim), np.float32)
        self._attended = self.attended.reshape(len(x), config.q_size)
        self._bias = config.attention_bias
        self._normed = np.empty_like(x)
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, self._normed)
        self.projection = Projection(config, x, self._normed)
        self._mlp = Mlp(config, x, self._normed)

    def finish(self, layer: Layer) -> None:
        """Add what was attended, and the MLP, to `x`."""
        x, sum_of_heads = self.x, self._normed
        multiply(self._attended, layer.heads.w_o, sum_of_heads)
        if self._bias:
            x += layer.b_o
        np.add(x, sum_of_heads, x)
        self._mlp.feed(layer.w_gate_up, layer.w_down, self._normed)
        np.add(x, self._normed, x)

    def leave(self, head: Array, logits: Array) -> None:
        """Fill `logits` (n, V) from `x`."""
        self._normalize()
        multiply(self._normed, head, logits)


def prefill(config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, slot: int, logits: Array) -> None:
    """A whole prompt of one sequence, from position 0.

    `tokens`: (n,) integers; `keys`, `values`: the caches, written at `slot` for positions 0 to n-1; `logits`: (V,),
    written, of the last token only.
    """
    rows = len(tokens)
    step = Step(config, weights.embed[tokens])
    projection = step.projection
    rotation = weights.rope.view(np.complex64)[:rows, None]
    *others, last = weights.layers()

    def project(layer: Layer, layer_keys: Array, layer_values: Array) -> None:
        projection.project(layer.heads, rotation)
        layer_keys[:] = projection.keys.swapaxes(0, 1)
        layer_values[:] = projection.values.swapaxes(0, 1)

    keys, values = keys[:, slot, :, :rows], values[:, slot, :, :rows]
    with np.errstate(over="ignore", invalid="ignore"):
        for layer, layer_keys, layer_values in zip(others, keys[:-1], values[:-1], strict=True):
            project(layer, layer_keys, layer_values)
            attend_prefill(projection.queries, layer_keys, layer_values, layer.heads.score_bound, step.attended)
            step.finish(layer)
        # Of the last layer only the last token's output is wanted; the others leave their keys and values.
        project(last, keys[-1], values[-1])
        tail, scratch = Step(config, step.x[-1:]), Scores.of((1, config.kv_heads, config.group), rows)
        attend_decode(projection.queries[-1:], keys[-1:], values[-1:], None, last.heads.score_bound, scratch, tail.attended)
        tail.finish(last)
        tail.leave(weights.head, logits[None])
