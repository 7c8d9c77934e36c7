"""How to test your own serving code: a virtual clock, seeded schedules, and deadlocks that explain themselves.

    python -m examples.testing_your_code

With pytest-asyncio, in conftest.py:

    def pytest_asyncio_loop_factories(config, item):
        return {"virtual": VirtualTimeLoop}
"""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated

import anyio
import numpy as np

import pypto_actors as pa
from pypto_actors.testing import DeadlockError, SeededLoop, VirtualTimeLoop


@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.program
def adder(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((1,), np.int64)], value: int) -> None:
    orch.submit(add, x, value, device=0)


async def poll_every_minute(worker: pa.DistributedWorker, x: np.ndarray, minutes: int) -> None:
    """The code under test: it sleeps far longer than a test may."""
    for _ in range(minutes):
        await worker.run(adder, x, 1)
        await asyncio.sleep(60)


async def an_hour() -> str:
    x = np.zeros(1, np.int64)
    async with pa.DistributedWorker(adder, backend="inline") as worker:
        await poll_every_minute(worker, x, 60)
    return f"{x[0]} polls in {anyio.current_time():.0f} s"


async def two_clients() -> str:
    """Whatever the schedule, the order of acceptance is the order of effect."""
    x = np.zeros(1, np.int64)
    async with pa.DistributedWorker(adder, backend="inline") as worker:
        first, second = await asyncio.gather(worker.run(adder, x, 1), worker.run(adder, x, 2))
    return "first" if first.run_id < second.run_id else "second"


async def forgotten() -> None:
    await asyncio.get_running_loop().create_future()  # nobody will ever resolve it


def main() -> None:
    print("virtual time:", anyio.run(an_hour, backend_options={"loop_factory": VirtualTimeLoop}))
    winners = set()
    for seed in range(20):
        with asyncio.Runner(loop_factory=functools.partial(SeededLoop, seed)) as runner:
            winners.add(runner.run(two_clients()))
    print("seeded schedules, who was accepted first:", *sorted(winners))
    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(forgotten())
    except DeadlockError as error:
        print("a deadlock is found at once:", "forgotten" in str(error))


if __name__ == "__main__":
    main()
