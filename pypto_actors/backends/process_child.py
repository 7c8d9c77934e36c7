"""In the process of a device: take messages in order, call kernels on shared memory, answer. Blocking, one thread for the work.

A second thread takes the file descriptors of new slabs, and ends the process when the parent is gone.
"""

from __future__ import annotations

import functools
import mmap
import os
import pickle
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any

import numpy as np

from pypto_actors.backends.wire import (
    COPY,
    RECEIVE,
    SYNC,
    Came,
    Do,
    Drop,
    End,
    Fill,
    Forget,
    Frames,
    Go,
    Know,
    Learn,
    Map,
    Prepare,
    Ready,
    Run,
    frame,
    to_process,
)
from pypto_actors.collectives import copy
from pypto_actors.messages import Completed, Failed, Message, Reached

# A step made ready: what to call (`None`: a meeting), and with what.
Call = tuple[Callable[..., Any] | None, Sequence[Any]]


class Deserted(Exception):
    """Somebody does not come to the meeting."""


@functools.lru_cache(maxsize=1024)
def dtype_of(key: str | bytes) -> np.dtype[Any]:
    return np.dtype(key) if isinstance(key, str) else pickle.loads(key)


class Known:
    """A part with its values, ready to be called again and again. `values` and `rest`: of one whose calls bring some of them."""

    __slots__ = ("calls", "part", "rest", "simple", "values")

    def __init__(self, part: Prepare, calls: Sequence[Call], values: Sequence[Any] = (), rest: Sequence[int] = ()) -> None:
        self.part = part
        self.calls = calls
        self.simple = len(part.events) == 1 and all(call[0] is not None for call in calls)
        self.values = values
        self.rest = rest


