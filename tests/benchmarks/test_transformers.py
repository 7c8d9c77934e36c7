"""The comparison with `transformers`, against a program that speaks its protocol and computes the same by the direct model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import harness, qwen3_vs_transformers
from benchmarks.qwen3_vs_transformers import NEEDED

ROOT = Path(__file__).parents[2]
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}

# Called as the other Python is: -c CODE DIRECTORY THREADS MODEL. `off` is added to each token that it answers with.
STAND_IN = """#!{python}
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, {root!r})
from examples.qwen3.checkpoint import expected_shapes, load_weights
from examples.qwen3.config import read_config
from examples.qwen3.direct import DirectModel

directory, model = Path(sys.argv[3]), json.loads(sys.argv[5])
(directory / "config.json").write_text(json.dumps({{"model_type": "qwen3", **model}}))
config = read_config(directory)
draw = np.random.default_rng(0)
tensors = {{name: draw.standard_normal(shape, dtype=np.float32) for name, shape in expected_shapes(config)}}
save_file(tensors, directory / "model.safetensors")
direct = DirectModel(config, load_weights(directory, config, config.max_positions), batch=16)
print("ready", flush=True)
for line in sys.stdin:
    batch, prompt, tokens = map(int, line.split())
    ids = (np.arange(batch * prompt).reshape(batch, prompt) * 7919) % config.vocab_size
    out = [np.array([direct.prefill(row, slot).argmax() for slot, row in enumerate(ids)])]
    for position in range(prompt, prompt + tokens - 1):
        out.append(direct.decode_step(out[-1], np.full(batch, position)).argmax(axis=1))
    print(json.dumps([0.5 + tokens, (np.transpose(out) + {off}).tolist()]), flush=True)
"""


@pytest.fixture
def other_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that can stand in for the other Python, and a model that is small."""
    monkeypatch.setattr(qwen3_vs_transformers, "MODEL", {**qwen3_vs_transformers.MODEL, **SMALL})
    monkeypatch.setattr(qwen3_vs_transformers, "VOCABULARY", SMALL["vocab_size"])
    return stand_in(tmp_path, off=0)


def stand_in(directory: Path, off: int) -> Path:
    path = directory / "python"
    path.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT), off=off), encoding="utf-8")
    path.chmod(0o755)
    return path


def run(monkeypatch: pytest.MonkeyPatch, python: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["qwen3_vs_transformers", "--quick", "--transformers-python", str(python), *arguments])
    qwen3_vs_transformers.main()


def test_it_prints_its_ratios_and_writes_all_files(
    other_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plot, trace = tmp_path / "answers.json", tmp_path / "rounds.png", tmp_path / "trace.json"
    run(monkeypatch, other_python, "--cores", "2", "1", "2", "--json", str(file), "--plot", str(plot), "--trace", str(trace))
    out = capsys.readouterr().out
    answers = harness.read_answers(file)
    assert [(answer.must, answer.aim) for answer in answers] == [*NEEDED.values()] * 2
    names = [f"{name}, on {cores}" for cores in ("2 cores", "1 core") for name in NEEDED]
    for answer, name in zip(answers, names, strict=True):
        assert f"Qwen3 20M, {name}: times as fast as transformers: {harness.number(answer.reached, '×')}" in out
        assert len(answer.ratios) == 1
        assert answer.reached == pytest.approx(answer.notes["transformers, µs"] / answer.notes["ours, µs"])
        assert answer.more
    # The stand-in says 1 s for each token and 0.5 s around: a step of decode is 1 s, a prefill with one token 1.5 s.
    assert [answer.notes["transformers, µs"] for answer in answers] == [1e6, 1e6, 1.5e6] * 2
    assert ["2 devices, BLAS threads of each: 1" in answer.how for answer in answers] == [False, True, False, False, False, False]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("cores", "devices"), [(1, 1), (2, 2), (3, 2), (15, 8), (64, 16)])
def test_sixteen_sequences_are_shared_out_to_as_many_devices_as_there_are_cores_for(cores: int, devices: int) -> None:
    assert qwen3_vs_transformers.devices_on(cores) == devices


def test_elsewhere_there_are_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert qwen3_vs_transformers.devices_on(8) == 1


@pytest.mark.parametrize(("given", "told"), [(["--cores", "1", "0"], "--cores 0"), (["--rounds", "-1"], "--rounds -1")])
def test_too_few_are_told(given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, Path(sys.executable), *given)
    assert capsys.readouterr().err.endswith(f"error: {told} is too few; give 1 or more\n")


def test_other_tokens_are_no_result(other_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="decode batch 1: the greedy tokens differ"):
        run(monkeypatch, stand_in(other_python.parent, off=1))


def test_a_python_without_transformers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match="cannot run transformers; see the docstring"):
        run(monkeypatch, python)
