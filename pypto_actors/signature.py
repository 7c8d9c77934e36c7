"""From the arguments of a call to a plan: full checks once for each signature (shapes, dtypes, placement, static scalars)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from pypto_actors.errors import ArgumentTypeError, ArgumentValueError
from pypto_actors.lowering import family_of
from pypto_actors.parameters import ArraySpec, Dimension, Parameter, scalar_of
from pypto_actors.plan import PlanFamily, Source
from pypto_actors.program import Program
from pypto_actors.recording import Form, Orchestrator, record
from pypto_actors.refs import ScalarRef, StackedRef, TensorRef
from pypto_actors.steps import steps_of
from pypto_actors.values import DeviceTensor, Shape, StackedDeviceTensor


class Signed(Struct, frozen=True, eq=False):
    """What is known of all calls with one signature: shapes, dtypes and placement are checked already."""

    plans: PlanFamily
    count: int  # parameters
    rank: int  # where the device tensors are, -1: there are none, or the plans do not float
    tensors: tuple[int, ...]  # positions of device tensors, the shards of stacked ones after all parameters
    stacked: tuple[int, ...]  # positions of stacked tensors
    writable: tuple[int, ...]  # positions of host arrays that are written
    scalars: tuple[tuple[int, type], ...]  # positions of scalars that each call brings
    outputs: tuple[tuple[int, Shape, np.dtype[Any]], ...]  # return style: what is allocated for the caller
    multiple: bool  # has it several parts?
    whole: tuple[tuple[int, bool], ...] | None  # (position, written) where every argument is used whole
    resident: bool  # are all arguments device tensors?
    given: tuple[int, ...]  # positions of the arguments that the call brings


def sign_one(value: Any) -> Any:
    """What a plan depends on of one argument that is not a device tensor and not static."""
    if isinstance(value, np.ndarray):
        return (-1, value.shape, value.dtype)
    if type(value) is StackedDeviceTensor:
        return value.signature
    return type(value)


def signature_key(program: Program, args: Sequence[Any]) -> tuple[Any, ...]:
    """The key of a call's plan among the plans of its program."""
    key = [arg.signature if type(arg) is DeviceTensor else sign_one(arg) for arg in args]
    for index, position in enumerate(given_positions(program, len(args))):
        parameter = program.params[position]
        if parameter.scalar is not None and (value := scalar_of(args[index], parameter.scalar)) is not None:
            # numpy scalars count as their Python kind; 0.0 and -0.0 are equal, and nan is not, but each is one value
            exact = value.hex() if parameter.static and parameter.scalar is float else value
            key[index] = (parameter.scalar, exact) if parameter.static else parameter.scalar
    return tuple(key)


def given_positions(program: Program, count: int) -> tuple[int, ...]:
    """Which parameters the arguments are for: all, or (return style) all that are not `Out`; empty where the count fits neither."""
    if count == len(program.params):
        return program.every
    return program.inputs if count == len(program.inputs) else ()


