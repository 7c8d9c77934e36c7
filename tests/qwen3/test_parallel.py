"""`--devices N`: on each backend the tokens are those of one device, and the logits are within 2e-3 of `transformers`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from examples.qwen3 import generate
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import Config, read_config
from examples.qwen3.console import Output, Pages
from examples.qwen3.errors import OptionError
from examples.qwen3.generate import main
from examples.qwen3.options import parse
from examples.qwen3.parallel import TensorParallel, open_worker
from examples.qwen3.parallel_programs import make_sharded_programs
from examples.qwen3.parallel_shards import shard_config, shard_shapes, shards_of, vocabulary_share
from examples.qwen3.weights import MATRICES, Part, random_weights, weight_shapes, without_gap
from pypto_actors.backends import ProcessBackend
from tests.qwen3.support import CASES, GOLDENS, PLAIN, change_tensors, copy_of, expected

BACKENDS = ["inline", "thread"]


def sharings() -> list[tuple[str, int]]:
    """Every golden model with every number of devices that its key heads allow."""
    heads = {case: read_config(GOLDENS / case).kv_heads for case in CASES}
    return [(case, devices) for case in CASES for devices in (1, 2, 4) if heads[case] % devices == 0]


def run(case: str, tmp_path: Path, *argv: str) -> dict[str, np.ndarray]:
    prompt, _, _ = expected(case)
    saved = tmp_path / "logits.npz"
    ids = ",".join(map(str, prompt))
    assert main(["--model", str(GOLDENS / case), "--prompt-ids", ids, "--max-tokens", "12", "--save-logits", str(saved), *argv]) == 0
    with np.load(saved) as data:
        return dict(data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "devices"), sharings())
def test_tensor_parallel_says_what_one_device_says(case: str, devices: int, backend: str, tmp_path: Path) -> None:
    _, tokens, logits = expected(case)
    data = run(case, tmp_path, "--devices", str(devices), "--parallel", "tensor", "--backend", backend)
    assert data["tokens"].tolist() == tokens[:12]
    assert data["logits"].shape == logits[:12].shape
    assert np.abs(data["logits"] - logits[:12]).max() < 2e-3


def test_scores_that_overflow_are_shifted_on_each_device(tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    tensors = load_file(directory / "model.safetensors")
    norms = {name.replace(".", "__"): tensors[name] * 20 for name in tensors if name.endswith(("q_norm.weight", "k_norm.weight"))}
    change_tensors(directory, **norms)
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    command = ["--model", str(directory), "--prompt-ids", "5,17,88,3,20", "--max-tokens", "4", "--backend", "inline", "--save-logits"]
    assert main([*command, str(one)]) == 0
    assert main([*command, str(two), "--devices", "2", "--parallel", "tensor"]) == 0
    with np.load(one) as alone, np.load(two) as shared:
        assert np.isfinite(alone["logits"]).all()
        np.testing.assert_allclose(shared["logits"], alone["logits"], atol=2e-3)


@pytest.mark.parametrize("parallel", ["data", "tensor"])
def test_the_blas_threads_that_were_asked_for_reach_the_worker(parallel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Backend(ProcessBackend):
        def __init__(self, blas_threads: int | None = 1) -> None:
            super().__init__(blas_threads)
            asked.append(blas_threads or 0)

    monkeypatch.setattr("examples.qwen3.parallel.ProcessBackend", Backend)
    argv = [
        "--prompt-ids",
        "1",
        "--max-tokens",
        "1",
        "--backend",
        "process",
        "--devices",
        "2",
        "--parallel",
        parallel,
        "--blas-threads",
        "64",
    ]
    assert main(["--model", str(GOLDENS / PLAIN), *argv]) == 0
    assert asked == [64]


@pytest.mark.parametrize("case", ["gqa-tied-f32", "bias-no-gqa-shards-bf16"])
def test_tensor_parallel_gives_the_same_bits_on_each_backend(case: str, tmp_path: Path) -> None:
    first, second, third = (
        run(case, tmp_path, "--devices", "2", "--parallel", "tensor", "--backend", name) for name in (*BACKENDS, "thread")
    )
    np.testing.assert_array_equal(first["logits"], second["logits"])
    np.testing.assert_array_equal(second["logits"], third["logits"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("devices", [2, 3])
def test_data_parallel_says_what_one_device_says(devices: int, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, tokens, logits = expected(PLAIN)
    data = run(PLAIN, tmp_path, "--devices", str(devices), "--backend", backend)
    for name in ("", *(f"_{number}" for number in range(1, devices))):
        assert data[f"tokens{name}"].tolist() == tokens[:12]
        assert np.abs(data[f"logits{name}"] - logits[:12]).max() < 2e-3
    text = ",".join(map(str, tokens[:12]))
    assert capsys.readouterr().out == "".join(f"=== {number} ===\n{text}\n" for number in range(devices))


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_parallel_draws_with_seeds_of_its_own(backend: str, tmp_path: Path) -> None:
    drawn = ["--temperature", "1.5", "--backend", backend]
    both = run(PLAIN, tmp_path, "--devices", "2", "--seed", "5", *drawn)
    for name, seed in (("tokens", "5"), ("tokens_1", "6")):
        assert both[name].tolist() == run(PLAIN, tmp_path, "--seed", seed, *drawn)["tokens"].tolist()
    assert both["tokens"].tolist() != both["tokens_1"].tolist()


def test_stats_of_several_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt-ids", "5,6,7", "--max-tokens", "4", "--devices", "2", "--stats"]) == 0
    stats = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (stats["prefill_tokens"], stats["decode_tokens"]) == (6, 6)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--devices", "0"], "--devices 0 is too small; give at least 1"),
        (["--devices", "x"], "--devices 'x' is no integer"),
        (["--parallel", "pipeline"], "--parallel 'pipeline' is unknown; give one of data, tensor"),
        (["--devices", "3", "--parallel", "tensor"], "--devices 3: the model's 2 key heads cannot be shared evenly; give one of 1, 2"),
    ],
)
def test_what_cannot_be_is_one_line(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(GOLDENS / PLAIN), "--prompt-ids", "1", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {text}")


def test_by_default_there_is_one_device() -> None:
    options = parse(["--prompt", "x"])
    assert (options.devices, options.parallel) == (1, "data")


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shards_are_the_whole_in_another_order(devices: int) -> None:
    """Products with the shards add up to the product with the whole, also where columns do not divide."""
    config = Config(42, 24, 41, 1, 8, 4, 6, 64, attention_bias=True)
    weights, mine = random_weights(config, 16), shard_config(config, devices)
    shapes = shard_shapes(weight_shapes(mine, 16), config, devices)
    parts = {}
    for name, array in weights._asdict().items():
        layered = name not in ("embed", "head", "rope")
        shards = shards_of(Part(name, 0 if layered else None, array[0] if layered else array), config, devices)
        assert [shard.shape for shard in shards] == [shapes[name][2:] if layered else shapes[name][1:]] * devices, name
        parts[name] = [without_gap(shard) for shard in shards] if name in MATRICES else shards
    np.testing.assert_array_equal(np.concatenate(parts["head"], 1)[:, :42], without_gap(weights.head))
    assert vocabulary_share(config, devices) * devices >= 42
    x = np.random.default_rng(0).standard_normal((3, config.q_size), np.float32)
    partial = sum(piece @ rows for piece, rows in zip(np.split(x, devices, 1), parts["w_o"], strict=True))
    np.testing.assert_allclose(partial, x @ without_gap(weights.w_o[0]), atol=1e-4)
    gates = np.concatenate([shard[:, : mine.intermediate_size] for shard in parts["w_gate_up"]], 1)
    np.testing.assert_array_equal(gates[:, :41], weights.w_gate_up[0][:, :41])
    np.testing.assert_array_equal(np.concatenate(parts["w_down"])[:41], without_gap(weights.w_down[0]))
    assert not np.concatenate(parts["w_down"])[41:].any()


def test_leaving_frees_the_shards_and_a_fault_of_the_parts_too() -> None:
    config = read_config(GOLDENS / PLAIN)

    async def session(parts: object, positions: int) -> tuple[int, ...]:
        programs = make_sharded_programs(config, positions, 2)
        async with open_worker(programs.both, "inline", 2) as worker:
            try:
                async with TensorParallel(worker, programs, parts) as model:  # type: ignore[arg-type]
                    held = [worker.committed_device_memory(rank) for rank in (0, 1)]
                    assert held[0] == held[1] > 0
                    assert len(await model.prefill([1, 2, 3])) == config.vocab_size
            except ZeroDivisionError:
                pass
            return tuple(worker.committed_device_memory(rank) for rank in (0, 1))

    parts = Checkpoint(GOLDENS / PLAIN, config).parts(16)
    assert asyncio.run(session(parts, 16)) == (0, 0)
    assert asyncio.run(session((1 // 0 for _ in range(1)), 16)) == (0, 0)


def test_pages_show_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    pages = Pages(Output(), 3)
    pages.write(1, "b")
    pages.write(0, "a")
    assert capsys.readouterr().out == "=== 0 ===\na"
    pages.end(1)
    pages.write(0, "A")
    pages.end(0)
    assert capsys.readouterr().out == "A=== 1 ===\nb=== 2 ===\n"
    pages.write(2, "c")
    assert capsys.readouterr().out == "c"


def test_a_fault_of_one_sequence_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise OptionError("it broke")

    monkeypatch.setattr(generate, "timed", broken)
    assert main(["--prompt-ids", "1", "--devices", "2"]) == 2
    assert capsys.readouterr().err == "error: it broke\n"


@pytest.mark.parametrize(("backend", "module"), [("process", "cloudpickle"), ("ray", "ray")])
@pytest.mark.parametrize("parallel", ["data", "tensor"])
def test_a_backend_that_is_missing_is_told(
    backend: str, module: str, parallel: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(["--prompt-ids", "1", "--devices", "2", "--parallel", parallel, "--backend", backend]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"pip install 'pypto_actors[{backend}]'" in said
