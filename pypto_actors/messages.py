"""Every message between actors: frozen records of values. What cannot be a value (a caller's record) stands beside it in the mailbox.

A `Request[R]` names the type of its reply. The table in `ARCHITECTURE.md` is checked against this module.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct

from pypto_actors.plan import Plan, PlanFamily
from pypto_actors.values import Access, DeviceTensor, Fixed

R = TypeVar("R")


class Message(Struct, frozen=True, tag=True, eq=False, gc=False, array_like=True):
    """Base of all messages. Those that cross to another process are encoded by msgspec, as arrays."""


class Request(Message, Generic[R], frozen=True, tag=True, eq=False, gc=False):
    """A message that its receiver answers with an `R`, once."""


# ------------------------------------------------------------------------------------------ to the coordinator


class Submit(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """A dispatch, accepted. `rank`: where steps without a device begin, -1: the coordinator chooses. `fixed`: of a bound program; what is
    touched of it is not among the `accesses`."""

    run: int
    program: Any
    plans: PlanFamily
    args: tuple[Any, ...]
    accesses: tuple[Access, ...]
    at: float
    rank: int = -1
    serial: bool = False
    priority: int = 0
    deadline: float | None = None
    stage: str | None = None
    after: tuple[int, ...] = ()
    plain: bool = False  # no deadline, nothing that it comes after
    fixed: Fixed | None = None

    @property
    def touched(self) -> tuple[Access, ...]:
        """All accesses."""
        return self.accesses if self.fixed is None else self.fixed.accesses + self.accesses


class Allocate(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Memory for tensors, each zeroed or filled from a host array (`pieces`)."""

    run: int
    tensors: tuple[DeviceTensor, ...]
    pieces: tuple[Write, ...] = ()
    accesses: tuple[Access, ...] = ()


class Copy(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """A copy of one or more pieces, each done by the device that it names."""

    run: int
    pieces: tuple[Piece, ...]
    accesses: tuple[Access, ...]


class Free(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Memory given back, once nothing accepted uses it any more."""

    run: int
    tensors: tuple[DeviceTensor, ...]


class Cancel(Message, frozen=True, tag=True, eq=False, gc=False):
    """Take back what has not started; does nothing otherwise."""

    run: int


class Tick(Message, frozen=True, tag=True, eq=False, gc=False):
    """The time; deadlines up to it have passed."""

    at: float


class Drain(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Answered when everything accepted before has ended."""

    run: int


class Retire(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Answered when every accepted dispatch of a program has ended."""

    run: int
    program: Any


class Pause(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Hand over nothing more; answered when what must end has ended."""

    run: int
    mode: Literal["wait", "keep", "abort"]


class Resume(Message, frozen=True, tag=True, eq=False, gc=False):
    """Hand over again."""


class Close(Message, frozen=True, tag=True, eq=False, gc=False):
    """Cancel all that is queued: the worker is closing."""


class End(Message, frozen=True, tag=True, eq=False, gc=False):
    """Nothing is left to do: give all memory back."""


class Completed(Message, frozen=True, tag=True, eq=False, gc=False):
    """A part of a dispatch, or a piece of a copy, is done. `value` is what a callback returned."""

    run: int
    part: int
    device: int
    started: float
    finished: float
    value: Any = None


class Reached(Message, frozen=True, tag=True, eq=False, gc=False):
    """An event inside a part that others await has happened."""

    run: int
    part: int
    event: int
    at: float


class Failed(Message, frozen=True, tag=True, eq=False, gc=False):
    """A part or a piece raised `error` in its step `step`."""

    run: int
    part: int
    device: int
    step: int
    error: BaseException
    started: float
    finished: float
    deserted: bool = False  # it only stopped since another member of its gang will not come


class Died(Message, frozen=True, tag=True, eq=False, gc=False):
    """A device has died, and all that it held with it."""

    device: int
    reason: str
    at: float


class Restarted(Message, frozen=True, tag=True, eq=False, gc=False):
    """A device that had died is there again, empty."""

    device: int
    at: float


# ------------------------------------------------------------------------------------------ to a device


class Dispatch(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Run one part of a plan; answered by `Completed` or `Failed`."""

    run: int
    part: int
    plan: Plan
    args: tuple[Any, ...]
    scratch: tuple[int, ...] = ()
    fixed: Fixed | None = None


class Commit(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Bring zeroed memory into being: `(allocation, bytes)` each. Answered as part -1: a failure always, success where `reply` asks."""

    run: int
    items: tuple[tuple[int, int], ...]
    reply: bool = False


class Release(Message, frozen=True, tag=True, eq=False, gc=False):
    """Give memory back."""

    allocations: tuple[int, ...]


class Write(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Host array to device tensor."""

    run: int
    part: int
    target: DeviceTensor
    source: Any


class Read(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Device tensor to host array."""

    run: int
    part: int
    target: Any
    source: DeviceTensor


class Transfer(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Device tensor to device tensor, done by the device of the target."""

    run: int
    part: int
    target: DeviceTensor
    source: DeviceTensor


# ------------------------------------------------------------------------------------------ to the host actor


class Call(Request[None], frozen=True, tag=True, eq=False, gc=False):
    """Run the host callback of a part; answered by `Completed` or `Failed`."""

    run: int
    part: int
    plan: Plan
    args: tuple[Any, ...]
    scratch: tuple[int, ...] = ()


Piece: TypeAlias = Write | Read | Transfer
ToCoordinator: TypeAlias = (
    Submit
    | Allocate
    | Copy
    | Free
    | Cancel
    | Tick
    | Drain
    | Retire
    | Pause
    | Resume
    | Close
    | End
    | Completed
    | Reached
    | Failed
    | Died
    | Restarted
)
ToDevice: TypeAlias = Dispatch | Commit | Release | Write | Read | Transfer
ToHost: TypeAlias = Call
AnyMessage: TypeAlias = ToCoordinator | ToDevice | ToHost
