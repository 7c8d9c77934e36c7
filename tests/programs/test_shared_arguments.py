"""Arguments that share memory, and those that only look like it: which steps wait for each other then.

Breaks that this catches: a step after a gang that waits for its last member only; two slices of one argument that are taken for two
arguments with memory in common; a program that is one part on one rank and several on another; an array that overlaps itself.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
import pypto_actors.testing as testing
from tests.devices.slow import SlowBackend

LIMIT = 10.0
Vec = Annotated[pa.TensorRef, pa.InOut((4,), np.int64)]
Two = Annotated[pa.TensorRef, pa.InOut((2, 4), np.int64)]


@pa.kernel
def total(x: pa.InArray, y: pa.OutArray) -> None:
    y[...] = x.sum(axis=0)


def opened(program: pa.Program, backend: str = "thread", devices: int = 2) -> pa.DistributedWorker:
    return pa.DistributedWorker(program, config=pa.DistributedConfig(range(devices)), backend=backend)


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("slow", [0, 1])
async def test_a_step_after_a_gang_waits_for_all_its_members(backend: str, slow: int) -> None:
    """With arguments that share memory (steps one after another), and without."""
    others = threading.Event()

    @pa.kernel
    def member(x: pa.InOutArray, late: bool) -> None:
        if late and backend == "thread":
            others.wait(LIMIT)
        x += 1
        if not late:
            others.set()

    @pa.program
    def program(orch: pa.Orchestrator, x: Two, y: Vec) -> None:
        orch.submit_group(member, [(x[rank], rank == slow) for rank in range(2)], devices=[0, 1])
        orch.submit(total, x, y, device=1)

    async with opened(program, backend) as worker:
        x, y = np.ones((2, 4), np.int64), np.zeros(4, np.int64)
        await worker.run(program, x, y)
        assert y.tolist() == [4] * 4
        others.clear()
        x = np.ones((2, 4), np.int64)
        await worker.run(program, x, x[1])
        assert x.tolist() == [[2] * 4, [4] * 4]


async def test_slices_of_one_argument_are_not_arguments_that_share_memory() -> None:
    """Both kernels are at work at the same time, or neither ends."""
    both = threading.Barrier(2)

    @pa.kernel
    def meet(x: pa.InOutArray) -> None:
        both.wait(LIMIT)
        x += 1

    @pa.program
    def fork_and_join(orch: pa.Orchestrator, x: Two, y: Vec) -> None:
        orch.submit(meet, x[0], device=0)
        orch.submit(meet, x[1], device=1)
        orch.submit(total, x, y, device=0)

    async with opened(fork_and_join) as worker:
        x, y = np.ones((2, 4), np.int64), np.zeros(4, np.int64)
        await worker.run(fork_and_join, x, y)
        assert y.tolist() == [4] * 4


def on_slow_devices(check: Callable[[pa.DistributedWorker], Awaitable[None]], program: pa.Program, devices: int) -> None:
    """`check` on devices that take random virtual times, so that steps which nobody orders come in any order."""

    async def main(seed: int) -> None:
        async with pa.DistributedWorker(program, config=pa.DistributedConfig(range(devices)), backend=SlowBackend(seed)) as worker:
            await check(worker)

    for seed in range(20):
        with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
            runner.run(main(seed))


@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.kernel
def times(x: pa.InOutArray, value: int) -> None:
    x *= value


@pytest.mark.parametrize("device", [None, 0, 1])
def test_where_the_rank_decides_how_many_parts_there_are(device: int | None) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, y: Vec) -> None:
        orch.submit(add, x, 5)
        orch.submit(times, y, 3, device=0)

    async def check(worker: pa.DistributedWorker) -> None:
        x = np.ones(4, np.int64)
        await worker.run(program, x, x, device=device)
        assert x.tolist() == [18] * 4

    on_slow_devices(check, program, 2)


def test_an_array_that_overlaps_itself() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Two) -> None:
        orch.submit(add, x[0], 1, device=0)
        orch.submit(times, x[1], 10, device=1)

    async def check(worker: pa.DistributedWorker) -> None:
        base = np.zeros(4, np.int64)
        await worker.run(program, np.lib.stride_tricks.as_strided(base, (2, 4), (0, 8)))
        assert base.tolist() == [10] * 4

    on_slow_devices(check, program, 2)


@pytest.mark.parametrize("between", ["barrier", "allreduce"])
@pytest.mark.parametrize("reader", ["callback", "kernel"])
def test_what_comes_after_steps_on_both_sides_of_a_meeting(between: str, reader: str) -> None:
    """A meeting tells each device of the other's steps, but only when it is over: who waits for both steps waits for both."""
    seen: list[Any] = []

    def callback(x: pa.InArray) -> None:
        seen.append(x.sum(axis=0).tolist())

    @pa.program
    def program(orch: pa.Orchestrator, x: Two, y: Vec) -> None:
        window = orch.window("w", (4,), np.int64)
        for rank in range(2):
            orch.submit(add, x[rank], 1, device=rank)
        if between == "allreduce":
            orch.allreduce([window[0], window[1]])
        else:
            orch.barrier([0, 1])
        if reader == "callback":
            orch.submit_sub(callback, x)
        else:
            orch.submit(total, x, y, device=2)

    async def check(worker: pa.DistributedWorker) -> None:
        x, y = np.zeros((2, 4), np.int64), np.zeros(4, np.int64)
        await worker.run(program, x, y)
        assert (seen.pop() if reader == "callback" else y.tolist()) == [2] * 4

    on_slow_devices(check, program, 3)


GANGS: dict[str, Callable[[pa.Orchestrator, pa.TensorRef, pa.TensorRef], None]] = {
    "a gang": lambda orch, x, y: orch.submit_group(add, [(x, 1), (y, 1)], devices=[0, 1]),
    "a collective": lambda orch, x, y: orch.allreduce([x, y]),
}


@pytest.mark.parametrize("kind", GANGS)
@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_a_call_that_makes_members_of_a_gang_share_what_they_write(kind: str, backend: str) -> None:
    """Found before it is accepted: what runs at the same time cannot run one after another."""

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, y: Vec) -> None:
        GANGS[kind](orch, x, y)

    base = np.arange(12)
    async with opened(program, backend) as worker:
        for x, y in ((base[:4], base[:4]), (base[:4], base[2:6]), (base[:8:2], base[2:10:2])):
            with pytest.raises(pa.ProgramError, match="share bytes of these arguments that one of them writes; pass arrays that are apart"):
                worker.submit_nowait(program, x, y)
        assert worker.statistics().accepted == 0
        assert base.tolist() == list(range(12))
        await worker.run(program, base[:8:2], base[1:8:2])


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_a_copy_between_views_of_one_array(backend: str) -> None:
    """numpy's own copy takes such views for apart where their strides differ."""

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out()], y: Annotated[pa.TensorRef, pa.In()]) -> None:
        orch.copy(x, y)

    base = np.arange(20)
    async with opened(program, backend) as worker:
        await worker.run(program, base[2::6][:3], base[6:9])
    assert base[2::6][:3].tolist() == [6, 7, 8]


@pytest.mark.parametrize("kind", GANGS)
async def test_a_gang_beside_steps_whose_arguments_share_memory_with_its_own(kind: str) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, y: Vec, z: Vec) -> None:
        GANGS[kind](orch, x, y)
        orch.submit(times, z, 10, device=1)

    async with opened(program) as worker:
        x, y = np.ones(4, np.int64), np.ones(4, np.int64)
        await worker.run(program, x, y, x)
    assert (x.tolist(), y.tolist()) == ([20] * 4, [2] * 4)
