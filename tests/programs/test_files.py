"""Programs from files: identity across files and processes, which program a file gives, and every way in which a file can be wrong."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pypto_actors as pa
from tests.programs.support import SOURCE, TWO, write


def digest(directory: Path, source: str, config: pa.DistributedConfig | None = None) -> str:
    result: str = pa.load_program(write(directory, source)).compile(config).digest
    return result


async def test_two_files_of_one_name_do_not_collide(tmp_path: Path) -> None:
    one = pa.load_program(write(tmp_path / "one", SOURCE))
    two = pa.load_program(write(tmp_path / "two", SOURCE.replace("SCALE = 2", "SCALE = 3")))
    async with pa.DistributedWorker([one, two], backend="inline") as worker:
        for program, want in ((one, 10), (two, 15)):
            x = np.full(3, 5)
            await worker.run(program, x)
            assert x.tolist() == [want] * 3


def test_the_digest_tells_what_decides_the_behaviour(tmp_path: Path) -> None:
    base = digest(tmp_path / "base", SOURCE)
    assert base == digest(tmp_path / "elsewhere", SOURCE + "\n# a remark at the end\nUNUSED = 1\n")
    for number, (old, new) in enumerate(
        [
            ("SCALE = 2", "SCALE = 3"),  # a constant that a helper reads
            ("x * SCALE", "SCALE * x"),  # a helper
            ("x[...] = twice(x)", "x += twice(x)"),  # a kernel
            ("orch.submit(double, x)", "orch.submit(double, x, device=0)"),  # the program
            ('("n",)', '("m",)'),  # a parameter
            ('"decode"', '"prefill"'),
            ('"doubler"', '"other"'),
        ]
    ):
        assert base != digest(tmp_path / str(number), SOURCE.replace(old, new)), new
    assert base != digest(tmp_path / "config", SOURCE, pa.DistributedConfig(device_ids=[0, 1]))


def test_the_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    file = write(tmp_path, SOURCE)
    code = f"import pypto_actors as pa; print(pa.load_program({str(file)!r}).compile().digest)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == pa.load_program(file).compile().digest


def test_what_has_no_digest_says_why(tmp_path: Path) -> None:
    factor = 3

    @pa.kernel
    def closed(x: pa.InOutArray) -> None:
        x *= factor

    @pa.program
    def local(orch: pa.Orchestrator, x: pa.InOutArray) -> None:
        orch.submit(closed, x)

    with pytest.raises(pa.ProgramError, match="closure over closed"):
        _ = local.compile().digest
    inner = SOURCE.replace("@pa.program(", "def make():\n    return lambda: 1\n\nodd = make()\n\n@pa.program(").replace(
        "twice(x)\n", "x * odd()\n"
    )
    with pytest.raises(pa.ProgramError, match=r"'odd'.*inside another function"):
        digest(tmp_path, inner)
    with pytest.raises(pa.ProgramError, match="global 'SCALE' of function 'twice' is a object, whose value cannot be told"):
        digest(tmp_path, SOURCE.replace("SCALE = 2", "class O:\n    pass\nSCALE = object()"))


def test_loading_again_sees_what_the_file_says_now(tmp_path: Path) -> None:
    """Neither time stamps nor left-over bytecode decide, and none is written."""
    file = write(tmp_path, SOURCE)
    one = pa.load_program(file)
    file.write_text(SOURCE.replace("SCALE = 2", "SCALE = 3"))
    two = pa.load_program(file)
    assert one is not two
    assert (one.function.__globals__["SCALE"], two.function.__globals__["SCALE"]) == (2, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_a_loaded_program_can_be_inspected_and_pickled(tmp_path: Path) -> None:
    program = pa.load_program(write(tmp_path, SOURCE, "my-model.v2.py"))
    function = program.function.__globals__["twice"]
    assert pickle.loads(pickle.dumps(function)) is function
    assert inspect.getsource(function).startswith("def twice")
    assert vars(sys.modules[function.__module__])["program"] is program


def test_which_program_a_file_gives(tmp_path: Path) -> None:
    file = write(tmp_path, TWO)
    with pytest.raises(pa.ProgramLoadError, match="defines 2 programs: 'doubler', 'second'; name one"):
        pa.load_program(file)
    assert pa.load_program(file, "second").name == "second"
    assert pa.load_program(file, "second_program").name == "second"
    crossed = TWO.replace("def second_program", "def doubler")  # a name goes before a variable
    assert pa.load_program(write(tmp_path, crossed, "crossed.py"), "doubler").function.__name__ == "program"
    same = write(tmp_path, TWO.replace('"second"', '"doubler"'), "same.py")
    with pytest.raises(pa.ProgramLoadError, match=r"defines 2 programs named 'doubler'.*name of a variable"):
        pa.load_program(same, "doubler")
    assert pa.load_program(same, "second_program").function.__name__ == "second_program"
    alias = write(tmp_path, SOURCE + "again = program\n", "alias.py")
    assert pa.load_program(alias) is not pa.load_program(alias, "again")
    with pytest.raises(pa.ProgramLoadError, match="no program named 'third'; it defines 'doubler', 'second'"):
        pa.load_program(file, "third")


def test_imported_programs_are_no_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SOURCE, "a_module_with_a_program.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    importing = "from a_module_with_a_program import program as other\n"
    with pytest.raises(pa.ProgramLoadError, match=r"defines 0 programs: none \(1 imported, no candidate\)"):
        pa.load_program(write(tmp_path, importing))
    assert pa.load_program(write(tmp_path, importing + SOURCE.replace("doubler", "mine"))).name == "mine"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("def", "cannot be run: SyntaxError"),
        ("import no_such_module_anywhere", "cannot be run: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be run: SystemExit"),
        ("\\0", "cannot be run: SyntaxError"),
        ("1 / 0", "cannot be run: ZeroDivisionError"),
        ("x = 1", "defines 0 programs: none; define one"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, source: str, match: str) -> None:
    before = set(sys.modules)
    with pytest.raises(pa.ProgramLoadError, match=match) as caught:
        pa.load_program(write(tmp_path, source))
    assert (caught.value.__cause__ is not None) == ("cannot" in match)
    assert str(tmp_path / "model.py") in str(caught.value)
    assert {name for name in set(sys.modules) - before if name.startswith("pypto_program") and "cannot" in match} == set()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(pa.ProgramLoadError, match=r"is a directory.*from_dir"):
        pa.load_program(tmp_path)
    with pytest.raises(pa.ProgramLoadError, match="does not exist"):
        pa.load_program(tmp_path / "nothing.py")
