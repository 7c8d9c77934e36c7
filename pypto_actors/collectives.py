"""What steps of our own compute: copies, and each member of a collective, between a meeting of all before and one after. Only numpy.

Every member does its own share for all (a reduce-scatter and an all-gather in one where memory is shared), always from rank 0
upwards, so that floating-point results are the same in each run and on each backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Operation = Callable[..., Any]

OPERATIONS: dict[str, Operation] = {"sum": np.add, "max": np.maximum, "min": np.minimum, "prod": np.multiply}
BLOCK = 1 << 16  # bytes of each member that are worked on at a time: they stay in the cache


def allreduce(member: int, operation: str, *refs: Array) -> None:
    """Reduce the member's share of the elements and give it to all."""
    reduce_into = OPERATIONS[operation]
    # what is not contiguous, as host memory may be, is taken and put back by its flat index
    flat = [ref.reshape(-1) if ref.flags.c_contiguous else ref.flat for ref in refs]
    start, stop = _share(refs[0].size, member, len(flat))
    step = max(1, BLOCK // refs[0].itemsize)
    first = 1 if isinstance(flat[0], np.ndarray) else 0
    with np.errstate(all="ignore"):  # an overflow is a value, and a warning would be nobody's here
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            total: Array = flat[0][begin:end]
            for other in flat[1:]:
                reduce_into(total, other[begin:end], out=total)
            for other in flat[first:]:
                other[begin:end] = total


def reduce_scatter(member: int, operation: str, result: Array, *refs: Array) -> None:
    """Reduce chunk `member` of the leading dimension into `result`."""
    reduce_into = OPERATIONS[operation]
    chunk = refs[0].shape[0] // len(refs)
    mine = slice(member * chunk, (member + 1) * chunk)
    result[...] = refs[0][mine]
    with np.errstate(all="ignore"):
        for other in refs[1:]:
            reduce_into(result, other[mine], out=result)


def broadcast(root: Array, ref: Array) -> None:
    """Take the root's values."""
    ref[...] = root


def allgather(member: int, *refs: Array) -> None:
    """Take chunk `i` of the leading dimension from `refs[i]`."""
    chunk = refs[0].shape[0] // len(refs)
    for index, other in enumerate(refs):
        if index != member:
            part = slice(index * chunk, (index + 1) * chunk)
            refs[member][part] = other[part]


def all_to_all(member: int, *refs: Array) -> None:
    """Exchange chunk `j` of the member with chunk `member` of `refs[j]`, for the pairs that are the member's to do."""
    count = len(refs)
    chunk = refs[0].shape[0] // count
    for index in range(count):
        # each pair is done once, and every member does about as many
        if index == member or (index > member) != ((index + member) % 2 == 0):
            continue
        mine, other = refs[member][index * chunk : (index + 1) * chunk], refs[index][member * chunk : (member + 1) * chunk]
        kept = mine.copy()
        mine[...] = other
        other[...] = kept


def copy(target: Array, source: Array) -> None:
    """Take the source's values, as they were before."""
    # numpy looks for no overlap between one-dimensional arrays whose strides have one sign, which is right where these are equal
    if target.ndim == 1 and target.strides != source.strides and np.may_share_memory(target, source):
        source = source.copy()
    np.copyto(target, source)


def stay(*_: Array) -> None:
    """Only be there: the root of a broadcast, a member of a barrier."""


def clear(array: Array) -> None:
    """Zero a window that outlives its dispatch."""
    array[...] = 0


def _share(size: int, member: int, count: int) -> tuple[int, int]:
    return size * member // count, size * (member + 1) // count
