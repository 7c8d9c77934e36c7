"""The weights as the forward pass wants them: few stacked arrays, each matrix C-ordered (K, N), with a gap behind each row.

Without the gap the rows would stand a multiple of a power of two apart, in few sets of the cache, and BLAS copies a matrix piece by piece
before it multiplies many rows with it: products of 512 rows would take 8 % longer, those of 256 rows 12 %.

What is constant is folded in when a layer is stored, so that a step does not compute it again:

- q, k and v are one matrix, gate and up are one matrix: two large products instead of five small ones.
- The weight of an RMSNorm is a factor on the rows of the matrix behind it, and with it the sqrt(n) of
  `x / sqrt(sum(x²)/n + eps) = sqrt(n) · x / sqrt(sum(x²) + n·eps)`.
- The weights of gate and up are negated, and so is what comes from them: `silu(g) · u = (-g) · (-u) / (1 + exp(-g))`.
- The 1/sqrt(head_dim) of the attention scores is a factor on the query norm.
- Queries and keys have norm 1 before their factors, so a score is at most the product of the largest ones: where that
  is small, softmax need not look for a maximum.
- The columns of each query and key head are interleaved (0, d/2, 1, d/2+1, …), so that RoPE is one complex product.
  Scores do not notice, since queries and keys are permuted alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.qwen3.config import Config

Array = NDArray[np.float32]

GAP = 4  # columns of zeros behind each row of a matrix
MATRICES = ("w_qkv", "w_o", "w_gate_up", "w_down", "head")


class Heads(NamedTuple):
    """The weights of the attention of one layer."""

    w_qkv: Array  # (H, Q + 2 KV)
    b_qkv: Array  # (Q + 2 KV)
    qk_norm: Array  # (heads + kv_heads, D)
    score_bound: float
    w_o: Array  # (Q, H)


class Layer(NamedTuple):
    """The weights of one layer, as `Weights` has them."""

    heads: Heads
    b_o: Array  # (H,)
    w_gate_up: Array  # (H, 2 I)
    w_down: Array  # (I, H)


class Weights(NamedTuple):
    """All float32; `MATRICES` have `GAP` more columns than said here.

    L layers, H hidden, V vocabulary, I intermediate; Q, KV: all query, key heads; D head_dim.
    """

    embed: Array  # (V, H)
    w_qkv: Array  # (L, H, Q + 2 KV)
    b_qkv: Array  # (L, Q + 2 KV); zeros without attention_bias
    qk_norm: Array  # (L, heads + kv_heads, D)
    score_bound: Array  # (L, 1): no attention score of a layer is larger, whatever the input
    w_o: Array  # (L, Q, H)
    b_o: Array  # (L, H); zeros without attention_bias
    w_gate_up: Array  # (L, H, 2 I)
    w_down: Array  # (L, I, H)
    head: Array  # (H, V), the final norm folded in
    rope: Array  # (positions, D): cosine and sine in turn, read as D/2 complex numbers

    def layers(self) -> list[Layer]:
        """Views of each layer, without the gaps."""
        return [
            Layer(heads_of(self.w_qkv, self.b_qkv, self.qk_norm, self.score_bound, self.w_o, number), b_o, w_gate_up, w_down)
            for number, (b_o, w_gate_up, w_down) in enumerate(
                zip(self.b_o, without_gap(self.w_gate_up), without_gap(self.w_down), strict=True)
            )
        ]


def heads_of(w_qkv: Array, b_qkv: Array, qk_norm: Array, score_bound: Array, w_o: Array, layer: int) -> Heads:
    """Views of one layer of the fields of `Weights`, without the gaps."""
    return Heads(without_gap(w_qkv[layer]), b_qkv[layer], qk_norm[layer], float(score_bound[layer, 0]), without_gap(w_o[layer]))


def with_gap(matrix: Array) -> Array:
    """A C-ordered copy of (K, N), (K, N + GAP)."""
    out = np.zeros((matrix.shape[0], matrix.shape[1] + GAP), np.float32)
    without_gap(out)[:] = matrix
    return out


def without_gap(matrix: Array) -> Array:
    """A view of (…, N + GAP), (…, N)."""
    return matrix[..., :-GAP]


def weight_shapes(config: Config, positions: int) -> dict[str, tuple[int, ...]]:
    """The shape of each field of `Weights`, with a rotary table for `positions` tokens."""
    layers, hidden, qkv = config.layers, config.hidden_size, config.q_size + 2 * config.kv_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (config.vocab_size, hidden),
        "w_qkv": (layers, hidden, qkv),
        "b_qkv": (layers, qkv),
        "qk_norm": (layers, config.heads + config.kv_heads, config.head_dim),
        "score_bound": (layers, 1),
        "w_o": (layers, config.q_size, hidden),
        "b_o": (layers, hidden),
        "w_gate_up": (layers, hidden, 2 * config.intermediate_size),
        "w_down": (layers, config.intermediate_size, hidden),
        "head": (hidden, config.vocab_size),
        "rope": (positions, config.head_dim),
    }
    return {name: (*shape[:-1], shape[-1] + GAP) if name in MATRICES else shape for name, shape in shapes.items()}


class Part(NamedTuple):
    """One array of `Weights`, with its gap: a whole field (`layer` None) or one layer of it."""

    field: str
    layer: int | None
    array: Array


def rope_table(config: Config, positions: int) -> Array:
    """Cosine and sine of each position, (positions, head_dim); angles in float32, as transformers has them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(positions, config.head_dim)


