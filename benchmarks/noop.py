"""The subject of most benchmarks: a program of one kernel that does nothing, and blocks of dispatches of it.

Each block gives seconds for each dispatch. The measured expressions stand in their loops as a user would write them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import numpy as np

import pypto_actors as pa
from benchmarks import harness
from pypto_actors.executor import Backend

SHAPE = (16,)
OUTSTANDING = 64
Source: TypeAlias = Annotated[pa.TensorRef, pa.In(SHAPE, np.float32)]
Target: TypeAlias = Annotated[pa.TensorRef, pa.Out(SHAPE, np.float32)]
Pair: TypeAlias = tuple[pa.DeviceTensor, pa.DeviceTensor]


@pa.kernel
def nothing(a: pa.InArray, b: pa.OutArray) -> None:
    """Reads `a`, writes `b`, as far as the worker knows."""


@pa.program
def noop(orch: pa.Orchestrator, a: Source, b: Target) -> None:
    """One step on device 0."""
    orch.submit(nothing, a, b, device=0)


def opened(
    backend: str | Backend, devices: int = 1, in_flight: int = 2, max_queued: int = 1024, programs: Sequence[pa.Program] = ()
) -> pa.DistributedWorker:
    """A worker that knows `noop` and `programs`, to be entered."""
    config = pa.DistributedConfig(device_ids=range(devices))
    name = backend if isinstance(backend, str) else backend.name
    trace = harness.hook(f"{name}, {devices} devices" if devices > 1 else name)
    return pa.DistributedWorker([noop, *programs], config=config, backend=backend, in_flight=in_flight, max_queued=max_queued, trace=trace)


async def pair(worker: pa.DistributedWorker, device: int = 0) -> Pair:
    """Two device tensors, as `noop` takes them."""
    return await worker.alloc_tensor(SHAPE, np.float32, device=device), await worker.alloc_tensor(SHAPE, np.float32, device=device)


async def runs(worker: pa.DistributedWorker, tensors: Pair, count: int) -> float:
    """`await worker.run(noop, a, b)`, one after another."""
    a, b = tensors
    start = time.perf_counter()
    for _ in range(count):
        await worker.run(noop, a, b)
    return (time.perf_counter() - start) / count


async def bursts(worker: pa.DistributedWorker, pairs: Sequence[Pair], count: int) -> float:
    """All of `pairs` by `submit_nowait`, then awaited, `count` times over."""
    start = time.perf_counter()
    for _ in range(count):
        handles = [worker.submit_nowait(noop, a, b) for a, b in pairs]
        for handle in handles:
            await handle
    return (time.perf_counter() - start) / (count * len(pairs))
