"""A death that is heard of inside a task, by `kill_device`: what the process had answered before counts, and its waiters go on later.

The break that this catches, planted once in a copy: tasks are woken while another is running.
"""

from __future__ import annotations

import asyncio
import select

import pytest

import pypto_actors as pa
from pypto_actors import testing
from pypto_actors.backends.process import ProcessBackend
from tests.guarantees.support import turns
from tests.process.support import LIMIT, add, ints, on, opened


@pytest.mark.parametrize("how", ["run", "handle"])
async def test_an_answer_that_nobody_has_read_counts(how: str) -> None:
    program = on(0, add)
    backend = ProcessBackend()
    async with opened(program, backend=backend) as worker:
        tensor = await worker.alloc_tensor((8,), ints().dtype)

        async def one() -> pa.RunResult:
            if how == "run":
                return await worker.run(program, tensor, 1)
            return await worker.submit_nowait(program, tensor, 1)

        task = asyncio.create_task(one())
        await turns(3)
        ready, _, _ = select.select([backend._executors[0]._link._answers], [], [], LIMIT)
        assert ready
        testing.kill_device(worker, 0)
        assert not task.done()
        assert (await asyncio.wait_for(task, LIMIT)).devices == (0,)
