"""Prefill of Qwen3 in numpy: a whole prompt of one sequence, from position 0.

Where BLAS has several threads, the rows of a long prompt are shared out to threads of Python (`cores.py`): each takes a run of rows through
all layers. In a layer they meet once, when all keys and values are in the cache.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from itertools import pairwise

import numpy as np

from examples.qwen3 import cores
from examples.qwen3.attention import Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.forward import Ids, Step
from examples.qwen3.weights import Array, Weights

LEAST_SHARE = 128  # rows; on fewer, BLAS alone uses the cores as well
ATTENTION_WEIGHT = 2  # a multiplication of attention, in small products and with its softmax, against one with weights


def prefill(config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, slot: int, logits: Array) -> None:
    """Fill the caches and the logits behind a prompt.

    `tokens`: (n,) integers; `keys`, `values`: the caches, written at `slot` for positions 0 to n-1; `logits`: (V,),
    written, of the last token only.
    """
    count = len(tokens)
    parts = max(1, min(cores.threads_to_borrow(), count // LEAST_SHARE))
    ends = shares(config, count, parts)
    meeting = threading.Barrier(parts)
    run = Pass(config, weights, keys[:, slot, :, :count], values[:, slot, :, :count], tokens, logits, meeting)
    cores.run_together([partial(run.take, start, end) for start, end in pairwise([0, *ends])], meeting)


def shares(config: Config, count: int, parts: int) -> list[int]:
    """The ends of `parts` runs of rows that cost the same: a row meets all weights of a layer, and each row up to itself in attention."""
    of_weights = config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    of_a_pair = 2 * config.q_size * ATTENTION_WEIGHT
    ratio = of_weights / of_a_pair  # r rows from the first on cost ratio · r + r² / 2
    total = ratio * count + count * count / 2
    return [round(math.sqrt(ratio * ratio + 2 * total * part / parts) - ratio) for part in range(1, parts)] + [count]


class Pass:
    """A prompt on its way through the layers. `keys`, `values`: (layers, kv_heads, n, head_dim), those of the prompt alone."""

    def __init__(
        self, config: Config, weights: Weights, keys: Array, values: Array, tokens: Ids, logits: Array, meeting: threading.Barrier
    ) -> None:
        self._config = config
        self._weights = weights
        self._keys, self._values = keys, values
        self._tokens = tokens
        self._logits = logits
        self._meeting = meeting

    def take(self, start: int, end: int) -> None:
        """Rows `start` to `end` through all layers; of the last, they only leave their keys and values, but for the last token."""
        config, weights = self._config, self._weights
        step = Step(config, weights.embed[self._tokens[start:end]])
        projection = step.projection
        rotation = weights.rope.view(np.complex64)[start:end, None]
        layers = weights.layers()
        with np.errstate(over="ignore", invalid="ignore"):
            for layer, keys, values in zip(layers, self._keys, self._values, strict=True):
                projection.project(layer.heads, rotation)
                keys[:, start:end] = projection.keys.swapaxes(0, 1)
                values[:, start:end] = projection.values.swapaxes(0, 1)
                self._meeting.wait()
                if layer is not layers[-1]:
                    attend_prefill(projection.queries, keys[:, :end], values[:, :end], layer.heads.score_bound, step.attended)
                    step.finish(layer)
            if end == len(self._tokens):
                self._leave(step)

    def _leave(self, step: Step) -> None:
        """The last row of `step` through the rest of the last layer, to the logits."""
        config, weights = self._config, self._weights
        layer, keys, values = weights.layers()[-1], self._keys[-1:], self._values[-1:]
        tail, scratch = Step(config, step.x[-1:]), Scores.of((1, config.kv_heads, config.group), len(self._tokens))
        attend_decode(step.projection.queries[-1:], keys, values, None, layer.heads.score_bound, scratch, tail.attended)
        tail.finish(layer)
        tail.leave(weights.head, self._logits[None])
