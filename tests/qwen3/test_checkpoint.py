"""What is wrong with a weight file is found before anything is computed, and named in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from examples.qwen3 import checkpoint
from examples.qwen3.checkpoint import Checkpoint, load_weights
from examples.qwen3.config import read_config
from examples.qwen3.errors import CheckpointError
from tests.qwen3.support import GOLDENS, PLAIN, SHARDED, change_config, change_tensors, copy_of

NORM = "model__norm__weight"


def fault(directory: Path) -> str:
    """The line that loading `directory` ends with."""
    with pytest.raises(CheckpointError) as caught:
        load_weights(directory, read_config(directory), 8)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_tensors(directory, **{NORM: None})
    assert "model.norm.weight is missing" in fault(directory)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_tensors(directory, model__layers__0__self_attn__q_proj__bias=np.zeros(48, np.float32))
    assert "unexpected tensor model.layers.0.self_attn.q_proj.bias" in fault(directory)


def test_more_or_fewer_layers_than_the_config_says_are_refused(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, num_hidden_layers=10**9, layer_types=...)
    assert "model.layers.2.input_layernorm.weight is missing" in fault(directory)
    change_config(directory, num_hidden_layers=1)
    assert "unexpected tensor model.layers.1." in fault(directory)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_tensors(directory, **{NORM: np.zeros(31, np.float32)})
    assert "model.norm.weight has shape (31,), expected (32,)" in fault(directory)


def test_an_integer_tensor_is_refused(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_tensors(directory, **{NORM: np.zeros(32, np.int8)})
    assert "model.norm.weight is I8" in fault(directory)


def test_an_untied_config_needs_a_head_and_a_tied_one_ignores_it(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in fault(directory)
    change_tensors(directory, lm_head__weight=np.ones((98, 32), np.float32))
    change_config(directory, tie_word_embeddings=True)
    config = read_config(directory)
    np.testing.assert_array_equal(load_weights(directory, config, 8).head, load_weights(GOLDENS / PLAIN, config, 8).head)


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{abc", b"version https://git-lfs.example/spec/v1\n"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    directory = copy_of(PLAIN, tmp_path)
    (directory / "model.safetensors").write_bytes(content)
    assert "model.safetensors: damaged or unreadable" in fault(directory)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: damaged or unreadable" in fault(directory)


def test_no_weights_at_all(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    (directory / "model.safetensors").unlink()
    assert "no model.safetensors and no model.safetensors.index.json" in fault(directory)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = copy_of(SHARDED, tmp_path)
    shard = min(directory.glob("model-*.safetensors"))
    shard.unlink()
    assert f"{shard.name}: no such file, but model.safetensors.index.json names it" in fault(directory)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("{", "damaged"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "no 'weight_map'"),
        (json.dumps({"weight_map": {"a": "../other.safetensors"}}), "no plain file name"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, index: str, named: str) -> None:
    directory = copy_of(SHARDED, tmp_path)
    (directory / "model.safetensors.index.json").write_text(index)
    line = fault(directory)
    assert "model.safetensors.index.json" in line
    assert named in line


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "safetensors", None)
    with pytest.raises(CheckpointError, match="pip install safetensors ml_dtypes"):
        Checkpoint(GOLDENS / PLAIN, read_config(GOLDENS / PLAIN))


def test_progress_rises_to_the_end() -> None:
    shares: list[float] = []
    config = read_config(GOLDENS / SHARDED)
    load_weights(GOLDENS / SHARDED, config, 8, shares.append)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], len(shares)) == (0, 1, config.layers + 2)
