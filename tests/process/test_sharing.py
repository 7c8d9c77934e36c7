"""Copy on write on `process`: large copies between device tensors are put off until one of both is written.

Breaks that this catches, each planted once in a copy: a kernel, a callback or a copy writes what is shared; calls that are known keep the
former place; the former place is left before those that read it there have ended; a partial write forgets the rest; what is shared goes
with the device on which it was made; what a kernel has written is shared; no memory is left to move to.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import testing
from pypto_actors.backends import copy_engine
from pypto_actors.backends.process import ProcessBackend
from pypto_actors.backends.shared_memory import SHARED, SharedInterconnect
from tests.process.support import I64, LIMIT, Array, open_files, opened

ROWS = 4
SHAPE = (ROWS, SHARED // 8 // ROWS)  # just large enough to be shared
Read = Annotated[pa.TensorRef, pa.In(("r", "n"), I64)]
Written = Annotated[pa.TensorRef, pa.InOut(("r", "n"), I64)]
Sums = Annotated[pa.TensorRef, pa.InOut(("s",), I64)]


@pa.kernel
def take_sum(x: pa.InArray, sums: pa.InOutArray, number: int) -> None:
    sums[number % len(sums)] += int(x.sum()) + number


@pa.kernel
def tally_sum(x: pa.InArray, sums: pa.InOutArray) -> None:
    sums[1] += int(x.sum()) + 1


@pa.kernel
def add(x: pa.InOutArray, number: int) -> None:
    x += number


def to_host(x: Any, number: int) -> None:
    x[0] += number


@pa.program()
def summed(orch: pa.Orchestrator, x: Read, sums: Sums, number: int) -> None:
    orch.submit(take_sum, x, sums, number)


@pa.program()
def tallied(orch: pa.Orchestrator, x: Read, sums: Sums) -> None:
    orch.submit(tally_sum, x, sums)


@pa.program()
def added(orch: pa.Orchestrator, x: Written, number: int) -> None:
    orch.submit(add, x, number)


@pa.program()
def row_added(orch: pa.Orchestrator, x: Written, number: int) -> None:
    orch.submit(add, x[1], number)


@pa.program()
def called_back(orch: pa.Orchestrator, x: Written, number: int) -> None:
    orch.submit_sub(to_host, x, number)


@pa.program()
def both_added(orch: pa.Orchestrator, x: Written, y: Written, number: int) -> None:
    orch.submit(add, x, number)
    orch.submit_sub(to_host, x[2:4], number)
    orch.submit(add, y, number)


@pa.program()
def totalled(orch: pa.Orchestrator, x: Written, y: Written) -> None:
    orch.allreduce([x, y], op="sum")


PROGRAMS = (summed, tallied, added, row_added, called_back, both_added, totalled)


def memory_of(backend: ProcessBackend) -> SharedInterconnect:
    memory = backend._interconnect
    assert memory is not None
    return memory


def pages(backend: ProcessBackend) -> int:
    """Bytes of the host's memory that all slabs have."""
    return sum(os.fstat(slab.fd).st_blocks * 512 for slab in memory_of(backend).slabs.values())


def numbers(seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(1000, size=SHAPE)


async def test_what_is_copied_to_other_devices_is_held_once() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=3) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        before = pages(backend)
        others = [await worker.alloc_tensor(SHAPE, I64, device=device) for device in (1, 2, 0)]
        for other in others:
            await worker.transfer(other, first)
            await worker.transfer(other, first)  # and again, which changes nothing
        assert pages(backend) == before
        assert {memory_of(backend).place(tensor) for tensor in others} == {memory_of(backend).place(first)}
        used = [worker.committed_device_memory(device) for device in range(3)]
        assert used == [2 * host.nbytes, host.nbytes, host.nbytes]  # a device knows nothing of it

        await worker.run(added, others[0], 1)
        assert pages(backend) == before + host.nbytes
        for tensor in (first, others[1], others[2]):
            assert (await worker.read(tensor) == host).all()
        assert (await worker.read(others[0]) == host + 1).all()
        await worker.free_tensor(first)
        await worker.free_tensor(others[2])
        assert (await worker.read(others[1]) == host).all()
        place = memory_of(backend).place(others[1])
        await worker.run(added, others[1], 2)  # the only one left writes where it is
        assert memory_of(backend).place(others[1]) == place


