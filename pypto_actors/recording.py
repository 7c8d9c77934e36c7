"""Recording: a program's function runs once, and an `Orchestrator` writes down its steps, with what each reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pypto_actors import collectives
from pypto_actors.errors import PlacementError, ProgramError, text_of
from pypto_actors.gangs import (
    all_to_all,
    allgather,
    allreduce,
    barrier,
    broadcast,
    check_apart,
    check_members,
    check_writable,
    fixed_device,
    reduce_scatter,
    step_of,
)
from pypto_actors.plan import Source
from pypto_actors.program import Kernel, Program
from pypto_actors.refs import Place, ScalarRef, TensorRef, WindowRef
from pypto_actors.step_arguments import callback_arguments, check_ref, kernel_arguments, kind_of
from pypto_actors.steps import Callback, RawGang, RawScratch, RawStep, Recording
from pypto_actors.values import Shape

Form: TypeAlias = tuple[Shape, np.dtype[Any]]


class Orchestrator:
    """What a program's function records with. Valid while the function runs.

    Attributes:
        world_size: how many devices there are; they are numbered by rank from 0.
    """

    def __init__(
        self,
        program: Program,
        world_size: int,
        callbacks: Mapping[str, Callable[..., Any]],
        persistent: bool = False,
        reset_windows: bool = True,
        forms: Mapping[str, Form] = {},
    ) -> None:
        self.world_size = world_size
        self.forms = dict(forms)  # of the persistent windows that the program has already
        self._persistent = persistent
        self._reset_windows = reset_windows
        self._windows: dict[str, WindowRef] = {}
        self._program = program
        self._callbacks = callbacks
        self._steps: list[RawStep | RawGang] = []
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
        slots, touches = kernel_arguments(self, self._program, kernel, args)
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
        slots, touches = callback_arguments(self, self._program, function, name, args)
        self._steps.append(RawStep(name, None, slots, touches, None, callback))

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike, device: int | None = None) -> TensorRef:
        """Scratch memory on `device` (`None`: where the next step without a device goes), own to each dispatch, freed at its end.

        Its bytes are zero. Raises `ProgramError` for a shape, dtype or device that cannot be.
        """
        self._check_open()
        place: Place = self._rank(device, "scratch") if device is not None else self._floating(self._turn)
        return self._scratch_ref(f"scratch{len(self._scratch)}", shape_of(shape), np.dtype(dtype), place)

    def copy(self, dst: TensorRef, src: TensorRef) -> None:
        """Record a copy, also between devices and between device and host.

        Raises:
            ProgramError: shapes or dtypes differ, `dst` is an `In` parameter, or one of them is no tensor ref of this recording.
        """
        self._check_open()
        for ref, what in ((dst, "dst"), (src, "src")):
            if not isinstance(ref, TensorRef):
                raise ProgramError(f"copy takes tensor refs, got {ref!r} for {what}")
            check_ref(self, ref, f"{what} of copy")
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ProgramError(f"copy needs equal shapes and dtypes, got {dst!r} and {src!r}")
        check_writable(dst, "dst of copy")
        place = dst._device if dst._device is not None else src._device
        self._steps.append(step_of("copy", None, [(dst, True), (src, False)], self._floating(0) if place is None else place))

    def submit_group(self, kernel: Kernel, args_list: Sequence[Sequence[Any]], devices: Sequence[int]) -> None:
        """Record a gang: `kernel` with `args_list[i]` on `devices[i]`; it starts on all of them at the same time, or on none.

        Raises:
            ProgramError: as `submit`; also no members, another number of devices, a device twice, or a member that writes what another
                member touches.
            PlacementError: a device tensor lives on another device.
        """
        self._check_open()
        members = [tuple(args) for args in args_list]
        ranks = [self._rank(device, f"the gang of kernel {_name(kernel)}") for device in devices]
        if not members or len(members) != len(ranks):
            raise ProgramError(
                f"a gang has one or more members and a device for each, got {len(members)} argument lists and devices {ranks}"
            )
        if len(set(ranks)) != len(ranks):
            raise ProgramError(f"a gang has one member a device, got devices {ranks}")
        steps = []
        for args, rank in zip(members, ranks, strict=True):
            slots, touches = kernel_arguments(self, self._program, kernel, args)
            self._place([arg for arg in args if isinstance(arg, TensorRef)], rank, f"kernel {kernel.name!r}")
            steps.append(RawStep(kernel.name, kernel.function, slots, touches, rank))
        check_apart(steps)
        self._steps.append(RawGang(tuple(steps), False))

    def window(self, name: str, shape: int | Sequence[int], dtype: npt.DTypeLike, devices: Sequence[int] | None = None) -> WindowRef:
        """One zeroed buffer on each device (or on `devices`), indexed by rank: `window[rank]`.

        Own to each dispatch; on a worker with `persistent=True` one for each program and name, as long as the worker lives.

        Raises:
            ProgramError: the name stands for another shape or dtype already, or there is no such device.
        """
        self._check_open()
        form, kind = shape_of(shape), np.dtype(dtype)
        ranks = range(self.world_size) if devices is None else [self._rank(device, f"window {name!r}") for device in devices]
        if not isinstance(name, str) or not name:
            raise ProgramError(f"the name of a window is a str, got {name!r}")
        known = self._windows.get(name)
        if known is not None and (known.shape != form or known.dtype != kind):
            raise ProgramError(f"window {name!r} has shape {known.shape} and dtype {known.dtype}; it cannot be {form} {kind} as well")
        if self._persistent and self.forms.setdefault(name, (form, kind)) != (form, kind):
            raise ProgramError(
                f"window {name!r} has shape {self.forms[name][0]} and dtype {self.forms[name][1]} since another recording of program "
                f"{self._program.name!r}, and is persistent; it cannot be {form} {kind} as well: give it another name"
            )
        window = self._windows.setdefault(name, WindowRef(name, form, kind))
        for rank in ranks:
            if rank not in window.refs:
                ref = window.refs[rank] = self._scratch_ref(f"{name}[{rank}]", form, kind, rank, name if self._persistent else "")
                if self._persistent and self._reset_windows:
                    step = step_of("clear window", collectives.clear, [(ref, True)], rank)
                    self._steps.append(step)
        return window

    def allreduce(self, refs: Iterable[TensorRef], op: str = "sum") -> None:
        """Reduce over `refs`, one a device and of one shape and dtype, in place: all hold the result. `op`: `sum`, `max`, `min`, `prod`.

        The order of the reduction is that of the ranks, so that floating-point results are always the same.

        Raises:
            ProgramError: the refs are not of one shape and dtype, not of different devices, or not written; or numpy has no such operation.
            PlacementError: arguments that live on one device.
        """
        self._collective(allreduce(self._members(refs, "allreduce"), op))

    def reduce_scatter(self, refs: Iterable[TensorRef], op: str = "sum") -> list[TensorRef]:
        """Reduce over `refs`; gives chunk `i` of the leading dimension of the result on the device of `refs[i]`, as new scratch.

        `op` and errors as of `allreduce`; the leading dimension must be divisible by the number of refs.
        """
        members = self._members(refs, "reduce_scatter", chunks=True, written=False)
        shape = (members[0].shape[0] // len(members), *members[0].shape[1:])
        devices = [fixed_device(ref, index) for index, ref in enumerate(members)]
        results = [
            self._scratch_ref(f"chunk of {ref._name}", shape, ref.dtype, device) for ref, device in zip(members, devices, strict=True)
        ]
        self._collective(reduce_scatter(members, results, op))
        return results

    def broadcast(self, refs: Iterable[TensorRef], root: int = 0) -> None:
        """All of `refs` take the values of `refs[root]` (an index of a ref, not a rank), in place; errors as of `allreduce`."""
        members = self._members(refs, "broadcast")
        if isinstance(root, ScalarRef):
            root._used()
        if isinstance(root, bool) or not isinstance(root, (int, np.integer)) or not 0 <= root < len(members):
            raise ProgramError(f"the root of broadcast is the index of a ref, 0 … {len(members) - 1}, got {root!r}")
        self._collective(broadcast(members, int(root)))

    def allgather(self, refs: Iterable[TensorRef]) -> None:
        """In place: chunk `i` of the leading dimension, which is divisible, comes from `refs[i]`; errors as of `allreduce`."""
        self._collective(allgather(self._members(refs, "allgather", chunks=True)))

    def all_to_all(self, refs: Iterable[TensorRef]) -> None:
        """In place: chunk `j` of the leading dimension, which is divisible, of `refs[i]` becomes chunk `i` of `refs[j]`."""
        self._collective(all_to_all(self._members(refs, "all_to_all", chunks=True)))

    def barrier(self, devices: Sequence[int] | None = None) -> None:
        """Later steps on `devices` (default: all) wait for all earlier ones on them. `ProgramError`: there is no such device."""
        self._check_open()
        ranks = sorted({self._rank(device, "barrier") for device in (range(self.world_size) if devices is None else devices)})
        if not ranks:
            return
        self._steps.append(barrier(ranks))

    # ------------------------------------------------------------------------------------------ members and scratch

    def _members(self, refs: Iterable[TensorRef], what: str, chunks: bool = False, written: bool = True) -> list[TensorRef]:
        self._check_open()
        members = check_members(list(refs), what, chunks, self.world_size)
        for ref in members:
            check_ref(self, ref, f"a ref of {what}")
            if written:
                check_writable(ref, f"a ref of {what}")
        return members

    def _collective(self, gang: RawGang) -> None:
        self._steps.append(gang)

    def _scratch_ref(self, name: str, shape: Shape, dtype: np.dtype[Any], place: Place, window: str = "") -> TensorRef:
        if dtype.hasobject:
            raise ProgramError(f"{name} of dtype {dtype} cannot live on a device; use a dtype without Python objects")
        self._scratch.append(RawScratch(place, shape, dtype, window))
        return TensorRef(self, name, shape, dtype, Source.SCRATCH, len(self._scratch) - 1, device=place, writable=True)

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
        if isinstance(device, ScalarRef):
            device._used()
        if isinstance(device, bool) or not isinstance(device, (int, np.integer)):
            raise ProgramError(f"the device of {what} must be an int, got {kind_of(device)}")
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
    except (ProgramError, PlacementError):
        raise
    except Exception as error:  # also an index that is none, which is an ArgumentError elsewhere
        raise ProgramError(f"program {program.name!r} raised while it was recorded: {text_of(error)}") from error
    finally:
        orchestrator._open = False
    return Recording(program.name, world_size, tuple(orchestrator._steps), tuple(orchestrator._scratch))


def shape_of(shape: int | Sequence[int]) -> Shape:
    """A shape as a tuple of ints; a `ProgramError` says what is wrong with it."""
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    for size in sizes:
        if isinstance(size, ScalarRef):
            size._used()
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
            raise ProgramError(f"a shape is made of ints of at least 0, got {size!r} in {shape!r}")
    return tuple(int(size) for size in sizes)


def _name(kernel: object) -> str:
    return repr(getattr(kernel, "name", kernel))


def _where(ref: TensorRef) -> str:
    device = ref._device
    return f"device {device}" if isinstance(device, int) else "the device where the dispatch begins"
