"""Attention of grouped queries over a KV cache, in numpy.

The cache of one layer is (batch, kv_heads, positions, head_dim): each sequence owns its rows, so decode reads them in
place. Pages, `(kv_heads, pages, 16, head_dim)`, would cost a gather at each step (37–60 % at 512 tokens and batch
16–32); they pay off when many sequences come and go, which is the serving engine's case and not this one's.
Keys are stored by rows too: writing a token is one contiguous copy, and BLAS reads them transposed as fast.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from examples.qwen3.weights import Array

# Scores of one key head in one product: up to here OpenBLAS multiplies the keys as they are, and packs them first beyond.
TILE = 1024
# Query rows of one block in prefill: the scores of a block stay in the L2 cache, the wasted triangle stays small.
BLOCK = 64
# exp(60) summed over a billion tokens is still a float32.
SAFE_SCORE = 60.0


class Scores(NamedTuple):
    """Scratch for the attention of one query token of each sequence, used again by each layer."""

    scores: Array  # (…, kv_heads, group, n)
    sums: Array  # (…, kv_heads, group, 1)
    ones: Array  # (n, 1)

    @classmethod
    def of(cls, rows: tuple[int, ...], count: int) -> Self:
        """For `count` tokens of each sequence and `rows`, (…, kv_heads, group)."""
        return cls(np.empty((*rows, count), np.float32), np.empty((*rows, 1), np.float32), np.ones((count, 1), np.float32))


def in_one_tile(count: int, group: int) -> bool:
    """Are the scores of `group` query heads for `count` tokens one tile?"""
    return count * group <= TILE


def softmax_weights(scores: Array, bound: float, ones: Array, sums: Array) -> None:
    """Exponentials of `scores` (…, n), in place, and their `sums` (…, 1); `ones`: (n, 1).

    They are shifted by their maximum, unless `bound`, the largest that they can be, says that none will overflow.
    """
    if bound > SAFE_SCORE:
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, scores)
    # A product with ones: BLAS adds rows twice as fast as `np.add.reduce` does.
    np.matmul(scores, ones, sums)


def attend_decode(queries: Array, keys: Array, values: Array, mask: Array | None, bound: float, scratch: Scores, out: Array) -> None:
    """One query token for each sequence.

    `queries`, `out`: (…, kv_heads, group, head_dim), rotated and scaled; `keys`, `values`: (…, kv_heads, n, head_dim);
    `mask`: (batch, 1, 1, n) of 0 and -inf, or None where all sequences are n tokens long; `bound`: the largest that a
    score can be. The first axis is that of the sequences; a single one needs none.
    """
    scores, sums, ones = scratch
    group, count = scores.shape[-2:]
    positions = max(1, TILE // group)
    tiles = [slice(start, start + positions) for start in range(0, count, positions)]
    for some in tiles:
        np.matmul(queries, keys[..., some, :].swapaxes(-1, -2), out=scores[..., some])
    if mask is not None:
        scores += mask
    softmax_weights(scores, bound, ones, sums)
    np.matmul(scores[..., tiles[0]], values[..., tiles[0], :], out=out)
    for some in tiles[1:]:
        out += np.matmul(scores[..., some], values[..., some, :])
    out /= sums


def attend_prefill(queries: Array, keys: Array, values: Array, bound: float, out: Array) -> None:
    """Causal attention of the last n tokens of a prompt, by blocks of query rows, each against the keys up to its end.

    `queries`, `out`: (n, kv_heads, group, head_dim); `keys`, `values`: (kv_heads, n or more, head_dim), up to the same last token;
    `bound`: the largest that a score can be. The queries of a group are rows of one product with its keys.
    """
    count, kv_heads, group, dim = queries.shape
    earlier = keys.shape[1] - count  # tokens before the first query
    by_head, out_by_head = queries.transpose(1, 2, 0, 3), out.transpose(1, 2, 0, 3)
    future = np.triu(np.full((BLOCK, BLOCK), -np.inf, np.float32), 1)
    ones = np.ones((earlier + count, 1), np.float32)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        rows, first, seen = end - start, earlier + start, earlier + end
        several = by_head[:, :, start:end].reshape(kv_heads, group * rows, dim)
        scores = np.matmul(several, keys[:, :seen].swapaxes(1, 2))
        scores.reshape(kv_heads, group, rows, seen)[..., first:] += future[:rows, :rows]
        sums = np.empty((kv_heads, group * rows, 1), np.float32)
        softmax_weights(scores, bound, ones[:seen], sums)
        attended = np.matmul(scores, values[:, :seen])
        np.divide(attended, sums, attended)
        out_by_head[:, :, start:end] = attended.reshape(kv_heads, group, rows, dim)
