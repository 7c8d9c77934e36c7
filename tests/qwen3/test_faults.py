"""What ends the command from below it: short memory, threads and files, and devices that die. Always one line, and status 2."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import pypto_actors as pa
from examples.qwen3 import console, generate
from examples.qwen3.config import read_config
from examples.qwen3.faults import explain
from examples.qwen3.generate import main
from examples.qwen3.parallel import open_worker
from examples.qwen3.programs import make_programs
from tests.process.support import children
from tests.qwen3.support import GOLDENS, PLAIN, ROOT, change_config, change_tensors, copy_of

FILES = "close other programs, or allow more open files by ulimit -n"
SMALLER = "use a smaller one, fewer --max-tokens or fewer --devices"


def raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("4 GiB\n are too many"), f"the model does not fit (4 GiB are too many); {SMALLER}"),
        (MemoryError(), f"the model does not fit (no more memory); {SMALLER}"),
        (pa.DeviceOutOfMemoryError("full", asked=2, free=1, capacity=1), f"the model does not fit (full); {SMALLER}"),
        (raised(pa.KernelError("failed"), MemoryError("short")), f"the model does not fit (short); {SMALLER}"),
        (
            raised(pa.KernelError("failed"), ExceptionGroup("both", [ValueError(), raised(RuntimeError(), MemoryError("short"))])),
            f"the model does not fit (short); {SMALLER}",
        ),
        (raised(pa.KernelError("failed\n badly"), ValueError("odd")), "failed badly; run it again, or with another --backend"),
        (pa.InternalError(), "InternalError; run it again, or with another --backend"),
        (pa.DeviceFailedError("device 0 died"), "device 0 died; run it again, or with another --backend"),
        (
            raised(pa.DeviceFailedError("device 0 died"), ConnectionResetError(errno.ECONNRESET, "reset")),
            "device 0 died; run it again, or with another --backend",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied; check the path and its permissions"),
        (OSError(errno.EMFILE, "Too many open files", "x"), f"x: Too many open files; {FILES}"),
        (OSError(errno.ENFILE, "Too many open files in system"), f"Too many open files in system; {FILES}"),
        (raised(pa.DeviceFailedError("died"), OSError(errno.EMFILE, "Too many open files")), f"Too many open files; {FILES}"),
    ],
)
def test_an_error_is_explained_in_one_line(error: Exception, line: str) -> None:
    assert explain(error) == line


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("argv", [("--backend", "inline"), ("--backend", "process"), ("--devices", "2", "--parallel", "tensor")])
def test_a_host_short_of_memory_is_told(argv: tuple[str, ...], tmp_path: Path) -> None:
    directory = copy_of(PLAIN, tmp_path)
    change_config(directory, max_position_embeddings=10**30)
    command = [sys.executable, "-m", "examples.qwen3.generate", "--model", str(directory), "--prompt-ids", "1", "--max-tokens", "100000000"]
    limited = ["sh", "-c", 'ulimit -v 4000000 && exec "$@"', "sh", *command, *argv]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each thread of it reserves memory
    done = subprocess.run(limited, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the model does not fit (")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("argv", [(), ("--devices", "2"), ("--devices", "2", "--parallel", "tensor")])
def test_a_device_that_dies_is_told(argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = children()

    def kill(output: console.Output, text: str) -> None:
        for number in sorted(children() - before)[:1]:
            os.kill(number, signal.SIGKILL)

    monkeypatch.setattr(console.Output, "write", kill)
    assert main(["--prompt-ids", "1,2,3", "--max-tokens", "200", "--backend", "process", *argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert "died" in said
    assert said.endswith("; run it again, or with another --backend\n")


@pytest.mark.parametrize("argv", [(), ("--devices", "2"), ("--devices", "2", "--parallel", "tensor")])
def test_a_device_that_dies_while_the_model_is_loaded_is_told(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = children()

    def kill(progress: console.Progress, share: float) -> None:
        for number in sorted(children() - before)[:1]:
            os.kill(number, signal.SIGKILL)
            os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(console.Progress, "show", lambda *_: None)

    monkeypatch.setattr(console.Progress, "show", kill)
    assert main(["--prompt-ids", "1,2,3", "--backend", "process", *argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "died" in said
    assert said.endswith("; run it again, or with another --backend\n")


@pytest.mark.parametrize("argv", [(), ("--devices", "2"), ("--devices", "2", "--parallel", "tensor")])
def test_weights_that_overflow_are_told_and_nothing_else(argv: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = copy_of(PLAIN, tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    huge = np.full_like(load_file(directory / "model.safetensors")[name], 3e38)
    change_tensors(directory, **{name.replace(".", "__"): huge})
    assert main(["--model", str(directory), "--prompt-ids", "1,2,3", *argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the logits are not finite" in said


def test_what_one_sequence_runs_out_of_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise pa.KernelError("decode failed") from MemoryError("short")

    monkeypatch.setattr(generate, "timed", broken)
    assert main(["--prompt-ids", "1", "--devices", "2"]) == 2
    assert capsys.readouterr().err == f"error: the model does not fit (short); {SMALLER}\n"


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread; use fewer --devices or another --backend"),
        (BlockingIOError(errno.EAGAIN, "try again"), f"[Errno {errno.EAGAIN}] try again; use fewer --devices or another --backend"),
        (OSError(errno.EMFILE, "too many"), f"[Errno {errno.EMFILE}] too many; {FILES}"),
    ],
)
def test_a_worker_that_does_not_start_is_told(
    error: Exception, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main(["--prompt-ids", "1", "--devices", "3"]) == 2
    assert capsys.readouterr().err == f"error: --devices 3 --backend thread: {end}\n"


@pytest.mark.parametrize("error", [RuntimeError("mine"), OSError("mine")])
async def test_what_the_body_raises_is_not_taken_for_a_fault_of_the_start(error: Exception) -> None:
    programs = make_programs(read_config(GOLDENS / PLAIN), 4)
    with pytest.raises(type(error)) as caught:
        async with open_worker(programs.both, "inline", 1):
            raise error
    assert caught.value is error


def test_a_lack_of_open_files_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(path: Path, encoding: str) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert main(["--prompt-ids", "1"]) == 2
    said = capsys.readouterr().err
    assert "config.json: cannot be read (Too many open files)" in said
    assert said.endswith(f"; {FILES}\n")
