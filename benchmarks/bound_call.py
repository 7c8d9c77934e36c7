"""What does one awaited call of a bound program cost on `inline`, in hops of its loop?

The program has one kernel that does nothing and two device tensors, both bound: `await bound()`. Needed: 3.0 hops,
wanted: 2.0.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of bound calls beside blocks of hops."""
    rounds, count = (3, 50) if quick else (60, 800)
    async with noop.opened("inline") as worker:
        a, b = await noop.pair(worker)
        bound = worker.bind(noop.noop, a=a, b=b)

        async def calls() -> float:
            start = time.perf_counter()
            for _ in range(count):
                await bound()
            return (time.perf_counter() - start) / count

        times = await harness.paired(rounds, {"hop": lambda: hop(count), "bound": calls})
    how = f"blocks of {count}, alternating with blocks of hops"
    values = harness.ratios(times, "bound", "hop")
    return [Answer("no-op `await bound()`, inline", "hop", "hops", 3.0, 2.0, values, how, harness.microseconds(times))]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
