"""What a recorded step takes: the arguments of a kernel or of a callback become slots, and notes of what is read and written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from pypto_actors.errors import ProgramError
from pypto_actors.gangs import add_ref, check_writable
from pypto_actors.parameters import ArraySpec, Mode, Parameter, hints_of, scalar_of
from pypto_actors.plan import Slot, Source
from pypto_actors.program import Kernel, Program
from pypto_actors.refs import ScalarRef, StackedRef, TensorRef
from pypto_actors.steps import Touch

Arguments: TypeAlias = tuple[tuple[Slot, ...], tuple[Touch, ...]]


def kernel_arguments(recording: object, program: Program, kernel: Kernel, args: Sequence[Any]) -> Arguments:
    """What a step of a kernel uses; a `ProgramError` says which argument does not fit."""
    if not isinstance(kernel, Kernel):
        hint = "; decorate the function with @kernel" if callable(kernel) else ""
        raise ProgramError(f"submit takes a kernel, got {kernel!r} in program {program.name!r}{hint}")
    params = kernel.params
    least = sum(not parameter.optional for parameter in params)
    if not least <= len(args) <= len(params):
        count = f"{len(params)}" if least == len(params) else f"{least} to {len(params)}"
        names = ", ".join(parameter.name for parameter in params)
        raise ProgramError(f"kernel {kernel.name!r} takes {count} arguments ({names}), got {len(args)} in program {program.name!r}")
    slots: list[Slot] = []
    touches: list[Touch] = []
    bound: dict[str, int] = {}
    for parameter, arg in zip(params, args, strict=False):
        where = f"argument {parameter.name!r} of kernel {kernel.name!r} in program {program.name!r}"
        if parameter.array is not None:
            if not isinstance(arg, TensorRef):
                raise ProgramError(f"{where} must be a tensor ref, got {kind_of(arg)}")
            check_ref(recording, arg, where)
            _check_form(parameter.array, arg, where, bound)
            _add(slots, touches, arg, parameter.writes, where)
        else:
            slots.append(_scalar(recording, parameter, arg, where))
    return tuple(slots), tuple(touches)


def callback_arguments(recording: object, program: Program, function: Callable[..., Any], name: str, args: Sequence[Any]) -> Arguments:
    """What a host callback uses; a `ProgramError` says what it cannot take."""
    specs = _callback_specs(function, name, program.name, args)
    slots: list[Slot] = []
    touches: list[Touch] = []
    bound: dict[str, int] = {}
    for position, (arg, spec) in enumerate(zip(args, specs, strict=True)):
        where = f"argument {position} of callback {name!r}"
        if isinstance(arg, TensorRef):
            check_ref(recording, arg, where)
            if spec is not None:
                _check_form(spec, arg, where, bound)
            _add(slots, touches, arg, arg._writable if spec is None else spec.mode is not Mode.IN, where)
        elif spec is not None:
            raise ProgramError(f"{where} must be a tensor ref, got {kind_of(arg)}")
        elif isinstance(arg, ScalarRef):
            check_ref(recording, arg, where)
            slots.append(Slot(Source.ARGUMENT, arg._index))
        else:
            if isinstance(arg, (list, tuple, dict, set)) and any(isinstance(item, (TensorRef, ScalarRef)) for item in _items(arg)):
                raise ProgramError(f"{where} is a {type(arg).__name__} of refs; pass each ref as an argument of its own")
            slots.append(Slot(Source.CONSTANT, value=arg))
    return tuple(slots), tuple(touches)


def check_ref(recording: object, ref: TensorRef | ScalarRef, where: str) -> None:
    """It is of this recording, and on one device; else a `ProgramError`."""
    if isinstance(ref, StackedRef):
        raise ProgramError(f"{where} is {ref!r}, whose shards live on different devices; pass one of them: {ref._name}[rank]")
    if ref._recording is not recording:
        raise ProgramError(f"{where} is {ref!r} of another recording; use the refs that this call of the function got")


def _scalar(recording: object, parameter: Parameter, arg: Any, where: str) -> Slot:
    kind = parameter.scalar
    assert kind is not None
    if isinstance(arg, ScalarRef):
        check_ref(recording, arg, where)
        if arg._kind is not kind and not (kind is float and arg._kind is int):
            raise ProgramError(f"{where} must be {_article(kind)}, got the {arg._kind.__name__} {arg._name!r}")
        return Slot(Source.ARGUMENT, arg._index, value=None if arg._kind is kind else kind)
    value = scalar_of(arg, kind)
    if value is None:
        raise ProgramError(f"{where} must be {_article(kind)}, got {kind_of(arg)}")
    return Slot(Source.CONSTANT, value=value)


def _add(slots: list[Slot], touches: list[Touch], ref: TensorRef, write: bool, where: str) -> None:
    if write:
        check_writable(ref, where)
    add_ref(slots, touches, ref, write)


def _check_form(spec: ArraySpec, ref: TensorRef, where: str, bound: dict[str, int]) -> None:
    """`bound`: the symbolic dimensions of the function, by its earlier arguments."""
    if spec.dtype is not None and ref.dtype != spec.dtype:
        raise ProgramError(f"{where} must be {spec.dtype}, got {ref!r}")
    if spec.shape is None:
        return
    if len(ref.shape) != len(spec.shape):
        raise ProgramError(f"{where} must have {len(spec.shape)} dimensions {spec.shape}, got {ref!r}")
    for size, want in zip(ref.shape, spec.shape, strict=True):
        if size != (want if isinstance(want, int) else bound.setdefault(want, size)):
            known = f" with {want!r} = {bound[want]}" if isinstance(want, str) else ""
            raise ProgramError(f"{where} must have the shape {spec.shape}{known}, got {ref!r}")


def _callback_specs(function: Callable[..., Any], name: str, program: str, args: Sequence[Any]) -> list[ArraySpec | None]:
    """For each argument, what the function's annotation says of it, or `None`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return [None] * len(args)
    try:
        bound = signature.bind(*args)
    except TypeError as error:
        raise ProgramError(f"callback {name!r} of program {program!r} cannot take the {len(args)} recorded arguments: {error}") from None
    try:
        hints = hints_of(_annotated(function), None)
    except (ProgramError, TypeError, AttributeError):  # annotations of something else than this package
        hints = {}
    specs: list[ArraySpec | None] = []
    for key, value in bound.arguments.items():
        count = len(value) if signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL else 1
        found = [extra for extra in getattr(hints.get(key), "__metadata__", ()) if isinstance(extra, ArraySpec)]
        specs += [found[0] if found else None] * count
    return specs


def _annotated(callback: Callable[..., Any]) -> Callable[..., Any]:
    """What has the annotations of a callback: of a partial its function, of an object its `__call__`."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    return callback if inspect.isroutine(callback) else type(callback).__call__


def _items(value: Any) -> Iterator[object]:
    """The items of a container, and those of the containers in it."""
    for item in value.values() if isinstance(value, dict) else value:
        yield item
        if isinstance(item, (list, tuple, dict, set)):
            yield from _items(item)


def kind_of(value: object) -> str:
    """How a text names what came."""
    if isinstance(value, (TensorRef, ScalarRef)):
        return repr(value)
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, bool, str)) else type(value).__name__


def _article(kind: type) -> str:
    return f"an {kind.__name__}" if kind is int else f"a {kind.__name__}"
