"""How the weights of a Qwen3 are cut for tensor parallelism: by heads and by columns, so that only sums must travel.

A device has its share of the key heads, with their query heads, and of the MLP's columns; both end in a product with the matching
rows, whose results are partial sums of the whole. What is small (norms, biases behind a sum, the rotary table) and the embedding
are on every device. Columns that do not divide evenly are filled up with zeros, which add nothing to a sum.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from examples.qwen3.config import Config
from examples.qwen3.errors import OptionError
from examples.qwen3.weights import GAP, MATRICES, Array, Part, with_gap, without_gap


def shard_config(config: Config, devices: int) -> Config:
    """The numbers of one of `devices` equal shards. Raises `OptionError` where the key heads cannot be shared evenly."""
    if config.kv_heads % devices:
        good = [str(count) for count in range(1, config.kv_heads + 1) if config.kv_heads % count == 0]
        raise OptionError(
            f"--devices {devices}: the model's {config.kv_heads} key heads cannot be shared evenly; "
            f"give one of {', '.join(good)}, or --parallel data"
        )
    return replace(
        config,
        heads=config.heads // devices,
        kv_heads=config.kv_heads // devices,
        intermediate_size=-(-config.intermediate_size // devices),
    )


def vocabulary_share(config: Config, devices: int) -> int:
    """Columns of the head on each device; the last ones of the last device may be zeros."""
    return -(-config.vocab_size // devices)


def shards_of(part: Part, config: Config, devices: int) -> list[Array]:
    """What each device gets of `part`."""
    if part.field in MATRICES:
        return [with_gap(piece) for piece in _pieces_of(part.field, without_gap(part.array), config, devices)]
    return _pieces_of(part.field, part.array, config, devices)


def _pieces_of(field: str, array: Array, config: Config, devices: int) -> list[Array]:
    q, kv, columns = config.q_size, config.kv_size, config.intermediate_size
    match field:
        case "w_qkv" | "b_qkv":
            pieces = [_columns(piece, devices) for piece in np.split(array, [q, q + kv], axis=-1)]
            return [np.concatenate(several, axis=-1) for several in zip(*pieces, strict=True)]
        case "qk_norm":
            return [np.concatenate(several) for several in zip(*(np.split(rows, devices) for rows in _heads(array, config)), strict=True)]
        case "w_o":
            return np.split(array, devices)
        case "w_gate_up":
            gates, ups = (_columns(piece, devices) for piece in (array[:, :columns], array[:, columns:]))
            return [np.concatenate(pair, axis=-1) for pair in zip(gates, ups, strict=True)]
        case "w_down":
            return [rows.T for rows in _columns(array.T, devices)]
        case "head":
            return _columns(array, devices)
        case _:
            return [array] * devices


def shard_shapes(shapes: dict[str, tuple[int, ...]], config: Config, devices: int) -> dict[str, tuple[int, ...]]:
    """The shape of the stacked tensor of each field, from the shapes (of `weight_shapes`) for one shard's numbers."""
    stacked = {name: (devices, *shape) for name, shape in shapes.items()}
    stacked["head"] = (devices, config.hidden_size, vocabulary_share(config, devices) + GAP)
    return stacked


def _heads(norms: Array, config: Config) -> tuple[Array, Array]:
    return norms[: config.heads], norms[config.heads :]


def _columns(matrix: Array, devices: int) -> list[Array]:
    """Equal shares of the last axis, the last ones filled up with zeros."""
    share = -(-matrix.shape[-1] // devices)
    missing = share * devices - matrix.shape[-1]
    if missing:
        matrix = np.concatenate([matrix, np.zeros((*matrix.shape[:-1], missing), np.float32)], axis=-1)
    return np.split(matrix, devices, axis=-1)
