"""Guarantees 2 and 3. Breaks that these catch: a waiter that takes the program with it, a `run` that leaves while its kernel runs, a
cancelled `submit` that has submitted, an allocation that nobody knows, a `cancel` that answers otherwise the second time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

import pypto_actors as pa
from tests.guarantees.support import Busy, Hold, adder, turns, worker, zeros


async def test_a_waiter_that_leaves_leaves_the_others_alone() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        handle = w.submit_nowait(hold.program, zeros(), 1)
        waiters = [asyncio.ensure_future(handle.wait()) for _ in range(3)]
        await turns()
        waiters[1].cancel()
        await turns()
        assert waiters[1].cancelled()
        assert not waiters[0].done()
        assert handle.state is pa.RunState.RUNNING
        hold.open()
        results = await asyncio.gather(waiters[0], waiters[2])
        assert results[0] is results[1]


@pytest.mark.parametrize("cancels", [1, 3])
async def test_run_cancelled_while_it_runs_raises_when_it_has_ended(cancels: int) -> None:
    busy = Busy()
    async with worker(busy.program) as w:
        x = zeros()
        task = asyncio.create_task(w.run(busy.program, x))
        await busy.at.wait()
        for _ in range(cancels):
            task.cancel()
            await turns()
            assert not task.done()
        assert x.tolist() == [0] * 4
        busy.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert x.tolist() == [1] * 4


async def test_run_in_a_cancelled_scope_waits_for_its_kernel_without_spinning() -> None:
    busy = Busy()
    async with worker(busy.program) as w:
        x = zeros()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(w.run, busy.program, x)
                await busy.at.wait()
                scope.cancel()
                asyncio.get_running_loop().call_soon(busy.open)
        assert scope.cancelled_caught
        assert x.tolist() == [1] * 4


async def test_run_cancelled_while_queued_has_no_effect() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline") as w:
        x = zeros()
        first = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        task = asyncio.create_task(w.run(add, x, 100))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert w.statistics().cancelled == 1
        hold.open()
        await first
    assert x.tolist() == [1] * 4


async def test_a_submit_that_raises_has_submitted_nothing() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline", max_queued=1) as w:
        x = zeros()
        first = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        queued = w.submit_nowait(add, x, 10)
        tasks = [asyncio.create_task(w.submit(add, x, value)) for value in (100, 1000)]
        await turns()
        tasks[0].cancel()
        hold.open()  # at this very moment there is room again
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(first, queued)
        await w.drain()
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert x.tolist() == [1011] * 4


async def test_a_cancelled_allocation_leaves_nothing() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        x = zeros()
        w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        waiting = asyncio.create_task(w.alloc_tensor((4,), "int64", init=x))  # waits for what writes x
        unstarted = asyncio.create_task(w.alloc_tensor((4,), "int64"))
        await turns(1)
        unstarted.cancel()
        await turns()
        assert w.committed_device_memory() == 32
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert w.committed_device_memory() == 0
        hold.open()


@pytest.mark.parametrize("steps", range(6))
async def test_an_allocation_cancelled_at_each_step(steps: int) -> None:
    async with worker(adder(), backend="inline") as w:
        task = asyncio.create_task(w.alloc_tensor((4,), "int64", init=zeros(1)))
        await turns(steps)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert w.committed_device_memory() == (0 if isinstance(outcome, asyncio.CancelledError) else 32)


async def test_a_cancelled_free_still_frees() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64")
        w.submit_nowait(hold.program, t, 1)
        await hold.at.wait()
        task = asyncio.create_task(w.free_tensor(t))
        await turns()
        hold.open()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await w.drain()
        assert w.committed_device_memory() == 0


async def test_a_cancelled_copy_has_no_effect() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64")
        w.submit_nowait(hold.program, t, 1)
        await hold.at.wait()
        task = asyncio.create_task(w.copy_to(t, zeros(9)))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.open()
        assert (await w.read(t)).tolist() == [1] * 4


async def test_cancel_is_true_exactly_when_it_will_not_run() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline") as w:
        x = zeros()
        first = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        queued = w.submit_nowait(add, x, 10)
        assert (first.cancel(), first.cancel()) == (False, False)
        assert (queued.cancel(), queued.cancel()) == (True, True)
        assert queued.done()
        with pytest.raises(pa.RunCancelledError):
            await queued
        hold.open()
        await first
        assert first.cancel() is False
    assert x.tolist() == [1] * 4
    assert queued.cancel() is True


async def test_a_wait_that_times_out_leaves_the_run_alone() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        handle = w.submit_nowait(hold.program, zeros(), 1)
        with pytest.raises(TimeoutError, match="has not ended within 0"):
            await handle.wait(0)
        with pytest.raises(asyncio.InvalidStateError):
            handle.result()
        with pytest.raises(asyncio.InvalidStateError):
            handle.exception()
        hold.open()
        assert (await handle.wait(10)).returned == ("held",)
        assert handle.exception() is None


async def test_what_run_awaits_is_a_future_to_asyncio() -> None:
    """The waiter of `run` on a real loop: cancelled before its end, in the very step of its end, and in a group of tasks."""
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline") as w:
        tasks = [asyncio.create_task(w.run(hold.program, zeros(), 1)) for _ in range(4)]
        await turns()
        order: list[int] = []

        async def canceller(x: object) -> None:
            hold.open()

        tasks[0].add_done_callback(lambda _: order.append(0))
        tasks[1].add_done_callback(lambda _: order.append(1))
        tasks[3].cancel()
        await turns()
        assert not tasks[3].done()  # it runs
        await canceller(None)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, pa.RunResult) for result in results] == [True, True, True, False]
        assert order == [0, 1]
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            x = zeros()
            for value in range(50):
                group.create_task(w.run(add, x, value))
        assert x.tolist() == [sum(range(50))] * 4
        with anyio.move_on_after(0):
            await w.run(add, x, 1)
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        await w.run(add, x, 1)
        loop.set_debug(False)


WAITS: dict[str, Callable[[pa.DistributedWorker, pa.DeviceTensor, pa.RegistrationHandle], Coroutine[Any, Any, None]]] = {
    "drain": lambda w, t, registration: w.drain(),
    "pause": lambda w, t, registration: w.pause("wait"),
    "free_tensor": lambda w, t, registration: w.free_tensor(t),
    "unregister": lambda w, t, registration: registration.unregister(),
}


@pytest.mark.parametrize("kind", WAITS)
@pytest.mark.parametrize("scoped", [False, True])
async def test_who_waits_for_what_goes_on_by_itself_leaves_at_once(kind: str, scoped: bool) -> None:
    """Also while the worker is paused, where the wait would have no end. What was asked for still happens."""
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        t = await w.alloc_tensor((4,), "int64")
        registration = await w.register(hold.program)
        running = w.submit_nowait(hold.program, zeros(), 1)
        await hold.at.wait()
        if kind != "pause":
            hold.open()
            await w.pause("keep")
            assert running.done()
        queued = w.submit_nowait(hold.program, t, 1)
        if scoped:
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_soon(scope.cancel)
                await WAITS[kind](w, t, registration)
            assert scope.cancelled_caught
        else:
            task = asyncio.create_task(WAITS[kind](w, t, registration))
            await turns()
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not queued.done()
        hold.open()
        await w.resume()
        await queued
        await w.drain()
        assert w.committed_device_memory() == (0 if kind == "free_tensor" else 32)
        assert (hold.program in w.registry) == (kind != "unregister")


@pytest.mark.parametrize("how", ["timeout", "scope", "cancel"])
async def test_a_submit_that_was_cancelled_too_late_cancels_nothing_afterwards(how: str) -> None:
    """It gets its handle; the cancellation comes at the next await of whoever is still to be cancelled, and at no other."""
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline", max_queued=1, in_flight=1) as w:
        await w.pause("keep")
        first = w.submit_nowait(add, zeros(), 1)
        reached: list[str] = []

        async def user() -> None:
            if how == "timeout":
                async with asyncio.timeout(None) as limit:
                    leave.append(limit._on_timeout)  # type: ignore[attr-defined]  # as when its time has come
                    handles.append(await w.submit(hold.program, zeros(), 1))
            elif how == "scope":
                with anyio.CancelScope() as scope:
                    leave.append(scope.cancel)
                    handles.append(await w.submit(hold.program, zeros(), 1))
            else:
                leave.append(task.cancel)
                handles.append(await w.submit(hold.program, zeros(), 1))
            reached.append("behind the submit")
            await turns()
            reached.append("further on")

        leave: list[Callable[[], object]] = []
        handles: list[pa.DistributedRunHandle] = []
        task = asyncio.create_task(user())
        await turns()
        (waiting,) = w._open_system().admission.waiting
        resuming = asyncio.create_task(w.resume())
        while waiting.handle is None or waiting.handle.state is not pa.RunState.RUNNING:  # type: ignore[attr-defined]
            await turns(1)
        assert not handles
        leave[0]()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert handles
        if how == "cancel":
            assert isinstance(outcome, asyncio.CancelledError)
            assert reached == ["behind the submit"]
        else:
            assert outcome is None
            assert reached == ["behind the submit", "further on"]
        hold.open()
        await asyncio.gather(resuming, first, *handles)
