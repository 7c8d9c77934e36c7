"""The identity of a program across processes: a digest of its source, its parameters and its configuration.

What counts is what decides the program's behaviour: the source of its function and of everything of the same project that the function
reaches by global names (kernels, callbacks, helpers, classes), which name stands for which of them, and the values of the constants that
they read. Of a container that can be changed, such as a list that callbacks append to, the statements count that make it, and not what
is in it by now. What is installed counts by its name. The places and names of the files do not count.
"""

from __future__ import annotations

import builtins
import collections
import hashlib
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pypto_actors.config import DistributedConfig
from pypto_actors.constants import Untold, class_members, installed_name, parts_of, plain_value
from pypto_actors.errors import ProgramError
from pypto_actors.parameters import ArraySpec, hints_of
from pypto_actors.program import Kernel, Program, kernel
from pypto_actors.sources import (
    SourceFault,
    SourceFile,
    callbacks_inside,
    is_cached,
    is_installed,
    makers_inside,
    reads_of,
    source_path,
    writes_of,
)

HIDDEN = {"globals", "eval", "exec", "__import__", "vars", "__builtins__"}  # what they reach cannot be seen
OF_PLACE = {"__file__", "__name__", "__spec__", "__package__", "__loader__", "__path__", "__cached__"}
CHANGEABLE = (list, dict, set, bytearray, collections.deque, collections.defaultdict, collections.Counter, collections.OrderedDict)
MOVE = "move it to the top level of its module"

Told = tuple[Any, ...]  # of tuples and strings only, so that its `ascii` is the same in every process


def digest_of(program: Program, config: DistributedConfig) -> str:
    """A hex SHA-256.

    Raises:
        ProgramError: the program is not one of an importable file with module-level kernels and callbacks; the text names what
            stands in the way.
    """
    walk = _Walk(program)
    settings = (tuple(map(str, config.device_ids)), str(config.num_sub_workers), config.platform, config.runtime, str(config.memory_bytes))
    return hashlib.sha256(ascii(("program 1", walk.root, tuple(walk.sections), settings)).encode()).hexdigest()


def files_of(program: Program) -> dict[Path, SourceFile]:
    """The source files of the project that the program reaches; faults as of `digest_of`."""
    return _Walk(program).files