def sign(
    program: Program,
    args: Sequence[Any],
    world_size: int,
    callbacks: Mapping[str, Callable[..., Any]],
    persistent: bool = False,
    reset_windows: bool = True,
    forms: dict[str, Form] | None = None,
) -> Signed:
    """Check every argument and record the program for them. Raises what is wrong, with what came and what was expected."""
    params = program.params
    positions = given_positions(program, len(args))
    if len(positions) != len(args) or len(args) not in (len(params), len(program.inputs)):
        raise ArgumentTypeError(_wrong_count(program, len(args)))
    bound: dict[str, tuple[int, str]] = {}
    shapes: dict[int, Shape] = {}
    dtypes: dict[int, np.dtype[Any]] = {}
    for position, arg in zip(positions, args, strict=True):
        parameter = params[position]
        if parameter.array is None:
            _check_scalar(program, parameter, arg)
        else:
            shapes[position], dtypes[position] = _check_array(program, parameter, arg, bound)
    outputs = []
    for position in sorted(set(range(len(params))) - set(positions)):
        shape, dtype = _output_form(program, params[position], bound)
        shapes[position], dtypes[position] = shape, dtype
        outputs.append((position, shape, dtype))
    placed = {position: arg.device for position, arg in zip(positions, args, strict=True) if isinstance(arg, DeviceTensor)}
    stacked = {position: arg for position, arg in zip(positions, args, strict=True) if isinstance(arg, StackedDeviceTensor)}
    values = dict(zip(positions, args, strict=True))
    orchestrator = Orchestrator(program, world_size, callbacks, persistent, reset_windows, forms or {})
    refs: list[Any] = []
    shards = len(params)
    for position, parameter in enumerate(params):
        if parameter.array is not None:
            ref = _ref(orchestrator, parameter, shapes[position], dtypes[position], position, placed.get(position))
            if position in stacked:
                ref = _stacked_ref(orchestrator, parameter, stacked[position], position, shards)
                placed.update(enumerate(stacked[position].devices, shards))
                shards += len(stacked[position])
            refs.append(ref)
        elif parameter.static:
            assert parameter.scalar is not None
            refs.append(scalar_of(values[position], parameter.scalar))
        else:
            assert parameter.scalar is not None
            refs.append(ScalarRef(orchestrator, parameter.name, parameter.scalar, position))
    recording = record(program, refs, world_size, orchestrator)
    plans = family_of(recording)
    if forms is not None:
        forms.update(orchestrator.forms)
    # where some steps have a device of their own and others begin anywhere, one rank may make one part of them and another several
    mixed = plans.floating and world_size > 1 and any(isinstance(step.place, int) for step in steps_of(recording))
    whole = None if stacked else _whole(plans, outputs, params)
    return Signed(
        plans=plans,
        count=len(params),
        rank=next(iter(placed.values()), -1) if plans.floating else -1,
        tensors=tuple(sorted(placed)),
        stacked=tuple(stacked),
        writable=tuple(p for p in positions if params[p].writes and p not in placed and p not in stacked),
        scalars=tuple((p, kind) for p in positions if (kind := params[p].scalar) is not None),
        outputs=tuple(outputs),
        multiple=mixed or len(plans.at(0).parts) > 1,
        whole=whole,
        resident=all(p in placed or p in stacked for p in range(len(params))),
        given=positions,
    )


def _ref(orchestrator: Orchestrator, parameter: Parameter, shape: Shape, dtype: np.dtype[Any], index: int, device: int | None) -> TensorRef:
    return TensorRef(orchestrator, parameter.name, shape, dtype, Source.ARGUMENT, index, device=device, writable=parameter.writes)


def _stacked_ref(orchestrator: Orchestrator, parameter: Parameter, tensor: StackedDeviceTensor, position: int, first: int) -> StackedRef:
    """The ref of a stacked argument; its shards are arguments of their own, after all parameters."""
    ref = StackedRef(
        orchestrator, parameter.name, tensor.shape, tensor.dtype, Source.ARGUMENT, position, device=None, writable=parameter.writes
    )
    shards = []
    for index, shard in enumerate(tensor.shards):
        one = _ref(orchestrator, parameter, shard.shape, shard.dtype, first + index, shard.device)
        one._name = f"{parameter.name}[{index}]"
        shards.append(one)
    ref._shards = tuple(shards)
    return ref


def check_one(program: Program, position: int, arg: Any) -> None:
    """Check one argument by itself, as far as that goes."""
    parameter = program.params[position]
    if parameter.array is None:
        _check_scalar(program, parameter, arg)
    else:
        _check_array(program, parameter, arg, {})


def check_writable(program: Program, parameter: Parameter, array: np.ndarray[Any, Any]) -> None:
    """Raise for a read-only array where it would be written."""
    if not array.flags.writeable:
        raise ArgumentValueError(f"{_where(program, parameter)} is written, got a read-only array; pass a writable copy")


def _whole(
    plans: PlanFamily, outputs: Sequence[tuple[int, Shape, np.dtype[Any]]], params: Sequence[Parameter]
) -> tuple[tuple[int, bool], ...] | None:
    """`(position, written)` of the arguments to claim, where none is used in part. Fresh outputs are nobody else's."""
    fresh = {position for position, _, _ in outputs}
    if any(footprint.path for footprint in plans.footprints if footprint.argument not in fresh):
        return None
    whole = {footprint.argument: footprint.write for footprint in plans.footprints if footprint.argument not in fresh}
    for position, parameter in enumerate(params):  # what is passed but not touched is still in use until the end
        if parameter.array is not None and position not in fresh:
            whole.setdefault(position, False)
    return tuple(sorted(whole.items()))


