"""What host callbacks see of device memory: copies on the host. What a callback may have written goes back before the next call that
touches it; until then nobody else can look at it, as whatever touches it comes after the callback."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct

from pypto_actors.backends.ray_wire import Put, Range
from pypto_actors.values import DeviceTensor

Array: TypeAlias = np.ndarray[Any, Any]


class Window(Struct, eq=False):
    """Bytes `[start, stop)` of an allocation that have been fetched."""

    allocation: int
    start: int
    stop: int
    written: bool


class Windows:
    """Of one device. One buffer an allocation, of which only what was fetched holds pages, so that views share memory."""

    def __init__(self) -> None:
        self.open: list[Window] = []
        self._copies: dict[int, Array] = {}

    def missing(self, tensor: DeviceTensor) -> Range | None:
        """What must be fetched before `view`."""
        where = range_of(tensor)
        for window in self.open:
            if window.allocation == where[0] and window.start <= where[1] and where[2] <= window.stop:
                return None
        return where if tensor.nbytes else None

    def fill(self, where: Range, data: Any, size: int) -> None:
        """Bytes that have been fetched from an allocation of `size` bytes."""
        allocation, start, stop = where
        copy = self._copies.get(allocation)
        if copy is None:
            copy = self._copies[allocation] = np.zeros(size, np.uint8)
        copy[start:stop] = np.frombuffer(data, np.uint8)
        self.open.append(Window(allocation, start, stop, False))

    def view(self, tensor: DeviceTensor, writable: bool) -> Array:
        """The array that a callback gets."""
        if tensor.nbytes == 0:
            array = np.empty(tensor.shape, tensor.dtype)
        else:
            allocation, start, stop = range_of(tensor)
            if writable:
                for window in self.open:
                    if window.allocation == allocation and window.start <= start and stop <= window.stop:
                        window.written = True
            array = self._copies[allocation][start:stop].view(tensor.dtype).reshape(tensor.shape)
        if not writable:
            array.flags.writeable = False
        return array

    def flush(self, where: Range, keep: bool = False) -> list[Put]:
        """What must be written before something touches these bytes. `keep`: another callback, which may look at the same copy."""
        allocation, low, high = where
        touched = [window for window in self.open if window.allocation == allocation and window.start < high and low < window.stop]
        puts = [
            Put(allocation, window.start, -1, self._copies[allocation][window.start : window.stop].data)
            for window in touched
            if window.written
        ]
        if touched and not keep:
            self.open = [window for window in self.open if window not in touched]
            if all(window.allocation != allocation for window in self.open):
                del self._copies[allocation]
        return puts

    def release(self, allocation: int) -> None:
        self.open = [window for window in self.open if window.allocation != allocation]
        self._copies.pop(allocation, None)


def range_of(tensor: DeviceTensor) -> Range:
    return tensor.allocation, tensor.offset, tensor.offset + tensor.nbytes
