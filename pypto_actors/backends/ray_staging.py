"""Host arrays on their way to a device and back. A device keeps a copy of their bytes, a *region*, for as long as calls in flight use it.

Views of one call that share memory go as one region, so that they go on sharing it. A dispatch that was handed over behind one on the
same device that writes the same views uses its region, whose bytes will be right by the time; where they are others, it must wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct

from pypto_actors.accesses import overlaps_itself
from pypto_actors.backends.memory import sliced
from pypto_actors.backends.process_staging import dtype_key, grouped
from pypto_actors.backends.ray_segments import Segment
from pypto_actors.backends.ray_wire import EMPTY, REGION, Value
from pypto_actors.executor import plain
from pypto_actors.messages import Dispatch
from pypto_actors.plan import Source

Array: TypeAlias = np.ndarray[Any, Any]
Key: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str | bytes]  # address, shape, strides, dtype
ALIGN = 16


class View(Struct, eq=False):
    """A host array that a segment uses, by which use, and the bytes `[low, high)` in which it lies."""

    array: Array
    key: Key
    low: int
    high: int
    use: int
    written: bool


class Region(Struct, eq=False):
    """Host bytes `[low, high)` and where each view is in their copy. `newest`: who writes a view last of those that were handed over."""

    number: int
    low: int
    high: int
    places: dict[Key, Value]
    newest: dict[Key, int]
    users: int = 0


class Load(Struct, eq=False):
    """A region whose bytes go with a call: those of one array, or of several in a copy of all between them."""

    region: Region
    views: list[View]
    nbytes: int
    written: bool
    close: bool  # one array, whose elements go close together

    def pack(self) -> Array:
        """The bytes; without a copy where they lie together already."""
        first = self.views[0]
        if self.close:
            array = first.array
            return (array if array.flags.c_contiguous or array.flags.f_contiguous else array.copy("K")).ravel("K").view(np.uint8)
        whole = np.zeros(self.nbytes, np.uint8)
        for view in self.views:
            _, _, offset, shape, strides, _ = self.region.places[view.key]
            copy: Array = np.ndarray(shape, view.array.dtype, whole, offset, strides)  # the buffer is an array, which the view keeps
            np.copyto(copy, view.array)
        return whole


class Stage(Struct, eq=False):
    """The host arrays of one call. `back`: what comes back, each (use, array, its key, its region)."""

    run: int
    values: dict[int, Value]
    loads: list[Load]
    back: list[tuple[int, Array, Key, Region]]
    regions: list[Region]

    @property
    def nbytes(self) -> int:
        return sum(load.nbytes for load in self.loads)

    def copies(self, data: Sequence[Any]) -> list[tuple[Array, Array]]:
        """What must be copied to the host, out of the bytes that came back: (target, source)."""
        copies = []
        for (_, array, key, region), each in zip(self.back, data, strict=True):
            if region.newest[key] == self.run:  # else a later dispatch is at it already
                source: Array = np.frombuffer(each, np.uint8).view(array.dtype).reshape(array.shape)
                copies.append((array, source))
        return copies


class Staging:
    """Makes stages, for one device. Knows the regions that dispatches on that device alone have in flight there."""

    def __init__(self) -> None:
        self._last = 0
        self._flying: list[Region] = []
        self.left: list[int] = []  # regions that nobody uses any more, and which the device still has
        self.left_bytes = 0

    def stage(self, message: Dispatch, segment: Segment) -> Stage | None:
        """The stage of a segment; `None`: not now, as something in flight writes some of its bytes.

        Raises:
            TypeError: an array holds Python objects.
        """
        stage = Stage(message.run, {}, [], [], [])
        groups = grouped(self._views(message, segment, stage.values))
        chained = message.plan.sole >= 0
        regions = [self._conflict(group) if chained else None for group in groups]
        for group, region in zip(groups, regions, strict=True):
            if region is not None and not all(view.key in region.places for view in group):
                return None
        for group, known in zip(groups, regions, strict=True):
            region = known or self._region(stage, group)
            if known is None and chained:
                self._flying.append(region)
            region.users += 1
            stage.regions.append(region)
            returned: set[Key] = set()
            for view in group:
                stage.values[view.use] = region.places[view.key]
                if view.written:
                    region.newest[view.key] = message.run
                    if view.key not in returned:
                        returned.add(view.key)
                        stage.back.append((view.use, view.array, view.key, region))
        return stage

    def _views(self, message: Dispatch, segment: Segment, values: dict[int, Value]) -> list[View]:
        views = []
        for index, use in enumerate(segment.uses):
            slot = segment.part.slots[use.slot]
            array = message.args[slot.index] if slot.source is Source.ARGUMENT else None
            if not isinstance(array, np.ndarray):
                continue
            array = use.of(sliced(plain(array), slot.path))
            if array.dtype.hasobject:
                raise TypeError(f"an array of Python objects cannot cross to a device of Ray, got the dtype {array.dtype}")
            if array.nbytes == 0:
                values[index] = [EMPTY, array.shape, dtype_key(array.dtype)]
                continue
            address = array.__array_interface__["data"][0]
            low, high = address, address + array.itemsize
            for size, stride in zip(array.shape, array.strides, strict=True):
                if stride < 0:
                    low += (size - 1) * stride
                else:
                    high += (size - 1) * stride
            key = (address, array.shape, array.strides, dtype_key(array.dtype))
            views.append(View(array, key, low, high, index, use.writable))
        return views

    def _conflict(self, group: Sequence[View]) -> Region | None:
        """The region in flight that holds what is to come of a group's bytes."""
        low, high = min(view.low for view in group), max(view.high for view in group)
        for region in reversed(self._flying):
            if region.low < high and low < region.high and region.newest:
                return region
        return None

    def _region(self, stage: Stage, group: list[View]) -> Region:
        """A new region, whose bytes go with the call."""
        self._last += 1
        low, high = min(view.low for view in group), max(view.high for view in group)
        region = Region(self._last, low, high, {}, {})
        distinct = {view.key: view for view in group}
        written = any(view.written for view in group)
        array = group[0].array
        if len(distinct) == 1 and not (written and overlaps_itself(array)):  # in the order of its dimensions in memory
            strides = np.empty_like(array, subok=False).strides
            region.places[group[0].key] = [REGION, region.number, 0, array.shape, strides, dtype_key(array.dtype)]
            stage.loads.append(Load(region, [group[0]], array.nbytes, written, True))
            return region
        pad = low % ALIGN  # the copy is aligned as the arrays are
        for view in distinct.values():
            place = [REGION, region.number, pad + view.key[0] - low, view.array.shape, view.array.strides, dtype_key(view.array.dtype)]
            region.places[view.key] = place
        stage.loads.append(Load(region, list(distinct.values()), pad + high - low, written, False))
        return region

    def leave(self, stage: Stage) -> None:
        """The call of a stage has ended."""
        for region in stage.regions:
            region.users -= 1
            if region.users == 0:
                if region in self._flying:
                    self._flying.remove(region)
                self.left.append(region.number)
                self.left_bytes += region.high - region.low

    def take_left(self) -> list[int]:
        left, self.left, self.left_bytes = self.left, [], 0
        return left
