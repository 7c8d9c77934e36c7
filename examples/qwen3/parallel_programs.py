"""The prefill and the decode program of one model over several devices: its layers in steps, a sum over all devices after each half.

Each device keeps the whole residual stream and computes its own heads and columns; `allreduce` adds up what they project back. The
order of that sum is fixed, so the tokens of a run are the same each time and on each backend.
"""

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pypto_actors as pa
from examples.qwen3.attention import Scores, attend_decode, attend_prefill
from examples.qwen3.config import Config
from examples.qwen3.forward import Mlp, Norm, Projection, product_of
from examples.qwen3.parallel_shards import shard_config, shard_shapes, vocabulary_share
from examples.qwen3.programs import cache_shape
from examples.qwen3.weights import Array, Heads, Weights, heads_of, weight_shapes, without_gap

Refs = tuple[pa.TensorRef, ...]
FIELDS = Weights._fields
ATTENTION = ("w_qkv", "b_qkv", "qk_norm", "score_bound", "w_o", "rope", "keys", "values")


class ShardedPrograms(NamedTuple):
    """The programs of one model over `devices`, and the shapes of their stacked tensors, all float32."""

    config: Config
    positions: int
    devices: int
    prefill: pa.Program
    decode: pa.Program
    tensor_shapes: dict[str, tuple[int, ...]]

    @property
    def both(self) -> tuple[pa.Program, pa.Program]:
        """What the worker is to know."""
        return self.prefill, self.decode


def make_sharded_programs(config: Config, positions: int, devices: int) -> ShardedPrograms:
    """Programs for one sequence of at most `positions` tokens. Raises `OptionError` where the heads cannot be shared.

    `prefill(tokens (n,) int64, places (n,) int64, …, logits (devices, V / devices))` and `decode`, the same with one token.
    """
    f32, i64 = np.float32, np.int64
    mine = shard_config(config, devices)
    shapes = shard_shapes(weight_shapes(mine, positions), config, devices)
    cache = (devices, *cache_shape(mine, positions, 1))
    row = (devices, vocabulary_share(config, devices))

    @pa.kernel
    def enter(tokens: pa.InArray, embed: pa.InArray, x: pa.OutArray) -> None:
        x[...] = embed[tokens]

    @pa.kernel
    def attend(
        layer: int,
        places: pa.InArray,
        w_qkv: pa.InArray,
        b_qkv: pa.InArray,
        qk_norm: pa.InArray,
        score_bound: pa.InArray,
        w_o: pa.InArray,
        rope: pa.InArray,
        keys: pa.InOutArray,
        values: pa.InOutArray,
        x: pa.InArray,
        partial: pa.OutArray,
    ) -> None:
        heads = heads_of(w_qkv, b_qkv, qk_norm, score_bound, w_o, layer)
        attend_heads(mine, heads, rope, places, keys[layer, 0], values[layer, 0], x, partial)

    @pa.kernel
    def feed(
        layer: int, b_o: pa.InArray, w_gate_up: pa.InArray, w_down: pa.InArray, reduced: pa.InArray, x: pa.InOutArray, partial: pa.OutArray
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            x += reduced
            if config.attention_bias:
                x += b_o[layer]
            Mlp(mine, x, np.empty_like(x)).feed(without_gap(w_gate_up[layer]), without_gap(w_down[layer]), partial)

    @pa.kernel
    def add(reduced: pa.InArray, x: pa.InOutArray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            x += reduced

    @pa.kernel
    def leave(head: pa.InArray, x: pa.InArray, logits: pa.OutArray) -> None:
        last = np.empty_like(x[-1:])
        with np.errstate(over="ignore", invalid="ignore"):
            Norm(x[-1:], config.rms_norm_eps * config.hidden_size, last)()
            np.matmul(last, without_gap(head), logits[None])

    def forward(orch: pa.Orchestrator, tokens: pa.TensorRef, places: pa.TensorRef, given: Refs, logits: pa.TensorRef) -> None:
        stacked = dict(zip((*FIELDS, "keys", "values"), given, strict=True))
        shape = (tokens.shape[0], config.hidden_size)
        x, attended, fed = (orch.window(name, shape, f32) for name in ("x", "attended", "fed"))
        ranks = range(devices)
        for rank in ranks:
            orch.submit(enter, tokens, stacked["embed"][rank], x[rank], device=rank)
        for layer in range(config.layers):
            for rank in ranks:
                weights = [stacked[name][rank] for name in ATTENTION]
                orch.submit(attend, layer, places, *weights, x[rank], attended[rank], device=rank)
            orch.allreduce([attended[rank] for rank in ranks])
            for rank in ranks:
                weights = [stacked[name][rank] for name in ("b_o", "w_gate_up", "w_down")]
                orch.submit(feed, layer, *weights, attended[rank], x[rank], fed[rank], device=rank)
            orch.allreduce([fed[rank] for rank in ranks])
            for rank in ranks:
                orch.submit(add, fed[rank], x[rank], device=rank)
        for rank in ranks:
            orch.submit(leave, stacked["head"][rank], x[rank], logits[rank], device=rank)

    def program(stage: str) -> pa.Program:
        @pa.program(name=stage, stage=stage)
        def one(
            orch: pa.Orchestrator,
            tokens: Annotated[pa.TensorRef, pa.In(("n",), i64)],
            places: Annotated[pa.TensorRef, pa.In(("n",), i64)],
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
            logits: Annotated[pa.TensorRef, pa.Out(row, f32)],
        ) -> None:
            given = embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope, keys, values
            forward(orch, tokens, places, given, logits)

        return one

    return ShardedPrograms(config, positions, devices, program("prefill"), program("decode"), {**shapes, "keys": cache, "values": cache})


def attend_heads(
    config: Config, heads: Heads, rope: Array, places: NDArray[np.int64], keys: Array, values: Array, x: Array, partial: Array
) -> None:
    """This device's heads over `x` (n, H): its keys and values enter the cache (kv_heads, positions, D) at `places`, a run of positions."""
    first, rows = int(places[0]), len(places)
    end = first + rows
    projection = Projection(config, x, np.empty_like(x))
    attended = np.empty((rows, config.kv_heads, config.group, config.head_dim), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        projection.project(heads, rope.view(np.complex64)[first:end, None])
        keys[:, first:end] = projection.keys.swapaxes(0, 1)
        values[:, first:end] = projection.values.swapaxes(0, 1)
        keys, values = keys[:, :end], values[:, :end]
        if first == 0:
            attend_prefill(projection.queries, keys, values, heads.score_bound, attended)
        else:
            scratch = Scores.of((rows, config.kv_heads, config.group), end)
            attend_decode(projection.queries, keys[None], values[None], None, heads.score_bound, scratch, attended)
        product_of(rows)(attended.reshape(rows, config.q_size), heads.w_o, partial)
