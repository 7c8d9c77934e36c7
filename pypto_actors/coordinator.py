"""The coordinator actor: it decides which dispatch goes to which device and when, and does no I/O.

Everything it knows came in messages; everything it does goes out by its `Port`. The same messages in the same order give the same
messages out, which `testing.replay` checks. `receive` takes one message in; `route` then hands over whatever may go.
"""

from __future__ import annotations

from typing import assert_never

from msgspec import Struct

from pypto_actors.deadlines import Deadlines
from pypto_actors.errors import InternalError, PyptoActorsError, RunCancelledError, WorkerClosedError
from pypto_actors.failures import cancelled, depends, describe, expired, raised, raised_by_several
from pypto_actors.hazards import Hazards
from pypto_actors.health import Health
from pypto_actors.ledger import Ledger, host_out_of_memory
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState
from pypto_actors.messages import (
    Allocate,
    Cancel,
    Close,
    Completed,
    Copy,
    Died,
    Drain,
    End,
    Failed,
    Free,
    Pause,
    Reached,
    Release,
    Restarted,
    Resume,
    Retire,
    Submit,
    Tick,
    ToCoordinator,
)
from pypto_actors.operations import Operations
from pypto_actors.plan import Part, Plan
from pypto_actors.policy import Policy
from pypto_actors.port import Port
from pypto_actors.router import Router
from pypto_actors.statistics import Counts, DeviceStatistics, Statistics

# looking a member up at its enumeration is slow
QUEUED, RUNNING, DONE = RunState.QUEUED, RunState.RUNNING, RunState.DONE
HAND_OVER, COMPLETE, FAIL, CANCEL, EXPIRE = RunEvent


class Settings(Struct, frozen=True):
    """What a coordinator is started with."""

    capacities: tuple[int, ...]
    in_flight: int
    policy: Policy
    max_restarts: int = 3