class DeviceProcess:
    """One device: its functions, parts, calls and memory."""

    def __init__(self, messages: int, answers: int, files: socket.socket, rank: int) -> None:
        self._messages = messages
        self._answers = answers
        self._files = files
        self._rank = rank
        self._frames = Frames()
        self._queue: deque[Any] = deque()
        self._new: SimpleQueue[tuple[int, int]] = SimpleQueue()  # (slab, file descriptor)
        self._slabs: dict[int, mmap.mmap] = {}
        self._forget()

    def _forget(self) -> None:
        self._functions: dict[int, Callable[..., Any] | Exception] = {COPY: copy}
        self._parts: dict[int, Prepare] = {}
        self._calls: dict[int, Known | Unknown] = {}

    # ------------------------------------------------------------------------------------------ messages

    def serve(self) -> None:
        threading.Thread(target=self._take_files, name="files", daemon=True).start()
        self._send(Ready(self._rank))
        queue = self._queue
        while True:
            while queue:
                self._receive(queue.popleft())
            queue.extend(self._read())

    def _read(self) -> list[Any]:
        data = os.read(self._messages, RECEIVE)
        if not data:
            end()
        bodies = self._frames.feed(data)
        if len(bodies) == 1:
            return to_process.decode(bodies[0])
        return [message for body in bodies for message in to_process.decode(body)]

    def _send(self, message: Message) -> None:
        try:
            write(self._answers, frame(message))
        except OSError:  # nobody is left to hear it
            end()

    def _take_files(self) -> None:
        while True:
            try:
                number, files, _, _ = socket.recv_fds(self._files, 8, 1)
            except OSError:
                files = []
            if not files:
                os._exit(1)  # the parent is gone, and the kernel in hand may be long
            self._new.put((int.from_bytes(number, "little"), files[0]))

    def _receive(self, message: Any) -> None:
        kind = type(message)
        if kind is Run:
            self._dispatch(message.run, self._calls[message.call])
        elif kind is Do:
            self._dispatch(message.run, self._known(message.part, message.values))
        elif kind is Fill:
            self._dispatch(message.run, self._filled(self._calls[message.call], message.values))
        elif kind is Know:
            self._calls[message.call] = self._known(message.part, message.values, message.rest)
        elif kind is Drop:
            for call in message.calls:
                del self._calls[call]
            for slab in message.slabs:
                del self._slabs[slab]
        elif kind is Map:
            slab, file = self._new.get()
            assert slab == message.slab
            self._slabs[slab] = mmap.mmap(file, message.size)
            os.close(file)
        elif kind is Prepare:
            self._parts[message.number] = message
        elif kind is Learn:
            self._functions[message.number] = learned(message)
        elif kind is Forget:
            self._forget()
        else:
            assert kind is End
            end()

    # ------------------------------------------------------------------------------------------ values

    def _known(self, number: int, values: Sequence[Any], rest: Sequence[int] = ()) -> Known | Unknown:
        """A part with its values; the exception why there is none is the answer to its dispatches."""
        part = self._parts[number]
        try:
            slots = [self._value(value, writable) for value, writable in zip(values, part.writable, strict=True)]
            return Known(part, self._called(part, slots), slots, rest)
        except Exception as error:
            return Unknown(part, error)

    def _filled(self, known: Known | Unknown, values: Sequence[Any]) -> Known | Unknown:
        """The same with the values of the rest."""
        if isinstance(known, Unknown):
            return known
        part = known.part
        try:
            slots = list(known.values)
            for position, value in zip(known.rest, values, strict=True):
                slots[position] = self._value(value, part.writable[position])
            return Known(part, self._called(part, slots))
        except Exception as error:
            return Unknown(part, error)

    def _called(self, part: Prepare, slots: Sequence[Any]) -> list[Call]:
        calls: list[Call] = []
        for function, meeting, positions in part.steps:
            known = None if function == SYNC else self._functions[function]
            if isinstance(known, Exception):
                raise known
            calls.append((known, (meeting,) if known is None else tuple([slots[position] for position in positions])))
        return calls

    def _value(self, value: Any, writable: bool) -> Any:
        if type(value) is bytes:
            return pickle.loads(value)
        if type(value) is not list:
            return value
        if len(value) == 3:
            data, shape, key = value
            return np.ndarray(shape, dtype_of(key), data)  # cannot be written, as its bytes cannot
        slab, offset, shape, strides, key = value
        dtype = dtype_of(key)
        array = np.empty(shape, dtype) if slab == 0 else np.ndarray(shape, dtype, self._slabs[slab], offset, strides)
        if not writable:
            array.flags.writeable = False
        return array

    # ------------------------------------------------------------------------------------------ work

    def _dispatch(self, run: int, known: Known | Unknown) -> None:
        answer: Message
        if type(known) is Known:
            answer = self._execute(run, known) if known.simple else self._step(run, known)
        else:
            assert isinstance(known, Unknown)
            now = monotonic()
            answer = Failed(run, known.part.part, self._rank, 0, known.error, now, now)
        self._send(answer)

    def _execute(self, run: int, known: Known) -> Message:
        """Steps that nobody awaits in between and that meet nobody."""
        started = monotonic()
        number = 0
        try:
            for number, (function, arguments) in enumerate(known.calls):  # noqa: B007 (the step that raised)
                function(*arguments)  # type: ignore[misc]
        except BaseException as error:
            return Failed(run, known.part.part, self._rank, number, error, started, monotonic())
        return Completed(run, known.part.part, self._rank, started, monotonic())

    def _step(self, run: int, known: Known) -> Message:
        part = known.part
        started = monotonic()
        number, event = 0, 0
        last = len(part.events) - 1
        try:
            for number, (function, arguments) in enumerate(known.calls):
                if function is None:
                    self._meet(Came(run, part.part, number))
                else:
                    function(*arguments)
                if event < last and number + 1 == part.events[event]:
                    self._send(Reached(run, part.part, event, monotonic()))
                    event += 1
        except Deserted as error:
            return Failed(run, part.part, self._rank, number, error, started, monotonic(), True)
        except BaseException as error:
            return Failed(run, part.part, self._rank, number, error, started, monotonic())
        return Completed(run, part.part, self._rank, started, monotonic())

    def _meet(self, came: Came) -> None:
        """Wait until all have come; other messages wait meanwhile."""
        self._send(came)
        while True:
            messages = self._read()
            for index, message in enumerate(messages):
                if type(message) is Go:
                    self._queue.extend(messages[:index] + messages[index + 1 :])
                    if not message.met:
                        raise Deserted
                    return
            self._queue.extend(messages)


class Unknown(Exception):
    """A part that cannot be called: a function of it could not be loaded, or its memory not be mapped."""

    def __init__(self, part: Prepare, error: Exception) -> None:
        super().__init__(part, error)
        self.part = part
        self.error = error


def learned(message: Learn) -> Callable[..., Any] | Exception:
    try:
        function: Callable[..., Any] = pickle.loads(message.blob)
    except Exception as error:
        return error
    return function


def end() -> None:
    """The end of the process, whatever threads and exit handlers there are."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the last: none, where it was closed when the process started
            stream.flush()
    os._exit(0)


def write(fd: int, data: bytes) -> None:
    """Write all of it; a handler of a signal may have cut a write short."""
    while (written := os.write(fd, data)) < len(data):
        data = data[written:]


def serve(messages: int, answers: int, files: int, rank: int) -> None:
    """Serve a device; does not return."""
    try:
        DeviceProcess(messages, answers, socket.socket(fileno=files), rank).serve()
    except BaseException as error:
        write(answers, frame(Failed(-1, -1, rank, -1, error, 0.0, 0.0)))
        raise
