"""Weights of a Hugging Face directory: `model.safetensors`, or shards with `model.safetensors.index.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.qwen3.config import Config, read_json
from examples.qwen3.errors import CheckpointError
from examples.qwen3.weights import Array, Part, Weights, assemble, layer_parts, outer_parts

try:
    import ml_dtypes  # noqa: F401  (registers the dtype name "bfloat16", which safetensors asks numpy for)
    import safetensors
except ImportError:
    safetensors = None  # type: ignore[assignment]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
# Not weights: an old dialect's buffer, and the head that some tied files hold a second time.
IGNORED = ("lm_head.weight", "rotary_emb.inv_freq")


def layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one layer, by their names behind `model.layers.N.`; matrices are (out, in)."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,),
        "self_attn.q_proj.weight": (config.q_size, hidden),
        "self_attn.k_proj.weight": (config.kv_size, hidden),
        "self_attn.v_proj.weight": (config.kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, config.q_size),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"self_attn.{name}.bias"] = shapes[f"self_attn.{name}.weight"][:1]
    return shapes


def expected_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a checkpoint, one by one: a damaged config may ask for a million layers."""
    yield "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
    yield "model.norm.weight", (config.hidden_size,)
    if not config.tied:
        yield "lm_head.weight", (config.vocab_size, config.hidden_size)
    for number in range(config.layers):
        for name, shape in layer_shapes(config).items():
            yield f"model.layers.{number}.{name}", shape


class Checkpoint:
    """The open files of one directory, checked against `config` before any weight is read.

    Raises `CheckpointError` for a file that is missing or damaged, a tensor that is missing, unexpected, of another
    shape or of another dtype than f32, f16 and bf16, and where the package `safetensors` is missing.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        if safetensors is None:
            raise CheckpointError("reading weights needs safetensors and ml_dtypes; pip install safetensors ml_dtypes")
        self._config = config
        self._where: dict[str, tuple[Path, Any]] = {}
        for path in _files(directory):
            file = _open(path)
            self._where |= dict.fromkeys(file.keys(), (path, file))
        self._check(directory)

    def _check(self, directory: Path) -> None:
        known = set()
        for name, shape in expected_shapes(self._config):
            known.add(name)
            if name not in self._where:
                raise CheckpointError(f"{directory}: tensor {name} is missing; download the weights again")
            path, file = self._where[name]
            piece = file.get_slice(name)
            if tuple(piece.get_shape()) != shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(piece.get_shape())}, expected {shape} by config.json; "
                    "use the config.json that came with the weights"
                )
            if piece.get_dtype() not in FLOATS:
                raise CheckpointError(f"{path}: {name} is {piece.get_dtype()}, which is not supported; use F32, F16 or BF16 weights")
        for name in sorted(self._where.keys() - known):
            if not name.endswith(IGNORED):
                raise CheckpointError(f"{self._where[name][0]}: unexpected tensor {name}; use the config.json that came with the weights")

    def tensor(self, name: str) -> Array:
        """One tensor as float32, in its stored shape. Raises `CheckpointError` where it is damaged."""
        path, file = self._where[name]
        try:
            array = np.asarray(file.get_tensor(name)).astype(np.float32)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: {name} is damaged ({_line(error)}); download the file again") from None
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} is damaged (not all of it is finite); download the file again")
        return array

    def parts(self, positions: int, progress: Callable[[float], None] | None = None) -> Iterator[Part]:
        """All parts of `Weights`, one layer's in memory at a time; `progress` gets the share that is done, 0 to 1."""
        config = self._config
        report = progress or (lambda share: None)
        for layer in range(config.layers):
            report(layer / (config.layers + 1))
            tensors = {name: self.tensor(f"model.layers.{layer}.{name}") for name in layer_shapes(config)}
            yield from layer_parts(config, layer, tensors)
        report(config.layers / (config.layers + 1))
        head = None if config.tied else self.tensor("lm_head.weight")
        embed, norm = self.tensor("model.embed_tokens.weight"), self.tensor("model.norm.weight")
        yield from outer_parts(config, positions, embed, norm, head)
        report(1.0)


def load_weights(directory: Path, config: Config, positions: int, progress: Callable[[float], None] | None = None) -> Weights:
    """The weights of `directory` in host memory, with a rotary table for `positions` tokens. Errors: `Checkpoint`."""
    return assemble(config, positions, Checkpoint(directory, config).parts(positions, progress))


def _files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: the single one, or those that its index names."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.exists():
        raise CheckpointError(f"{directory}: no {SINGLE} and no {INDEX}; download the weights in safetensors format")
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise CheckpointError(f"{index}: damaged, it has no 'weight_map' of file names; download the file again")
    names = sorted(set(mapping.values()))
    for name in names:
        if Path(name).name != name or not name:
            raise CheckpointError(f"{index}: {name!r} is no plain file name; download the file again")
        if not (directory / name).exists():
            raise CheckpointError(f"{directory / name}: no such file, but {INDEX} names it; download it too")
    return [directory / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="np")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or unreadable ({_line(error)}); download the file again") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
