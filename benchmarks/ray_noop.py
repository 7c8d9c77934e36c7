"""What does a no-op dispatch on `ray` cost, against one awaited call of a bare Ray actor?

`run` of a program of one no-op on two device tensors, beside `await actor.method.remote()` of an actor with an empty method, both on one
local Ray, in blocks that alternate. Needed: 1.3 of that, wanted: 1.1. Where Ray is not installed there is nothing to measure, and the
status is 3.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import time
from typing import Any

from benchmarks import harness, noop
from benchmarks.harness import Answer

SKIPPED = 3  # the status of a benchmark whose rival is not installed


async def bare(actor: Any, count: int) -> float:
    """Seconds of each awaited call of an actor."""
    start = time.perf_counter()
    for _ in range(count):
        await actor.nothing.remote()
    return (time.perf_counter() - start) / count


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of runs beside blocks of bare calls."""
    import ray

    class Bare:
        """An actor that does nothing."""

        def nothing(self) -> None:
            """Answer."""

    rounds, count = (3, 10) if quick else (60, 60)
    actor: Any = ray.remote(Bare).options(num_cpus=0).remote()
    await actor.nothing.remote()
    async with noop.opened("ray") as worker:
        tensors = await noop.pair(worker)
        times = await harness.paired(
            rounds, {"bare call": lambda: bare(actor, count), "run": lambda: noop.runs(worker, tensors, count)}, warm_up=3
        )
    values = harness.ratios(times, "run", "bare call")
    how = f"blocks of {count}, alternating, on one local Ray"
    return [Answer("no-op `run` on ray", "`await actor.method.remote()`", "×", 1.3, 1.1, values, how, harness.microseconds(times))]


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    try:
        return asyncio.run(measure_async(quick))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    if importlib.util.find_spec("ray") is None:
        print("not measured: Ray is not installed; pip install 'pypto_actors[ray]'", file=sys.stderr)
        sys.exit(SKIPPED)
    harness.main(__doc__, measure)
