"""What does each further step of a program cost on `inline`, in hops of its loop?

Two programs on the same two device tensors, of 1 and of 1,001 steps of the kernel that does nothing; the answer is the
slope between them. Needed: 0.1 hops, wanted: 0.02.
"""

from __future__ import annotations

import asyncio
import time

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer

FURTHER = 1000


@pa.program
def short(orch: pa.Orchestrator, a: noop.Source, b: noop.Target) -> None:
    """One step."""
    orch.submit(noop.nothing, a, b, device=0)


@pa.program
def long(orch: pa.Orchestrator, a: noop.Source, b: noop.Target) -> None:
    """As many more."""
    for _ in range(1 + FURTHER):
        orch.submit(noop.nothing, a, b, device=0)


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of both programs beside blocks of hops."""
    rounds, count, hops = (3, 2, 50) if quick else (60, 40, 500)
    async with noop.opened("inline", programs=[short, long]) as worker:
        a, b = await noop.pair(worker)

        async def block(program: pa.Program, repeats: int) -> float:
            start = time.perf_counter()
            for _ in range(repeats):
                await worker.run(program, a, b)
            return (time.perf_counter() - start) / repeats

        times = await harness.paired(
            rounds, {"hop": lambda: hop(hops), "1 step": lambda: block(short, 10 * count), "1,001 steps": lambda: block(long, count)}
        )
    values = [(more - one) / FURTHER / base for more, one, base in zip(times["1,001 steps"], times["1 step"], times["hop"], strict=True)]
    how = "slope between programs of 1 and 1,001 steps, alternating with blocks of hops"
    return [Answer("each further step of a program, inline", "hop", "hops", 0.1, 0.02, values, how, harness.microseconds(times))]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
