"""Device memory as the parent knows it, of one device: zeroed, copied, fetched and given back by calls beside its kernels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pypto_actors.backends.ray_ledger import Ledger
from pypto_actors.backends.ray_link import Link, Lost
from pypto_actors.backends.ray_windows import Windows, range_of
from pypto_actors.backends.ray_wire import INLINE, Get, Make, Move, Put, Range, encoder
from pypto_actors.errors import DeviceFailedError
from pypto_actors.executor import Answer
from pypto_actors.messages import Commit, Completed, Failed, Piece, Read, Transfer, Write
from pypto_actors.values import DeviceTensor

Array: TypeAlias = np.ndarray[Any, Any]
LARGE_COPY = 1 << 18  # bytes; from here on a copy on the host takes longer than the way to a thread and back
Elsewhere: TypeAlias = Callable[[Callable[[], Any], Callable[[Any], None]], None]  # work in a thread, then go on here


class RayMemory:
    """`elsewhere(work, then)` has work done in a thread; `peers` are all devices' memories by rank."""

    def __init__(
        self,
        rank: int,
        link: Link,
        ledger: Ledger,
        clock: Callable[[], float],
        post: Callable[[Answer], None],
        elsewhere: Elsewhere,
        peers: Mapping[int, RayMemory],
    ) -> None:
        self._rank = rank
        self._link = link
        self._ledger = ledger
        self._clock = clock
        self.post = post
        self._elsewhere = elsewhere
        self._peers = peers
        self.windows = Windows()
        self.dead = False

    # ------------------------------------------------------------------------------------------ zeroed

    def commit(self, message: Commit) -> None:
        items = self._ledger.make(message.items)
        if not message.reply:
            if items:
                self._ledger.out.append(Make(items))
            return
        started = self._clock()

        def made(result: Any) -> Answer | None:
            return self._answer(message.run, -1, result, started)

        self._link.io(encoder.encode([Make(list(message.items), True)]), (), made)

    def release(self, allocations: Sequence[int]) -> None:
        for allocation in allocations:
            self.windows.release(allocation)
        self._ledger.release(allocations)

    def _answer(self, run: int, part: int, result: Any, started: float) -> Answer | None:
        if isinstance(result, Lost):
            return None
        now = self._clock()
        if isinstance(result, Exception):
            return Failed(run, part, self._rank, -1, result, started, now)
        return Completed(run, part, self._rank, started, now)

    def scratch(self, allocation: int, nbytes: int) -> None:
        """Scratch that another device, or a callback, uses, perhaps before its own message has come."""
        self._ledger.scratch(allocation, nbytes)

    # ------------------------------------------------------------------------------------------ copied

    def copy(self, message: Piece) -> None:
        started = self._clock()

        def done(result: Any) -> Answer | None:
            return self._answer(message.run, message.part, result, started)

        try:
            match message:
                case Write():
                    self._write(message, done)
                case Read():
                    self._read(message, done)
                case Transfer():
                    self._transfer(message, done)
        except Exception as error:
            self.post(Failed(message.run, message.part, self._rank, -1, error, started, self._clock()))

    def _write(self, message: Write, done: Callable[[Any], Answer | None]) -> None:
        target, source = message.target, message.source
        if target.nbytes <= INLINE:
            data = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
            self._put(target, -1, data.data if data.size else memoryview(b""), (), done)
            return

        def packed(ref: Any) -> None:
            if not self.dead:
                if isinstance(ref, Exception):
                    self._hand_in(done(ref))
                else:
                    self._put(target, 0, memoryview(b""), (ref,), done)

        self._elsewhere(lambda: put_array(np.ascontiguousarray(source).reshape(-1).view(np.uint8)), packed)

    def _put(self, target: DeviceTensor, blob: int, data: memoryview, blobs: Sequence[Any], done: Callable[[Any], Answer | None]) -> None:
        before = self._touched(target)
        where = range_of(target)
        self._link.io(encoder.encode([*before, Put(where[0], where[1], blob, data)]), blobs, done)

    def _read(self, message: Read, done: Callable[[Any], Answer | None]) -> None:
        source, target = message.source, message.target

        def copy(result: Any) -> None:
            np.copyto(target, np.frombuffer(result, np.uint8).view(source.dtype).reshape(source.shape))

        def came(result: Any) -> Answer | None:
            if isinstance(result, Exception) or self.dead:
                return done(result)
            if source.nbytes > LARGE_COPY:
                self._elsewhere(lambda: copy(result), lambda end: None if self.dead else self._hand_in(done(end)))
                return None
            try:
                if source.nbytes:
                    copy(result)
            except Exception as error:
                return done(error)
            return done(None)

        ranges = [range_of(source)] if source.nbytes else []
        self._link.io(encoder.encode([*self._touched(source), Get(ranges)]), (), came)

    def _transfer(self, message: Transfer, done: Callable[[Any], Answer | None]) -> None:
        target, source = message.target, message.source
        if source.device == self._rank:
            before = [*self._touched(source), *self._touched(target)]
            self._link.io(encoder.encode([*before, Move(range_of(target), range_of(source))]), (), done)
        elif source.nbytes == 0:
            self._link.io(encoder.encode([]), (), done)
        else:
            ref = self._peers[source.device].fetch([source], in_order=False)
            self._put(target, 0, memoryview(b""), (ref,), done)

    def _hand_in(self, answer: Answer | None) -> None:
        if answer is not None:
            self.post(answer)

    def _touched(self, tensor: DeviceTensor) -> list[Any]:
        """What must be done before bytes are used beside the kernels: memory that is still to come, and what callbacks wrote."""
        return [*self._ledger.remade([tensor.allocation]), *self.windows.flush(range_of(tensor))]

    def fetch(self, tensors: Sequence[DeviceTensor], in_order: bool) -> Any:
        """Bytes of this device for another one, as a ref. `in_order`: after what was sent to the kernels, and before what will be.

        Raises:
            DeviceFailedError: the device has died.
        """
        if self.dead:
            raise DeviceFailedError(f"device {self._rank} has died")
        before = [message for tensor in tensors for message in self._touched(tensor)]
        ranges = [range_of(tensor) for tensor in tensors]
        if in_order:
            before = self._ledger.take_out() + before
        return self._link.fetch(encoder.encode([*before, Get(ranges)]), in_order)

    # ------------------------------------------------------------------------------------------ seen by callbacks

    def look(self, tensor: DeviceTensor) -> asyncio.Future[None] | None:
        """Fetch what a callback is to see of a tensor; done when `window` has it. `None`: it has it."""
        where = self.windows.missing(tensor)
        if where is None or self.dead:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def came(result: Any) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(DeviceFailedError(f"device {self._rank} died ({result})") if isinstance(result, Lost) else result)
            else:
                self._seen(where, result)
                future.set_result(None)

        self._link.io(self._looking(where), (), came)
        return future

    def window(self, tensor: DeviceTensor, writable: bool) -> Array:
        """What a callback sees of a tensor. Where nobody has fetched it before, it is waited for: milliseconds, beside the kernels."""
        where = self.windows.missing(tensor)
        if self.dead:
            raise DeviceFailedError(f"device {self._rank} has died")
        if where is not None:
            self._seen(where, self._link.wait(self._link.fetch(self._looking(where), False)))
        return self.windows.view(tensor, writable)

    def _looking(self, where: Range) -> bytes:
        return encoder.encode([*self._ledger.remade([where[0]]), *self.windows.flush(where, keep=True), Get([where])])

    def _seen(self, where: Range, data: Any) -> None:
        self.windows.fill(where, data, self._ledger.size(where[0]))


def put_array(array: Array) -> Any:
    """An array into Ray's object store; its ref. In a thread: it copies."""
    import ray

    return ray.put(array)