async def test_known_calls_follow_what_has_moved() -> None:
    async with opened(*PROGRAMS, devices=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        second = await worker.alloc_tensor(SHAPE, I64, device=1, init=host + 1)
        sums = await worker.alloc_tensor((2,), I64, device=1)
        tally = worker.bind(tallied, x=second, sums=sums)

        async def told() -> int:
            await worker.copy_to(sums, np.zeros(2, I64))
            await tally()
            return int((await worker.read(sums))[1]) - 1

        assert [await told(), await told()] == [(host + 1).sum()] * 2
        await worker.transfer(second, first)
        assert [await told(), await told()] == [host.sum()] * 2
        await worker.copy_to(second[0], host[0] + 5)
        assert await told() == host.sum() + 5 * SHAPE[1]
        await worker.run(row_added, second, 1)
        assert await told() == host.sum() + 6 * SHAPE[1]


async def test_what_a_kernel_has_written_is_copied_at_once() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2) as worker:
        source, target, third = [await worker.alloc_tensor(SHAPE, I64, device=device) for device in (0, 1, 1)]
        await worker.run(added, source, 1)
        await worker.transfer(target, source)
        assert memory_of(backend).place(target) != memory_of(backend).place(source)
        await worker.transfer(third, target)  # which no kernel has written
        assert memory_of(backend).place(third) == memory_of(backend).place(target)
        await worker.transfer(source, third)  # and what a kernel had written is gone
        await worker.transfer(target, source)
        assert memory_of(backend).place(source) == memory_of(backend).place(target)
        assert (await worker.read(target) == 1).all()


@pytest.mark.parametrize("seed", range(24))
async def test_any_mix_is_as_if_each_copy_were_made(seed: int) -> None:
    """Kernels, callbacks, copies of all and of parts, frees, gangs; bound and known calls; all at once. Some devices die."""
    chance = random.Random(seed)
    deadly = seed % 3 == 0
    devices = 3
    async with opened(*PROGRAMS, devices=devices, in_flight=chance.choice((1, 2, 8)), max_restarts=100) as worker:
        model: dict[pa.DeviceTensor, Array] = {}
        sums: dict[int, tuple[pa.DeviceTensor, Array]] = {}
        bound: dict[tuple[Any, ...], pa.BoundProgram] = {}

        async def allocate(device: int, host: Array | None = None) -> None:
            model[await worker.alloc_tensor(SHAPE, I64, device=device, init=host)] = np.zeros(SHAPE, I64) if host is None else host.copy()

        async def settle(tasks: list[asyncio.Task[Any]]) -> None:
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
            tasks.clear()

        for device in range(devices):
            await allocate(device, numbers(device))
            await allocate(device)
            sums[device] = await worker.alloc_tensor((4,), I64, device=device), np.zeros(4, I64)
        tasks: list[asyncio.Task[Any]] = []
        for number in range(60):
            x, y = chance.sample(list(model), 2)
            total = sums[x.device]
            kind = chance.choice(
                ["transfer"] * 4
                + ["sum"] * 2
                + ["tally"] * 3
                + ["bound", "add", "row", "call", "both", "total", "write", "part", "free", "die"]
            )
            if kind == "transfer":
                tasks.append(asyncio.create_task(worker.transfer(x, y)))
                model[x][...] = model[y]
            elif kind in ("sum", "bound"):
                if kind == "bound":
                    call = bound.setdefault((summed, x), worker.bind(summed, x=x, sums=total[0]))
                    tasks.append(asyncio.create_task(call(number)))
                else:
                    tasks.append(asyncio.create_task(worker.run(summed, x, total[0], number)))
                total[1][number % 4] += int(model[x].sum()) + number
            elif kind == "tally":
                call = bound.setdefault((tallied, x), worker.bind(tallied, x=x, sums=total[0]))
                tasks.append(asyncio.create_task(call()))
                total[1][1] += int(model[x].sum()) + 1
            elif kind == "add":
                call = bound.setdefault((added, x), worker.bind(added, x=x, number=3))
                tasks.append(asyncio.create_task(call()))
                model[x] += 3
            elif kind == "row":
                tasks.append(asyncio.create_task(worker.run(row_added, x, number)))
                model[x][1] += number
            elif kind == "call":
                tasks.append(asyncio.create_task(worker.run(called_back, x, number)))
                model[x][0] += number
            elif kind == "both":
                tasks.append(asyncio.create_task(worker.run(both_added, x, y, number)))
                model[x] += number
                model[x][2] += number
                model[y] += number
            elif kind == "total":
                if x.device != y.device:
                    tasks.append(asyncio.create_task(worker.run(totalled, x, y)))
                    model[x] += model[y]
                    model[y][...] = model[x]
            elif kind == "write":
                host = numbers(number)
                tasks.append(asyncio.create_task(worker.copy_to(x, host)))
                model[x][...] = host
            elif kind == "part":
                row = numbers(number)[0]
                tasks.append(asyncio.create_task(worker.copy_to(x[2], row)))
                model[x][2] = row
            elif kind == "free":
                tasks.append(asyncio.create_task(worker.free_tensor(x)))
                device, host = x.device, numbers(number)
                await settle(tasks)
                del model[x]
                bound = {key: call for key, call in bound.items() if key[1] is not x}
                await allocate(device, host)
            elif deadly:
                await settle(tasks)
                testing.kill_device(worker, x.device)
                model = {tensor: host for tensor, host in model.items() if tensor.device != x.device}
                bound = {key: call for key, call in bound.items() if key[1].device != x.device}
                await allocate(x.device)
                await allocate(x.device, numbers(number))
                sums[x.device] = await worker.alloc_tensor((4,), I64, device=x.device), np.zeros(4, I64)
            if tasks and chance.random() < 0.2:
                await asyncio.sleep(0)
        await settle(tasks)
        for tensor, host in model.items():
            assert (await worker.read(tensor) == host).all()
        for tensor, host in sums.values():
            assert (await worker.read(tensor) == host).all()


