"""Constants as text: the values that a program may read, told so that two different ones are never told alike."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import BuiltinFunctionType, EllipsisType, FunctionType, MappingProxyType, MemberDescriptorType, MethodDescriptorType, ModuleType
from types import GetSetDescriptorType as GetSet
from typing import Any

import msgspec
import numpy as np

from pypto_actors.parameters import ArraySpec
from pypto_actors.sources import is_installed, is_library

TOLD_BY_REPR = (int, bool, str, bytes, type(None), EllipsisType, range)
CONTAINERS = (tuple, list, set, frozenset)
GENERATED = (MemberDescriptorType, GetSet, MethodDescriptorType)


class Untold(Exception):
    """A value that cannot be told: why, and how to mend it."""

    def __init__(self, value: Any) -> None:
        self.why = f"is a {type(value).__name__}, whose value cannot be told"
        self.mend = "make it a plain constant: a number, a string, an array, a tuple or a dataclass of such"
        super().__init__(self.why)


def plain_value(value: Any) -> tuple[Any, ...] | None:
    """A value that has no parts, as text; `None` for others."""
    kind = type(value)
    if kind in TOLD_BY_REPR:
        return (kind.__name__, ascii(value))
    if kind is float:
        return ("float", value.hex())
    if kind is complex:
        return ("complex", value.real.hex(), value.imag.hex())
    if isinstance(value, np.dtype) and not value.hasobject:
        return ("dtype", _dtype(value))
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return ("scalar", _dtype(value.dtype), value.tobytes().hex())
    if kind is np.ndarray and not value.dtype.hasobject:
        return ("array", _dtype(value.dtype), str(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest())
    if isinstance(value, PurePath):
        return ("path", kind.__name__, ascii(str(value)))
    if isinstance(value, logging.Logger):  # tells what happens, and decides nothing
        return ("logger",)
    if isinstance(value, ArraySpec):
        return ("spec", value.mode.value, ascii(value.shape), "any" if value.dtype is None else _dtype(value.dtype))
    return None


def parts_of(value: Any) -> tuple[str, list[Any]]:
    """The kind of a value and the values that it is made of, which may be anything.

    Raises:
        Untold: it is of no known kind.
    """
    kind = type(value)
    if isinstance(value, enum.Enum):
        return "member", [kind, value.name, value.value]
    if kind in CONTAINERS:
        return kind.__name__, list(value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "named tuple", [kind, *value]
    if kind in (dict, MappingProxyType):
        return kind.__name__, [part for item in value.items() for part in item]
    if kind is slice:
        return "slice", [value.start, value.stop, value.step]
    if kind is re.Pattern:
        return "pattern", [value.pattern, value.flags]
    if kind is functools.partial:
        return "partial", [value.func, value.args, value.keywords]
    if kind in (staticmethod, classmethod):
        return kind.__name__, [value.__func__]
    if kind is property:
        return "property", [value.fget, value.fset, value.fdel]
    if kind is functools.cached_property:
        return "cached property", [value.func]
    if dataclasses.is_dataclass(kind):
        return "dataclass", [kind, *(getattr(value, field.name, None) for field in dataclasses.fields(value))]
    if isinstance(value, msgspec.Struct):
        return "struct", [kind, *(getattr(value, name) for name in kind.__struct_fields__)]
    raise Untold(value)


def installed_name(value: Any) -> str | None:
    """The name by which a function, class or module of Python or of an installed package is found; `None` for others."""
    if isinstance(value, ModuleType):
        return value.__name__ if is_installed(value.__name__) else None
    owner = getattr(value, "__self__", None)
    module = getattr(value, "__module__", None) or (getattr(owner, "__name__", None) if isinstance(owner, ModuleType) else None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(value, np.ufunc):
        module = "numpy"
    if not isinstance(module, str) or not isinstance(name, str) or not is_installed(module):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is value:
        return f"{module}.{name}"
    if isinstance(value, BuiltinFunctionType) and isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{name}"
    return None


def class_members(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class was given by its body and its decorators, without what Python makes for every class."""
    if issubclass(kind, enum.Enum):
        yield from ((name, member.value) for name, member in kind.__members__.items())
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.default_factory is not dataclasses.MISSING:
                yield f"{field.name}()", field.default_factory
    for number, default in enumerate(getattr(kind, "__struct_defaults__", ())):
        if default is not msgspec.NODEFAULT:
            yield f"default {number}", getattr(default, "factory", default)
    fields: Mapping[str, Any] = vars(kind)
    for name, member in sorted(fields.items()):
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", None) or member
        if isinstance(function, FunctionType):
            if _is_written(function):
                yield name, member
        elif not (_is_made(name, member) or (issubclass(kind, enum.Enum) and name in kind.__members__)):
            yield name, member


def _is_written(function: FunctionType) -> bool:
    """Does it stand in a file of the project? Decorators such as `dataclass` and base classes bring others."""
    file = function.__code__.co_filename
    return not file.startswith("<") and not is_library(Path(file).resolve())


def _is_made(name: str, member: Any) -> bool:
    """Did Python, `enum`, `dataclass`, `abc` or `NamedTuple` make it from the body?"""
    between = name.startswith("_") and name.endswith("_")
    return between or name.startswith("_abc_") or isinstance(member, GENERATED) or type(member).__name__ == "_tuplegetter"


def _dtype(dtype: np.dtype[Any]) -> str:
    """A dtype as text, with its byte order, its fields and (`bfloat16` and the like) its name."""
    return f"{dtype.name} {dtype.str}" if dtype.fields is None else f"{dtype.descr} {dtype.itemsize}"
