"""Copies of host arrays in shared memory, for as long as a device works on them. Pure but for the memory it takes.

Small arrays that are only read, and share their bytes with no other, go with the message instead: what they hold is taken at once.

Views of one dispatch that share memory are copied as one region, so that they go on sharing it. Parts that meet are staged
together, since what one writes before a meeting another may read after it. A dispatch that was handed over behind one on the same
device that writes the same views uses its region, whose bytes will be right by the time; where they are others, it must wait.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from msgspec import Struct

from pypto_actors.addresses import address_of
from pypto_actors.backends.memory import sliced
from pypto_actors.backends.shared_memory import HOST_HEAP, SharedInterconnect
from pypto_actors.backends.slabs import SMALLEST, Block
from pypto_actors.backends.wire import Value
from pypto_actors.executor import plain
from pypto_actors.messages import Dispatch
from pypto_actors.plan import Part, Slot, Source

Array: TypeAlias = np.ndarray[Any, Any]
Key: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str | bytes]  # address, shape, strides, dtype
At: TypeAlias = tuple[int, int]  # part, slot
HostSlot: TypeAlias = tuple[At, Array, bool]  # of a host array: where it is used, what is used of it, and is it written?
MOST_IN_MESSAGE = 4096  # bytes of an array that is only read and goes with the message; more are cheaper to copy than to read


class Extent(Protocol):
    """Bytes `[low, high)` of host memory."""

    @property
    def low(self) -> int: ...
    @property
    def high(self) -> int: ...


V = TypeVar("V", bound=Extent)


class Region(Struct, eq=False):
    """Host bytes `[low, high)` and their copy. `newest`: who writes a view last of those that were handed over."""

    low: int
    high: int
    block: Block
    origin: int  # where `low` is, in the slab
    views: dict[Key, Array]  # in the copy
    newest: dict[Key, int]
    users: int = 0


class Stage(Struct, eq=False):
    """The host arrays of a part, or of all parts that meet in a wave. `waiting`: called when all has been copied in."""

    run: int
    values: dict[At, Value]
    written: dict[At, tuple[Array, Key, Region]]
    regions: list[Region]
    fill: list[tuple[Array, Array]]
    ready: bool = False
    waiting: list[Callable[[], None]] = []

    def filled(self) -> None:
        """All has been copied in."""
        self.ready = True
        self.fill.clear()
        waiting, self.waiting = self.waiting, []
        for go_on in waiting:
            go_on()

    def back(self, part: Part, start: int, stop: int) -> list[tuple[Array, Array]]:
        """What must be copied to the host after steps `[start, stop)` of a part: (target, source)."""
        copies: dict[Key, tuple[Array, Array]] = {}
        if self.written:
            for step in part.steps[start:stop]:
                for slot in step.slots:
                    found = self.written.get((part.index, slot))
                    if found is not None:
                        host, key, region = found
                        if region.newest[key] == self.run:  # else a later dispatch is at it already
                            copies[key] = (host, region.views[key])
        return list(copies.values())


class _View(Struct, eq=False):
    array: Array
    key: Key
    low: int
    high: int
    at: At
    written: bool


class Staging:
    """Makes stages, for one device. Knows the regions that single dispatches have in flight there."""

    def __init__(self, interconnect: SharedInterconnect) -> None:
        self._interconnect = interconnect
        self._heap = interconnect.heap(HOST_HEAP)
        self._flying: list[Region] = []

    def stage(self, message: Dispatch, hosts: Iterable[HostSlot]) -> Stage | None:
        """The stage of some host arrays; `None`: not now, as something in flight writes some of their bytes.

        Raises:
            TypeError: an array holds Python objects.
        """
        values: dict[At, Value] = {}
        groups = grouped(self._views(hosts, values))
        chained = message.plan.sole >= 0
        shared: list[Region | None] = []
        for group in groups:
            region = self._conflict(group) if chained and self._flying else None
            if region is not None and not all(view.key in region.views for view in group):
                return None
            shared.append(region)
        stage = Stage(message.run, values, {}, [], [])
        for group, known in zip(groups, shared, strict=True):
            first = group[0]
            if known is None and len(group) == 1 and not first.written and first.array.nbytes <= MOST_IN_MESSAGE:
                values[first.at] = [first.array.tobytes(), first.array.shape, first.key[3]]
                continue
            region = self._region(group) if known is None else known
            if known is None and chained:
                self._flying.append(region)
            region.users += 1
            stage.regions.append(region)
            self._enter(stage, region, group)
        return stage

    def _views(self, hosts: Iterable[HostSlot], values: dict[At, Value]) -> list[_View]:
        views = []
        for at, array, written in hosts:
            kind = dtype_key(array.dtype)
            address = address_of(array)
            shape, strides = array.shape, array.strides
            if array.size == 0:
                values[at] = (0, 0, shape, None, kind)
                continue
            there = self._interconnect.locate(address)
            if there is not None:
                values[at] = (*there, shape, strides, kind)
                continue
            low = high = address
            for size, stride in zip(shape, strides, strict=True):
                if stride < 0:
                    low += (size - 1) * stride
                else:
                    high += (size - 1) * stride
            views.append(_View(array, (address, shape, strides, kind), low, high + array.itemsize, at, written))
        return views

    def _conflict(self, group: Sequence[_View]) -> Region | None:
        """The region in flight that holds what is to come of a group's bytes."""
        low, high = min(view.low for view in group), max(view.high for view in group)
        for region in reversed(self._flying):
            if region.low < high and low < region.high and region.newest:
                return region
        return None

    def _region(self, group: Sequence[_View]) -> Region:
        low, high = min(view.low for view in group), max(view.high for view in group)
        pad = low % SMALLEST  # the copy is aligned as the array is
        block = self._heap.take(pad + high - low)
        return Region(low, high, block, block.offset + pad, {}, {})

    def _enter(self, stage: Stage, region: Region, group: Iterable[_View]) -> None:
        slab = region.block.slab
        for view in group:
            array = view.array
            offset = region.origin + view.key[0] - region.low
            if view.key not in region.views:
                # the buffer is an array, which the view keeps
                copy: Array = np.ndarray(array.shape, array.dtype, slab.bytes, offset, array.strides)
                region.views[view.key] = copy
                stage.fill.append((copy, array))
            stage.values[view.at] = (slab.number, offset, array.shape, array.strides, dtype_key(array.dtype))
            if view.written:
                region.newest[view.key] = stage.run
                stage.written[view.at] = (array, view.key, region)

    def leave(self, stage: Stage) -> None:
        """All parts of the stage have ended."""
        for region in stage.regions:
            region.users -= 1
            if region.users == 0:
                if region in self._flying:
                    self._flying.remove(region)
                region.views.clear()
                self._heap.give(region.block)


