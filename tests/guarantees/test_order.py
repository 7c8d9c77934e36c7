"""Guarantee 1. Breaks that these catch: no hazards on host arrays, chains handed over across devices, copies that wait for kernels."""

from __future__ import annotations

import asyncio

import pytest

import pypto_actors as pa
from tests.guarantees.support import Busy, Hold, adder, copier, turns, worker, zeros

pytestmark = pytest.mark.parametrize("backend", ["inline", "thread"])


@pytest.mark.parametrize("resident", [False, True])
async def test_who_touches_the_same_bytes_waits(backend: str, resident: bool) -> None:
    hold, read = Hold(), copier(0)
    async with worker(hold.program, read, backend=backend) as w:
        x = await w.alloc_tensor((4,), "int64", init=zeros(1)) if resident else zeros(1)
        out = zeros()
        first = w.submit_nowait(hold.program, x, 10)
        await hold.at.wait()
        second = w.submit_nowait(read, x, out)
        await turns()
        assert not second.done()
        hold.open()
        await first
        await second
    assert out.tolist() == [11] * 4


async def test_the_unrelated_overtake(backend: str) -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend=backend) as w:
        first = w.submit_nowait(hold.program, zeros(), 1)
        await hold.at.wait()
        x = zeros()
        await w.run(add, x, 5)
        assert x.tolist() == [5] * 4
        assert not first.done()
        hold.open()


async def test_interleaved_host_arrays_share_no_bytes(backend: str) -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend=backend) as w:
        base = zeros().repeat(2)
        w.submit_nowait(hold.program, base[::2], 1)
        await hold.at.wait()
        await w.run(add, base[1::2], 2)  # would hang
        hold.open()
    assert base.tolist() == [1, 2] * 4


async def test_parts_of_a_tensor_are_told_apart(backend: str) -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend=backend) as w:
        t = await w.alloc_tensor((3, 4), "int64")
        w.submit_nowait(hold.program, t[0], 1)
        await hold.at.wait()
        await w.run(add, t[1], 2)
        whole = asyncio.create_task(w.read(t))
        await turns()
        assert not whole.done()
        hold.open()
        assert (await whole)[:, 0].tolist() == [1, 2, 0]


async def test_copies_wait_for_conflicts_only(backend: str) -> None:
    hold = Hold()
    async with worker(hold.program, backend=backend) as w:
        t = await w.alloc_tensor((4,), "int64")
        w.submit_nowait(hold.program, t, 1)
        await hold.at.wait()
        fresh = await w.alloc_tensor((4,), "int64", init=zeros(7))
        assert (await w.read(fresh)).tolist() == [7] * 4
        late = asyncio.create_task(w.copy_to(t, zeros(50)))
        reading = asyncio.create_task(w.read(t))
        await turns()
        assert not late.done()
        assert not reading.done()
        hold.open()
        await late
        assert (await reading).tolist() == [50] * 4


async def test_what_shares_memory_within_a_call_goes_on_sharing_it(backend: str) -> None:
    put = copier()
    async with worker(put, backend=backend) as w:
        base = zeros().repeat(2)
        base[:] = range(8)
        await w.run(put, base[0:4], base[2:6])
        assert base.tolist() == [0, 1, 0, 1, 2, 3, 6, 7]


async def test_a_chain_is_handed_over_ahead(backend: str) -> None:
    if backend == "inline":
        pytest.skip("inline kernels never run beside the loop")
    busy, add, far = Busy(), adder(0), adder(1)
    async with worker(busy.program, add, far, devices=2, backend=backend, in_flight=2) as w:
        x = zeros()
        w.submit_nowait(busy.program, x)
        await busy.at.wait()
        near = [w.submit_nowait(add, x, 1) for _ in range(3)]
        across = w.submit_nowait(far, x, 1)
        await turns()
        assert [one.state for one in near] == [pa.RunState.RUNNING] * 2 + [pa.RunState.QUEUED]
        assert near[0].cancel() is False  # it is on its way to the device
        assert across.state is pa.RunState.QUEUED  # it is for another device, which would not know when to begin
        busy.open()
        await across
    assert x.tolist() == [5] * 4
