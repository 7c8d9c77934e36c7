"""A part cut into segments: what a device does in one call of its actor. A segment ends where the part meets others, where an event
is awaited, or with the part. Pure.

Devices of a cluster do not share memory, so what a step reads of another device is fetched before its segment, and a step never writes
it: collectives, whose members work for each other where memory is shared, become steps of which each fills its own memory only. They
combine the same elements in the same order, so that their results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from msgspec import Struct

from pypto_actors import collectives
from pypto_actors.plan import Part, Sync
from pypto_actors.values import DeviceTensor

Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T", Array, DeviceTensor)
Function: TypeAlias = Callable[..., Any] | None


class Use(Struct, frozen=True):
    """What a segment uses: slot `slot` of the part, whole, or chunk `chunk` of `chunks` of its leading dimension."""

    slot: int
    writable: bool
    chunk: int = 0
    chunks: int = 1

    def of(self, whole: T) -> T:
        """What it names of the value of its slot, an array or a tensor."""
        if self.chunks == 1:
            return whole
        size = whole.shape[0] // self.chunks
        return whole[self.chunk * size : (self.chunk + 1) * size]


class Segment(Struct, frozen=True, eq=False):
    """Steps `[first, stop)` of a part. `sync`: the meeting at its end; `event`: the event that its end is, or -1."""

    part: Part
    first: int
    stop: int
    uses: tuple[Use, ...]
    steps: tuple[tuple[Function, tuple[int, ...]], ...]  # positions are of uses
    sync: Sync | None
    event: int
    last: bool


def segments_of(part: Part) -> tuple[Segment, ...]:
    """The segments of a part, in order; some may have no steps."""
    segments: list[Segment] = []
    first, events = 0, part.events[:-1]
    for number, step in enumerate(part.steps):
        sync = step.function if isinstance(step.function, Sync) else None
        event = events.index(number + 1) if number + 1 in events else -1
        if sync is not None:
            segments.append(_segment(part, first, number, sync, event))
        elif event >= 0:
            segments.append(_segment(part, first, number + 1, None, event))
        else:
            continue
        first = number + 1
    if first < len(part.steps) or not segments:
        segments.append(_segment(part, first, len(part.steps), None, -1))
    end = segments[-1]
    segments[-1] = Segment(part, end.first, end.stop, end.uses, end.steps, end.sync, end.event, True)
    return tuple(segments)


def _segment(part: Part, first: int, stop: int, sync: Sync | None, event: int) -> Segment:
    uses: dict[Use, int] = {}
    steps = []
    for step in part.steps[first:stop]:
        function, needed = _rewritten(part, step.function, step.slots)
        steps.append((function, tuple([uses.setdefault(use, len(uses)) for use in needed])))
    return Segment(part, first, stop, tuple(uses), tuple(steps), sync, event, False)


def _rewritten(part: Part, function: Function, slots: tuple[int, ...]) -> tuple[Function, list[Use]]:
    """A step as it is done where no memory is shared: what it calls, and with what."""
    if isinstance(function, partial) and function.func in _COLLECTIVES:
        return _COLLECTIVES[function.func](slots, *function.args)
    return function, [Use(slot, part.slots[slot].writable) for slot in slots]


def _allreduce(slots: tuple[int, ...], member: int, operation: str) -> tuple[Function, list[Use]]:
    return partial(reduce_all, operation, member), [Use(slot, index == member) for index, slot in enumerate(slots)]


def _reduce_scatter(slots: tuple[int, ...], member: int, operation: str) -> tuple[Function, list[Use]]:
    result, *refs = slots
    return partial(reduce_into, operation), [Use(result, True), *(Use(slot, False, member, len(refs)) for slot in refs)]


def _allgather(slots: tuple[int, ...], member: int) -> tuple[Function, list[Use]]:
    others = [Use(slot, False, index, len(slots)) for index, slot in enumerate(slots) if index != member]
    return partial(take_chunks, member), [Use(slots[member], True), *others]


def _all_to_all(slots: tuple[int, ...], member: int) -> tuple[Function, list[Use]]:
    others = [Use(slot, False, member, len(slots)) for index, slot in enumerate(slots) if index != member]
    return partial(take_chunks, member), [Use(slots[member], True), *others]


_COLLECTIVES: dict[Callable[..., None], Callable[..., tuple[Function, list[Use]]]] = {
    collectives.allreduce: _allreduce,
    collectives.reduce_scatter: _reduce_scatter,
    collectives.allgather: _allgather,
    collectives.all_to_all: _all_to_all,
}


# ------------------------------------------------------------------------------------------ on the device


def reduce_all(operation: str, member: int, *refs: Array) -> None:
    """Reduce into `refs[member]`."""
    combine = collectives.OPERATIONS[operation]
    flat = [ref.reshape(-1) if ref.flags.c_contiguous else ref.flat for ref in refs]
    mine, size = flat[member], refs[member].size
    step = max(1, collectives.BLOCK // max(1, refs[member].itemsize))
    for begin in range(0, size, step):
        part = slice(begin, min(begin + step, size))
        total: Array = flat[0][part].copy()
        for other in flat[1:]:
            combine(total, other[part], out=total)
        mine[part] = total


def reduce_into(operation: str, result: Array, *chunks: Array) -> None:
    """Reduce `chunks` into `result`."""
    combine = collectives.OPERATIONS[operation]
    result[...] = chunks[0]
    for other in chunks[1:]:
        combine(result, other, out=result)


def take_chunks(member: int, ref: Array, *others: Array) -> None:
    """Take all chunks of the leading dimension but the member's own, each from another member."""
    chunk = ref.shape[0] // (len(others) + 1)
    for index, other in enumerate(others):
        at = index + (index >= member)
        ref[at * chunk : (at + 1) * chunk] = other
