"""Routing: which ready dispatch is handed to its devices, and when. Pure; a part of the coordinator.

What waits for nothing comes in by `fresh`; devices where something may go are `dirty`. `route` hands over until neither is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from pypto_actors.failures import expired, policy_failed
from pypto_actors.hazards import Hazards
from pypto_actors.ledger import Ledger
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState
from pypto_actors.messages import Call, Commit, Dispatch
from pypto_actors.operations import Operations
from pypto_actors.plan import Plan
from pypto_actors.policy import OWN_POLICIES, Arrival, Policy
from pypto_actors.port import Port
from pypto_actors.queues import DOWN, MOST_OVERTAKEN, DeviceQueue, Key, item_of
from pypto_actors.statistics import Counts

ALL = 1 << 62  # every number of acceptance is below
# looking a member up at its enumeration is slow
QUEUED, RUNNING = RunState.QUEUED, RunState.RUNNING
HAND_OVER, COMPLETE, FAIL, CANCEL, EXPIRE = RunEvent
End: TypeAlias = Callable[[Record, RunEvent, Failure | None], None]


class Router:
    """Hands over. Knows the queues of the devices, and what is held back by a pause or for want of scratch."""

    def __init__(
        self, policy: Policy, slots: int, devices: int, ledger: Ledger, hazards: Hazards, counts: Counts, port: Port, end: End
    ) -> None:
        self.policy = policy
        self.slots = slots
        self.queues = [DeviceQueue(rank) for rank in range(devices)]
        self.fresh: list[Any] = []  # records that wait for nothing and are in no queue yet
        self.dirty: dict[int, None] = {}  # devices where something may go now
        self.open_until = ALL  # dispatches up to this number may go
        self.timed = 0  # queued dispatches with a deadline
        self.asking = False  # is the user's policy at work?
        self._slots_alone = slots
        self._tracing = False
        # our own policies' keys cannot fail, and are asked for only where there is an order to be made
        self.asks_keys = type(policy) not in OWN_POLICIES
        self._by_arrival = type(policy) is Arrival
        self.operations: Operations | None = None
        self._ledger = ledger
        self._hazards = hazards
        self._counts = counts
        self._port = port
        self._end = end
        self._now = 0.0
        self._parked: dict[int, Record] = {}  # waits for scratch, or for a device that is down
        self._down: set[int] = set()
        self.lost: set[int] = set()  # of those that are down: they do not come again
        self._faults: list[tuple[Record, Exception]] = []  # keys that the user's policy gave and that cannot be compared
        self._held: list[Record] = []  # accepted after a pause

    @property
    def tracing(self) -> bool:
        """Is the port to be told of each change of a record's state?"""
        return self._tracing

    @tracing.setter
    def tracing(self, on: bool) -> None:
        self._tracing = on
        self._slots_alone = 0 if on else self.slots

    def route(self, now: float) -> None:
        """Hand over whatever may go. Called when all messages that have come are taken."""
        self._now = now
        while self.fresh or self.dirty:
            fresh = self.fresh
            while len(fresh) == 1:  # as the next of a chain comes, when the one before it was handed over
                record = fresh.pop()
                if not self.goes_alone(record):
                    self._admit(record)
            if fresh:
                self.fresh = []
                if self._are_alike(fresh):
                    self._go_in_line(fresh)
                else:
                    for record in fresh:
                        self._admit(record)
            if self.dirty:
                dirty = self.dirty
                self.dirty = {}
                for device in dirty:
                    self._fill(self.queues[device])

    def least_loaded(self) -> int:
        """The device with the least accepted work; the lowest rank of equals."""
        queues = self.queues
        if len(queues) == 1:
            return 0
        ranks: Sequence[int] = range(len(queues))
        if self._down:  # nobody asks for a device that is lost, nor for one that is starting again where another is up
            up = [rank for rank in ranks if rank not in self._down]
            ranks = up or [rank for rank in ranks if rank not in self.lost] or ranks
        return min(ranks, key=lambda rank: queues[rank].work)

    def ask_key(self, record: Record) -> Failure | None:
        """Ask the policy where `record` stands among those of its stage."""
        if not self.asks_keys:  # what our own would say, without asking
            message = record.message
            record.key = message.at if self._by_arrival else (-message.priority, message.at)
            return None
        self.asking = True
        try:
            record.key = Key(self.policy.key(item_of(record)), record, self._faults)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return policy_failed(record, self.policy, "key", error)
        finally:
            self.asking = False
        return None

    # ------------------------------------------------------------------------------------------ into the queues

    def goes_alone(self, record: Record) -> bool:
        """Hand it over at once if nobody else is ready on its only device and nothing else can stand in its way, as is most common."""
        plan, message = record.plan, record.message
        if plan is None or not message.plain or record.id > self.open_until or record.state is not QUEUED:
            return False
        if not plan.simple:
            return self._go_together(record, plan)
        sole = plan.sole
        queue = self.queues[sole]
        if queue.order or queue.outstanding >= self._slots_alone:
            return False
        self._go(record, plan, queue)
        return True

    def _go(self, record: Record, plan: Plan, queue: DeviceQueue) -> None:
        """What `_hand_over` does for the only part of a dispatch on its only device, without what cannot concern it."""
        message = record.message
        record.state = RUNNING
        self._counts.handed_over += 1
        self._port.left()
        if message.stage is not None:
            queue.count(message.stage)
        queue.outstanding += 1
        if self._hazards.shared:
            self._hazards.stand(record, self.fresh)
        else:
            record.stands = queue.rank
        fixed = message.fixed
        if fixed is None:
            self._port.send(queue.rank, Dispatch(record.id, 0, plan, message.args))
        else:
            self._port.send(queue.rank, Dispatch(record.id, 0, plan, message.args, (), fixed))

    def _go_together(self, record: Record, plan: Plan) -> bool:
        """The same for a dispatch of several parts: nobody else is ready on any of its devices."""
        queues = self.queues
        if plan.scratch or plan.sole >= 0 or not plan.devices:
            return False
        for device in plan.devices:
            queue = queues[device]
            if queue.order or queue.outstanding >= self._slots_alone:
                return False
        record.state = RUNNING
        self._counts.handed_over += 1
        self._port.left()
        stage = record.message.stage
        if stage is not None:
            for device in plan.devices:
                queues[device].count(stage)
        self._begin(record, plan)
        return True

    def _are_alike(self, fresh: Sequence[Any]) -> bool:
        """Is there nothing to be ordered among them, as they may go to one device in the order of acceptance, whatever our policies say?"""
        first, last = fresh[0], 0
        sole = first.sole
        if sole < 0 or self.asks_keys:
            return False
        stage = first.message.stage
        for record in fresh:
            number = record.id
            if record.sole != sole or number < last or record.state is not QUEUED or not record.plan.simple:
                return False
            last, message = number, record.message
            if message.stage != stage or not message.plain:
                return False
        return last <= self.open_until and self.queues[sole].takes(stage)

    def _is_plain(self, record: Record) -> bool:
        """May it stand in a line?"""
        assert record.plan is not None
        return record.plan.simple and record.message.plain and not self.asks_keys

    def _go_in_line(self, fresh: Sequence[Any]) -> None:
        """Hand over those that are alike as far as there is room; the others stand in line."""
        queue = self.queues[fresh[0].sole]
        room = 0 if queue.order else max(0, self._slots_alone - queue.outstanding)
        for record in fresh[:room]:
            self._go(record, record.plan, queue)
        for record in fresh[room:]:
            queue.line_up(record)
        if queue.order and queue.outstanding < self.slots:
            self.dirty[queue.rank] = None

    def _admit(self, record: Record) -> None:
        if record.state is not QUEUED:
            return
        if record.plan is None:
            assert self.operations is not None
            self.operations.free_to_go(record)
        elif record.id > self.open_until:
            self._held.append(record)
        elif record.plan.devices:
            self._stand_in_line(record)
        elif self._goes(record):
            self._hand_over(record)

    def _stand_in_line(self, record: Record) -> None:
        plan = record.plan
        assert plan is not None
        if self._is_plain(record):
            queue = self.queues[record.sole]
            if queue.takes(record.message.stage):
                queue.line_up(record)
                if queue.outstanding < self.slots:
                    self.dirty[queue.rank] = None
                return
        self._ask_keys((record,))
        for device in plan.devices:
            queue = self.queues[device]
            if queue.stages is None:
                self._ask_keys(queue.order)
            queue.push(record)
            self.dirty[device] = None
        if self._faults:
            self._fail_incomparable()

    def _ask_keys(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.key is None:
                self.ask_key(record)

    def _fail_incomparable(self) -> None:
        """End those whose keys could not be compared with others."""
        while self._faults:
            record, error = self._faults.pop()
            if record.state is QUEUED:
                self._end(record, FAIL, policy_failed(record, self.policy, "key", error))

    def _fill(self, queue: DeviceQueue) -> None:
        while queue.outstanding < self.slots and queue.order:
            if queue.stages is None and self._slots_alone:
                if not self._fill_from_line(queue):
                    return
                continue
            self.asking = True
            try:
                record = queue.first(self.policy)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self.asking = False
                oldest = queue.order[0]
                self._end(oldest, FAIL, policy_failed(oldest, self.policy, "choose", error))
                continue
            self.asking = False
            if self._faults:
                self._fail_incomparable()
                continue
            if record is None or record.id > self.open_until:
                return
            assert record.plan is not None
            if len(record.plan.devices) > 1 and not self._top_everywhere(record):
                if not self._down.isdisjoint(record.plan.devices):
                    self._park(record)  # it must not keep the devices that are up from others
                    continue
                if not record.claimed:
                    self._claim(record)
                return
            if self._goes(record):
                self._hand_over(record)
            elif record.state is QUEUED and record.claimed:
                return

    def _fill_from_line(self, queue: DeviceQueue) -> bool:
        """Hand over from the front of a line; did any go?"""
        order = queue.order
        going: list[Any] = order[: self.slots - queue.outstanding]
        if going[-1].id > self.open_until:
            going = [record for record in going if record.id <= self.open_until]
        del order[: len(going)]
        for record in going:
            self._go(record, record.plan, queue)
        return bool(going)

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
        if record.message.deadline is not None and record.message.deadline <= self._now:
            self._end(record, EXPIRE, expired(record, self._now))
            return False
        if plan.scratch and not self._ledger.scratch_fits(plan, record.message.program):
            failure = self._ledger.scratch_never_fits(plan, record.message.program)
            if failure is not None:
                self._end(record, FAIL, failure)
            elif not record.claimed:
                self._park(record)
            return False
        return True

    def _park(self, record: Record) -> None:
        """Out of the policy's sight, until memory is freed or a device is up again; others may overtake it."""
        record.parked = True
        self._parked[record.id] = record

    # ------------------------------------------------------------------------------------------ out of the queues

    def _hand_over(self, record: Record) -> None:
        plan = record.plan
        assert plan is not None
        message = record.message
        record.state = record.state.after(HAND_OVER)
        if self._tracing:
            self._port.changed(record, QUEUED)
        self._counts.handed_over += 1
        if message.deadline is not None:
            self.timed -= 1
        self._port.left()
        self._overtake(record)
        if record.claimed:  # the devices that it kept from others are free
            self.dirty.update(dict.fromkeys(plan.devices))
        if plan.scratch:
            self._take_scratch(record)
        if plan.sole >= 0:
            self.queues[plan.sole].outstanding += 1
            self._hazards.stand(record, self.fresh)
            self._port.send(plan.sole, Dispatch(record.id, 0, plan, message.args, record.scratch, message.fixed))
            return
        self._begin(record, plan)

    def _begin(self, record: Record, plan: Plan) -> None:
        """Send the parts that await nothing of a dispatch that has several."""
        record.returned = [None] * plan.returns
        record.pending = [part.needs for part in plan.parts]
        record.unsent = len(plan.parts)
        record.at = {}
        for index in plan.initial:
            self.send_part(record, index)
        if record.unsent == record.parts == 0:
            self._end(record, COMPLETE, None)

    def send_part(self, record: Record, index: int) -> None:
        """Send a part of a dispatch that has several to who does it."""
        plan = record.plan
        assert plan is not None
        device = plan.parts[index].device
        args = record.message.args
        record.parts += 1
        record.unsent -= 1
        if device < 0:
            self._port.call(Call(record.id, index, plan, args, record.scratch))
            return
        record.at[device] = record.at.get(device, 0) + 1
        self.queues[device].outstanding += 1
        self._port.send(device, Dispatch(record.id, index, plan, args, record.scratch))

    def _take_scratch(self, record: Record) -> None:
        plan = record.plan
        assert plan is not None
        record.scratch, fresh = self._ledger.take_scratch(plan, record.message.program)
        for device, items in fresh.items():
            self._port.send(device, Commit(record.id, items))

    def _overtake(self, record: Record) -> None:
        """Count whom it overtakes; who was overtaken too often claims its devices."""
        plan = record.plan
        assert plan is not None
        stage = record.message.stage
        if plan.sole >= 0:
            queue = self.queues[plan.sole]
            if stage is not None:
                queue.count(stage)
            queue.remove(record)
            if not queue.order or queue.order[0].id > record.id:
                return
        passed: dict[int, Record] = {}
        for device in plan.devices:
            queue = self.queues[device]
            if plan.sole < 0:
                queue.count(stage)
                queue.remove(record)
            for other in queue.passed(record):
                passed[other.id] = other
        for other in passed.values():
            other.overtaken += 1
            if other.overtaken >= MOST_OVERTAKEN and not other.claimed:
                assert other.plan is not None
                if self._down.isdisjoint(other.plan.devices):
                    if other.parked:
                        other.parked = False
                        del self._parked[other.id]
                    self._claim(other)

    def leave(self, record: Record) -> None:
        """A record has ended without having been handed over."""
        assert record.plan is not None
        for device in record.plan.devices:
            self.queues[device].remove(record)
            self.dirty[device] = None
        self._parked.pop(record.id, None)

    def memory_freed(self, devices: Iterable[int]) -> None:
        """Who waits for scratch on one of `devices` may try again."""
        freed = set(devices)
        for device in sorted(freed):
            self.dirty[device] = None
        for parked in list(self._parked.values()):
            assert parked.plan is not None
            if not freed.isdisjoint(parked.plan.devices):
                del self._parked[parked.id]
                parked.parked = False
                for device in parked.plan.devices:
                    self.queues[device].heap(parked)
                    self.dirty[device] = None

    # ------------------------------------------------------------------------------------------ holding back

    def pause(self, last: int) -> None:
        """Hand over nothing that was accepted after number `last`."""
        self.resume()
        self.open_until = last

    def resume(self) -> None:
        self.open_until = ALL
        self.fresh.extend(self._held)
        self._held.clear()
        for queue in self.queues:
            if queue.order:
                self.dirty[queue.rank] = None

    def down(self, device: int) -> None:
        """A device has died: nothing is handed to it."""
        self.queues[device].outstanding = DOWN
        self._down.add(device)
        for record in list(self.queues[device].claims):
            assert record.plan is not None
            for other in record.plan.devices:  # it must not keep the devices that are up from others
                self.queues[other].claims.remove(record)
                self.dirty[other] = None
            record.claimed = False
            self._park(record)

    def up(self, device: int) -> None:
        """A device has started again."""
        self.queues[device].outstanding = 0
        self._down.discard(device)
        self.memory_freed([device])
