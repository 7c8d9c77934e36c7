"""Guarantees 7 and 8, and callbacks. Breaks that these catch: one exception for all waiters, later steps that run, failures that spread,
a failure that nobody hears of, callbacks that wait for themselves."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.guarantees.support import I64, Hold, Vec, add_kernel, adder, failing, turns, worker, zeros


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("error", [ValueError("original"), StopIteration(3), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
async def test_a_kernel_that_raises(backend: str, error: BaseException) -> None:
    steps: list[str] = []
    program, add = failing(error, steps=steps), adder()
    async with worker(program, add, backend=backend) as w:
        x, good = zeros(), zeros()
        handle = w.submit_nowait(program, x)
        after = w.submit_nowait(add, good, 1, after=[handle])
        beside = w.submit_nowait(add, good, 10)
        outcomes = await asyncio.gather(handle.wait(), handle.wait(), after, beside, return_exceptions=True)
        first, second, dependent, fine = outcomes
        assert isinstance(first, pa.KernelError)
        assert first is not second
        assert (first.program, first.kernel, first.device) == ("failing", "explode", 0)
        assert first.__cause__ is error
        assert isinstance(dependent, pa.DependencyFailedError)
        assert isinstance(dependent.__cause__, pa.KernelError)
        assert isinstance(fine, pa.RunResult)
        late = w.submit_nowait(add, good, 1, after=[handle])
        with pytest.raises(pa.DependencyFailedError):
            await late
    assert steps == []
    assert good.tolist() == [10] * 4


async def test_writing_an_input_is_a_kernel_error() -> None:
    @pa.kernel
    def wrong(x: pa.InArray) -> None:
        x[...] = 1

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In(Vec, I64)]) -> None:
        orch.submit(wrong, x)

    async with worker(program, backend="inline") as w:
        t = await w.alloc_tensor((4,), I64)
        for x in (zeros(), t):
            with pytest.raises(pa.KernelError, match="read-only"):
                await w.run(program, x)


async def test_failures_that_nobody_asked_for_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    program = failing(ValueError("unheard"))
    with caplog.at_level(logging.ERROR, logger="pypto_actors"):
        async with worker(program, backend="inline") as w:
            w.submit_nowait(program, zeros())
            asked = w.submit_nowait(program, zeros())
            await asyncio.gather(asked, return_exceptions=True)
            await w.drain()
            assert not caplog.records
        assert len([record for record in caplog.records if "unheard" in record.getMessage()]) == 1


@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_callbacks(backend: str) -> None:
    threads: list[int] = []

    async def asynchronous(x: Any, value: int) -> int:
        await asyncio.sleep(0)
        return int(x[0]) + value

    def plain(x: pa.InArray) -> int:
        threads.append(threading.get_ident())
        assert not x.flags.writeable
        return int(x[0])

    def writes(x: Any) -> None:
        x += 100

    @pa.program(callbacks=("named",))
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], value: int) -> None:
        orch.submit(add_kernel, x, value)
        orch.submit_sub(asynchronous, x, value)
        orch.submit_sub(plain, x)
        orch.submit_sub(writes, x)
        orch.submit(add_kernel, x, value)
        orch.submit_sub("named", x)

    async with worker(program, backend=backend, callbacks={"named": lambda x: int(x[0])}) as w:
        t = await w.alloc_tensor((4,), I64)
        result = await w.run(program, t, 5)
        assert result.returned == (10, 5, None, 110)
    assert (threads[0] == threading.get_ident()) is (backend == "inline")


async def test_a_callback_that_raises_names_itself() -> None:
    def wrong(x: Any) -> None:
        raise ZeroDivisionError

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit_sub(wrong, x)

    async with worker(program) as w:
        with pytest.raises(pa.KernelError, match="callback 'wrong' of program 'program' raised ZeroDivisionError") as caught:
            await w.run(program, zeros())
    assert (caught.value.kernel, caught.value.device) == (None, None)


async def test_a_callback_must_not_wait_for_its_own_worker() -> None:
    seen: list[str] = []
    add = adder()

    async def curious(x: Any) -> None:
        done = handles[0]
        for call in (
            lambda: w.run(add, zeros(), 1),
            lambda: w.submit(add, zeros(), 1),
            lambda: done,
            lambda: done.wait(),
            lambda: w.read(t),
            lambda: w.copy_to(t, zeros()),
            lambda: w.alloc_tensor((1,), I64),
            lambda: w.free_tensor(t),
            lambda: w.drain(),
            lambda: w.pause(),
            lambda: w.aclose(),
        ):
            with pytest.raises(RuntimeError, match="could wait for itself"):
                await call()
            seen.append("refused")
        handles.append(w.submit_nowait(add, own, 5))

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit_sub(curious, x)

    own = zeros()
    async with worker(program, add) as w:
        t = await w.alloc_tensor((4,), I64)
        handles = [w.submit_nowait(add, zeros(), 1)]
        await handles[0]
        await w.run(program, zeros())
        await handles[1]
    assert len(seen) == 11
    assert own.tolist() == [5] * 4


async def test_no_device_is_held_while_a_callback_runs() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline", in_flight=1) as w:
        held = [w.submit_nowait(hold.program, zeros(), 1) for _ in range(5)]
        await turns()
        await w.run(add, zeros(), 1)
        assert w.statistics().running == 5
        hold.open()
        await asyncio.gather(*held)


async def test_a_policy_that_raises_fails_what_it_was_asked_about() -> None:
    class Broken:
        def key(self, item: pa.Item) -> Any:
            return -item.priority

        def choose(self, view: pa.View) -> int:
            raise ArithmeticError("cannot choose")

    prefill, decode = adder(0, "prefill"), adder(0, "decode")
    async with worker(prefill, decode, backend="inline", policy=Broken()) as w:
        outcomes = await asyncio.gather(*[w.submit_nowait(p, zeros(), 1) for p in (prefill, decode)], return_exceptions=True)
    assert [type(one) for one in outcomes] == [pa.PyptoActorsError, pa.RunResult]


async def test_results_tell_when_and_where() -> None:
    add = adder(1)
    async with worker(add, devices=2) as w:
        x = zeros()
        result = await w.run(add, x, 1)
        assert (result.run_id, result.program, result.outputs, result.returned, result.devices) == (1, add, (), (), (1,))
        assert result.queued_at <= result.started_at <= result.finished_at
        with pytest.raises(AttributeError):
            result.run_id = 2  # type: ignore[misc]
        np.testing.assert_array_equal(x, 1)


async def test_a_failed_dispatch_begins_nothing_more_wherever_it_still_runs() -> None:
    go, ran = asyncio.Event(), list[int]()

    async def wait(x: Any) -> None:
        await go.wait()

    @pa.kernel
    def explode(x: pa.InOutArray) -> None:
        raise ZeroDivisionError

    @pa.kernel
    def later(x: pa.InOutArray) -> None:
        ran.append(1)

    @pa.program
    def program(
        orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], y: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]
    ) -> None:
        orch.submit(explode, x, device=0)
        orch.submit_sub(wait, y)
        orch.submit(later, y, device=1)

    async with worker(program, devices=2, backend="inline") as w:
        handle = w.submit_nowait(program, zeros(), zeros())
        await turns()
        assert not handle.done()  # its callback still runs
        go.set()
        with pytest.raises(pa.KernelError):
            await handle
    assert ran == []
