"""The coordinator actor: it decides which dispatch goes to which device and when, and does no I/O.

Everything it knows came in messages; everything it does goes out by its `Port`. The same messages in the same order give the same messages out,
which `testing.replay` checks. `receive` takes one message in; `route` then hands over whatever may go.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Any, Protocol, assert_never

from msgspec import Struct

from pypto_actors.errors import InternalError, PyptoActorsError, RunCancelledError, WorkerClosedError
from pypto_actors.failures import cancelled, depends, expired, policy_failed, raised
from pypto_actors.hazards import Hazards
from pypto_actors.ledger import Ledger
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState
from pypto_actors.messages import (
    Allocate,
    Call,
    Cancel,
    Close,
    Commit,
    Completed,
    Copy,
    Dispatch,
    Drain,
    End,
    Failed,
    Free,
    Pause,
    Reached,
    Release,
    Resume,
    Retire,
    Submit,
    Tick,
    ToCoordinator,
    ToDevice,
)
from pypto_actors.operations import Operations
from pypto_actors.plan import Part, Plan
from pypto_actors.policy import OWN_POLICIES, Policy
from pypto_actors.queues import MOST_OVERTAKEN, DeviceQueue, item_of
from pypto_actors.statistics import Counts, DeviceStatistics, Statistics

NEVER = float("inf")
ALL = 1 << 62  # every number of acceptance is below
# looking a member up at its enumeration is slow
QUEUED, RUNNING, DONE = RunState.QUEUED, RunState.RUNNING, RunState.DONE
HAND_OVER, COMPLETE, FAIL, CANCEL, EXPIRE = RunEvent


class Port(Protocol):
    """How the coordinator acts on the world."""

    def send(self, device: int, message: ToDevice) -> None:
        """Put a message into a device's mailbox."""

    def call(self, message: Call) -> None:
        """Put a message into the host actor's mailbox."""

    def left(self) -> None:
        """A dispatch has left the queue: there is room for another."""

    def failed(self, record: Record) -> None:
        """A dispatch has failed or expired."""

    def changed(self, record: Record, before: RunState) -> None:
        """A record has moved through the life-cycle table (called while tracing)."""


class Settings(Struct, frozen=True):
    """What a coordinator is started with."""

    capacities: tuple[int, ...]
    in_flight: int
    policy: Policy


