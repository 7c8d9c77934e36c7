"""Guarantee 11, the end. Breaks that these catch: a second close that returns early or never, a close under load that loses a dispatch, a
drain that cannot be turned into an abort, a closer's cancellation that stops the close, calls accepted while it closes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal

import anyio
import pytest

import pypto_actors as pa
from pypto_actors.backends import ThreadBackend
from pypto_actors.executor import Executor
from pypto_actors.testing import VirtualTimeLoop, kill_device
from tests.guarantees.support import Hold, adder, turns, worker, zeros
from tests.process.support import children, open_files, threads

Mode = Literal["drain", "abort"]


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("modes", [("drain", "drain"), ("drain", "abort"), ("abort", "drain"), ("abort", "abort")], ids=str)
async def test_several_close_and_all_return_when_it_is_done(backend: str, modes: tuple[Mode, Mode]) -> None:
    hold, add = Hold(), adder()
    w = await worker(hold.program, add, backend=backend).__aenter__()
    x = zeros()
    running = w.submit_nowait(hold.program, x, 1)
    await hold.at.wait()
    queued = w.submit_nowait(add, x, 10)
    closers = [asyncio.create_task(w.aclose(mode)) for mode in modes]
    await turns()
    assert not any(closer.done() for closer in closers)
    assert queued.done() is ("abort" in modes)
    for call in (w.run(add, zeros(), 1), w.submit(add, zeros(), 1), w.alloc_tensor((4,), "int64"), w.drain(), w.pause(), w.resume()):
        with pytest.raises(pa.WorkerClosedError):
            await call
    with pytest.raises(pa.WorkerClosedError):
        w.submit_nowait(add, zeros(), 1)
    hold.open()
    await asyncio.gather(*closers)
    await running
    assert isinstance(queued.exception(), pa.WorkerClosedError if "abort" in modes else type(None))
    assert x.tolist() == [1 if "abort" in modes else 11] * 4
    await w.aclose()
    await w.aclose("abort")
    numbers = w.statistics()
    assert (numbers.accepted, numbers.queued, numbers.running) == (2, 0, 0)
    assert w.committed_device_memory() == 0


@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_under_load_each_call_gets_its_outcome(backend: str) -> None:
    add = adder()
    w = await worker(add, backend=backend, max_queued=2).__aenter__()
    x = zeros()
    outcomes: list[Any] = []

    async def client() -> None:
        while True:
            try:
                outcomes.append(await w.run(add, x, 1))
            except pa.WorkerClosedError as error:
                outcomes.append(error)
                return

    clients = [asyncio.create_task(client()) for _ in range(20)]
    while len(outcomes) < 30:  # noqa: ASYNC110 (it counts what the clients have)
        await asyncio.sleep(0)
    await w.aclose()
    await asyncio.gather(*clients)
    done = [one for one in outcomes if isinstance(one, pa.RunResult)]
    assert len(outcomes) - len(done) == 20
    assert x.tolist() == [len(done)] * 4
    assert w.statistics().done == len(done)


async def test_who_waits_for_room_is_told_at_once() -> None:
    hold, add = Hold(), adder()
    w = await worker(hold.program, add, backend="inline", max_queued=1).__aenter__()
    x = zeros()
    w.submit_nowait(hold.program, x, 1)
    await hold.at.wait()
    w.submit_nowait(add, x, 1)
    waiting = [asyncio.create_task(w.submit(add, x, 1)), asyncio.create_task(w.run(add, x, 1))]
    await turns()
    closing = asyncio.create_task(w.aclose())
    await turns()
    for task in waiting:
        assert isinstance(task.exception(), pa.WorkerClosedError)
    hold.open()
    await closing
    assert x.tolist() == [2] * 4


@pytest.mark.parametrize("times", [1, 3])
async def test_a_closer_that_is_cancelled_does_not_stop_the_close(times: int) -> None:
    hold, add = Hold(), adder()
    w = await worker(hold.program, add, backend="inline").__aenter__()
    x = zeros()
    w.submit_nowait(hold.program, x, 1)
    await hold.at.wait()
    queued = w.submit_nowait(add, x, 10)
    closing = asyncio.create_task(w.aclose())
    await turns()
    for _ in range(times):
        closing.cancel()
        await turns(3)
    assert closing.cancelled()
    with anyio.move_on_after(0) as scope:
        await w.aclose()
    assert scope.cancelled_caught
    hold.open()
    await w.aclose()
    await queued
    assert x.tolist() == [11] * 4


async def test_closing_from_within_waits_for_the_neighbours_frees() -> None:
    """A tensor freed while the worker closes is freed once, and both calls return."""
    add = adder()
    for delay in range(15):
        w = await worker(add, backend="inline").__aenter__()
        tensor = await w.alloc_tensor((4,), "int64")
        w.submit_nowait(add, tensor, 1)

        async def free(w: pa.DistributedWorker = w, tensor: pa.DeviceTensor = tensor, delay: int = delay) -> None:
            await turns(delay)
            await w.free_tensor(tensor)

        await asyncio.gather(w.aclose(), free())
        assert w.committed_device_memory() == 0
        assert w._system is not None
        assert w._system.crashed is None


def test_the_timeout_of_a_close_outlives_its_caller() -> None:
    async def main() -> None:
        hold, add = Hold(), adder()
        async with worker(hold.program, add, backend="inline") as w:
            w.submit_nowait(hold.program, x := zeros(), 1)
            await hold.at.wait()
            queued = w.submit_nowait(add, x, 10)
            closing = asyncio.create_task(w.aclose("drain", timeout=5))
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(pa.WorkerClosedError):
                await queued
            assert asyncio.get_running_loop().time() == 5
            hold.open()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
@pytest.mark.parametrize("how", ["aclose", "leaving"])
async def test_whoever_closes_later_returns_when_it_is_done_too(backend: str, how: str) -> None:
    """At whatever moment of the close: also when all work has ended, and threads and processes are still ending."""
    add = adder()
    for yields in range(0, 30, 1 if backend == "inline" else 3):
        w = worker(add, backend=backend)
        await w.__aenter__()
        await w.run(add, zeros(), 1)
        first = asyncio.create_task(w.aclose())
        await turns(yields)
        await (w.aclose() if how == "aclose" else w.__aexit__(None, None, None))
        assert w._supervisor is not None
        assert w._supervisor._closing is not None
        assert w._supervisor._closing.done()
        await first


@pytest.mark.parametrize("yields", [1, 3, 6, 10, 20])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_loop_that_is_shut_down_while_the_worker_closes(backend: str, yields: int) -> None:
    """`asyncio.run` cancels the task that closes; threads, processes and files end all the same."""
    before = threads(), open_files(), children()

    async def main() -> None:
        hold, add = Hold(), adder()
        w = worker(hold.program, add, backend=backend)
        await w.__aenter__()
        await w.run(add, zeros(), 1)
        closing = asyncio.create_task(w.aclose())
        await turns(yields)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing

    asyncio.run(main())
    assert (threads(), open_files(), children()) == before


async def test_a_restart_that_fails_while_aborting_is_not_tried_again_and_again() -> None:
    class Refusing(ThreadBackend):
        restarts = 0

        async def restart(self, rank: int) -> Executor:
            self.restarts += 1
            await asyncio.sleep(0)
            raise RuntimeError("not now")

    backend = Refusing()
    async with worker(adder(), backend=backend, max_restarts=1_000_000) as w:
        kill_device(w, 0)
        await w.aclose("abort")
    assert backend.restarts <= 2


async def test_nothing_is_left_open_by_a_closed_worker_that_is_kept() -> None:
    before = open_files()
    kept = []
    for _ in range(3):
        async with worker(adder(), backend="process") as w:
            await w.run(w.registry[0], zeros(1000), 1)
        kept.append(w)
    assert open_files() == before
