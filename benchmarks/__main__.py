"""Run all benchmarks, each in a process of its own, and print one table.

    python -m benchmarks [--quick] [--only NAME …] [--json FILE] [--traces DIRECTORY] [--transformers-python PATH]

The comparison with `transformers` needs a Python that has it (see `benchmarks/qwen3_vs_transformers.py`); without one it
is named in the table as not measured. A benchmark that fails makes the status 1; a demand that is missed does not. A file
that could not be written makes it 2, before anything is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeAlias

from benchmarks import harness, targets

Row: TypeAlias = tuple[str, str, str, str, str]

NAMES = (
    "bound_call",
    "plain_run",
    "outstanding",
    "further_step",
    "thread_run",
    "thread_chain",
    "two_devices",
    "qwen3_decode",
    "live_and_queued",
    "many_devices",
    "idle_cpu",
    "latency_under_load",
    "gangs",
    "process_noop",
    "process_tensor",
    "process_start",
    "qwen3_parallel",
    "ray_noop",
)
RAY = "ray_noop"
TRANSFORMERS = "qwen3_vs_transformers"
ALL = (*NAMES, TRANSFORMERS)


def run(name: str, arguments: list[str], file: Path) -> bool:
    """Run one; its answers are in `file` if it worked."""
    print(f"{name} …", end=" ", flush=True, file=sys.stderr)
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{time.monotonic() - start:.0f} s" if done.returncode == 0 else f"failed\n{done.stderr}", file=sys.stderr)
    return done.returncode == 0


def missing(name: str, options: argparse.Namespace) -> Row | None:
    """The row of a benchmark whose rival is not here."""
    if name == RAY and importlib.util.find_spec("ray") is None:
        return "no-op `run` on ray", "1.3 / 1.1", "not measured", "–", "needs Ray: pip install 'pypto_actors[ray]'"
    if name == TRANSFORMERS and options.transformers_python is None:
        how = f"needs a Python with transformers: python -m benchmarks.{TRANSFORMERS} --help"
        return "Qwen3 20M: times as fast as transformers", "2.0, 1.5, 1.1 / 2.6, 1.8, 1.3", "not measured", "–", how
    return None


def arguments_of(name: str, options: argparse.Namespace) -> list[str]:
    """What is passed on to one."""
    arguments = ["--quick"] if options.quick else []
    if options.traces is not None:
        arguments += ["--trace", str(trace_of(name, options))]
    if name == TRANSFORMERS:
        arguments += ["--transformers-python", options.transformers_python]
    return arguments


def trace_of(name: str, options: argparse.Namespace) -> Path:
    """The file in the directory of all traces."""
    return Path(options.traces, f"{name}.json")


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="few and short rounds: shows that all work, measures little")
    result.add_argument("--only", nargs="+", choices=ALL, default=ALL, metavar="NAME", help=f"only these of: {', '.join(ALL)}")
    result.add_argument("--json", type=Path, metavar="FILE", help="write all answers there, every round of them")
    result.add_argument("--traces", type=Path, metavar="DIRECTORY", help="write a Chrome trace of a further, short pass of each there")
    result.add_argument("--transformers-python", metavar="PATH", help=f"for {TRANSFORMERS}: a Python that has transformers")
    return result


def read_options() -> argparse.Namespace:
    """The command line, if all that it names is there or can be written."""
    read = parser()
    options = read.parse_args()
    options.only = list(dict.fromkeys(options.only))
    if options.transformers_python is not None:
        targets.require_python(read, options.transformers_python)
    traces = []
    if options.traces is not None:
        targets.require_directory(read, options.traces)
        traces = [trace_of(name, options) for name in options.only]
    targets.require(read, json=options.json, traces=traces)
    return options


def measure(options: argparse.Namespace, directory: Path) -> tuple[list[Row], list[object], bool]:
    """Run all that were chosen: the rows of the table, what each wrote, and did all of them work?"""
    rows: list[Row] = []
    documents: list[object] = []
    worked = True
    for name in options.only:
        file = directory / f"{name}.json"
        if row := missing(name, options):
            rows.append(row)
        elif run(name, arguments_of(name, options), file):
            documents.append(json.loads(file.read_text(encoding="utf-8")))
            rows += map(harness.row_of, harness.read_answers(file))
        else:
            rows.append((name, "–", "failed", "–", "see above"))
            worked = False
    return rows, documents, worked


def main() -> int:
    """Run, print the table, and say whether all of them worked."""
    options = read_options()
    with tempfile.TemporaryDirectory() as directory:
        rows, documents, worked = measure(options, Path(directory))
    print(harness.table([harness.HEADER, *rows]))
    if options.quick:
        print("\n--quick: the rounds are too few and too short for these figures to mean anything")
    if options.json is not None:
        harness.save(options.json, documents)
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
