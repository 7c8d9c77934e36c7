"""What is ready for one device, and in which order it goes. Pure and synchronous.

Dispatches that are alike stand in a *line*: who was accepted first goes first, whatever our own policies say. Heaps, one for each stage,
are made when the first comes that is unlike them.

A dispatch that needs several devices stands in the queue of each. When it is its turn on one of them and it cannot go yet, it
*claims* all of them: a claimed device is handed nothing else. Claims stand in one global order, that of acceptance, so no mix of
dispatches can deadlock. Whoever was overtaken too often claims its devices as well, whatever the policy says.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heapify, heappop, heappush
from typing import Any

from pypto_actors.lifecycle import Record, RunState
from pypto_actors.policy import Item, Policy, View

DOWN = 1 << 30  # parts outstanding on a device that is down: there is no room for more
MOST_OVERTAKEN = 64  # how often a ready dispatch may be overtaken


def _number(record: Record) -> int:
    return record.id


class Key:
    """A key that a user's policy gave. Where two cannot be compared that is noted, with whose they are, and the heap stays whole."""

    __slots__ = ("_faults", "_record", "_value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, record: Record, faults: list[tuple[Record, Exception]]) -> None:
        self._value = value
        self._record = record
        self._faults = faults

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, Key) and bool(self._value == other._value)
        except Exception as error:
            self._faults.append((self._record, error))
            return False

    def __lt__(self, other: Key) -> bool:
        try:
            return bool(self._value < other._value)
        except Exception as error:
            self._faults.append((self._record, error))
            return False


class DeviceQueue:
    """Ready dispatches of one device, by stage; and what the device was handed."""

    __slots__ = ("busy_time", "claims", "decodes", "order", "outstanding", "prefills", "rank", "stages", "work")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.busy_time = 0.0  # seconds that its kernels have run
        self.outstanding = 0  # parts handed to the device and not answered
        self.work = 0  # accepted dispatches that use the device
        self.prefills = 0  # since the last decode
        self.decodes = 0  # since the last prefill
        self.stages: dict[str | None, list[tuple[Any, int, Record]]] | None = None  # `None`: what is in `order` is a line
        self.order: list[Record] = _NONE  # ready, in the order of acceptance
        self.claims: list[Record] = _NONE

    def __repr__(self) -> str:
        return f"<DeviceQueue {self.rank}: {len(self.order)} ready, {self.outstanding} handed over>"

    def takes(self, stage: str | None) -> bool:
        """Is it a line in which one of `stage` may stand?"""
        order = self.order
        return not order or (self.stages is None and order[0].message.stage == stage)

    def line_up(self, record: Record) -> None:
        """`record` is ready, and stands in the order of acceptance."""
        order = self.order
        if order is _NONE:
            order = self.order = []
        if order and order[-1].id > record.id:
            insort(order, record, key=_number)
        else:
            order.append(record)

    def push(self, record: Record) -> None:
        """`record` is ready, and stands where the policy says. No line any more: who stands in it has a key."""
        if self.stages is None:
            self.stages = {}
            for other in self.order:
                self.heap(other)
        self.line_up(record)
        self.heap(record)

    def heap(self, record: Record) -> None:
        """Let the policy see `record`, which stands in the order already."""
        stages = self.stages
        assert stages is not None
        stage = record.message.stage
        heap = stages.get(stage)
        if heap is None:
            heap = stages[stage] = []
        elif len(heap) > 2 * len(self.order) + 64:  # most of it has left the queue
            heap[:] = [entry for entry in heap if _ready(entry[2])]
            heapify(heap)
        heappush(heap, (record.key, record.id, record))

    def remove(self, record: Record) -> None:
        """`record` was handed over, or leaves the queue if it stands in it. The heap lets go of it when it comes to the front."""
        order = self.order
        if order and order[0] is record:
            del order[0]
        else:
            index = bisect_left(order, record.id, key=_number)
            if index < len(order) and order[index] is record:
                del order[index]
        if record.claimed and record in self.claims:
            self.claims.remove(record)
        if not self.order:
            self.stages = None

    def claim(self, record: Record) -> None:
        """Keep this device for `record`."""
        if self.claims is _NONE:
            self.claims = []
        insort(self.claims, record, key=_number)

    def first(self, policy: Policy) -> Record | None:
        """Whose turn it is; the policy is asked only where there is a choice.

        A claim keeps the device, but not against the policy: dispatches of other stages that need this device alone may go before it, until
        it was overtaken too often.
        """
        claims = self.claims
        if claims:
            claim = claims[0]
            if any(one.overtaken >= MOST_OVERTAKEN for one in claims):
                return claim  # who passes it passes those behind it
            others = [head for head in self._heads() if head.message.stage != claim.message.stage and _alone(head)]
            return self._choose(policy, [claim, *others]) if others else claim
        if self.stages is None:
            return self.order[0] if self.order else None
        if len(self.stages) == 1:  # one stage: no choice
            for heap in self.stages.values():
                while heap:
                    if _ready(heap[0][2]):
                        return heap[0][2]
                    heappop(heap)
            self.stages.clear()
            return None
        heads = self._heads()
        return self._choose(policy, heads) if len(heads) > 1 else heads[0] if heads else None

    def _heads(self) -> list[Record]:
        """The first ready dispatch of each stage."""
        heads: list[Record] = []
        assert self.stages is not None
        for stage, heap in list(self.stages.items()):
            while heap and not _ready(heap[0][2]):
                heappop(heap)
            if heap:
                heads.append(heap[0][2])
            else:
                del self.stages[stage]
        return heads

    def _choose(self, policy: Policy, candidates: list[Record]) -> Record:
        candidates.sort(key=_number)
        view = View(self.rank, tuple(item_of(record) for record in candidates), self.prefills, self.decodes)
        choice = policy.choose(view)
        if not 0 <= choice < len(candidates):
            raise IndexError(f"{policy!r}.choose gave {choice!r} for {len(candidates)} candidates")
        return candidates[choice]

    def passed(self, record: Record) -> list[Record]:
        """Who was accepted before `record`, is ready here, and is overtaken by it."""
        order = self.order
        if not order or order[0].id >= record.id:
            return _NONE
        return order[: bisect_left(order, record.id, key=_number)]

    def count(self, stage: str | None) -> None:
        """A dispatch of `stage` was handed to the device."""
        if stage == "prefill":
            self.prefills += 1
            self.decodes = 0
        elif stage == "decode":
            self.decodes += 1
            self.prefills = 0


_NONE: list[Record] = []


def _ready(record: Record) -> bool:
    return record.state is RunState.QUEUED and not record.parked


def _alone(record: Record) -> bool:
    """Does it need one device only?"""
    return record.plan is not None and len(record.plan.devices) == 1


def item_of(record: Record) -> Item:
    message = record.message
    return Item(record.program, message.stage, message.priority, message.at, message.deadline)
