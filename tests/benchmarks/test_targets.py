"""What a command line names is looked at before anything is measured: one line, status 2, and nothing has run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from benchmarks import harness, qwen3_vs_transformers

Command = Callable[..., str]


class Measured(Exception):
    """What must not be reached was."""


def never(*_: object) -> Sequence[harness.Answer]:
    raise Measured


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one of the command lines, which must end without measuring; gives the one line that it says."""
    monkeypatch.setattr(everything, "run", never)
    monkeypatch.setattr(qwen3_vs_transformers, "measure", never)

    def run(main: Callable[[], object], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["a_benchmark.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert error.endswith("\n")
        return error

    return run


def one() -> None:
    harness.main("Why?", never)


def all_of_them() -> None:
    everything.main()


def transformers() -> None:
    qwen3_vs_transformers.main()


WITH_PYTHON = ("--transformers-python", sys.executable)
COMMANDS = [
    pytest.param(one, (), id="one"),
    pytest.param(transformers, WITH_PYTHON, id="transformers"),
    pytest.param(all_of_them, (), id="all"),
]


@pytest.mark.parametrize(("main", "more"), COMMANDS)
def test_a_file_for_the_answers_that_cannot_be_written(
    main: Callable[[], None], more: tuple[str, ...], refused: Command, tmp_path: Path
) -> None:
    said = refused(main, *more, "--json", str(tmp_path / "nowhere" / "b.json"))
    assert "the answers cannot be written to" in said
    assert "there is no directory" in said
    assert "name a file in a directory that you may write to" in said


@pytest.mark.parametrize(("main", "more"), COMMANDS[:2])
@pytest.mark.parametrize(("option", "what"), [("--plot", "plot"), ("--trace", "trace")])
def test_a_plot_or_a_trace_that_cannot_be_written(
    main: Callable[[], None], more: tuple[str, ...], option: str, what: str, refused: Command, tmp_path: Path
) -> None:
    assert f"the {what} cannot be written to" in refused(main, *more, option, str(tmp_path / "nowhere" / "b.png"))


@pytest.mark.parametrize(("main", "more"), COMMANDS[:2])
def test_a_picture_of_a_format_that_there_is_not(main: Callable[[], None], more: tuple[str, ...], refused: Command, tmp_path: Path) -> None:
    said = refused(main, *more, "--plot", str(tmp_path / "b.xyz"))
    assert "there is no picture format 'xyz'; name a file that ends in .png" in said


@pytest.mark.parametrize(("main", "more"), COMMANDS[:2])
def test_a_plot_without_matplotlib(
    main: Callable[[], None], more: tuple[str, ...], refused: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'pypto_actors[bench]'" in refused(main, *more, "--plot", str(tmp_path / "b.png"))


def test_one_file_for_two_outputs(refused: Command, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("b.json")
    said = refused(one, "--json", str(tmp_path / "b.json"), "--trace", str(tmp_path / "link.json"))
    assert "are the same file; name another one for each output" in said


def test_the_answers_of_all_where_one_of_the_traces_goes(refused: Command, tmp_path: Path) -> None:
    said = refused(all_of_them, "--only", "plain_run", "--traces", str(tmp_path), "--json", str(tmp_path / "plain_run.json"))
    assert "are the same file" in said


def test_traces_where_a_file_is(refused: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(all_of_them, "--traces", str(tmp_path / "file"))
    assert "the traces cannot be written to" in said
    assert "name a directory that you may write to" in said


@pytest.mark.parametrize("main", [transformers, all_of_them])
def test_a_python_that_is_not_there(main: Callable[[], None], refused: Command) -> None:
    assert "--transformers-python nowhere/python: there is no such program" in refused(main, "--transformers-python", "nowhere/python")


def test_with_targets_that_can_be_written_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ("--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"), "--trace", str(tmp_path / "t.json"))
    monkeypatch.setattr(sys, "argv", ["a_benchmark.py", *targets])
    with pytest.raises(Measured):
        one()
    assert list(tmp_path.iterdir()) == []
