"""Handles and records of plain values that cross from room to room. Nothing here holds an array, a future or a task."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeAlias

from msgspec import Struct

from pypto_actors.errors import ArgumentTypeError, ArgumentValueError

if TYPE_CHECKING:
    import numpy as np

    DType: TypeAlias = np.dtype[Any]
else:  # what the coordinator imports loads no numpy; those who look signatures up find this
    DType = Any

Shape: TypeAlias = tuple[int, ...]
HOST = 0  # the address space of host memory; device allocations are numbered from 1


# Bytes that a dispatch or a copy touches: `[start, stop)` of one address space, and whether it writes them.
Access: TypeAlias = tuple[int, int, int, bool]
LIFE = -1  # the byte before an allocation: a free writes it, and so waits for those that name the allocation and touch none of its bytes
# What a plan may depend on of a tensor argument: (device, shape, dtype); host arrays have device -1.
Signature: TypeAlias = tuple[int, Shape, DType]


def access_of(allocation: int, start: int, stop: int, write: bool) -> Access:
    """Some bytes of an allocation, or, if there are none, that it must last."""
    return (allocation, start, stop, write) if start < stop else (allocation, LIFE, 0, False)


class DeviceTensor(Struct, frozen=True, cache_hash=True, gc=False):
    """A handle of memory on one device; a view when it was made by indexing. Frozen and hashable, never an array itself.

    Attributes:
        device: rank of the device where the bytes live.
        shape: the shape; `t[i]` and `t[a:b]` along the leading dimension are views of the same memory.
        dtype: the numpy dtype.
        nbytes: size in bytes.
    """

    device: int
    shape: Shape
    dtype: DType
    allocation: int
    offset: int
    nbytes: int
    view: bool
    signature: Signature
    reads: Access
    writes: Access

    @classmethod
    def of(cls, device: int, shape: Shape, dtype: DType, allocation: int) -> DeviceTensor:
        """The handle of a whole allocation."""
        return cls._at(device, shape, dtype, allocation, 0, nbytes_of(shape, dtype.itemsize), False)

    @classmethod
    def _at(cls, device: int, shape: Shape, dtype: DType, allocation: int, offset: int, nbytes: int, view: bool) -> DeviceTensor:
        stop = offset + nbytes
        return cls(
            device,
            shape,
            dtype,
            allocation,
            offset,
            nbytes,
            view,
            (device, shape, dtype),
            access_of(allocation, offset, stop, False),
            access_of(allocation, offset, stop, True),
        )

    def __getitem__(self, index: SupportsIndex | slice) -> DeviceTensor:
        start, stop, shape = leading(self.shape, index)
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        offset, nbytes = self.offset + start * row, (stop - start) * row
        return DeviceTensor._at(self.device, shape, self.dtype, self.allocation, offset, nbytes, True)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a device tensor without dimensions")
        return self.shape[0]

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise ArgumentTypeError(f"{self!r} is a handle, and no array; read it first: await worker.read(tensor)")

    def __repr__(self) -> str:
        kind = "view of " if self.view else ""
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"<DeviceTensor {kind}#{self.allocation} {shape} {self.dtype} on device {self.device}>"


class Fixed(Struct, frozen=True, eq=False, gc=False):
    """What the calls of a bound program have in common: device tensors, each with memory of its own that no other argument uses.

    They are claimed and looked up together, so that many cost little more than one.

    Attributes:
        accesses: what is touched of them.
        spaces: the allocations.
        rest: the positions of all other arguments: what each call brings, and fixed scalars.
    """

    accesses: tuple[Access, ...]
    spaces: tuple[int, ...]
    rest: frozenset[int]


class StackedDeviceTensor(Struct, frozen=True, cache_hash=True, gc=False):
    """Shards of one array along its leading dimension, shard `i` on `devices[i]`; `x[i]` is the shard.

    Attributes:
        shards: the device tensors, each of `shape[1:]`.
        shape: the shape of the whole, `(len(shards), *shard.shape)`.
        dtype: the numpy dtype.
        devices: the rank of each shard.
    """

    shards: tuple[DeviceTensor, ...]
    shape: Shape
    dtype: DType

    @property
    def signature(self) -> tuple[object, ...]:
        """What a plan may depend on of the tensor as an argument."""
        return (self.devices, self.shape, self.dtype)

    @property
    def devices(self) -> tuple[int, ...]:
        """The rank of each shard."""
        return tuple(shard.device for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Size in bytes, of all shards together."""
        return sum(shard.nbytes for shard in self.shards)

    def __getitem__(self, index: SupportsIndex) -> DeviceTensor:
        if isinstance(index, slice):
            raise ArgumentTypeError(
                f"a stacked tensor has no partial slices, got {index!r}: its shards live on different devices; "
                "take one by its index, or a list of them from .shards"
            )
        start, _, _ = leading(self.shape, index)
        return self.shards[start]

    def __len__(self) -> int:
        return len(self.shards)

    def __repr__(self) -> str:
        return f"<StackedDeviceTensor {'x'.join(map(str, self.shape))} {self.dtype} on devices {list(self.devices)}>"


def leading(shape: Shape, index: object) -> tuple[int, int, Shape]:
    """`(start, stop, shape)` of what `index` takes from the leading dimension of `shape`."""
    if not shape:
        raise IndexError(f"a tensor without dimensions cannot be indexed, got [{index!r}]")
    length = shape[0]
    if isinstance(index, slice):
        start, stop, step = index.indices(length)
        if step != 1:
            raise ArgumentValueError(f"a slice of a tensor must have step 1, got {index!r}; take [start:stop]")
        stop = max(start, stop)
        return start, stop, (stop - start, *shape[1:])
    if isinstance(index, tuple) or index is None or index is Ellipsis or isinstance(index, bool):
        raise ArgumentTypeError(f"a tensor is indexed along its leading dimension only, by an int or a slice, got {index!r}")
    try:
        at = operator.index(index)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(
            f"a tensor is indexed along its leading dimension by an int or a slice, got {type(index).__name__}"
        ) from None
    if not -length <= at < length:
        raise IndexError(f"index {at} is out of range for a leading dimension of {length}")
    at %= length
    return at, at + 1, shape[1:]


def nbytes_of(shape: Shape, itemsize: int) -> int:
    return math.prod(shape) * itemsize
