"""The contract between a device actor and what computes for it, and between a worker and a backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from pypto_actors.messages import Commit, Completed, Dispatch, Failed, Piece, Reached, Release
from pypto_actors.plan import Plan, Slot

Answer: TypeAlias = Completed | Failed | Reached


class Desk(Protocol):
    """Where answers are handed in, on the loop."""

    def post(self, answer: Answer, /) -> None:
        """Put an answer into the coordinator's mailbox."""

    def answered(self, answer: Answer, /) -> None:
        """Hand in the only answer that has come from outside a turn, and let the actors work."""

    def turn(self) -> None:
        """Let the actors work now; for those who come from outside a turn."""

    def died(self, rank: int, reason: str, /) -> None:
        """A device has died; it answers nothing any more."""

    def later(self, work: Callable[[], None], /) -> None:
        """Do `work` in this turn, when what is being done is done."""


class Executor(Protocol):
    """Does what one device actor is told, in the order in which it is told. Calls return at once; answers go to the desk, on the loop.

    `dead`: it answers nothing any more.

    Copies may overtake dispatches: the coordinator sends only what has nothing in common with anything unfinished.
    """

    dead: bool

    def dispatch(self, message: Dispatch) -> None: ...

    def desert(self, message: Dispatch) -> None:
        """A part has reached the device after its death: those it was to meet go on without it. It is not answered."""

    def commit(self, message: Commit) -> None: ...

    def release(self, message: Release) -> None: ...

    def copy(self, message: Piece) -> None: ...

    def kill(self, reason: str) -> None:
        """Die, as hardware would; tell the desk."""

    def window(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        """The value of a slot as a host callback sees it: an array of this device's memory, a host array, or a scalar.

        An executor may also have `fetch`, with the same arguments: it gives `None`, or a future that is to be awaited before `window`.
        """


class Backend(Protocol):
    """Makes the executors of a worker, one a device.

    It may also have `abort()`, which is called when the worker aborts, while work is still under way.
    """

    name: str
    virtual_time: bool  # may it run on a loop whose clock is virtual?
    callbacks_in_threads: bool  # do plain host callbacks run in threads?

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        """Start one executor a rank; raises the original error with nothing left behind."""

    async def restart(self, rank: int) -> Executor:
        """Start one device again, empty, after it has died."""

    async def stop(self) -> None:
        """End them all; returns when nothing of them is left. Called once, after the last answer."""


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock; the plain function where `loop.time` only calls it."""
    own = getattr(type(loop), "time", None)
    return time.monotonic if own is asyncio.BaseEventLoop.time else loop.time


def plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same bytes as an array of no subclass, which may have operators of its own."""
    return array if type(array) is np.ndarray else array.view(np.ndarray)


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same bytes, not to be written."""
    view = array.view(np.ndarray)
    view.setflags(write=False)
    return view
