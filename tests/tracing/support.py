"""Programs, gates and readings that the tests of tracing share. Nothing here sleeps."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.events import Event
from pypto_actors.testing import SeededLoop, VirtualTimeLoop
from pypto_actors.tracing.chrome import chrome_trace, encode
from tests.tracing.perfetto import Seen, look

I64 = np.int64
LIMIT = 20.0  # seconds after which a forgotten gate fails its kernel
Vec = Annotated[pa.TensorRef, pa.InOut(("n",), I64)]
Array: TypeAlias = np.ndarray[Any, Any]
Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


def zeros(count: int = 4) -> Array:
    return np.zeros(count, I64)


@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.kernel
def explode(x: pa.InOutArray) -> None:
    raise ValueError("no such page")


def adder(device: int = 0, name: str = "add", stage: str | None = None) -> pa.Program:
    @pa.program(name=name, stage=stage)
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(add, x, 1, device=device)

    return program


def failing(device: int = 0) -> pa.Program:
    @pa.program(name="failing")
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(explode, x, device=device)

    return program


def gang(devices: int) -> pa.Program:
    """A group over all devices of a stacked tensor, and an all-reduce of it."""

    @pa.program(name="gang")
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((devices, 4), I64)]) -> None:
        orch.submit_group(add, [(x[rank], rank) for rank in range(devices)], devices=range(devices))
        orch.allreduce([x[rank] for rank in range(devices)])

    return program


def scratching(nbytes: int, device: int = 0) -> pa.Program:
    @pa.program(name="scratching")
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        inside = orch.empty((nbytes // 8,), I64, device=device)
        orch.submit(add, inside, 1, device=device)
        orch.submit(add, x, 1, device=device)

    return program


class Gate:
    """A program whose kernel occupies its device from `at` until `open()`, on threads."""

    def __init__(self, device: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.at, self._go = asyncio.Event(), threading.Event()

        @pa.kernel
        def stop(x: pa.InOutArray) -> None:
            loop.call_soon_threadsafe(self.at.set)
            if not self._go.wait(LIMIT):
                raise RuntimeError("the test never opened this gate")

        @pa.program(name="gate")
        def program(orch: pa.Orchestrator, x: Vec) -> None:
            orch.submit(stop, x, device=device)

        self.program = program

    def open(self) -> None:
        self._go.set()


def worker(*programs: pa.Program, devices: int = 1, **options: Any) -> pa.DistributedWorker:
    memory = options.pop("memory_bytes", None)
    return pa.DistributedWorker(programs, config=pa.DistributedConfig(range(devices), memory_bytes=memory), **options)


def virtually(main: Main, seed: int | None = None) -> None:
    """Run in virtual time; with a seed, in the order that it draws."""
    loop = VirtualTimeLoop if seed is None else functools.partial(SeededLoop, seed, virtual_time=True)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def shown(*timelines: tracing.Timeline) -> Seen:
    """What Perfetto shows of these workers; the trace is sound."""
    seen = look(json.loads(encode(chrome_trace(timelines))))
    assert not seen.faults, seen.faults[:5]
    return seen


def shown_of(events: Sequence[Event]) -> Seen:
    return shown(tracing.timeline(events))
