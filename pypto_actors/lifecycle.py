"""The life cycle of what was accepted: a table of states, and the record that the caller and the coordinator share.

The record is the one thing besides a mailbox that both sides touch. The coordinator moves it through the table; the caller reads it and
leaves futures on it to be woken by. Both happen on one loop, each in one synchronous step.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any, Protocol

from msgspec import Struct

from pypto_actors.errors import InternalError, PyptoActorsError
from pypto_actors.plan import Plan


class RunEvent(IntEnum):
    """What can happen to a dispatch."""

    HAND_OVER = 0
    COMPLETE = 1
    FAIL = 2
    CANCEL = 3
    EXPIRE = 4


class RunState(Enum):
    """Where a dispatch stands. `QUEUED` until it is handed to its devices; the last four are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    ways: tuple[RunState | None, ...]
    final: bool

    def after(self, event: RunEvent) -> RunState:
        """The state after `event`; an `InternalError` names both where the table has no such way."""
        state = self.ways[event]
        if state is None:
            raise InternalError(f"a dispatch that is {self.value} cannot {event.name.lower().replace('_', ' ')}")
        return state


TABLE: dict[RunState, dict[RunEvent, RunState]] = {
    RunState.QUEUED: {
        RunEvent.HAND_OVER: RunState.RUNNING,
        RunEvent.FAIL: RunState.FAILED,
        RunEvent.CANCEL: RunState.CANCELLED,
        RunEvent.EXPIRE: RunState.EXPIRED,
    },
    RunState.RUNNING: {
        RunEvent.COMPLETE: RunState.DONE,
        RunEvent.FAIL: RunState.FAILED,
    },
}
for _state in RunState:
    _state.ways = tuple(TABLE.get(_state, {}).get(_event) for _event in RunEvent)
    _state.final = _state not in TABLE
_QUEUED = RunState.QUEUED


class Failure(Struct, frozen=True, eq=False):
    """Why something accepted did not succeed; `make()` builds a new exception for each waiter, with the cause chained."""

    kind: type[PyptoActorsError]
    text: str
    fields: dict[str, Any] = {}
    cause: BaseException | None = None

    def make(self) -> PyptoActorsError:
        error = self.kind(self.text, **self.fields)
        error.__cause__ = self.cause
        return error


class Waiter(Protocol):
    """What a record wakes: an `asyncio.Future`, seen from where no loop is known."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class Record(Struct, eq=False, dict=False, weakref=True):
    """What is known of one accepted dispatch or memory operation.

    `id` is its number in the order of acceptance. `waits` counts what it still waits for (hazards and dependencies).
    """

    id: int
    program: Any = None
    message: Any = None
    after: tuple[Record, ...] = ()
    outputs: tuple[Any, ...] = ()
    queued_at: float = 0.0
    system: Any = None  # of a handle: where its messages go
    worker: Any = None  # of a handle: whose it is
    plan: Plan | None = None  # known at once where its program has one only
    sole: int = -1  # the only device that it needs, or -1
    state: RunState = _QUEUED
    failure: Failure | None = None
    raised: Any = None  # the `Failed` messages of its parts
    asked: bool = False  # has anybody been told of the failure?
    waiters: Any = None  # None, one waiter, or a list of them
    # hazards
    waits: int = 0
    claims: Any = None
    bundle: Any = None  # what it claims together
    stands: int = -1  # the single device to which it was handed, or -1
    # scheduling
    key: Any = None
    dependents: list[Record] | None = None
    broken: Record | None = None  # the dependency that failed
    overtaken: int = 0
    claimed: bool = False
    parked: bool = False  # does it wait for scratch, out of the sight of the policy?
    # execution
    pending: Any = None  # of each part, how many events it still awaits
    parts: int = 0  # parts sent and not answered
    at: Any = None  # how many of them at each device, where there are several parts
    unsent: int = 0
    scratch: tuple[int, ...] = ()
    returned: Any = None
    started_at: float = -1.0
    finished_at: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state.final

    def wake(self) -> None:
        """Wake who waits; once, when the end is known."""
        waiters = self.waiters
        if waiters is None:
            return
        self.waiters = None
        if type(waiters) is not list:
            if not waiters.done():
                waiters.set_result(None)
            return
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def enlist(self, waiter: Waiter) -> None:
        """Add who is to be woken at the end."""
        if self.waiters is None:
            self.waiters = waiter
        elif type(self.waiters) is list:
            self.waiters.append(waiter)
        else:
            self.waiters = [self.waiters, waiter]

    def delist(self, waiter: Waiter) -> None:
        """Forget a waiter that gave up."""
        if self.waiters is waiter:
            self.waiters = None
        elif type(self.waiters) is list and waiter in self.waiters:
            self.waiters.remove(waiter)
