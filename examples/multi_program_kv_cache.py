"""Two programs, prefill and decode, share one device and one KV cache that lives in its memory.

    python -m examples.multi_program_kv_cache [--trace FILE] [--plot FILE.png]

The "model" is two additions, so that each result can be checked: prefill leaves `2 * prompt` in the cache, and the logits of a
token are `token + cache`. What matters is who owns what: the cache stays on the device from the prefill to the last token; the
host sends a token and gets logits.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np

import pypto_actors as pa
from pypto_actors import tracing

T = 128
Tile = (T, T)


@pa.kernel  # runs on a device; numpy in, numpy out, in place
def write_kv(prompt: pa.InArray, kv: pa.OutArray) -> None:
    np.add(prompt, prompt, out=kv)


@pa.kernel
def read_kv(token: pa.InArray, kv: pa.InArray, logits: pa.OutArray) -> None:
    np.add(token, kv, out=logits)


@pa.program(stage="prefill")  # runs once, on the host, and records which kernel runs on which device
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


async def main(trace: tracing.Recorder | None) -> None:
    prompt = np.full(Tile, 3, np.float32)
    logits = np.empty(Tile, np.float32)
    async with pa.DistributedWorker([prefill, decode], config=pa.DistributedConfig(device_ids=[0]), trace=trace) as worker:
        kv = await worker.alloc_tensor(Tile, np.float32)
        print(f"the cache takes {worker.committed_device_memory()} bytes of device 0")

        await worker.run(prefill, prompt, kv)
        for value in range(4):
            token = np.full(Tile, value, np.float32)
            await worker.run(decode, token, kv, logits)
            np.testing.assert_array_equal(logits, token + 2 * prompt)
            print(f"token {value}: all logits are {logits[0, 0]:g}")

        await worker.free_tensor(kv)
        print(f"freed, it takes {worker.committed_device_memory()}")


if __name__ == "__main__":
    with tracing.command_line(__doc__) as trace:
        asyncio.run(main(trace))
