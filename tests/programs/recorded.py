"""Kernels and programs for the tests of recording. `RAN` lists the kernels that ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

import pypto_actors as pa

Record = Callable[..., object]


@pa.kernel
def scale(x: pa.InArray, out: pa.OutArray, n: int = 2) -> None:
    RAN.append("scale")
    out[...] = x * n


@pa.kernel
def weigh(x: pa.InOutArray, weight: float, on: bool) -> None:
    RAN.append("weigh")
    x *= weight if on else 1


@pa.kernel
def same(a: Annotated[np.ndarray, pa.In(("n",))], b: Annotated[np.ndarray, pa.Out(("n",))]) -> None:
    RAN.append("same")
    b[...] = a


@pa.kernel
def four(x: Annotated[np.ndarray, pa.InOut((4, "m"), np.float32)]) -> None:
    RAN.append("four")


RAN: list[str] = []


def plain(x: Any) -> None:
    RAN.append("plain")


def arrays(body: Record, callbacks: tuple[str, ...] = ()) -> pa.Program:
    @pa.program(name="p", callbacks=callbacks)
    def program(orch: pa.Orchestrator, x: pa.InArray, out: pa.OutArray) -> None:
        body(orch, x, out)

    return program


async def run(program: pa.Program, *args: Any, callbacks: dict[str, Any] | None = None) -> pa.RunResult:
    config = pa.DistributedConfig(device_ids=[0, 1])
    async with pa.DistributedWorker(program, backend="inline", config=config, callbacks=callbacks) as worker:
        try:
            return await worker.run(program, *args)
        except pa.ProgramError:
            assert worker.statistics().accepted == 0
            raise