async def test_who_reads_in_the_former_place_reads_to_the_end(tmp_path: Path) -> None:
    """A kernel reads what it shares, the one behind it writes it, and the other sharer goes: the place stays until the first has ended."""
    came, go = str(tmp_path / "came"), str(tmp_path / "go")
    os.mkfifo(came)
    os.mkfifo(go)

    @pa.kernel
    def read_late(x: pa.InArray, sums: pa.InOutArray) -> None:
        with open(came, "w"), open(go) as gate:
            gate.read()
        sums[0] = x.sum()

    @pa.program()
    def late(orch: pa.Orchestrator, x: Read, sums: Sums) -> None:
        orch.submit(read_late, x, sums)

    async with opened(late, added, devices=2) as worker:
        host = numbers()
        other = await worker.alloc_tensor(SHAPE, I64, init=host)
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        sums = await worker.alloc_tensor((1,), I64, device=1)
        await worker.transfer(mine, other)
        reading = worker.submit_nowait(late, mine, sums)
        writing = worker.submit_nowait(added, mine, 1)
        await asyncio.to_thread(lambda: open(came).close())
        await worker.free_tensor(other)
        await worker.alloc_tensor(SHAPE, I64, init=np.zeros(SHAPE, I64))  # perhaps where that was
        assert not writing.done()
        await asyncio.to_thread(lambda: open(go, "w").close())
        await reading
        await writing
        assert (await worker.read(sums)).tolist() == [host.sum()]
        assert (await worker.read(mine) == host + 1).all()


async def test_what_others_share_outlives_the_device_it_was_made_on() -> None:
    files = open_files()
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=3, max_restarts=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        alone = await worker.alloc_tensor(SHAPE, I64, init=host)
        second, third = [await worker.alloc_tensor(SHAPE, I64, device=device) for device in (1, 2)]
        total = await worker.alloc_tensor((1,), I64, device=1)
        for target in (second, third):
            await worker.transfer(target, first)
        await worker.run(summed, second, total, 0)
        before = pages(backend)
        testing.kill_device(worker, 0)
        for tensor in (first, alone):
            with pytest.raises((pa.StaleTensorError, pa.DeviceFailedError)):
                await worker.read(tensor)
        await worker.alloc_tensor((1,), I64)  # it is there again
        assert pages(backend) <= before - host.nbytes
        await worker.run(summed, second, total, 0)
        await worker.run(added, third, 1)
        assert (await worker.read(total)).tolist() == [2 * host.sum()]
        assert (await worker.read(second) == host).all()
        assert (await worker.read(third) == host + 1).all()
        await worker.free_tensor(third)
        await worker.free_tensor(second)
        assert pages(backend) <= before - 2 * host.nbytes
    assert open_files() <= files + 1


async def test_no_memory_to_move_to_fails_who_writes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        second = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(second, first)
        heap = memory_of(backend).heap(1)

        def none_left(nbytes: int) -> Any:
            raise MemoryError(f"no {nbytes} bytes")

        with monkeypatch.context() as patch:
            patch.setattr(heap, "take", none_left)
            for failing in (worker.run(added, second, 1), worker.copy_to(second[0], host[1])):
                with pytest.raises(pa.DeviceOutOfMemoryError, match="device 1 could not get what it needs of the memory of its host"):
                    await failing
            with pytest.raises(pa.KernelError, match="MemoryError"):
                await worker.run(called_back, second, 1)
            taken = set()
            for _ in range(3):
                with pytest.raises(pa.DeviceOutOfMemoryError):
                    await worker.run(both_added, first, second, 1)
                taken.add(memory_of(backend).heap(0)._next)
            assert len(taken) == 1
        assert (await worker.read(second) == host).all()
        await worker.run(added, second, 1)
        assert (await worker.read(second) == host + 1).all()
        assert (await worker.read(first) == host).all()


async def test_a_dispatch_that_cannot_cross_leaves_no_memory_behind() -> None:
    lock = threading.Lock()

    @pa.kernel
    def locked(x: pa.InOutArray) -> None:
        with lock:
            x += 1

    @pa.program()
    def uncrossable(orch: pa.Orchestrator, x: Written) -> None:
        orch.submit(locked, x)

    backend = ProcessBackend()
    async with opened(uncrossable, backend=backend, devices=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        second = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(second, first)
        before = pages(backend)
        with pytest.raises(pa.KernelError, match="lock"):
            await worker.run(uncrossable, second)
        assert (await worker.read(second) == host).all()
        await worker.free_tensor(first)
        assert pages(backend) == before


async def test_without_a_thread_the_loop_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(name: str) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(copy_engine, "WorkThread", none_left)
    async with opened(*PROGRAMS, devices=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        second = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(second, first)
        await worker.run(added, second, 1)
        assert (await worker.read(second) == host + 1).all()
