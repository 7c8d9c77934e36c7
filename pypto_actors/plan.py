"""Plans: what a recorded program is to the actors. Plain records, made by `lowering.py`, replayed by every dispatch.

A plan is a graph of parts. A part is what one actor does in one go: steps on one device, or one host callback. A part starts when
the events that it awaits have happened; an event is the end of a step of another part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

from msgspec import Struct

from pypto_actors.errors import InternalError
from pypto_actors.values import DType, Shape

# Leading slices, one after another: (start, stop, whether the dimension is dropped). Empty: the whole as it came.
Path: TypeAlias = tuple[tuple[int, int, bool], ...]


class Source(Enum):
    """Where the value of a slot comes from."""

    ARGUMENT = "argument"  # an argument of the dispatch
    SCRATCH = "scratch"  # memory of the dispatch
    CONSTANT = "constant"  # a value that was known when the program was recorded


class Slot(Struct, frozen=True):
    """One value that a part's steps use: a whole argument, a leading slice of it, scratch, or a constant."""

    source: Source
    index: int = 0
    path: Path = ()
    writable: bool = False
    value: Any = None  # of a constant; of an argument: the kind that an `int` becomes, where a kernel takes a `float`


class Sync(Struct, frozen=True):
    """Stands where a function does: here the part waits until `members` devices of the dispatch have come to meeting `number`."""

    number: int
    members: int

    def __call__(self, *_: Any) -> None:
        raise InternalError("a meeting of devices is the executor's to hold")


class Step(Struct, frozen=True):
    """One call on a device: a kernel, or a copy when `function` is None."""

    name: str
    function: Callable[..., Any] | None
    slots: tuple[int, ...]  # positions in the part's slot table


# A step made ready: what to call, and what takes its arguments out of the values of the part's slots.
ReadyStep: TypeAlias = tuple[Callable[..., Any], Callable[[Sequence[Any]], Sequence[Any]]]


class Part(Struct, frozen=True):
    """What one actor does in one go.

    `events[k]` is the number of steps after which event `k` happens; the last event is the end of the part.
    `wakes[k]` are the parts that await it. `needs` counts the events that this part awaits. Parts of one `wave` await the same, and so are
    sent in one step: devices that meet do so within a wave, and every device gets all waves in one global order.
    """

    index: int
    device: int  # rank, or -1 for a host callback
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    needs: int
    events: tuple[int, ...]
    wakes: tuple[tuple[int, ...], ...]
    callback: str | Callable[..., Any] | None = None
    returned: int = -1  # position in `RunResult.returned`
    calls: tuple[ReadyStep, ...] = ()  # the steps, ready to run
    wave: int = 0
    meeting: int = 0  # how many parts of the wave meet others; 0: this one meets nobody
    direct: tuple[tuple[int, bool], ...] | None = None  # (argument, written) of each slot, where all are whole arguments
    gang: Sync | None = None  # the only meeting, where it is the first step and nobody awaits anything before the end
    plain: bool = True  # it meets nobody, and nobody awaits anything before its end


class Scratch(Struct, frozen=True):
    """Memory that each dispatch of the plan gets for itself."""

    device: int
    shape: Shape
    dtype: DType
    nbytes: int
    window: str = ""  # the name of a persistent window: it outlives the dispatch


class Footprint(Struct, frozen=True):
    """What a plan touches of one argument: bytes `[start, stop)` of it, counted as if it were contiguous, and how to slice to them."""

    argument: int
    path: Path
    start: int
    stop: int
    write: bool


class Apart(Struct, frozen=True):
    """What is touched at the same time: nothing in one of `sets` may be written that another touches. `name`: the gang's."""

    name: str
    sets: tuple[tuple[Footprint, ...], ...]


class Plan(Struct, frozen=True, eq=False):
    """A recorded program, placed on devices. Made once, replayed by every dispatch of one signature."""

    program: str
    parts: tuple[Part, ...]
    devices: tuple[int, ...]
    sole: int  # the device of a plan that is one part on one device, else -1
    initial: tuple[int, ...]  # the parts that await nothing
    scratch: tuple[Scratch, ...]
    scratch_bytes: Mapping[int, int]  # of each device that holds scratch
    returns: int  # how many callbacks give a value
    windows: bool = False  # is some of its scratch a persistent window?
    simple: bool = False  # is it one part on one device, without scratch?


PlanAt: TypeAlias = Callable[[int, bool], Plan]


class PlanFamily(Struct, frozen=True, eq=False):
    """The plans of one recording: where steps without a device begin, and whether steps run one after another."""

    lower: PlanAt
    floating: bool  # does any step's device depend on the rank where the dispatch begins?
    footprints: tuple[Footprint, ...]
    fixed: Plan | None  # the only one, where nothing floats and steps need not go one after another
    apart: tuple[Apart, ...] = ()
    plans: dict[tuple[int, bool], Plan] = {}

    def at(self, rank: int, serial: bool = False) -> Plan:
        key = (rank if self.floating else 0, serial)
        plan = self.plans.get(key)
        if plan is None:
            plan = self.plans[key] = self.lower(*key)
        return plan
