"""Source files: what stands where a function or class was defined, which globals it reads, and what belongs to installed packages."""

from __future__ import annotations

import ast
import dis
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from msgspec import Struct

READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
WRITES = {"STORE_GLOBAL", "DELETE_GLOBAL"}
ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
PACKAGE = Path(__file__).resolve().parent
LIBRARIES = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
LIBRARY_NAMES = {"site-packages", "dist-packages"}


class SourceFault(Exception):
    """Why there is no source: what is wrong, and how to mend it."""

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why, mend)
        self.why = why
        self.mend = mend


class Text(Struct, frozen=True, eq=False):
    """A function as its file has it."""

    text: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    code: CodeType
    imports: tuple[str, ...]  # modules that it imports when it runs, relative ones with their dots


class Made(Struct, frozen=True, eq=False):
    """How a global comes to be, as its file has it: statements, and the names that these read."""

    texts: tuple[str, ...]
    reads: tuple[str, ...]


class SourceFile:
    """A file of Python source, parsed and compiled, so that a definition in memory can be compared with what the file says now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = path.read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = importlib.util.decode_source(self.content)
                self.tree = ast.parse(text)
                self._code = compile(text, str(path), "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError) as error:
            raise SourceFault(f"has no source ({type(error).__name__}: {error})", "define it in a file that can be read") from None
        self._lines = text.splitlines()

    def function(self, function: FunctionType) -> Text:
        """The text of a function. A file that has changed since it was imported is a fault: its text is not what would run."""
        live = function.__code__
        found = [code for code in _codes(self._code) if (code.co_qualname, code.co_firstlineno) == (live.co_qualname, live.co_firstlineno)]
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS) and _first_line(node) == live.co_firstlineno]
        nodes = [node for node in nodes if node.name == live.co_name]
        rewritten = "@pytest_ar" in live.co_names  # pytest rewrites the assertions of test files
        if len(found) != 1 or len(nodes) != 1 or not (rewritten or _told(found[0]) == _told(live)):
            raise SourceFault(f"is not what {self.path.name} says now", "the file was changed after it was imported: import it again")
        imports = [name for node in ast.walk(nodes[0]) for name in imported(node)]
        return Text(self._segment(nodes[0]), nodes[0], found[0], tuple(sorted(set(imports))))

    def classes(self, qualname: str) -> tuple[str, ...]:
        """The texts of the definitions of a class: several, where branches define one each."""
        return tuple(self._segment(node) for name, node in _classes(self.tree, "") if name == qualname)

    def makes(self, name: str, names: Mapping[str, Any]) -> Made | None:
        """The statements at the top level that make a global what it is when the file has been imported; `None`: none assigns it.

        `names` are the globals of the module: a call of a function that reads the global counts too.
        """
        found = [node for node in self.tree.body if not isinstance(node, NO_MAKERS) and _has_part_in(node, name, names)]
        within = [part for node in found for part in ast.walk(node) if isinstance(part, ast.Name)]
        if not any(part.id == name and isinstance(part.ctx, ast.Store) for part in within):
            return None
        reads = sorted({part.id for part in within if isinstance(part.ctx, ast.Load)} - {name})
        return Made(tuple("\n".join(self._lines[node.lineno - 1 : node.end_lineno]) for node in found), tuple(reads))

    def imports(self) -> list[str]:
        """All modules that the file imports anywhere, relative ones with their dots."""
        return sorted({name for node in ast.walk(self.tree) for name in imported(node)})

    def _segment(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
        return "\n".join(self._lines[_first_line(node) - 1 : node.end_lineno])


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NO_MAKERS = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom)


def _has_part_in(node: ast.stmt, name: str, names: Mapping[str, Any]) -> bool:
    """Does a statement name a global, or call a function that reads it?"""
    mentioned = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    called = {part.func.id for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)}
    readers = {one for one in called if isinstance(function := names.get(one), FunctionType) and name in function.__code__.co_names}
    return name in mentioned or bool(readers)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{prefix}{child.name}", child
            yield from _classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, FUNCTIONS):
            yield from _classes(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _classes(child, prefix)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _told(value: Any) -> Any:
    """A code object or constant of one as a value that is equal only where they do the same."""
    if isinstance(value, CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        return value.co_code, names, counts, [_told(constant) for constant in value.co_consts]
    if isinstance(value, tuple):
        return [_told(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return repr(value)  # tells 1, 1.0 and True apart, and 0.0 and -0.0


def reads_of(code: CodeType) -> dict[str, set[tuple[str, ...]]]:
    """Every global that the code or code inside it reads, with the chains of attributes that follow; `()` where none does."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for one in _codes(code):
        root, chain = "", []
        for step in (*dis.get_instructions(one), None):
            if step is not None and step.opname == "EXTENDED_ARG":
                continue
            if root and step is not None and step.opname in ATTRIBUTES:
                chain.append(str(step.argval))
                continue
            if root:
                found.setdefault(root, set()).add(tuple(chain))
            root, chain = "", []
            if step is not None and step.opname in READS and not (step.opname == "LOAD_NAME" and step.argval == "__name__"):
                root = str(step.argval)  # (a nested class reads __name__ for its __module__)
    return found


