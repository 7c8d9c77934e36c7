"""Guarantee 10, and scratch. Breaks that these catch: a free that does not wait, a failed allocation that keeps something, scratch that is
taken in part, a dispatch that waits for scratch that can never come, handles of freed memory that reach what took its place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.guarantees.support import I64, Hold, Vec, add_kernel, adder, put_kernel, turns, worker, zeros


async def test_freeing_waits_for_who_uses_it() -> None:
    hold = Hold()
    async with worker(hold.program, backend="inline") as w:
        t = await w.alloc_tensor((4,), I64)
        handle = w.submit_nowait(hold.program, t, 1)
        await hold.at.wait()
        freeing = asyncio.create_task(w.free_tensor(t))
        await turns()
        assert not freeing.done()
        assert w.committed_device_memory() == 32
        with pytest.raises(pa.StaleTensorError, match="was freed"):
            w.submit_nowait(hold.program, t, 1)
        await w.free_tensor(t)  # a second free does nothing
        hold.open()
        await handle
        await freeing
        assert w.committed_device_memory() == 0


async def test_too_large_an_allocation_changes_nothing() -> None:
    async with worker(adder(), backend="inline", memory_bytes=100) as w:
        kept = await w.alloc_tensor((4,), I64)
        with pytest.raises(pa.DeviceOutOfMemoryError) as caught:
            await w.alloc_tensor((9,), I64)
        assert (caught.value.asked, caught.value.free, caught.value.capacity) == (72, 68, 100)
        with pytest.raises(pa.DeviceOutOfMemoryError):
            await w.alloc_stacked_tensor(np.zeros((3, 4), I64), devices=[0, 0, 0])
        assert w.committed_device_memory() == 32
        assert w.statistics().devices[0].memory_peak <= 100
        await w.free_tensor(kept)


def with_scratch(size: int, hold: Hold | None = None) -> pa.Program:
    async def wait(x: Any) -> None:
        if hold is not None:
            hold.at.set()
            await hold._go.wait()

    @pa.program(name=f"scratch{size}")
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        scratch = orch.empty((size,), I64, device=0)
        orch.submit(put_kernel, x, scratch[0:4], device=0)
        orch.submit_sub(wait, x)
        orch.submit(add_kernel, scratch[0:4], 1, device=0)
        orch.submit(put_kernel, scratch[0:4], x, device=0)

    return program


async def test_scratch_is_waited_for_and_others_go_on() -> None:
    hold, add = Hold(), adder()
    big, small = with_scratch(8, hold), with_scratch(6)
    async with worker(big, small, add, backend="inline", memory_bytes=100) as w:
        first = w.submit_nowait(big, zeros())
        await hold.at.wait()
        assert w.committed_device_memory() == 64
        x = zeros()
        second = w.submit_nowait(small, x)
        await w.run(add, zeros(), 1)
        assert second.state is pa.RunState.QUEUED
        with pytest.raises(pa.DeviceOutOfMemoryError):
            await w.alloc_tensor((6,), I64)  # an allocation never waits
        hold.open()
        await asyncio.gather(first, second)
        assert x.tolist() == [1] * 4
        assert w.committed_device_memory() == 0


async def test_scratch_that_never_fits_fails_before_anything_ran() -> None:
    program = with_scratch(50)
    async with worker(program, backend="inline", memory_bytes=100) as w:
        with pytest.raises(pa.DeviceOutOfMemoryError, match="scratch of program 'scratch50'") as caught:
            await w.run(program, zeros())
        assert (caught.value.asked, caught.value.free) == (400, 100)
        statistics = w.statistics()
        assert (statistics.failed, statistics.devices[0].busy_time) == (1, 0)


async def test_who_waits_for_scratch_is_overtaken_64_times_at_most() -> None:
    hold, add = Hold(), adder()
    big, small = with_scratch(8, hold), with_scratch(6)
    async with worker(big, small, add, backend="inline", memory_bytes=100) as w:
        first = w.submit_nowait(big, zeros())
        await hold.at.wait()
        waits = w.submit_nowait(small, zeros())
        later = [w.submit_nowait(add, zeros(), 1) for _ in range(100)]
        await turns(200)
        assert sum(handle.done() for handle in later) == 64
        hold.open()
        await asyncio.gather(first, waits, *later)


async def test_views_and_handles() -> None:
    async with worker(adder(), backend="inline") as w, worker(adder(), backend="inline") as other:
        t = await w.alloc_tensor((3, 4), I64, init=np.arange(12).reshape(3, 4))
        assert (t.shape, t.dtype, t.nbytes, t.device) == ((3, 4), np.dtype(I64), 96, 0)
        assert (await w.read(t[1])).tolist() == [4, 5, 6, 7]
        assert (await w.read(t[1:3][0][2:4])).tolist() == [6, 7]
        assert {t[1], t[1]} == {t[-2]}
        with pytest.raises(AttributeError):
            t.device = 1  # type: ignore[misc]
        with pytest.raises(pa.ArgumentValueError, match="is a view"):
            await w.free_tensor(t[0])
        for wrong in (t, t[0]):
            with pytest.raises(pa.StaleTensorError, match="belongs to another worker"):
                await other.read(wrong)
        with pytest.raises(pa.StaleTensorError):
            await other.free_tensor(t)
        view = t[1]
        await w.free_tensor(t)
        fresh = await w.alloc_tensor((3, 4), I64)
        with pytest.raises(pa.StaleTensorError):
            await w.read(view)
        assert not (await w.read(fresh)).any()


async def test_copies_check_their_sides() -> None:
    async with worker(adder(), backend="inline") as w:
        t = await w.alloc_tensor((4,), I64)
        readonly = zeros()
        readonly.flags.writeable = False
        for call, error in (
            (lambda: w.copy_to(t, zeros().astype("f4")), pa.ArgumentValueError),
            (lambda: w.copy_to(t, zeros()[:3]), pa.ArgumentValueError),
            (lambda: w.copy_to(t, [1, 2, 3, 4]), pa.ArgumentTypeError),  # type: ignore[arg-type]
            (lambda: w.copy_from(readonly, t), pa.ArgumentValueError),
            (lambda: w.alloc_tensor((4,), I64, init=zeros()[:3]), pa.ArgumentValueError),
            (lambda: w.alloc_tensor((-1,), I64), pa.ArgumentValueError),
            (lambda: w.alloc_tensor((4,), object), pa.ArgumentValueError),
            (lambda: w.alloc_tensor((4,), I64, device=1), pa.ArgumentValueError),
            (lambda: w.read(zeros()), pa.ArgumentTypeError),
        ):
            with pytest.raises(error):
                await call()
        assert w.committed_device_memory() == 32


async def test_stacked_tensors() -> None:
    async with worker(adder(), devices=2) as w:
        host = np.arange(8).reshape(2, 4)
        t = await w.alloc_stacked_tensor(host, devices=[1, 0])
        assert (t.shape, t.dtype, t.devices, len(t.shards)) == ((2, 4), host.dtype, (1, 0), 2)
        assert (await w.read(t)).tolist() == host.tolist()
        assert (await w.read(t[1])).tolist() == [4, 5, 6, 7]
        with pytest.raises(pa.ArgumentTypeError, match="partial slices"):
            _ = t[0:1]  # type: ignore[index]
        await w.copy_to(t, host * 2)
        target = np.zeros((4, 2), I64).T
        await w.copy_from(target, t)
        assert target.tolist() == (host * 2).tolist()
        await w.free_tensor(t)
        assert [w.committed_device_memory(device) for device in (0, 1)] == [0, 0]


@pa.kernel
def fill(x: pa.OutArray, value: int) -> None:
    x[...] = value


RETURNED: dict[str, Callable[[Any], Any]] = {
    "the array": lambda x: x,
    "a view": lambda x: x[1:],
    "in containers": lambda x: {"a": [(x[:2], 1)], "b": x},
}


def numbers(value: Any) -> list[int]:
    """All numbers in a value."""
    if isinstance(value, np.ndarray):
        return [int(number) for number in value.ravel()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [number for item in items for number in numbers(item)]


@pytest.mark.parametrize("kind", RETURNED)
@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
async def test_what_a_callback_returns_of_a_device_is_the_callers(kind: str, backend: str) -> None:
    """Later steps do not change it, nor who gets the memory next; writing it changes nothing else. An async callback's too."""
    returned = RETURNED[kind]

    async def later(x: pa.InArray) -> Any:
        return returned(x)

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        scratch = orch.empty((4,), I64, device=0)
        orch.submit(fill, scratch, 5)
        orch.submit_sub(returned, scratch)
        orch.submit_sub(returned, x)
        orch.submit_sub(later, x)
        orch.submit(fill, scratch, 6)
        orch.submit(fill, x, 6)

    async with worker(program, backend=backend) as w:
        t = await w.alloc_tensor((4,), I64, init=np.full(4, 5, I64))
        values = (await w.run(program, t)).returned
        await w.free_tensor(t)
        others = [await w.alloc_tensor((4,), I64, init=np.full(4, 7, I64)) for _ in range(4)]
        for value in values:
            assert set(numbers(value)) == {5}
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value[...] = 8
        for other in others:
            assert set((await w.read(other)).tolist()) == {7}


