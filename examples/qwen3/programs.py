"""The prefill and the decode program of one model: what the shared worker runs.

Each is one kernel, the whole pass. Its layers depend on each other and live on one device, so finer steps could not
overlap; they would only add their cost to each token. Weights and caches come in as arguments, stacked by layer, so
that a program has few parameters and `worker.bind` can fix all but the ids and the logits.

Annotations are evaluated at once here (no postponed ones), since the shapes are local to `make_programs`.
"""

from typing import Annotated, NamedTuple

import numpy as np

import pypto_actors as pa
from examples.qwen3 import forward
from examples.qwen3.config import Config
from examples.qwen3.weights import Weights, weight_shapes


class Programs(NamedTuple):
    """The programs of one model and the sizes that they are made for."""

    config: Config
    positions: int
    batch: int
    prefill: pa.Program
    decode: pa.Program

    @property
    def both(self) -> tuple[pa.Program, pa.Program]:
        """What the worker is to know."""
        return self.prefill, self.decode

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each device tensor, all float32, by the name of the parameter that takes it."""
        cache = cache_shape(self.config, self.positions, self.batch)
        return {**weight_shapes(self.config, self.positions), "keys": cache, "values": cache}


def cache_shape(config: Config, positions: int, batch: int) -> tuple[int, ...]:
    """(layers, batch, kv_heads, positions, head_dim); why so, stands in `attention.py`."""
    return config.layers, batch, config.kv_heads, positions, config.head_dim


def make_programs(config: Config, positions: int, batch: int = 1) -> Programs:
    """Programs for `batch` sequences of at most `positions` tokens each.

    `prefill(tokens (n,) int64, slot, …weights, keys, values, logits (V,))` reads a prompt into sequence `slot`;
    `decode(tokens (b,) int64, positions (b,) int64, …weights, keys, values, logits (b, V))` adds a token to each of
    the first b sequences, at its own position. A prompt length and a batch size are recorded once each. Both run where their
    device tensors are.
    """
    f32, i64 = np.float32, np.int64
    shapes = weight_shapes(config, positions)
    cache = cache_shape(config, positions, batch)

    @pa.kernel
    def prefill_kernel(
        tokens: pa.InArray,
        slot: int,
        embed: pa.InArray,
        w_qkv: pa.InArray,
        b_qkv: pa.InArray,
        qk_norm: pa.InArray,
        score_bound: pa.InArray,
        w_o: pa.InArray,
        b_o: pa.InArray,
        w_gate_up: pa.InArray,
        w_down: pa.InArray,
        head: pa.InArray,
        rope: pa.InArray,
        keys: pa.InOutArray,
        values: pa.InOutArray,
        logits: pa.OutArray,
    ) -> None:
        weights = Weights(embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope)
        forward.prefill(config, weights, keys, values, tokens, slot, logits)

    @pa.kernel
    def decode_kernel(
        tokens: pa.InArray,
        positions: pa.InArray,
        embed: pa.InArray,
        w_qkv: pa.InArray,
        b_qkv: pa.InArray,
        qk_norm: pa.InArray,
        score_bound: pa.InArray,
        w_o: pa.InArray,
        b_o: pa.InArray,
        w_gate_up: pa.InArray,
        w_down: pa.InArray,
        head: pa.InArray,
        rope: pa.InArray,
        keys: pa.InOutArray,
        values: pa.InOutArray,
        logits: pa.OutArray,
    ) -> None:
        weights = Weights(embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope)
        forward.decode_step(config, weights, keys, values, tokens, positions, logits)

    @pa.program(stage="prefill")
    def prefill(
        orch: pa.Orchestrator,
        tokens: Annotated[pa.TensorRef, pa.In(("n",), i64)],
        slot: int,
        embed: Annotated[pa.TensorRef, pa.In(shapes["embed"], f32)],
        w_qkv: Annotated[pa.TensorRef, pa.In(shapes["w_qkv"], f32)],
        b_qkv: Annotated[pa.TensorRef, pa.In(shapes["b_qkv"], f32)],
        qk_norm: Annotated[pa.TensorRef, pa.In(shapes["qk_norm"], f32)],
        score_bound: Annotated[pa.TensorRef, pa.In(shapes["score_bound"], f32)],
        w_o: Annotated[pa.TensorRef, pa.In(shapes["w_o"], f32)],
        b_o: Annotated[pa.TensorRef, pa.In(shapes["b_o"], f32)],
        w_gate_up: Annotated[pa.TensorRef, pa.In(shapes["w_gate_up"], f32)],
        w_down: Annotated[pa.TensorRef, pa.In(shapes["w_down"], f32)],
        head: Annotated[pa.TensorRef, pa.In(shapes["head"], f32)],
        rope: Annotated[pa.TensorRef, pa.In(shapes["rope"], f32)],
        keys: Annotated[pa.TensorRef, pa.InOut(cache, f32)],
        values: Annotated[pa.TensorRef, pa.InOut(cache, f32)],
        logits: Annotated[pa.TensorRef, pa.Out((config.vocab_size,), f32)],
    ) -> None:
        weights = embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope
        orch.submit(prefill_kernel, tokens, slot, *weights, keys, values, logits)

    @pa.program(stage="decode")
    def decode(
        orch: pa.Orchestrator,
        tokens: Annotated[pa.TensorRef, pa.In(("b",), i64)],
        positions: Annotated[pa.TensorRef, pa.In(("b",), i64)],
        embed: Annotated[pa.TensorRef, pa.In(shapes["embed"], f32)],
        w_qkv: Annotated[pa.TensorRef, pa.In(shapes["w_qkv"], f32)],
        b_qkv: Annotated[pa.TensorRef, pa.In(shapes["b_qkv"], f32)],
        qk_norm: Annotated[pa.TensorRef, pa.In(shapes["qk_norm"], f32)],
        score_bound: Annotated[pa.TensorRef, pa.In(shapes["score_bound"], f32)],
        w_o: Annotated[pa.TensorRef, pa.In(shapes["w_o"], f32)],
        b_o: Annotated[pa.TensorRef, pa.In(shapes["b_o"], f32)],
        w_gate_up: Annotated[pa.TensorRef, pa.In(shapes["w_gate_up"], f32)],
        w_down: Annotated[pa.TensorRef, pa.In(shapes["w_down"], f32)],
        head: Annotated[pa.TensorRef, pa.In(shapes["head"], f32)],
        rope: Annotated[pa.TensorRef, pa.In(shapes["rope"], f32)],
        keys: Annotated[pa.TensorRef, pa.InOut(cache, f32)],
        values: Annotated[pa.TensorRef, pa.InOut(cache, f32)],
        logits: Annotated[pa.TensorRef, pa.Out(("b", config.vocab_size), f32)],
    ) -> None:
        weights = embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope
        orch.submit(decode_kernel, tokens, positions, *weights, keys, values, logits)

    return Programs(config, positions, batch, prefill, decode)
