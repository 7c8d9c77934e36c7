"""A flood of prefills does not starve decode: `PhaseFair`, the default policy, with `Arrival` as the contrast.

    python -m examples.phase_fair [--trace FILE] [--plot FILE.png]

Ten prefills are queued before the first decode comes. By arrival all of them go first; `PhaseFair(max_prefills=2)` lets at most
two of them stand between two decodes, so that whoever is reading tokens goes on getting some.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np

import pypto_actors as pa
from pypto_actors import tracing

Token = Annotated[pa.TensorRef, pa.Out((1,), np.int64)]
seen: list[str] = []  # what the device did, in order


@pa.kernel
def work(x: pa.OutArray, decoding: bool) -> None:
    seen.append("D" if decoding else "p")
    x[...] = decoding


@pa.program(stage="prefill")
def prefill(orch: pa.Orchestrator, x: Token) -> None:
    orch.submit(work, x, False, device=0)


@pa.program(stage="decode")
def decode(orch: pa.Orchestrator, x: Token) -> None:
    orch.submit(work, x, True, device=0)


async def flood(policy: pa.Policy, trace: tracing.Recorder | None) -> str:
    """The order in which the device got ten prefills and five decodes that were queued in this order."""
    seen.clear()
    async with pa.DistributedWorker([prefill, decode], backend="inline", policy=policy, trace=trace) as worker:
        handles = [worker.submit_nowait(prefill) for _ in range(10)]
        handles += [worker.submit_nowait(decode) for _ in range(5)]
        await asyncio.gather(*handles)
    return "".join(seen)


async def main(trace: tracing.Recorder | None) -> None:
    for policy in (pa.PhaseFair(max_prefills=2), pa.Arrival()):
        name = type(policy).__name__
        order = await flood(policy, trace and trace.worker(name))
        print(f"{name:<9} {order}  prefills before the first decode: {order.index('D')}")


if __name__ == "__main__":
    with tracing.command_line(__doc__) as trace:
        asyncio.run(main(trace))
