"""Recording: a program's function runs once, and an `Orchestrator` writes down its steps, with what each reads and writes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pypto_actors.errors import PlacementError, ProgramError, PyptoActorsError
from pypto_actors.parameters import Mode, Parameter, hints_of, scalar_of
from pypto_actors.plan import Path, Scratch, Slot, Source
from pypto_actors.program import Kernel, Program
from pypto_actors.refs import Place, ScalarRef, TensorRef
from pypto_actors.values import Shape

Callback = str | Callable[..., Any]


class Touch(Struct, frozen=True):
    """Bytes that a step uses: of an argument or of scratch, counted as if it were contiguous."""

    source: Source
    index: int
    path: Path
    start: int
    stop: int
    write: bool


class RawStep(Struct, frozen=True):
    """One recorded step, its device not yet resolved. `place` is `None` for a host callback."""

    name: str
    function: Callable[..., Any] | None
    slots: tuple[Slot, ...]
    touches: tuple[Touch, ...]
    place: Place | None
    callback: Callback | None = None


class RawScratch(Struct, frozen=True):
    """Scratch memory, its device not yet resolved."""

    place: Place
    shape: Shape
    dtype: np.dtype[Any]

    def at(self, rank: int, world_size: int) -> Scratch:
        return Scratch(resolve(self.place, rank, world_size), self.shape, self.dtype, math.prod(self.shape) * self.dtype.itemsize)


class Recording(Struct, frozen=True, eq=False):
    """Everything that a program's function asked for, in order."""

    program: str
    world_size: int
    steps: tuple[RawStep, ...]
    scratch: tuple[RawScratch, ...]


def resolve(place: Place, rank: int, world_size: int) -> int:
    return (rank + place[0]) % world_size if isinstance(place, tuple) else place


