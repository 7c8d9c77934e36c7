"""What crosses between a worker and the process of a device: frozen Structs, encoded by msgspec.

To the device go compact forms of the messages of `messages.py` (a plan and its functions are sent once); back come these messages
themselves. A frame is its length in four bytes, and msgpack: an array of messages to the device, one message from it.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from pypto_actors.errors import shown, text_of
from pypto_actors.messages import Completed, Failed, Message, Reached

RECEIVE = 1 << 16  # bytes that are read at a time; for more, each buffer would be mapped and unmapped again
HEADER = 4
ORDER: Literal["little"] = "little"  # bytes of the length
COPY, SYNC = -1, -2  # in place of the number of a function

# A value of a slot: a scalar, `bytes` (a pickled value), or an array: where it lies, as [slab, offset, shape, strides, dtype] (slab 0:
# an empty array), or what it holds, as [bytes, shape, dtype].
Value: TypeAlias = Any


class Wire(Struct, frozen=True, array_like=True, eq=False, gc=False):
    """Base of what goes to a device's process."""


class Learn(Wire, frozen=True, tag=1, gc=False):
    """A function, by value; it is called by its number from here on."""

    number: int
    blob: bytes


class Prepare(Wire, frozen=True, tag=2, gc=False):
    """A part of a plan. Each step: (function, number of the meeting, positions in the slot table)."""

    number: int
    part: int
    steps: list[tuple[int, int, tuple[int, ...]]]
    writable: list[bool]
    events: tuple[int, ...]


class Know(Wire, frozen=True, tag=3, gc=False):
    """A part with its values: a call that will come again and again. `rest`: the slots whose values come with each call."""

    call: int
    part: int
    values: list[Value]
    rest: list[int] = []


class Run(Wire, frozen=True, tag=4, gc=False):
    """Dispatch a known call."""

    run: int
    call: int


class Do(Wire, frozen=True, tag=5, gc=False):
    """Dispatch a part with these values."""

    run: int
    part: int
    values: list[Value]


class Go(Wire, frozen=True, tag=6, gc=False):
    """The end of a meeting: have all come?"""

    met: bool


class Map(Wire, frozen=True, tag=7, gc=False):
    """A slab of memory; its file descriptor comes by the socket."""

    slab: int
    size: int


class Drop(Wire, frozen=True, tag=8, gc=False):
    """Calls and slabs that do not come again."""

    calls: list[int]
    slabs: list[int] = []


class Forget(Wire, frozen=True, tag=9, gc=False):
    """All functions, parts and calls: there have been too many."""


class End(Wire, frozen=True, tag=10, gc=False):
    """No more work."""


class Fill(Wire, frozen=True, tag=11, gc=False):
    """Dispatch a known call, with the values of its rest."""

    run: int
    call: int
    values: list[Value]


class Ready(Message, frozen=True, tag=True, eq=False, gc=False):
    """The process of a device has started."""

    rank: int


class Came(Message, frozen=True, tag=True, eq=False, gc=False):
    """A part has come to a meeting of devices, which is its step `step`, and waits for `Go`."""

    run: int
    part: int
    step: int


ToProcess: TypeAlias = Learn | Prepare | Know | Run | Fill | Do | Go | Map | Drop | Forget | End
FromProcess: TypeAlias = Completed | Failed | Reached | Came | Ready


class KernelErrorStandIn(RuntimeError):
    """Stands for an exception of a kernel that could not cross between processes; the text says which and why."""


def pack_error(error: BaseException) -> bytes:
    """An exception with where it was raised, of its own type if that can be pickled."""
    try:
        place = "".join(traceback.format_exception(error))
        told = "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # of the error's own methods
        place = told = text_of(error)
    try:
        blob = _dumps(error)
    except Exception as why:
        told += f"\n(a stand-in: the original {type(error).__qualname__} cannot be pickled: {text_of(why)})"
        blob = b""
    return pickle.dumps((blob, f"{type(error).__module__}.{type(error).__qualname__}", told, place))


def unpack_error(packed: bytes) -> BaseException:
    """The exception; where that cannot be made again, a stand-in that says so."""
    blob, kind, told, place = pickle.loads(packed)
    error: BaseException
    try:
        error = pickle.loads(blob) if blob else KernelErrorStandIn(told)
        if not isinstance(error, BaseException):
            raise TypeError(f"it became {shown(error)}")
    except BaseException as why:
        error = KernelErrorStandIn(f"{told}\n(a stand-in: the original {kind} cannot be unpickled here: {text_of(why)})")
    error.add_note(f"in the process of its device:\n{place}")
    return error


def _dumps(error: BaseException) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:
        import cloudpickle

        blob: bytes = cloudpickle.dumps(error)
        return blob


def encode_error(value: Any) -> bytes:
    """What msgspec calls for what it does not know: exceptions cross as they can."""
    if isinstance(value, BaseException):
        return pack_error(value)
    raise TypeError(f"{value!r} does not cross between processes")


def decode_error(kind: type, value: Any) -> Any:
    """And back."""
    if kind is BaseException:
        return unpack_error(value)
    raise TypeError(f"{kind!r} does not cross between processes")


encoder = msgspec.msgpack.Encoder(enc_hook=encode_error)
to_process = msgspec.msgpack.Decoder(list[ToProcess])
from_process = msgspec.msgpack.Decoder(FromProcess, dec_hook=decode_error)


class Frames:
    """Cuts what comes out of a pipe into the bodies of frames."""

    __slots__ = ("_end", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of a frame that is not whole
        self._size = 0  # of them together
        self._end = 0  # where it ends, or before that, if its head is not whole

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._end:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        size = len(data)
        end = HEADER + int.from_bytes(data[:HEADER], ORDER)
        if end == size:  # one frame, as most often
            return [data[HEADER:]]
        bodies: list[bytes] = []
        start = 0
        while end <= size:
            bodies.append(data[start + HEADER : end])
            start = end
            end = start + HEADER + int.from_bytes(data[start : start + HEADER], ORDER)
        if start < size:
            self._parts.append(data[start:])
            self._size = size - start
            self._end = end - start
        return bodies


def frame(message: Any) -> bytes:
    """A frame with a message, or with a list of them."""
    body = encoder.encode(message)
    return len(body).to_bytes(HEADER, ORDER) + body
