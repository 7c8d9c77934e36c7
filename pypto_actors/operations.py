"""Memory operations of the coordinator: allocate, copy, free; and watches, which are answered when others have ended. Pure.

They pass through the same hazards as dispatches, but through no queue: a copy waits for what it conflicts with and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol, TypeAlias, assert_never

from pypto_actors.hazards import Hazards
from pypto_actors.health import Health
from pypto_actors.ledger import Ledger
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState
from pypto_actors.messages import Allocate, Commit, Copy, Free, Piece, Read, Release, ToDevice, Transfer, Write
from pypto_actors.values import LIFE, Access, DeviceTensor

End: TypeAlias = Callable[[Record, RunEvent, Failure | None], None]


class Sender(Protocol):
    def send(self, device: int, message: ToDevice) -> None: ...


class Operations:
    """Carries memory operations through their life cycle, for the coordinator that owns the ledger and the hazards."""

    def __init__(
        self,
        ledger: Ledger,
        hazards: Hazards,
        port: Sender,
        end: End,
        memory_freed: Callable[[Iterable[int]], None],
        health: Sequence[Health],
    ) -> None:
        self._ledger = ledger
        self._hazards = hazards
        self._port = port
        self._end = end
        self._memory_freed = memory_freed
        self.health = health
        self._waiting: list[Record] = []  # for a device that is starting again
        self.lost: dict[int, Failure] = {}  # tensors that are gone; who named them before he could know is still to come
        self.watches: list[tuple[Record, set[int]]] = []
        self.watchful = False  # must every end be told of? (there are watches, or a trace)
        self.tracing = False

    def start(self, message: Allocate | Copy | Free, record: Record) -> bool:
        """Enter the hazards; says whether the operation may go at once. What cannot be done ends here."""
        accesses: Sequence[Access]
        failure = self._lost_device(message)
        if isinstance(message, Free):
            accesses = [(tensor.allocation, LIFE, tensor.nbytes, True) for tensor in message.tensors]
        else:
            accesses = message.accesses
            failure = failure or self.lost_among(accesses)
            if failure is None and isinstance(message, Allocate):
                failure = self._ledger.reserve(message.tensors)
            if failure is not None:
                record.message = Copy(record.id, (), ())  # it holds nothing
                self._end(record, RunEvent.FAIL, failure)
                return False
        self._hazards.enter(record, accesses)
        return record.waits == 0

    def lost_among(self, accesses: Iterable[Access]) -> Failure | None:
        """Why some of what is accessed is gone, if it is."""
        return next((self.lost[space] for space, _, _, _ in accesses if space in self.lost), None) if self.lost else None

    def _lost_device(self, message: Allocate | Copy | Free) -> Failure | None:
        for device in _devices(message):
            if self.health[device].lost is not None:
                return self.health[device].lost
        return None

    def free_to_go(self, record: Record) -> None:
        """`record` waits for nothing any more, but perhaps for a device that is starting again."""
        message = record.message
        if isinstance(message, Free):
            record.state = record.state.after(RunEvent.HAND_OVER)
            self._release(message.tensors)
            self._end(record, RunEvent.COMPLETE, None)
            return
        for device in _devices(message):
            if self.health[device].down:
                self._waiting.append(record)
                return
        record.state = record.state.after(RunEvent.HAND_OVER)
        record.at = {}
        if isinstance(message, Allocate):
            for device, tensors in _by_device(message.tensors).items():
                self._sent(record, device)
                self._port.send(device, Commit(record.id, tuple((tensor.allocation, tensor.nbytes) for tensor in tensors), True))
        for piece in message.pieces:
            device = device_of(piece)
            self._sent(record, device)
            self._port.send(device, piece)
        if record.parts == 0:
            self._finish(record)

    def _sent(self, record: Record, device: int) -> None:
        record.parts += 1
        record.at[device] = record.at.get(device, 0) + 1

    def answered(self, record: Record, device: int, failure: Failure | None) -> None:
        """A device has done a piece, or could not."""
        record.at[device] -= 1
        self._answered(record, 1, failure)

    def _answered(self, record: Record, count: int, failure: Failure | None) -> None:
        record.parts -= count
        if failure is not None and record.failure is None:
            record.failure = failure
        if record.parts == 0:
            self._finish(record)

    def died(self, record: Record, device: int, failure: Failure, lost: set[int]) -> None:
        """A device has died; `lost` are the allocations that were there."""
        message = record.message
        if record.state is RunState.RUNNING:
            if record.at.get(device):
                self._answered(record, record.at.pop(device), failure)
            elif record.failure is None and _names(message, lost):
                record.failure = failure  # its other side is gone; the piece under way still has to be answered
        elif _names(message, lost) or (isinstance(message, Allocate) and any(tensor.allocation in lost for tensor in message.tensors)):
            self.give_back(record)
            self._end(record, RunEvent.FAIL, failure)

    def restarted(self) -> None:
        """Devices are there again, or lost for good: who waited for them goes on."""
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            if record.state is RunState.QUEUED:
                failure = self._lost_device(record.message)
                if failure is None:
                    self.free_to_go(record)
                else:
                    self.give_back(record)
                    self._end(record, RunEvent.FAIL, failure)

    def _finish(self, record: Record) -> None:
        if record.failure is None:
            self._end(record, RunEvent.COMPLETE, None)
        else:
            self.give_back(record)
            self._end(record, RunEvent.FAIL, record.failure)

    def give_back(self, record: Record) -> None:
        """An allocation that came to nothing leaves nothing."""
        if isinstance(record.message, Allocate):
            self._release(record.message.tensors)

    def _release(self, tensors: Sequence[DeviceTensor]) -> None:
        self._ledger.release(tensors)
        devices = _by_device(tensors)
        for device, several in devices.items():
            if not self.health[device].down:
                self._port.send(device, Release(tuple(tensor.allocation for tensor in several)))
        self._memory_freed(devices)

    # ------------------------------------------------------------------------------------------ watches

    def watch(self, record: Record, runs: Iterable[int]) -> None:
        """Settle `record` when all of `runs` have ended."""
        record.state = record.state.after(RunEvent.HAND_OVER)
        remaining = set(runs)
        self.watches.append((record, remaining))
        self.watchful = True
        if not remaining:
            self._settle_watches()

    def ended(self, run: int) -> None:
        empty = False
        for _, remaining in self.watches:
            remaining.discard(run)
            empty = empty or not remaining
        if empty:
            self._settle_watches()

    def _settle_watches(self) -> None:
        over = [record for record, remaining in self.watches if not remaining]
        self.watches = [watch for watch in self.watches if watch[1]]
        self.watchful = self.tracing or bool(self.watches)
        for record in over:
            record.state = record.state.after(RunEvent.COMPLETE)
            record.wake()


def _names(message: Allocate | Copy | Free, lost: Container[int]) -> bool:
    """Does it read or write memory that is gone?"""
    return not isinstance(message, Free) and any(access[0] in lost for access in message.accesses)


def device_of(piece: Piece) -> int:
    """Who does a piece of a copy: the device that is written, or read by the host."""
    match piece:
        case Write() | Transfer():
            return piece.target.device
        case Read():
            return piece.source.device
        case _:
            assert_never(piece)


def _devices(message: Allocate | Copy | Free) -> list[int]:
    """The devices that an operation needs."""
    tensors = [] if isinstance(message, Copy) else [tensor.device for tensor in message.tensors]
    pieces = [] if isinstance(message, Free) else [device_of(piece) for piece in message.pieces]
    return sorted({*tensors, *pieces})


def _by_device(tensors: Iterable[DeviceTensor]) -> dict[int, list[DeviceTensor]]:
    devices: dict[int, list[DeviceTensor]] = {}
    for tensor in tensors:
        devices.setdefault(tensor.device, []).append(tensor)
    return devices
