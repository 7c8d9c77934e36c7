"""Two programs, prefill and decode, share one device and one KV cache that lives on it.

python -m examples.multi_program_kv_cache
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np

import pypto_actors as pa

T = 128
Tile = (T, T)


@pa.kernel
def write_kv(prompt: pa.InArray, kv: pa.OutArray) -> None:
    np.add(prompt, prompt, out=kv)


@pa.kernel
def read_kv(token: pa.InArray, kv: pa.InArray, logits: pa.OutArray) -> None:
    np.add(token, kv, out=logits)


@pa.program(stage="prefill")
def prefill(
    orch: pa.Orchestrator,
    prompt: Annotated[pa.TensorRef, pa.In(Tile, np.float32)],
    kv: Annotated[pa.TensorRef, pa.Out(Tile, np.float32)],
) -> None:
    orch.submit(write_kv, prompt, kv, device=0)


@pa.program(stage="decode")
def decode(
    orch: pa.Orchestrator,
    token: Annotated[pa.TensorRef, pa.In(Tile, np.float32)],
    kv: Annotated[pa.TensorRef, pa.In(Tile, np.float32)],
    logits: Annotated[pa.TensorRef, pa.Out(Tile, np.float32)],
) -> None:
    orch.submit(read_kv, token, kv, logits, device=0)


async def main() -> None:
    prompt = np.full(Tile, 3, np.float32)
    logits = np.zeros(Tile, np.float32)
    async with pa.DistributedWorker([prefill, decode], config=pa.DistributedConfig(device_ids=[0])) as worker:
        kv = await worker.alloc_tensor(Tile, np.float32)
        await worker.run(prefill, prompt, kv)
        for token in range(4):
            await worker.run(decode, np.full(Tile, token, np.float32), kv, logits)
            print(f"token {token}: every logit is {logits[0, 0]:.0f}, {bool((logits == token + 6).all())}")
        print(f"{worker.committed_device_memory()} bytes on the device while the cache lives there")
        await worker.free_tensor(kv)
        print(f"{worker.committed_device_memory()} bytes after it is freed")


if __name__ == "__main__":
    asyncio.run(main())
