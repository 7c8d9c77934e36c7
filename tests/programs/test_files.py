"""Programs in files: digests, saved directories, loading; and every way in which a file can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import pypto_actors as pa

SOURCE = """
from typing import Annotated
import numpy as np
import pypto_actors as pa

SCALE = 2

def twice(x):
    return x * SCALE

@pa.kernel
def double(x: pa.InOutArray) -> None:
    x[...] = twice(x)

@pa.program(name="doubler", stage="decode")
def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(("n",), np.int64)]) -> None:
    orch.submit(double, x)
"""


def write(directory: Path, source: str, name: str = "model.py") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / name
    file.write_text(source)
    return file


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


async def test_a_saved_directory_stands_on_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, SOURCE)
    config = pa.DistributedConfig(device_ids=[0, 1], memory_bytes=1 << 20)
    compiled = pa.load_program(file).compile(config)
    compiled.save(tmp_path / "saved")
    file.unlink()
    compiled = pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
    assert (compiled.name, compiled.stage, compiled.config) == ("doubler", "decode", config)
    x = np.arange(3)
    result = await compiled(x)
    assert x.tolist() == [0, 2, 4]
    assert result.program is compiled
    compiled.save(tmp_path / "saved")  # over an earlier one
    again = pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
    assert again.digest == compiled.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_saving_refuses_what_it_must_not_replace(tmp_path: Path) -> None:
    compiled = pa.load_program(write(tmp_path, SOURCE)).compile()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(pa.ProgramError, match="is no directory of a saved program alone"):
        compiled.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_saving_refuses_what_needs_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "SIZE = 3\n", "a_sibling_of_the_model.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    program = pa.load_program(write(tmp_path, "import a_sibling_of_the_model\n" + SOURCE))
    with pytest.raises(pa.ProgramError, match=r"imports 'a_sibling_of_the_model', which is not installed"):
        program.compile().save(tmp_path / "saved")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda d: (d / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda d: (d / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json is damaged"),
        (lambda d: (d / "program.py").unlink(), r"program\.py cannot be read"),
        (lambda d: (d / "program.py").write_text("x = 1"), r"program\.py was changed"),
        (lambda d: _edit(d, version=99), r"has the format 'pypto_actors\.program' 99"),
        (lambda d: _edit(d, format="other"), r"has the format 'other'"),
        (lambda d: _edit(d, digest="0" * 64), "another digest"),
        (lambda d: _edit(d, config={"device_ids": []}), "configuration that cannot be used"),
        (lambda d: _edit(d, files={"../x": "0"}), "lists the files"),
        (lambda d: _edit(d, name="ghost"), "no program named 'ghost'"),
    ],
)
def test_a_directory_that_is_damaged(tmp_path: Path, damage: object, match: str) -> None:
    pa.load_program(write(tmp_path, SOURCE)).compile().save(tmp_path / "saved")
    assert callable(damage)
    damage(tmp_path / "saved")
    with pytest.raises(pa.ProgramLoadError, match=match):
        pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")


def _edit(directory: Path, **changes: object) -> None:
    file = directory / "manifest.json"
    manifest = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode({**manifest, **changes}))


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(pa.ProgramLoadError, match="no such directory"):
        pa.DistributedCompiledProgram.from_dir(tmp_path / "nowhere")


TWO = SOURCE + SOURCE[SOURCE.index("@pa.program") :].replace("doubler", "second").replace("def program", "def second_program")


def test_which_program_a_file_gives(tmp_path: Path) -> None:
    file = write(tmp_path, TWO)
    with pytest.raises(pa.ProgramLoadError, match="defines 2 programs: 'doubler', 'second'; name one"):
        pa.load_program(file)
    assert pa.load_program(file, "second").name == "second"
    assert pa.load_program(file, "second_program").name == "second"
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
        ("1 / 0", "cannot be run: ZeroDivisionError"),
        ("x = 1", "defines 0 programs: none; define one"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, source: str, match: str) -> None:
    before = set(sys.modules)
    with pytest.raises(pa.ProgramLoadError, match=match):
        pa.load_program(write(tmp_path, source))
    assert {name for name in set(sys.modules) - before if name.startswith("pypto_program") and "cannot" in match} == set()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(pa.ProgramLoadError, match=r"is a directory.*from_dir"):
        pa.load_program(tmp_path)
    with pytest.raises(pa.ProgramLoadError, match="does not exist"):
        pa.load_program(tmp_path / "nothing.py")
