"""The command as a user runs it: `main(argv)`, and a few runs of the real process."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import threadpoolctl

import pypto_actors as pa
from examples.qwen3 import console, generate
from examples.qwen3 import programs as qwen3_programs
from examples.qwen3.decode import make_decode_step
from examples.qwen3.generate import main
from examples.qwen3.options import BUNDLED
from examples.qwen3.parallel import open_worker
from examples.qwen3.text import Tokenizer
from tests.qwen3.support import CASES, GOLDENS, PLAIN, ROOT, change_config, change_tensors, copy_of, expected

COMMAND = [sys.executable, "-m", "examples.qwen3.generate"]


def ids_of(tokens: list[int]) -> str:
    return ",".join(map(str, tokens))


def fault(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on standard error that a run ends with."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize("case", CASES)
def test_ids_without_a_tokenizer(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, tokens, logits = expected(case)
    saved = tmp_path / "logits.npz"
    argv = ["--model", str(GOLDENS / case), "--prompt-ids", ids_of(prompt), "--max-tokens", "12", "--backend", "inline"]
    assert main([*argv, "--save-logits", str(saved)]) == 0
    out, err = capsys.readouterr()
    assert out == ids_of(tokens[:12]) + "\n"
    assert err == ""
    with np.load(saved) as data:
        assert data["tokens"].tolist() == tokens[:12]
        assert data["logits"].shape == logits[:12].shape
        assert np.abs(data["logits"] - logits[:12]).max() < 2e-3


@pytest.mark.parametrize("backend", ["inline", "thread"])
def test_text_of_the_bundled_model(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(GOLDENS / "tiny-shakespeare.npz") as data:
        wanted = Tokenizer(BUNDLED).decode(data["tokens"][:60].tolist())
    assert main(["--prompt", "First Citizen:", "--max-tokens", "60", "--backend", backend]) == 0
    assert capsys.readouterr().out == wanted + "\n"


def test_it_reads_like_a_play(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt", "First Citizen:", "--temperature", "0.8", "--seed", "1", "--max-tokens", "200"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^[A-Z][A-Za-z ]+:$", out, re.MULTILINE), "someone else speaks"
    assert len(set(out.split())) > 40


def test_a_seed_repeats_a_draw(capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> str:
        argv = ["--prompt", "KING", "--top-k", "50", "--top-p", "0.95", "--max-tokens", "20", "--seed", seed]
        assert main(argv) == 0
        return capsys.readouterr().out

    assert run("3") == run("3")
    assert run("3") != run("4")


def test_stats_are_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt-ids", "5,6,7", "--max-tokens", "4", "--stats"]) == 0
    stats = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert list(stats) == ["prefill_tokens", "prefill_seconds", "decode_tokens", "decode_seconds", "load_seconds"]
    assert (stats["prefill_tokens"], stats["decode_tokens"]) == (3, 3)
    assert min(stats.values()) > 0


def test_an_eos_ends_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, tokens, _ = expected(PLAIN)
    directory = copy_of(PLAIN, tmp_path)
    end = tokens[3]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [90, end]}))
    assert main(["--model", str(directory), "--prompt-ids", ids_of(prompt), "--max-tokens", "30"]) == 0
    assert capsys.readouterr().out == ids_of(tokens[: tokens.index(end) + 1]) + "\n"


def test_the_end_of_the_context_ends_the_text_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, tokens, _ = expected(PLAIN)
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, max_position_embeddings=len(prompt) + 5)
    assert main(["--model", str(directory), "--prompt-ids", ids_of(prompt), "--max-tokens", "1000000000000"]) == 0
    out, err = capsys.readouterr()
    assert out == ids_of(tokens[:5]) + "\n"
    assert err == f"stopped after 5 tokens: the context of {len(prompt) + 5} is full\n"


def test_faults_of_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the prompt is empty" in fault(capsys, "--prompt", "")
    assert "the prompt is empty" in fault(capsys, "--prompt-ids", "")
    assert "id 1024 is outside the vocabulary; use ids from 0 to 1023" in fault(capsys, "--prompt-ids", "1,1024")
    assert f"id {10**30} is outside" in fault(capsys, "--prompt-ids", str(10**30))
    assert "id -1 is outside" in fault(capsys, "--prompt-ids=-1")
    assert "1024 tokens, too long" in fault(capsys, "--prompt-ids", ids_of([1] * 1024))
    assert "no tokenizer" not in fault(capsys, "--prompt", "a\udcff")


def test_faults_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(directory: Path) -> str:
        return fault(capsys, "--model", str(directory), "--prompt-ids", "1")

    assert "no such directory" in of(tmp_path / "nowhere")
    assert "File name too long" in of(tmp_path / ("x" * 5000))
    directory = copy_of(PLAIN, tmp_path)
    assert "tokenizer.json: no such file" in fault(capsys, "--model", str(directory), "--prompt", "x")
    change_tensors(directory, model__norm__weight=np.full(32, np.nan, np.float32))
    assert "model.norm.weight is damaged" in of(directory)
    change_tensors(directory, model__norm__weight=np.full(32, 3e38, np.float32))
    assert "the logits are not finite" in of(directory)
    change_tensors(directory, model__norm__weight=None)
    assert "model.norm.weight is missing" in of(directory)
    change_config(directory, model_type="mamba", architectures=["Mamba"])
    assert "'Mamba' is not supported" in of(directory)
    (directory / "config.json").write_text("{")
    assert "config.json: damaged" in of(directory)


def test_faults_of_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--temperature -1" in fault(capsys, "--prompt", "x", "--temperature", "-1")
    assert "--save-logits" in fault(capsys, "--prompt", "x", "--save-logits", str(tmp_path))
    assert "--prompt" in fault(capsys)


def test_a_model_larger_than_the_device_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def small(*args: Any, **options: Any) -> pa.DistributedWorker:
        return worker(*args, **options | {"config": pa.DistributedConfig(memory_bytes=1 << 20)})

    worker = pa.DistributedWorker
    monkeypatch.setattr(pa, "DistributedWorker", small)
    assert "the model does not fit" in fault(capsys, "--prompt", "x")


def test_progress_is_shown_once_loading_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    patient, eager = console.Progress("model", patience=1e9), console.Progress("model", patience=0)
    patient.show(0.5)
    eager.show(0.25)
    assert capsys.readouterr().err == "loading model: 25%\n"


@pytest.mark.parametrize(
    ("argv", "seconds", "shares"),
    [
        (("--devices", "4"), 0.5, ["33%", "100%"]),  # the others have it from the first
        (("--devices", "2", "--parallel", "tensor"), 0.5, ["33%", "100%"]),
        ((), 0.5, ["33%", "100%"]),
    ],
)
def test_the_model_is_loaded_once(
    argv: tuple[str, ...], seconds: float, shares: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count()
    monkeypatch.setattr(console, "time", SimpleNamespace(perf_counter=lambda: next(looks) * seconds))
    directory = GOLDENS / PLAIN
    assert main(["--model", str(directory), "--prompt-ids", "1", "--max-tokens", "1", *argv]) == 0
    assert capsys.readouterr().err.splitlines() == [f"loading {directory}: {share}" for share in shares]


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(output: console.Output, text: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(console.Output, "write", interrupt)
    assert main(["--prompt", "First", "--max-tokens", "50"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_fault() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--prompt", "First Citizen:", "--max-tokens", "900"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_ctrl_c_ends_the_process_cleanly() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--prompt", "First Citizen:", "--max-tokens", "1000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, b"")


def test_an_encoding_that_lacks_a_character_and_a_closed_output() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    argv = [*COMMAND, "--prompt-ids", ids_of(Tokenizer(BUNDLED).encode("é")), "--max-tokens", "3"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *argv], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        argv = [*COMMAND, "--prompt-ids", "5", "--max-tokens", "3"]
        done = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("threads", [None, 2])
def test_blas_has_the_threads_that_were_asked_for_where_kernels_run_here(
    backend: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()

    def looking(*args: Any) -> Any:
        seen.update(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
        return make_decode_step(*args)

    monkeypatch.setattr(qwen3_programs, "make_decode_step", looking)
    before = threadpoolctl.threadpool_info()
    asked = [] if threads is None else ["--blas-threads", str(threads)]
    assert main(["--prompt-ids", "1,2", "--max-tokens", "3", "--backend", backend, *asked]) == 0
    assert seen == {threads or 1}
    assert threadpoolctl.threadpool_info() == before


@pytest.mark.parametrize("threads", [1, 2])
async def test_blas_has_the_threads_that_were_asked_for_in_a_process(threads: int) -> None:
    @pa.kernel
    def look(x: pa.OutArray) -> None:
        x[...] = int(os.environ["OPENBLAS_NUM_THREADS"])

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), np.int64)]) -> None:
        orch.submit(look, x, device=0)

    x = np.zeros(1, np.int64)
    async with open_worker([program], "process", 1, None, threads) as worker:
        await worker.run(program, x)
    assert x == threads


def test_blas_threads_without_the_package_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "threadpoolctl", None)
    assert "--blas-threads 2 needs the package threadpoolctl" in fault(capsys, "--prompt-ids", "1", "--blas-threads", "2")
    assert main(["--prompt-ids", "1", "--max-tokens", "1"]) == 0
