"""How the next token is chosen from the logits."""

from __future__ import annotations

import numpy as np

from examples.qwen3.errors import CheckpointError
from examples.qwen3.weights import Array


class Sampler:
    """Greedy at `temperature` 0 (ties go to the lowest id); above, a draw from softmax(logits / temperature).

    `top_k` (0: off) keeps the k likeliest tokens, `top_p` (1: off) the fewest of them that reach that probability.
    The same `seed` gives the same draws; None takes one from the system.
    """

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._rng = np.random.default_rng(seed)

    def choose(self, logits: Array) -> int:
        """The id of one token; `logits`: (V,). Raises `CheckpointError` where they are not finite."""
        best = int(np.argmax(logits))
        if not np.isfinite(logits[best]):
            raise CheckpointError("the logits are not finite, so the weights are damaged; download the weights again")
        if self.temperature == 0:
            return best
        ids, weights = self._kept(logits)
        sums = np.cumsum(weights)
        # The last sum is what `random` (below 1) is scaled by, so that the index stays inside.
        place = int(np.searchsorted(sums, self._rng.random() * sums[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def _kept(self, logits: Array) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], np.ndarray]:
        """The ids that may be drawn, and a weight for each that is proportional to its probability."""
        with np.errstate(over="ignore", under="ignore"):
            weights = np.exp((logits.astype(np.float64) - logits.max()) / self.temperature)
        ids = np.arange(len(logits))
        if not self.top_k and self.top_p >= 1:
            return ids, weights
        if 0 < self.top_k < len(ids):
            # By logits, since the smallest weights are all 0; among equals the lowest id stays.
            edge = np.partition(logits, -self.top_k)[-self.top_k]
            above = np.flatnonzero(logits > edge)
            ids = np.concatenate([above, np.flatnonzero(logits == edge)[: self.top_k - len(above)]])
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        weights = weights[ids]
        if self.top_p < 1:
            sums = np.cumsum(weights)
            count = int(np.searchsorted(sums, self.top_p * sums[-1])) + 1
            ids, weights = ids[:count], weights[:count]
        return ids, weights
