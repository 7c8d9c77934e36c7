"""Parts of the forward pass against plain restatements of them, and batches against single sequences."""

from __future__ import annotations

import numpy as np
import pytest

from examples.qwen3 import attention
from examples.qwen3.attention import BLOCK, SAFE_SCORE, Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.decode import make_decode_step
from examples.qwen3.direct import DirectModel
from examples.qwen3.forward import WIDTH, multiply_by_tiles, swiglu
from examples.qwen3.weights import (
    GAP,
    MATRICES,
    Array,
    Weights,
    interleave,
    layer_parts,
    random_weights,
    rope_table,
    transposed,
    with_gap,
    without_gap,
)


def config_of(heads: int = 4, kv_heads: int = 2, bias: bool = False) -> Config:
    return Config(40, 24, 40, 2, heads, kv_heads, 8, 256, attention_bias=bias)


def trained(config: Config) -> Weights:
    """Random weights with biases and norms that are none of 0 and 1."""
    weights = random_weights(config, config.max_positions, seed=3)
    rng = np.random.default_rng(4)
    weights.qk_norm[:] = rng.uniform(0.5, 1.5, weights.qk_norm.shape)
    weights.score_bound[:] = 1.5 * 1.5
    if config.attention_bias:
        weights.b_qkv[:], weights.b_o[:] = rng.standard_normal(weights.b_qkv.shape), rng.standard_normal(weights.b_o.shape)
    return weights


def model_of(config: Config, batch: int = 1) -> DirectModel:
    return DirectModel(config, trained(config), batch)


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
    multiply_by_tiles(x, matrix, out)
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
    gate_up = -np.array([[-200.0, 0.0, 200.0, -1e30, 2.0, 2.0, 2.0, 1e30]], np.float32)
    out = np.empty((1, 4), np.float32)
    with np.errstate(over="ignore"):
        swiglu(gate_up, out)
    np.testing.assert_allclose(out, [[0, 0, 400, 0]], atol=1e-6)


def test_large_gates_and_ups_do_not_spoil_a_step() -> None:
    """As `swiglu`, where decode has it in line."""
    config = config_of()
    at_once, stepped = model_of(config), model_of(config)
    for weights in (at_once.weights, stepped.weights):
        weights.w_gate_up[0] = -1e30  # each gate and its up, of one sign
        weights.w_down[0] = 0
    finite = []
    for token in range(10):
        finite.append(bool(np.isfinite(stepped.decode_step(np.array([token]), np.array([0]))).all()))
        assert finite[-1] == np.isfinite(at_once.prefill(np.array([token]))).all()
    assert any(finite)


def test_no_score_is_larger_than_its_bound() -> None:
    config = config_of()
    rng = np.random.default_rng(4)
    tensors = {
        "self_attn.q_proj.weight": rng.standard_normal((config.q_size, config.hidden_size), np.float32),
        "self_attn.o_proj.weight": rng.standard_normal((config.hidden_size, config.q_size), np.float32),
        "mlp.gate_proj.weight": rng.standard_normal((config.intermediate_size, config.hidden_size), np.float32),
        "mlp.down_proj.weight": rng.standard_normal((config.hidden_size, config.intermediate_size), np.float32),
        "input_layernorm.weight": np.ones(config.hidden_size, np.float32),
        "post_attention_layernorm.weight": np.ones(config.hidden_size, np.float32),
        "self_attn.q_norm.weight": np.array([1, -3, 2, 1, 1, 1, 1, 1], np.float32),
        "self_attn.k_norm.weight": np.array([1, 1, -5, 1, 1, 1, 1, 1], np.float32),
    }
    tensors["self_attn.k_proj.weight"] = tensors["self_attn.v_proj.weight"] = tensors["self_attn.q_proj.weight"][: config.kv_size]
    tensors["mlp.up_proj.weight"] = tensors["mlp.gate_proj.weight"]
    parts = {part.field: part.array for part in layer_parts(config, 0, tensors)}
    np.testing.assert_allclose(parts["score_bound"], [3 * 5 * 8**0.5])
    assert np.isfinite(np.exp(np.float32(SAFE_SCORE)) * np.float32(1e9))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("spoilt", [1e20, 1e30])
def test_a_step_that_overflows_is_quiet(rows: int, spoilt: float) -> None:
    model = model_of(config_of(), rows)
    model.weights.w_gate_up[:] *= np.float32(spoilt)
    model.decode_step(ids(rows), np.zeros(rows, np.int64))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_sequences_than_the_cache_has_are_its_first_and_logits_may_lie_apart(rows: int) -> None:
    config = config_of()
    model, alone = model_of(config, 4), model_of(config)
    for slot in range(rows):
        model.prefill(ids(5, seed=slot), slot)
    before = model.keys[:, rows:].copy()
    apart = np.empty((rows, 2 * config.vocab_size), np.float32)[:, ::2]
    step = make_decode_step(config, model.weights, model.keys, model.values, rows)
    step(ids(rows), np.full(rows, 5), apart)
    for slot, token in enumerate(ids(rows)):
        alone.prefill(ids(5, seed=slot))
        np.testing.assert_allclose(apart[slot], alone.decode_step(np.array([token]), np.array([5]))[0], atol=1e-4)
    np.testing.assert_array_equal(model.keys[:, rows:], before)


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
@pytest.mark.parametrize("way", ["short", "bias", "scores that overflow", "scores of a layer that overflow", "tiles"])
def test_a_prompt_at_once_equals_its_tokens_one_by_one(count: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(bias=way == "bias")
    prompt, at_once, stepped = ids(count), model_of(config), model_of(config)
    for weights in (at_once.weights, stepped.weights):
        if way.startswith("scores"):
            layers = slice(1 if "a layer" in way else 0, None)
            weights.qk_norm[layers] *= 20
            weights.score_bound[layers] *= 400
    if way == "tiles":
        monkeypatch.setattr(attention, "TILE", 100)
    logits = stepped.prefill(prompt[:1])
    for position in range(1, count):
        logits = stepped.decode_step(prompt[position : position + 1], np.array([position]))[0]
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(at_once.prefill(prompt), logits, atol=1e-3 if way.startswith("scores") else 1e-4, equal_nan=False)
    np.testing.assert_allclose(at_once.keys, stepped.keys, atol=1e-3 if way.startswith("scores") else 1e-4)
    np.testing.assert_allclose(at_once.values, stepped.values, atol=1e-3 if way.startswith("scores") else 1e-4)


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
    for with_its_gap in (transposed(matrix), with_gap(matrix.T)):
        np.testing.assert_array_equal(without_gap(with_its_gap), matrix.T)
        assert with_its_gap.shape == (3, 130 + GAP)
        assert not with_its_gap[:, -GAP:].any()
    table = rope_table(config_of(), 2).view(np.complex64)
    np.testing.assert_allclose(table[0], 1)
    np.testing.assert_allclose(table[1, 0], np.exp(1j), rtol=1e-6)


def test_random_weights_are_repeatable_and_complete() -> None:
    config = config_of()
    first, second = random_weights(config, 16, seed=5), random_weights(config, 16, seed=5)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (
        config.parameters == sum(without_gap(getattr(first, name)).size for name in MATRICES) + first.embed.size + 2 * (2 * 24 + 2 * 8) + 24
    )
