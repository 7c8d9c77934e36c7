"""What bytes the arguments of a call touch, and whether two of them share some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from pypto_actors.addresses import address_of
from pypto_actors.values import HOST, Access, DeviceTensor

Array: TypeAlias = np.ndarray[Any, Any]
MOST_RUNS = 64  # contiguous runs of a host array that are told apart; interleaved arrays of more wait for each other


def host_accesses(array: Array, write: bool) -> list[Access]:
    """The bytes of a host array: its contiguous runs, or, where they are many, all from the lowest to the highest."""
    if array.flags.c_contiguous:
        return [host_access(array, write)]
    run, runs, depth = array.itemsize, array.size, array.ndim
    while depth and array.strides[depth - 1] == run:
        depth -= 1
        run *= array.shape[depth]
        runs //= max(1, array.shape[depth])
    if not 0 < runs <= MOST_RUNS:
        return [host_access(array, write)]
    starts = [0]
    for size, stride in zip(array.shape[:depth], array.strides[:depth], strict=True):
        starts = [start + index * stride for start in starts for index in range(size)]
    address = address_of(array)
    return [(HOST, address + start, address + start + run, write) for start in sorted(set(starts))]


def accesses_of(value: Any, write: bool) -> Sequence[Access]:
    """The bytes of a whole argument."""
    if type(value) is DeviceTensor:
        return (value.writes if write else value.reads,)
    return host_accesses(value, write)


def host_access(array: Array, write: bool) -> Access:
    """The bytes of a host array, from its lowest to its highest."""
    address = address_of(array)
    if array.flags.c_contiguous:
        return (HOST, address, address + array.nbytes, write)
    if array.size == 0:
        return (HOST, address, address, write)
    low = high = 0
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return (HOST, address + low, address + high + array.itemsize, write)


def alias(parts: Sequence[tuple[int, Sequence[Access]]], args: Sequence[Any]) -> bool:
    """Do two arguments share bytes, one of them written? Or does one that is written share bytes with itself?"""
    ordered = sorted((*access, position) for position, accesses in parts for access in accesses)
    for index, (space, _, stop, write, position) in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other[0] != space or other[1] >= stop:
                break
            if other[4] != position and (write or other[3]):
                return True
    return any(
        isinstance(args[position], np.ndarray) and overlaps_itself(args[position])
        for position in {position for position, accesses in parts if any(write for _, _, _, write in accesses)}
    )


def overlaps_itself(array: Array) -> bool:
    """May two elements of the array have bytes in common?"""
    if array.flags.c_contiguous or array.size == 0:
        return False
    extent = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True) if size > 1):
        if stride < extent:
            return True
        extent = stride * (size - 1) + extent
    return False
