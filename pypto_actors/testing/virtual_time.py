"""`VirtualTimeLoop`: an asyncio loop whose clock starts at 0 and jumps to the next timer when nothing is ready.

    anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop})

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())

    def pytest_asyncio_loop_factories(config, item):  # in conftest.py, for pytest-asyncio
        return {"virtual": VirtualTimeLoop}

Time is an integer of nanoseconds inside, so that ten sleeps of 0.1 s end at exactly 1.0 s, and timers one nanosecond
apart fire in order. Timers within one nanosecond fire together, in the order in which they were set; none fires before
its `when()`, as in asyncio.

What the clock cannot know is a thread. While work of `run_in_executor` (so also `asyncio.to_thread` and `getaddrinfo`)
or of `anyio.to_thread` is outstanding, the loop really waits for it and time stands; hence a thread must not wait for a
virtual timer. Other threads that mean to use `call_soon_threadsafe` are not seen. With sockets, pipes or signal
handlers registered, a loop without timers really waits as well, since something may still come from outside; with
timers it looks whether something came, and jumps.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextvars import Context
from selectors import BaseSelector, SelectorKey
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from pypto_actors.testing.deadlock import DeadlockError, who_waits
from pypto_actors.testing.timers import NANO, Timers, nanoseconds

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_DAY = 86400.0  # the longest wait that every selector takes


class NanosecondLoop(asyncio.SelectorEventLoop):
    """The base of both test loops: timers in nanoseconds, and a turn that a subclass shapes (`_pending`, `_run_ready`).

    `virtual_time` tells a backend whether this loop's clock jumps. `turns_per_instant`: so many turns without the clock
    moving, while a timer waits, are a `DeadlockError` too: something spins, and in virtual time that never ends.
    """

    virtual_time: bool = True
    turns_per_instant: int = 1_000_000

    # What is used of asyncio's own loop, alike in 3.11 to 3.14.
    _ready: deque[asyncio.Handle]
    _stopping: bool
    _debug: bool
    _current_handle: asyncio.Handle | None
    _selector: BaseSelector
    _internal_fds: int
    _signal_handlers: Mapping[int, asyncio.Handle]
    _check_closed: Callable[[], None]
    _check_thread: Callable[[], None]
    _check_callback: Callable[[object, str], None]
    _process_events: Callable[[list[tuple[SelectorKey, int]]], None]

    def __init__(self) -> None:
        super().__init__()
        self._clock_resolution = 1e-9
        self._now_ns = 0
        self._now = 0.0
        self._timers = Timers()
        self._thread_jobs = 0
        self._turns = 0

    def __repr__(self) -> str:
        state = "closed" if self.is_closed() else "running" if self.is_running() else "idle"
        return f"<{type(self).__name__} {state} at {self.time()} s, timers: {len(self._timers)}>"

    def close(self) -> None:
        super().close()
        self._timers.clear()

    # Clock and timers

    def time(self) -> float:
        """Seconds since the loop was made, or `time.monotonic()` where time is real."""
        return self._now if self.virtual_time else time.monotonic()

    def call_later(
        self, delay: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio. A delay above 0 is one nanosecond at least, so that who sleeps in a loop gets somewhere."""
        if not self.virtual_time or math.isinf(delay):
            return self.call_at(self.time() + delay, callback, *args, context=context)
        due = self._now_ns + (nanoseconds(delay) or math.ceil(delay))
        return self._arm(due, due / NANO, callback, args, context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio. `math.inf` never fires and counts for nothing: it is no timer that could end a deadlock."""
        return self._arm(None if when == math.inf else nanoseconds(when), when, callback, args, context)

    def _arm(
        self,
        due: int | None,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        self._check_closed()
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_at")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if due is not None:
            self._timers.add(due, timer)
        return timer

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        self._timers.count_cancelled(timer)

    # One turn: let time and events come, then run something

    def _run_once(self) -> None:
        if self.virtual_time:
            self._await_virtually(self._timers.next_due())
        else:
            self._await_really(self._timers.next_due())
        while (timer := self._timers.pop_due(self._now_ns)) is not None:
            # Still the same nanosecond, but who computed its time in floats compares it with `time()`, as anyio does.
            self._now = max(self._now, timer.when())
            self._ready.append(timer)
        self._run_ready()

    def _pending(self) -> bool:
        """Whether something waits for its turn."""
        return bool(self._ready)

    def _run_ready(self) -> None:
        """Run what is ready now; what becomes ready meanwhile has the next turn (asyncio's rule)."""
        for _ in range(len(self._ready)):
            self._run_handle(self._ready.popleft())

    def _run_handle(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        if not self._debug:
            handle._run()
            return
        try:
            self._current_handle = handle
            handle._run()
        finally:
            self._current_handle = None

    def _await_really(self, due: int | None) -> None:
        timeout: float | None = None
        if self._pending() or self._stopping:
            timeout = 0.0
        elif due is not None:
            timeout = min(max(0, due - time.monotonic_ns()) / NANO, _DAY)
        self._poll(timeout)
        self._now_ns = time.monotonic_ns()

    def _await_virtually(self, due: int | None) -> None:
        if self._pending() or self._stopping or (due is not None and due <= self._now_ns):
            self._count_turn()
            if self._may_hear_from_outside():
                self._poll(0.0)
        elif self._poll(0.0):
            return
        elif self._thread_works():
            self._poll(None)
        elif self._pending():
            return  # a thread reported and was done between the look at what is ready and the look at the threads
        elif due is not None:
            self._turns = 0
            self._now_ns = due
            self._now = max(self._now, due / NANO)
        elif self._may_hear_from_outside():
            self._poll(None)
        else:
            self._raise_deadlock()

    def _poll(self, timeout: float | None) -> bool:
        events = self._selector.select(timeout)
        if events:
            self._process_events(events)
        return bool(events)

    def _may_hear_from_outside(self) -> bool:
        return len(self._selector.get_map()) > self._internal_fds or bool(self._signal_handlers)

    def _count_turn(self) -> None:
        if not self._timers:
            self._turns = 0
            return
        self._turns += 1
        if self._turns > self.turns_per_instant:
            self._turns = 0
            raise DeadlockError(
                f"{self!r}: {self.turns_per_instant} turns without the clock moving, though a timer waits. Something "
                "spins (`sleep(0)` in a loop, or a task that swallows its cancellation). These tasks are pending:",
                who_waits(self),
            )

    def _raise_deadlock(self) -> NoReturn:
        waiting = who_waits(self)
        tasks = f"{len(waiting)} task(s) wait for ever:" if waiting else "no task is left, and nobody stopped the loop."
        raise DeadlockError(f"{self!r}: deadlock. Nothing is ready and no timer is set; {tasks}", waiting)

    # Threads that work for this loop

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As in asyncio. Virtual time stands until the future is done, which it also is when it was cancelled."""
        future = super().run_in_executor(executor, func, *args)
        self._thread_jobs += 1
        future.add_done_callback(self._thread_job_done)
        return future

    def _thread_job_done(self, _: object) -> None:
        self._thread_jobs -= 1

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As in asyncio; joins the threads in real time."""
        self._thread_jobs += 1
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._thread_jobs -= 1

    def _thread_works(self) -> bool:
        if self._thread_jobs:
            return True
        if threading.active_count() == 1:
            return False
        return any(_has_anyio_job(thread, self) for thread in threading.enumerate())


class VirtualTimeLoop(NanosecondLoop):
    """Virtual time, and ready callbacks in asyncio's own order. The class itself is the loop factory.

    Where nothing is ready and no timer is set, `run_until_complete` raises `DeadlockError`, which names each pending
    task, its place and what it awaits. Tasks can be cancelled and cleaned up after that, as `asyncio.Runner` does; one
    that goes on waiting all the same is reported by a second `DeadlockError` while the runner closes.
    """


def _has_anyio_job(thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is a worker of anyio for `loop` that is busy: anyio hands over by a queue that no loop sees."""
    if getattr(thread, "loop", None) is not loop:
        return False
    jobs = getattr(thread, "queue", None)
    return isinstance(jobs, queue.Queue) and jobs.unfinished_tasks > 0