def host_slots(args: Sequence[Any], part: Part, slots: Iterable[tuple[int, Slot]]) -> list[HostSlot]:
    """The host arrays among some slots of a part."""
    hosts = []
    for index, slot in slots:
        if slot.source is Source.ARGUMENT:
            array = args[slot.index]
            if isinstance(array, np.ndarray):
                hosts.append(((part.index, index), sliced(plain(array), slot.path), slot.writable))
    return hosts


def grouped(views: Iterable[V]) -> list[list[V]]:
    """Views that share memory, or might, together."""
    groups: list[list[V]] = []
    high = -1
    for view in sorted(views, key=lambda view: view.low):
        if view.low < high:
            groups[-1].append(view)
        else:
            groups.append([view])
        high = max(high, view.high)
    return groups


def copy_all(copies: Iterable[tuple[Array, Array]]) -> None:
    """Copy each source to its target."""
    for target, source in copies:
        np.copyto(target, source)


def size_of_copies(copies: Iterable[tuple[Array, Array]]) -> int:
    """Bytes."""
    return sum(target.nbytes for target, _ in copies)


@lru_cache(maxsize=1024)
def dtype_key(dtype: np.dtype[Any]) -> str | bytes:
    """A dtype on the wire.

    Raises:
        TypeError: its arrays hold Python objects.
    """
    if dtype.hasobject:
        raise TypeError(f"an array of Python objects cannot cross to the process of a device, got the dtype {dtype}")
    return dtype.str if np.dtype(dtype.str) == dtype and dtype.names is None else pickle.dumps(dtype)
