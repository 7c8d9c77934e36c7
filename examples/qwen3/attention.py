"""Attention of grouped queries over a KV cache, in numpy.

The cache of one layer is (batch, kv_heads, positions, head_dim): each sequence owns its rows, so decode reads them in
place. Pages, `(kv_heads, pages, 16, head_dim)`, would cost a gather at each step (37–60 % at 512 tokens and batch
16–32); they pay off when many sequences come and go, which is the serving engine's case and not this one's.
Keys are stored by rows too: writing a token is one contiguous copy, and BLAS reads them transposed as fast.
"""

from __future__ import annotations

import numpy as np

from examples.qwen3.weights import Array

# Scores of one key head in one product: up to here OpenBLAS multiplies the keys as they are, and packs them first beyond.
TILE = 1024
# Query rows of one block in prefill: the scores of a block stay in the L2 cache, the wasted triangle stays small.
BLOCK = 64
# exp(60) summed over a billion tokens is still a float32.
SAFE_SCORE = 60.0


def softmax_weights(scores: Array, bound: float) -> Array:
    """Exponentials of `scores` (…, n), in place; returns their sums (…, 1).

    They are shifted by their maximum, unless `bound`, the largest that they can be, says that none will overflow.
    """
    if bound > SAFE_SCORE:
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    # A product with ones: BLAS adds rows twice as fast as `np.add.reduce` does.
    sums: Array = np.matmul(scores, np.ones((scores.shape[-1], 1), np.float32))
    return sums


def attend_decode(queries: Array, keys: Array, values: Array, mask: Array | None, bound: float, scores: Array, out: Array) -> None:
    """One query token for each sequence.

    `queries`, `out`: (batch, kv_heads, group, head_dim), rotated and scaled; `keys`, `values`: (batch, kv_heads, n,
    head_dim); `mask`: (batch, 1, 1, n) of 0 and -inf, or None where all sequences are n tokens long;
    `bound`: the largest that a score can be; `scores`: scratch (batch, kv_heads, group, n).
    """
    count = keys.shape[2]
    positions = max(1, TILE // queries.shape[2])
    for start in range(0, count, positions):
        some = slice(start, start + positions)
        np.matmul(queries, keys[:, :, some].swapaxes(2, 3), out=scores[..., some])
    if mask is not None:
        scores += mask
    sums = softmax_weights(scores, bound)
    np.matmul(scores[..., :positions], values[:, :, :positions], out=out)
    for start in range(positions, count, positions):
        some = slice(start, start + positions)
        out += np.matmul(scores[..., some], values[:, :, some])
    out /= sums


def attend_prefill(queries: Array, keys: Array, values: Array, bound: float, out: Array) -> None:
    """Causal attention of a whole prompt, by blocks of query rows, each against the keys up to its end.

    `queries`, `out`: (n, kv_heads, group, head_dim); `keys`, `values`: (kv_heads, n, head_dim), of the same n tokens;
    `bound`: the largest that a score can be.
    """
    count, kv_heads, group, _ = queries.shape
    by_head = queries.transpose(1, 2, 0, 3)
    out_by_head = out.transpose(1, 2, 0, 3)
    future = np.triu(np.full((BLOCK, BLOCK), -np.inf, np.float32), 1)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        rows = end - start
        scores = np.empty((kv_heads, group, rows, end), np.float32)
        np.matmul(by_head[:, :, start:end], keys[:, None, :end].swapaxes(2, 3), out=scores)
        scores[..., start:] += future[:rows, :rows]
        sums = softmax_weights(scores, bound)
        block = out_by_head[:, :, start:end]
        np.matmul(scores, values[:, None, :end], out=block)
        block /= sums
