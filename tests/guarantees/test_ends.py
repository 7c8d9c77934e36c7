"""Guarantees 11 and 12, `pause` and `drain`, and what may be called when and from where. Breaks that these catch: a failing start that
leaves devices, an `aclose` that returns early, waiters that are forgotten at the end, a drain that hangs while paused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import pytest
import pytest_asyncio

import pypto_actors as pa
from pypto_actors.backends import ThreadBackend
from pypto_actors.executor import Desk, Executor
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import Busy, Hold, adder, copier, noter, turns, worker, zeros


async def test_a_failing_start_raises_the_original_and_leaves_nothing() -> None:
    class Broken(ThreadBackend):
        async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
            await super().start(ranks, desk, loop)
            await self.stop()
            raise ZeroDivisionError("no such device")

    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        async with worker(adder(), backend=Broken()):
            pass
    assert set(threading.enumerate()) == before
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_an_abort_tells_the_queued_at_once_and_lets_the_running_end(backend: str) -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend=backend, max_queued=1) as w:
        x = zeros()
        running = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        queued = w.submit_nowait(add, x, 10)
        waits = asyncio.create_task(w.submit(add, x, 100))
        await turns()
        closing = [asyncio.create_task(w.aclose("abort")) for _ in range(3)]
        for one in (queued, waits):
            with pytest.raises(pa.WorkerClosedError):
                await one
        with pytest.raises(pa.WorkerClosedError):
            w.submit_nowait(add, x, 1)
        assert not any(task.done() for task in closing)
        hold.open()
        await asyncio.gather(*closing)
        assert (await running).returned == ("held",)
        await w.aclose()
    assert x.tolist() == [1] * 4
    statistics = w.statistics()
    assert (statistics.done, statistics.cancelled, w.committed_device_memory()) == (1, 1, 0)


def test_a_drain_becomes_an_abort_after_its_timeout() -> None:
    async def main() -> None:
        hold, add = Hold(), adder()
        async with worker(hold.program, add, backend="inline") as w:
            x = zeros()
            w.submit_nowait(hold.program, x, 1)
            await hold.at.wait()
            queued = w.submit_nowait(add, x, 10)
            closing = asyncio.create_task(w.aclose("drain", timeout=5))
            with pytest.raises(pa.WorkerClosedError):
                await queued
            assert asyncio.get_running_loop().time() == 5
            hold.open()
            await closing

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def test_leaving_on_an_exception_aborts() -> None:
    hold, add = Hold(), adder()
    x = zeros()
    with pytest.raises(ArithmeticError):  # noqa: PT012
        async with worker(hold.program, add, backend="inline") as w:
            w.submit_nowait(hold.program, x, 1)
            queued = w.submit_nowait(add, x, 10)
            await hold.at.wait()
            hold.open()
            raise ArithmeticError
    assert isinstance(queued.exception(), pa.WorkerClosedError)


async def test_leaving_when_cancelled_waits_for_what_runs() -> None:
    busy = Busy()
    w = worker(busy.program)
    x = zeros()

    async def use() -> None:
        async with w:
            w.submit_nowait(busy.program, x)
            await busy.at.wait()

    task = asyncio.create_task(use())
    await busy.at.wait()
    await turns()
    task.cancel()
    await turns()
    assert not task.done()
    busy.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert x.tolist() == [1] * 4


async def test_a_drain_of_a_paused_worker_resumes_it() -> None:
    add = adder()
    async with worker(add, backend="inline") as w:
        x = zeros()
        await w.pause("keep")
        w.submit_nowait(add, x, 1)
    assert x.tolist() == [1] * 4


async def test_pause_modes() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline") as w:
        x, y = zeros(), zeros()
        running = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        behind = w.submit_nowait(add, x, 10)
        keep = asyncio.create_task(w.pause("keep"))
        await turns()
        assert not keep.done()
        later = w.submit_nowait(add, y, 5)
        hold.open()
        await keep
        assert (running.done(), behind.done(), later.done()) == (True, False, False)
        t = await w.alloc_tensor((4,), "int64", init=zeros(3))  # memory calls go on
        assert (await w.read(t)).tolist() == [3] * 4
        await w.pause("wait")  # what was accepted before ends now
        assert (behind.done(), later.done()) == (True, True)
        last = w.submit_nowait(add, y, 100)
        await turns()
        assert not last.done()
        await w.pause("abort")
        with pytest.raises(pa.RunCancelledError):
            await last
        await w.resume()
        await w.run(add, y, 1000)
    assert (x[0], y[0]) == (11, 1005)


async def test_drain_waits_for_what_was_accepted_before_only() -> None:
    first, second = Hold(), Hold()
    async with worker(first.program, second.program, backend="inline") as w:
        handle = w.submit_nowait(first.program, zeros(), 1)
        await first.at.wait()
        draining = asyncio.create_task(w.drain())
        await turns()
        later = w.submit_nowait(second.program, zeros(), 1)
        await second.at.wait()
        assert not draining.done()
        first.open()
        await draining
        assert (handle.done(), later.done()) == (True, False)
        second.open()


async def test_statistics_always_add_up() -> None:
    hold, log = Hold(), []  # type: ignore[var-annotated]
    note = noter(log)
    async with worker(hold.program, note, backend="inline") as w:
        for _ in range(3):
            w.submit_nowait(hold.program, zeros(), 1)
        handles = [w.submit_nowait(note, tag) for tag in range(4)]
        handles[3].cancel()
        for _ in range(20):
            s = w.statistics()
            assert s.accepted == s.queued + s.running + s.done + s.failed + s.cancelled + s.expired == 7
            await asyncio.sleep(0)
        assert (s.running, s.done, s.cancelled) == (3, 3, 1)
        hold.open()
        await w.drain()
        assert w.statistics().done == 6


async def test_after_the_end() -> None:
    add = adder()
    async with worker(add, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64")
        handle = w.submit_nowait(add, t, 1)
    assert handle.result().run_id == handle.run_id
    await w.free_tensor(t)
    calls: list[Callable[[], Any]] = [lambda: w.run(add, zeros(), 1), lambda: w.read(t), w.drain, lambda: w.register(add)]
    for call in calls:
        with pytest.raises(pa.WorkerClosedError):
            await call()
    with pytest.raises(RuntimeError, match="entered once"):
        await w.__aenter__()


async def test_calls_from_elsewhere() -> None:
    add = adder()
    w = worker(add)
    with pytest.raises(RuntimeError, match="not entered"):
        w.submit_nowait(add, zeros(), 1)
    async with w:
        with pytest.raises(RuntimeError, match=r"anyio\.from_thread"):
            await asyncio.to_thread(w.submit_nowait, add, zeros(), 1)
        x = zeros()
        await asyncio.to_thread(lambda: None)
        await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(w.run, add, x, 3))
        assert x.tolist() == [3] * 4


def test_trio_is_told_apart() -> None:
    async def main() -> None:
        async with worker(adder()):
            pass

    coroutine = main()
    with pytest.raises(RuntimeError, match="not on trio"):
        coroutine.send(None)


def test_a_virtual_clock_refuses_threads() -> None:
    async def main() -> None:
        async with worker(adder()):
            pass

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(RuntimeError, match="use backend='inline'"):
        runner.run(main())


@pytest_asyncio.fixture
async def shared() -> AsyncIterator[Any]:
    async with worker(adder()) as w:
        yield w


async def test_entered_in_one_task_and_left_in_another(shared: Any) -> None:
    x = zeros()
    await shared.run(shared.registry[0], x, 2)
    assert x.tolist() == [2] * 4


async def test_arguments_of_the_constructor() -> None:
    add, other = adder(), adder(1)
    two = pa.DistributedConfig([0, 1])
    cases: list[tuple[type[Exception], Any]] = [
        (ValueError, lambda: pa.DistributedWorker([])),
        (TypeError, lambda: pa.DistributedWorker("add")),  # type: ignore[arg-type]
        (TypeError, lambda: pa.DistributedWorker([lambda: 1])),  # type: ignore[list-item]
        (ValueError, lambda: pa.DistributedWorker([add, add])),
        (ValueError, lambda: pa.DistributedWorker([add, add.compile()])),
        (pa.ProgramMismatchError, lambda: pa.DistributedWorker([add.compile(), other.compile(two)])),
        (pa.ProgramMismatchError, lambda: pa.DistributedWorker([add.compile()], config=two)),
        (ValueError, lambda: pa.DistributedWorker(add, callbacks={"ghost": print})),
        (ValueError, lambda: pa.DistributedWorker(add, backend="gpu")),
        (TypeError, lambda: pa.DistributedWorker(add, backend=3)),  # type: ignore[arg-type]
        (ValueError, lambda: pa.DistributedWorker(add, max_queued=0)),
        (ValueError, lambda: pa.DistributedWorker(add, in_flight=0)),
        (TypeError, lambda: pa.DistributedWorker(add, policy=pa.PhaseFair)),  # type: ignore[arg-type]
        (ValueError, lambda: pa.DistributedWorker(add, reset_persistent_windows=False)),
        (ValueError, lambda: pa.DistributedConfig([])),
        (ValueError, lambda: pa.DistributedConfig([0, 0])),
        (ValueError, lambda: pa.DistributedConfig([-1])),
        (ValueError, lambda: pa.DistributedConfig(platform="tpu")),
        (ValueError, lambda: pa.DistributedConfig(num_sub_workers=-1)),
    ]
    for error, make in cases:
        with pytest.raises(error):
            make()
    assert pa.DistributedWorker([add.compile(two)]).config.world_size == 2


async def test_registration() -> None:
    add, late = adder(), noter([])
    async with worker(add, backend="inline") as w:
        first, second = await w.register(late), await w.register(late)
        assert list(w.registry) == [add, late]
        await first(1)
        with pytest.raises(pa.AmbiguousProgramError):
            await w(zeros(), 1)
        await second.unregister()
        await first.unregister()
        with pytest.raises(pa.UnknownProgramError):
            await first(1)
        with pytest.raises(pa.UnknownProgramError):
            await w.run(late, 1)
        x = zeros()
        await w(x, 2)
        assert x.tolist() == [2] * 4


async def test_unregister_returns_when_accepted_ones_have_ended() -> None:
    hold = Hold()
    async with worker(adder(), backend="inline") as w:
        handle = await w.register(hold.program)
        running = w.submit_nowait(hold.program, zeros(), 1)
        await hold.at.wait()
        leaving = asyncio.create_task(handle.unregister())
        await turns()
        assert not leaving.done()
        hold.open()
        await leaving
        assert running.done()


async def test_bound_programs() -> None:
    add = adder()
    async with worker(add, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64")
        bound, complete = w.bind(add, x=t), w.bind(add, x=t, value=10)
        await bound(1)
        await (await bound.submit(2))
        await bound.submit_nowait(3, priority=1)
        await complete()
        assert (await w.read(t)).tolist() == [16] * 4
        with pytest.raises(pa.ArgumentTypeError, match="no parameter 'y'"):
            w.bind(add, y=t)
        with pytest.raises(pa.ArgumentTypeError, match="takes 1 arguments"):
            await bound()
        with pytest.raises(pa.ArgumentTypeError):
            w.bind(add, value="1")
        await w.free_tensor(t)
        for call in (lambda: bound(1), lambda: complete(), lambda: complete.submit()):
            with pytest.raises(pa.StaleTensorError):
                await call()
        with pytest.raises(pa.StaleTensorError):
            w.bind(add, x=t)


async def test_bound_calls_that_are_like_the_one_before_are_checked_all_the_same() -> None:
    put = copier()
    async with worker(put, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64", init=zeros(5))
        bound = w.bind(put, src=t)
        first, second = zeros(), zeros()
        await bound(first)
        await bound(second)
        assert first.tolist() == second.tolist() == [5] * 4
        second.flags.writeable = False
        with pytest.raises(pa.ArgumentValueError, match="read-only"):
            await bound(second)
        with pytest.raises(pa.ArgumentValueError):
            await bound(zeros().astype("f4"))
        with pytest.raises(pa.ArgumentTypeError):
            await bound([1])
        await w.free_tensor(t)
        with pytest.raises(pa.StaleTensorError):
            await bound(first)
