"""How much of a core does an idle worker of 1,000 devices use, on `inline` and on `thread`?

Each device runs one dispatch, then nobody does anything for some seconds of real time, and `process_time`, which counts
all threads, is compared with the clock on the wall. Needed: 1 % of a core, wanted: 0.1 %. The same process without a
worker is measured in the same way, and shows what the loop, the sleep and the clocks cost themselves.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.harness import Answer
from benchmarks.many_devices import anywhere

DEVICES = 1_000


async def idle(seconds: float) -> float:
    """Per cent of a core that this process uses while its loop sleeps."""
    await asyncio.sleep(0.2)  # let what was started come to rest
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    return 100 * (time.process_time() - cpu) / (time.perf_counter() - wall)


async def touch(worker: pa.DistributedWorker) -> None:
    """One dispatch on each device."""
    for rank in range(DEVICES):
        await worker.run(anywhere, *await noop.pair(worker, rank))


async def measure_async(quick: bool) -> list[Answer]:
    """Idle rounds of each backend, and of none."""
    rounds, seconds = (2, 0.2) if quick else (3, 2.0)
    none = [await idle(seconds) for _ in range(rounds)]
    answers = []
    for backend in ("inline", "thread"):
        async with noop.opened(backend, DEVICES, programs=[anywhere]) as worker:
            await touch(worker)
            shares = [await idle(seconds) for _ in range(rounds)]
        question = f"CPU of an idle worker, {DEVICES:,} devices, {backend}"
        notes = {"% without a worker": statistics.median(none)}
        answers.append(Answer(question, "one core", "%", 1, 0.1, shares, f"`process_time` over {rounds} × {seconds:g} s of sleep", notes))
    return answers


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
