"""`--trace FILE` and `--plot FILE.png` at examples and benchmarks."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness
from pypto_actors import tracing
from tests.docs.documents import README, ROOT, blocks_in
from tests.tracing.perfetto import Seen, open_file

PNG = b"\x89PNG"
EXAMPLES = {
    "multi_program_kv_cache": {"prefill": 1, "decode": 4},
    "cancellation": {"add": 2},
    "deadline_priority": {"request": 4},
    "phase_fair": {"prefill": 20, "decode": 10},
    "virtual_time_test": {"double": 30},
}
UNTRACED = {"quickstart"}  # it is the first code of the README, and has room for nothing more


def environment() -> dict[str, str]:
    """In which the examples are found from anywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def kernels(seen: Seen) -> dict[str, int]:
    counts: dict[str, int] = {}
    for slice_ in seen.slices:
        if slice_.cat.startswith("kernel"):
            counts[slice_.args["program"]] = counts.get(slice_.args["program"], 0) + 1
    return counts


def example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_writes_its_trace_and_its_plot(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example(name, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    trace, plot = tmp_path / "run.json", tmp_path / "run.png"
    example(name, "--trace", str(trace), "--plot", str(plot), monkeypatch=monkeypatch)
    assert kernels(open_file(trace)) == EXAMPLES[name]
    assert plot.read_bytes().startswith(PNG)
    assert capsys.readouterr().out == printed


def test_all_examples_can_be_traced() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    assert names == set(EXAMPLES) | UNTRACED
    for name in EXAMPLES:
        doc = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert f"python -m examples.{name} [--trace FILE] [--plot FILE.png]" in doc


def test_the_policies_of_an_example_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "run.json"
    example("phase_fair", "--trace", str(trace), monkeypatch=monkeypatch)
    seen = open_file(trace)
    order = {
        process: "".join(slice_.args["stage"][0] for slice_ in seen.slices if slice_.cat == "kernel" and slice_.process == process)
        for process in ("PhaseFair", "Arrival")
    }
    assert order == {"PhaseFair": "ppd" * 5, "Arrival": "p" * 10 + "d" * 5}


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        example("phase_fair", "--trace", str(tmp_path / "nowhere" / "run.json"), monkeypatch=monkeypatch)
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "there is no directory" in error.splitlines()[-1]


def test_without_matplotlib_a_plot_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        example("phase_fair", "--plot", str(tmp_path / "run.png"), monkeypatch=monkeypatch)
    out, error = capsys.readouterr()
    assert out == ""
    assert "pip install 'pypto_actors[bench]'" in error


def test_nothing_asked_for_is_nothing_recorded() -> None:
    with tracing.command_line(argv=[]) as trace:
        assert trace is None


def test_what_the_script_raises_goes_on_and_its_trace_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracing.command_line(argv=["--trace", str(tmp_path / "run.json")]):
        raise ZeroDivisionError
    assert open_file(tmp_path / "run.json").slices == []


@pytest.mark.parametrize("arguments", [(), ("--devices", "2", "--parallel", "data"), ("--devices", "2", "--parallel", "tensor")])
def test_generate_writes_both(arguments: tuple[str, ...], tmp_path: Path) -> None:
    trace, plot = tmp_path / "run.json", tmp_path / "run.png"
    command = [sys.executable, "-m", "examples.qwen3.generate", "--prompt", "KING", "--max-tokens", "4", *arguments]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    traced = subprocess.run(
        [*command, "--trace", str(trace), "--plot", str(plot)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert traced.stdout == plain.stdout
    assert plot.read_bytes().startswith(PNG)
    seen = open_file(trace)
    assert set(kernels(seen)) == {"prefill", "decode"}
    devices = 2 if arguments else 1
    assert len({slice_.lane for slice_ in seen.slices if slice_.cat.startswith("kernel")}) == devices
    assert any(slice_.cat == "kernel,gang" for slice_ in seen.slices) is ("tensor" in arguments)
    assert [values[-1][1] for values in seen.counters.values()] == [0] * (2 + devices)


@pytest.mark.parametrize("option", ["--trace", "--plot"])
def test_generate_says_in_one_line_what_it_cannot_write(option: str) -> None:
    command = [sys.executable, "-m", "examples.qwen3.generate", "--prompt", "KING", option, "/nowhere/file"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {option} /nowhere/file: cannot be written .*\n", done.stderr)


def test_a_benchmark_is_traced_in_a_further_pass_and_says_so(tmp_path: Path) -> None:
    trace = tmp_path / "run.json"
    command = [sys.executable, "-m", "benchmarks.thread_run", "--quick", "--trace", str(trace)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"{trace}: the trace of a further, short pass; the figures above were measured without one"
    seen = open_file(trace)
    assert {slice_.process for slice_ in seen.slices} == {"thread"}
    assert kernels(seen)["noop"] >= 20


def test_the_workers_of_a_benchmark_are_not_traced_while_it_measures(tmp_path: Path) -> None:
    hooks: list[object] = [harness.hook("before")]
    harness.trace(tmp_path / "run.json", lambda: hooks.append(harness.hook("meanwhile")))
    hooks.append(harness.hook("afterwards"))
    assert hooks[0] is hooks[2] is None
    assert isinstance(hooks[1], tracing.Recorder)


def test_every_benchmark_that_opens_workers_can_trace_them() -> None:
    for path in (ROOT / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "pa.DistributedWorker(" in text:
            assert "harness.hook(" in text, path.name


def test_the_code_of_the_readme_writes_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    for code in blocks_in(README, "python"):
        exec(compile(code, "README.md", "exec"), names)
        if "traced" in names:
            break
    asyncio.run(names["traced"]())
    assert kernels(open_file(tmp_path / "run.json")) == {"append": 1}
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_the_command_of_the_readme_is_one_that_works(tmp_path: Path) -> None:
    (command,) = (block.split() for block in blocks_in(README, "sh") if "--trace" in block)
    assert command[:3] == [".venv/bin/python", "-m", "examples.qwen3.generate"]
    arguments = [argument.strip('"') for argument in command[3:]]
    subprocess.run(
        [sys.executable, "-m", command[2], *arguments, "--max-tokens", "2"], cwd=tmp_path, env=environment(), check=True, timeout=60
    )
    assert any(slice_.cat == "kernel,gang" for slice_ in open_file(tmp_path / "run.json").slices)
    assert (tmp_path / "run.png").exists()
