"""What does a gang cost: each member of a no-op on 8 devices, the idle time that it brings, and an all-reduce on threads?

*Member*: `run` of a gang of 8 that does nothing, on `inline`, divided by 8. Needed: 2.0 hops, wanted: 1.0.

*Idle*: 4 devices on `thread` under a flood of singles of 1 to 3 ms (they sleep, so that cores do not count), beside the same flood with a
gang of all 4 for each 20 singles. A gang whose turn it is claims its devices: they get nothing else, and go idle one by one while the
others finish what they were handed. So a gang costs a device at most the time of the longest `in_flight + 1` singles that another one
holds, once, however long the queue is; a claimed device is filled again behind the gang at once. There is no demand; the bound is a note.

*All-reduce*: 4 × 16 MiB of float32 on `thread`, against one numpy thread that adds up the same four arrays in place and copies the sum to
the other three. Needed: 1.3 of that.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Annotated

import numpy as np

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.floors import hop
from benchmarks.harness import Answer

MEMBERS = 8
DEVICES = 4
ELEMENTS = (16 << 20) // 4
IN_FLIGHT = 2
LENGTHS = (0.001, 0.002, 0.003)  # seconds of a single


@pa.program
def gang(
    orch: pa.Orchestrator,
    a: Annotated[pa.TensorRef, pa.In((MEMBERS, *noop.SHAPE), np.float32)],
    b: Annotated[pa.TensorRef, pa.Out((MEMBERS, *noop.SHAPE), np.float32)],
) -> None:
    """A member on each device."""
    orch.submit_group(noop.nothing, [(a[rank], b[rank]) for rank in range(MEMBERS)], devices=range(MEMBERS))


@pa.kernel
def sleep(seconds: float) -> None:
    """Occupies its device, and no core."""
    time.sleep(seconds)


@pa.program
def single(orch: pa.Orchestrator, seconds: float) -> None:
    """One step wherever there is the least to do."""
    orch.submit(sleep, seconds)


@pa.program
def together(orch: pa.Orchestrator, seconds: float) -> None:
    """A gang of all."""
    orch.submit_group(sleep, [(seconds,)] * DEVICES, devices=range(DEVICES))


@pa.program
def reduce(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((DEVICES, ELEMENTS), np.float32)]) -> None:
    """All hold the sum."""
    orch.allreduce([x[rank] for rank in range(DEVICES)])


async def member(quick: bool) -> Answer:
    """Blocks of gangs beside blocks of hops."""
    rounds, count, hops = (3, 20, 100) if quick else (60, 200, 1000)
    async with noop.opened("inline", MEMBERS, programs=[gang]) as worker:
        a, b = [await worker.alloc_stacked_tensor(np.zeros((MEMBERS, *noop.SHAPE), np.float32)) for _ in range(2)]

        async def block() -> float:
            start = time.perf_counter()
            for _ in range(count):
                await worker.run(gang, a, b)
            return (time.perf_counter() - start) / count / MEMBERS

        times = await harness.paired(rounds, {"hop": lambda: hop(hops), "member": block})
    how = f"{count} runs of the gang on stacked tensors, alternating with blocks of hops"
    values = harness.ratios(times, "member", "hop")
    return Answer(
        f"no-op gang over {MEMBERS} devices, inline, each member", "hop", "hops", 2.0, 1.0, values, how, harness.microseconds(times)
    )


async def idle(quick: bool) -> Answer:
    """The share of the devices' time that nothing runs, with gangs and without."""
    rounds, singles = (2, 40) if quick else (10, 400)
    draw = random.Random(harness.SEED)
    async with noop.opened("thread", DEVICES, in_flight=IN_FLIGHT, programs=[single, together]) as worker:

        async def flood(gangs: bool) -> float:
            lengths = [draw.choice(LENGTHS) for _ in range(singles)]
            before = sum(device.busy_time for device in worker.statistics().devices)
            start = time.perf_counter()
            handles = []
            for number, seconds in enumerate(lengths):
                if gangs and number % 20 == 10:
                    handles.append(worker.submit_nowait(together, 0.001))
                handles.append(worker.submit_nowait(single, seconds))
            for handle in handles:
                await handle
            busy = sum(device.busy_time for device in worker.statistics().devices) - before
            return 1 - busy / (time.perf_counter() - start) / DEVICES

        sides = {"without gangs": lambda: flood(False), "with gangs": lambda: flood(True)}
        shares = await harness.paired(rounds, sides, warm_up=1)
    count = singles // 20
    wait = [100 * (mine - theirs) for mine, theirs in zip(shares["with gangs"], shares["without gangs"], strict=True)]
    # of a run as long as its work: each gang may cost each device the longest that another holds
    work = singles * sum(LENGTHS) / len(LENGTHS) / DEVICES + count * 0.001
    bound = 100 * count * (IN_FLIGHT + 1) * max(LENGTHS) / work
    notes = {f"idle {name}, %": 100 * float(np.median(values)) for name, values in shares.items()}
    how = f"{singles} singles of 1–3 ms on {DEVICES} devices, a gang for each 20, `in_flight={IN_FLIGHT}`; busy time by `statistics`"
    question = f"idle share that gangs of {DEVICES} bring under a flood of singles, thread"
    return Answer(question, "the same flood without gangs", "% of the devices' time", None, None, wait, how, notes | {"bound, %": bound})


async def all_reduce(quick: bool) -> Answer:
    """Runs of the program beside the numpy calls."""
    rounds = 3 if quick else 40
    values = np.array([1, -1, 2, -2], np.float32)  # their sum is 0, so they do not grow
    bare = [np.full(ELEMENTS, value, np.float32) for value in values]
    async with noop.opened("thread", DEVICES, programs=[reduce]) as worker:
        stacked = await worker.alloc_stacked_tensor(np.repeat(values[:, None], ELEMENTS, axis=1))

        async def ours() -> float:
            start = time.perf_counter()
            await worker.run(reduce, stacked)
            return time.perf_counter() - start

        async def numpy() -> float:
            start = time.perf_counter()
            total = bare[0]
            for other in bare[1:]:
                np.add(total, other, out=total)
            for other in bare[1:]:
                np.copyto(other, total)
            return time.perf_counter() - start

        times = await harness.paired(rounds, {"numpy": numpy, "allreduce": ours})
    how = "one run of the program, alternating with three `np.add` and three `np.copyto` in the main thread"
    return Answer(
        "all-reduce of 4 × 16 MiB float32, thread",
        "bare numpy sum and copies",
        "×",
        1.3,
        None,
        harness.ratios(times, "allreduce", "numpy"),
        how,
        harness.microseconds(times),
    )


async def measure_async(quick: bool) -> list[Answer]:
    """One after another."""
    return [await member(quick), await idle(quick), await all_reduce(quick)]


def measure(quick: bool) -> list[Answer]:
    """The answers to these questions."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
