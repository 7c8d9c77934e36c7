"""The script that the process of a device runs: it ends with its parent, and loads no more of the package than it needs.

Arguments: file descriptors of the pipe that messages come by, of the one that answers go by, and of the socket for memory; process id of
the parent, rank, name of the package, its directory, and the parent's `sys.path`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PR_SET_PDEATHSIG = 1
LEAN = {"backends", "backends.process_child", "backends.wire", "collectives", "errors", "messages", "plan", "values"}


class LeanPackage(ModuleType):
    """A package without what its `__init__` imports; that is run when a name of it is asked for."""

    def __init__(self, name: str, directory: str) -> None:
        super().__init__(name)
        self.__path__ = [directory]
        self.__file__ = os.path.join(directory, "__init__.py")
        self._filled = False

    def __getattr__(self, name: str) -> Any:
        if self._filled or (name.startswith("__") and name != "__all__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.fill()
        return getattr(self, name)

    def fill(self) -> None:
        """Make it the whole package."""
        if not self._filled:
            self._filled = True
            with open(str(self.__file__), "rb") as source:
                exec(compile(source.read(), str(self.__file__), "exec", dont_inherit=True), self.__dict__)


class Filler:
    """Fills the package before any module is imported that is not lean, since such may import all others (a finder of `sys.meta_path`)."""

    def __init__(self, package: LeanPackage) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        above, _, rest = name.partition(".")
        if above != self._package.__name__ or rest in LEAN:
            return None
        sys.meta_path.remove(self)
        self._package.fill()
        return ModuleSpec(name, self) if name in sys.modules else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It is there already."""


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that ends (Linux; elsewhere the end of the pipe tells)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    messages, answers, files, parent, rank, name, directory, path = sys.argv[1:]
    end_with(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    sys.path[:] = path.split(os.pathsep)
    sys.argv[:] = [f"{name}: device {rank}"]
    package = sys.modules[name] = LeanPackage(name, directory)
    backends = sys.modules[f"{name}.backends"] = LeanPackage(f"{name}.backends", os.path.join(directory, "backends"))
    package.__dict__["backends"] = backends
    sys.meta_path.insert(0, Filler(package))
    importlib.import_module(f"{name}.backends.process_child").serve(int(messages), int(answers), int(files), int(rank))


if __name__ == "__main__":
    main()
