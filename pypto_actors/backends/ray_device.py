"""In the Ray actor of a device: its memory, its functions, and the calls of kernels on it. Knows nothing of Ray."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeAlias

import numpy as np

from pypto_actors.backends.ray_wire import (
    BLOB,
    COPY,
    EMPTY,
    INLINE,
    REGION,
    TENSOR,
    Do,
    Drop,
    Forget,
    Free,
    Get,
    Know,
    Leave,
    Make,
    Move,
    Parcel,
    Prepare,
    Put,
    Range,
    ToDevice,
    Wrote,
    encoder,
    to_device,
)
from pypto_actors.backends.wire import Learn, Run
from pypto_actors.collectives import copy
from pypto_actors.messages import Completed, Failed

Array: TypeAlias = np.ndarray[Any, Any]
# A step made ready: what to call, and with what.
Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any]]
Known: TypeAlias = tuple[Prepare, Sequence[Call] | Exception]  # the exception why it cannot be called


@functools.lru_cache(maxsize=1024)
def dtype_of(key: str | bytes) -> np.dtype[Any]:
    return np.dtype(key) if isinstance(key, str) else pickle.loads(key)


class RayDevice:
    """One device. `do` is called by two threads, for kernels and for copies; they share nothing but the memory."""

    def __init__(self, rank: int, blas_threads: int | None = None) -> None:
        self._rank = rank
        self._sizes: dict[int, int] = {}  # of each allocation, bytes
        self._buffers: dict[int, Array] = {}  # made when they are used
        self._regions: dict[int, Array] = {}
        self._forget()
        if blas_threads is not None:
            _limit_threads(blas_threads)

    def _forget(self) -> None:
        self._functions: dict[int, Callable[..., Any] | Exception] = {COPY: copy}
        self._segments: dict[int, Prepare] = {}
        self._calls: dict[int, Known] = {}

    def do(self, frame: bytes, blobs: Sequence[Any]) -> Any:
        """Do what a frame says; gives the answer of its last message, if that has one."""
        result: Any = None
        for message in to_device.decode(frame):
            match message:
                case Run():
                    result = self._dispatch(message.run, self._calls[message.call])
                case Do():
                    result = self._do(message, blobs)
                case Get():
                    result = self._get(message.ranges)
                case _:
                    self._learn(message, blobs)
        return result

    def _learn(self, message: ToDevice, blobs: Sequence[Any]) -> None:
        match message:
            case Put():
                data = as_bytes(message.data if message.blob < 0 else blobs[message.blob])
                self._bytes(message.allocation)[message.start : message.start + data.size] = data
            case Move():
                self._range(message.target)[...] = self._range(message.source)
            case Make():
                self._sizes.update(message.items)
                if message.now:
                    for allocation, _ in message.items:
                        self._bytes(allocation)
            case Free():
                for allocation in message.allocations:
                    self._sizes.pop(allocation, None)
                    self._buffers.pop(allocation, None)
            case Know():
                self._calls[message.call] = self._known(message.segment, message.values, ())
            case Prepare():
                self._segments[message.number] = message
            case Learn():
                self._functions[message.number] = learned(message)
            case Drop():
                for call in message.calls:
                    del self._calls[call]
            case Leave():
                for region in message.regions:
                    self._regions.pop(region, None)
            case _:
                assert isinstance(message, Forget)
                self._forget()

    # ------------------------------------------------------------------------------------------ memory

    def _bytes(self, allocation: int) -> Array:
        buffer = self._buffers.get(allocation)
        if buffer is None:  # calloc: pages are committed when they are touched. The other thread may have come first.
            buffer = self._buffers.setdefault(allocation, np.zeros(self._sizes[allocation], np.uint8))
        return buffer

    def _range(self, where: Range) -> Array:
        return self._bytes(where[0])[where[1] : where[2]]

    def _get(self, ranges: Sequence[Range]) -> Any:
        """Bytes: inside of the answer when they are few, else as an array, which Ray copies before the next call."""
        parts = [self._range(where) for where in ranges]
        if not parts:
            return b""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint8)])
        return whole.tobytes() if whole.size <= INLINE else whole

    # ------------------------------------------------------------------------------------------ values

    def _known(self, number: int, values: Sequence[Any], blobs: Sequence[Any]) -> Known:
        segment = self._segments[number]
        try:
            slots = [self._value(value, writable, blobs) for value, writable in zip(values, segment.writable, strict=True)]
            return segment, self._ready(segment, slots)
        except Exception as error:
            return segment, error

    def _ready(self, segment: Prepare, slots: Sequence[Any]) -> list[Call]:
        calls: list[Call] = []
        for number, positions in segment.steps:
            function = self._functions[number]
            if isinstance(function, Exception):
                raise function
            calls.append((function, tuple([slots[position] for position in positions])))
        return calls

    def _value(self, value: Any, writable: bool, blobs: Sequence[Any]) -> Any:
        if type(value) is bytes:
            return pickle.loads(value)
        if type(value) is not list:
            return value
        array: Array
        where, *place = value
        if where == TENSOR:
            allocation, offset, shape, key = place
            array = np.ndarray(shape, dtype_of(key), self._bytes(allocation), offset)
        elif where == REGION:
            region, offset, shape, strides, key = place
            array = np.ndarray(shape, dtype_of(key), self._regions[region], offset, strides)
        elif where == BLOB:
            blob, offset, shape, key = place
            array = np.ndarray(shape, dtype_of(key), as_bytes(blobs[blob]), offset)
            if not array.flags.aligned:
                array = array.copy()
        else:
            assert where == EMPTY
            shape, key = place
            array = np.empty(shape, dtype_of(key))
        if not writable:
            array.flags.writeable = False
        return array

    def _unpack(self, parcel: Parcel, blobs: Sequence[Any]) -> None:
        inside = parcel.blob < 0  # bytes in a frame are not aligned
        data = as_bytes(parcel.data if inside else blobs[parcel.blob])
        self._regions[parcel.region] = data.copy() if inside or parcel.writable else data

    # ------------------------------------------------------------------------------------------ work

    def _do(self, message: Do, blobs: Sequence[Any]) -> Any:
        for parcel in message.parcels:
            self._unpack(parcel, blobs)
        segment = self._segments[message.segment]
        try:
            slots = [self._value(value, writable, blobs) for value, writable in zip(message.values, segment.writable, strict=True)]
            calls = self._ready(segment, slots)
        except Exception as error:
            return self._dispatch(message.run, (segment, error))
        answer = self._execute(message.run, segment, calls)
        if not message.back:
            return encoder.encode(answer)
        back: list[Array] = [np.ascontiguousarray(slots[index]).reshape(-1).view(np.uint8) for index in message.back]
        if sum(array.size for array in back) <= INLINE:
            return encoder.encode(Wrote(answer, [array.data for array in back]))
        return [encoder.encode(Wrote(answer, [])), *back]

    def _dispatch(self, run: int, known: Known) -> bytes:
        segment, calls = known
        if isinstance(calls, Exception):
            now = monotonic()
            return encoder.encode(Failed(run, segment.part, self._rank, segment.first, calls, now, now))
        return encoder.encode(self._execute(run, segment, calls))

    def _execute(self, run: int, segment: Prepare, calls: Sequence[Call]) -> Completed | Failed:
        started = monotonic()
        number = 0
        try:
            for number, (function, arguments) in enumerate(calls):  # noqa: B007 (the step that raised)
                function(*arguments)
        except BaseException as error:
            return Failed(run, segment.part, self._rank, segment.first + number, error, started, monotonic())
        return Completed(run, segment.part, self._rank, started, monotonic())


def as_bytes(data: Any) -> Array:
    """Bytes as an array, without a copy."""
    if isinstance(data, np.ndarray):
        return data
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def learned(message: Learn) -> Callable[..., Any] | Exception:
    try:
        function: Callable[..., Any] = pickle.loads(message.blob)
    except Exception as error:
        return error
    return function


def _limit_threads(count: int) -> None:
    """Ray may hand over a process in which numpy was loaded before its environment was set; where it can be helped, it is."""
    try:
        import threadpoolctl
    except ImportError:
        return
    if any(pool["num_threads"] != count for pool in threadpoolctl.threadpool_info()):
        threadpoolctl.threadpool_limits(count)
