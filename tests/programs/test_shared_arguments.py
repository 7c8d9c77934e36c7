"""Arguments that share memory, and those that only look like it: which steps wait for each other then.

Breaks that this catches: a step after a gang that waits for its last member only; two slices of one argument that are taken for two
arguments with memory in common; a program that is one part on one rank and several on another; an array that overlaps itself.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa

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


@pytest.mark.parametrize("device", [None, 0, 1])
async def test_where_the_rank_decides_how_many_parts_there_are(device: int | None) -> None:
    started, go = threading.Event(), threading.Event()

    @pa.kernel
    def add(x: pa.InOutArray, value: int) -> None:
        before = x.copy()
        started.set()
        go.wait(0 if go.is_set() else 0.05)  # a window for the other step, if it is not ordered behind
        x[...] = before + value

    @pa.kernel
    def times(x: pa.InOutArray, value: int) -> None:
        x *= value

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, y: Vec) -> None:
        orch.submit(add, x, 5)
        orch.submit(times, y, 3, device=0)

    async with opened(program) as worker:
        x = np.ones(4, np.int64)
        await worker.run(program, x, x, device=device)
        assert x.tolist() == [18] * 4


async def test_an_array_that_overlaps_itself() -> None:
    @pa.kernel
    def add(x: pa.InOutArray, value: int) -> None:
        before = x.copy()
        threading.Event().wait(0.02)
        x[...] = before + value

    @pa.program
    def program(orch: pa.Orchestrator, x: Two) -> None:
        orch.submit(add, x[0], 1, device=0)
        orch.submit(add, x[1], 10, device=1)

    async with opened(program) as worker:
        base = np.zeros(4, np.int64)
        await worker.run(program, np.lib.stride_tricks.as_strided(base, (2, 4), (0, 8)))
        assert base.tolist() == [11] * 4


@pytest.mark.parametrize("between", ["barrier", "allreduce", "barrier of two"])
@pytest.mark.parametrize("reader", ["callback", "kernel"])
@pytest.mark.parametrize("slow", [0, 1])
async def test_what_comes_after_steps_on_both_sides_of_a_meeting(between: str, reader: str, slow: int) -> None:
    """A meeting tells each device of the other's steps, but only when it is over: who waits for both steps waits for both."""
    last = threading.Event()
    seen: list[Any] = []

    @pa.kernel
    def add(x: pa.InOutArray, late: bool) -> None:
        if late:
            last.wait(0.05)
        x += 1

    def callback(x: pa.InArray) -> None:
        seen.append(x.sum(axis=0).tolist())

    @pa.program
    def program(orch: pa.Orchestrator, x: Two, y: Vec) -> None:
        window = orch.window("w", (4,), np.int64)
        for rank in range(2):
            orch.submit(add, x[rank], rank == slow, device=rank)
        if between == "allreduce":
            orch.allreduce([window[0], window[1]])
        else:
            orch.barrier([0, 1])
        if reader == "callback":
            orch.submit_sub(callback, x)
        else:
            orch.submit(total, x, y, device=2)

    async with opened(program, devices=3) as worker:
        x, y = np.zeros((2, 4), np.int64), np.zeros(4, np.int64)
        await worker.run(program, x, y)
        assert (seen[0] if reader == "callback" else y.tolist()) == [2] * 4