def interleave(array: Array, head_dim: int) -> Array:
    """Reorder the last axis, (…, n · head_dim), inside each head: 0, d/2, 1, d/2+1, …"""
    halves = array.reshape(*array.shape[:-1], -1, 2, head_dim // 2)
    return np.swapaxes(halves, -1, -2).reshape(array.shape)


def interleave_rows(matrix: Array, head_dim: int) -> Array:
    """`interleave` along the first axis of a matrix (n · head_dim, K)."""
    return matrix.reshape(-1, 2, head_dim // 2, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def transposed(matrix: Array) -> Array:
    """`matrix.T`, C-ordered, with its gap; by strips, since a plain copy misses the cache on every element."""
    out = np.zeros((matrix.shape[1], matrix.shape[0] + GAP), np.float32)
    for row in range(0, matrix.shape[0], 64):
        without_gap(out)[:, row : row + 64] = matrix[row : row + 64].T
    return out


def folded(matrix: Array, norm: Array) -> Array:
    """`matrix` (N, K) behind an RMSNorm of weight `norm` (K,), with that and sqrt(K) folded in, transposed (K, N), with its gap.

    Absurd weights overflow quietly; the logits show it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return transposed(matrix * (norm * np.float32(len(norm) ** 0.5)))


def layer_parts(config: Config, layer: int, tensors: Mapping[str, Array]) -> Iterator[Part]:
    """The parts of one layer from its Hugging Face tensors, by their names behind `model.layers.N.`."""
    dim = config.head_dim
    q, k, v = (tensors[f"self_attn.{name}_proj.weight"] for name in "qkv")
    qkv = np.concatenate([interleave_rows(q, dim), interleave_rows(k, dim), v])
    yield Part("w_qkv", layer, folded(qkv, tensors["input_layernorm.weight"]))
    if config.attention_bias:
        q, k, v = (tensors[f"self_attn.{name}_proj.bias"] for name in "qkv")
        yield Part("b_qkv", layer, np.concatenate([interleave(q, dim), interleave(k, dim), v]))
        yield Part("b_o", layer, tensors["self_attn.o_proj.bias"])
    # sqrt(D) of the norm and 1/sqrt(D) of the scores cancel in the query's factor.
    query = interleave(tensors["self_attn.q_norm.weight"], dim)
    with np.errstate(over="ignore"):
        key = interleave(tensors["self_attn.k_norm.weight"], dim) * np.float32(dim**0.5)
        bound = np.max(np.abs(query)) * np.max(np.abs(key), keepdims=True)
    yield Part("qk_norm", layer, np.stack([query] * config.heads + [key] * config.kv_heads))
    yield Part("score_bound", layer, bound)
    yield Part("w_o", layer, transposed(tensors["self_attn.o_proj.weight"]))
    gate_up = np.concatenate([tensors["mlp.gate_proj.weight"], tensors["mlp.up_proj.weight"]])
    yield Part("w_gate_up", layer, folded(gate_up, -tensors["post_attention_layernorm.weight"]))
    yield Part("w_down", layer, transposed(tensors["mlp.down_proj.weight"]))


def outer_parts(config: Config, positions: int, embed: Array, norm: Array, head: Array | None) -> Iterator[Part]:
    """The parts outside the layers; `head` (V, H) is None for a tied model, which uses `embed`."""
    yield Part("rope", None, rope_table(config, positions))
    yield Part("embed", None, embed)
    yield Part("head", None, folded(embed if head is None else head, norm))


def assemble(config: Config, positions: int, parts: Iterator[Part]) -> Weights:
    """`Weights` in host memory from all parts of a model."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(config, positions).items()}
    for part in parts:
        target = arrays[part.field]
        target[... if part.layer is None else part.layer] = part.array
    return Weights(**arrays)


def random_weights(config: Config, positions: int, seed: int = 0) -> Weights:
    """`Weights` of a model with random values, for benchmarks: their cost is that of a trained model's."""
    rng = np.random.default_rng(seed)
    shapes = weight_shapes(config, positions)
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name in MATRICES:
        arrays[name] *= np.float32(shapes[name][-2] ** -0.5)
        arrays[name][..., -GAP:] = 0
    arrays["b_qkv"][:] = arrays["b_o"][:] = 0
    arrays["qk_norm"][:] = 1
    arrays["score_bound"][:] = 1
    arrays["rope"] = rope_table(config, positions)
    return Weights(**arrays)
