"""How long does a dispatch take while others are under way: p50 and p99, by backend?

16 clients on one device, each with tensors of its own, each awaiting one `run` after the other, of a kernel that does
nothing. The answer is p99 to p50 of the same round: what the unluckiest in a hundred waits, in multiples of the usual.
Nothing is demanded; p50 and p99 in µs and in hops stand beside it. The garbage collector stays on.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import numpy as np

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer

CLIENTS = 16


async def client(latencies: list[float], count: int, worker: pa.DistributedWorker, tensors: noop.Pair) -> None:
    """One that asks, waits, and asks again."""
    a, b = tensors
    for _ in range(count):
        start = time.perf_counter()
        await worker.run(noop.noop, a, b)
        latencies.append(time.perf_counter() - start)


async def measure_backend(backend: str, rounds: int, count: int) -> Answer:
    """Rounds of all clients on one backend."""
    percentiles: dict[str, list[float]] = {"p50": [], "p99": []}
    hops: list[float] = []
    async with noop.opened(backend) as worker:
        pairs = [await noop.pair(worker) for _ in range(CLIENTS)]
        for number in range(1 + rounds):
            latencies: list[float] = []
            base = await hop(500)
            await asyncio.gather(*(client(latencies, count, worker, tensors) for tensors in pairs))
            if number:
                hops.append(base)
                for name, values in percentiles.items():
                    values.append(float(np.percentile(latencies, int(name[1:]))))
    notes = harness.microseconds(percentiles)
    for name in percentiles:
        notes[f"{name}, hops"] = statistics.median(value / base for value, base in zip(percentiles[name], hops, strict=True))
    how = f"p50 {notes['p50, µs']:.0f} µs, p99 {notes['p99, µs']:.0f} µs; {CLIENTS} clients, {CLIENTS * count:,} dispatches a round"
    values = harness.ratios(percentiles, "p99", "p50")
    return Answer(f"latency under load, {backend}: p99", "p50", "× p50", None, None, values, how, notes)


def measure(quick: bool) -> list[Answer]:
    """An answer for each backend."""
    rounds, count = (2, 20) if quick else (12, 250)
    return [asyncio.run(measure_backend(backend, rounds, count)) for backend in ("inline", "thread")]


if __name__ == "__main__":
    harness.main(__doc__, measure)
