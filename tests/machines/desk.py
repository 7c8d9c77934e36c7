"""A coordinator without a loop: its port notes what it decides, and the test answers as the devices would."""

from __future__ import annotations

from collections.abc import Sequence

from pypto_actors.coordinator import Coordinator, Settings
from pypto_actors.lifecycle import Record, RunState
from pypto_actors.lowering import family_of
from pypto_actors.messages import Call, Completed, Dispatch, Submit, ToDevice
from pypto_actors.plan import PlanFamily
from pypto_actors.policy import Policy
from pypto_actors.steps import RawScratch, RawStep, Recording
from pypto_actors.values import Access


def family(devices: Sequence[int], world_size: int = 4, scratch: Sequence[RawScratch] = ()) -> PlanFamily:
    """The plans of a program with one step on each of `devices`."""
    steps = tuple(RawStep(f"step{device}", None, (), (), device) for device in devices)
    return family_of(Recording("p", world_size, steps, tuple(scratch)))


class Desk:
    """Sends what a worker would send, and keeps what the coordinator hands over."""

    def __init__(self, devices: int, policy: Policy, in_flight: int = 1, capacity: int = 1000) -> None:
        self.coordinator = Coordinator(Settings((capacity,) * devices, in_flight, policy), self)
        self.slots = in_flight + 1
        self.records: dict[int, Record] = {}
        self.handed: list[int] = []  # runs, in the order in which they were handed over
        self.outstanding: list[Dispatch] = []
        self.where: list[int] = []  # the device of each outstanding part
        self.number = 0

    def send(self, device: int, message: ToDevice) -> None:
        if isinstance(message, Dispatch):
            if message.run not in self.handed:
                self.handed.append(message.run)
            self.outstanding.append(message)
            self.where.append(device)

    def call(self, message: Call) -> None:
        raise AssertionError(f"{message!r}: there are no callbacks here")

    def left(self) -> None: ...

    def failed(self, record: Record) -> None: ...

    def changed(self, record: Record, before: RunState) -> None: ...

    def lost(self, device: int, allocations: Sequence[int]) -> None: ...

    def restart(self, device: int) -> None: ...

    def submit(
        self,
        plans: PlanFamily,
        accesses: tuple[Access, ...] = (),
        *,
        priority: int = 0,
        stage: str | None = None,
        deadline: float | None = None,
        at: float = 0.0,
    ) -> int:
        self.number += 1
        plain = priority == 0 and deadline is None
        message = Submit(self.number, None, plans, (), accesses, at, priority=priority, deadline=deadline, stage=stage, plain=plain)
        record = self.records[self.number] = Record(self.number, message=message)
        self.coordinator.receive(message, record)
        return self.number

    def route(self) -> list[int]:
        """Let it hand over; who was."""
        before = len(self.handed)
        self.coordinator.route()
        return self.handed[before:]

    def answer(self, index: int = 0) -> int:
        """The part at `index` of the outstanding ones is done."""
        message, device = self.outstanding.pop(index), self.where.pop(index)
        self.coordinator.receive(Completed(message.run, message.part, device, 0.0, 0.0), None)
        return message.run

    def ready(self) -> list[int]:
        """Who waits for nothing but its turn."""
        return [run for run, record in self.records.items() if record.state is RunState.QUEUED and record.waits == 0]
