"""How the next token is chosen from the logits. `pick` runs on a device, behind the forward pass, or on the host, by a `Sampler`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.qwen3.errors import CheckpointError
from examples.qwen3.weights import Array

NOT_FINITE = -1  # stands for the token that cannot be chosen
Ids = NDArray[np.int64]


class Sampling(NamedTuple):
    """Greedy at `temperature` 0 (ties go to the lowest id); above, a draw from softmax(logits / temperature).

    `top_k` (0: off) keeps the k likeliest tokens, `top_p` (1: off) the fewest of them that reach that probability.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def pick(logits: Array, sampling: Sampling, draw: float) -> int:
    """The id of one token, by a number `draw` from [0, 1) that greedy needs not; `logits`: (V,). `NOT_FINITE` where they are not."""
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        return NOT_FINITE
    if sampling.temperature == 0:
        return best
    ids, weights = _kept(logits, sampling)
    sums = np.cumsum(weights)
    # The last sum is what `draw` (below 1) is scaled by, so that the index stays inside.
    place = int(np.searchsorted(sums, draw * sums[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def pick_each(logits: Array, sampling: Sampling, draws: NDArray[np.float64], out: Ids) -> None:
    """The same for each of n sequences; `logits`: (n, V), `draws`, `out`: (n,)."""
    if sampling.temperature == 0:
        logits.argmax(axis=1, out=out)
        best = logits[np.arange(len(out)), out]
        if not np.isfinite(best).all():
            out[~np.isfinite(best)] = NOT_FINITE
        return
    for row in range(len(out)):
        out[row] = pick(logits[row], sampling, draws[row])


def checked(token: int) -> int:
    """A token that was picked. Raises `CheckpointError` where none could be."""
    if token == NOT_FINITE:
        raise CheckpointError("the logits are not finite, so the weights are damaged; download the weights again")
    return token


class Sampler:
    """Picks one token after another. The same `seed` gives the same draws; None takes one from the system."""

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None) -> None:
        self.sampling = Sampling(temperature, top_k, top_p)
        self._rng = np.random.default_rng(seed)

    @property
    def greedy(self) -> bool:
        """Does it need no draws?"""
        return self.sampling.temperature == 0

    def draws(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Numbers from [0, 1): one for each of the next tokens, in the order in which they come."""
        return self._rng.random(shape)

    def choose(self, logits: Array) -> int:
        """The id of one token; `logits`: (V,). Raises `CheckpointError` where they are not finite."""
        return checked(pick(logits, self.sampling, 0.0 if self.greedy else self.draws((1,))[0]))


def _kept(logits: Array, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids that may be drawn, and a weight for each that is proportional to its probability."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    ids = np.arange(len(logits))
    if not sampling.top_k and sampling.top_p >= 1:
        return ids, weights
    if 0 < sampling.top_k < len(ids):
        # By logits, since the smallest weights are all 0; among equals the lowest id stays.
        edge = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        above = np.flatnonzero(logits > edge)
        ids = np.concatenate([above, np.flatnonzero(logits == edge)[: sampling.top_k - len(above)]])
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    weights = weights[ids]
    if sampling.top_p < 1:
        sums = np.cumsum(weights)
        count = int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1
        ids, weights = ids[:count], weights[:count]
    return ids, weights
