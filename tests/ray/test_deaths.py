"""Devices that are Ray actors and die: idle, in a kernel, in a gang, in a copy, while closing; restarts, and the bound of them.

Breaks that this catches: an actor whose end nobody hears; a gang that waits for a member that has died; a tensor of an old life that is
reached; a device that is started again without an end; what a callback thread or a closing worker waits for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
import pypto_actors.testing as testing
from pypto_actors.backends import RayBackend
from tests.process.support import add, ints, on
from tests.ray.support import opened, shares_ray

pytestmark = [*shares_ray, pytest.mark.timeout(120)]
LIMIT = 60.0  # seconds for anything at all


@pa.kernel
def end(x: pa.InOutArray, how: int) -> None:
    """Ends the process of the actor, if `how` says so."""
    if how == 1:
        os._exit(3)
    if how == 2:
        os.kill(os.getpid(), signal.SIGKILL)


async def dies(handle: Any) -> None:
    with pytest.raises(pa.DeviceFailedError):
        await asyncio.wait_for(handle, LIMIT)


@pytest.mark.parametrize("how", [1, 2])
async def test_in_a_kernel(how: int) -> None:
    program, other = on(0, end), on(1, add, "add")
    async with opened(program, other, devices=2) as worker:
        tensor = await worker.alloc_tensor((8,), np.int64)
        away = await worker.alloc_tensor((8,), np.int64, device=1)
        await dies(worker.run(program, tensor, how))
        with pytest.raises(pa.StaleTensorError):
            await worker.read(tensor)
        await asyncio.wait_for(worker.run(other, away, 5), LIMIT)
        assert (await worker.read(away)).tolist() == [5] * 8
        x = ints()
        await asyncio.wait_for(worker.run(program, x, 0), LIMIT)  # it has started again
        assert worker.statistics().devices[0].restarts == 1


async def test_while_idle_and_behind_what_is_queued() -> None:
    backend = RayBackend()
    program = on(0, add)
    async with opened(program, backend=backend) as worker:
        await worker.run(program, ints(), 1)
        os.kill(backend.pids[0], signal.SIGKILL)
        handles = [worker.submit_nowait(program, ints(), number) for number in range(8)]
        outcomes = await asyncio.wait_for(asyncio.gather(*handles, return_exceptions=True), LIMIT)
        assert all(isinstance(outcome, (pa.RunResult, pa.DeviceFailedError)) for outcome in outcomes)
        x = ints()
        await asyncio.wait_for(worker.run(program, x, 3), LIMIT)
        assert x.tolist() == [3] * 8


async def test_in_a_gang() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((2, 4), np.int64)], how: int) -> None:
        orch.submit(end, x[0], how, device=0)
        orch.allreduce([x[0], x[1]])

    async with opened(program, devices=2) as worker:
        x = await worker.alloc_stacked_tensor(np.ones((2, 4), np.int64))
        await dies(worker.run(program, x, 1))
        y = np.ones((2, 4), np.int64)
        await asyncio.wait_for(worker.run(program, y, 0), LIMIT)
        assert y.tolist() == [[2] * 4] * 2


async def test_results_that_cannot_come_back() -> None:
    program = on(0, add)
    async with opened(program) as worker:
        x = ints()
        handle = worker.submit_nowait(program, x, 1)
        x.flags.writeable = False
        with pytest.raises(pa.KernelError, match="read-only"):
            await handle.wait(LIMIT)
        y = ints()
        await asyncio.wait_for(worker.run(program, y, 1), LIMIT)
        assert y.tolist() == [1] * 8


async def test_kill_device_and_the_bound_of_restarts() -> None:
    program = on(0, add)
    async with opened(program, max_restarts=1) as worker:
        for lost in (False, True):
            tensor = await worker.alloc_tensor((8,), np.int64)
            testing.kill_device(worker, 0)
            with pytest.raises((pa.DeviceFailedError, pa.StaleTensorError)):
                await asyncio.wait_for(worker.run(program, tensor, 1), LIMIT)
            if lost:
                with pytest.raises(pa.DeviceFailedError, match="lost"):
                    await asyncio.wait_for(worker.run(program, ints(), 1), LIMIT)
            else:
                await asyncio.wait_for(worker.run(program, ints(), 1), LIMIT)


async def test_killed_and_then_closed() -> None:
    backend = RayBackend()
    program = on(0, add)
    worker = opened(program, backend=backend)
    async with asyncio.timeout(LIMIT):
        await worker.__aenter__()
        os.kill(backend.pids[0], signal.SIGKILL)
        await worker.aclose("abort")
    with pytest.raises(pa.WorkerClosedError):
        worker.submit_nowait(program, ints(), 1)


async def test_a_start_that_cannot_be_leaves_nothing() -> None:
    worker = opened(on(0, add), backend=RayBackend(resources={"no such thing": 1}), startup_timeout=5.0)
    with pytest.raises(TimeoutError):
        await worker.__aenter__()
    async with opened(on(0, add)) as worker:
        await worker.run(worker.registry[0], ints(), 1)


async def test_placement_and_resources() -> None:
    program = on(0, add)
    async with opened(program, backend=RayBackend(placement="packed", cpus=0.5, resources={"slot": 1}), devices=2) as worker:
        x = ints()
        await worker.run(program, x, 4)
        assert x.tolist() == [4] * 8


def test_nothing_of_ray_is_imported_unless_asked_for() -> None:
    script = "import sys, pypto_actors, pypto_actors.backends; assert 'ray' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, timeout=60)
