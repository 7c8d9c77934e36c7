"""How long does a worker of 8 processes take to start, against 8 bare processes that import numpy?

The bare ones are started all at once, a fresh interpreter each, and each says when it has imported numpy. Both times go
until everybody is there, and do not include the end. Needed: 1.5 times that, wanted: 1.2.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from benchmarks import harness, noop
from benchmarks.harness import Answer

COUNT = 8
BARE = [sys.executable, "-c", "import sys, numpy; print('here', flush=True); sys.stdin.read()"]


def bare() -> float:
    """Seconds until all bare processes are there."""
    start = time.perf_counter()
    processes = [subprocess.Popen(BARE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(COUNT)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    seconds = time.perf_counter() - start
    for process in processes:
        process.communicate()
    return seconds


async def started_bare() -> float:
    """The same, for a loop that has nothing else to do."""
    return bare()


async def started_worker() -> float:
    """Seconds until a worker is entered."""
    worker = noop.opened("process", devices=COUNT)
    start = time.perf_counter()
    async with worker:
        return time.perf_counter() - start


async def measure_async(quick: bool) -> list[Answer]:
    """Starts of a worker beside starts of bare processes."""
    times = await harness.paired(2 if quick else 8, {"bare": started_bare, "worker": started_worker}, warm_up=1)
    notes = {f"{name}, ms": 1e-3 * value for name, value in zip(times, harness.microseconds(times).values(), strict=True)}
    how = "starts that alternate"
    against = f"{COUNT} bare spawned processes that import numpy"
    return [Answer(f"start of a worker of {COUNT} processes", against, "×", 1.5, 1.2, harness.ratios(times, "worker", "bare"), how, notes)]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
