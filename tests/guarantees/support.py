"""Programs and gates that the tests of the guarantees share. Nothing here sleeps."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import numpy as np

import pypto_actors as pa

I64 = np.int64
N = 4
Vec = ("n",)
LIMIT = 20.0  # seconds after which a forgotten gate fails its kernel


def zeros(value: int = 0) -> Any:
    return np.full(N, value, I64)


async def turns(count: int = 50) -> None:
    """Let the loop run what is ready: time for a faulty implementation to go wrong."""
    for _ in range(count):
        await asyncio.sleep(0)


@pa.kernel
def add_kernel(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.kernel
def put_kernel(src: pa.InArray, dst: pa.OutArray) -> None:
    dst[...] = src


def adder(device: int = 0, stage: str | None = None) -> pa.Program:
    """x += value"""

    @pa.program(name=f"add{device}", stage=stage)
    def add(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], value: int) -> None:
        orch.submit(add_kernel, x, value, device=device)

    return add


def copier(device: int = 0) -> pa.Program:
    """dst = src"""

    @pa.program(name=f"put{device}")
    def put(orch: pa.Orchestrator, src: Annotated[pa.TensorRef, pa.In(Vec, I64)], dst: Annotated[pa.TensorRef, pa.Out(Vec, I64)]) -> None:
        orch.submit(put_kernel, src, dst, device=device)

    return put


class Hold:
    """A program that has begun and does not end before `open()`; then it adds. It occupies no device meanwhile."""

    def __init__(self, device: int = 0) -> None:
        self.at, self._go = asyncio.Event(), asyncio.Event()

        async def wait(x: pa.InOutArray) -> str:
            self.at.set()
            await self._go.wait()
            return "held"

        @pa.program(name="hold")
        def hold(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], value: int) -> None:
            orch.submit_sub(wait, x)
            orch.submit(add_kernel, x, value, device=device)

        self.program = hold

    def open(self) -> None:
        self._go.set()


class Busy:
    """A program whose kernel occupies a device of a thread until `open()`."""

    def __init__(self, device: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self.at, self._go = asyncio.Event(), threading.Event()

        @pa.kernel
        def stop(x: pa.OutArray) -> None:
            self._loop.call_soon_threadsafe(self.at.set)
            if not self._go.wait(LIMIT):
                raise RuntimeError("the test never opened this gate")
            x[...] = 1

        @pa.program(name="busy")
        def busy(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out(Vec, I64)]) -> None:
            orch.submit(stop, x, device=device)

        self.program = busy

    def open(self) -> None:
        self._go.set()


def noter(log: list[int], device: int = 0, stage: str | None = None) -> pa.Program:
    """Writes its tag down."""

    @pa.kernel
    def note(x: pa.OutArray, tag: int) -> None:
        log.append(tag)
        x[...] = tag

    @pa.program(name=f"note-{stage}", stage=stage)
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((1,), I64)], tag: int) -> None:
        orch.submit(note, x, tag, device=device)

    return program


def failing(error: BaseException, device: int = 0, steps: list[str] | None = None) -> pa.Program:
    """Raises; a later step would write itself down."""

    @pa.kernel
    def explode(x: pa.InOutArray) -> None:
        raise error

    @pa.kernel
    def later(x: pa.InOutArray) -> None:
        if steps is not None:
            steps.append("ran")

    @pa.program(name="failing")
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit(explode, x, device=device)
        orch.submit_sub(lambda x: steps.append("called") if steps is not None else None, x)
        orch.submit(later, x, device=device)

    return program


def worker(*programs: pa.Program, devices: int = 1, **options: Any) -> pa.DistributedWorker:
    memory = options.pop("memory_bytes", None)
    return pa.DistributedWorker(programs, config=pa.DistributedConfig(range(devices), memory_bytes=memory), **options)
