"""A flood of prefills does not starve decode: `PhaseFair`, the default policy, against `Arrival`.

python -m examples.phase_fair
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np

import pypto_actors as pa


def programs(seen: list[str]) -> tuple[pa.Program, pa.Program]:
    @pa.kernel
    def work(x: pa.OutArray, phase: int) -> None:
        seen.append("pd"[phase])
        x[...] = phase

    @pa.program(stage="prefill")
    def prefill(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), np.int64)]) -> None:
        orch.submit(work, x, 0, device=0)

    @pa.program(stage="decode")
    def decode(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), np.int64)]) -> None:
        orch.submit(work, x, 1, device=0)

    return prefill, decode


async def flood(policy: pa.Policy) -> str:
    seen: list[str] = []
    prefill, decode = programs(seen)
    async with pa.DistributedWorker([prefill, decode], backend="inline", policy=policy) as worker:
        handles = [worker.submit_nowait(prefill) for _ in range(24)]
        handles += [worker.submit_nowait(decode) for _ in range(8)]  # they arrive last
        await asyncio.gather(*handles)
    return "".join(seen)


async def main() -> None:
    for policy in (pa.PhaseFair(max_prefills=2, max_decodes=16), pa.Arrival()):
        order = await flood(policy)
        print(f"{type(policy).__name__:>9}: {order}  (prefills before the first decode: {order.index('d')})")


if __name__ == "__main__":
    asyncio.run(main())
