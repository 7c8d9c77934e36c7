import asyncio

import numpy as np

import pypto_actors as pa


@pa.kernel
def scale(x: pa.InOutArray, factor: float) -> None:
    np.multiply(x, factor, out=x)


@pa.program
def grow(orch: pa.Orchestrator, x: pa.InOutArray, factor: float) -> None:
    orch.submit(scale, x, factor)


async def main() -> None:
    async with pa.DistributedWorker(grow) as worker:
        x = await worker.alloc_tensor(4, np.float32, init=np.ones(4, np.float32))
        await asyncio.gather(*[worker.run(grow, x, 2.0) for _ in range(10)])
        print(await worker.read(x))


asyncio.run(main())
