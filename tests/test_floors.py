"""The floors of the house: a module imports only from floors below it, in no cycle, and never inside a function.

The table below is the truth that ARCHITECTURE.md explains; a new module gets its place here first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pypto_actors"

# From the ground up. Modules of one floor do not import each other; `room/*` is a sub-package, whose modules may, in no cycle.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("config", "values", "addresses"),
    ("plan", "parameters", "sources", "lanes", "accesses"),
    ("messages", "collectives", "program", "constants"),
    ("arena", "hazards", "policy", "refs"),
    ("lifecycle", "steps"),
    ("failures", "health", "ledger", "mailbox", "port", "queues", "statistics", "tensors", "deadlines", "gangs"),
    ("step_arguments",),
    ("operations", "recording", "events", "digest", "loading"),
    ("router", "lowering", "saving"),
    ("compiled",),
    ("coordinator", "signature"),
    ("executor", "registry"),
    ("backends/*",),
    ("device", "host", "waiter"),
    ("system",),
    ("handle",),
    ("submission", "supervision"),
    ("memory", "registration", "options"),
    ("bound",),
    ("worker",),
    ("tracing", "tracing/*"),
    ("testing/*", "serving/*", "simulation/*"),
    ("__init__",),
)

# What may be imported inside a function: the optional extras, since the package must load without them.
OPTIONAL = {"cloudpickle", "matplotlib", "ml_dtypes", "ray", "safetensors", "threadpoolctl", "tokenizers"}

# What a call gives that stands on a floor above: named in annotations (`if TYPE_CHECKING`), never loaded.
GIVES = {("program", "compiled"), ("compiled", "handle"), ("compiled", "worker")}

# The coordinator decides on values alone: no array, no backend, in nothing that it loads.
PURE = "coordinator"
IMPURE = {"numpy", "ml_dtypes", "ray"}
IMPURE_ROOMS = {"backends"}


@dataclass(frozen=True)
class Import:
    """`target`: a module of the package as `room/module`, or the name of another top-level package."""

    target: str
    inside: bool  # of the package
    line: int
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING`


@dataclass
class House:
    """All imports of the package at `root`, by module (`coordinator`, `backends/thread`, `testing/__init__`)."""

    root: Path
    imports: dict[str, list[Import]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {path.relative_to(self.root).with_suffix("").as_posix(): path for path in self.root.rglob("*.py")}
        for name, path in sorted(names.items()):
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            self.imports[name] = list(self._walk(tree, name, names, in_function=False, for_types=False))

    def _walk(self, node: ast.AST, module: str, names: dict[str, Path], *, in_function: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target, inside in self._targets(node, module, names):
                yield Import(target, inside, node.lineno, in_function, for_types)
            return
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.iter_child_nodes(node):
            types = for_types or (guarded and isinstance(node, ast.If) and child in node.body)
            yield from self._walk(child, module, names, in_function=in_function, for_types=types)

    def _targets(self, node: ast.Import | ast.ImportFrom, module: str, names: dict[str, Path]) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:  # relative: from the package in which the module lies
                parents = [self.root.name, *module.split("/")[:-1]]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            dotted = [f"{base}.{alias.name}" for alias in node.names]
        for name in dotted:
            top, *rest = name.split(".")
            if top == self.root.name:
                yield self._module(rest, names), True
            else:
                yield top, False

    @staticmethod
    def _module(parts: list[str], names: dict[str, Path]) -> str:
        """The longest prefix that is a module: the rest is a name in it."""
        for end in range(len(parts), 0, -1):
            for name in ("/".join(parts[:end]), "/".join([*parts[:end], "__init__"])):
                if name in names:
                    return name
        return "__init__"

    def loaded(self, module: str) -> list[Import]:
        """The imports of a module, but for those that only name what its calls give."""
        return [each for each in self.imports[module] if not (each.for_types and (module, each.target) in GIVES)]


def room_of(module: str) -> str:
    return module.partition("/")[0] if "/" in module else ""


def faults_of(root: Path, floors: tuple[tuple[str, ...], ...]) -> list[str]:
    house = House(root)
    floor_of: dict[str, int] = {}
    for module in house.imports:
        names = (module, f"{room_of(module)}/*")
        found = [number for number, floor in enumerate(floors) if any(name in floor for name in names)]
        if found:
            floor_of[module] = found[0]
    faults = [
        f"{root.name}/{module}.py has no floor: put {module!r} into FLOORS in {Path(__file__).name}, "
        "above all that it imports and below all that import it"
        for module in house.imports
        if module not in floor_of
    ]
    for module in house.imports:
        for each in house.loaded(module):
            place = f"{root.name}/{module}.py:{each.line}"
            if each.in_function and (each.inside or each.target not in OPTIONAL):
                faults.append(f"{place} imports {each.target!r} inside a function: move it to the top of the file")
            if not each.inside or module not in floor_of or each.target not in floor_of:
                continue
            here, there = floor_of[module], floor_of[each.target]
            same_room = room_of(module) != "" and room_of(module) == room_of(each.target)
            if there > here or (there == here and not same_room):
                faults.append(f"{place} (floor {here}) imports {each.target!r} (floor {there}): only floors below may be imported")
    faults += [f"import cycle: {' → '.join(cycle)}" for cycle in cycles_of(house)]
    return list(dict.fromkeys(faults))  # one for a statement, however many names it imports


def cycles_of(house: House) -> list[list[str]]:
    cycles: list[list[str]] = []
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
        elif module not in finished:
            for target in dict.fromkeys(each.target for each in house.loaded(module) if each.inside):
                visit(target, [*path, module])
            finished.add(module)

    for module in house.imports:
        visit(module, [])
    return cycles


def impurities_of(root: Path, start: str) -> list[str]:
    """The ways on which `start` loads an array or a backend, each as a chain of imports."""
    house = House(root)
    found: list[str] = []
    paths = {start: [start]}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for each in house.imports[module]:
            path = [*paths[module], each.target]
            if each.for_types:
                continue
            if each.target in IMPURE if not each.inside else room_of(each.target) in IMPURE_ROOMS:
                found.append(" → ".join(path))
            elif each.inside and each.target not in paths:
                paths[each.target] = path
                waiting.append(each.target)
    return found


def test_the_house_keeps_its_floors() -> None:
    faults = faults_of(PACKAGE, FLOORS)
    assert not faults, "\n".join(["", *faults])


def test_no_module_stands_on_two_floors() -> None:
    names = [name for floor in FLOORS for name in floor]
    assert len(names) == len(set(names))


def test_the_coordinator_loads_no_array_and_no_backend() -> None:
    assert impurities_of(PACKAGE, PURE) == []


# The test itself: it bites.

TOY = (("errors",), ("values",), ("coordinator",), ("backends/*",), ("__init__",))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    root = tmp_path / "pypto_actors"
    (root / "backends").mkdir(parents=True)
    files = {
        "__init__.py": "from .coordinator import C\n",
        "errors.py": "import math\n",
        "values.py": "from __future__ import annotations\nfrom pypto_actors.errors import E\n",
        "coordinator.py": "from typing import TYPE_CHECKING\nfrom . import errors, values\nif TYPE_CHECKING:\n    import numpy\n",
        "backends/__init__.py": "from pypto_actors.backends.inline import Inline\n",
        "backends/inline.py": "import numpy\nfrom ..coordinator import C\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def test_a_sound_house_has_no_faults(toy: Path) -> None:
    assert faults_of(toy, TOY) == []
    assert impurities_of(toy, "coordinator") == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("errors.py", "from pypto_actors.values import V", "errors.py:1 (floor 0) imports 'values' (floor 1)"),
        ("errors.py", "from pypto_actors import VERSION", "errors.py:1 (floor 0) imports '__init__' (floor 4)"),
        ("errors.py", "import pypto_actors.values as v", "errors.py:1 (floor 0) imports 'values' (floor 1)"),
        ("values.py", "if TYPE_CHECKING:\n    from .backends import inline", "values.py:2 (floor 1) imports 'backends/inline'"),
        ("values.py", "def f():\n    import math", "values.py:2 imports 'math' inside a function"),
        ("values.py", "def f():\n    from .errors import E", "values.py:2 imports 'errors' inside a function"),
        ("new.py", "", "pypto_actors/new.py has no floor: put 'new' into FLOORS in test_floors.py"),
        ("backends/inline.py", "from . import Inline", "import cycle: backends/__init__ → backends/inline → backends/__init__"),
        ("backends/inline.py", "from .inline import Inline", "import cycle: backends/inline → backends/inline"),
    ],
)
def test_a_planted_fault_is_named(toy: Path, file: str, text: str, fault: str) -> None:
    (toy / file).write_text(text + "\n")
    assert any(fault in found for found in faults_of(toy, TOY)), faults_of(toy, TOY)


def test_an_optional_extra_may_be_imported_inside_a_function(toy: Path) -> None:
    (toy / "backends/inline.py").write_text("def start():\n    import ray\n")
    assert faults_of(toy, TOY) == []


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("import numpy as np", "coordinator → values → numpy"),
        ("from numpy.typing import DTypeLike", "coordinator → values → numpy"),
        ("from .backends import inline", "coordinator → values → backends/inline"),
        ("def f():\n    from pypto_actors.backends.inline import Inline", "coordinator → values → backends/inline"),
    ],
)
def test_a_planted_array_or_backend_is_found(toy: Path, text: str, way: str) -> None:
    (toy / "values.py").write_text(text + "\n")
    assert impurities_of(toy, "coordinator") == [way]


def test_what_a_call_gives_may_be_named_but_not_loaded(toy: Path) -> None:
    for guard, faults in (("if TYPE_CHECKING:\n    ", 0), ("", 2)):
        (toy / "program.py").write_text(f"from typing import TYPE_CHECKING\n{guard}from pypto_actors import compiled\n")
        (toy / "compiled.py").write_text("from pypto_actors import program\n")
        assert len(faults_of(toy, (("errors",), ("values", "program"), ("compiled", "coordinator"), *TOY[3:]))) == faults