class Orchestrator:
    """What a program's function records with. Valid while the function runs.

    Attributes:
        world_size: how many devices there are; they are numbered by rank from 0.
    """

    def __init__(self, program: Program, world_size: int, callbacks: Mapping[str, Callable[..., Any]]) -> None:
        self.world_size = world_size
        self._program = program
        self._callbacks = callbacks
        self._steps: list[RawStep] = []
        self._scratch: list[RawScratch] = []
        self._turn = 0  # round-robin
        self._open = True

    def submit(self, kernel: Kernel, *args: Any, device: int | None = None) -> None:
        """Record that `kernel` runs with `args` (tensor refs, scalars) on `device`.

        `device=None`: the device where the device tensors among the arguments live, else round-robin over the devices, from the rank
        that `run(device=…)` names or that the coordinator chooses.

        Raises:
            ProgramError: `kernel` is no kernel, the arguments do not fit its parameters, an `In` parameter of the program would be
                written, or there is no such device.
            PlacementError: a device tensor lives on another device.
        """
        self._check_open()
        slots, touches = self._kernel_arguments(kernel, args)
        refs = [arg for arg in args if isinstance(arg, TensorRef)]
        place = self._place(refs, device, f"kernel {kernel.name!r}")
        self._steps.append(RawStep(kernel.name, kernel.function, slots, touches, place))

    def submit_sub(self, callback: Callback, *args: Any) -> None:
        """Record a host callback: a function, an `async` function, or a name that the program declares and the worker binds.

        It gets numpy arrays and scalars, after what produced them and before what overwrites them. An argument counts as read and
        written (an `In` parameter of the program as read) unless the function annotates it. Its value comes back in
        `RunResult.returned`.

        Raises:
            ProgramError: the name is not declared, or the function cannot take the arguments.
        """
        self._check_open()
        function, name = self._callback(callback)
        modes = _callback_modes(function, name, self._program.name, args)
        slots: list[Slot] = []
        touches: list[Touch] = []
        for position, (arg, mode) in enumerate(zip(args, modes, strict=True)):
            where = f"argument {position} of callback {name!r}"
            if isinstance(arg, TensorRef):
                self._check_ref(arg, where)
                if mode is None:
                    mode = Mode.INOUT if arg._writable else Mode.IN
                self._add(slots, touches, arg, mode is not Mode.IN, where)
            elif isinstance(arg, ScalarRef):
                self._check_ref(arg, where)
                slots.append(Slot(Source.ARGUMENT, arg._index))
            else:
                slots.append(Slot(Source.CONSTANT, value=arg))
        self._steps.append(RawStep(name, None, tuple(slots), tuple(touches), None, callback))

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike, device: int | None = None) -> TensorRef:
        """Scratch memory on `device` (`None`: where the next step without a device goes), own to each dispatch, freed at its end."""
        self._check_open()
        place: Place = self._rank(device, "scratch") if device is not None else self._floating(self._turn)
        form, kind = shape_of(shape), np.dtype(dtype)
        if kind.hasobject:
            raise ProgramError(f"scratch of dtype {kind} cannot live on a device; use a dtype without Python objects")
        self._scratch.append(RawScratch(place, form, kind))
        index = len(self._scratch) - 1
        return TensorRef(self, f"scratch{index}", form, kind, Source.SCRATCH, index, device=place, writable=True)

    def copy(self, dst: TensorRef, src: TensorRef) -> None:
        """Record a copy, also between devices and between device and host. Shapes and dtypes are equal."""
        self._check_open()
        for ref, what in ((dst, "dst"), (src, "src")):
            if not isinstance(ref, TensorRef):
                raise ProgramError(f"copy takes tensor refs, got {ref!r} for {what}")
            self._check_ref(ref, f"{what} of copy")
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ProgramError(f"copy needs equal shapes and dtypes, got {dst!r} and {src!r}")
        slots: list[Slot] = []
        touches: list[Touch] = []
        self._add(slots, touches, dst, True, "dst of copy")
        self._add(slots, touches, src, False, "src of copy")
        place = dst._device if dst._device is not None else src._device
        self._steps.append(RawStep("copy", None, tuple(slots), tuple(touches), self._floating(0) if place is None else place))

    # ------------------------------------------------------------------------------------------ arguments

    def _kernel_arguments(self, kernel: Kernel, args: Sequence[Any]) -> tuple[tuple[Slot, ...], tuple[Touch, ...]]:
        if not isinstance(kernel, Kernel):
            hint = "; decorate the function with @kernel" if callable(kernel) else ""
            raise ProgramError(f"submit takes a kernel, got {kernel!r} in program {self._program.name!r}{hint}")
        params = kernel.params
        least = sum(not parameter.optional for parameter in params)
        if not least <= len(args) <= len(params):
            count = f"{len(params)}" if least == len(params) else f"{least} to {len(params)}"
            names = ", ".join(parameter.name for parameter in params)
            raise ProgramError(
                f"kernel {kernel.name!r} takes {count} arguments ({names}), got {len(args)} in program {self._program.name!r}"
            )
        slots: list[Slot] = []
        touches: list[Touch] = []
        for parameter, arg in zip(params, args, strict=False):
            where = f"argument {parameter.name!r} of kernel {kernel.name!r} in program {self._program.name!r}"
            if parameter.array is not None:
                if not isinstance(arg, TensorRef):
                    raise ProgramError(f"{where} must be a tensor ref, got {_kind(arg)}")
                self._check_ref(arg, where)
                _check_form(parameter, arg, where)
                self._add(slots, touches, arg, parameter.writes, where)
            else:
                slots.append(self._scalar(parameter, arg, where))
        return tuple(slots), tuple(touches)

    def _scalar(self, parameter: Parameter, arg: Any, where: str) -> Slot:
        kind = parameter.scalar
        assert kind is not None
        if isinstance(arg, ScalarRef):
            self._check_ref(arg, where)
            if arg._kind is not kind and not (kind is float and arg._kind is int):
                raise ProgramError(f"{where} must be a {kind.__name__}, got the {arg._kind.__name__} {arg._name!r}")
            return Slot(Source.ARGUMENT, arg._index)
        value = scalar_of(arg, kind)
        if value is None:
            raise ProgramError(f"{where} must be a {kind.__name__}, got {_kind(arg)}")
        return Slot(Source.CONSTANT, value=value)

    def _add(self, slots: list[Slot], touches: list[Touch], ref: TensorRef, write: bool, where: str) -> None:
        if write and not ref._writable:
            raise ProgramError(f"{where} is written, but {ref._name!r} is an In parameter of the program; declare it Out or InOut")
        slots.append(Slot(ref._source, ref._index, ref._path, write))
        if ref._range[0] < ref._range[1]:
            touches.append(Touch(ref._source, ref._index, ref._path, *ref._range, write))

    def _check_ref(self, ref: TensorRef | ScalarRef, where: str) -> None:
        if ref._recording is not self:
            raise ProgramError(f"{where} is {ref!r} of another recording; use the refs that this call of the function got")

    def _callback(self, callback: Callback) -> tuple[Callable[..., Any], str]:
        if isinstance(callback, str):
            if callback not in self._program.callbacks:
                raise ProgramError(
                    f"program {self._program.name!r} declares no callback {callback!r}; add it: @program(callbacks=({callback!r},))"
                )
            return self._callbacks[callback], callback
        if isinstance(callback, Kernel) or not callable(callback):
            raise ProgramError(f"submit_sub takes a function or a declared name, got {callback!r}")
        return callback, getattr(callback, "__name__", type(callback).__name__)

    # ------------------------------------------------------------------------------------------ places

    def _place(self, refs: Sequence[TensorRef], device: int | None, what: str) -> Place:
        lives = {ref._device: ref for ref in refs if ref._device is not None}
        if device is not None:
            rank = self._rank(device, what)
            for place, ref in lives.items():
                if place != rank:
                    self._misplaced(ref, f"{what} runs on device {rank}")
            return rank
        if not lives:
            self._turn += 1
            return self._floating(self._turn - 1)
        place, first = next(iter(lives.items()))
        for ref in list(lives.values())[1:]:
            self._misplaced(ref, f"{what} also uses {first._name!r} on {_where(first)}; copy one of them first")
        return place

    def _misplaced(self, ref: TensorRef, why: str) -> None:
        text = f"{ref._name!r} of program {self._program.name!r} lives on {_where(ref)}, but {why}"
        raise PlacementError(text) if ref._source is Source.ARGUMENT else ProgramError(text)

    def _rank(self, device: object, what: str) -> int:
        if isinstance(device, bool) or not isinstance(device, (int, np.integer)):
            raise ProgramError(f"the device of {what} must be an int, got {_kind(device)}")
        if not 0 <= device < self.world_size:
            raise ProgramError(f"{what} names device {device}, but there are devices 0 … {self.world_size - 1} (numbered by rank)")
        return int(device)

    def _floating(self, turn: int) -> Place:
        return 0 if self.world_size == 1 else (turn % self.world_size,)

    def _check_open(self) -> None:
        if not self._open:
            raise ProgramError("the recording has ended; an orchestrator is valid only while the program's function runs")


