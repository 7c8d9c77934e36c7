"""Gangs of steps: what a group or a collective becomes in a recording. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pypto_actors import collectives
from pypto_actors.errors import PlacementError, ProgramError
from pypto_actors.plan import Slot, Source
from pypto_actors.refs import Place, TensorRef
from pypto_actors.steps import RawGang, RawStep, Touch

Use = tuple[TensorRef, bool]  # a ref, and whether it is written


def step_of(name: str, function: Callable[..., Any] | None, uses: Sequence[Use], place: Place) -> RawStep:
    """A step of our own making."""
    slots: list[Slot] = []
    touches: list[Touch] = []
    for ref, write in uses:
        add_ref(slots, touches, ref, write)
    return RawStep(name, function, tuple(slots), tuple(touches), place)


def add_ref(slots: list[Slot], touches: list[Touch], ref: TensorRef, write: bool) -> None:
    slots.append(Slot(ref._source, ref._index, ref._path, write))
    if ref._range[0] < ref._range[1]:
        touches.append(Touch(ref._source, ref._index, ref._path, *ref._range, write))


def check_writable(ref: TensorRef, where: str) -> None:
    if not ref._writable:
        raise ProgramError(f"{where} is written, but {ref._name!r} is an In parameter of the program; declare it Out or InOut")


def fixed_device(ref: TensorRef, index: int = -1) -> int:
    """The rank where `ref` lives; host memory is the `index`-th member's. A `ProgramError` for what lives nowhere for certain."""
    if ref._device is None and index >= 0:
        return index
    if not isinstance(ref._device, int):
        raise ProgramError(f"{ref!r} of a collective lives on no certain device; use device tensors, windows, or scratch with device=…")
    return ref._device


def check_members(refs: list[Any], what: str, chunks: bool, world_size: int) -> list[TensorRef]:
    """The refs of a collective: one a device, of one shape and dtype; with `chunks`, their leading dimension is divisible."""
    for ref in refs:
        if not isinstance(ref, TensorRef):
            raise ProgramError(f"{what} takes tensor refs, one a device, got {ref!r}")
    if not refs:
        raise ProgramError(f"{what} takes one or more refs, got none")
    first = refs[0]
    ranks = [fixed_device(ref, index) for index, ref in enumerate(refs)]
    if max(ranks) >= world_size:
        raise ProgramError(f"{what} has {len(refs)} members, one a device, and there are {world_size} devices")
    if len(set(ranks)) != len(ranks):
        placed = next((ref for ref in refs if ref._device is not None and ref._source is Source.ARGUMENT), None)
        if placed is not None:
            raise PlacementError(f"{what} takes refs of different devices, got {placed!r} and others on devices {ranks}")
        raise ProgramError(f"{what} takes refs of different devices, got devices {ranks}")
    for ref in refs:
        if ref.shape != first.shape or ref.dtype != first.dtype:
            raise ProgramError(f"{what} takes refs of one shape and dtype, got {first!r} and {ref!r}")
    if chunks and (not first.shape or first.shape[0] % len(refs)):
        raise ProgramError(f"{what} cuts the leading dimension into {len(refs)} chunks, got the shape {first.shape}")
    return refs


def check_apart(steps: Sequence[RawStep]) -> None:
    """No member of a gang writes what another touches."""
    for index, step in enumerate(steps):
        for other in steps[index + 1 :]:
            for one in step.touches:
                for two in other.touches:
                    same = one.source is two.source and one.index == two.index
                    if same and one.start < two.stop and two.start < one.stop and (one.write or two.write):
                        raise ProgramError(
                            f"members of the gang of kernel {step.name!r} on devices {step.place} and {other.place} share bytes that "
                            "one of them writes; give each member its own, or submit them one after another"
                        )


def _gang(name: str, refs: Sequence[TensorRef], member: Callable[[int], tuple[Callable[..., Any], list[Use]]]) -> RawGang:
    steps = []
    for index, ref in enumerate(refs):
        function, uses = member(index)
        steps.append(step_of(name, function, uses, fixed_device(ref, index)))
    return RawGang(tuple(steps), True)


def _operation(op: str, what: str, dtype: np.dtype[Any]) -> str:
    if not isinstance(op, str) or op not in collectives.OPERATIONS:
        raise ProgramError(f"{what} knows the operations {', '.join(map(repr, collectives.OPERATIONS))}, got {op!r}")
    nothing: np.ndarray[Any, Any] = np.empty(0, dtype)
    try:
        collectives.OPERATIONS[op](nothing, nothing, out=nothing)
    except TypeError:  # numpy's, which says of which loops it has none
        raise ProgramError(f"{what} cannot take the {op!r} of arrays of {dtype}; numpy has no such operation") from None
    return op


def allreduce(refs: Sequence[TensorRef], op: str) -> RawGang:
    operation = _operation(op, "allreduce", refs[0].dtype)
    return _gang("allreduce", refs, lambda i: (partial(collectives.allreduce, i, operation), [(ref, True) for ref in refs]))


def reduce_scatter(refs: Sequence[TensorRef], results: Sequence[TensorRef], op: str) -> RawGang:
    operation = _operation(op, "reduce_scatter", refs[0].dtype)
    return _gang(
        "reduce_scatter",
        refs,
        lambda i: (partial(collectives.reduce_scatter, i, operation), [(results[i], True), *((ref, False) for ref in refs)]),
    )


def broadcast(refs: Sequence[TensorRef], root: int) -> RawGang:
    def member(index: int) -> tuple[Callable[..., Any], list[Use]]:
        if index == root:
            return collectives.stay, [(refs[root], False)]
        return collectives.broadcast, [(refs[root], False), (refs[index], True)]

    return _gang("broadcast", refs, member)


def allgather(refs: Sequence[TensorRef]) -> RawGang:
    return _gang("allgather", refs, lambda i: (partial(collectives.allgather, i), [(ref, True) for ref in refs]))


def all_to_all(refs: Sequence[TensorRef]) -> RawGang:
    return _gang("all_to_all", refs, lambda i: (partial(collectives.all_to_all, i), [(ref, True) for ref in refs]))


def barrier(ranks: Sequence[int]) -> RawGang:
    return RawGang(tuple(RawStep("barrier", collectives.stay, (), (), rank, barrier=True) for rank in ranks), True)
