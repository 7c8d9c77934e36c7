"""The handle of a dispatch, and the result that it gives."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from numbers import Real
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pypto_actors.compiled import AnyProgram
from pypto_actors.errors import ArgumentTypeError, ArgumentValueError, InternalError
from pypto_actors.host import INSIDE
from pypto_actors.lifecycle import Record, RunState
from pypto_actors.messages import Cancel
from pypto_actors.system import System

_DONE = RunState.DONE  # looking a member up at its enumeration is slow


class RunResult(Struct, frozen=True, eq=False):
    """What a dispatch gave.

    Attributes:
        run_id: the number of the dispatch in the order of acceptance.
        program: the program that ran.
        outputs: return style: the arrays of the `Out` parameters, in their order; else empty.
        returned: the values of the host callbacks, in the order in which they were recorded.
        queued_at: when it was accepted; seconds of the loop's clock, as the next two.
        started_at: when a device began with it.
        finished_at: when its last step ended.
        devices: ranks of the devices that it used.
    """

    run_id: int
    program: AnyProgram
    outputs: tuple[Any, ...]
    returned: tuple[Any, ...]
    queued_at: float
    started_at: float
    finished_at: float
    devices: tuple[int, ...]


def refuse_inside_callback(worker: object, what: str) -> None:
    """Raise if a callback of `worker` is running in this context: what it waits for could be waiting for it."""
    inside = INSIDE.get()
    if inside is not None and inside.active and inside.worker is worker:
        raise RuntimeError(
            f"{what} inside the callback {inside.name!r} of the same worker could wait for itself; "
            "use submit_nowait there, and wait after the callback has ended"
        )


class DistributedRunHandle(Record, eq=False, weakref=True):
    """One accepted dispatch. Awaitable by any number of tasks; cancelling one of them leaves the dispatch and the others alone.

    Attributes:
        program: the program, as it was registered.
        state: where it stands, a `RunState`.
    """

    _result: RunResult | None = None
    if TYPE_CHECKING:  # told to the type checker only: a field of the record cannot be declared twice
        program: AnyProgram

    @property
    def run_id(self) -> int:
        """The number of the dispatch in the order of acceptance."""
        return self.id

    def done(self) -> bool:
        """Has it ended, in whatever way?"""
        return self.ended

    def cancel(self) -> bool:
        """Take the dispatch back if it has not started. True exactly when it will not run; a second call gives the same answer."""
        self._check_thread("cancel")
        system: System = self.system
        if self.state is RunState.QUEUED:
            system.tell(Cancel(self.id))
            system.flush()
        return self.state is RunState.CANCELLED

    def result(self) -> RunResult:
        """The result; raises the failure, or `asyncio.InvalidStateError` before the end. Never blocks."""
        if self.state is _DONE:
            result = self._result
            if result is None:
                plan = self.plan
                if plan is None:
                    raise InternalError(f"{self!r} ended without a plan")
                result = self._result = RunResult(
                    self.id,
                    self.program,
                    self.outputs,
                    tuple(self.returned) if self.returned else (),
                    self.queued_at,
                    self.started_at,
                    self.finished_at,
                    plan.devices,
                )
            return result
        if not self.ended or self.failure is None:
            raise asyncio.InvalidStateError(f"dispatch {self.id} has not ended: it is {self.state.value}")
        self.asked = True
        raise self.failure.make()

    def exception(self) -> BaseException | None:
        """The failure, or `None`; raises `asyncio.InvalidStateError` before the end. Never blocks."""
        if not self.ended:
            raise asyncio.InvalidStateError(f"dispatch {self.id} has not ended: it is {self.state.value}")
        if self.failure is None:
            return None
        self.asked = True
        return self.failure.make()

    async def wait(self, timeout: float | None = None) -> RunResult:
        """The result within `timeout` seconds, or `TimeoutError`, which leaves the dispatch alone. `None`: however long it takes."""
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Real) or timeout != timeout):
            raise ArgumentTypeError(f"timeout is a number of seconds, or None, got {timeout!r}")
        if timeout is None:
            return await self
        try:
            timeout = float(timeout)
        except OverflowError:
            raise ArgumentValueError("timeout is too large for a float; give None to wait however long it takes") from None
        try:
            async with asyncio.timeout(timeout) as scope:
                return await self
        except TimeoutError:
            if not scope.expired() or self.ended:
                return self.result()
            raise TimeoutError(f"dispatch {self.id} has not ended within {timeout} s: it is {self.state.value}") from None

    def __await__(self) -> Generator[Any, None, RunResult]:
        if INSIDE.get() is not None:
            refuse_inside_callback(self.worker, "waiting for a dispatch")
        if not self.state.final:
            self._check_thread("await")
            waiter = self.system.waiter()
            self.enlist(waiter)
            try:
                yield from waiter
            finally:
                if not self.state.final:
                    self.delist(waiter)
        return self.result()

    def _check_thread(self, what: str) -> None:
        self.worker._check_thread(what)

    def __repr__(self) -> str:
        name = getattr(self.program, "name", self.program)
        return f"<DistributedRunHandle {self.id} of {name!r}: {self.state.value}>"
