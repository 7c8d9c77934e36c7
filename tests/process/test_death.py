"""A process that dies, at every stage: each accepted call gets one typed outcome, other devices go on, and nothing stays behind."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import testing
from pypto_actors.backends import process
from pypto_actors.backends.process import ProcessBackend
from tests.process.support import (
    LIMIT,
    N,
    Pipe,
    add,
    children,
    has_ended,
    ints,
    on,
    open_files,
    opened,
    outcome,
    shared_files,
    stuck_kernel,
    threads,
)

I64 = np.int64


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Around every test here."""
    processes, files, shared = children(), open_files(), shared_files()
    yield
    assert children() == processes
    assert shared_files() == shared
    assert threads() == set()
    assert open_files() <= files + 3  # the loop of the test is still open


@pa.kernel
def leave(x: pa.InOutArray, how: int) -> None:
    if how == 0:
        os._exit(7)
    if how == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 2:
        ctypes.string_at(0)
    if how == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == 4:
        os.closerange(3, 1000)


ENDS = {0: "exit code 7", 1: "SIGKILL", 2: "SIGSEGV", 3: "stands still", 4: ""}


@pytest.mark.parametrize("how", ENDS)
async def test_in_a_kernel(how: int) -> None:
    adder, other, leaver = on(0, add, "add"), on(1, add, "add"), on(0, leave)
    async with opened(adder, other, leaver, devices=2) as worker:
        lost, kept = await worker.alloc_tensor((N,), I64), await worker.alloc_tensor((N,), I64, device=1)
        began = time.monotonic()
        bad, behind = worker.submit_nowait(leaver, lost, how), worker.submit_nowait(adder, ints(), 1)
        beside = worker.submit_nowait(other, kept, 5)
        error = await outcome(bad)
        assert time.monotonic() - began < 3
        assert isinstance(error, pa.DeviceFailedError)
        assert ENDS[how] in str(error)
        assert isinstance(await outcome(behind), pa.DeviceFailedError | pa.RunResult)
        assert isinstance(await outcome(beside), pa.RunResult)
        assert (await worker.read(kept)).tolist() == [5] * N
        with pytest.raises(pa.StaleTensorError):
            await worker.read(lost)
        x = ints(1)
        await worker.run(adder, x, 2)  # waits for the new process
        assert x.tolist() == [3] * N
        assert worker.statistics().devices[0].restarts == 1


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
async def test_while_idle(sign: signal.Signals) -> None:
    backend = ProcessBackend()
    adder = on(0, add)
    async with opened(adder, backend=backend) as worker:
        lost = await worker.alloc_tensor((N,), I64)
        old = backend.pids[0]
        os.kill(old, sign)
        assert has_ended(old)
        while isinstance(await outcome(worker.submit_nowait(adder, ints(), 1)), pa.DeviceFailedError):
            pass  # it was accepted before the death was heard of
        assert backend.pids[0] != old
        assert worker.statistics().devices[0].restarts == 1
        with pytest.raises(pa.StaleTensorError):
            await worker.run(adder, lost, 1)