def _check_scalar(program: Program, parameter: Parameter, arg: Any) -> None:
    kind = parameter.scalar
    assert kind is not None
    if scalar_of(arg, kind) is None:
        raise ArgumentTypeError(f"{_where(program, parameter)} takes {_article(kind)}, got {_came(arg)}")


def _check_array(program: Program, parameter: Parameter, arg: Any, bound: dict[str, tuple[int, str]]) -> tuple[Shape, np.dtype[Any]]:
    where = _where(program, parameter)
    if not isinstance(arg, (np.ndarray, DeviceTensor, StackedDeviceTensor)):
        hint = "; make it an array first: numpy.asarray(…)" if isinstance(arg, (list, tuple, int, float)) else ""
        raise ArgumentTypeError(f"{where} takes a numpy array or a DeviceTensor, got {_came(arg)}{hint}")
    spec = parameter.array
    assert spec is not None
    if arg.dtype.hasobject:
        raise ArgumentValueError(f"{where} has the dtype {arg.dtype}, which holds Python objects and cannot go to a device")
    if spec.dtype is not None and arg.dtype != spec.dtype:
        raise ArgumentValueError(
            f"{where} must have the dtype {spec.dtype}, got {arg.dtype}; convert it first: .astype({str(spec.dtype)!r})"
        )
    _check_shape(where, spec, arg.shape, bound, parameter.name)
    return arg.shape, arg.dtype


def _check_shape(where: str, spec: ArraySpec, shape: Shape, bound: dict[str, tuple[int, str]], name: str) -> None:
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise ArgumentValueError(f"{where} must have {len(spec.shape)} dimensions {_form(spec.shape)}, got the shape {shape}")
    for axis, (size, want) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(want, int):
            if size != want:
                raise ArgumentValueError(
                    f"{where} must have the shape {_form(spec.shape)}, got {shape}: dimension {axis} is {size}, not {want}"
                )
            continue
        known = bound.setdefault(want, (size, name))
        if known[0] != size:
            raise ArgumentValueError(
                f"{where} must have the shape {_form(spec.shape)}, got {shape}: "
                f"dimension {want!r} is {known[0]} by parameter {known[1]!r}, not {size}"
            )


def _output_form(program: Program, parameter: Parameter, bound: dict[str, tuple[int, str]]) -> tuple[Shape, np.dtype[Any]]:
    spec = parameter.array
    assert spec is not None
    where = _where(program, parameter)
    if spec.shape is None or spec.dtype is None:
        raise ArgumentTypeError(f"{where} is declared {spec!r}: its array cannot be allocated without shape and dtype; pass it")
    shape = []
    for size in spec.shape:
        if isinstance(size, str):
            if size not in bound:
                raise ArgumentTypeError(
                    f"{where} has the shape {_form(spec.shape)}, but no other argument says how large {size!r} is; pass it"
                )
            size = bound[size][0]
        shape.append(size)
    return tuple(shape), spec.dtype


def _wrong_count(program: Program, count: int) -> str:
    names = ", ".join(parameter.name for parameter in program.params)
    expected = f"{len(program.params)} arguments ({names})"
    if len(program.inputs) < len(program.params):
        inputs = ", ".join(program.params[position].name for position in program.inputs)
        expected += f", or without its Out parameters {len(program.inputs)} ({inputs})"
    return f"program {program.name!r} takes {expected}, got {count}"


def _where(program: Program, parameter: Parameter) -> str:
    return f"parameter {parameter.name!r} of program {program.name!r}"


def _form(shape: Sequence[Dimension]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _article(kind: type) -> str:
    return f"an {kind.__name__}" if kind is int else f"a {kind.__name__}"


def _came(value: Any) -> str:
    if isinstance(value, (int, float, str, bool, np.generic)):
        return f"{type(value).__name__} {value!r}"
    return type(value).__name__
