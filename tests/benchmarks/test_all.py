"""`python -m benchmarks`: which it runs, with what, and what becomes of their answers. Nothing is measured here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from benchmarks import harness
from benchmarks.__main__ import NAMES, TRANSFORMERS

PYTHON = ("--transformers-python", sys.executable)


class Runs:
    """Stands in for the processes: remembers what each was told, and answers at once."""

    def __init__(self, failing: str = "") -> None:
        self.arguments: dict[str, list[str]] = {}
        self._failing = failing

    def __call__(self, name: str, arguments: list[str], file: Path) -> bool:
        self.arguments[name] = arguments
        harness.save(file, harness.document(name, "why?", [harness.Answer(f"of {name}", "a rival", "×", None, None, [2.0], "by hand")]))
        return name != self._failing


def run_all(monkeypatch: pytest.MonkeyPatch, *arguments: str, failing: str = "") -> tuple[int, Runs]:
    runs = Runs(failing)
    monkeypatch.setattr(everything, "run", runs)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return everything.main(), runs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (PYTHON, True),
        ((), False),
        ((*PYTHON, "--only", "plain_run"), False),
        ((*PYTHON, "--only", "plain_run", TRANSFORMERS), True),
        (("--only", TRANSFORMERS), False),
    ],
)
def test_the_comparison_runs_with_a_python_for_it_and_where_it_is_not_left_out(
    arguments: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runs = run_all(monkeypatch, *arguments)
    assert (TRANSFORMERS in runs.arguments) is expected


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_each_gets_what_concerns_it(quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    traces = tmp_path / "new" / "traces"
    _, runs = run_all(monkeypatch, *quick, *PYTHON, "--only", "plain_run", TRANSFORMERS, "--traces", str(traces))
    assert runs.arguments == {
        "plain_run": [*quick, "--trace", str(traces / "plain_run.json")],
        TRANSFORMERS: [*quick, "--trace", str(traces / f"{TRANSFORMERS}.json"), *PYTHON],
    }
    assert traces.is_dir()


def test_the_answers_of_the_comparison_are_in_the_table_and_in_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "all.json"
    status, _ = run_all(monkeypatch, *PYTHON, "--only", "plain_run", TRANSFORMERS, "--json", str(file))
    assert status == 0
    names = ["plain_run", TRANSFORMERS]
    assert [data["benchmark"] for data in json.loads(file.read_text(encoding="utf-8"))] == names
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [f"of {name}" for name in names]


@pytest.mark.parametrize(("only", "shown"), [((), True), (("--only", TRANSFORMERS), True), (("--only", "plain_run"), False)])
def test_without_a_python_for_it_the_table_says_that_it_was_not_measured(
    only: tuple[str, ...], shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run_all(monkeypatch, *only)
    assert status == 0
    assert ("needs a Python with transformers" in capsys.readouterr().out) is shown


def test_one_that_fails_is_in_the_table_and_in_the_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, runs = run_all(monkeypatch, "--only", *NAMES[:3], failing=NAMES[1])
    assert status == 1
    assert list(runs.arguments) == list(NAMES[:3])
    assert f"of {NAMES[1]}" not in capsys.readouterr().out


def test_one_named_twice_runs_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, runs = run_all(monkeypatch, "--only", "plain_run", "plain_run", "--traces", str(tmp_path))
    assert (status, list(runs.arguments)) == (0, ["plain_run"])
