"""What does each of 64 dispatches chained on one tensor cost on `thread` with `in_flight=8`, against one awaited `run`?

Each writes the tensor that the one before wrote, so none may overtake; but a device does what it was handed in order,
so they can be handed over ahead, which hides the way to the thread. Needed: 0.6 of a `run` on the same worker, wanted:
0.3.
"""

from __future__ import annotations

import asyncio

from benchmarks import harness, noop
from benchmarks.harness import Answer


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of chains beside blocks of runs."""
    rounds, count = (3, 1) if quick else (100, 4)
    single = 20 if quick else 100
    async with noop.opened("thread", in_flight=8) as worker:
        tensors = await noop.pair(worker)
        chain = [tensors] * noop.OUTSTANDING
        sides = {"run": lambda: noop.runs(worker, tensors, single), "chained": lambda: noop.bursts(worker, chain, count)}
        times = await harness.paired(rounds, sides, warm_up=5)
    how = f"{count} chains of 64 by `submit_nowait`, alternating with blocks of {single} runs"
    values = harness.ratios(times, "chained", "run")
    return [
        Answer(
            "64 chained on one tensor, thread, `in_flight=8`, each", "that `run`", "×", 0.6, 0.3, values, how, harness.microseconds(times)
        )
    ]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