class Coordinator:
    """Decides. State that nobody else touches: hazards, ledger, queues, and the records of what has not ended."""

    def __init__(self, settings: Settings, port: Port) -> None:
        devices = len(settings.capacities)
        self.port = port
        self.now = 0.0
        self.tracing = False
        self.counts = Counts()
        self.ledger = Ledger(settings.capacities)
        self.hazards = Hazards()
        self.records: dict[int, Record] = {}
        self.deadlines = Deadlines(self.records)
        self.router = Router(settings.policy, settings.in_flight + 1, devices, self.ledger, self.hazards, self.counts, port, self._end)
        self.queues = self.router.queues
        self.health = [Health(rank) for rank in range(devices)]
        self.operations = Operations(self.ledger, self.hazards, port, self._end, self.router.memory_freed, self.health)
        self.router.operations = self.operations
        self._max_restarts = settings.max_restarts
        self._last = 0  # the newest number of acceptance
        self._cautious = self.router.asks_keys  # is there more to see to than hazards, also for the simplest dispatch?

    def __repr__(self) -> str:
        return f"<Coordinator of {len(self.queues)} devices: {len(self.records)} accepted and not ended>"

    def trace(self) -> None:
        """Tell the port of each change of a record's state."""
        self.tracing = self.router.tracing = self.operations.tracing = self.operations.watchful = True

    def route(self) -> None:
        """Hand over whatever may go. Called when all messages that have come are taken."""
        self.router.route(self.now)

    def statistics(self) -> Statistics:
        """A frozen snapshot."""
        devices = tuple(
            DeviceStatistics(arena.used, arena.peak, arena.capacity, queue.busy_time, health.restarts)
            for arena, queue, health in zip(self.ledger.arenas, self.queues, self.health, strict=True)
        )
        return self.counts.snapshot(devices)

    # ------------------------------------------------------------------------------------------ messages in

    def receive(self, message: ToCoordinator, record: Record | None) -> None:
        """Take one message; `record` stands beside the requests, to be settled by their one outcome."""
        match message:
            case Completed():
                self.completed(message)
            case Submit():
                assert record is not None
                self.submit(message, record)
            case Reached():
                self._reached(message)
            case Failed():
                self._failed(message)
            case Allocate() | Copy() | Free():
                assert record is not None
                self._last = record.id
                self.records[record.id] = record
                if self.operations.start(message, record):
                    if isinstance(message, Free):  # at once, so that what was accepted after it finds the memory free
                        self.operations.free_to_go(record)
                    else:
                        self.router.fresh.append(record)
            case Cancel():
                known = self.records.get(message.run)
                if known is not None and known.state is QUEUED and not isinstance(known.message, Free):
                    self._end(known, CANCEL, cancelled(known, "it was cancelled"))
            case Tick():
                self.now = max(self.now, message.at)
                for late in self.deadlines.passed(message.at):
                    if late.state is QUEUED:  # one of the others may have been what it comes after
                        self._end(late, EXPIRE, expired(late, self.now))
            case Drain():
                assert record is not None
                self.operations.watch(record, self.records)
            case Retire():
                assert record is not None
                runs = (known.id for known in self.records.values() if known.plan is not None and known.message.program is message.program)
                self.operations.watch(record, runs)
            case Pause():
                assert record is not None
                self._pause(message, record)
            case Resume():
                self.router.resume()
            case Close():
                self.router.resume()
                self._cancel_queued(WorkerClosedError, "the worker was closed")
            case Died():
                self._died(message)
            case Restarted():
                self.health[message.device].restarted()
                self.router.up(message.device)
                self.operations.restarted()
            case End():
                self._finish()
            case _:
                assert_never(message)

    def submit(self, message: Submit, record: Record) -> None:
        """A dispatch was accepted."""
        self._last = run = record.id
        self.counts.accepted += 1
        self.records[run] = record
        plan = record.plan
        if plan is None:
            plan = record.plan = self._place(message)
            record.sole = plan.sole
        sole = record.sole
        if message.at > self.now:
            self.now = message.at
        if plan.simple and message.plain and not self._cautious:
            self.queues[sole].work += 1
            self.hazards.enter(record, message.accesses, message.fixed)
            if record.waits == 0:
                self.router.fresh.append(record)
            return
        for device in plan.devices:
            self.queues[device].work += 1
        accesses = message.accesses
        if plan.windows:
            accesses += tuple((number, 0, 1, True) for number in self.ledger.windows(plan, message.program))
        self.hazards.enter(record, accesses, message.fixed)
        if message.deadline is not None:
            self.router.timed += 1
            self.deadlines.add(record, message.deadline, self.router.timed)
        failure = self._depend(record) if record.after else None
        if failure is None:
            failure = next((lost for device in plan.devices if (lost := self.health[device].lost) is not None), None)
        if failure is None and self.operations.lost:
            failure = next((gone for access in message.touched if (gone := self.operations.lost.get(access[0])) is not None), None)
        if failure is None and self.router.asks_keys:
            failure = self.router.ask_key(record)
        if failure is not None:
            self._end(record, FAIL, failure)
        elif record.waits == 0:
            self.router.fresh.append(record)

    def _place(self, message: Submit) -> Plan:
        """The plan of a dispatch; where it begins, if nobody says so, is the coordinator's choice."""
        plans, rank = message.plans, message.rank
        if plans.fixed is not None and not message.serial:
            return plans.fixed
        if rank < 0:
            rank = self.router.least_loaded() if plans.floating else 0
        return plans.at(rank, message.serial)

    def _depend(self, record: Record) -> Failure | None:
        """Wait for the dependencies that have not ended; a failure if one has failed already."""
        after, record.after = record.after, ()  # who comes after who came after others keeps none of them
        for dependency in after:
            if not dependency.ended:
                record.waits += 1
                if dependency.dependents is None:
                    dependency.dependents = []
                dependency.dependents.append(record)
            elif dependency.failure is not None and record.broken is None:
                record.broken = dependency
        return depends(record) if record.broken is not None else None

    # ------------------------------------------------------------------------------------------ answers of devices

    def completed(self, message: Completed) -> None:
        """A part or a piece is done."""
        run = message.run
        record = self.records.get(run)
        if record is None:
            raise InternalError(f"{message!r} of a dispatch that has ended")
        sole = record.sole
        if sole < 0:
            self._part_completed(message, record)
            return
        started, finished = message.started, message.finished
        if finished > self.now:
            self.now = finished
        queue = self.queues[sole]
        queue.outstanding -= 1
        queue.busy_time += finished - started
        if queue.order:
            self.router.dirty[sole] = None
        record.started_at = started
        if record.scratch or record.dependents or self.operations.watchful:
            self._end(record, COMPLETE, None)
            return
        # the end of most dispatches: what `_end` does, without what cannot concern them
        if record.state is not RUNNING:
            record.state.after(COMPLETE)
        record.state = DONE
        record.finished_at = finished
        self.counts.done += 1
        queue.work -= 1
        del self.records[run]
        self.hazards.leave(record, self.router.fresh)
        waiters = record.waiters
        if waiters is not None:
            if type(waiters) is not list and not waiters.done():
                waiters.set_result(None)
            else:
                record.wake()

    def _part_completed(self, message: Completed, record: Record) -> None:
        """One of several parts, or a piece of a copy."""
        device, started, finished = message.device, message.started, message.finished
        plan = record.plan
        if plan is None:
            self.operations.answered(record, device, None)
            return
        if finished > self.now:
            self.now = finished
        if device >= 0:
            queue = self.queues[device]
            queue.outstanding -= 1
            queue.busy_time += finished - started
            if queue.order:
                self.router.dirty[device] = None
            record.at[device] -= 1
        _began(record, started)
        part = plan.parts[message.part]
        record.parts -= 1
        if part.returned >= 0:
            record.returned[part.returned] = message.value
        if part.wakes[-1]:
            self._happened(record, part, len(part.events) - 1)
        if record.parts == 0:
            self._end_if_over(record)

    def _reached(self, message: Reached) -> None:
        record = self.records[message.run]
        assert record.plan is not None
        self.now = max(self.now, message.at)
        self._happened(record, record.plan.parts[message.part], message.event)

    def _failed(self, message: Failed) -> None:
        record = self.records.get(message.run)
        if record is None:
            raise InternalError(f"{message!r} of a dispatch that has ended")
        if record.plan is None:
            self.operations.answered(record, message.device, self._raised(message, record))
            return
        self.now = max(self.now, message.finished)
        record.raised = [*(record.raised or ()), message]
        if record.failure is None:
            record.failure = self._raised(message, record)
        if message.part < 0:  # memory could not be made; the parts that need it answer for themselves
            return
        device = message.device
        _began(record, message.started)
        if device >= 0:
            queue = self.queues[device]
            queue.outstanding -= 1
            queue.busy_time += message.finished - message.started
            self.router.dirty[device] = None
            if record.sole >= 0:
                self._end(record, FAIL, record.failure)
                return
            record.at[device] -= 1
        record.parts -= 1
        self._end_if_over(record)

    def _raised(self, message: Failed, record: Record) -> Failure:
        error, device, plan = message.error, message.device, record.plan
        if message.step < 0 and device < 0:  # a callback could not be called
            lost = self.operations.lost_among(record.message.touched)
            if lost is not None:
                return lost
        if message.step >= 0 or device < 0 or not isinstance(error, MemoryError) or isinstance(error, PyptoActorsError):
            return raised(message, record)
        tensors = [tensor for tensor in getattr(record.message, "tensors", ()) if tensor.device == device]
        asked = sum(tensor.nbytes for tensor in tensors) if plan is None else plan.scratch_bytes.get(device, 0)
        return host_out_of_memory(device, asked, self.ledger.arenas[device], error)

    def _end_if_over(self, record: Record) -> None:
        if record.parts:
            return
        if record.failure is not None:
            several = raised_by_several(record)
            self._end(record, FAIL, record.failure if several is None else several)
        elif record.unsent == 0:
            self._end(record, COMPLETE, None)

    def _happened(self, record: Record, part: Part, event: int) -> None:
        """An event of a part: send the parts that awaited it."""
        if record.failure is not None:
            return
        for index in part.wakes[event]:
            record.pending[index] -= 1
            if record.pending[index] == 0:
                self.router.send_part(record, index)

    # ------------------------------------------------------------------------------------------ the end of a record

    def _end(self, record: Record, event: RunEvent, failure: Failure | None) -> None:
        """Retire a record and resolve its handle, in this one step; whoever waited for it goes on."""
        ending = [(record, event, failure)]
        while ending:
            record, event, failure = ending.pop()
            before = record.state
            record.state = before.after(event)
            record.failure = failure
            record.finished_at = self.now
            if record.started_at < 0.0:
                record.started_at = self.now
            if record.plan is not None:
                self._leave(record, before)
            elif event is CANCEL:
                self.operations.give_back(record)
            del self.records[record.id]
            self.hazards.leave(record, self.router.fresh)
            if record.dependents:
                for dependent in record.dependents:
                    if dependent.state is not QUEUED or dependent.broken is not None:
                        continue
                    dependent.waits -= 1
                    if failure is not None:
                        dependent.broken = record
                        ending.append((dependent, FAIL, depends(dependent)))
                    elif dependent.waits == 0:
                        self.router.fresh.append(dependent)
                record.dependents = None
            if self.operations.watches:
                self.operations.ended(record.id)
            if self.tracing:
                self.port.changed(record, before)
            if record.plan is not None:
                if failure is not None and record.state is not RunState.CANCELLED:
                    self.port.failed(record)
                if before is QUEUED:
                    self.port.left()  # after its own end is told: it may let in the next
            record.wake()

    def _leave(self, record: Record, before: RunState) -> None:
        """A dispatch has ended: it is counted, and gives back what it held."""
        plan = record.plan
        assert plan is not None
        for device in plan.devices:
            self.queues[device].work -= 1
        self.counts.ended(record.state, before is RUNNING)
        if before is QUEUED:
            if record.message.deadline is not None:
                self.router.timed -= 1
            self.router.leave(record)
        elif record.scratch:
            for device, allocations in self.ledger.give_scratch(plan, record.scratch).items():
                if not self.health[device].down:
                    self.port.send(device, Release(allocations))
            record.scratch = ()
            self.router.memory_freed(plan.scratch_bytes)

    # ------------------------------------------------------------------------------------------ the death of a device

    def _died(self, message: Died) -> None:
        """What the device held fails; what only names it waits for its restart, or fails if there will be none."""
        device = message.device
        self.now = max(self.now, message.at)
        health = self.health[device]
        if health.lost is not None:
            return
        failure = health.died(message.reason, self.now, self._max_restarts)
        self.router.down(device)
        allocations = self.ledger.lose(device)
        self.port.lost(device, allocations)
        lost = {number for number in allocations if number > 0}
        self.operations.lost.update(dict.fromkeys(lost, failure))
        self._cautious = True
        for record in list(self.records.values()):
            if record.state.final:
                continue
            if record.plan is None:
                self.operations.died(record, device, failure, lost)
            elif record.state is QUEUED:
                if any(access[0] in lost for access in record.message.touched):
                    self._end(record, FAIL, failure)
            elif device in record.plan.devices:
                self._lost_part(record, device, failure)
        if health.lost is None:
            self.port.restart(device)
            return
        self.router.lost.add(device)
        for record in list(self.records.values()):
            if record.state is QUEUED and record.plan is not None and device in record.plan.devices:
                self._end(record, FAIL, health.lost)
        self.operations.restarted()

    def _lost_part(self, record: Record, device: int, failure: Failure) -> None:
        """A running dispatch that uses a device which has died."""
        assert record.plan is not None
        text = f"{describe(record)} failed: {failure.text}"
        failure = Failure(failure.kind, text)
        if record.sole >= 0:
            self._end(record, FAIL, failure)
            return
        gone = record.at.pop(device, 0)
        if gone or record.unsent or any(part.meeting for part in record.plan.parts):
            record.failure = failure
            record.raised = None
            record.parts -= gone
            self._end_if_over(record)

    # ------------------------------------------------------------------------------------------ pause and close

    def _pause(self, message: Pause, record: Record) -> None:
        if message.mode == "wait":
            self.router.pause(self._last)
            runs = [known.id for known in self.records.values() if known.plan is not None]
        else:
            self.router.pause(0)
            if message.mode == "abort":
                self._cancel_queued(RunCancelledError, "the worker was paused with mode 'abort'")
            runs = [known.id for known in self.records.values() if known.state is RUNNING and known.plan is not None]
        self.operations.watch(record, runs)

    def _cancel_queued(self, kind: type[PyptoActorsError], why: str) -> None:
        for record in reversed(list(self.records.values())):  # so that none fails of another's end
            if record.state is not QUEUED:
                continue
            if record.plan is not None or (kind is WorkerClosedError and not isinstance(record.message, Free)):
                self._end(record, CANCEL, cancelled(record, why, kind))

    def _finish(self) -> None:
        for device, arena in enumerate(self.ledger.arenas):
            if arena.sizes and not self.health[device].down:
                self.port.send(device, Release(tuple(arena.sizes)))
        self.ledger.clear()


def _began(record: Record, started: float) -> None:
    if record.started_at < 0.0 or started < record.started_at:
        record.started_at = started
