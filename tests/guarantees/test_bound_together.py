"""Bound programs with many fixed tensors, which are claimed and looked up together, among calls that touch some of them by themselves.

Breaks that this catches: a fixed scalar that is taken for a tensor; a bundle that is not given up where somebody else comes, or that is
given up for the spaces that he has taken; views that outlive their tensor; fixed tensors that a death does not look at.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import testing

Vec = Annotated[pa.TensorRef, pa.InOut((4,), np.int64)]
BACKENDS = pytest.mark.parametrize("backend", ["inline", "thread", "process"])


@pa.kernel
def mix(a: pa.InOutArray, b: pa.InArray, c: pa.InArray, d: pa.InArray, scale: int, x: pa.InOutArray, plus: int) -> None:
    a[...] = (a * scale + b + c + d + plus) % 10_007
    x[...] = a


@pa.program
def mixed(orch: pa.Orchestrator, a: Vec, b: Vec, c: Vec, d: Vec, scale: int, x: Vec, plus: int) -> None:
    orch.submit(mix, a, b, c, d, scale, x, plus)


@pa.kernel
def double(x: pa.InOutArray) -> None:
    x[...] = x * 2 % 10_007


@pa.program
def doubled(orch: pa.Orchestrator, x: Vec) -> None:
    orch.submit(double, x)


async def bound_and_known(worker: pa.DistributedWorker) -> tuple[list[pa.DeviceTensor], pa.BoundProgram]:
    """Four tensors, and a program that fixes them and has been called often enough for them to go together."""
    tensors = [await worker.alloc_tensor((4,), np.int64) for _ in range(4)]
    bound = worker.bind(mixed, a=tensors[0], b=tensors[1], c=tensors[2], d=tensors[3], scale=2)
    for _ in range(2):
        await bound(ones(), 1)
    return tensors, bound


def ones() -> np.ndarray[Any, Any]:
    return np.ones(4, np.int64)


@BACKENDS
async def test_in_the_order_of_acceptance_with_calls_that_touch_some_of_the_tensors(backend: str) -> None:
    async with pa.DistributedWorker([mixed, doubled], backend=backend, in_flight=3) as worker:
        tensors = [await worker.alloc_tensor((4,), np.int64, init=ones() * (rank + 1)) for rank in range(4)]
        bound = worker.bind(mixed, a=tensors[0], b=tensors[1], c=tensors[2], d=tensors[3], scale=7)
        model = [1, 2, 3, 4]
        handles, outputs, wanted = [], [], []
        await bound(ones(), 0)  # from the second call on they go together
        model[0] = (model[0] * 7 + sum(model[1:])) % 10_007
        for number in range(40):
            if number % 3 == 2:
                rank = number % 4
                handles.append(worker.submit_nowait(doubled, tensors[rank]))
                model[rank] = model[rank] * 2 % 10_007
                continue
            outputs.append(ones())
            handles.append(bound.submit_nowait(outputs[-1], number))
            model[0] = (model[0] * 7 + sum(model[1:]) + number) % 10_007
            wanted.append([model[0]] * 4)
        await asyncio.gather(*handles)
        assert [x.tolist() for x in outputs] == wanted
        assert [(await worker.read(tensor))[0] for tensor in tensors] == model
        system: Any = worker._system
        assert len(system.coordinator.hazards) == 0


@BACKENDS
async def test_a_tensor_that_is_freed_meanwhile(backend: str) -> None:
    async with pa.DistributedWorker(mixed, backend=backend) as worker:
        tensors, bound = await bound_and_known(worker)
        await bound(ones(), 1)
        await worker.free_tensor(tensors[2])
        with pytest.raises(pa.StaleTensorError, match="parameter 'c'"):
            await bound(ones(), 1)
        assert worker.committed_device_memory() == 3 * 32


@BACKENDS
async def test_what_is_queued_fails_with_the_device_where_its_tensors_lived(backend: str) -> None:
    async with pa.DistributedWorker(mixed, backend=backend) as worker:
        _, bound = await bound_and_known(worker)
        await worker.pause("keep")
        handle = bound.submit_nowait(ones(), 1)
        testing.kill_device(worker, 0)
        with pytest.raises(pa.DeviceFailedError):
            await handle
