import asyncio

import pypto_actors as pa


@pa.kernel
def push(x: pa.InOutArray, digit: int) -> None:
    x[:] = 10 * x + digit


@pa.program
def append(orch: pa.Orchestrator, x: pa.InOutArray, digit: int) -> None:
    orch.submit(push, x, digit)


async def main() -> None:
    async with pa.DistributedWorker(append) as worker:
        x = await worker.alloc_tensor(3, "int64")
        await asyncio.gather(*[worker.run(append, x, digit) for digit in (1, 2, 3, 4)])
        print(await worker.read(x))


if __name__ == "__main__":
    asyncio.run(main())
