"""What does `await worker.run(program, a, b)` cost on `inline`, in hops of its loop?

The program has one kernel that does nothing; `a` and `b` are device tensors, and the arguments are checked each time.
Needed: 3.5 hops, wanted: 2.4.
"""

from __future__ import annotations

import asyncio

from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of runs beside blocks of hops."""
    rounds, count = (3, 50) if quick else (60, 800)
    async with noop.opened("inline") as worker:
        tensors = await noop.pair(worker)
        times = await harness.paired(rounds, {"hop": lambda: hop(count), "run": lambda: noop.runs(worker, tensors, count)})
    how = f"blocks of {count}, alternating with blocks of hops"
    values = harness.ratios(times, "run", "hop")
    return [Answer("no-op `await worker.run(program, a, b)`, inline", "hop", "hops", 3.5, 2.4, values, how, harness.microseconds(times))]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
