"""Memory operations of the coordinator: allocate, copy, free; and watches, which are answered when others have ended. Pure.

They pass through the same hazards as dispatches, but through no queue: a copy waits for what it conflicts with and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from pypto_actors.hazards import Hazards
from pypto_actors.ledger import Ledger
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState
from pypto_actors.messages import Allocate, Commit, Copy, Free, Release, ToDevice
from pypto_actors.values import Access, DeviceTensor

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
    ) -> None:
        self._ledger = ledger
        self._hazards = hazards
        self._port = port
        self._end = end
        self._memory_freed = memory_freed
        self.watches: list[tuple[Record, set[int]]] = []

    def start(self, message: Allocate | Copy | Free, record: Record) -> bool:
        """Enter the hazards; says whether the operation may go at once. An allocation that does not fit ends here."""
        accesses: Iterable[Access]
        if isinstance(message, Free):
            accesses = [(tensor.allocation, 0, tensor.nbytes, True) for tensor in message.tensors]
        elif isinstance(message, Allocate):
            failure = self._ledger.reserve(message.tensors)
            if failure is not None:
                self._end(record, RunEvent.FAIL, failure)
                return False
            for device, tensors in _by_device(message.tensors).items():
                record.parts += 1
                items = tuple((tensor.allocation, tensor.nbytes) for tensor in tensors)
                self._port.send(device, Commit(record.id, items, True))
            accesses = message.accesses
        else:
            accesses = message.accesses
        self._hazards.enter(record, accesses)  # type: ignore[arg-type]
        return record.waits == 0

    def free_to_go(self, record: Record) -> None:
        """`record` waits for nothing any more."""
        record.state = record.state.after(RunEvent.HAND_OVER)
        message = record.message
        if isinstance(message, Free):
            self._ledger.release(message.tensors)
            devices = _by_device(message.tensors)
            for device, tensors in devices.items():
                self._port.send(device, Release(tuple(tensor.allocation for tensor in tensors)))
            self._end(record, RunEvent.COMPLETE, None)
            self._memory_freed(devices)
            return
        for piece in message.pieces:
            record.parts += 1
            target = piece.target
            self._port.send(target.device if isinstance(target, DeviceTensor) else piece.source.device, piece)
        if record.parts == 0:
            self._finish(record)

    def answered(self, record: Record, failure: Failure | None) -> None:
        """A device has done a piece, or could not."""
        record.parts -= 1
        if failure is not None and record.failure is None:
            record.failure = failure
        if record.parts == 0 and record.state is RunState.RUNNING:
            self._finish(record)

    def _finish(self, record: Record) -> None:
        if record.failure is None:
            self._end(record, RunEvent.COMPLETE, None)
        else:
            self.give_back(record)
            self._end(record, RunEvent.FAIL, record.failure)

    def give_back(self, record: Record) -> None:
        """An allocation that came to nothing leaves nothing."""
        message = record.message
        if isinstance(message, Allocate):
            self._ledger.release(message.tensors)
            devices = _by_device(message.tensors)
            for device, tensors in devices.items():
                self._port.send(device, Release(tuple(tensor.allocation for tensor in tensors)))
            self._memory_freed(devices)

    # ------------------------------------------------------------------------------------------ watches

    def watch(self, record: Record, runs: Iterable[int]) -> None:
        """Settle `record` when all of `runs` have ended."""
        record.state = record.state.after(RunEvent.HAND_OVER)
        remaining = set(runs)
        self.watches.append((record, remaining))
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
        for record in over:
            record.state = record.state.after(RunEvent.COMPLETE)
            record.wake()


def _by_device(tensors: Iterable[DeviceTensor]) -> dict[int, list[DeviceTensor]]:
    devices: dict[int, list[DeviceTensor]] = {}
    for tensor in tensors:
        devices.setdefault(tensor.device, []).append(tensor)
    return devices
