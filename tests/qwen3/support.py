"""What the tests of the example share: the golden checkpoints, and ways to break a copy of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from examples.qwen3.weights import Array

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
CASES = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
PLAIN, SHARDED = "gqa-tied-f32", "shards-untied-f16"


def expected(case: str) -> tuple[list[int], list[int], Array]:
    """Prompt, greedy tokens and logits (n, V) of `transformers`."""
    with np.load(GOLDENS / case / "expected.npz") as data:
        return data["prompt"].tolist(), data["tokens"].tolist(), data["logits"]


def copy_of(case: str, target: Path) -> Path:
    """A checkpoint of one's own to break."""
    directory = target / case
    shutil.copytree(GOLDENS / case, directory)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    """Set keys of `config.json`; `...` removes one."""
    path = directory / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def change_tensors(directory: Path, **changes: Any) -> None:
    """Set tensors of `model.safetensors`, by their names with `__` for a dot; None removes one."""
    path = directory / "model.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
