"""Greedy, temperature, top-k, top-p and seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from examples.qwen3.errors import CheckpointError
from examples.qwen3.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def drawn(sampler: Sampler, logits: np.ndarray[tuple[int], np.dtype[np.float32]] = LOGITS, count: int = 4000) -> Counter[int]:
    return Counter(sampler.choose(logits) for _ in range(count))


def test_greedy_takes_the_largest_and_of_equals_the_lowest() -> None:
    assert Sampler().choose(LOGITS) == 1
    assert Sampler().choose(np.array([0, 3, 1, 3], np.float32)) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = drawn(Sampler(1.0, seed=0))
    assert [counts[token] / 4000 for token in range(5)] == pytest.approx(np.exp(LOGITS), abs=0.03)


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_nearly_even() -> None:
    assert set(drawn(Sampler(1e-300, seed=0), count=50)) == {1}
    assert min(drawn(Sampler(1e6, seed=0)).values()) > 700


def test_top_k_keeps_the_likeliest_and_of_equals_the_lowest() -> None:
    assert set(drawn(Sampler(1.0, top_k=1, seed=0), count=100)) == {1}
    assert set(drawn(Sampler(1.0, top_k=3, seed=0))) == {1, 3, 4}
    assert set(drawn(Sampler(1.0, top_k=99, seed=0))) == {0, 1, 2, 3, 4}
    assert set(drawn(Sampler(1.0, top_k=2, seed=0), np.zeros(5, np.float32))) == {0, 1}


@pytest.mark.parametrize(("share", "kept"), [(0.01, {1}), (0.39, {1}), (0.5, {1, 3}), (0.8, {1, 3, 4}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_fewest_that_reach_it(share: float, kept: set[int]) -> None:
    assert set(drawn(Sampler(1.0, top_p=share, seed=0))) == kept


def test_top_k_and_top_p_together() -> None:
    assert set(drawn(Sampler(1.0, top_k=2, top_p=0.99, seed=0))) == {1, 3}
    assert set(drawn(Sampler(1.0, top_k=4, top_p=0.3, seed=0), count=100)) == {1}


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(1.0, seed=seed)
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_say_so(value: float, temperature: float) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        Sampler(temperature).choose(np.array([0, value, 1], np.float32))
