"""Priorities and deadlines order what is queued; what is late costs no device time.

    python -m examples.deadline_priority [--trace FILE] [--plot FILE.png]

A virtual clock makes the half minute free and the output exact. Deadlines are times of the loop's clock, as in anyio.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import anyio
import numpy as np

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.testing import VirtualTimeLoop

seen: list[int] = []  # what the device did, in order


@pa.kernel
def note(x: pa.OutArray, tag: int) -> None:
    seen.append(tag)
    x[...] = tag


@pa.program
def request(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), np.int64)], tag: int) -> None:
    orch.submit(note, x, tag, device=0)


async def main(trace: tracing.Recorder | None) -> None:
    async with pa.DistributedWorker(request, backend="inline", trace=trace) as worker:
        await worker.pause("keep")  # nothing is handed over, so all of them are queued together
        now = anyio.current_time()
        usual = [worker.submit_nowait(request, tag) for tag in (1, 2)]
        urgent = worker.submit_nowait(request, 3, priority=5)
        hasty = worker.submit_nowait(request, 4, deadline=now + 2)
        patient = worker.submit_nowait(request, 5, deadline=now + 60)
        await anyio.sleep(30)
        print(f"after {anyio.current_time() - now:g} s: {hasty.state.value}, {patient.state.value}")

        await worker.resume()
        await asyncio.gather(*usual, urgent, patient)
        print(f"the device saw {seen}")
        try:
            await hasty
        except pa.DeadlineExceededError as error:
            print(f"DeadlineExceededError: {error}")
        statistics = worker.statistics()
        print(f"accepted {statistics.accepted}, done {statistics.done}, expired {statistics.expired}")


if __name__ == "__main__":
    with tracing.command_line(__doc__) as trace, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main(trace))
