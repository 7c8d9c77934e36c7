"""What does a device tensor of 16 MiB cost as an argument on `process`, against one of 64 bytes?

Device tensors lie in shared memory and cross by handle, so that nothing should be copied. Needed: 1.05 times the no-op.
Beside it, what the same 16 MiB cost as a host array, which is copied in and out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, TypeAlias

import numpy as np

import pypto_actors as pa
from benchmarks import harness, noop
from benchmarks.harness import Answer

LARGE = (1 << 22,)  # float32
Source: TypeAlias = Annotated[pa.TensorRef, pa.In(LARGE, np.float32)]
Target: TypeAlias = Annotated[pa.TensorRef, pa.Out(LARGE, np.float32)]


@pa.program
def large(orch: pa.Orchestrator, a: Source, b: Target) -> None:
    """The same kernel that does nothing."""
    orch.submit(noop.nothing, a, b, device=0)


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of runs with large tensors beside blocks with small ones."""
    rounds, count = (3, 20) if quick else (150, 100)
    async with noop.opened("process", programs=[large]) as worker:
        small = await noop.pair(worker)
        tensors = [await worker.alloc_tensor(LARGE, np.float32, init=np.ones(LARGE, np.float32)) for _ in range(2)]
        arrays = np.ones(LARGE, np.float32), np.ones(LARGE, np.float32)

        async def runs(count: int, a: Any, b: Any) -> float:
            start = time.perf_counter()
            for _ in range(count):
                await worker.run(large, a, b)
            return (time.perf_counter() - start) / count

        times = await harness.paired(
            rounds, {"no-op": lambda: noop.runs(worker, small, count), "16 MiB": lambda: runs(count, *tensors)}, warm_up=5
        )
        host = await harness.paired(3 if quick else 10, {"16 MiB from the host and back": lambda: runs(2, *arrays)}, warm_up=1)
    notes = {**harness.microseconds(times), **harness.microseconds(host)}
    how = f"blocks of {count}, alternating"
    return [
        Answer(
            "16 MiB device tensors as arguments, process", "the no-op", "×", 1.05, 1.0, harness.ratios(times, "16 MiB", "no-op"), how, notes
        )
    ]


def measure(quick: bool) -> list[Answer]:
    """The answer to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
