"""Host arrays of every layout, device tensors, callbacks and collectives: bit for bit what `thread` gives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.process.support import Array, N, affine_on, ints, on
from tests.process.test_arrays import LAYOUTS, collectives, firsts, mixer
from tests.ray.support import opened, shares_ray

pytestmark = shares_ray
I64 = np.int64
F32 = np.float32
BOTH = ("thread", "ray")


@pa.kernel
def put(src: pa.InArray, dst: pa.OutArray) -> None:
    dst[...] = src


@pa.kernel
def plus(x: pa.InOutArray, value: int) -> None:
    x += value


async def test_layouts() -> None:
    layouts: dict[str, Any] = {
        **LAYOUTS,
        "a window that slides": lambda base: (np.lib.stride_tricks.as_strided(base, (4, 3), (8, 8)), base[20:22]),
        "turned": lambda base: (base.reshape(2, 3, 4).transpose(1, 2, 0), base[:1]),
        "bytes that are not aligned": lambda base: (base.view(np.uint8)[1:9].view(F32), base.view(np.uint8)[3:21]),
    }
    results: dict[str, list[list[int]]] = {}
    for backend in BOTH:
        async with opened(mixer, firsts, backend=backend) as worker:
            for name, layout in layouts.items():
                base = np.arange(24, dtype=I64)
                x, y = layout(base)
                await worker.run(mixer, x, y, 7)
                if x.ndim:
                    await worker.run(firsts, x)
                await worker.run(mixer, y, x, 2)
                results.setdefault(name, []).append(base.tolist())
    for name, (thread, ray) in results.items():
        assert thread == ray, name


async def test_inputs_are_read_only_and_may_be_views_without_memory_of_their_own() -> None:
    @pa.kernel
    def total(src: pa.InArray, dst: pa.OutArray) -> None:
        dst[...] = src.sum()
        src[0] = 1

    @pa.program()
    def program(orch: pa.Orchestrator, src: Annotated[pa.TensorRef, pa.In()], dst: Annotated[pa.TensorRef, pa.Out()]) -> None:
        orch.submit(total, src, dst, device=0)

    async with opened(program) as worker:
        tensor = await worker.alloc_tensor((4, 3), I64, init=np.ones((4, 3), I64))
        for src in (np.broadcast_to(np.arange(3), (4, 3)), np.ones((400, 300))[::2], tensor):
            dst = np.zeros(1)
            with pytest.raises(pa.KernelError, match="read-only") as caught:
                await worker.run(program, src, dst)
            assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("large", [False, True])
async def test_types(large: bool) -> None:
    @pa.kernel
    def swap(x: pa.InOutArray) -> None:
        x[...] = x[::-1].copy()

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut()]) -> None:
        orch.submit(swap, x, device=0)

    n = 30_000 if large else 6
    data = np.frombuffer(random.Random(0).randbytes(20 * n), np.uint8) & 1
    async with opened(program) as worker:
        for dtype in ("?", "<i2", ">f8", "c16", "S5", "U3", "M8[s]", [("a", "<i4"), ("b", "<f8", (2,))]):
            kind = np.dtype(dtype)
            x = data[: kind.itemsize * n].copy().view(kind)
            if kind.kind == "U":
                x = np.resize(np.array(["a", "bc", "def", "", "x", "é"], kind), n)
            want = x[::-1].tobytes()
            tensor = await worker.alloc_tensor((n,), kind, init=x)
            await worker.run(program, tensor)
            assert (await worker.read(tensor)).tobytes() == want
            await worker.run(program, x)
            assert x.tobytes() == want
            await worker.run(program, x[:0])
            empty = await worker.alloc_tensor((0, 3), kind)
            await worker.run(program, empty)
            assert (await worker.read(empty)).shape == (0, 3)
        with pytest.raises(pa.ArgumentValueError, match="Python objects"):
            await worker.run(program, np.array([None, 1]))


@pytest.mark.parametrize("large", [False, True])
async def test_chains_on_one_host_array(large: bool) -> None:
    """Handed over while those before them run: each sees what the one before it wrote."""
    in_flight = 4
    n = (1 << 17) if large else N
    program = affine_on(0)
    want, x, other = ints(1, n), ints(1, n), ints(3, n)
    async with opened(program, in_flight=in_flight) as worker:
        handles = []
        for step in range(30):
            handles.append(worker.submit_nowait(program, x, 3, step))
            want = (want * 3 + step) % 1_000_003
            if step % 7 == 3:  # another view: it must wait, and so must those behind it
                half = x[: n // 2]
                handles.append(worker.submit_nowait(program, half, 2, 5))
                want[: n // 2] = (want[: n // 2] * 2 + 5) % 1_000_003
            handles.append(worker.submit_nowait(program, other, 1, 1))
        await asyncio.gather(*handles)
    np.testing.assert_array_equal(x, want)
    assert set(other.tolist()) == {33}


async def test_readers_and_writers_in_a_chain() -> None:
    @pa.program()
    def copy(orch: pa.Orchestrator, src: Annotated[pa.TensorRef, pa.In()], dst: Annotated[pa.TensorRef, pa.Out()]) -> None:
        orch.submit(put, src, dst, device=0)

    program = affine_on(0)
    async with opened(copy, program, in_flight=4) as worker:
        x, seen = ints(), [ints() for _ in range(20)]
        handles = []
        for target in seen:
            handles.append(worker.submit_nowait(program, x, 1, 1))
            handles.append(worker.submit_nowait(copy, x, target))
        for handle in handles:
            await handle
    assert [int(target[0]) for target in seen] == list(range(1, 21))


async def test_host_arrays_between_devices_and_callbacks() -> None:
    """Parts on several devices and a callback touch the same host array, some bytes of it each; and the same with device tensors."""

    def callback(x: Array) -> None:
        x *= 2

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, 4), I64)]) -> None:
        for rank in range(3):
            orch.submit(plus, x[rank], rank + 1, device=rank)
        orch.submit_sub(callback, x)
        orch.submit(plus, x, 100, device=1)
        orch.submit_group(plus, [(x[rank], 1000) for rank in range(3)], devices=[0, 1, 2])
        orch.submit(plus, x[0], 5, device=2)
        orch.submit_sub(callback, x[1:])
        orch.submit(plus, x[1:], 7, device=0)

    results = []
    for backend in BOTH:
        async with opened(program, devices=3, backend=backend) as worker:
            for order in "CF":
                x = np.zeros((3, 4), I64, order)  # type: ignore[call-overload]
                await asyncio.gather(*[worker.submit_nowait(program, x) for _ in range(5)])
                results.append(x.tolist())
    assert all(result == results[0] for result in results)


async def test_host_arrays_of_parts_that_meet() -> None:
    """What a device writes before a meeting, another reads after it, in the same part; small arrays, and large ones."""

    @pa.kernel
    def put_more(src: pa.InArray, dst: pa.OutArray) -> None:
        dst[...] = src + 1

    @pa.program()
    def program(
        orch: pa.Orchestrator,
        x: Annotated[pa.TensorRef, pa.InOut((2, "n"), I64)],
        y: Annotated[pa.TensorRef, pa.InOut((2, "n"), I64)],
    ) -> None:
        for turn in range(4):
            source, target = (x, y) if turn % 2 == 0 else (y, x)
            orch.submit_group(put_more, [(source[rank], target[1 - rank]) for rank in range(2)], devices=[0, 1])
            orch.barrier()

    results = []
    for backend in BOTH:
        async with opened(program, devices=2, backend=backend) as worker:
            for n in (N, 1 << 16):
                x, y = np.arange(2 * n, dtype=I64).reshape(2, n), np.zeros((2, n), I64)
                for _ in range(3):
                    await worker.run(program, x, y)
                results.append((x.tobytes(), y.tobytes()))
    assert results[:2] == results[2:]


async def test_collectives_as_on_threads() -> None:
    world = 3
    program = collectives(world)
    x = np.random.default_rng(0).standard_normal((world, 2 * world, 5)).astype(F32)
    results: list[Sequence[bytes]] = []
    for backend in BOTH:
        async with opened(program, devices=world, backend=backend) as worker:
            for _ in range(2):
                done = await asyncio.gather(*[worker.submit_nowait(program, x) for _ in range(4)])
                results += [[output.tobytes() for output in result.outputs] for result in done]
    assert all(result == results[0] for result in results)


async def test_large_collectives_on_device_tensors() -> None:
    """Of tensors that cross by Ray's object store."""
    world, n = 2, 1 << 17

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((world, n), F32)]) -> None:
        refs = [x[rank] for rank in range(world)]
        orch.allreduce(refs)
        orch.all_to_all(refs)
        orch.broadcast(refs, root=1)
        chunks = orch.reduce_scatter(refs, "max")
        orch.copy(refs[0][: n // 2], chunks[1])
        orch.allgather(refs)

    host = np.random.default_rng(1).standard_normal((world, n)).astype(F32)
    results = []
    for backend in BOTH:
        async with opened(program, devices=world, backend=backend) as worker:
            x = await worker.alloc_stacked_tensor(host)
            for _ in range(2):
                await worker.run(program, x)
            results.append((await worker.read(x)).tobytes())
    assert results[0] == results[1]


async def test_windows_that_persist_and_steps_on_several_devices() -> None:
    @pa.program()
    def program(orch: pa.Orchestrator, y: Annotated[pa.TensorRef, pa.Out((2, N), I64)], value: int) -> None:
        window = orch.window("w", (N,), I64)
        for rank in range(2):
            orch.submit(plus, window[rank], value, device=rank)
        there = orch.empty((N,), I64, device=1)
        orch.copy(there, window[0])
        orch.submit(plus, there, 1000, device=1)
        orch.copy(y[0], there)
        orch.copy(y[1], window[1])

    for reset, want in ((True, [5, 6]), (False, [5, 11])):
        async with opened(program, devices=2, persistent=True, reset_persistent_windows=reset) as worker:
            seen = [(await worker.run(program, value)).outputs[0] for value in (5, 6)]
            assert [int(y[1][0]) for y in seen] == want
            assert [int(y[0][0]) for y in seen] == [1000 + each for each in want]


async def test_memory_is_zeroed_and_comes_again() -> None:
    adder = on(0, plus)
    async with opened(adder) as worker:
        for n in (1, 100, 10_000, 1 << 18):
            for _ in range(2):
                tensor = await worker.alloc_tensor((n,), I64)
                assert not (await worker.read(tensor)).any()
                await worker.run(adder, tensor, 7)
                assert set((await worker.read(tensor)).tolist()) == {7}
                await worker.free_tensor(tensor)
        assert worker.committed_device_memory(0) == 0


async def test_copies_of_every_layout() -> None:
    async with opened(on(0, plus), devices=2) as worker:
        for n in (5, 40_000):
            one = await worker.alloc_tensor((4, n), I64, init=np.arange(4 * n).reshape(4, n))
            two = await worker.alloc_tensor((4, n), I64, device=1)
            await asyncio.gather(worker.transfer(two[:2], one[2:]), worker.transfer(one[:1], one[3:]), worker.transfer(two[2:3], one[1:2]))
            await worker.copy_to(two[3], np.arange(2 * n)[::-2])
            target = np.zeros((n, 8), I64)
            await worker.copy_from(target.T[::2], two)
            want = np.arange(4 * n).reshape(4, n)
            np.testing.assert_array_equal(target.T[::2], [want[2], want[3], want[1], np.arange(2 * n)[::-2]])
            assert not target.T[1::2].any()
            np.testing.assert_array_equal(await worker.read(one[0]), want[3])


# ---------------------------------------------------------------------------------------------- callbacks


async def test_callbacks_on_device_tensors() -> None:
    """First of all, one behind another, in threads and on the loop, of views that share memory, and what they write arrives."""
    seen: list[Any] = []

    async def waits(x: Array) -> None:
        await asyncio.sleep(0)
        x += 1
        seen.append(int(x[0, 0]))

    def shares(row: Array, x: Array) -> int:
        row[...] = 50
        seen.append(np.shares_memory(row, x) and bool((x[1] == 50).all()))
        x[0] += 10
        return int(x.sum())

    def shares_one(x: Array) -> None:
        x *= 2

    def only_reads(x: Annotated[Array, pa.In()]) -> None:
        seen.append(x.flags.writeable)

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, 4), I64)]) -> None:
        orch.submit_sub(waits, x)
        orch.submit_sub(shares, x[1], x)
        orch.submit_sub(only_reads, x)
        orch.submit(plus, x[0], 100, device=0)
        orch.submit_sub(shares, x[1], x)
        window = orch.window("w", (4,), I64)
        orch.copy(window[1], x[0])
        orch.submit_sub(shares_one, window[1])
        orch.copy(x[2], window[1])

    results = []
    for backend in BOTH:
        seen.clear()
        async with opened(program, devices=2, backend=backend) as worker:
            for init in (0, 7):
                x = await worker.alloc_tensor((3, 4), I64, init=np.full((3, 4), init))
                result = await worker.run(program, x)
                results.append(((await worker.read(x)).tolist(), result.returned, list(seen)))
                again = await worker.alloc_tensor((3, 4), I64)
                await worker.transfer(again, x)
                assert (await worker.read(again)).tolist() == results[-1][0]
    assert results[:2] == results[2:]


