"""Does a dispatch cost more where 10,000 tensors are alive, or 1,000 dispatches are queued, than on an empty worker?

On `inline`, three workers side by side on one loop: an empty one, one with 10,000 device tensors, each of which has been
used, and one where 1,000 dispatches are queued behind a host callback that holds the tensor they all write. What is
timed is `await worker.run(program, a, b)` on two further tensors. Needed: 1.3 times the empty worker, wanted: 1.1.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.harness import Answer

LIVE = 10_000  # tensors
QUEUED = 1_000  # dispatches


@pa.program(callbacks=("hold",))
def holding(orch: pa.Orchestrator, a: noop.Source, b: noop.Target) -> None:
    """Hold `b` until the callback returns."""
    orch.submit(noop.nothing, a, b, device=0)
    orch.submit_sub("hold", b)


async def fill(worker: pa.DistributedWorker, count: int) -> None:
    """`count` tensors that live and have been used."""
    for _ in range(count // 2):
        await worker.run(noop.noop, *await noop.pair(worker))


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of runs on all three workers."""
    rounds, count = (3, 20) if quick else (80, 400)
    let_go = asyncio.Event()

    async def hold(b: object) -> None:
        await let_go.wait()

    async with AsyncExitStack() as stack:
        empty, live = [await stack.enter_async_context(noop.opened("inline")) for _ in range(2)]
        full = await stack.enter_async_context(
            pa.DistributedWorker(
                [noop.noop, holding], backend="inline", max_queued=2 * QUEUED, callbacks={"hold": hold}, trace=harness.hook("queued")
            )
        )
        stack.callback(let_go.set)  # before the workers are left
        await fill(live, LIVE)
        held = await noop.pair(full)
        full.submit_nowait(holding, *held)
        for _ in range(QUEUED):
            full.submit_nowait(noop.noop, *held)
        pairs = [await noop.pair(worker) for worker in (empty, live, full)]
        times = await harness.paired(
            rounds,
            {
                "empty": lambda: noop.runs(empty, pairs[0], count),
                "live": lambda: noop.runs(live, pairs[1], count),
                "queued": lambda: noop.runs(full, pairs[2], count),
            },
        )
        assert full.statistics().queued == QUEUED
    how = f"blocks of {count} runs, alternating between the workers, inline"
    notes = harness.microseconds(times)
    return [
        Answer(f"dispatch cost {condition}", "an empty worker", "×", 1.3, 1.1, harness.ratios(times, side, "empty"), how, notes)
        for side, condition in (("live", f"with {LIVE:,} live tensors"), ("queued", f"with {QUEUED:,} queued dispatches"))
    ]


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
