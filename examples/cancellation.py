"""Who waits may leave; the program goes on, or never begins. Nothing writes your arrays after `run` has raised.

python -m examples.cancellation
"""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

import anyio
import numpy as np

import pypto_actors as pa

Vector = ("n",)
may_go = threading.Event()


@pa.kernel
def slow_add(x: pa.InOutArray, value: int) -> None:
    may_go.wait(10)
    x += value


@pa.program
def adder(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vector, np.int64)], value: int) -> None:
    orch.submit(slow_add, x, value, device=0)


async def main() -> None:
    async with pa.DistributedWorker(adder, in_flight=1) as worker:
        x = np.zeros(4, np.int64)
        running = worker.submit_nowait(adder, x, 1)
        following = worker.submit_nowait(adder, x, 10)  # on its way to the device, behind the first
        queued = worker.submit_nowait(adder, x, 100)
        await asyncio.sleep(0)

        with anyio.move_on_after(0.01) as scope:
            await running  # a waiter that gives up leaves the dispatch alone
        print(f"the waiter left: {scope.cancelled_caught}; the dispatch is {running.state.value}")
        print(f"cancel what runs: {running.cancel()}; cancel what is queued: {queued.cancel()}")

        owner = asyncio.create_task(worker.run(adder, x, 1000))
        await asyncio.sleep(0)
        owner.cancel()  # `run` owns its dispatch: cancelled while it is queued, it has no effect
        print(f"the owner was cancelled: {isinstance((await asyncio.gather(owner, return_exceptions=True))[0], asyncio.CancelledError)}")

        may_go.set()
        await running
        await following
        print(f"x = {x.tolist()}: the two that ran, and nothing else")


if __name__ == "__main__":
    asyncio.run(main())
