"""What crosses between a worker and the Ray actor of a device: frames of frozen Structs, and arrays beside them.

A value of a slot is a scalar, `bytes` (a pickled value), or a list that says where an array lives:
`[TENSOR, allocation, offset, shape, dtype]`, `[REGION, region, offset, shape, strides, dtype]` (a host array),
`[BLOB, blob, offset, shape, dtype]` (fetched from another device) or `[EMPTY, shape, dtype]`. A blob is an argument of the call.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from pypto_actors.backends.wire import Learn, Run, Wire, decode_error, encode_error
from pypto_actors.messages import Completed, Failed

TENSOR, REGION, BLOB, EMPTY = 0, 1, 2, 3
COPY = -1  # in place of the number of a function
INLINE = 1 << 16  # bytes that go inside of a frame; what is larger goes as an array beside it, by Ray's object store

Value: TypeAlias = Any
Range: TypeAlias = tuple[int, int, int]  # allocation, start, stop


class Prepare(Wire, frozen=True, tag=2, gc=False):
    """A segment of a part: the steps, each a function and the positions of its values, from step `first` of the part."""

    number: int
    part: int
    first: int
    steps: list[tuple[int, tuple[int, ...]]]
    writable: list[bool]


class Know(Wire, frozen=True, tag=3, gc=False):
    """A segment with its values: a call that will come again and again."""

    call: int
    segment: int
    values: list[Value]


class Parcel(Struct, frozen=True, array_like=True, eq=False, gc=False):
    """Host bytes that come with a call, or room for them: a region, which stays until `Leave`. `blob` -1: the bytes are in `data`."""

    region: int
    writable: bool
    blob: int
    data: memoryview


class Do(Wire, frozen=True, tag=5, gc=False):
    """Dispatch a segment with these values. `back`: the values that are to be sent back, as they are afterwards."""

    run: int
    segment: int
    values: list[Value]
    parcels: list[Parcel] = msgspec.field(default_factory=list)
    back: list[int] = msgspec.field(default_factory=list)


class Make(Wire, frozen=True, tag=6, gc=False):
    """Zeroed memory: (allocation, bytes). `now`: it is to be there before the answer."""

    items: list[tuple[int, int]]
    now: bool = False


class Free(Wire, frozen=True, tag=7, gc=False):
    """Memory given back."""

    allocations: list[int]


class Drop(Wire, frozen=True, tag=8, gc=False):
    """Calls that do not come again."""

    calls: list[int]


class Leave(Wire, frozen=True, tag=9, gc=False):
    """Regions that are not used any more."""

    regions: list[int]


class Forget(Wire, frozen=True, tag=10, gc=False):
    """All functions, segments and calls: there have been too many."""


class Put(Wire, frozen=True, tag=11, gc=False):
    """Bytes into memory, from byte `start` on: `data`, or those of a blob."""

    allocation: int
    start: int
    blob: int
    data: memoryview


class Get(Wire, frozen=True, tag=12, gc=False):
    """Give these bytes, one after another."""

    ranges: list[Range]


class Move(Wire, frozen=True, tag=13, gc=False):
    """Bytes from one place of the memory to another."""

    target: Range
    source: Range


ToDevice: TypeAlias = Learn | Prepare | Know | Run | Do | Make | Free | Drop | Leave | Forget | Put | Get | Move


class Wrote(Struct, frozen=True, tag=True, eq=False, gc=False, array_like=True):
    """A part is done, or failed, and what it has written in host arrays comes with it: here, or as arrays beside the frame."""

    answer: Completed | Failed
    data: list[memoryview]


FromDevice: TypeAlias = Completed | Failed | Wrote


encoder = msgspec.msgpack.Encoder(enc_hook=encode_error)
to_device = msgspec.msgpack.Decoder(list[ToDevice])
from_device = msgspec.msgpack.Decoder(FromDevice, dec_hook=decode_error)
