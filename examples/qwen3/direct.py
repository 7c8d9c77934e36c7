"""The same forward pass in a plain loop, without `pypto_actors`: what the tests hold the worker against."""

from __future__ import annotations

import numpy as np

from examples.qwen3.config import Config
from examples.qwen3.decode import make_decode_step
from examples.qwen3.forward import Ids
from examples.qwen3.prefill import prefill
from examples.qwen3.weights import Array, Weights


class DirectModel:
    """A model with its own KV cache for `batch` sequences of at most as many tokens as the rotary table has."""

    def __init__(self, config: Config, weights: Weights, batch: int = 1) -> None:
        self.config = config
        self.weights = weights
        shape = (config.layers, batch, config.kv_heads, len(weights.rope), config.head_dim)
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)

    def prefill(self, tokens: Ids, slot: int = 0) -> Array:
        """Logits (V,) behind the prompt `tokens` (n,), which fills positions 0 to n-1 of sequence `slot`."""
        logits = np.empty(self.config.vocab_size, np.float32)
        prefill(self.config, self.weights, self.keys, self.values, tokens, slot, logits)
        return logits

    def decode_step(self, tokens: Ids, positions: Ids) -> Array:
        """Logits (n, V) behind one further token of each sequence; `tokens`, `positions`: (n,), n up to the batch."""
        logits = np.empty((len(tokens), self.config.vocab_size), np.float32)
        make_decode_step(self.config, self.weights, self.keys, self.values, len(tokens))(tokens, positions, logits)
        return logits