async def test_what_a_callback_wrote_is_seen_by_whatever_comes_next() -> None:
    def writes(x: Array) -> None:
        x[...] = 5

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(None, I64)]) -> None:
        orch.submit_sub(writes, x)

    adder, other = on(0, plus, "add"), on(1, plus, "add")
    async with opened(program, adder, other, devices=2) as worker:
        x = await worker.alloc_tensor((4, N), I64)
        for size in (N, 1 << 16):
            x = await worker.alloc_tensor((4, size), I64)
            await worker.run(program, x[1:3])
            assert (await worker.read(x)).tolist() == [[0] * size, [5] * size, [5] * size, [0] * size]
            await worker.run(program, x[:2])
            await worker.copy_to(x[0], ints(8, size))
            await worker.run(adder, x[1], 1)
            await worker.run(program, x[3])
            target = await worker.alloc_tensor((4, size), I64, device=1)
            await worker.transfer(target, x)
            assert [int(row[-1]) for row in await worker.read(target)] == [8, 6, 5, 5]
            await worker.run(program, x)
            await worker.free_tensor(x)
            await worker.run(program, target)
            await worker.run(other, target[0], 2)
            assert [int(row[0]) for row in await worker.read(target)] == [7, 5, 5, 5]


async def test_random_dispatches_as_on_threads() -> None:
    """Programs on two devices, scratch, views, gangs and callbacks, in an order that is drawn; all at once."""

    def doubles(x: Array) -> None:
        x[...] = (x * 2) % 1_000_003

    def steps(seed: int) -> pa.Program:
        draw = random.Random(seed)
        shape = [(draw.randrange(5), draw.randrange(2), draw.randrange(3), draw.randrange(1, 50)) for _ in range(8)]

        @pa.program(name=f"steps{seed}")
        def program(
            orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, N), I64)], y: Annotated[pa.TensorRef, pa.InOut((3, N), I64)]
        ) -> None:
            scratch = [orch.empty((3, N), I64, device=rank) for rank in range(2)]
            for kind, device, row, value in shape:
                if kind == 0:
                    orch.submit(plus, x[row], value, device=device)
                elif kind == 1:
                    orch.submit_group(plus, [(x[row], value), (y[row], value)], devices=[device, 1 - device])
                elif kind == 2:
                    orch.submit_sub(doubles, y[: row + 1])
                elif kind == 3:
                    orch.copy(scratch[device], x)
                    orch.submit(plus, scratch[device], value, device=device)
                    orch.allreduce(scratch)
                    orch.copy(y, scratch[1 - device])
                else:
                    orch.submit(put, x[row], y[(row + value) % 3], device=device)

        return program

    programs = [steps(seed) for seed in range(12)]
    results = []
    for backend in BOTH:
        x, y = np.arange(3 * N, dtype=I64).reshape(3, N), np.zeros((3, N), I64)
        async with opened(*programs, devices=2, backend=backend, in_flight=3) as worker:
            draw = random.Random(7)
            handles = []
            for _ in range(60):
                arrays = [x, y] if draw.random() < 0.5 else [y, x]
                handles.append(worker.submit_nowait(draw.choice(programs), *arrays))
            await asyncio.gather(*handles)
        results.append((x.tolist(), y.tolist()))
    assert results[0] == results[1]
