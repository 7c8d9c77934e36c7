"""A waiter may leave without its program; and when `run` raises, nothing writes your arrays any more.

    python -m examples.cancellation [--trace FILE] [--plot FILE.png]

Gates hold the kernel where we want it, so nothing here depends on timing.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

import anyio
import numpy as np

import pypto_actors as pa
from pypto_actors import tracing

started = threading.Event()
may_end = threading.Event()


@pa.kernel
def slow_add(x: pa.InOutArray, value: int) -> None:
    started.set()
    may_end.wait(10)
    x += value


@pa.program
def add(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(("n",), np.int64)], value: int) -> None:
    orch.submit(slow_add, x, value, device=0)


async def main(trace: tracing.Recorder | None) -> None:
    x = np.zeros(2, np.int64)
    async with pa.DistributedWorker(add, in_flight=1, trace=trace) as worker:
        running = asyncio.create_task(worker.run(add, x, 1))  # `run` owns its dispatch
        await asyncio.to_thread(started.wait)
        handed = worker.submit_nowait(add, x, 10)  # handed to the device ahead of its turn: in_flight=1
        queued = worker.submit_nowait(add, x, 100)
        waiting = asyncio.create_task(worker.run(add, x, 1000))
        await asyncio.sleep(0)
        print(f"the handles: {handed.state.value}, {queued.state.value}")

        with anyio.move_on_after(0) as scope:
            await handed
        print(f"a waiter left: {scope.cancelled_caught}, its dispatch is {handed.state.value}")
        print(f"cancel what runs: {handed.cancel()}; cancel what is queued: {queued.cancel()}")

        waiting.cancel()
        await asyncio.wait([waiting])
        print(f"run, cancelled while queued, raised at once: {waiting.cancelled()}")
        running.cancel()
        await asyncio.sleep(0)
        print(f"run, cancelled while its kernel runs, has raised: {running.done()}")

        may_end.set()
        await asyncio.wait([running])
        print(f"the kernel has ended, and now it has: {running.cancelled()}")
        await handed
        print(f"x is {x}: those that ran, and nothing else")


if __name__ == "__main__":
    with tracing.command_line(__doc__) as trace:
        asyncio.run(main(trace))
