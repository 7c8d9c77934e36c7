"""Deadlines and priorities order what is queued. Virtual time makes the seconds free and the result exact.

python -m examples.deadline_priority
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np

import pypto_actors as pa
from pypto_actors.testing import VirtualTimeLoop

order: list[int] = []


@pa.kernel
def note(x: pa.OutArray, tag: int) -> None:
    order.append(tag)
    x[...] = tag


@pa.program
def request(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), np.int64)], tag: int) -> None:
    orch.submit(note, x, tag, device=0)


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with pa.DistributedWorker(request, backend="inline") as worker:
        await worker.pause("keep")  # so that all of them are queued together
        low = [worker.submit_nowait(request, tag, priority=0) for tag in (1, 2)]
        high = worker.submit_nowait(request, 3, priority=5)
        soon = worker.submit_nowait(request, 4, deadline=loop.time() + 2)
        late = worker.submit_nowait(request, 5, deadline=loop.time() + 60)
        await asyncio.sleep(30)
        await worker.resume()
        await asyncio.gather(*low, high, late)
        print(f"the device saw {order}: the higher priority first, then the order of arrival")
        try:
            await soon
        except pa.DeadlineExceededError as error:
            print(f"DeadlineExceededError: {error}")
        print(f"seconds that passed on the loop's clock: {loop.time():.0f}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
