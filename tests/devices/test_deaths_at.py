"""Devices that die at a moment that was once forgotten: each test names the stage.

Breaks that this catches: a dead device that drops a part without a word to those who wait for it; one that answers although it is dead;
threads that wait for a member that will not come; a copy whose source is gone; a call that names a tensor whose loss it could not know of
yet.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
import pypto_actors.testing as testing

Vec = Annotated[pa.TensorRef, pa.InOut((4,), np.int64)]
LIMIT = 10.0  # seconds for anything at all
BACKENDS = ("inline", "thread")


@pa.kernel
def increment(x: pa.InOutArray) -> None:
    x += 1


def reduce_all(orch: pa.Orchestrator, x: pa.TensorRef) -> None:
    window = orch.window("w", (4,), np.int64)
    orch.copy(window[0], x)
    orch.allreduce(window)
    orch.copy(x, window[0])


@pa.program
def gang(orch: pa.Orchestrator, x: Vec) -> None:
    reduce_all(orch, x)


def ones() -> np.ndarray[Any, Any]:
    return np.ones(4, np.int64)


def opened(*programs: pa.Program, backend: str, devices: int = 3, **options: Any) -> pa.DistributedWorker:
    return pa.DistributedWorker(programs, config=pa.DistributedConfig(range(devices)), backend=backend, **options)


async def dies(handle: Any) -> None:
    with pytest.raises(pa.DeviceFailedError):
        await handle.wait(LIMIT)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
async def test_after_a_callback_has_ended_and_before_its_gang_is_sent(backend: str, turns: int) -> None:
    gate, at = asyncio.Event(), asyncio.Event()

    async def between(x: Any) -> None:
        at.set()
        await gate.wait()

    @pa.program
    def late(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(between, x)
        reduce_all(orch, x)

    async with opened(late, gang, backend=backend) as worker:
        handle = await worker.submit(late, ones())
        await at.wait()
        gate.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        testing.kill_device(worker, 1)
        if not handle.done():  # a few turns later it has ended
            await dies(handle)
        x = ones()
        await asyncio.wait_for(worker.run(gang, x), LIMIT)
        assert x.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("where", ["alone", "before a gang", "in a gang"])
async def test_in_a_kernel_on_the_loop(where: str, victim: int) -> None:
    victims: list[tuple[pa.DistributedWorker, int]] = []

    @pa.kernel
    def kill(x: pa.InOutArray) -> None:
        if victims:
            testing.kill_device(*victims.pop())
        x += 1

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        window = orch.window("w", (4,), np.int64)
        if where == "in a gang":
            orch.submit_group(kill, [(window[rank],) for rank in range(3)], devices=range(3))
        else:
            orch.submit(kill, window[victim], device=victim)
        if where == "before a gang":
            orch.allreduce(window)
        orch.submit(increment, x, device=2)

    async with opened(program, gang, backend="inline") as worker:
        victims.append((worker, victim))
        await dies(await worker.submit(program, ones()))
        x = ones()
        await worker.run(program, x)
        assert x.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("where", ["in the gang", "behind"])
async def test_others_do_not_wait_for_a_kernel_of_a_dead_device(where: str) -> None:
    """The kernel in the dead device's thread goes on, but devices 0 and 2 are free."""
    end, at = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @pa.kernel
    def hold(x: pa.InOutArray) -> None:
        loop.call_soon_threadsafe(at.set)
        end.wait(LIMIT)

    @pa.program
    def busy(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(hold, x, device=1)

    @pa.program
    def held(orch: pa.Orchestrator, x: Vec) -> None:
        window = orch.window("w", (4,), np.int64)
        if where == "in the gang":
            orch.submit(hold, window[1], device=1)
        orch.allreduce(window)

    @pa.program
    def zero(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(increment, x, device=0)

    async with opened(busy, held, zero, backend="thread") as worker:
        try:
            handles = [await worker.submit(busy, ones())] if where == "behind" else []
            handles.append(await worker.submit(held, ones()))
            await at.wait()
            testing.kill_device(worker, 1)
            for handle in handles:
                await dies(handle)
            x = ones()
            await asyncio.wait_for(worker.run(zero, x), LIMIT)
            assert x.tolist() == [2, 2, 2, 2]
        finally:
            end.set()


async def test_the_source_of_a_copy_that_another_device_has_in_hand() -> None:
    end = threading.Event()
    async with opened(gang, backend="thread") as worker:
        source, target = [await worker.alloc_tensor((1 << 16,), np.int64, device=rank) for rank in (0, 1)]
        await worker.transfer(target, source)
        system: Any = worker._system
        system.devices[1].executor._copies.put(lambda: end.wait(LIMIT))
        copy = asyncio.create_task(worker.transfer(target, source))
        await asyncio.sleep(0)
        testing.kill_device(worker, 0)
        end.set()
        with pytest.raises(pa.DeviceFailedError, match="device 0 died"):
            await copy
        assert (await worker.read(target)).tolist()[:2] == [0, 0]


@pytest.mark.parametrize("max_restarts", [0, 9])
@pytest.mark.parametrize("backend", BACKENDS)
async def test_calls_between_a_death_and_its_being_known(backend: str, max_restarts: int) -> None:
    """The tensor is lost, but its owner could not know: a typed error, never a fault of our own."""

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(increment, x)

    async with opened(program, backend=backend, max_restarts=max_restarts) as worker:
        for call in ("run", "bound", "read", "copy", "transfer", "free"):
            if max_restarts == 0 and call != "run":
                return
            tensor = await worker.alloc_tensor((4,), np.int64, device=1)
            other = await worker.alloc_tensor((4,), np.int64, device=0)
            bound = worker.bind(program, x=tensor)
            testing.kill_device(worker, 1)
            task: Any
            match call:
                case "run":
                    task = worker.run(program, tensor)
                case "bound":
                    task = bound()
                case "read":
                    task = worker.read(tensor)
                case "copy":
                    task = worker.copy_to(tensor, ones())
                case "transfer":
                    task = worker.transfer(other, tensor)
                case _:
                    await asyncio.wait_for(worker.free_tensor(tensor), LIMIT)
                    continue
            with pytest.raises((pa.DeviceFailedError, pa.StaleTensorError)):
                await asyncio.wait_for(task, LIMIT)
            with pytest.raises(pa.StaleTensorError):
                await worker.read(tensor)


async def test_work_that_comes_from_outside_of_a_turn_is_done_once() -> None:
    """It neither waits for mail that may never come, nor keeps the loop turning."""
    done: list[int] = []
    async with opened(gang, backend="inline") as worker:
        system: Any = worker._system
        system.later(lambda: done.append(1))
        system.work()
        assert done == [1]
        assert not system._scheduled
