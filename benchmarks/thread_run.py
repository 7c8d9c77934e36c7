"""What does `await worker.run(program, a, b)` cost on `thread`, against the round trip to a bare thread?

The bare thread takes a call from a `SimpleQueue`, does nothing, and resolves a future by `call_soon_threadsafe`: what
any dispatcher to a thread must pay. Needed: 1.5 times that, wanted: 1.2. Both threads exist all the time, and short
blocks of both alternate, since what a wake-up costs depends on what else the cores do. In one half of the rounds both
threads are on the core of the loop, in the other half on another: left to the system, one would be here and one there.
"""

from __future__ import annotations

import asyncio
import threading

from benchmarks import harness, noop
from benchmarks.floors import BareThread
from benchmarks.harness import Answer
from benchmarks.placement import paired


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of runs beside blocks of bare round trips."""
    rounds, count = (3, 20) if quick else (150, 100)
    async with noop.opened("thread") as worker, BareThread() as bare:
        tensors = await noop.pair(worker)
        sides = {"bare round trip": lambda: bare.round_trip(count), "run": lambda: noop.runs(worker, tensors, count)}
        others = [bare.native_id, *(thread.native_id for thread in threading.enumerate() if thread.name == "pypto-device-0")]
        times, placement = await paired(rounds, sides, [other for other in others if other is not None], warm_up=5)
    how = f"blocks of {count}, alternating with blocks of bare round trips; {placement}"
    values = harness.ratios(times, "run", "bare round trip")
    return [Answer("the same `run` on thread", "bare thread round trip", "×", 1.5, 1.2, values, how, harness.microseconds(times))]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
