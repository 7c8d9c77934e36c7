"""What does each device of a worker with 10,000 devices cost on `inline`: to start, in hops, and to keep, in KiB?

*Start* is everything from the configuration to the entered worker. *Memory* is what `tracemalloc` finds allocated
between the same two points, in a run of its own, since tracing slows the start; beside it, what it is when each device
has run a dispatch. Needed: 4 hops and 8 KiB, wanted: 2 hops and 5 KiB.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer


@pa.program
def anywhere(orch: pa.Orchestrator, a: noop.Source, b: noop.Target) -> None:
    """One step where the tensors are."""
    orch.submit(noop.nothing, a, b)


async def start(devices: int) -> float:
    """Seconds to start, for each device."""
    begin = time.perf_counter()
    async with noop.opened("inline", devices):
        return (time.perf_counter() - begin) / devices


async def memory(devices: int) -> tuple[float, float]:
    """KiB for each device: started, and when each has been used (with two tensors of 64 bytes each)."""
    async with noop.opened("inline", 2, programs=[anywhere]) as worker:  # what is made once in a process
        await worker.run(anywhere, *await noop.pair(worker))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with noop.opened("inline", devices, programs=[anywhere]) as worker:
            gc.collect()
            started, _ = tracemalloc.get_traced_memory()
            for rank in range(devices):
                await worker.run(anywhere, *await noop.pair(worker, rank))
            gc.collect()
            used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (started - before) / devices / 1024, (used - before) / devices / 1024


async def measure_async(quick: bool) -> list[Answer]:
    """Starts beside blocks of hops; then the memory, once, since it does not vary."""
    devices, rounds = (200, 3) if quick else (10_000, 9)
    times = await harness.paired(rounds, {"hop": lambda: hop(5000), "start": lambda: start(devices)}, warm_up=1)
    started, used = await memory(devices)
    values = harness.ratios(times, "start", "hop")
    question = f"{devices:,} devices, inline"
    how_start = "configuration, constructor and entering, alternating with blocks of hops"
    return [
        Answer(f"{question}: start, each", "hop", "hops", 4, 2, values, how_start, harness.microseconds(times)),
        Answer(
            f"{question}: memory, each",
            "bytes by tracemalloc",
            "KiB",
            8,
            5,
            [started],
            "`tracemalloc` over a start",
            {"KiB, each used once": used},
        ),
    ]


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
