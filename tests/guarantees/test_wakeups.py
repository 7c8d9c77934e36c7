"""When the end of a dispatch lets a task go on: in the callback that hears of the end, and what the task submits goes out in that callback.

Breaks that this catches, each planted once in a copy: a handle's waiters are futures, which the loop wakes a turn later; what a woken task
submits waits for the loop to look for input; and an interrupt in one task takes the wake-up, or the dispatch, of another with it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import pypto_actors as pa
from tests.guarantees.support import adder, turns, zeros


@pytest.mark.parametrize("how", ["run", "handle", "wait", "bound"])
async def test_what_a_woken_task_submits_is_with_its_device_when_the_task_waits(how: str) -> None:
    add = adder()
    seen: list[tuple[int, int]] = []
    async with pa.DistributedWorker([add], backend="thread") as worker:
        loop = asyncio.get_running_loop()
        bound = worker.bind(add, x=zeros())

        def look() -> None:
            statistics = worker.statistics()
            seen.append((statistics.queued, statistics.accepted))

        async def steps() -> None:
            for _ in range(3):
                if how == "run":
                    await worker.run(add, zeros(), 1)
                elif how == "bound":
                    await bound(1)
                else:
                    handle = worker.submit_nowait(add, zeros(), 1)
                    await (handle if how == "handle" else handle.wait())
                loop.call_soon(look)  # comes before anything that is scheduled from here on
                last = worker.submit_nowait(add, zeros(), 1)
            await last

        await asyncio.create_task(steps())
        await turns(2)
    assert seen == [(0, 3), (0, 5), (0, 6)]  # the first of the next round is there too


async def test_tasks_that_wait_for_one_handle_go_on_together_and_in_order() -> None:
    add = adder()
    async with pa.DistributedWorker([add], backend="thread") as worker:
        handle = worker.submit_nowait(add, zeros(), 1)
        order: list[int] = []

        async def follow(number: int) -> None:
            await handle
            if not order:  # whoever is scheduled by now comes after all of them
                asyncio.get_running_loop().call_soon(order.append, -1)
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(follow(number))
        assert order == [0, 1, 2, 3, -1]


# In a process of its own: CPython 3.11 counts its recursion wrongly once an interrupt has left a task.
INTERRUPTED = """
import asyncio, sys
import pypto_actors as pa
from tests.guarantees.support import adder, zeros

add, x, ended = adder(), zeros(), []

async def interrupted(worker, handle):
    await handle
    if sys.argv[2] == "submits":
        ended.append(worker.submit_nowait(add, x, 10))
    raise KeyboardInterrupt

async def follow(worker, handle):
    ended.append((await handle).run_id)

async def session(worker):
    handle = worker.submit_nowait(add, x, 1)
    await asyncio.wait([asyncio.create_task(one(worker, handle)) for one in (follow, interrupted, follow, follow)])

async def after(worker):
    async with asyncio.timeout(20):
        while len([one for one in ended if isinstance(one, int)]) < 3:
            await asyncio.sleep(0)
        for one in ended:
            if isinstance(one, pa.DistributedRunHandle):
                await one
    await worker.aclose()

async def opened():
    async with pa.DistributedWorker([add], backend=sys.argv[1]):
        pass  # what is imported when it closes is there then
    return await pa.DistributedWorker([add], backend=sys.argv[1]).__aenter__()

runner = asyncio.Runner()
worker = runner.run(opened())
try:
    runner.run(session(worker))
except KeyboardInterrupt:
    ended.append("interrupted")
assert "interrupted" in ended
ended.remove("interrupted")
runner.run(after(worker))
print(len(ended), x.tolist())
"""


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("what", ["submits", "does nothing"])
def test_an_interrupt_in_a_woken_task_loses_nobody(backend: str, what: str) -> None:
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", INTERRUPTED, backend, what], cwd=root, capture_output=True, text=True, timeout=60)
    assert said.stdout == f"{4 if what == 'submits' else 3} {zeros(11 if what == 'submits' else 1).tolist()}\n", said.stderr
