"""Programs from files. Loading runs the file's code: load only what you trust."""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import os
import re
import sys
from pathlib import Path
from types import CodeType, ModuleType

from pypto_actors.errors import ProgramLoadError, text_of
from pypto_actors.program import Program

_numbers = itertools.count(1)


def load_program(path: str | os.PathLike[str], name: str | None = None) -> Program:
    """Import a Python file and return its program: the one `Program` whose function was defined in that file.

    The file is run: trust its source. Two files of one name do not collide, and a file that is loaded twice gives two programs. The file
    is a module of its own: it imports what is installed or on `sys.path`, not what merely lies beside it.

    Args:
        path: the Python file.
        name: which program, by its name or else by the name of its variable; needed where the file defines several.

    Raises:
        ProgramLoadError: there is no such file, it cannot be run, or it defines no program of that name, none at all, or several
            without a `name`; the text names what was found.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a directory" if file.is_dir() else "does not exist"
        hint = "; DistributedCompiledProgram.from_dir reads what `save` wrote" if file.is_dir() else ""
        raise ProgramLoadError(f"{file} {what}; pass the path of a Python file that defines a program{hint}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ProgramLoadError(f"{file} cannot be read: {error.strerror or error}") from error
    return load_content(file, content, name)


def load_content(file: Path, content: bytes, name: str | None) -> Program:
    """The program of a file whose bytes were read already: those bytes are what is run."""
    return entry_of(_run(file, content), str(file), name)


def entry_of(module: ModuleType, what: str, name: str | None) -> Program:
    """The program that a module defines, of several the one called `name`; a `ProgramLoadError` names what `what` defines."""
    every = {variable: value for variable, value in vars(module).items() if isinstance(value, Program)}
    own = {variable: value for variable, value in every.items() if value.function.__module__ == module.__name__}
    programs = list({id(program): program for program in own.values()}.values())
    found = ", ".join(repr(program.name) for program in programs) or "none"
    if name is None:
        if len(programs) == 1:
            return programs[0]
        imported = len({id(program) for program in every.values()}) - len(programs)
        others = f" ({imported} imported, no candidate)" if imported else ""
        hint = "define one with @program" if not programs else "name one of them: load_program(path, name=…)"
        raise ProgramLoadError(f"{what} defines {len(programs)} programs: {found}{others}; {hint}")
    named = [program for program in programs if program.name == name]
    if len(named) != 1:
        named = [program for variable, program in own.items() if variable == name and program in (named or programs)]
    if len(named) != 1:
        several = sum(program.name == name for program in programs)
        count = f"{several} programs" if several else "no program"
        hint = "; pass the name of a variable that no other program has as its name" if several else ""
        raise ProgramLoadError(f"{what} defines {count} named {name!r}; it defines {found}{hint}")
    return named[0]


class _Loader(importlib.abc.InspectLoader):
    """Runs given bytes as the module of a file. It reads and writes no `__pycache__`, which may be of other bytes."""

    def __init__(self, file: Path, content: bytes) -> None:
        self._file = file
        self._content = content

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._content)

    def get_filename(self, fullname: str) -> str:
        return str(self._file)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._content, str(self._file))


def _run(file: Path, content: bytes) -> ModuleType:
    """The module of a file, under a name of its own."""
    file = file.resolve()
    name = f"pypto_program_{next(_numbers)}_" + re.sub(r"\W", "_", file.stem)
    loader = _Loader(file, content)
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for pickling and inspection; it stays as long as its programs may be used
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ProgramLoadError(f"{file} cannot be run: {text_of(error)}; mend the file") from error
    return module
