"""Ctrl-C at each stage of the command: while it is imported, while it runs, and once it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from examples.qwen3 import interrupts
from examples.qwen3.generate import main
from tests.qwen3.support import ROOT

COMMAND = [sys.executable, "-m", "examples.qwen3.generate", "--prompt", "First Citizen:"]


@pytest.fixture
def handler() -> Iterator[None]:
    """What stood before a test stands again behind it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def run_beside(module: str, text: str, directory: Path) -> tuple[int, bytes]:
    """Status and standard error of a command that finds a module of that text before any other one of its name."""
    (directory / f"{module}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run([*COMMAND, "--max-tokens", "2"], cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["numpy", "threadpoolctl", "safetensors"])
def test_while_it_is_imported_it_ends_at_once(module: str, tmp_path: Path) -> None:
    assert run_beside(module, "import signal\nsignal.raise_signal(signal.SIGINT)\n", tmp_path) == (130, b"")


def test_once_it_has_ended_nothing_is_said(tmp_path: Path) -> None:
    late = "import atexit\nimport signal\natexit.register(signal.raise_signal, signal.SIGINT)\n"
    assert run_beside("sitecustomize", late, tmp_path) == (130, b"")


def test_while_it_runs_what_it_holds_is_cleaned_up(tmp_path: Path) -> None:
    trace = tmp_path / "run.json"
    process = subprocess.Popen(
        [*COMMAND, "--max-tokens", "1000", "--trace", str(trace)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert trace.stat().st_size > 0


def test_only_the_usual_handler_is_replaced_and_only_that_one_comes_back(handler: None) -> None:
    def mine(number: int, frame: FrameType | None) -> None: ...

    for other in (signal.SIG_IGN, mine):
        signal.signal(signal.SIGINT, other)
        interrupts.end_at_once()
        interrupts.raise_again()
        assert signal.getsignal(signal.SIGINT) is other
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.end_at_once()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert main(["--prompt-ids", ""]) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