async def test_what_a_callback_returns_of_the_callers_own_array_is_no_copy() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit_sub(lambda x: x, x)

    async with worker(program, backend="inline") as w:
        x = zeros()
        assert np.shares_memory((await w.run(program, x)).returned[0], x)


async def test_a_stack_that_does_not_fit_changes_nothing() -> None:
    async with worker(adder(), devices=2, memory_bytes=100) as w:
        await w.alloc_tensor((10,), I64, device=1)
        before = w.statistics()
        with pytest.raises(pa.DeviceOutOfMemoryError) as caught:
            await w.alloc_stacked_tensor(np.zeros((2, 10), I64))
        assert (caught.value.asked, caught.value.free, caught.value.capacity) == (80, 20, 100)
        with pytest.raises(pa.DeviceOutOfMemoryError) as caught:
            await w.alloc_stacked_tensor(np.zeros((2, 7), I64), devices=[0, 0])
        assert (caught.value.asked, caught.value.free, caught.value.capacity) == (112, 100, 100)
        assert w.statistics() == before


@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
async def test_memory_that_the_host_has_not(backend: str) -> None:
    """The device may be larger than the machine that simulates it: the same error, for tensors and for scratch, and all goes on."""
    huge = 1 << 60

    @pa.program
    def scratching(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        scratch = orch.empty((huge,), np.uint8, device=0)
        orch.submit(fill, scratch[:4], 1)
        orch.submit(fill, x, 1)

    async with worker(scratching, adder(), backend=backend, memory_bytes=huge * 2) as w:
        with pytest.raises(pa.DeviceOutOfMemoryError, match="of the memory of its host") as caught:
            await w.alloc_tensor((huge,), np.uint8)
        assert (caught.value.asked, caught.value.capacity) == (huge, huge * 2)
        assert isinstance(caught.value.__cause__, MemoryError)
        with pytest.raises(pa.DeviceOutOfMemoryError, match="of the memory of its host"):
            await w.run(scratching, zeros())
        assert w.committed_device_memory() == 0
        x = zeros()
        await w.run(w.registry[1], x, 1)
        assert x.tolist() == [1] * 4


@pytest.mark.parametrize("backend", ["inline", "thread", "process"])
async def test_an_allocation_finds_the_memory_of_a_free_that_was_accepted_before_it(backend: str) -> None:
    async with worker(adder(), backend=backend, memory_bytes=32) as w:
        t = await w.alloc_tensor((4,), I64, init=np.full(4, 3, I64))
        _, other = await asyncio.gather(w.free_tensor(t), w.alloc_tensor((4,), I64))
        assert (await w.read(other)).tolist() == [0] * 4
        assert w.committed_device_memory() == 32


@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_a_large_copy_where_no_thread_is_to_be_had(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails, alone; the next one tries again."""
    async with worker(adder(), backend=backend) as w:
        t = await w.alloc_tensor((1 << 19,), I64)
        source = np.arange(1 << 19)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(pa.KernelError, match="can't start new thread"):
                await w.copy_to(t, source)
        await w.copy_to(t, source)
        assert np.array_equal(await w.read(t), source)


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
