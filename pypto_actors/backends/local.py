"""What the backends inside this process share: a dispatch becomes calls on views, and a copy is a `numpy.copyto`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np

from pypto_actors.backends.memory import Interconnect, Views
from pypto_actors.backends.rendezvous import Deserted
from pypto_actors.errors import InternalError
from pypto_actors.executor import Answer, Desk
from pypto_actors.messages import Commit, Completed, Dispatch, Failed, Piece, Reached, Read, Release, Transfer, Write
from pypto_actors.plan import Part, Plan, Slot, Sync
from pypto_actors.values import DeviceTensor

Clock: TypeAlias = Callable[[], float]


class LocalExecutor:
    """One device in this process; the subclasses say where its kernels and its large copies run."""

    __slots__ = ("_clock", "_desk", "_interconnect", "_rank", "_views", "dead")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, clock: Clock) -> None:
        self._rank = rank
        self._interconnect = interconnect
        self._desk = desk
        self._clock = clock
        self.dead = False
        self._views: Views | None = None  # made for the first dispatch: thousands of devices may never see one

    @property
    def views(self) -> Views:
        views = self._views
        if views is None:
            views = self._views = Views(self._rank, self._interconnect)
        return views

    def unable(self, message: Dispatch, error: Exception) -> None:
        """The values of a part's slots could not be made: memory is missing."""
        now = self._clock()
        answer = self.over(message, Failed(message.run, message.part, self._rank, -1, error, now, now))
        if not self.dead:
            self._desk.post(answer)

    def over(self, message: Dispatch, answer: Answer) -> Answer:
        """A part has ended; if it meets others, they learn of it."""
        part = message.plan.parts[message.part]
        if part.meeting:
            self._interconnect.rendezvous.leave((message.run, part.wave), part.meeting, type(answer) is Failed)
        return answer

    def desert(self, message: Dispatch) -> None:
        self.over(message, failed(message, self._rank, "its device has died", self._clock()))

    def kill(self, reason: str) -> None:
        """Die, as hardware would: what it holds is never answered, its memory is gone."""
        if self.dead:
            return
        self.dead = True
        self._views = None
        self._interconnect.lose(self._rank)
        self._desk.died(self._rank, reason)

    def commit(self, message: Commit) -> None:
        now = self._clock()
        try:
            for allocation, nbytes in message.items:
                self._interconnect.commit(allocation, nbytes, self._rank)
        except Exception as error:
            self._desk.post(Failed(message.run, -1, self._rank, -1, error, now, now))
            return
        if message.reply:
            self._desk.post(Completed(message.run, -1, self._rank, now, now))

    def release(self, message: Release) -> None:
        if self._views is not None:
            self._views.forget(message.allocations)
        for allocation in message.allocations:
            self._interconnect.release(allocation)

    def window(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        return self.views.slot(slot, args, scratch, plan)

    def copied(self, message: Piece) -> Answer:
        """Do a copy, here and now."""
        started = self._clock()
        try:
            np.copyto(self._side(message.target), self._side(message.source))
        except BaseException as error:
            return Failed(message.run, message.part, self._rank, -1, error, started, self._clock())
        return Completed(message.run, message.part, self._rank, started, self._clock())

    def _side(self, value: Any) -> Any:
        return self._interconnect.array(value) if type(value) is DeviceTensor else value


def failed(message: Dispatch, rank: int, reason: str, now: float) -> Failed:
    """A part that has not begun."""
    return Failed(message.run, message.part, rank, -1, RuntimeError(reason), now, now)


def execute(message: Dispatch, part: Part, values: Sequence[Any], rank: int, clock: Clock) -> Answer:
    """Run the steps of a part that meet nobody and that nobody awaits in between; a failure says at which step."""
    started = clock()
    number = 0
    try:
        for number, (function, pick) in enumerate(part.calls):  # noqa: B007 (the number of the step that raised)
            function(*pick(values))
    except BaseException as error:
        return Failed(message.run, message.part, rank, number, error, started, clock())
    return Completed(message.run, message.part, rank, started, clock())


def execute_from(message: Dispatch, part: Part, values: Sequence[Any], rank: int, clock: Clock, first: int) -> Answer:
    """The same from step `first` on: what comes before it is over. Apart from `execute`, whose loop every dispatch pays for."""
    started = clock()
    number = first
    try:
        for number, (function, pick) in enumerate(part.calls[first:], first):  # noqa: B007 (the number of the step that raised)
            function(*pick(values))
    except BaseException as error:
        return Failed(message.run, message.part, rank, number, error, started, clock())
    return Completed(message.run, message.part, rank, started, clock())


def stepping(
    message: Dispatch, part: Part, values: Sequence[Any], rank: int, clock: Clock, post: Callable[[Answer], None]
) -> Generator[Sync, None, Answer]:
    """The same for any part: it yields where other devices must come, and posts the events that others await."""
    started = clock()
    number, event = 0, 0
    last = len(part.events) - 1
    try:
        for number, (function, pick) in enumerate(part.calls):
            if type(function) is Sync:
                yield function
            else:
                function(*pick(values))
            if number + 1 == part.events[event] and event < last:
                post(Reached(message.run, message.part, event, clock()))
                event += 1
    except Deserted as error:
        return Failed(message.run, message.part, rank, number, error, started, clock(), True)
    except BaseException as error:
        return Failed(message.run, message.part, rank, number, error, started, clock())
    return Completed(message.run, message.part, rank, started, clock())


def size_of(message: Piece) -> int:
    """Bytes that a copy moves."""
    match message:
        case Write() | Transfer():
            return message.target.nbytes
        case Read():
            return message.source.nbytes
        case _:
            raise InternalError(f"{message!r} is no copy")
