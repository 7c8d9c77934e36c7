"""Saved directories: they stand on their own, replace nothing of others, and say what is wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import pypto_actors as pa
from tests.programs.support import SOURCE, TWO, write


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
    (tmp_path / "mine" / "manifest.json").write_text("{}")  # as many a directory has one
    with pytest.raises(pa.ProgramError, match="is no directory of a saved program alone"):
        compiled.save(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").unlink()
    compiled.save(tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("precious")  # beside ours
    with pytest.raises(pa.ProgramError, match="is no directory of a saved program alone"):
        compiled.save(tmp_path / "saved")
    with pytest.raises(pa.ProgramError, match="is no directory of a saved program alone"):
        compiled.save(tmp_path / "mine" / "thesis.txt")
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["notes.txt", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    compiled.save(tmp_path / "empty")
    compiled.save(tmp_path / "new" / "deep")
    for name in ("empty", "new/deep", "saved"):
        assert pa.DistributedCompiledProgram.from_dir(tmp_path / name).digest == compiled.digest


def test_a_failing_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pa.load_program(write(tmp_path / "one", SOURCE)).compile()
    two = pa.load_program(write(tmp_path / "two", SOURCE.replace("SCALE = 2", "SCALE = 3"))).compile()
    one.save(tmp_path / "saved")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("the disk is full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    for directory in ("saved", "other"):
        with pytest.raises(OSError, match="the disk is full"):
            two.save(tmp_path / directory)
    assert pa.DistributedCompiledProgram.from_dir(tmp_path / "saved").digest == one.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "saved", "two"]
    monkeypatch.undo()
    two.save(tmp_path / "saved")
    assert pa.DistributedCompiledProgram.from_dir(tmp_path / "saved").digest == two.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "saved", "two"]


async def test_saving_one_of_several_programs(tmp_path: Path) -> None:
    """By its name; where two have one name, by its variable; and where none leads to it, not at all."""
    same = TWO.replace('"second"', '"doubler"')
    for number, text in enumerate((TWO, same)):
        program = pa.load_program(write(tmp_path / str(number), text), "second_program")
        program.compile().save(tmp_path / "saved")
        loaded = pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
        assert loaded.program.function.__name__ == "second_program"
    hidden = pa.load_program(write(tmp_path / "list", SOURCE))
    vars(sys.modules[hidden.function.__module__]).pop("program")
    with pytest.raises(pa.ProgramError, match="no variable of its file holds it"):
        hidden.compile().save(tmp_path / "hidden")


def test_a_directory_loaded_with_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_SCALE", "2")
    text = SOURCE.replace("SCALE = 2", "import os\nSCALE = int(os.environ['THE_SCALE'])")
    pa.load_program(write(tmp_path, text)).compile().save(tmp_path / "saved")
    monkeypatch.setenv("THE_SCALE", "3")
    with pytest.raises(pa.ProgramLoadError, match=r"another digest.*another value here"):
        pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
    monkeypatch.delenv("THE_SCALE")
    with pytest.raises(pa.ProgramLoadError, match="cannot be run: KeyError") as caught:
        pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
    assert isinstance(caught.value.__cause__, KeyError)


def test_saving_refuses_what_needs_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "SIZE = 3\n", "a_sibling_of_the_model.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    program = pa.load_program(write(tmp_path, "import a_sibling_of_the_model\n" + SOURCE))
    with pytest.raises(pa.ProgramError, match=r"imports 'a_sibling_of_the_model', which is not installed"):
        program.compile().save(tmp_path / "saved")
    missing = "try:\n    import no_such_module_anywhere\nexcept ImportError:\n    pass\nimport importlib.metadata\nimport msgspec.json\n"
    pa.load_program(write(tmp_path, missing + SOURCE)).compile().save(tmp_path / "saved")
    relative = "if False:\n    from .other import x\n"
    with pytest.raises(pa.ProgramError, match=r"imports '\.other', which is not installed"):
        pa.load_program(write(tmp_path, relative + SOURCE)).compile().save(tmp_path / "saved")


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
        (lambda d: _edit(d, config={"device_ids": [0], "platform": "abacus"}), "configuration that cannot be used: unknown platform"),
        (lambda d: _edit(d, config={"device_ids": [0], "speed": 9}), "configuration that cannot be used"),
        (lambda d: _edit(d, config={"device_ids": [0, 1]}), "another digest"),
        (lambda d: _edit(d, files={"../x": "0"}), "lists the files"),
        (lambda d: _edit(d, files={}), "lists the files"),
        (lambda d: _edit(d, files=[]), r"manifest\.json is damaged"),
        (lambda d: _edit(d, version="1"), r"manifest\.json is damaged"),
        (lambda d: (d / "manifest.json").write_bytes((d / "manifest.json").read_bytes()[:-20]), r"manifest\.json is damaged"),
        (lambda d: (d / "manifest.json").write_bytes(b""), r"manifest\.json is damaged"),
        (lambda d: ((d / "manifest.json").unlink(), (d / "manifest.json").mkdir()), r"manifest\.json cannot be read"),
        (lambda d: (d / "program.py").write_bytes((d / "program.py").read_bytes()[:-1]), r"program\.py was changed"),
        (lambda d: (d / "program.py").write_bytes(b""), r"program\.py was changed"),
        (lambda d: _edit(d, name="ghost"), "no program named 'ghost'"),
    ],
)
def test_a_directory_that_is_damaged(tmp_path: Path, damage: object, match: str) -> None:
    pa.load_program(write(tmp_path, SOURCE)).compile().save(tmp_path / "saved")
    assert callable(damage)
    damage(tmp_path / "saved")
    with pytest.raises(pa.ProgramLoadError, match=match) as caught:
        pa.DistributedCompiledProgram.from_dir(tmp_path / "saved")
    assert str(tmp_path / "saved") in str(caught.value) or "ghost" in str(caught.value)  # the file
    assert "; " in str(caught.value)  # the remedy


def _edit(directory: Path, **changes: object) -> None:
    file = directory / "manifest.json"
    manifest = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode({**manifest, **changes}))


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(pa.ProgramLoadError, match="no such directory"):
        pa.DistributedCompiledProgram.from_dir(tmp_path / "nowhere")
