"""Copy on write on `process`: large copies between device tensors are put off until one of both is written.

Breaks that this catches, each planted once in a copy: a kernel, a callback or a copy writes what is shared; calls that are known keep the
former place; the new place is read before it is filled; the former place is left, or written by the other sharer, before those that read it
there have ended; a partial write forgets the rest; what is shared goes with the device on which it was made; what a kernel has written is
shared; no memory is left to move to; a death in the middle lets a thread write what belongs to somebody else by then.
"""

from __future__ import annotations

import asyncio
import errno
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
from tests.guarantees.support import turns
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


def look(x: pa.InArray) -> int:
    return int(x.sum())


@pa.program()
def looked(orch: pa.Orchestrator, x: Read) -> None:
    orch.submit_sub(look, x)


@pa.program()
def both_added(orch: pa.Orchestrator, x: Written, y: Written, number: int) -> None:
    orch.submit(add, x, number)
    orch.submit_sub(to_host, x[2:4], number)
    orch.submit(add, y, number)


@pa.program()
def totalled(orch: pa.Orchestrator, x: Written, y: Written) -> None:
    orch.allreduce([x, y], op="sum")


PROGRAMS = (summed, tallied, added, row_added, called_back, looked, both_added, totalled)


def memory_of(backend: ProcessBackend) -> SharedInterconnect:
    memory = backend._interconnect
    assert memory is not None
    return memory


class HeldEngine:
    """The thread that copies for a device does nothing before `go`: what is being moved stays so."""

    def __init__(self, backend: ProcessBackend, rank: int) -> None:
        self.go = threading.Event()
        backend._executors[rank]._copies.do(lambda: self.go.wait(LIMIT), lambda _: None)


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
            for reading, wanted in checks:
                assert (await reading == wanted).all()
            for looking, total in looks:
                assert (await looking).returned == (total,)
            checks.clear()
            looks.clear()

        for device in range(devices):
            await allocate(device, numbers(device))
            await allocate(device)
            sums[device] = await worker.alloc_tensor((4,), I64, device=device), np.zeros(4, I64)
        tasks: list[asyncio.Task[Any]] = []
        checks: list[tuple[asyncio.Task[Any], Array]] = []
        looks: list[tuple[asyncio.Task[Any], int]] = []
        for number in range(80):
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
            elif kind == "read":
                row = number % ROWS
                checks.append((asyncio.create_task(worker.read(x[row])), model[x][row].copy()))
            elif kind == "look":
                row = number % ROWS
                looks.append((asyncio.create_task(worker.run(looked, x[row : row + 1])), int(model[x][row].sum())))
            elif kind == "rows":
                row = number % ROWS
                tasks.append(asyncio.create_task(worker.run(summed, x[row : row + 1], total[0], number)))
                total[1][number % 4] += int(model[x][row].sum()) + number
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


async def test_what_is_being_moved_is_read_where_it_was() -> None:
    """Who has nothing in common with what is written does not wait for the move, and sees no byte that has not come yet."""
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2) as worker:
        host = numbers()
        first = await worker.alloc_tensor(SHAPE, I64, init=host)
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        row = await worker.alloc_tensor(SHAPE[1:], I64)
        sums = await worker.alloc_tensor((1,), I64, device=1)
        await worker.transfer(mine, first)
        engine = HeldEngine(backend, 1)
        writing = asyncio.create_task(worker.copy_to(mine[1], host[0]))
        await asyncio.sleep(0)
        assert (await worker.read(mine[3]) == host[3]).all()
        await worker.transfer(row, mine[2])
        await worker.run(summed, mine[2:4], sums, 0)
        looking = asyncio.create_task(worker.run(looked, mine[2:4]))
        assert not writing.done()
        engine.go.set()
        await writing
        assert (await worker.read(row) == host[2]).all()
        assert (await worker.read(sums)).tolist() == [host[2:].sum()]
        assert (await looking).returned == (host[2:].sum(),)
        assert (await worker.read(mine) == host[[0, 0, 2, 3]]).all()