async def test_with_dispatches_queued_and_handed_over(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    backend = ProcessBackend()
    stuck, adder = on(0, stuck_kernel(pipe.path)), on(0, add, "add")
    async with opened(stuck, adder, backend=backend) as worker:
        handles = [worker.submit_nowait(stuck, ints(), 0)]
        arrays = [ints(i) for i in range(10)]
        handles += [worker.submit_nowait(adder, array, 1) for array in arrays]
        await pipe.heard()
        os.kill(backend.pids[0], signal.SIGKILL)
        outcomes = [await outcome(handle) for handle in handles]
    assert [type(one) for one in outcomes] == [pa.DeviceFailedError] * 3 + [pa.RunResult] * 8  # in_flight=2 were there
    assert [int(array[0]) for array in arrays[2:]] == [i + 1 for i in range(2, 10)]
    pipe.close()


async def test_in_a_copy() -> None:
    backend = ProcessBackend()
    async with opened(on(0, add), backend=backend) as worker:
        tensor = await worker.alloc_tensor((1 << 22,), I64)
        source = np.ones(1 << 22, I64)
        copy = asyncio.create_task(worker.copy_to(tensor, source))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        os.kill(backend.pids[0], signal.SIGKILL)
        (error,) = await asyncio.gather(copy, return_exceptions=True)
        assert error is None or isinstance(error, pa.DeviceFailedError)


async def test_while_its_arguments_are_copied_in(tmp_path: Path) -> None:
    backend = ProcessBackend()
    adder = on(0, add)
    async with opened(adder, backend=backend) as worker:
        handles = [worker.submit_nowait(adder, np.ones(1 << 21, I64), 1) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(backend.pids[0], signal.SIGKILL)
        for handle in handles:
            assert isinstance(await outcome(handle), pa.DeviceFailedError | pa.RunResult)


async def test_in_a_gang(tmp_path: Path) -> None:
    @pa.kernel
    def member(x: pa.InOutArray, rank: int) -> None:
        if rank == 1:
            os._exit(3)
        x += 1

    @pa.program()
    def program(orch: pa.Orchestrator) -> None:
        refs = [orch.empty((N,), I64, device=rank) for rank in range(3)]
        orch.submit_group(member, [(ref, rank) for rank, ref in enumerate(refs)], devices=[0, 1, 2])
        orch.allreduce(refs)

    others = [on(rank, add, "add") for rank in range(3)]
    async with opened(program, *others, devices=3) as worker:
        error = await outcome(worker.submit_nowait(program))
        assert isinstance(error, pa.DeviceFailedError)
        for other in others:
            x = ints(1)
            await asyncio.wait_for(worker.run(other, x, 1), LIMIT)
            assert x.tolist() == [2] * N
        assert [device.restarts for device in worker.statistics().devices] == [0, 1, 0]
        assert [worker.committed_device_memory(rank) for rank in range(3)] == [0, 0, 0]


async def test_in_a_meeting(tmp_path: Path) -> None:
    """One member waits in the collective, the other never comes, and is killed from outside."""
    pipe = Pipe(tmp_path)
    backend = ProcessBackend()
    stuck = stuck_kernel(pipe.path)

    @pa.program()
    def program(orch: pa.Orchestrator) -> None:
        refs = [orch.empty((N,), I64, device=rank) for rank in range(2)]
        orch.submit(stuck, refs[1], 0, device=1)
        orch.allreduce(refs)

    other = on(0, add)
    async with opened(program, other, devices=2, backend=backend) as worker:
        handle = worker.submit_nowait(program)
        await pipe.heard()
        os.kill(backend.pids[1], signal.SIGKILL)
        assert isinstance(await outcome(handle), pa.DeviceFailedError)
        await asyncio.wait_for(worker.run(other, ints(), 1), LIMIT)
    pipe.close()


@pytest.mark.parametrize("max_restarts", [0, 2])
async def test_beyond_max_restarts_a_device_is_lost(max_restarts: int) -> None:
    adder, other, leaver = on(0, add, "add"), on(1, add, "add"), on(0, leave)
    async with opened(adder, other, leaver, devices=2, max_restarts=max_restarts) as worker:
        for _ in range(max_restarts + 1):
            assert isinstance(await outcome(worker.submit_nowait(leaver, ints(), 0)), pa.DeviceFailedError)
        with pytest.raises(pa.DeviceFailedError, match="lost"):
            await worker.run(adder, ints(), 1)
        await worker.run(other, ints(), 1)


async def test_kill_device() -> None:
    adder = on(0, add)
    async with opened(adder) as worker:
        lost = await worker.alloc_tensor((N,), I64)
        testing.kill_device(worker, 0)
        await asyncio.sleep(0)
        with pytest.raises(pa.StaleTensorError):
            await worker.read(lost)
        await worker.run(adder, ints(), 1)


# ---------------------------------------------------------------------------------------------- starting


async def new_children(before: set[int]) -> set[int]:
    """The processes that another task starts."""
    while not (started := children() - before):  # noqa: ASYNC110 (there is no event to wait for)
        await asyncio.sleep(0)
    return started


async def test_a_program_that_is_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start: its process ended with exit code"):
        async with opened(on(0, add), devices=3):
            raise AssertionError


async def test_an_interpreter_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        async with opened(on(0, add), devices=3):
            raise AssertionError


async def test_killed_while_it_starts() -> None:
    backend = ProcessBackend()
    before = children()

    async def enter() -> None:
        async with opened(on(0, add), devices=2, backend=backend):
            raise AssertionError

    entering = asyncio.create_task(enter())
    started = await new_children(before)
    os.kill(next(iter(started)), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="did not start: its process was killed by SIGKILL"):
        await entering


async def test_a_start_that_is_cancelled() -> None:
    before = children()
    entering = asyncio.create_task(opened(on(0, add), devices=2).__aenter__())
    await new_children(before)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering


# ---------------------------------------------------------------------------------------------- closing


async def test_killed_and_then_closed() -> None:
    backend = ProcessBackend()
    async with opened(on(0, add), devices=2, backend=backend):
        os.kill(backend.pids[1], signal.SIGKILL)


async def test_one_that_stands_still_while_idle_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.1)
    backend = ProcessBackend()
    async with opened(on(0, add), devices=2, backend=backend):
        os.kill(backend.pids[1], signal.SIGSTOP)


async def test_a_kernel_that_does_not_end_after_an_abort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "GRACE", 0.1)
    pipe = Pipe(tmp_path)
    stuck = on(0, stuck_kernel(pipe.path))
    async with opened(stuck) as worker:
        running = worker.submit_nowait(stuck, ints(), 0)
        await pipe.heard()
        await asyncio.wait_for(worker.aclose("abort"), LIMIT)
        error = await outcome(running)
        assert isinstance(error, pa.DeviceFailedError)
        assert "of an abort" in str(error)
    pipe.close()


def python(text: str, argument: str, directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", text, argument], stdout=subprocess.PIPE, cwd=directory)


PARENT = """
import asyncio, sys
import numpy as np
import pypto_actors as pa
from pypto_actors.backends.process import ProcessBackend
from tests.process.support import on, stuck_kernel

async def main():
    backend = ProcessBackend()
    stuck = on(0, stuck_kernel(sys.argv[1]))
    config = pa.DistributedConfig(device_ids=[0, 1])
    async with pa.DistributedWorker([stuck], config=config, backend=backend) as worker:
        await worker.alloc_tensor((1000,), np.int64)
        worker.submit_nowait(stuck, np.zeros(8, np.int64), 0)
        print(*backend.pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_children_do_not_outlive_their_parent(tmp_path: Path, sign: signal.Signals) -> None:
    """One is in a kernel that never ends, the other is idle."""
    pipe = Pipe(tmp_path)
    root = Path(__file__).parent.parent.parent
    parent = python(PARENT, pipe.path, root)
    try:
        assert parent.stdout is not None
        with parent.stdout as stdout:
            pids = [int(pid) for pid in stdout.readline().split()]
        await pipe.heard()
    finally:
        parent.send_signal(sign)
        parent.wait(LIMIT)
    assert len(pids) == 2
    assert all(has_ended(pid, 5) for pid in pids)
    pipe.close()
