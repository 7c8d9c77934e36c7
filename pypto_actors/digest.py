"""The identity of a program across processes: a digest of its source, its parameters and its configuration.

What counts is what decides the program's behaviour: the source of its function and of everything of the same project that the function
reaches by global names (kernels, callbacks, helpers), and the values of the constants that they read. The place of the file does not count.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from pypto_actors.config import DistributedConfig
from pypto_actors.errors import ProgramError
from pypto_actors.program import Kernel, Program

SIMPLE = (int, float, complex, bool, str, bytes, type(None), np.dtype, np.generic)


def digest_of(program: Program, config: DistributedConfig) -> str:
    """A hex SHA-256.

    Raises:
        ProgramError: the program is not one of an importable file with module-level kernels and callbacks; the text names what
            stands in the way.
    """
    lines = [
        f"program {program.name} stage={program.stage!r} callbacks={program.callbacks!r}",
        f"parameters {program.params!r}",
        f"devices {[int(one) for one in config.device_ids]} {config.num_sub_workers}",
        f"platform {config.platform} {config.runtime} {config.memory_bytes}",
        *_Walk(program).lines(),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def files_of(program: Program) -> set[Path]:
    """The source files of the project that the program reaches."""
    walk = _Walk(program)
    walk.lines()
    return walk.files


class _Walk:
    """Goes from function to function by the global names that each reads."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._seen: set[int] = set()
        self.files: set[Path] = set()

    def lines(self) -> list[str]:
        return list(self._function(self._program.function, f"program {self._program.name!r}"))

    def _refuse(self, what: str, why: str, mend: str) -> ProgramError:
        return ProgramError(f"program {self._program.name!r} has no digest: {what} {why}; {mend}")

    def _function(self, function: Any, what: str) -> Iterator[str]:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        if not isinstance(function, FunctionType):
            raise self._refuse(what, f"is a {type(function).__name__}, not a function", "make it a function of the module")
        if function.__closure__:
            names = ", ".join(function.__code__.co_freevars)
            raise self._refuse(what, f"is a closure over {names}", "pass what it needs as arguments, or make it a constant of the module")
        if "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__:
            raise self._refuse(
                what, f"is {function.__qualname__}, defined inside another function", "move it to the top level of its module"
            )
        yield f"source of {function.__qualname__}\n{self._source(function, what)}"
        yield f"defaults {function.__defaults__!r} {function.__kwdefaults__!r}"
        for name, attributes in sorted(_globals_read(function.__code__).items()):
            if name in function.__globals__:
                yield from self._value(name, function.__globals__[name], attributes)

    def _source(self, function: FunctionType, what: str) -> str:
        try:
            file = inspect.getsourcefile(function)
            source = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError) as error:
            raise self._refuse(what, f"has no source ({error})", "define it in a file") from None
        if file is None:
            raise self._refuse(what, "stands in no file", "define it in a file")
        self.files.add(Path(file).resolve())
        return source

    def _value(self, name: str, value: Any, attributes: set[str]) -> Iterator[str]:
        what = f"global {name!r}"
        if isinstance(value, Kernel):
            yield from self._function(value.function, f"kernel {value.name!r}")
        elif isinstance(value, Program):
            yield from self._function(value.function, f"program {value.name!r}")
        elif isinstance(value, ModuleType):
            yield f"module {name} {value.__name__}"
            if not is_installed(value.__name__):
                for attribute in sorted(attributes & set(vars(value))):
                    yield from self._value(f"{name}.{attribute}", getattr(value, attribute), attributes)
        elif hasattr(value, "__qualname__") and is_installed(getattr(value, "__module__", None)):
            yield f"installed {name} {value.__module__}.{value.__qualname__}"
        elif isinstance(value, FunctionType):
            yield from self._function(value, f"function {name!r}")
        elif isinstance(value, type):
            yield f"class {name}\n{inspect.getsource(value)}"
        else:
            yield f"constant {name} {self._constant(what, value)}"

    def _constant(self, what: str, value: Any) -> str:
        if isinstance(value, SIMPLE):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, (tuple, list, set, frozenset)):
            items = [self._constant(what, item) for item in value]
            return f"{type(value).__name__} {sorted(items) if isinstance(value, (set, frozenset)) else items}"
        if isinstance(value, dict):
            return f"dict {[(self._constant(what, key), self._constant(what, item)) for key, item in value.items()]}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"array {value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        if is_installed(type(value).__module__) and " at 0x" not in repr(value):
            return f"{type(value).__module__}.{type(value).__qualname__} {value!r}"
        raise self._refuse(what, f"is a {type(value).__name__}, whose value cannot be told", "make it a plain constant")


def _globals_read(code: CodeType) -> dict[str, set[str]]:
    """Every global name that the code may read, each with all names that might be attributes of it."""
    names: set[str] = set()
    waiting = [code]
    while waiting:
        one = waiting.pop()
        names.update(one.co_names)
        waiting += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
    return dict.fromkeys(names, names)


_LIBRARIES = tuple({Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_installed(module: str | None) -> bool:
    """Is this a module of Python, of an installed package, or of this one? Such are named, not copied."""
    if module is None:
        return False
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return top != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(library in Path(file).resolve().parents for library in _LIBRARIES)
