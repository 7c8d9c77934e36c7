"""The README is executed: its code, its error, its commands as far as that goes without installing; and what it names exists."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import inspect
import io
import keyword
import re
import runpy
import tomllib
import traceback

import pytest

import pypto_actors as pa
from pypto_actors.backends import BACKENDS
from tests.docs.documents import README, ROOT, blocks, blocks_in, rows, section

QUICKSTART = ROOT / "examples" / "quickstart.py"


def test_the_code_prints_what_stands_below_it() -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    compared = 0
    for (language, code), (next_language, shown) in zip(blocks(README), [*blocks(README)[1:], ("", "")], strict=True):
        if language != "python":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), namespace)
        if next_language == "text" and f"{code}```\n```text" in README:
            assert out.getvalue() == shown
            compared += 1
        else:
            assert out.getvalue() == ""
    assert compared == 2


def test_the_first_code_is_the_quickstart_and_stands_with_its_output_before_line_50() -> None:
    code = blocks_in(README, "python")[0]
    assert code == QUICKSTART.read_text(encoding="utf-8")
    assert sum(1 for line in code.splitlines() if line.strip()) <= 15
    end_of_output = README.index("```\n", README.index("```text") + 3)
    assert README[:end_of_output].count("\n") + 1 < 50


async def test_the_error_is_real() -> None:
    shown = next(text for text in blocks_in(README, "text") if text.startswith(">>> "))
    call, _, error = shown.removeprefix(">>> await ").partition("\n")
    names = runpy.run_path(str(QUICKSTART), run_name="quickstart")
    async with pa.DistributedWorker(names["append"], backend="inline") as worker:
        with pytest.raises(pa.PyptoActorsError) as caught:
            await eval(call, {**names, "worker": worker})
    assert traceback.format_exception_only(caught.value) == [error]


def test_the_first_two_commands_are_one_line_each_and_name_what_exists() -> None:
    run, test = blocks_in(README, "sh")[:2]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for command in (run, test):
        assert command.count("\n") == 1
        environment, install, *_ = command.split(" && ")
        assert environment == "python3 -m venv .venv"
        (extra,) = re.findall(r"install -q -e '\.\[(\w+)\]'", install)
        assert extra in extras
    (module,) = re.findall(r"\.venv/bin/python -m (\S+) --prompt", run)
    assert importlib.util.find_spec(module) is not None
    assert test.endswith(" .venv/bin/python -m pytest\n")
    assert ".venv/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_each_measured_row_names_its_benchmark() -> None:
    table = rows(section(README, "Measured"))
    assert len(table) >= 12
    for cells in table:
        name = cells[-1].strip("`")
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def test_the_table_of_backends_is_complete() -> None:
    named = {name for cells in rows(section(README, "Backends")) for name in re.findall(r'`"(\w+)"`', cells[0])}
    assert named == set(BACKENDS)


def test_the_table_for_porting_names_what_exists() -> None:
    owners: dict[str, type] = {
        "worker": pa.DistributedWorker,
        "compiled": pa.DistributedCompiledProgram,
        "program": pa.Program,
        "registration": pa.RegistrationHandle,
        "handle": pa.DistributedRunHandle,
        "orch": pa.Orchestrator,
    }
    table = rows(section(README, "From PyPTO's `DistributedWorker`"))
    dotted = {match for cells in table for match in re.findall(rf"\b({'|'.join(owners)})\.(\w+)", " ".join(cells))}
    bare = {name for cells in table for name in re.findall(r"`(\w+)(?:\([^`]*)?`", " ".join(cells))}
    missing = [f"{owner}.{name}" for owner, name in dotted if not hasattr(owners[owner], name)]
    options = {name for kind in (pa.DistributedWorker, pa.DistributedConfig) for name in inspect.signature(kind).parameters}
    known = {*options, *dir(builtins), *dir(pa), *keyword.kwlist}
    missing += [name for name in bare if name not in known and not any(hasattr(owner, name) for owner in owners.values())]
    assert len(dotted) >= 7
    assert len(bare) >= 20
    assert missing == []
