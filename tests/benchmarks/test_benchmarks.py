"""Each benchmark runs, prints a ratio and writes its files; no test says anything about how long something takes."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import harness, placement
from benchmarks.__main__ import NAMES, RAY, TRANSFORMERS
from benchmarks.harness import Answer

ROOT = Path(__file__).parents[2]
SHARED = {"__init__", "__main__", "floors", "harness", "noop", "placement", "targets"}


def command(module: str, *arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=directory, capture_output=True, text=True, timeout=100, check=False
    )


def answer(*ratios: float, must: float | None = 3.0, aim: float | None = 2.0) -> Answer:
    return Answer("a question", "a rival", "×", must, aim, ratios, "by hand", {"a note, µs": 1.5})


WITHOUT_RAY = [name for name in NAMES if name != RAY]
WITH_RAY = pytest.param(
    RAY, marks=[pytest.mark.ray, pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")]
)


@pytest.mark.parametrize("name", [*WITHOUT_RAY, WITH_RAY])
def test_a_benchmark_prints_a_ratio_and_writes_json(name: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    done = command(f"benchmarks.{name}", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["question"].endswith("?")
    assert data["answers"]
    for got in data["answers"]:
        assert f"{got['question']}: {harness.number(got['reached'], got['unit'])}" in done.stdout
        assert len(got["ratios"]) >= 1
    assert str(Path.home()) not in file.read_text(encoding="utf-8")


def test_every_script_is_run_and_states_its_question_first() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - SHARED
    assert scripts == {*NAMES, TRANSFORMERS}
    for name in scripts:
        doc = importlib.import_module(f"benchmarks.{name}").__doc__
        assert doc is not None
        assert doc.split("\n\n")[0].endswith("?"), name


def test_a_plot_is_written(tmp_path: Path) -> None:
    file = tmp_path / "rounds.png"
    harness.plot(file, "a title", [answer(1.0, 2.0, 3.0), answer(1.0, must=None, aim=None)])
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "starts"), [("rounds", b"\x89PNG"), ("rounds.PNG", b"\x89PNG"), ("rounds.svg", b"<?xml")])
def test_the_name_of_a_plot_says_its_format(name: str, starts: bytes, tmp_path: Path) -> None:
    harness.plot(tmp_path / name, "a title", [answer(1.0)])
    assert (tmp_path / name).read_bytes().startswith(starts)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_all_of_them_print_one_table(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    done = command("benchmarks", "--quick", "--only", "bound_call", "plain_run", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "await bound()" in done.stdout
    assert "await worker.run" in done.stdout
    assert "3.00 / 2.00" in done.stdout
    assert [data["benchmark"] for data in json.loads(file.read_text(encoding="utf-8"))] == ["bound_call", "plain_run"]


def test_answers_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    before = answer(1.0, 2.0, 4.0)
    file.write_text(json.dumps(harness.document("name", "why?", [before])), encoding="utf-8")
    (after,) = harness.read_answers(file)
    assert harness.row_of(after) == harness.row_of(before)
    assert after.reached == 2.0


@pytest.mark.parametrize(("ratio", "verdict"), [(1.9, "aim"), (2.0, "aim"), (2.5, "must"), (3.1, "missed")])
def test_the_verdict_compares_the_median_with_what_is_asked(ratio: float, verdict: str) -> None:
    assert answer(0.1, ratio, 99.0).verdict == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(1.9, "missed"), (2.0, "must"), (2.9, "must"), (3.0, "aim")])
def test_where_more_is_better_the_verdict_turns_round(ratio: float, verdict: str) -> None:
    assert replace(answer(0.1, ratio, 99.0, must=2.0, aim=3.0), more=True).verdict == verdict


def test_a_round_measures_every_side_once_and_the_warm_up_is_thrown_away() -> None:
    seen: list[str] = []

    async def side(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    times = asyncio.run(harness.paired(3, {"a": lambda: side("a"), "b": lambda: side("b")}, warm_up=2))
    pairs = [set(seen[index : index + 2]) for index in range(0, len(seen), 2)]
    assert pairs == [{"a", "b"}] * 5
    assert sorted(times["a"] + times["b"]) == [5, 6, 7, 8, 9, 10]


@pytest.mark.skipif(len(placement.cores()) < 2, reason="there is one core only, or the system does not let itself be told")
@pytest.mark.parametrize("together", [True, False])
def test_both_sides_are_placed_alike_and_may_go_anywhere_afterwards(together: bool) -> None:
    before, stop = os.sched_getaffinity(0), threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        ids = [thread.native_id or 0 for thread in threads]
        with placement.placed(ids, together):
            here, *others = [os.sched_getaffinity(each) for each in (0, *ids)]
            assert len(here) == 1
            assert others[0] == others[1]
            assert (others[0] == here) is together
        assert {frozenset(os.sched_getaffinity(each)) for each in (0, *ids)} == {frozenset(before)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
