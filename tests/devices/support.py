"""Programs and checks that the tests of programs over several devices share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import pytest

import pypto_actors as pa

I64 = np.int64
BACKENDS = ("inline", "thread")
Array: TypeAlias = np.ndarray[Any, Any]
Recorded: TypeAlias = Callable[[pa.Orchestrator, Any], None]
Any1 = Annotated[pa.TensorRef, pa.InOut()]
both = pytest.mark.parametrize("backend", BACKENDS)


@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.kernel
def put(src: pa.InArray, dst: pa.OutArray) -> None:
    dst[...] = src


@pa.kernel
def nothing() -> None:
    pass


def worker(*programs: pa.Program, devices: int = 3, **options: Any) -> pa.DistributedWorker:
    memory = options.pop("memory_bytes", None)
    return pa.DistributedWorker(programs, config=pa.DistributedConfig(range(devices), memory_bytes=memory), **options)


def program_of(body: Recorded, name: str = "recorded") -> pa.Program:
    """A program of one array that it may read and write."""

    @pa.program(name=name)
    def program(orch: pa.Orchestrator, x: Any1) -> None:
        body(orch, x)

    return program


async def faulty(body: Recorded, text: str, *, devices: int = 3, kind: type[Exception] = pa.ProgramError, arg: Any = None) -> None:
    """Recording `body` fails with `text`, and nothing was accepted."""
    program = program_of(body)
    async with worker(program, devices=devices, backend="inline") as w:
        with pytest.raises(kind, match=re.escape(text)):
            await w.run(program, np.zeros(4, I64) if arg is None else arg)
        assert w.statistics().accepted == 0
        assert all(device.memory_used == 0 for device in w.statistics().devices)


def empty(w: pa.DistributedWorker) -> bool:
    """Does nobody hold memory, and does nothing run or wait?"""
    numbers = w.statistics()
    return numbers.queued == numbers.running == 0 and all(device.memory_used == 0 for device in numbers.devices)


def on_devices(ranks: Sequence[int], steps: Callable[[pa.Orchestrator, list[pa.TensorRef]], object]) -> pa.Program:
    """`x[i]` goes to device `ranks[i]`, `steps` work there in place, and it comes back."""

    @pa.program(name="on_devices")
    def program(orch: pa.Orchestrator, x: Any1) -> None:
        refs = [orch.empty(x.shape[1:], x.dtype, device=rank) for rank in ranks]
        for index, ref in enumerate(refs):
            orch.copy(ref, x[index])
        steps(orch, refs)
        for index, ref in enumerate(refs):
            orch.copy(x[index], ref)

    return program
