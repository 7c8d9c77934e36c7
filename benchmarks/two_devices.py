"""How much longer than one dispatch do two dispatches on two idle devices take, on `thread`?

Each kernel takes 5 ms without the GIL. Needed: 1.15 times one dispatch, wanted: 1.05. Two kinds of kernel, since they
answer two questions:

- it *sleeps* (the answer): the device is busy and the cores are not, as with an NPU behind its driver. What is left is
  what the worker adds, whatever cores the machine has.
- it *hashes*, calibrated to 5 ms (beside it): the devices are simulated on the cores of this machine. Then two cores
  must be free, and the machine's own price of using both comes in; the same kernels on two bare threads are measured
  in the same rounds and show it.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.floors import BareThread
from benchmarks.harness import Answer

KERNEL = 0.005  # seconds
BLOCK = bytes(1 << 16)


def hash_for(blocks: int) -> None:
    """SHA-256 of some blocks; hashlib releases the GIL for each."""
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)


def calibrate() -> int:
    """How many blocks take as long as the kernel is to take."""
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        hash_for(8)
        best = min(best, time.perf_counter() - start)
    return max(1, round(KERNEL * 8 / best))


def program_of(work: Callable[[], None], name: str) -> pa.Program:
    """A program of one step that does `work`, where its tensors are."""

    @pa.kernel
    def kernel(a: pa.InArray, b: pa.OutArray) -> None:
        work()

    def record(orch: pa.Orchestrator, a: noop.Source, b: noop.Target) -> None:
        orch.submit(kernel, a, b)

    return pa.program(name=name)(record)


async def measure_kernel(work: Callable[[], None], name: str, rounds: int) -> harness.Rounds:
    """Rounds of one and of two, on a worker's devices and on bare threads."""
    program = program_of(work, name)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(noop.opened("thread", devices=2, programs=[program]))
        bare = [await stack.enter_async_context(BareThread()) for _ in range(2)]
        pairs = [await noop.pair(worker, rank) for rank in range(2)]

        async def devices(chosen: Sequence[noop.Pair]) -> float:
            start = time.perf_counter()
            for handle in [worker.submit_nowait(program, a, b) for a, b in chosen]:
                await handle
            return time.perf_counter() - start

        async def threads(chosen: Sequence[BareThread]) -> float:
            start = time.perf_counter()
            for future in [thread.submit(work) for thread in chosen]:
                await future
            return time.perf_counter() - start

        return await harness.paired(
            rounds,
            {
                "one": lambda: devices(pairs[:1]),
                "two": lambda: devices(pairs),
                "one bare thread": lambda: threads(bare[:1]),
                "two bare threads": lambda: threads(bare),
            },
        )


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    rounds = 3 if quick else 60
    blocks = calibrate()
    kernels: dict[str, Callable[[], None]] = {"sleeps": lambda: time.sleep(KERNEL), "hashes": lambda: hash_for(blocks)}
    answers = []
    for name, work in kernels.items():
        times = asyncio.run(measure_kernel(work, name, rounds))
        floor = harness.ratios(times, "two bare threads", "one bare thread")
        notes = {**harness.microseconds(times), "two bare threads to one": statistics.median(floor)}
        how = f"`submit_nowait` of both, alternating with one; two bare threads to one: {notes['two bare threads to one']:.2f} ×"
        values = harness.ratios(times, "two", "one")
        question = f"two dispatches on two idle devices, 5 ms each (kernel {name})"
        answers.append(Answer(question, "one of them", "×", 1.15, 1.05, values, how, notes))
    return answers


if __name__ == "__main__":
    harness.main(__doc__, measure)
