"""Prefill of Qwen3 in numpy: a whole prompt of one sequence, from position 0.

Where BLAS has several threads, the rows of a long prompt are shared out to threads of Python (`cores.py`): each takes a run of rows through
all layers. In each, a run waits for the keys and values of those in front of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from examples.qwen3 import cores
from examples.qwen3.attention import Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.forward import Ids, Projection, Step
from examples.qwen3.weights import Array, Layer, Weights, without_gap

LEAST_SHARE = 128  # rows; on fewer, BLAS alone uses the cores as well
ATTENTION_WEIGHT = 2  # a multiplication of attention, in small products and with its softmax, against one with weights


def prefill(config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, slot: int, logits: Array) -> None:
    """Fill the caches and the logits behind a prompt.

    `tokens`: (n,) integers; `keys`, `values`: the caches, written at `slot` for positions 0 to n-1; `logits`: (V,),
    written, of the last token only.
    """
    count = len(tokens)
    parts = max(1, min(cores.blas.available(), count // LEAST_SHARE))
    ends = shares(config, count, parts)
    relay = cores.Relay(parts)
    run = Pass(config, weights, keys[:, slot, :, :count], values[:, slot, :, :count], weights.embed[tokens], logits)
    shared = [partial(run.take, start, end, partial(relay.come, number)) for number, (start, end) in enumerate(pairwise([0, *ends]))]
    cores.run_together(shared, relay)
    if parts == 1 and cores.blas.threads() > 1:
        cores.blas.mark_shared_out()


def shares(config: Config, count: int, parts: int) -> list[int]:
    """The ends of `parts` runs of rows that cost the same: a row meets all weights of a layer, and each row up to itself in attention."""
    of_weights = config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    of_a_pair = 2 * config.q_size * ATTENTION_WEIGHT
    ratio = of_weights / of_a_pair  # r rows from the first on cost ratio · r + r² / 2
    total = ratio * count + count * count / 2
    return [round(math.sqrt(ratio * ratio + 2 * total * part / parts) - ratio) for part in range(1, parts)] + [count]


class Pass:
    """A prompt on its way through the layers. `keys`, `values`: (layers, kv_heads, n, head_dim), those of the prompt alone; `x`: (n, H),
    changed."""

    def __init__(self, config: Config, weights: Weights, keys: Array, values: Array, x: Array, logits: Array) -> None:
        self._config = config
        self._weights = weights
        self._keys, self._values = keys, values
        self._x = x
        self._logits = logits
        self._rotation = weights.rope.view(np.complex64)[: len(x), None]

    def take(self, start: int, end: int, wait: Callable[[], None]) -> None:
        """Rows `start` to `end` through all layers; of the last one, only keys and values are wanted, but for the last token.

        `wait`: is called when those of the rows are in the cache, and returns when those of all rows before them are.
        """
        step = Step(self._config, self._x[start:end])
        projection = step.projection
        *others, last = zip(self._weights.layers(), self._keys, self._values, strict=True)
        with np.errstate(over="ignore", invalid="ignore"):
            for layer, keys, values in others:
                self._remember(projection, layer, keys, values, start, end)
                wait()
                attend_prefill(projection.queries, keys[:, :end], values[:, :end], layer.heads.score_bound, step.attended)
                step.finish(layer)
            self._remember(Projection(self._config, step.x, np.empty_like(step.x), queries=False), *last, start, end)
            wait()
            if end == len(self._x):
                self._leave(step.x[-1:], *last)

    def _remember(self, projection: Projection, layer: Layer, keys: Array, values: Array, start: int, end: int) -> None:
        """The keys and values of rows `start` to `end` enter the cache."""
        projection.project(layer.heads, self._rotation[start:end])
        keys[:, start:end] = projection.keys.swapaxes(0, 1)
        values[:, start:end] = projection.values.swapaxes(0, 1)

    def _leave(self, x: Array, layer: Layer, keys: Array, values: Array) -> None:
        """The last token, `x` (1, H), through the last layer, to the logits."""
        config, bound = self._config, layer.heads.score_bound
        step, scratch = Step(config, x), Scores.of((1, config.kv_heads, config.group), len(self._x))
        step.projection.project(layer.heads, self._rotation[-1:])
        attend_decode(step.projection.queries, keys[None], values[None], None, bound, scratch, step.attended)
        step.finish(layer)
        step.leave(without_gap(self._weights.head), self._logits[None])
