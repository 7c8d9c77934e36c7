"""The forward pass of Qwen3 in numpy, float32 throughout: the parts of a pass; `prefill.py` and `decode.py` have the passes.

Both a direct loop (`direct.py`) and the kernels of `programs.py` call these. The KV caches are
(layers, batch, kv_heads, positions, head_dim). What is folded into the weights stands in `weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from examples.qwen3 import cores
from examples.qwen3.config import Config
from examples.qwen3.weights import Array, Heads, Layer

Ids = NDArray[np.int64]

# For so many rows, products with tiles of the matrix are faster than one with all of it: BLAS multiplies small matrices as they are
# (OpenBLAS, while rows x TILE is below 100 cubed) and packs large ones first, which so few rows do not pay for. A tile is 240 KB of L2.
TILED_ROWS = range(2, 17)
TILE = 60_000  # elements
WIDTH = 3072  # columns of a tile, at most: the sums for them stay in the cache too

Product = Callable[[Array, Array, Array], object]


def product_of(rows: int) -> Product:
    """What fills `out = x @ matrix`, (rows, K) by (K, N), in the fastest way. Several threads of BLAS share out a matrix, but no tiles."""
    return multiply_by_tiles if rows in TILED_ROWS and cores.blas.threads() == 1 else np.matmul


def multiply_by_tiles(x: Array, matrix: Array, out: Array) -> None:
    """`out = x @ matrix`, (n, K) by (K, N)."""
    if matrix.size <= TILE:
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
    """The first half of a layer, up to the attention, over `x` (n, H): scratch that each layer uses again. `normed`: like `x`, written.

    `queries`: whether they are wanted, or keys and values alone.
    """

    def __init__(self, config: Config, x: Array, normed: Array, queries: bool = True) -> None:
        rows, kv_heads, dim = len(x), config.kv_heads, config.head_dim
        heads = config.heads if queries else 0
        self._heads, self._columns = slice(config.heads - heads, None), slice(config.q_size - heads * dim, None)
        self._bias = config.attention_bias
        self._multiply = product_of(rows)
        self._normed = normed
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, normed)
        split = heads * dim + config.kv_size
        self._qkv = np.empty((rows, split + config.kv_size), np.float32)
        self._qk = self._qkv[:, :split].reshape(rows, heads + kv_heads, dim)
        self._normalize_qk = Norm(self._qk, config.rms_norm_eps * dim, self._qk)
        self._rotated = self._qk.view(np.complex64)
        self.queries = self._qk[:, :heads].reshape(rows, kv_heads, heads // kv_heads, dim)
        self.keys = self._qk[:, heads:]
        self.values = self._qkv[:, split:].reshape(rows, kv_heads, dim)

    def project(self, heads: Heads, rotation: NDArray[np.complex64]) -> None:
        """Fill `queries`, `keys` (normed, rotated) and `values` from `x`; `rotation`: (n, 1, D / 2)."""
        self._normalize()
        self._multiply(self._normed, heads.w_qkv[:, self._columns], self._qkv)
        if self._bias:
            self._qkv += heads.b_qkv[self._columns]
        self._normalize_qk()
        np.multiply(self._qk, heads.qk_norm[self._heads], self._qk)
        np.multiply(self._rotated, rotation, self._rotated)


class Mlp:
    """The second half of a layer, over `x` (n, H): scratch that each layer uses again. `normed`: like `x`, written."""

    def __init__(self, config: Config, x: Array, normed: Array) -> None:
        self._multiply = product_of(len(x))
        self._normed = normed
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, normed)
        self._gate_up = np.empty((len(x), 2 * config.intermediate_size), np.float32)
        self._inner = np.empty((len(x), config.intermediate_size), np.float32)

    def feed(self, w_gate_up: Array, w_down: Array, out: Array) -> None:
        """Fill `out` (n, H) from `x`."""
        self._normalize()
        self._multiply(self._normed, w_gate_up, self._gate_up)
        swiglu(self._gate_up, self._inner)
        self._multiply(self._inner, w_down, out)


class Step:
    """A pass over `x` (n, H), which goes from layer to layer. Never shared."""

    def __init__(self, config: Config, x: Array) -> None:
        self.x = x
        self.attended = np.empty((len(x), config.kv_heads, config.group, config.head_dim), np.float32)
        self._attended = self.attended.reshape(len(x), config.q_size)
        self._bias = config.attention_bias
        self._multiply = product_of(len(x))
        self._normed = np.empty_like(x)
        self._normalize = Norm(x, config.rms_norm_eps * config.hidden_size, self._normed)
        self.projection = Projection(config, x, self._normed)
        self._mlp = Mlp(config, x, self._normed)

    def finish(self, layer: Layer) -> None:
        """Add what was attended, and the MLP, to `x`."""
        x, sum_of_heads = self.x, self._normed
        self._multiply(self._attended, layer.heads.w_o, sum_of_heads)
        if self._bias:
            x += layer.b_o
        np.add(x, sum_of_heads, x)
        self._mlp.feed(layer.w_gate_up, layer.w_down, self._normed)
        np.add(x, self._normed, x)

    def leave(self, head: Array, logits: Array) -> None:
        """Fill `logits` (n, V) from `x`."""
        self._normalize()
        self._multiply(self._normed, head, logits)
