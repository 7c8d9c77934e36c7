"""Programs from files. Loading runs the file's code: load only what you trust."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

from pypto_actors.errors import ProgramLoadError
from pypto_actors.program import Program

_numbers = itertools.count(1)


def load_program(path: str | os.PathLike[str], name: str | None = None) -> Program:
    """Import a Python file and return its program: the one `Program` whose function was defined in that file.

    The file is run: trust its source. Two files of one name do not collide, and a file that is loaded twice gives two programs.

    Args:
        path: the Python file.
        name: which program, by its name or else by the name of its variable; needed where the file defines several.

    Raises:
        ProgramLoadError: there is no such file, it cannot be run, or it defines no program of that name, none at all, or several
            without a `name`; the text names what was found.
    """
    file = Path(path)
    if not file.is_file():
        what = "a directory" if file.is_dir() else "no such file"
        raise ProgramLoadError(f"{file}: {what}; pass the path of a Python file that defines a program")
    module = _run(file)
    own = {
        variable: value
        for variable, value in vars(module).items()
        if isinstance(value, Program) and value.function.__module__ == module.__name__
    }
    programs = list({id(program): program for program in own.values()}.values())
    found = ", ".join(repr(program.name) for program in programs) or "none"
    if name is None:
        if len(programs) == 1:
            return programs[0]
        imported = sum(isinstance(value, Program) for value in vars(module).values()) - len(own)
        others = f" ({imported} imported ones are no candidates)" if imported else ""
        hint = "define one with @program" if not programs else "name one of them: load_program(path, name=…)"
        raise ProgramLoadError(f"{file} defines {len(programs)} programs: {found}{others}; {hint}")
    named = [program for program in programs if program.name == name] or [program for variable, program in own.items() if variable == name]
    if len(named) != 1:
        count = "no program" if not named else f"{len(named)} programs"
        raise ProgramLoadError(f"{file} defines {count} named {name!r}; it defines {found}")
    return named[0]


def _run(file: Path) -> ModuleType:
    """The module of a file, under a name of its own."""
    name = f"pypto_program_{next(_numbers)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ProgramLoadError(f"{file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for pickling and inspection; it stays as long as its programs may be used
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise ProgramLoadError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    return module
