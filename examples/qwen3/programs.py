"""The prefill and the decode program of one model: what the shared worker runs.

Each is one kernel: the whole pass, and what chooses the next tokens. The layers of a pass depend on each other and live on one device, so
finer steps could not overlap; they would only add their cost to each token. Weights and caches come in as arguments, stacked by layer, so
that a program has few parameters and `worker.bind` can fix all but what each call brings.

The tokens that were chosen, and where they stand, stay on the device for the next step of decode. So several steps can be one dispatch,
and the next dispatch can be submitted before this one has ended: nothing of the host stands between two tokens.

Annotations are evaluated at once here (no postponed ones), since the shapes are local to `make_programs`.
"""

import math
from typing import Annotated, NamedTuple

import numpy as np

import pypto_actors as pa
from examples.qwen3.config import Config
from examples.qwen3.decode import make_decode_step
from examples.qwen3.prefill import prefill as prefill_pass
from examples.qwen3.sampling import Sampling, pick, pick_each
from examples.qwen3.weights import Weights, weight_shapes

MOST_AT_ONCE = 16  # steps in one dispatch
READ_AT_ONCE = 900e6  # bytes of weights, in some 40 ms: the text grows 24 times a second at the least, if the model can


class Programs(NamedTuple):
    """The programs of one model and the sizes that they are made for."""

    config: Config
    positions: int
    batch: int
    steps: int  # of decode, at most in one dispatch
    prefill: pa.Program
    decode: pa.Program

    @property
    def both(self) -> tuple[pa.Program, pa.Program]:
        """What the worker is to know."""
        return self.prefill, self.decode

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each device tensor of float32, weights and caches, by the name of the parameter that takes it."""
        cache = cache_shape(self.config, self.positions, self.batch)
        return {**weight_shapes(self.config, self.positions), "keys": cache, "values": cache}

    @property
    def state(self) -> tuple[tuple[str, tuple[int, ...], type], ...]:
        """Name, shape and dtype of what else decode takes from the device and leaves there; `draws` are those that greedy needs not."""
        row, rows = (self.batch,), (self.steps, self.batch)
        logits = (*rows, self.config.vocab_size)
        return ("tokens", row, np.int64), ("positions", row, np.int64), ("draws", rows, np.float64), ("logits", logits, np.float32)


def steps_at_once(config: Config, batch: int) -> int:
    """How many steps of decode are worth one dispatch: a small model's step is so short that the way to the device would count beside it.

    A step reads all weights once, at some 23 GB/s, and computes about as long for each six sequences.
    """
    shapes = weight_shapes(config, 0)
    nbytes = sum(4 * math.prod(shape) for name, shape in shapes.items() if name != "embed")
    return max(1, min(MOST_AT_ONCE, int(READ_AT_ONCE / (nbytes * (1 + batch / 6)))))


def cache_shape(config: Config, positions: int, batch: int) -> tuple[int, ...]:
    """(layers, batch, kv_heads, positions, head_dim); why so, stands in `attention.py`."""
    return config.layers, batch, config.kv_heads, positions, config.head_dim


def make_programs(config: Config, positions: int, batch: int = 1, steps: int | None = None) -> Programs:
    """Programs for `batch` sequences of at most `positions` tokens each.

    `prefill(ids (n,), slot, draw, …sampling, …weights, keys, values, logits (V,), tokens (batch,), positions (batch,), chosen (1,))` reads
    a prompt into sequence `slot`; `decode(tokens (b,), positions (b,), draws (s, b), …sampling, …weights, keys, values, logits (s, b, V),
    chosen (s, b))` adds s tokens to each of the first b sequences, each at its own position. Both leave in `tokens` and `positions` what
    the next step of decode is to read, and in `chosen` the tokens for the host. `sampling` are the fields of `Sampling`; ids, tokens and
    positions are int64, draws float64. A prompt length, a batch size and a number of steps are recorded once each. Both run where their
    device tensors are. `steps`: of decode, at most in one dispatch (by default, so many as take some 40 ms).
    """
    steps = steps_at_once(config, batch) if steps is None else steps
    f32, f64, i64 = np.float32, np.float64, np.int64
    shapes = weight_shapes(config, positions)
    cache = cache_shape(config, positions, batch)

    @pa.kernel
    def prefill_kernel(
        ids: pa.InArray,
        slot: int,
        draw: float,
        temperature: float,
        top_k: int,
        top_p: float,
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
        tokens: pa.InOutArray,
        positions: pa.InOutArray,
        chosen: pa.OutArray,
    ) -> None:
        weights = Weights(embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope)
        prefill_pass(config, weights, keys, values, ids, slot, logits)
        chosen[0] = tokens[slot] = pick(logits, Sampling(temperature, top_k, top_p), draw)
        positions[slot] = len(ids)

    @pa.kernel
    def decode_kernel(
        tokens: pa.InOutArray,
        positions: pa.InOutArray,
        draws: pa.InArray,
        temperature: float,
        top_k: int,
        top_p: float,
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
        chosen: pa.OutArray,
    ) -> None:
        weights = Weights(embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope)
        sampling = Sampling(temperature, top_k, top_p)
        decode_step = make_decode_step(config, weights, keys, values, len(tokens))
        for step in range(len(chosen)):
            decode_step(tokens, positions, logits[step])
            pick_each(logits[step], sampling, draws[step], tokens)
            positions += 1
            chosen[step] = tokens

    @pa.program(stage="prefill")
    def prefill(
        orch: pa.Orchestrator,
        ids: Annotated[pa.TensorRef, pa.In(("n",), i64)],
        slot: int,
        draw: float,
        temperature: float,
        top_k: int,
        top_p: float,
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
        tokens: Annotated[pa.TensorRef, pa.InOut((batch,), i64)],
        positions: Annotated[pa.TensorRef, pa.InOut((batch,), i64)],
        chosen: Annotated[pa.TensorRef, pa.Out((1,), i64)],
    ) -> None:
        weights = embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope
        sampling = draw, temperature, top_k, top_p
        orch.submit(prefill_kernel, ids, slot, *sampling, *weights, keys, values, logits, tokens, positions, chosen)

    @pa.program(stage="decode")
    def decode(
        orch: pa.Orchestrator,
        tokens: Annotated[pa.TensorRef, pa.InOut(("b",), i64)],
        positions: Annotated[pa.TensorRef, pa.InOut(("b",), i64)],
        draws: Annotated[pa.TensorRef, pa.In(("s", "b"), f64)],
        temperature: float,
        top_k: int,
        top_p: float,
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
        logits: Annotated[pa.TensorRef, pa.Out(("s", "b", config.vocab_size), f32)],
        chosen: Annotated[pa.TensorRef, pa.Out(("s", "b"), i64)],
    ) -> None:
        weights = embed, w_qkv, b_qkv, qk_norm, score_bound, w_o, b_o, w_gate_up, w_down, head, rope
        sampling = draws, temperature, top_k, top_p
        orch.submit(decode_kernel, tokens, positions, *sampling, *weights, keys, values, logits, chosen)

    return Programs(config, positions, batch, steps, prefill, decode)
