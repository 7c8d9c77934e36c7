"""`config.json` in both dialects, and each thing in it that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.qwen3.config import read_config
from examples.qwen3.errors import CheckpointError
from examples.qwen3.weights import rope_table
from tests.qwen3.support import GOLDENS, PLAIN, change_config, copy_of


def test_both_dialects_are_read() -> None:
    assert read_config(GOLDENS / "large-eps-odd-theta-bf16").rope_theta == 77.7
    assert read_config(GOLDENS / "odd-theta-released-f16").rope_theta == 333.25
    assert read_config(GOLDENS / "large-eps-odd-theta-bf16").rms_norm_eps == 0.2
    config = read_config(GOLDENS / "wide-heads-untied-bf16")
    assert (config.head_dim, config.heads, config.kv_heads, config.tied) == (32, 3, 1, False)
    assert read_config(GOLDENS / "bias-mqa-bf16").attention_bias


@pytest.mark.parametrize(
    ("value", "generation", "ids"),
    [
        (7, None, (7,)),
        ([7, 9], None, (7, 9)),
        (None, None, ()),
        (7, '{"eos_token_id": [1, 2]}', (1, 2)),
        (7, '{"eos_token_id": 3}', (3,)),
        (7, "{}", (7,)),
    ],
)
def test_eos_is_an_id_or_a_list_of_either_file(tmp_path: Path, value: Any, generation: Any, ids: Any) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, eos_token_id=value)
    (directory / "generation_config.json").unlink()
    if generation is not None:
        (directory / "generation_config.json").write_text(generation)
    assert read_config(directory).eos_token_ids == ids


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"model_type": "qwen2", "architectures": ...}, "qwen2"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification"),
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "mixture of experts"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"type": "default", "rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"factor": 4.0}}, "'factor' in 'rope_scaling'"),
        ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "'factor' in 'rope_parameters'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "'full_attention' in 'rope_parameters'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention' in 'rope_parameters'"),
        ({"rope_parameters": ..., "rope_theta": 1e-300}, "'rope_theta' is 1e-300, not a number between 1e-20 and 1e+30"),
        ({"rope_parameters": {"rope_theta": 1e-300}}, "'rope_theta' is 1e-300"),
        ({"rope_scaling": {"rope_theta": 1e-300}}, "'rope_theta' is 1e-300"),
        ({"rope_parameters": {"rope_theta": 1e39}}, "'rope_theta' is 1e+39"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "'rope_theta' is nan"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding-window"),
        ({"use_sliding_window": "false"}, "'use_sliding_window' is 'false'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": 5}, "'layer_types' is 5, not a list of names"),
        ({"layer_types": "full_attention"}, "'layer_types' is 'full_attention'"),
        ({"layer_types": ["full_attention", 5]}, "'layer_types' is ['full_attention', 5]"),
        ({"architectures": 5}, "'architectures' is 5, not a list of names"),
        ({"architectures": {"a": 1}}, "'architectures' is {'a': 1}"),
        ({"architectures": "Qwen3ForCausalLM"}, "'architectures' is 'Qwen3ForCausalLM'"),
        ({"architectures": [["Qwen3ForCausalLM"]]}, "'architectures' is [["),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"hidden_size": "many"}, "'hidden_size' is 'many'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"vocab_size": True}, "'vocab_size' is True"),
        ({"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0"),
        ({"rms_norm_eps": 10**400}, "'rms_norm_eps'"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7"),
        ({"eos_token_id": 4000}, "eos_token_id 4000"),
    ],
)
def test_what_is_refused_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_config(directory)
    assert named in str(caught.value)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"a": ' * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    directory = copy_of(PLAIN, tmp_path)
    (directory / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        read_config(directory)


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_config(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: not a directory"):
        read_config(tmp_path / "file")


def test_a_disused_sliding_window_is_fine(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, use_sliding_window=False, sliding_window=4096, rope_scaling=None)
    assert read_config(directory) == read_config(GOLDENS / PLAIN)


@pytest.mark.parametrize("rope", [{}, {"type": "default", "factor": None}, {"rope_type": "default", "partial_rotary_factor": 1.0}])
def test_what_is_plainly_the_default_is_fine(tmp_path: Path, rope: dict[str, Any]) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, rope_scaling=rope, layer_types=None, architectures=None)
    assert read_config(directory) == read_config(GOLDENS / PLAIN)


def test_the_least_and_the_largest_theta_give_finite_angles(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    for theta in (1.01e-20, 0.99e30):
        change_config(directory, rope_parameters={"rope_theta": theta})
        assert np.isfinite(rope_table(read_config(directory), 1000)).all()
