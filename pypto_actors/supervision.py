"""The life of a worker: its start, its end, and the task that sees to both, whichever tasks enter and leave it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, Literal

import anyio

from pypto_actors.backends.thread import WorkThread
from pypto_actors.config import DistributedConfig
from pypto_actors.errors import WorkerClosedError, text_of
from pypto_actors.executor import Answer, Backend
from pypto_actors.host import HostActor
from pypto_actors.lifecycle import Record
from pypto_actors.mailbox import Counter
from pypto_actors.messages import Close, Drain, End, Restarted, Resume
from pypto_actors.system import System

Mode = Literal["drain", "abort"]


class CallbackThreads:
    """Threads for host callbacks, started as they are needed; they take from one queue."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self._count = count
        self._queue: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._threads: list[WorkThread] = []
        self._running = 0

    def run(self, work: Callable[[], Answer]) -> None:
        """Have `work` done in a thread, and its answer posted."""
        self._running += 1
        if self._running > len(self._threads) < self._count:
            self._threads.append(WorkThread(f"pypto-callbacks-{len(self._threads)}", self._queue))
        self._queue.put(lambda: self._system.loop.call_soon_threadsafe(self._answer, work()))

    def _answer(self, answer: Answer) -> None:
        self._running -= 1
        self._system.tell(answer)

    def end(self) -> None:
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.join()


class Supervisor:
    """Starts the actors of a worker and ends them. Closing is a task of its own, so that no caller's cancellation stops it half-way."""

    def __init__(
        self,
        worker: object,
        system: System,
        backend: Backend,
        counter: Counter,
        config: DistributedConfig,
        callbacks: Mapping[str, Callable[..., Any]],
    ) -> None:
        self._worker = worker
        self._system = system
        self._backend = backend
        self._counter = counter
        self._config = config
        self._callbacks = callbacks
        self._threads: CallbackThreads | None = None
        self._closing: asyncio.Task[None] | None = None
        self._abort: asyncio.Future[None] = system.loop.create_future()  # resolved when a drain must become an abort
        self._restarts: set[asyncio.Task[None]] = set()
        self._timeout = 60.0
        self.open = False
        self.closed = False

    @property
    def state(self) -> str:
        return "open" if self.open else "closed" if self.closed else "closing" if self._closing else "starting"

    async def start(self, timeout: float) -> None:
        """Start the devices. Raises the original error, with nothing left behind."""
        system, backend = self._system, self._backend
        self._timeout = timeout
        if getattr(system.loop, "virtual_time", False) and not getattr(backend, "virtual_time", False):
            raise RuntimeError(
                f"the clock of this loop is virtual, and backend {backend.name!r} works in real time; use backend='inline', or a real loop"
            )
        anyio.CancelScope()  # the first loads anyio's half for asyncio, for which a cancellation should not have to wait
        try:
            async with asyncio.timeout(timeout) as scope:
                executors = await backend.start(range(self._config.world_size), system, system.loop)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TimeoutError(f"backend {backend.name!r} did not start within {timeout} s; see startup_timeout") from error
        if getattr(backend, "callbacks_in_threads", True):
            self._threads = CallbackThreads(system, max(1, self._config.num_sub_workers))
        host = HostActor(self._worker, system.loop, executors, system.tell, self._threads.run if self._threads else None, self._callbacks)
        system.connect(executors, host)
        system.eager = not getattr(backend, "virtual_time", False)
        system.restarter = self._begin_restart
        self.open = True

    def _begin_restart(self, rank: int) -> None:
        task = self._system.loop.create_task(self._restart(rank), name=f"pypto_actors: restart of device {rank}")
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, rank: int) -> None:
        system = self._system
        try:
            async with asyncio.timeout(self._timeout):
                executor = await self._backend.restart(rank)
        except Exception as error:
            if not self._abort.done():  # else nothing waits for it any more
                system.died(rank, f"its restart failed: {text_of(error)}")
            return
        system.replace(rank, executor)
        system.tell(Restarted(rank, system.clock()))

    async def leave(self, mode: Mode) -> None:
        """Close, and stay until it is done; cancelled meanwhile, a drain becomes an abort."""
        closing = self._begin(mode)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            if not closing.done():
                self._must_abort()
                await _finished(closing)
            raise

    async def close(self, mode: Mode, timeout: float | None) -> None:
        """Close; several may wait for it. Cancelled, it goes on without this caller."""
        closing = self._begin(mode)
        if timeout is not None and not closing.done():  # it holds also when this caller is cancelled
            timer = self._system.loop.call_later(timeout, self._must_abort)
            closing.add_done_callback(lambda _: timer.cancel())
        await asyncio.shield(closing)

    def _begin(self, mode: Mode) -> asyncio.Task[None]:
        """The task that closes; the end of all work is not its own end."""
        if self.closed:
            assert self._closing is not None
            return self._closing
        if mode == "abort":
            self._must_abort()
        if self._closing is None:
            self.open = False
            self._refuse_waiting()
            if mode == "abort":
                self._tell_abort()
            self._closing = self._system.loop.create_task(self._close(), name="pypto_actors: closing")
        elif mode == "abort" and not self._closing.done():
            self._tell_abort()
        return self._closing

    def _must_abort(self) -> None:
        if not self._abort.done():
            self._abort.set_result(None)

    def _tell_abort(self) -> None:
        abort = getattr(self._backend, "abort", None)
        if abort is not None:
            abort()
        self._system.tell(Close())
        self._system.flush()

    def _refuse_waiting(self) -> None:
        waiting = self._system.admission.waiting
        while waiting:
            waiting.popleft().refuse(WorkerClosedError("the worker was closed while the call waited for room in its queue"))

    async def _close(self) -> None:
        system = self._system
        system.tell(Resume())
        try:
            await self._drained()
        finally:
            if system.crashed is None:
                system.post(End())
                system.work()
            self.closed = True
            try:
                await self._stop()
            finally:
                system.stop()

    async def _drained(self) -> None:
        """Wait until everything accepted has ended; told to abort, cancel what is queued first."""
        system = self._system
        record = Record(self._counter.next())
        system.tell(Drain(record.id), record)
        ended = system.loop.create_future()
        record.enlist(ended)
        if system.crashed is not None:
            return
        await asyncio.wait([ended, self._abort], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            self._tell_abort()
            await ended

    async def _stop(self) -> None:
        """End all that was started, also where the loop is shut down meanwhile, which cancels this task and those of the restarts."""
        with anyio.CancelScope(shield=True):
            try:
                while self._restarts:
                    await asyncio.wait(self._restarts)
            finally:
                try:
                    await self._backend.stop()
                finally:
                    if self._threads is not None:
                        self._threads.end()


async def _finished(task: asyncio.Task[None]) -> None:
    """Wait for the end of `task`, whatever cancels this one meanwhile."""
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
