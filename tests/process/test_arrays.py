"""Host arrays of every layout, device tensors and collectives: bit for bit what `thread` gives."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.backends import process_executor
from tests.process.support import Array, N, affine_on, ints, on, opened, shared_files

I64 = np.int64
F32 = np.float32
Any2 = Annotated[pa.TensorRef, pa.InOut()]


@pa.kernel
def mix(x: pa.InOutArray, y: pa.InOutArray, value: int) -> None:
    """Does not commute, and sees whether the two share memory."""
    x[...] = (x * 3 + value).astype(x.dtype)
    y[...] = (y * 5 + 1).astype(y.dtype)


@pa.kernel
def first_only(x: pa.OutArray) -> None:
    x[..., :1] = 9


@pa.program()
def mixer(orch: pa.Orchestrator, x: Any2, y: Any2, value: int) -> None:
    orch.submit(mix, x, y, value, device=0)


@pa.program()
def firsts(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out()]) -> None:
    orch.submit(first_only, x, device=0)


LAYOUTS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "apart": lambda base: (base[:8], base[8:16]),
    "the same": lambda base: (base, base),
    "overlapping": lambda base: (base[:12], base[4:20]),
    "interleaved": lambda base: (base[::2], base[1::2]),
    "backwards": lambda base: (base[::-1], base[4:8]),
    "transposed": lambda base: (base.reshape(4, 6).T, base[3:5]),
    "broken up": lambda base: (base.reshape(2, 3, 4)[:, 1, ::-2], base.reshape(2, 3, 4)[1]),
    "empty": lambda base: (base[:0], base[:3]),
    "without dimensions": lambda base: (base[3:4].reshape(()), base[5:6].reshape(())),
    "of another type": lambda base: (base[:4].view(np.uint8), base[4:8].view(F32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_layouts(layout: str) -> None:
    results = []
    for backend in ("thread", "process"):
        base = np.arange(24, dtype=I64)
        async with opened(mixer, firsts, backend=backend) as worker:
            x, y = LAYOUTS[layout](base)
            await worker.run(mixer, x, y, 7)
            if x.ndim:
                await worker.run(firsts, x)
            await worker.run(mixer, y, x, 2)
        results.append(base.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["?", "<i2", ">f8", "c16", "S5", "U3", "M8[s]", [("a", "<i4"), ("b", "<f8", (2,))]])
async def test_types(dtype: Any) -> None:
    @pa.kernel
    def swap(x: pa.InOutArray) -> None:
        x[...] = x[::-1].copy()

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut()]) -> None:
        orch.submit(swap, x, device=0)

    data = np.frombuffer(random.Random(0).randbytes(1000), np.uint8) & 1
    kind = np.dtype(dtype)
    x = data[: kind.itemsize * 6].copy().view(kind)
    if kind.kind == "U":
        x = np.array(["a", "bc", "def", "", "x", "é"], kind)
    want = x[::-1].tobytes()
    async with opened(program) as worker:
        tensor = await worker.alloc_tensor((6,), kind, init=x)
        await worker.run(program, tensor)
        assert (await worker.read(tensor)).tobytes() == want
        await worker.run(program, x)
    assert x.tobytes() == want


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("in_flight", [1, 2, 8])
async def test_chains_on_one_host_array(in_flight: int, large: bool) -> None:
    """Handed over while those before them run: each sees what the one before it wrote."""
    n = (1 << 18) if large else N
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
    @pa.kernel
    def put(src: pa.InArray, dst: pa.OutArray) -> None:
        dst[...] = src

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
    """Parts on several devices and a callback touch the same host array, some bytes of it each."""

    def callback(x: Array) -> None:
        x *= 2

    @pa.kernel
    def plus(x: pa.InOutArray, value: int) -> None:
        x += value

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
    for backend, order in itertools.product(("thread", "process"), "CF"):
        x = np.zeros((3, 4), I64, order)  # type: ignore[call-overload]
        async with opened(program, devices=3, backend=backend) as worker:
            await asyncio.gather(*[worker.submit_nowait(program, x) for _ in range(5)])
        results.append(x.tolist())
    assert all(result == results[0] for result in results)


async def test_host_arrays_of_parts_that_meet() -> None:
    """What a device writes before a meeting, another reads after it, in the same part."""

    @pa.kernel
    def put(src: pa.InArray, dst: pa.OutArray) -> None:
        dst[...] = src + 1

    @pa.program()
    def program(
        orch: pa.Orchestrator,
        x: Annotated[pa.TensorRef, pa.InOut((2, N), I64)],
        y: Annotated[pa.TensorRef, pa.InOut((2, N), I64)],
    ) -> None:
        for turn in range(4):
            source, target = (x, y) if turn % 2 == 0 else (y, x)
            orch.submit_group(put, [(source[rank], target[1 - rank]) for rank in range(2)], devices=[0, 1])
            orch.barrier()

    results = []
    for backend in ("thread", "process"):
        x, y = np.arange(2 * N, dtype=I64).reshape(2, N), np.zeros((2, N), I64)
        async with opened(program, devices=2, backend=backend) as worker:
            for _ in range(3):
                await worker.run(program, x, y)
        results.append((x.tolist(), y.tolist()))
    assert results[0] == results[1]


def collectives(world: int) -> pa.Program:
    @pa.kernel
    def put(src: pa.InArray, dst: pa.OutArray) -> None:
        dst[...] = src

    shape = (2 * world, 5)

    @pa.program()
    def program(
        orch: pa.Orchestrator,
        x: Annotated[pa.TensorRef, pa.In((world, *shape), F32)],
        y: Annotated[pa.TensorRef, pa.Out((world, *shape), F32)],
        z: Annotated[pa.TensorRef, pa.Out((world, 2, 5), F32)],
    ) -> None:
        refs = [orch.empty(shape, F32, device=rank) for rank in range(world)]
        window = orch.window("w", shape, F32)
        for rank in range(world):
            orch.submit(put, x[rank], refs[rank], device=rank)
            orch.submit(put, x[rank], window[rank], device=rank)
        orch.allreduce(refs)
        chunks = orch.reduce_scatter([window[rank] for rank in range(world)], "prod")
        orch.all_to_all([window[rank] for rank in range(world)])
        orch.allreduce([window[rank] for rank in range(world)], "max")
        orch.broadcast(refs, root=1)
        orch.allgather(refs)
        for rank in range(world):
            orch.submit(put, refs[rank], y[rank], device=rank)
            orch.submit(put, chunks[rank], z[rank], device=rank)

    return program


@pytest.mark.parametrize("world", [2, 3])
async def test_collectives_as_on_threads(world: int) -> None:
    program = collectives(world)
    x = np.random.default_rng(0).standard_normal((world, 2 * world, 5)).astype(F32)
    results: list[Sequence[bytes]] = []
    for backend in ("thread", "process"):
        async with opened(program, devices=world, backend=backend) as worker:
            for _ in range(2):
                done = await asyncio.gather(*[worker.submit_nowait(program, x) for _ in range(4)])
            results += [[output.tobytes() for output in result.outputs] for result in done]
    assert all(result == results[0] for result in results)


async def test_memory_is_zeroed_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    adder = on(0, pa.kernel(_fill))
    shared = shared_files()
    async with opened(adder) as worker:
        for n in (1, 100, 10_000, 1 << 20):
            for _ in range(3):
                tensor = await worker.alloc_tensor((n,), I64)
                assert not (await worker.read(tensor)).any()
                await worker.run(adder, tensor, 7)
                assert set((await worker.read(tensor)).tolist()) == {7}
                await worker.free_tensor(tensor)
        assert shared_files() == shared


def _fill(x: pa.InOutArray, value: int) -> None:
    x[...] = value


async def test_many_tensors_use_few_files() -> None:
    async with opened(on(0, pa.kernel(_fill))) as worker:
        tensors = [await worker.alloc_tensor((100,), I64) for _ in range(3000)]
        assert len({tensor.allocation for tensor in tensors}) == 3000


async def test_copies_beside_a_chain_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """All copies in a thread, however small."""
    monkeypatch.setattr(process_executor, "LARGE_COPY", -1)
    await test_host_arrays_between_devices_and_callbacks()
    await test_host_arrays_of_parts_that_meet()
    await test_chains_on_one_host_array(4, False)
    await test_readers_and_writers_in_a_chain()
