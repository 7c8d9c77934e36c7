"""Shared memory without names: nothing can be left in /dev/shm, whoever is killed when.

Memory comes in slabs, anonymous files that are as large as they may become and hold pages only where something was written. Blocks
are cut from them by size classes and never merged: address space is plentiful, and a block that is given back keeps no pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct

Array: TypeAlias = np.ndarray[Any, Any]
SMALLEST = 64  # bytes of a block: a line of the cache
PUNCH = 1 << 16  # from here on, bytes given back lose their pages; below they are cleared
PUNCH_ELSEWHERE = 1 << 22  # from here on, in a thread
KEEP_STAGED = 1 << 26  # staging below this keeps its pages for the next one
FIRST_SLAB = 1 << 28
KEEP_SIZE_PUNCH_HOLE = 3  # the flags of fallocate(2)


class Slab:
    """One anonymous file, mapped here; others map it by its file descriptor."""

    __slots__ = ("address", "bytes", "fd", "number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.fd = -1
        try:
            self.fd = os.memfd_create(f"pypto_actors-{number}")
            os.ftruncate(self.fd, size)
            self.bytes: Array = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
        except (OSError, ValueError, OverflowError) as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise MemoryError(f"no shared memory of {size} bytes: {error}") from error
        self.address: int = self.bytes.__array_interface__["data"][0]

    def punch(self, offset: int, nbytes: int) -> None:
        """Give the pages back; they read as zero. Without the GIL."""
        if _fallocate(self.fd, KEEP_SIZE_PUNCH_HOLE, offset, nbytes) != 0:
            self.bytes[offset : offset + nbytes] = 0

    def close(self) -> None:
        """The file ends when nobody maps it any more."""
        os.close(self.fd)
        self.fd = -1


class Block(Struct, frozen=True, eq=False):
    """Bytes that belong to somebody. `size`: of its class."""

    heap: Heap
    slab: Slab
    offset: int
    size: int
    nbytes: int

    def array(self) -> Array:
        return self.slab.bytes[self.offset : self.offset + self.nbytes]


class Heap:
    """Blocks on one device, or of the host. All free bytes are zero, except where `zeroed` is off."""

    def __init__(self, new_slab: Callable[[int], Slab], elsewhere: Callable[[Callable[[], None]], None], zeroed: bool = True) -> None:
        self._new_slab = new_slab
        self._elsewhere = elsewhere
        self._zeroed = zeroed
        self._free: dict[int, list[tuple[Slab, int]]] = {}
        self._next = 0
        self.slabs: list[Slab] = []

    def take(self, nbytes: int) -> Block:
        """Bytes of a block. Raises `MemoryError`."""
        size = max(SMALLEST, 1 << (nbytes - 1).bit_length())
        free = self._free.get(size)
        if free:
            slab, offset = free.pop()
            return Block(self, slab, offset, size, nbytes)
        align = min(size, mmap.PAGESIZE)
        offset = -(-self._next // align) * align
        if not self.slabs or offset + size > self.slabs[-1].size:
            self.slabs.append(self._new_slab(max(FIRST_SLAB << len(self.slabs), size)))
            offset = 0
        self._next = offset + size
        return Block(self, self.slabs[-1], offset, size, nbytes)

    def give(self, block: Block) -> None:
        """A block is free again."""
        if self._zeroed and block.size < PUNCH:
            block.array()[...] = 0
        elif block.size >= (PUNCH_ELSEWHERE if self._zeroed else KEEP_STAGED):
            self._elsewhere(lambda: self._punch(block))
            return
        elif self._zeroed:
            block.slab.punch(block.offset, block.size)
        self._put(block)

    def clear(self) -> None:
        """Nothing is taken or given any more."""
        self._free.clear()
        self.slabs.clear()

    def _punch(self, block: Block) -> None:
        if block.slab.fd >= 0:
            block.slab.punch(block.offset, block.size)
            self._put(block)

    def _put(self, block: Block) -> None:
        self._free.setdefault(block.size, []).append((block.slab, block.offset))


_libc = ctypes.CDLL(None, use_errno=True)


def _fallocate(fd: int, mode: int, offset: int, nbytes: int) -> int:
    call = getattr(_libc, "fallocate", None)
    return -1 if call is None else int(call(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(nbytes)))