@pytest.mark.parametrize("how", ["chain", "freed", "written"])
async def test_who_reads_in_the_former_place_reads_to_the_end(how: str, tmp_path: Path) -> None:
    """A kernel reads what it shares; then that is written, and the other sharer goes, or is written: the place stays until the first has
    ended."""
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

    backend = ProcessBackend()
    async with opened(late, added, backend=backend, devices=2) as worker:
        host = numbers()
        other = await worker.alloc_tensor(SHAPE, I64, init=host)
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        sums = await worker.alloc_tensor((1,), I64, device=1)
        await worker.transfer(mine, other)
        before = pages(backend)
        reading = worker.submit_nowait(late, mine if how == "chain" else mine[1:3], sums)
        wanted = (host if how == "chain" else host[1:3]).sum()
        await asyncio.to_thread(lambda: open(came).close())
        writing: asyncio.Future[Any]
        if how == "chain":
            writing = asyncio.ensure_future(worker.submit_nowait(added, mine, 1).wait())
        else:
            writing = asyncio.ensure_future(worker.copy_to(mine[0], host[0] + 1))
            await writing
        if how == "written":
            await worker.copy_to(other, host * 0 + 77)
        await worker.free_tensor(other)
        await worker.alloc_tensor(SHAPE, I64, init=np.zeros(SHAPE, I64))  # perhaps where that was
        await asyncio.to_thread(lambda: open(go, "w").close())
        await reading
        await writing
        assert (await worker.read(sums)).tolist() == [wanted]
        assert (await worker.read(mine[0]) == host[0] + 1).all()
        await worker.run(added, mine, 0)
        assert pages(backend) < before + host.nbytes + SHARED  # of all places that were left none is kept


async def test_what_a_callback_reads_stays_until_it_has_ended() -> None:
    came, go = threading.Event(), threading.Event()

    def look_late(x: pa.InArray) -> int:
        came.set()
        go.wait(LIMIT)
        return int(x.sum())

    @pa.program()
    def late(orch: pa.Orchestrator, x: Read) -> None:
        orch.submit_sub(look_late, x)

    async with opened(late, devices=2) as worker:
        host = numbers()
        other = await worker.alloc_tensor(SHAPE, I64, init=host)
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(mine, other)
        looking = worker.submit_nowait(late, mine[1:3])
        await asyncio.to_thread(came.wait, LIMIT)
        again = await worker.alloc_tensor(SHAPE, I64)
        await worker.transfer(again, mine)  # which somebody looks at
        await worker.copy_to(mine[0], host[1])
        for tensor in (other, again):
            await worker.free_tensor(tensor)
        go.set()
        assert (await looking).returned == (host[1:3].sum(),)


async def test_a_call_that_waits_while_something_moves_finds_it_again() -> None:
    """What is fixed is known by a number, and forgotten when some of it moves: here after the call was looked up, before it was sent."""

    @pa.kernel
    def mix(a: pa.InArray, b: pa.InArray, c: pa.InArray, d: pa.InArray, x: pa.InArray, host: pa.InArray, sums: pa.InOutArray) -> None:
        sums[0] += int(x.sum()) + int(host.sum()) + a[0] + b[0] + c[0] + d[0]

    @pa.program()
    def mixed(
        orch: pa.Orchestrator, a: Sums, b: Sums, c: Sums, d: Sums, x: Read, host: Annotated[pa.TensorRef, pa.In(None, I64)], sums: Sums
    ) -> None:
        orch.submit(mix, a, b, c, d, x, host, sums)

    backend = ProcessBackend()
    async with opened(mixed, backend=backend, devices=2, in_flight=4) as worker:
        host = numbers()
        large = np.concatenate([host, host])  # so large that a thread copies it
        other = await worker.alloc_tensor(SHAPE, I64, init=host)
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(mine, other)
        small = {name: await worker.alloc_tensor((1,), I64, device=1, init=np.array([number])) for number, name in enumerate("abcd")}
        sums = await worker.alloc_tensor((1,), I64, device=1)
        bound = worker.bind(mixed, **small, x=mine[1:3], sums=sums)
        each = host[1:3].sum() + large.sum() + 6
        await bound(large)
        engine = HeldEngine(backend, 1)
        writing = asyncio.create_task(worker.copy_to(mine[0], host[1]))
        await turns()
        calling = bound.submit_nowait(large)
        await turns()
        assert backend._executors[1]._copies.given == backend._executors[1]._copies.over + 3
        engine.go.set()
        await writing
        await calling
        await bound(large)
        assert (await worker.read(sums)).tolist() == [3 * each]