def record(
    program: Program,
    values: Sequence[TensorRef | ScalarRef | object],
    world_size: int,
    orchestrator: Orchestrator,
) -> Recording:
    """Run the program's function once with what stands for its arguments."""
    try:
        program.function(orchestrator, *values)
    except PyptoActorsError:
        raise
    except Exception as error:
        raise ProgramError(f"program {program.name!r} raised while it was recorded: {type(error).__name__}: {error}") from error
    finally:
        orchestrator._open = False
    return Recording(program.name, world_size, tuple(orchestrator._steps), tuple(orchestrator._scratch))


def shape_of(shape: int | Sequence[int]) -> Shape:
    """A shape as a tuple of ints; a `ProgramError` says what is wrong with it."""
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise ProgramError(f"a shape is made of ints of at least 0, got {size!r} in {shape!r}")
    return tuple(int(size) for size in sizes)


def _check_form(parameter: Parameter, ref: TensorRef, where: str) -> None:
    spec = parameter.array
    assert spec is not None
    if spec.dtype is not None and ref.dtype != spec.dtype:
        raise ProgramError(f"{where} must be {spec.dtype}, got {ref!r}")
    if spec.shape is None:
        return
    if len(ref.shape) != len(spec.shape):
        raise ProgramError(f"{where} must have {len(spec.shape)} dimensions {spec.shape}, got {ref!r}")
    for size, want in zip(ref.shape, spec.shape, strict=True):
        if isinstance(want, int) and size != want:
            raise ProgramError(f"{where} must have the shape {spec.shape}, got {ref!r}")


def _callback_modes(function: Callable[..., Any], name: str, program: str, args: Sequence[Any]) -> list[Mode | None]:
    """For each argument, how the function's annotation says that it is used, or `None`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return [None] * len(args)
    try:
        bound = signature.bind(*args)
    except TypeError as error:
        raise ProgramError(f"callback {name!r} of program {program!r} cannot take the {len(args)} recorded arguments: {error}") from None
    try:
        hints = hints_of(function, None)
    except (ProgramError, TypeError, AttributeError):  # annotations of something else than this package
        hints = {}
    modes: list[Mode | None] = []
    for key, value in bound.arguments.items():
        count = len(value) if signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL else 1
        specs = [extra for extra in getattr(hints.get(key), "__metadata__", ()) if hasattr(extra, "mode")]
        modes += [specs[0].mode if specs else None] * count
    return modes


def _kind(value: object) -> str:
    if isinstance(value, (TensorRef, ScalarRef)):
        return repr(value)
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, bool, str)) else type(value).__name__


def _where(ref: TensorRef) -> str:
    device = ref._device
    return f"device {device}" if isinstance(device, int) else "the device where the dispatch begins"
