"""Parts of the forward pass against plain restatements of them, and batches against single sequences."""

from __future__ import annotations

import numpy as np
import pytest

from examples.qwen3 import attention
from examples.qwen3.attention import BLOCK, SAFE_SCORE, Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.direct import DirectModel
from examples.qwen3.forward import WIDTH, multiply, swiglu
from examples.qwen3.weights import Array, interleave, random_weights, rope_table, transposed


def config_of(heads: int = 4, kv_heads: int = 2, bias: bool = False) -> Config:
    return Config(40, 24, 40, 2, heads, kv_heads, 8, 256, attention_bias=bias)


def model_of(config: Config, batch: int = 1) -> DirectModel:
    return DirectModel(config, random_weights(config, config.max_positions, seed=3), batch)


def ids(count: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 40, count)


def plain_attention(queries: Array, keys: Array, values: Array) -> Array:
    """One query (heads, D) against (kv_heads, n, D), in float64."""
    group = len(queries) // len(keys)
    out = np.empty(queries.shape)
    for head, query in enumerate(queries.astype(np.float64)):
        scores = keys[head // group] @ query
        weights = np.exp(scores - scores.max())
        out[head] = weights @ values[head // group] / weights.sum()
    return out.astype(np.float32)


@pytest.mark.parametrize("bound", [SAFE_SCORE / 2, SAFE_SCORE * 2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (12, 2)])
def test_prefill_attention_is_causal_attention(heads: int, kv_heads: int, bound: float) -> None:
    rng = np.random.default_rng(1)
    count, dim = 2 * BLOCK + 5, 8
    queries = rng.standard_normal((count, kv_heads, heads // kv_heads, dim), np.float32)
    keys, values = rng.standard_normal((2, kv_heads, count, dim), np.float32)
    out = np.empty_like(queries)
    attend_prefill(queries, keys, values, bound, out)
    for row in (0, 1, BLOCK - 1, BLOCK, count - 1):
        wanted = plain_attention(queries[row].reshape(heads, dim), keys[:, : row + 1], values[:, : row + 1])
        np.testing.assert_allclose(out[row].reshape(heads, dim), wanted, atol=1e-5)


@pytest.mark.parametrize("bound", [SAFE_SCORE / 2, SAFE_SCORE * 2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (12, 2)])
def test_decode_attention_stops_at_each_position(heads: int, kv_heads: int, bound: float) -> None:
    rng = np.random.default_rng(2)
    lengths, dim = [3, 9, 5], 8
    queries = rng.standard_normal((3, kv_heads, heads // kv_heads, dim), np.float32)
    keys, values = rng.standard_normal((2, 3, kv_heads, 9, dim), np.float32)
    mask = np.where(np.arange(9) < np.array(lengths)[:, None], 0, -np.inf).astype(np.float32)[:, None, None]
    out, scores = np.empty_like(queries), Scores.of((3, kv_heads, heads // kv_heads), 9)
    attend_decode(queries, keys, values, mask, bound, scores, out)
    for row, length in enumerate(lengths):
        wanted = plain_attention(queries[row].reshape(heads, dim), keys[row, :, :length], values[row, :, :length])
        np.testing.assert_allclose(out[row].reshape(heads, dim), wanted, atol=1e-5)


def test_scores_that_would_overflow_are_shifted() -> None:
    queries = np.full((1, 1, 1, 4), 100, np.float32)
    keys, values = np.ones((1, 1, 3, 4), np.float32), np.ones((1, 1, 3, 4), np.float32)
    out, scores = np.empty_like(queries), Scores.of((1, 1, 1), 3)
    attend_decode(queries, keys, values, None, 400.0, scores, out)
    np.testing.assert_allclose(out, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17])
@pytest.mark.parametrize("shape", [(7, 5), (200, 301), (70, WIDTH - 1), (45, 2 * WIDTH + 1), (1, 25 * WIDTH)])
def test_a_product_is_the_same_for_any_number_of_rows(rows: int, shape: tuple[int, int]) -> None:
    """Also of matrices that are cut into tiles, even or not."""
    rng = np.random.default_rng(rows)
    x, matrix = rng.standard_normal((rows, shape[0]), np.float32), rng.standard_normal(shape, np.float32)
    out = np.full((rows, shape[1]), np.nan, np.float32)
    multiply(x, matrix, out)
    np.testing.assert_allclose(out, x.astype(np.float64) @ matrix, atol=1e-4)


@pytest.mark.parametrize("count", [255, 256, 257, 700])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_many_positions_is_that_over_each(count: int, masked: bool) -> None:
    rng = np.random.default_rng(count)
    queries, keys, values = (rng.standard_normal(shape, np.float32) for shape in ((2, 1, 4, 8), (2, 1, count, 8), (2, 1, count, 8)))
    lengths = [count, count - 3] if masked else [count, count]
    visible = np.arange(count) < np.array(lengths)[:, None]
    mask = np.where(visible, np.float32(0), np.float32(-np.inf))[:, None, None] if masked else None
    out, scores = np.empty_like(queries), Scores.of((2, 1, 4), count)
    attend_decode(queries, keys, values, mask, 400.0, scores, out)
    for row, length in enumerate(lengths):
        wanted = plain_attention(queries[row].reshape(4, 8), keys[row, :, :length], values[row, :, :length])
        np.testing.assert_allclose(out[row].reshape(4, 8), wanted, atol=1e-5)


def test_swiglu_of_large_gates_is_finite() -> None:
    gate_up = -np.array([[-200.0, 0.0, 200.0, 2.0, 2.0, 2.0]], np.float32)
    out = np.empty((1, 3), np.float32)
    with np.errstate(over="ignore"):
        swiglu(gate_up, out)
    np.testing.assert_allclose(out, [[0, 0, 400]], atol=1e-6)


@pytest.mark.parametrize("batch", [2, 3, 5, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_gives_what_its_sequences_give_alone(batch: int, bias: bool) -> None:
    config = config_of(bias=bias)
    model, alone = model_of(config, batch), model_of(config)
    lengths = np.array([3 + 5 * slot % 11 for slot in range(batch)])
    wanted = []
    for slot, length in enumerate(lengths.tolist()):
        prompt = ids(length + 1, seed=slot)
        np.testing.assert_array_equal(model.prefill(prompt[:-1], slot), alone.prefill(prompt[:-1]))
        wanted.append(alone.decode_step(prompt[-1:], np.array([length]))[0])
    newest = np.array([ids(n + 1, seed=slot)[-1] for slot, n in enumerate(lengths.tolist())])
    np.testing.assert_allclose(model.decode_step(newest, lengths), wanted, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, BLOCK, BLOCK + 1, 130])
@pytest.mark.parametrize("way", ["short", "bias", "scores that may overflow", "tiles"])
def test_a_prompt_at_once_equals_its_tokens_one_by_one(count: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(bias=way == "bias")
    prompt, at_once, stepped = ids(count), model_of(config), model_of(config)
    for weights in (at_once.weights, stepped.weights):
        if way == "bias":
            weights.b_qkv[:], weights.b_o[:] = 0.3, -0.2
        if way == "scores that may overflow":
            weights.score_bound[:] = 2 * SAFE_SCORE
    if way == "tiles":
        monkeypatch.setattr(attention, "TILE", 100)
    logits = stepped.prefill(prompt[:1])
    for position in range(1, count):
        logits = stepped.decode_step(prompt[position : position + 1], np.array([position]))[0]
    np.testing.assert_allclose(at_once.prefill(prompt), logits, atol=1e-4)
    np.testing.assert_allclose(at_once.keys, stepped.keys, atol=1e-4)


def test_a_slot_is_replaced_by_the_next_prompt() -> None:
    config = config_of()
    used, fresh = model_of(config), model_of(config)
    used.prefill(ids(50, seed=1))
    np.testing.assert_array_equal(used.prefill(ids(7)), fresh.prefill(ids(7)))
    step = ids(1), np.array([7])
    np.testing.assert_array_equal(used.decode_step(*step), fresh.decode_step(*step))


def test_layouts() -> None:
    np.testing.assert_array_equal(interleave(np.arange(8, dtype=np.float32), 4), [0, 2, 1, 3, 4, 6, 5, 7])
    matrix = np.arange(130 * 3, dtype=np.float32).reshape(130, 3)
    assert transposed(matrix).flags.c_contiguous
    np.testing.assert_array_equal(transposed(matrix), matrix.T)
    table = rope_table(config_of(), 2).view(np.complex64)
    np.testing.assert_allclose(table[0], 1)
    np.testing.assert_allclose(table[1, 0], np.exp(1j), rtol=1e-6)


def test_random_weights_are_repeatable_and_complete() -> None:
    config = config_of()
    first, second = random_weights(config, 16, seed=5), random_weights(config, 16, seed=5)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (
        config.parameters
        == sum(array.size for name, array in first._asdict().items() if name in ("embed", "w_qkv", "w_o", "w_gate_up", "w_down", "head"))
        + 2 * (2 * 24 + 2 * 8)
        + 24
    )
