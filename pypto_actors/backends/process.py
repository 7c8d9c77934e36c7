"""`backend="process"`: one process for each device, tensors in shared memory. Devices overlap whatever their kernels do, and may die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from pypto_actors.backends.blas import blas_variables, check_blas_threads
from pypto_actors.backends.process_executor import ProcessExecutor, Wave
from pypto_actors.backends.process_sharing import Sharing
from pypto_actors.backends.rendezvous import Key
from pypto_actors.backends.shared_memory import SharedInterconnect
from pypto_actors.backends.shipping import check_cloudpickle
from pypto_actors.backends.thread import WorkThread
from pypto_actors.executor import Desk, Executor, clock_of

GRACE = 10.0  # seconds from the end of the work, or from an abort, after which a process is killed


class ProcessBackend:
    """Makes executors with a process each.

    Args:
        blas_threads: threads of BLAS in each process, set before numpy loads there; `None`: what the environment says.

    Raises:
        ValueError: `blas_threads` is not positive.
        ImportError: cloudpickle is not installed (extra `process`).
    """

    name = "process"
    virtual_time = False
    callbacks_in_threads = True

    def __init__(self, blas_threads: int | None = 1) -> None:
        check_blas_threads(blas_threads)
        check_cloudpickle()
        self.blas_threads = blas_threads
        self._executors: list[ProcessExecutor] = []
        self._buried: list[ProcessExecutor] = []  # dead ones
        self._make: Callable[[int], ProcessExecutor] | None = None
        self._interconnect: SharedInterconnect | None = None
        self._puncher: WorkThread | None = None
        self._grace: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ProcessBackend blas_threads={self.blas_threads}: {len(self._executors)} processes>"

    @property
    def pids(self) -> tuple[int, ...]:
        """The process of each device, by rank."""
        return tuple(executor.pid for executor in self._executors)

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        if not hasattr(os, "memfd_create") or not hasattr(os, "pidfd_open"):
            raise RuntimeError("backend='process' needs Linux: memfd_create for memory without names, pidfd_open to hear of a death")
        interconnect, clock = SharedInterconnect(self._elsewhere, self._lost), clock_of(loop)
        self._interconnect = interconnect
        waves: dict[Key, Wave] = {}
        sharing = Sharing(interconnect, lambda: (*self._executors, *self._buried), self._moved)
        self._make = lambda rank: ProcessExecutor(rank, interconnect, desk, clock, loop, waves, sharing, self._lost)
        try:
            self._executors = [self._make(rank) for rank in ranks]
            environment = self._environment()
            for executor in self._executors:
                executor.spawn(environment)
                await asyncio.sleep(0)
            await _all(executor.ready for executor in self._executors)
            dead = next((executor for executor in self._executors if executor.dead), None)
            if dead is not None:
                raise RuntimeError(f"{dead!r} ended while the others started")
        except BaseException:
            await self._end(hard=True)
            raise
        for executor in self._executors:
            executor.started = True
        return tuple(self._executors)

    async def restart(self, rank: int) -> Executor:
        assert self._make is not None
        assert self._interconnect is not None
        if self._grace is not None:
            raise RuntimeError("the worker is closing")
        self._buried.append(self._executors[rank])
        executor = self._make(rank)
        try:
            executor.spawn(self._environment())
            await executor.ready
        except BaseException:
            executor.end_hard()
            await _gone([executor], None)
            raise
        executor.started = True
        self._executors[rank] = executor
        self._interconnect.revive(rank)
        return executor

    def abort(self) -> None:
        """The worker aborts: a process that still owes an answer after the time of grace is killed."""
        if self._grace is None:
            self._grace = asyncio.get_running_loop().call_later(GRACE, self._kill_who_owes)

    def _kill_who_owes(self) -> None:
        for executor in self._executors:
            if executor.owes:
                executor.give_up(f"its process did not end within {GRACE:.0f} s of an abort, and was killed")

    async def stop(self) -> None:
        await self._end(hard=False)

    async def _end(self, hard: bool) -> None:
        if self._grace is not None:
            self._grace.cancel()
        living = [executor for executor in self._executors if hasattr(executor, "pid")]
        try:
            for executor in living:
                if hard:
                    executor.end_hard()
                else:
                    executor.end()
            await _gone(living, GRACE)
        finally:
            for executor in living:
                executor.end_hard()
            await _gone(living, None)
            for executor in living:
                if executor.ready.done() and not executor.ready.cancelled():
                    executor.ready.exception()  # it was told, or is not asked for any more
            for executor in [*self._executors, *self._buried]:
                executor.join()
            if self._puncher is not None:
                self._puncher.end()
                self._puncher.join()
                self._puncher = None
            if self._interconnect is not None:
                self._interconnect.close()
            self._executors, self._buried = [], []

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, **blas_variables(self.blas_threads)}

    def _lost(self, slabs: list[int]) -> None:
        """Slabs have gone with their device: who has mapped them lets them go."""
        for executor in self._executors:
            if not executor.dead:
                executor.drop_slabs(slabs)

    def _moved(self, allocations: Sequence[int]) -> None:
        """Allocations have got another place: who knows calls that name them forgets those."""
        for executor in self._executors:
            if not executor.dead:
                executor.moved(allocations)

    def _elsewhere(self, work: Callable[[], None]) -> None:
        if self._puncher is None:
            self._puncher = WorkThread("pypto-memory", SimpleQueue())
        self._puncher.put(work)


async def _all(futures: Any) -> None:
    """Wait until all are done; raises the first failure at once."""
    waiting = set(futures)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()


async def _gone(executors: Sequence[ProcessExecutor], timeout: float | None) -> None:
    """Wait for the ends of processes, at most for so long."""
    waiting = [executor.gone for executor in executors if not executor.gone.done()]
    if waiting:
        await asyncio.wait(waiting, timeout=timeout)