class Coordinator:
    """Decides. State that nobody else touches: hazards, ledger, queues, and the records of what has not ended."""

    def __init__(self, settings: Settings, port: Port) -> None:
        self.policy = settings.policy
        # our own policies' keys cannot fail, and are asked for only where there is an order to be made
        self._asks_keys = type(settings.policy) not in OWN_POLICIES
        self.slots = settings.in_flight + 1
        self.port = port
        self.now = 0.0
        self.tracing = False
        self.counts = Counts()
        self.ledger = Ledger(settings.capacities)
        self.hazards = Hazards()
        self.queues = [DeviceQueue(rank) for rank in range(len(settings.capacities))]
        self.busy_time = [0.0] * len(self.queues)
        self.records: dict[int, Record] = {}
        self.operations = Operations(self.ledger, self.hazards, port, self._end, self.memory_freed)
        self.deadlines: list[tuple[float, int]] = []
        self._timed = 0  # queued dispatches with a deadline
        self.fresh: list[Any] = []  # records  # waits for nothing, not yet in a queue
        self.dirty: dict[int, None] = {}  # devices where something may go now
        self._parked: dict[int, Record] = {}  # waits for scratch
        self._held: list[Record] = []  # accepted after a pause
        self._last = 0  # the newest number of acceptance
        self._open_until = ALL  # dispatches up to this number may go

    def __repr__(self) -> str:
        return f"<Coordinator of {len(self.queues)} devices: {len(self.records)} accepted and not ended>"

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
                    self.fresh.append(record)
            case Cancel():
                known = self.records.get(message.run)
                if known is not None and known.state is QUEUED and not isinstance(known.message, Free):
                    self._end(known, CANCEL, cancelled(known, "it was cancelled"))
            case Tick():
                self._expire(message.at)
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
                self._resume()
            case Close():
                self._close()
            case End():
                self._finish()
            case _:
                assert_never(message)

    def statistics(self) -> Statistics:
        """A frozen snapshot."""
        devices = tuple(
            DeviceStatistics(arena.used, arena.peak, arena.capacity, busy)
            for arena, busy in zip(self.ledger.arenas, self.busy_time, strict=True)
        )
        return self.counts.snapshot(devices)

    def submit(self, message: Submit, record: Record) -> None:
        self._last = record.id
        self.counts.accepted += 1
        self.records[record.id] = record
        plan = message.plans.fixed
        if plan is None or message.serial:
            plan = self._place(message)
        record.plan = plan
        record.sole = sole = plan.sole
        if sole >= 0:
            self.queues[sole].work += 1
        else:
            for device in plan.devices:
                self.queues[device].work += 1
        self.hazards.enter(record, message.accesses)
        if message.deadline is not None:
            self._watch_deadline(record, message.deadline)
        if record.after:
            self._depend(record)
        if message.at > self.now:
            self.now = message.at
        if self._asks_keys and record.broken is None:
            try:
                record.key = self.policy.key(item_of(record))
            except Exception as error:
                self._end(record, FAIL, policy_failed(record, self.policy, "key", error))
                return
        if record.broken is not None:
            self._end(record, FAIL, depends(record))
        elif record.waits == 0:
            self.fresh.append(record)

    def _place(self, message: Submit) -> Plan:
        """The plan of a dispatch; where it begins, if nobody says so, is the coordinator's choice."""
        plans, rank = message.plans, message.rank
        if rank < 0:
            rank = self._least_loaded() if plans.floating else 0
        return plans.at(rank, message.serial)

    def _depend(self, record: Record) -> None:
        for dependency in record.after:
            if not dependency.ended:
                record.waits += 1
                if dependency.dependents is None:
                    dependency.dependents = []
                dependency.dependents.append(record)
            elif dependency.failure is not None and record.broken is None:
                record.broken = dependency

    def _least_loaded(self) -> int:
        queues = self.queues
        return min(range(len(queues)), key=lambda rank: queues[rank].work) if len(queues) > 1 else 0

    def _watch_deadline(self, record: Record, deadline: float) -> None:
        self._timed += 1
        if len(self.deadlines) > 2 * self._timed + 64:  # most of them are over
            self.deadlines = [entry for entry in self.deadlines if _still_queued(self.records.get(entry[1]))]
            heapify(self.deadlines)
        heappush(self.deadlines, (deadline, record.id))

    def next_deadline(self) -> float:
        """The next time at which a `Tick` is needed, loop seconds."""
        deadlines = self.deadlines
        while deadlines and not _still_queued(self.records.get(deadlines[0][1])):
            heappop(deadlines)
        return deadlines[0][0] if deadlines else NEVER

    def _expire(self, now: float) -> None:
        self.now = max(self.now, now)
        while self.deadlines and self.deadlines[0][0] <= now:
            _, run = heappop(self.deadlines)
            record = self.records.get(run)
            if record is not None and record.state is QUEUED:
                self._end(record, EXPIRE, expired(record, self.now))

    # ------------------------------------------------------------------------------------------ answers of devices

    def completed(self, message: Completed) -> None:
        record = self.records.get(message.run)
        if record is None:
            if message.part < 0:  # memory of what was cancelled meanwhile
                return
            raise InternalError(f"{message!r} of a dispatch that has ended")
        plan = record.plan
        if plan is None:
            self.operations.answered(record, None)
            return
        device, started, finished = message.device, message.started, message.finished
        if finished > self.now:
            self.now = finished
        if device >= 0:
            queue = self.queues[device]
            queue.outstanding -= 1
            self.busy_time[device] += finished - started
            if queue.order:
                self.dirty[device] = None
            if record.sole >= 0:
                record.started_at = started
                if plan.scratch or record.dependents or self.operations.watches or self.tracing:
                    self._end(record, COMPLETE, None)
                    return
                # the end of most dispatches: what `_end` does, without what cannot concern them
                if record.state is not RUNNING:
                    record.state.after(COMPLETE)
                record.state = DONE
                record.finished_at = self.now
                self.counts.done += 1
                queue.work -= 1
                del self.records[record.id]
                self.hazards.leave(record, self.fresh)
                waiters = record.waiters
                if waiters is not None:
                    if type(waiters) is not list and not waiters.done():
                        waiters.set_result(None)
                    else:
                        record.wake()
                return
        _began(record, started)
        part = plan.parts[message.part]
        record.parts -= 1
        if part.returned >= 0:
            record.returned[part.returned] = message.value
        self._happened(record, part, len(part.events) - 1)
        self._end_if_over(record)

    def _reached(self, message: Reached) -> None:
        record = self.records[message.run]
        assert record.plan is not None
        self.now = max(self.now, message.at)
        self._happened(record, record.plan.parts[message.part], message.event)

    def _failed(self, message: Failed) -> None:
        record = self.records.get(message.run)
        if record is None:
            if message.part < 0:  # memory of what was cancelled meanwhile
                return
            raise InternalError(f"{message!r} of a dispatch that has ended")
        plan = record.plan
        failure = raised(message, record)
        if plan is None:
            self.operations.answered(record, failure)
            return
        self.now = max(self.now, message.finished)
        if record.failure is None:
            record.failure = failure
        if message.part < 0:  # memory could not be made; the parts that need it answer for themselves
            return
        device = message.device
        if device >= 0:
            self.queues[device].outstanding -= 1
            self.busy_time[device] += message.finished - message.started
            self.dirty[device] = None
        _began(record, message.started)
        if record.sole >= 0:
            self._end(record, FAIL, record.failure)
            return
        record.parts -= 1
        self._end_if_over(record)

    def _end_if_over(self, record: Record) -> None:
        if record.parts == 0 and (record.failure is not None or record.unsent == 0):
            event = COMPLETE if record.failure is None else FAIL
            self._end(record, event, record.failure)

    def _happened(self, record: Record, part: Part, event: int) -> None:
        """An event of a part: send the parts that awaited it."""
        if record.failure is not None:
            return
        pending = record.pending
        for index in part.wakes[event]:
            pending[index] -= 1
            if pending[index] == 0:
                self._send(record, index)

    def _send(self, record: Record, index: int) -> None:
        plan = record.plan
        assert plan is not None
        part = plan.parts[index]
        record.parts += 1
        record.unsent -= 1
        args = record.message.args
        if part.device < 0:
            self.port.call(Call(record.id, index, plan, args, record.scratch))
            return
        self.queues[part.device].outstanding += 1
        self.port.send(part.device, Dispatch(record.id, index, plan, args, record.scratch))

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
                self._count_end(record, before)
                self._leave(record, before)
            elif event is CANCEL:
                self.operations.give_back(record)
            del self.records[record.id]
            self.hazards.leave(record, self.fresh)
            if record.dependents:
                for dependent in record.dependents:
                    if dependent.state is not QUEUED or dependent.broken is not None:
                        continue
                    dependent.waits -= 1
                    if failure is not None:
                        dependent.broken = record
                        ending.append((dependent, FAIL, depends(dependent)))
                    elif dependent.waits == 0:
                        self.fresh.append(dependent)
                record.dependents = None
            if self.operations.watches:
                self.operations.ended(record.id)
            if self.tracing:
                self.port.changed(record, before)
            if failure is not None and record.plan is not None and record.state is not RunState.CANCELLED:
                self.port.failed(record)
            if before is QUEUED and record.plan is not None:
                self.port.left()  # after its own end is told: it may let in the next
            record.wake()

    def _count_end(self, record: Record, before: RunState) -> None:
        if before is not RUNNING:
            if record.message.deadline is not None:
                self._timed -= 1
        self.counts.ended(record.state, before is RUNNING)

    def _leave(self, record: Record, before: RunState) -> None:
        plan = record.plan
        assert plan is not None
        for device in plan.devices:
            queue = self.queues[device]
            queue.work -= 1
            if before is QUEUED and record.entered:
                queue.remove(record)
                self.dirty[device] = None
        if before is QUEUED:
            self._parked.pop(record.id, None)
        elif record.scratch:
            self._give_scratch(record)

    def _give_scratch(self, record: Record) -> None:
        plan = record.plan
        assert plan is not None
        self.ledger.give_scratch(plan, record.scratch)
        for device in plan.scratch_bytes:
            mine = zip(plan.scratch, record.scratch, strict=True)
            self.port.send(device, Release(tuple(number for scratch, number in mine if scratch.device == device)))
        record.scratch = ()
        self.memory_freed(plan.scratch_bytes)

    def memory_freed(self, devices: Iterable[int]) -> None:
        """Who waits for scratch on one of `devices` may try again."""
        freed = set(devices)
        self.dirty.update(dict.fromkeys(freed))
        for parked in list(self._parked.values()):
            assert parked.plan is not None
            if not freed.isdisjoint(parked.plan.scratch_bytes):
                del self._parked[parked.id]
                parked.parked = False
                for device in parked.plan.devices:
                    self.queues[device].heap(parked)
                    self.dirty[device] = None

    # ------------------------------------------------------------------------------------------ handing over

    def route(self) -> None:
        """Hand over whatever may go. Called when all messages that have come are taken."""
        while self.fresh or self.dirty:
            fresh = self.fresh
            if fresh:
                self.fresh = []
                if len(fresh) != 1 or not self._goes_alone(fresh[0]):
                    for record in fresh:
                        self._admit(record)
            if self.dirty:
                dirty = self.dirty
                self.dirty = {}
                for device in dirty:
                    self._fill(self.queues[device])

    def _goes_alone(self, record: Record) -> bool:
        """Hand it over at once if nobody else is ready on its only device and nothing else can stand in its way, as is most common."""
        sole, plan, message = record.sole, record.plan, record.message
        if sole < 0 or plan is None or record.id > self._open_until or record.state is not QUEUED:
            return False
        queue = self.queues[sole]
        if queue.order or queue.outstanding >= self.slots or message.deadline is not None or plan.scratch or self.tracing:
            return False
        # what `_hand_over` does, without what cannot concern it
        record.state = RUNNING
        self.counts.handed_over += 1
        self.port.left()
        if message.stage is not None:
            queue.count(message.stage)
        queue.outstanding += 1
        self.hazards.stand(record, self.fresh)
        self.port.send(sole, Dispatch(record.id, 0, plan, message.args))
        return True

    def _admit(self, record: Record) -> None:
        if record.state is not QUEUED:
            return
        if record.plan is None:
            self.operations.free_to_go(record)
            return
        if record.id > self._open_until:
            self._held.append(record)
            return
        record.entered = True
        if record.key is None:
            record.key = self.policy.key(item_of(record))
        if not record.plan.devices:
            if self._goes(record):
                self._hand_over(record)
            return
        for device in record.plan.devices:
            self.queues[device].push(record)
            self.dirty[device] = None

    def _fill(self, queue: DeviceQueue) -> None:
        while queue.outstanding < self.slots and queue.order:
            try:
                record = queue.first(self.policy)
            except Exception as error:
                oldest = queue.order[0]
                self._end(oldest, FAIL, policy_failed(oldest, self.policy, "choose", error))
                continue
            if record is None or record.id > self._open_until:
                return
            assert record.plan is not None
            if len(record.plan.devices) > 1 and not self._top_everywhere(record):
                if not record.claimed:
                    self._claim(record)
                return
            if self._goes(record):
                self._hand_over(record)
            elif record.state is QUEUED and record.claimed:
                return

    def _top_everywhere(self, record: Record) -> bool:
        assert record.plan is not None
        for device in record.plan.devices:
            queue = self.queues[device]
            if queue.outstanding >= self.slots or (queue.claims and queue.claims[0] is not record):
                return False
        return True

    def _claim(self, record: Record) -> None:
        assert record.plan is not None
        record.claimed = True
        for device in record.plan.devices:
            self.queues[device].claim(record)
            self.dirty[device] = None

    def _goes(self, record: Record) -> bool:
        """May it be handed over, now that it is its turn? Its deadline and its scratch decide."""
        plan = record.plan
        assert plan is not None
        if record.message.deadline is not None and record.message.deadline <= self.now:
            self._end(record, EXPIRE, expired(record, self.now))
            return False
        if plan.scratch and not self.ledger.scratch_fits(plan):
            failure = self.ledger.scratch_never_fits(plan)
            if failure is not None:
                self._end(record, FAIL, failure)
            elif not record.claimed:
                self._park(record)
            return False
        return True

    def _park(self, record: Record) -> None:
        assert record.plan is not None
        if not record.entered:
            record.entered = True
            if record.key is None:
                record.key = self.policy.key(item_of(record))
            for device in record.plan.devices:
                self.queues[device].push(record)
        record.parked = True
        self._parked[record.id] = record

    def _hand_over(self, record: Record) -> None:
        plan = record.plan
        assert plan is not None
        message = record.message
        if record.state is not QUEUED:
            record.state.after(HAND_OVER)
        record.state = RUNNING
        if self.tracing:
            self.port.changed(record, QUEUED)
        self.counts.handed_over += 1
        if message.deadline is not None:
            self._timed -= 1
        self.port.left()
        sole = plan.sole
        self._overtake(record)
        if plan.scratch:
            record.scratch = self.ledger.take_scratch(plan)
            for device in plan.scratch_bytes:
                mine = zip(plan.scratch, record.scratch, strict=True)
                items = tuple((number, scratch.nbytes) for scratch, number in mine if scratch.device == device)
                self.port.send(device, Commit(record.id, items))
        if sole >= 0:
            self.queues[sole].outstanding += 1
            self.hazards.stand(record, self.fresh)
            self.port.send(sole, Dispatch(record.id, 0, plan, message.args, record.scratch))
            return
        record.returned = [None] * plan.returns
        record.pending = [part.needs for part in plan.parts]
        record.unsent = len(plan.parts)
        for index in plan.initial:
            self._send(record, index)
        self._end_if_over(record)

    def _overtake(self, record: Record) -> None:
        """Count whom it overtakes; who was overtaken too often claims its devices."""
        plan = record.plan
        assert plan is not None
        stage = record.message.stage
        passed: dict[int, Record] = {}
        for device in plan.devices:
            queue = self.queues[device]
            queue.count(stage)
            if record.entered:
                queue.remove(record)
            if queue.order:
                for other in queue.passed(record):
                    passed[other.id] = other
        for other in passed.values():
            other.overtaken += 1
            if other.overtaken >= MOST_OVERTAKEN and not other.claimed:
                self._unpark(other)
                self._claim(other)

    def _unpark(self, record: Record) -> None:
        if record.parked:
            record.parked = False
            del self._parked[record.id]

    # ------------------------------------------------------------------------------------------ pause and close

    def _pause(self, message: Pause, record: Record) -> None:
        self._resume()
        if message.mode == "wait":
            self._open_until = self._last
            runs = [known.id for known in self.records.values() if known.plan is not None]
        else:
            self._open_until = 0
            if message.mode == "abort":
                self._cancel_queued(RunCancelledError, "the worker was paused with mode 'abort'")
            runs = [known.id for known in self.records.values() if known.state is RUNNING and known.plan is not None]
        self.operations.watch(record, runs)

    def _resume(self) -> None:
        self._open_until = ALL
        self.fresh.extend(self._held)
        self._held.clear()
        self.dirty.update(dict.fromkeys(range(len(self.queues))))

    def _close(self) -> None:
        self._open_until = ALL
        self._cancel_queued(WorkerClosedError, "the worker was closed")
        self._resume()

    def _cancel_queued(self, kind: type[PyptoActorsError], why: str) -> None:
        for record in list(self.records.values()):
            if record.state is not QUEUED:
                continue
            if record.plan is not None:
                self._end(record, CANCEL, cancelled(record, why, kind))
            elif kind is WorkerClosedError and not isinstance(record.message, Free):
                self._end(record, CANCEL, cancelled(record, why, kind))

    def _finish(self) -> None:
        for device, arena in enumerate(self.ledger.arenas):
            if arena.sizes:
                self.port.send(device, Release(tuple(arena.sizes)))
        self.ledger.clear()


def _began(record: Record, started: float) -> None:
    if record.started_at < 0.0 or started < record.started_at:
        record.started_at = started


def _still_queued(record: Record | None) -> bool:
    return record is not None and record.state is QUEUED
