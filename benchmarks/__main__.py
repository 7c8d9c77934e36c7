"""Run all benchmarks, each in a process of its own, and print one table.

    python -m benchmarks [--quick] [--only NAME …] [--json FILE] [--traces DIRECTORY] [--transformers-python PATH]

The comparison with `transformers` needs a Python that has it (see `benchmarks/qwen3_vs_transformers.py`); without one it
is named in the table as not measured. A benchmark that fails makes the status 1; a demand that is missed does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness

NAMES = (
    "bound_call",
    "plain_run",
    "outstanding",
    "further_step",
    "thread_run",
    "thread_chain",
    "two_devices",
    "qwen3_decode",
    "qwen3_chain",
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


def run(name: str, arguments: list[str], file: Path) -> bool:
    """Run one; its answers are in `file` if it worked."""
    print(f"{name} …", end=" ", flush=True, file=sys.stderr)
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{time.monotonic() - start:.0f} s" if done.returncode == 0 else f"failed\n{done.stderr}", file=sys.stderr)
    return done.returncode == 0


def transformers_rows(file: Path | None) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of the comparison with `transformers`; larger is better there."""
    if file is None:
        how = f"needs a Python with transformers: python -m benchmarks.{TRANSFORMERS} --help"
        yield "Qwen3 20M, decode and prefill, faster than transformers", "2.0, 1.5, 1.1 / 2.6, 1.8, 1.3", "not measured", "–", how
        return
    for name, result in json.loads(file.read_text(encoding="utf-8"))["results"].items():
        yield f"Qwen3 20M, {name}, faster than transformers", "see its docstring", f"{result['ratio']:.2f} ×", "–", "larger is better"


def main() -> int:
    """Run, print the table, and say whether all of them worked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rounds: shows that all work, measures little")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"only these of: {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all answers there, every round of them")
    parser.add_argument("--traces", type=Path, metavar="DIRECTORY", help="write a Chrome trace of a further, short pass of each there")
    parser.add_argument("--transformers-python", metavar="PATH", help="also compare with transformers, which this Python has")
    options = parser.parse_args()
    if options.traces:
        options.traces.mkdir(parents=True, exist_ok=True)
    documents, rows, failed = [], [harness.HEADER], []
    with tempfile.TemporaryDirectory() as directory:
        for name in options.only:
            if name == RAY and importlib.util.find_spec("ray") is None:
                rows.append(("no-op `run` on ray", "1.3 / 1.1", "not measured", "–", "needs Ray: pip install 'pypto_actors[ray]'"))
                continue
            file = Path(directory, f"{name}.json")
            arguments = ["--quick"] if options.quick else []
            if options.traces:
                arguments += ["--trace", str(options.traces / f"{name}.json")]
            if run(name, arguments, file):
                documents.append(json.loads(file.read_text(encoding="utf-8")))
                rows += map(harness.row_of, harness.read_answers(file))
            else:
                failed.append(name)
                rows.append((name, "–", "failed", "–", "see above"))
        other: Path | None = Path(directory, f"{TRANSFORMERS}.json")
        assert other is not None
        if not options.transformers_python:
            other = None
        elif not run(TRANSFORMERS, ["--transformers-python", options.transformers_python], other):
            failed.append(TRANSFORMERS)
            other = None
        if options.only is NAMES:
            rows += transformers_rows(other)
    print(harness.table(rows))
    if options.quick:
        print("\n--quick: the rounds are too few and too short for these figures to mean anything")
    if options.json:
        options.json.write_text(json.dumps(documents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
