"""Makes calls of one device out of segments: brings their values together, sends them, and takes what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct

from pypto_actors.backends.process_staging import copy_all, dtype_key, size_of_copies
from pypto_actors.backends.ray_crossing import Fetched
from pypto_actors.backends.ray_ledger import Ledger
from pypto_actors.backends.ray_link import Link, Lost
from pypto_actors.backends.ray_memory import LARGE_COPY, Elsewhere, RayMemory, put_array
from pypto_actors.backends.ray_segments import Segment
from pypto_actors.backends.ray_staging import Array, Stage, Staging
from pypto_actors.backends.ray_windows import range_of
from pypto_actors.backends.ray_wire import BLOB, INLINE, Do, Leave, Parcel, Value, Wrote, encoder, from_device
from pypto_actors.backends.wire import Run
from pypto_actors.errors import DeviceFailedError, InternalError
from pypto_actors.executor import Answer
from pypto_actors.messages import Completed, Dispatch, Failed
from pypto_actors.plan import Source
from pypto_actors.values import DeviceTensor

NOTHING = memoryview(b"")
Done: TypeAlias = Callable[[Answer], Answer | None]


class Sending(Struct, eq=False):
    """A segment on its way to the device. `blobs`: refs of what comes from other devices, then those of host arrays."""

    message: Dispatch
    segment: Segment
    number: int
    stage: Stage | None
    values: list[Value]
    blobs: list[Any]
    parcels: list[Parcel] = []
    fault: Exception | None = None  # why its host arrays could not be taken


class Caller:
    """Of one device. `elsewhere(work, then)` has work done in a thread; `peers` are all devices' memories by rank."""

    def __init__(
        self,
        rank: int,
        link: Link,
        ledger: Ledger,
        memory: RayMemory,
        clock: Callable[[], float],
        elsewhere: Elsewhere,
        peers: Mapping[int, RayMemory],
    ) -> None:
        self._rank = rank
        self._link = link
        self._ledger = ledger
        self._memory = memory
        self._clock = clock
        self._elsewhere = elsewhere
        self._peers = peers
        self._staging = Staging()
        self._offset = 0.0  # from the clock of the device to ours; it stays 0 on one machine

    # ------------------------------------------------------------------------------------------ values

    def prepare(self, message: Dispatch, segment: Segment, fetched: Fetched, in_order: bool) -> Sending | None:
        """Bring the values of a segment together; what other devices have of them is asked for. `None`: not now.

        Raises:
            DeviceFailedError: one of those devices has died.
            TypeError: a function, or an array of Python objects, cannot cross.
        """
        number = self._ledger.segment(segment)
        stage = None
        slots = segment.part.slots
        arguments = [slots[use.slot].index for use in segment.uses if slots[use.slot].source is Source.ARGUMENT]
        if any(isinstance(message.args[index], np.ndarray) for index in arguments):
            stage = self._staging.stage(message, segment)
            if stage is None:
                return None
        sending = Sending(message, segment, number, stage, [], [])
        try:
            self._fetch(sending, self._values(sending), fetched, in_order)
        except BaseException:
            if stage is not None:
                self._staging.leave(stage)
            raise
        return sending

    def _values(self, sending: Sending) -> dict[int, list[tuple[int, DeviceTensor]]]:
        """Enter the values; gives what lives on other devices, by device: (position, tensor)."""
        message, part, values = sending.message, sending.segment.part, sending.values
        staged = sending.stage.values if sending.stage is not None else {}
        foreign: dict[int, list[tuple[int, DeviceTensor]]] = {}
        for index, use in enumerate(sending.segment.uses):
            value = staged.get(index)
            if value is None:
                slot = part.slots[use.slot]
                value = self._ledger.value(use, slot, message)
                if type(value) is DeviceTensor:
                    if slot.source is Source.SCRATCH:
                        self._peers[value.device].scratch(value.allocation, message.plan.scratch[slot.index].nbytes)
                    if value.device != self._rank and value.nbytes:
                        if use.writable:
                            raise InternalError(f"step of device {self._rank} writes {value!r}")
                        foreign.setdefault(value.device, []).append((index, value))
                    else:
                        if self._memory.windows.open:
                            self._ledger.out += self._memory.windows.flush(range_of(value))
                        value = self._ledger.place(value)
            values.append(value)
        return foreign

    def _fetch(self, sending: Sending, foreign: Mapping[int, list[tuple[int, DeviceTensor]]], fetched: Fetched, in_order: bool) -> None:
        for device, uses in foreign.items():
            tensors = [tensor for _, tensor in uses]
            key = (device, *map(range_of, tensors))
            ref = fetched.get(key)
            if ref is None:
                ref = fetched[key] = self._peers[device].fetch(tensors, in_order)
            offset = 0
            for index, tensor in uses:
                sending.values[index] = [BLOB, len(sending.blobs), offset, tensor.shape, dtype_key(tensor.dtype)]
                offset += tensor.nbytes
            sending.blobs.append(ref)

    # ------------------------------------------------------------------------------------------ there

    def run(self, message: Dispatch, number: int, done: Done) -> None:
        """Dispatch a known call."""
        windows, out = self._memory.windows, self._ledger.out
        if windows.open:
            for tensor in message.args:
                out += windows.flush(range_of(tensor))
        messages = (*self._ledger.take_out(), Run(message.run, number)) if out else (Run(message.run, number),)
        self._link.do(encoder.encode(messages), (), partial(self._ran, message, self._clock(), done))

    def pack(self, sending: Sending, packed: Callable[[], None]) -> bool:
        """Take the bytes of host arrays; `False`: they are many, and `packed` is called later, on the loop."""
        stage = sending.stage
        if stage is None or stage.nbytes <= INLINE:
            try:
                loads = stage.loads if stage is not None else ()
                sending.parcels = [Parcel(load.region.number, load.written, -1, load.pack().data) for load in loads]
            except Exception as error:
                sending.fault = error
            return True
        loads = stage.loads

        def taken(refs: Any) -> None:
            if isinstance(refs, Exception):
                sending.fault = refs
            else:
                numbered = enumerate(loads, len(sending.blobs))
                sending.parcels = [Parcel(load.region.number, load.written, blob, NOTHING) for blob, load in numbered]
                sending.blobs += refs
            packed()

        self._elsewhere(lambda: [put_array(load.pack()) for load in loads], taken)
        return False

    def send(self, sending: Sending, done: Done) -> None:
        """Send a segment; `done` gets the answer."""
        message, stage = sending.message, sending.stage
        ledger = self._ledger
        if sending.fault is not None:
            answer = self._taken(sending, done, self._fault(message, sending.fault), ())
            if answer is not None:
                self._memory.post(answer)
            return
        if stage is None and ledger.keeps(message, sending.segment.part):
            self.run(message, ledger.keep(message, sending.number, sending.values), done)
            return
        self._leave_regions()
        back = [use for use, _, _, _ in stage.back] if stage is not None else []
        call = Do(message.run, sending.number, sending.values, sending.parcels, back)
        frame = encoder.encode([*ledger.take_out(), call])
        self._link.do(frame, sending.blobs, partial(self._answered, sending, self._clock(), done))

    def _leave_regions(self) -> None:
        left = self._staging.take_left()
        if left:
            self._ledger.out.append(Leave(left))

    @property
    def untidy(self) -> int:
        """Bytes that the device has to give back, and about which it is still to be told."""
        return self._staging.left_bytes + self._ledger.freed_bytes

    def tidy(self) -> None:
        """Tell it."""
        self._leave_regions()
        out = self._ledger.take_out()
        if out:
            self._link.tell(encoder.encode(out))

    # ------------------------------------------------------------------------------------------ and back

    def _ran(self, message: Dispatch, sent: float, done: Done, result: Any) -> Answer | None:
        if type(result) is bytes:
            return done(self._stamped(from_device.decode(result), sent))
        if isinstance(result, Lost):
            return None
        return done(self._fault(message, result))

    def _answered(self, sending: Sending, sent: float, done: Done, result: Any) -> Answer | None:
        if isinstance(result, Lost):
            return None
        if isinstance(result, Exception):
            return self._taken(sending, done, self._fault(sending.message, result), ())
        frame, *arrays = result if isinstance(result, list) else (result,)
        came = from_device.decode(frame)
        if isinstance(came, Wrote):
            return self._taken(sending, done, self._stamped(came.answer, sent), arrays or came.data)
        return self._taken(sending, done, self._stamped(came, sent), ())

    def _taken(self, sending: Sending, done: Done, answer: Answer, data: Any) -> Answer | None:
        """Bring to the host what has been written, then hand the answer on."""
        stage = sending.stage
        if stage is None:
            return done(answer)
        copies = stage.copies(data) if data else []
        if size_of_copies(copies) <= LARGE_COPY:
            return self._brought(stage, done, _bring(copies, answer, sending.segment))

        def copied(last: Any) -> None:
            if not self._memory.dead:
                ready = self._brought(stage, done, last)
                if ready is not None:
                    self._memory.post(ready)

        self._elsewhere(lambda: _bring(copies, answer, sending.segment), copied)
        return None

    def _brought(self, stage: Stage, done: Done, answer: Answer) -> Answer | None:
        self._staging.leave(stage)
        return done(answer)

    def _fault(self, message: Dispatch, error: Exception) -> Failed:
        """A call that has come to nothing: not its kernels', but what it needs could not be brought, or Ray could not."""
        now = self._clock()
        return Failed(message.run, message.part, self._rank, -1, error, now, now, isinstance(error, DeviceFailedError))

    def _stamped(self, answer: Completed | Failed | Wrote, sent: float) -> Completed | Failed:
        """An answer with times of our clock. It ran between the sending and now, which tells how far the clocks are apart."""
        assert not isinstance(answer, Wrote)
        now = self._clock()
        self._offset = min(max(self._offset, sent - answer.started), now - answer.finished)
        if self._offset:
            times = {"started": answer.started + self._offset, "finished": answer.finished + self._offset}
            return msgspec.structs.replace(answer, **times)
        return answer


def _bring(copies: list[tuple[Array, Array]], answer: Answer, segment: Segment) -> Answer:
    """Copy to the host; what cannot be copied, as its array cannot be written any more, fails the part."""
    try:
        copy_all(copies)
    except Exception as error:
        if isinstance(answer, Completed):
            return Failed(answer.run, answer.part, answer.device, segment.stop - 1, error, answer.started, answer.finished)
    return answer