class _Walk:
    """Goes from definition to definition by the global names that each reads. Each is a section; others refer to it by its number."""

    def __init__(self, program: Program) -> None:
        self.sections: list[Told] = []
        self.files: dict[Path, SourceFile] = {}
        self._program = program
        self._numbers: dict[int, Told] = {}
        self._making: set[tuple[str, str]] = set()  # containers, by module and name
        self._alive: list[Any] = []  # so that no identity is used twice
        self._home = str(program.function.__module__).partition(".")[0]
        try:
            self.root = self._value(f"program {program.name!r}", program)
        except RecursionError:
            raise self._refuse("a constant", "contains itself, or is nested too deeply", "make it a plain constant") from None

    def _refuse(self, what: str, why: str, mend: str) -> ProgramError:
        return ProgramError(f"program {self._program.name!r} has no digest: {what} {why}; {mend}")

    # ------------------------------------------------------------------------------------------ values

    def _value(self, what: str, value: Any) -> Told:
        if isinstance(value, Kernel):
            return ("kernel", value.name, repr(value.params), self._value(f"kernel {value.name!r}", value.function))
        if isinstance(value, Program):
            declared = (value.name, repr(value.stage), repr(value.callbacks), repr(value.params))
            return ("program", *declared, self._value(f"program {value.name!r}", value.function))
        if is_cached(value):
            return ("cached", self._value(what, value.__wrapped__))
        if isinstance(value, (FunctionType, type)) and not self._foreign(value):
            return self._section(what, value)
        name = installed_name(value)
        if name is not None:
            return ("installed", name)
        plain = plain_value(value)
        if plain is not None:
            return plain
        try:
            kind, parts = parts_of(value)
        except Untold as fault:
            raise self._refuse(what, fault.why, fault.mend) from None
        told = tuple(self._value(what, part) for part in parts)
        return (kind, *sorted(told)) if kind in ("set", "frozenset") else (kind, *told)

    def _foreign(self, value: FunctionType | type) -> bool:
        """Is it of an installed package, other than the one that the program is of?"""
        module = str(value.__module__)
        called = isinstance(value, FunctionType) and value is self._program.function
        at_home = module.partition(".")[0] == self._home and self._home != __name__.partition(".")[0]
        return is_installed(module) and installed_name(value) is not None and not called and not at_home

    # ------------------------------------------------------------------------------------------ definitions

    def _section(self, what: str, value: FunctionType | type) -> Told:
        known = self._numbers.get(id(value))
        if known is None:
            known = self._numbers[id(value)] = ("section", str(len(self.sections)))
            self._alive.append(value)
            self.sections.append(())
            try:
                told = self._function(what, value) if isinstance(value, FunctionType) else self._class(what, value)
            except SourceFault as fault:
                raise self._refuse(what, fault.why, fault.mend) from None
            self.sections[int(known[1])] = told
        return known

    def _file(self, value: FunctionType | type) -> SourceFile:
        return self._source(source_path(value))

    def _source(self, path: Path) -> SourceFile:
        if path not in self.files:
            self.files[path] = SourceFile(path)
        return self.files[path]

    def _function(self, what: str, function: FunctionType) -> Told:
        free = [name for name in function.__code__.co_freevars if name != "__class__"]
        if free:
            raise self._refuse(
                what, f"is a closure over {', '.join(free)}", "pass what it needs as arguments, or make it a constant of the module"
            )
        self._check_place(what, function)
        text = self._file(function).function(function)
        for name in text.imports:
            if not is_installed(name):
                raise self._refuse(what, f"imports {name!r} while it runs", "move the import to the top of the file")
        for callback in callbacks_inside(text.node):
            raise self._refuse(what, f"has a callback inside it, {callback}", "make it a function of the module")
        for module, name in makers_inside(text.node):
            owner = function.__globals__.get(module) if module else None
            if (getattr(owner, name, None) if module else function.__globals__.get(name)) is kernel:
                raise self._refuse(what, "makes a kernel inside it", "make it a kernel of the module")
        for name in writes_of(text.code):
            raise self._refuse(what, f"assigns the global {name!r}", "return the value, or write it into an array")
        defaults = [self._value(f"a default of {what}", value) for value in function.__defaults__ or ()]
        defaults += [self._value(f"the default {key!r} of {what}", value) for key, value in sorted((function.__kwdefaults__ or {}).items())]
        reads = [
            (".".join(path), self._made(path, value, function) or self._value(_described(".".join(path), value, what), value))
            for path, value in sorted(self._read(what, function, reads_of(text.code)).items())
        ]
        return ("function", text.text, _modes(function), tuple(defaults), tuple(reads))

    def _made(self, path: tuple[str, ...], value: Any, function: FunctionType) -> Told | None:
        """How a container that can be changed is made, in the function's own file or where `path` leads; `None`: that cannot be told."""
        owner: Any = sys.modules.get(function.__module__)
        for name in path[:-1]:
            owner = getattr(owner, name, None)
        return self._making_of(path[-1], owner) if type(value) in CHANGEABLE and isinstance(owner, ModuleType) else None

    def _making_of(self, name: str, owner: ModuleType) -> Told | None:
        key = (owner.__name__, name)
        if owner.__file__ is None or key in self._making:
            return ("being made", name) if key in self._making else None
        self._making.add(key)
        try:
            made = self._source(Path(owner.__file__).resolve()).makes(name, vars(owner))
            if made is None:
                return None
            parts = [(part, getattr(owner, part)) for part in made.reads if hasattr(owner, part)]
            told = [
                (part, (self._making_of(part, owner) if type(value) in CHANGEABLE else None) or self._value(f"global {part!r}", value))
                for part, value in parts
            ]
            return ("made", made.texts, tuple(told))
        except (ProgramError, SourceFault):
            return None
        finally:
            self._making.discard(key)

    def _class(self, what: str, kind: type) -> Told:
        self._check_place(what, kind)
        texts = self._file(kind).classes(kind.__qualname__)
        if not texts:
            raise SourceFault("is not in its file now", "the file was changed after it was imported: import it again")
        bases = [self._value(f"a base of {what}", base) for base in (*kind.__bases__, type(kind))]
        members = [(name, self._value(f"{name!r} of {what}", member)) for name, member in class_members(kind)]
        return ("class", texts, tuple(bases), tuple(members))

    def _check_place(self, what: str, value: FunctionType | type) -> None:
        if "<locals>" in value.__qualname__:
            raise self._refuse(what, f"is {value.__qualname__}, defined inside another function", MOVE)
        if "<lambda>" in value.__qualname__:
            raise self._refuse(what, "is a lambda", "make it a function of its module")

    def _read(self, what: str, function: FunctionType, reads: dict[str, set[tuple[str, ...]]]) -> dict[tuple[str, ...], Any]:
        """What the names stand for that the function reads, by the names: those of modules of the project go on to their attributes."""
        found: dict[tuple[str, ...], Any] = {}
        for name, chains in reads.items():
            if name not in function.__globals__:
                if name in HIDDEN and hasattr(builtins, name):
                    raise self._refuse(what, f"uses {name}(), whose reach cannot be told", "name the globals that it reads")
                continue
            if name in OF_PLACE:
                raise self._refuse(what, f"reads {name}, which differs from place to place", "pass it as an argument")
            for chain in chains:
                value, used = function.__globals__[name], 0
                while isinstance(value, ModuleType) and not is_installed(value.__name__):
                    if used == len(chain):
                        module = ".".join((name, *chain))
                        raise self._refuse(what, f"uses the module {module!r} itself", f"read its names one by one: {module}.x")
                    value, used = getattr(value, chain[used], None), used + 1
                found[name, *chain[:used]] = value
        return found


def _described(name: str, value: Any, reader: str) -> str:
    if isinstance(value, FunctionType):
        return f"function {name!r}"
    return f"class {name!r}" if isinstance(value, type) else f"global {name!r} of {reader}"


def _modes(function: FunctionType) -> Told:
    """How a callback's annotations say that its arguments are used: they may be names whose meaning stands elsewhere."""
    try:
        hints = hints_of(function, None)
    except Exception:  # annotations of something else than this package
        return ()
    found = []
    for name, hint in hints.items():
        found += [(name, repr(extra)) for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, ArraySpec)]
    return tuple(found)
