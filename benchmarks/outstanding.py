"""What does each of 64 outstanding dispatches cost on `inline`, in hops of its loop?

64 times `worker.submit_nowait(program, a, b)`, then all handles are awaited. Once all of them are on the same two
device tensors, so that each must wait for the one before (the answer), and once each is on two of its own (beside it),
which costs no waiting but touches 64 times the memory. Needed: 1.8 hops, wanted: 1.3.
"""

from __future__ import annotations

import asyncio

from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of bursts beside blocks of hops."""
    rounds, count = (3, 2) if quick else (60, 16)
    hops = count * noop.OUTSTANDING
    async with noop.opened("inline") as worker:
        own = [await noop.pair(worker) for _ in range(noop.OUTSTANDING)]
        same = [own[0]] * noop.OUTSTANDING
        times = await harness.paired(
            rounds,
            {
                "hop": lambda: hop(hops),
                "same": lambda: noop.bursts(worker, same, count),
                "own": lambda: noop.bursts(worker, own, count),
            },
        )
    notes = harness.microseconds(times)
    how = f"blocks of {count} bursts, alternating with blocks of hops"
    question = "64 outstanding by `submit_nowait`, inline, each"
    return [
        Answer(f"{question}, all on one pair of tensors", "hop", "hops", 1.8, 1.3, harness.ratios(times, "same", "hop"), how, notes),
        Answer(f"{question}, on tensors of its own", "hop", "hops", 1.8, 1.3, harness.ratios(times, "own", "hop"), how, notes),
    ]


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
