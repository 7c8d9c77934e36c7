"""How to test your own code: in virtual time, under seeded schedules, and where it hangs.

    python -m examples.virtual_time_test [--trace FILE] [--plot FILE.png]        by anyio.run and asyncio.Runner
    python -m pytest -p examples.virtual_time_test examples/virtual_time_test.py   by pytest-asyncio

Two functions stand for code of yours: `poll`, which sleeps far longer than a test may, and `answers`, whose fault shows only where
tasks do not go on in the order that asyncio happens to keep.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Annotated

import anyio
import numpy as np

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.testing import DeadlockError, SeededLoop, VirtualTimeLoop


@pa.kernel
def double_in_place(x: pa.InOutArray) -> None:
    x *= 2


@pa.program
def double(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((1,), np.int64)]) -> None:
    orch.submit(double_in_place, x, device=0)


async def poll(worker: pa.DistributedWorker, times: int) -> int:
    """Code under test: doubles a number once a minute."""
    x = np.ones(1, np.int64)
    for _ in range(times):
        await worker.run(double, x)
        await asyncio.sleep(60)
    return int(x[0])


async def answers(worker: pa.DistributedWorker, prompts: list[int]) -> list[int]:
    """Code under test, with a fault: the answers stand in the order in which they came, not in that of the prompts."""
    found: list[int] = []

    async def ask(prompt: int) -> None:
        x = np.array([prompt])
        await worker.run(double, x)
        found.append(int(x[0]))

    async with asyncio.TaskGroup() as group:
        for prompt in prompts:
            group.create_task(ask(prompt))
    return found


async def half_an_hour(trace: tracing.Recorder | None) -> str:
    async with pa.DistributedWorker(double, backend="inline", trace=trace) as worker:
        return f"{await poll(worker, 30)} after {anyio.current_time():g} s"


async def answers_in_order() -> bool:
    async with pa.DistributedWorker(double, backend="inline") as worker:
        return await answers(worker, [1, 2, 3]) == [2, 4, 6]


def right_under(seed: int) -> bool:
    """Are the answers right in the schedule that this seed stands for?"""
    with asyncio.Runner(loop_factory=functools.partial(SeededLoop, seed, virtual_time=True)) as runner:
        return runner.run(answers_in_order())


async def forgotten() -> None:
    """Code under test, with a fault: it waits for a token that nobody will ever put into the queue."""
    tokens: asyncio.Queue[int] = asyncio.Queue()
    await tokens.get()


def main(trace: tracing.Recorder | None) -> None:
    print("virtual time:", anyio.run(half_an_hour, trace, backend_options={"loop_factory": VirtualTimeLoop}))

    print("in asyncio's own order, the answers are right:", asyncio.run(answers_in_order()))
    seed = next(seed for seed in range(100) if not right_under(seed))
    print("a schedule in which they are wrong was found, and its seed shows it again:", not right_under(seed))

    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(forgotten())
    except DeadlockError as error:
        (task,) = error.waiting
        print("a deadlock, at once:", *(place.partition(" in ")[2] for place in task.stack))


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """In your conftest.py: pytest-asyncio (1.4 or newer) then runs each test once on each of these."""
    seeded = {f"seed-{seed}": functools.partial(SeededLoop, seed, virtual_time=True) for seed in range(3)}
    return {"virtual": VirtualTimeLoop, **seeded}


async def test_half_an_hour_of_polling() -> None:
    start = anyio.current_time()
    async with pa.DistributedWorker(double, backend="inline") as worker:
        assert await poll(worker, 30) == 2**30
    assert anyio.current_time() == start + 30 * 60


if __name__ == "__main__":
    with tracing.command_line(__doc__) as trace:
        main(trace)