def callbacks_inside(node: ast.AST) -> Iterator[str]:
    """The host callbacks that stand inside a function which records them: `a lambda`, or the name of a nested function."""
    inner = {one.name for one in ast.walk(node) if isinstance(one, FUNCTIONS) and one is not node}
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr == "submit_sub":
            for callback in [*one.args[:1], *(keyword.value for keyword in one.keywords if keyword.arg == "callback")]:
                if isinstance(callback, ast.Lambda):
                    yield "a lambda"
                elif isinstance(callback, ast.Name) and callback.id in inner:
                    yield repr(callback.id)


def makers_inside(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What is called or decorates inside a function, as the two names `module.name` (or `""` and a name)."""
    for one in ast.walk(node):
        makers = [one.func] if isinstance(one, ast.Call) else one.decorator_list if isinstance(one, FUNCTIONS) and one is not node else []
        for maker in makers:
            if isinstance(maker, ast.Name):
                yield "", maker.id
            elif isinstance(maker, ast.Attribute) and isinstance(maker.value, ast.Name):
                yield maker.value.id, maker.attr


def writes_of(code: CodeType) -> list[str]:
    """The globals that the code assigns."""
    return sorted({str(step.argval) for one in _codes(code) for step in dis.get_instructions(one) if step.opname in WRITES})


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names, relative ones with their dots; of another statement, none."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


def source_path(function: FunctionType | type) -> Path:
    """The file of the module in which a function or class was defined."""
    module = sys.modules.get(function.__module__)
    if module is None or (isinstance(function, FunctionType) and function.__globals__ is not module.__dict__):
        raise SourceFault(f"belongs to no module that can be imported ({function.__module__!r})", "define it in a file and import that")
    file = getattr(module, "__file__", None)
    code = getattr(function, "__code__", None)
    if file is None or (code is not None and code.co_filename.startswith("<")):
        raise SourceFault("stands in no file", "define it in a file")
    return Path(file).resolve()


def is_installed(module: str | None) -> bool:
    """Is this a module of Python, of an installed package, or of this one? Such are named, not copied."""
    if not module or module.startswith("."):
        return False
    top = module.partition(".")[0]
    file = _place(module) or _place(top)
    if file is None:
        return top in sys.stdlib_module_names
    return is_library(file)


def is_library(file: Path) -> bool:
    """Does a file belong to Python, an installed package, or this one?"""
    around = (file, *file.parents)
    return any(one in LIBRARIES or one == PACKAGE or one.name in LIBRARY_NAMES for one in around)


def _place(name: str) -> Path | None:
    module: ModuleType | None = sys.modules.get(name)
    places: list[str | None] = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    if module is None:
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is not None:
            places = [spec.origin if spec.has_location else None, *(spec.submodule_search_locations or ())]
    return next((Path(place).resolve() for place in places if place), None)


def is_cached(value: Any) -> bool:
    """Is this a function under `functools.cache` or `lru_cache`, which change nothing that it computes?"""
    return type(value).__name__ == "_lru_cache_wrapper" and inspect.isfunction(getattr(value, "__wrapped__", None))
