"""Guarantee 1, devices at work at the same time; and guarantee 12. Breaks that these catch: one device at a time, a dispatch that keeps
devices it does not use, a step on one device that waits for an unrelated one on another, a timer or a turn while nothing happens."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import pytest

import pypto_actors as pa
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import I64, LIMIT, Busy, Hold, Vec, adder, turns, worker, zeros


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def meeting(count: int) -> pa.Kernel:
    """A kernel that ends only when `count` of it run at once."""
    together = threading.Barrier(count)

    @pa.kernel
    def meet(x: pa.InOutArray) -> None:
        together.wait(LIMIT)
        x += 1

    return meet


@pytest.mark.parametrize("count", [2, 3])
async def test_dispatches_on_different_devices_run_at_once(count: int) -> None:
    meet = meeting(count)

    def on(device: int) -> pa.Program:
        @pa.program
        def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
            orch.submit(meet, x, device=device)

        return program

    programs = [on(device) for device in range(count)]
    async with worker(*programs, devices=count, backend="thread") as w:
        arrays = [zeros() for _ in programs]
        await asyncio.gather(*(w.run(program, x) for program, x in zip(programs, arrays, strict=True)))
        assert all(x.tolist() == [1] * 4 for x in arrays)


async def test_steps_of_one_dispatch_run_at_once_on_different_devices() -> None:
    meet = meeting(2)

    @pa.program
    def both(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], y: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit(meet, x, device=0)
        orch.submit(meet, y, device=1)

    async with worker(both, devices=2, backend="thread") as w:
        x, y = zeros(), zeros()
        assert (await w.run(both, x, y)).devices == (0, 1)
        assert x.tolist() == y.tolist() == [1] * 4


async def test_a_busy_device_holds_up_nobody_else() -> None:
    busy, add = Busy(0), adder(1)
    async with worker(busy.program, add, devices=2, backend="thread") as w:
        held = w.submit_nowait(busy.program, zeros())
        await busy.at.wait()
        tensor = await w.alloc_tensor((4,), "int64", init=zeros(3))  # on the busy device: memory calls do not wait for kernels
        assert (await w.read(tensor)).tolist() == [3] * 4
        await w.run(add, zeros(), 1)
        await w.free_tensor(tensor)
        assert not held.done()
        busy.open()


@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_an_idle_worker_costs_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of its actors, no message and no timer while nothing is asked of it, also with something held."""
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend=backend) as w:
        x = zeros()
        w.submit_nowait(hold.program, x, 1, deadline=asyncio.get_running_loop().time() + 3600)
        await hold.at.wait()
        w.submit_nowait(add, x, 1)
        await w.run(add, zeros(), 1)
        await turns()
        counted: list[object] = []
        assert w._system is not None
        loop = asyncio.get_running_loop()

        def noting(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
            counted.append(args[1] if call.__name__ == "call_at" else args[0])
            return call(*args, **options)

        for name in ("call_soon", "call_at", "call_soon_threadsafe"):
            monkeypatch.setattr(loop, name, functools.partial(noting, getattr(loop, name)))
        await turns(100)
        ours = [one for one in counted if "pypto_actors" in getattr(one, "__module__", "") or "pypto_actors" in repr(one)]
        assert not ours
        monkeypatch.undo()
        hold.open()


def test_an_idle_worker_sets_no_timer() -> None:
    """In virtual time a poll would be a timer, and the clock would move."""

    async def main() -> None:
        add = adder()
        async with worker(add, devices=100, backend="inline") as w:
            await w.run(add, zeros(), 1)
            assert len(asyncio.get_running_loop()._timers) == 0  # type: ignore[attr-defined]
            handle = w.submit_nowait(add, zeros(), 1, deadline=50.0)
            await handle
            await asyncio.sleep(1)
            assert asyncio.get_running_loop().time() == 1.0

    run(main)
