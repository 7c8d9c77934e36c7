"""`config.json` of a Qwen3 directory, as released models write it and as transformers 5 does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.qwen3.errors import CheckpointError, remedy

ARCHITECTURE = "Qwen3ForCausalLM"
SUPPORTED_ACTIVATIONS = ("silu", "swish")
# Further out, inverse powers of theta times a position leave the numbers of float32.
LEAST_THETA, LARGEST_NUMBER = 1e-20, 1e30


@dataclass(frozen=True)
class Config:
    """The numbers of one Qwen3 model. Sizes are in elements, `rope_theta` is the base of the rotary frequencies."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_bias: bool = False
    tied: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def q_size(self) -> int:
        """Columns of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size) + 2 * self.head_dim
        if self.attention_bias:
            attention += self.q_size + 2 * self.kv_size + self.hidden_size
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden_size


class _Reader:
    """Typed access to one JSON object; every fault names the file, the key, what stands there and the remedy."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path = path
        self.data = data

    def fault(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {text}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.data.get(key)
        if value is None:
            if default is None:
                raise self.fault(f"'{key}' is missing; use the config.json that came with the weights")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fault(f"'{key}' is {value!r}, not a positive integer; use the config.json of the weights")
        return value

    def number(self, key: str, default: float, above: float = 0) -> float:
        value = self.data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < LARGEST_NUMBER:
            wanted = f"a number between {above:g} and {LARGEST_NUMBER:g}"
            raise self.fault(f"'{key}' is {value!r}, not {wanted}; use the config.json of the weights")
        return float(value)

    def strings(self, key: str) -> list[str]:
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fault(f"'{key}' is {value!r}, not a list of names; use the config.json of the weights")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fault(f"'{key}' is {value!r}, not true or false; use the config.json of the weights")
        return bool(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises `CheckpointError` where the file is missing, unreadable or no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the directory of a Hugging Face Qwen3 model") from None
    except OSError as error:
        what_to_do = remedy(error, "check the file and its permissions")
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {what_to_do}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged, it is no JSON ({reason}); download the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: damaged, it holds no JSON object; download the file again")
    return data


def _refuse_unsupported(reader: _Reader) -> None:
    """Raise for everything that would silently give other text than the model's authors meant."""
    data = reader.data
    kind, architectures = data.get("model_type"), reader.strings("architectures") or [ARCHITECTURE]
    if kind == "qwen3_moe" or "Qwen3MoeForCausalLM" in architectures or data.get("num_experts"):
        raise reader.fault("a mixture of experts is not supported; use a dense Qwen3 model")
    if kind != "qwen3" or ARCHITECTURE not in architectures:
        name = architectures[0] if architectures != [ARCHITECTURE] else kind
        raise reader.fault(f"architecture {name!r} is not supported; use a {ARCHITECTURE} model (model_type 'qwen3')")
    if data.get("quantization_config"):
        raise reader.fault("quantized weights are not supported; use the model's bf16, f16 or f32 weights")
    if reader.flag("use_sliding_window"):
        raise reader.fault("sliding-window attention is not supported; use a model with use_sliding_window false")
    odd = sorted({*reader.strings("layer_types")} - {"full_attention"})
    if odd:
        raise reader.fault(f"layer type {odd[0]!r} is not supported; use a model whose layers are 'full_attention'")
    if data.get("hidden_act", "silu") not in SUPPORTED_ACTIVATIONS:
        raise reader.fault(f"hidden_act {data['hidden_act']!r} is not supported; use a model with 'silu'")


def _rope_theta(reader: _Reader) -> float:
    """Theta of either dialect: `rope_theta` beside `rope_scaling`, or both inside `rope_parameters`."""
    theta = reader.number("rope_theta", 10_000.0, above=LEAST_THETA)
    for key in ("rope_scaling", "rope_parameters"):
        theta = _rope(reader, key).number("rope_theta", theta, above=LEAST_THETA)
    return theta


def _rope(reader: _Reader, key: str) -> _Reader:
    """What stands under `key`. Raises for all in it that is not plainly the default: it may change each position."""
    rope = {} if reader.data.get(key) is None else reader.data[key]
    if not isinstance(rope, dict):
        raise reader.fault(f"'{key}' is {rope!r}, not an object; use the config.json of the weights")
    said = {name: value for name, value in rope.items() if value is not None}
    for kind in (said.pop("rope_type", "default"), said.pop("type", "default")):
        if kind != "default":
            raise reader.fault(f"rope scaling {kind!r} is not supported; use a model with rope_type 'default'")
    if said.pop("partial_rotary_factor", 1) != 1:
        raise reader.fault("partial_rotary_factor is not supported; use a model that rotates whole heads")
    odd = sorted(said.keys() - {"rope_theta"})
    if odd:
        raise reader.fault(f"{odd[0]!r} in '{key}' is not supported; use a model with rope_type 'default' and no scaling")
    return _Reader(reader.path, said)


def _eos(reader: _Reader, vocab_size: int) -> tuple[int, ...] | None:
    """Ids that end a text: an int or a list; None where the file says nothing."""
    value = reader.data.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            raise reader.fault(f"eos_token_id {item!r} is no id below the vocabulary size {vocab_size}; correct it")
    return tuple(ids)


def read_config(directory: Path) -> Config:
    """The `Config` of a Hugging Face directory, in either dialect.

    Raises `CheckpointError` for a directory or file that is missing or damaged, and for anything this example does
    not compute: another architecture, experts, rope scaling, sliding windows, quantization, another activation.
    """
    if not directory.is_dir():
        problem = "not a directory" if directory.exists() else "no such directory"
        raise CheckpointError(f"{directory}: {problem}; give the directory of a Hugging Face Qwen3 model")
    path = directory / "config.json"
    reader = _Reader(path, read_json(path))
    _refuse_unsupported(reader)
    heads, hidden = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    config = Config(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", 128),
        max_positions=reader.integer("max_position_embeddings"),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(reader),
        attention_bias=reader.flag("attention_bias"),
        tied=reader.flag("tie_word_embeddings"),
    )
    if config.heads % config.kv_heads:
        raise reader.fault(
            f"num_attention_heads {config.heads} is no multiple of num_key_value_heads {config.kv_heads}; "
            "use the config.json of the weights"
        )
    if config.head_dim % 2:
        raise reader.fault(f"head_dim {config.head_dim} is odd and cannot be rotated; use the config.json of the weights")
    eos = _eos(reader, config.vocab_size)
    generation = directory / "generation_config.json"
    if generation.exists():
        given = _eos(_Reader(generation, read_json(generation)), config.vocab_size)
        eos = eos if given is None else given
    return replace(config, eos_token_ids=eos or ())