async def test_a_death_in_the_middle_of_a_move_writes_nobody_elses_memory() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2, in_flight=4, max_restarts=2) as worker:
        host = numbers()
        source = await worker.alloc_tensor(SHAPE, I64, device=1, init=host)
        mine, behind, theirs = [await worker.alloc_tensor(SHAPE, I64, device=device) for device in (0, 0, 1)]
        for tensor in (mine, behind, theirs):
            await worker.transfer(tensor, source)
        engine = HeldEngine(backend, 0)
        handles = [worker.submit_nowait(added, mine, 1), worker.submit_nowait(both_added, behind, theirs, 1)]
        await turns()
        assert backend._executors[0]._copies.given == 2
        testing.kill_device(worker, 0)
        engine.go.set()
        for handle in handles:
            with pytest.raises(pa.DeviceFailedError):
                await handle.wait(LIMIT)
        await worker.free_tensor(theirs)
        fresh = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.alloc_tensor((1,), I64)  # the device is there again, and its former thread has ended
        assert not (await worker.read(fresh)).any()
        assert (await worker.read(source) == host).all()
        assert not memory_of(backend)._reserved
        for tensor in (source, fresh):
            await worker.free_tensor(tensor)
        assert len(memory_of(backend)._blocks) == 1


async def test_what_dies_while_another_device_moves_it_leaves_nothing() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2) as worker:
        host = numbers()
        source, theirs = [await worker.alloc_tensor(SHAPE, I64, device=1, init=init) for init in (host, None)]
        mine = await worker.alloc_tensor(SHAPE, I64)
        for tensor in (theirs, mine):
            await worker.transfer(tensor, source)
        engine = HeldEngine(backend, 1)
        handle = worker.submit_nowait(both_added, theirs, mine, 1)
        await turns()
        assert backend._executors[1]._copies.given == 2
        testing.kill_device(worker, 0)
        engine.go.set()
        with pytest.raises(pa.DeviceFailedError):
            await handle.wait(LIMIT)
        await worker.alloc_tensor((1,), I64)
        assert (await worker.read(source) == host).all()
        for tensor in (source, theirs):
            await worker.free_tensor(tensor)
        assert len(memory_of(backend)._blocks) == 1
        assert not memory_of(backend)._reserved
        assert not memory_of(backend)._users


async def test_a_callback_whose_tensor_dies_while_it_is_moved_fails_with_the_device() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2) as worker:
        first = await worker.alloc_tensor(SHAPE, I64, init=numbers())
        mine = await worker.alloc_tensor(SHAPE, I64, device=1)
        await worker.transfer(mine, first)
        engine = HeldEngine(backend, 1)
        handle = worker.submit_nowait(called_back, mine, 1)
        await turns()
        assert backend._executors[1]._copies.given == 2
        testing.kill_device(worker, 1)
        engine.go.set()
        with pytest.raises(pa.DeviceFailedError):
            await handle.wait(LIMIT)


async def test_deaths_leave_no_memory_and_no_files_behind() -> None:
    backend = ProcessBackend()
    async with opened(*PROGRAMS, backend=backend, devices=2, max_restarts=100) as worker:
        files, held = set(), set()
        for turn in range(3):
            first = await worker.alloc_tensor(SHAPE, I64, device=1, init=numbers())
            second = await worker.alloc_tensor(SHAPE, I64)
            await worker.transfer(second, first)
            if turn % 2:
                await worker.free_tensor(first)  # of the place there is only who dies next
            testing.kill_device(worker, 0)
            await worker.alloc_tensor((1,), I64)
            if not turn % 2:
                third = await worker.alloc_tensor(SHAPE, I64, device=0)
                await worker.transfer(third, first)
                testing.kill_device(worker, 1)  # whose slab is kept for the third, as long as that is there
                await worker.alloc_tensor((1,), I64, device=1)
                await worker.free_tensor(third)
            files.add(len(memory_of(backend).slabs))
            held.add(sum(len(block.array()) >= SHARED for block in memory_of(backend)._blocks.values()))
            assert pages(backend) < SHARED
        assert held == {0}
        assert len(files) == 1


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

        def take_from_new_slab(nbytes: int) -> Any:
            return memory_of(backend)._new_slab(nbytes)

        def no_more_files(name: str) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(heap, "take", none_left)
            for failing in (worker.run(added, second, 1), worker.copy_to(second[0], host[1])):
                with pytest.raises(pa.DeviceOutOfMemoryError, match="device 1 could not get what it needs of the memory of its host"):
                    await failing
            with pytest.raises(pa.KernelError, match="MemoryError"):
                await worker.run(called_back, second, 1)
            patch.setattr(heap, "take", take_from_new_slab)
            with patch.context() as files:
                files.setattr(os, "memfd_create", no_more_files)
                for failing in (worker.run(added, second, 1), worker.copy_to(second[0], host[1])):
                    with pytest.raises(pa.DeviceOutOfMemoryError, match="Too many open files"):
                        await failing
            patch.setattr(heap, "take", none_left)
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
