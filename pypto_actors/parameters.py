"""Parameters of kernels and programs: how they are declared, and what is read off their annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from types import FrameType
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pypto_actors.errors import ProgramError

Dimension: TypeAlias = int | str


class Mode(Enum):
    """How an array parameter is used."""

    IN = "In"
    OUT = "Out"
    INOUT = "InOut"


class ArraySpec:
    """An array parameter: its mode, and the shape and dtype that its arguments must have.

    Attributes:
        shape: one entry a dimension, an `int` or a `str` (symbolic: bound by the first argument that has it, equal everywhere in one
            dispatch); `None`: any shape.
        dtype: a numpy dtype; `None`: any.
    """

    __slots__ = ("dtype", "shape")
    mode: Mode

    def __init__(self, shape: Sequence[Dimension] | None = None, dtype: npt.DTypeLike | None = None) -> None:
        if shape is not None:
            if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
                raise ProgramError(f"a shape is a tuple of ints and strings such as (4, 'n'), got {shape!r}")
            for size in shape:
                if isinstance(size, bool) or not isinstance(size, (int, str, np.integer)) or (not isinstance(size, str) and size < 0):
                    raise ProgramError(f"a dimension is an int of at least 0 or a str, got {size!r} in the shape {tuple(shape)!r}")
        self.shape = None if shape is None else tuple(size if isinstance(size, str) else int(size) for size in shape)
        try:
            self.dtype = None if dtype is None else np.dtype(dtype)
        except TypeError as error:
            raise ProgramError(f"{dtype!r} is no numpy dtype: {error}") from None

    def __repr__(self) -> str:
        return f"{self.mode.value}({self.shape}, {self.dtype})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArraySpec) and (self.mode, self.shape, self.dtype) == (other.mode, other.shape, other.dtype)

    def __hash__(self) -> int:
        return hash((self.mode, self.shape, self.dtype))


class In(ArraySpec):
    """Read by the program or kernel, never written: `Annotated[TensorRef, In(("n", 128), np.float32)]`.

    Args:
        shape: one entry a dimension, an `int` or a `str` (symbolic: bound by the first argument that has it, and equal everywhere in one
            dispatch); `None`: any shape.
        dtype: what `numpy.dtype` takes; `None`: any.

    Raises:
        ProgramError: this is no shape, or no dtype.
    """

    __slots__ = ()
    mode = Mode.IN


class Out(ArraySpec):
    """Written by the program or kernel; may be left out of a call in return style. Shape and dtype as of `In`."""

    __slots__ = ()
    mode = Mode.OUT


class InOut(ArraySpec):
    """Read and written. Shape and dtype as of `In`."""

    __slots__ = ()
    mode = Mode.INOUT


InArray: TypeAlias = Annotated[npt.NDArray[Any], In()]
OutArray: TypeAlias = Annotated[npt.NDArray[Any], Out()]
InOutArray: TypeAlias = Annotated[npt.NDArray[Any], InOut()]


class Static(Struct, frozen=True):
    """Marks a scalar of a program that may steer its recording: `Annotated[int, Static()]`. Each value is recorded for itself."""


class Parameter(Struct, frozen=True):
    """One parameter. Either `array` says what arrays it takes, or `scalar` is `int`, `float` or `bool`."""

    name: str
    array: ArraySpec | None = None
    scalar: type | None = None
    static: bool = False
    optional: bool = False  # has a default (kernels only)

    @property
    def writes(self) -> bool:
        """Is it an array that may be written (`Out`, `InOut`)?"""
        return self.array is not None and self.array.mode is not Mode.IN

    def __repr__(self) -> str:
        if self.array is not None:
            return f"{self.name}: {self.array!r}"
        assert self.scalar is not None
        return f"{self.name}: {self.scalar.__name__}" + (" (static)" if self.static else "")


def hints_of(function: Callable[..., Any], frame: FrameType | None) -> dict[str, Any]:
    """The annotations of `function`, evaluated where they are text; names local to the place of the decorator are found too."""
    local = dict(frame.f_locals) if frame is not None else {}
    code = getattr(function, "__code__", None)
    closure = getattr(function, "__closure__", None) or ()
    if code is not None:
        for name, cell in zip(code.co_freevars, closure, strict=False):
            try:
                local.setdefault(name, cell.cell_contents)
            except ValueError:
                continue
    try:
        return get_type_hints(function, None, local, include_extras=True)
    except Exception as error:  # whatever the text of an annotation raises
        if code is None:
            raise ProgramError(f"{function!r} is no Python function, so that its parameters cannot be told") from error
        raise ProgramError(f"an annotation of {function.__qualname__} cannot be evaluated: {error}") from error


def parameters_of(
    function: Callable[..., Any], hints: dict[str, Any], what: str, skip: int, defaults: bool, static: bool
) -> tuple[Parameter, ...]:
    """The parameters after the first `skip`, each by its annotation; a `ProgramError` names the first that cannot be used."""
    if not inspect.isroutine(function) or getattr(function, "__code__", None) is None:
        raise ProgramError(f"{what} must be a Python function, got {function!r}; wrap it in one: def {what.split()[0]}(…): …")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ProgramError(f"{what} is async or a generator, so that calling it does nothing; make it a plain function")
    found = []
    for given in list(inspect.signature(function).parameters.values())[skip:]:
        where = f"parameter {given.name!r} of {what}"
        if given.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD and given.kind is not inspect.Parameter.POSITIONAL_ONLY:
            raise ProgramError(f"{where} is {given.kind.description}; only positional parameters can be recorded")
        has_default = given.default is not inspect.Parameter.empty
        if has_default and not defaults:
            raise ProgramError(f"{where} has a default; a program takes one argument for each parameter, so remove it")
        if given.name not in hints:
            raise ProgramError(
                f"{where} has no annotation; write one such as InArray, Annotated[TensorRef, In(shape, dtype)], int or float"
            )
        parameter = _parameter(given.name, hints[given.name], where, has_default)
        if parameter.static and not static:
            raise ProgramError(f"{where} is Static, which is for scalars of programs")
        if has_default and parameter.scalar is None:
            raise ProgramError(f"{where} is an array with a default; only scalars may have one")
        found.append(parameter)
    return tuple(found)


def _parameter(name: str, hint: Any, where: str, optional: bool) -> Parameter:
    if hint in (int, float, bool):
        return Parameter(name, scalar=hint, optional=optional)
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        specs = [extra() if isinstance(extra, type) and issubclass(extra, ArraySpec) else extra for extra in extras]
        specs = [spec for spec in specs if isinstance(spec, ArraySpec)]
        static = any(isinstance(extra, Static) or extra is Static for extra in extras)
        if len(specs) == 1 and not static:
            return Parameter(name, array=specs[0], optional=optional)
        if not specs and base in (int, float, bool):
            return Parameter(name, scalar=base, static=static, optional=optional)
    raise ProgramError(
        f"{where} is annotated {hint!r}; expected In, Out or InOut in an Annotated (or InArray, OutArray, InOutArray), "
        "or one of int, float, bool, or Annotated[int, Static()]"
    )


def scalar_of(value: Any, kind: type) -> Any:
    """`value` as the Python scalar `kind`, or `None` if it is of another kind. numpy scalars count as their Python kind."""
    given = type(value)
    if given is kind:
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value) if kind is bool else None
    if isinstance(value, (int, np.integer)):
        if kind is float:
            try:
                return float(value)
            except OverflowError:
                return None
        return int(value) if kind is int else None
    if isinstance(value, (float, np.floating)):
        return float(value) if kind is float else None
    return None
