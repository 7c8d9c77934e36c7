"""Kernels cross by value, whatever they are made of, and what they raise comes back as it is, where that can be."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.backends.process import ProcessBackend
from pypto_actors.backends.wire import KernelErrorStandIn
from tests.process import support
from tests.process.support import N, add, affine_on, ints, on, opened

I64 = np.int64
FACTOR = 3


class OwnError(Exception):
    """An error of this file, which no process can import as such."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class PickyError(Exception):
    """Can be pickled, and not be made again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def helper(x: Any) -> Any:
    return x * FACTOR


@pa.kernel
def with_helpers(x: pa.InOutArray, value: int) -> None:
    x[...] = helper(x) + value + len(support.Vec)


@pa.kernel
def failing(x: pa.InOutArray, kind: int) -> None:
    if kind == 0:
        raise OwnError("mine", 7)
    if kind == 1:
        raise LockedError("a text")
    if kind == 2:
        raise PickyError("one", "two")
    if kind == 3:
        try:
            raise KeyError("the first")
        except KeyError as error:
            raise ValueError("the second") from error
    if kind == 4:
        raise SystemExit(3)
    if kind == 5:
        raise KeyboardInterrupt
    x += 1


async def failure(worker: pa.DistributedWorker, program: pa.Program, *args: Any) -> BaseException:
    with pytest.raises(pa.KernelError) as caught:
        await worker.run(program, *args)
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


async def test_functions_and_values_of_a_test_file() -> None:
    program = on(0, with_helpers)
    async with opened(program) as worker:
        x = ints(2)
        await worker.run(program, x, 10)
    assert x.tolist() == [17] * N


async def test_kernels_may_use_this_package() -> None:
    """Of which a process loads as little as it can, until somebody needs more."""

    @pa.kernel
    def deep(x: pa.InOutArray, value: int) -> None:
        from pypto_actors.testing import SeededLoop

        x += SeededLoop is not None

    @pa.kernel
    def wide(x: pa.InOutArray, value: int) -> None:
        x[...] = len(pa.__all__) + (pa.errors.InternalError is pa.InternalError)

    programs = [on(0, deep, "deep"), on(0, wide, "wide"), on(1, wide, "wide"), on(1, deep, "deep")]
    async with opened(*programs, devices=2) as worker:
        for program in programs:
            x = ints()
            await worker.run(program, x, 0)
            assert x[0] == (1 if program.name.startswith("deep") else len(pa.__all__) + 1)


async def test_closures_and_late_registration() -> None:
    state = {"factor": 5}

    def nested(x: Any) -> Any:
        return x * state["factor"]

    @pa.kernel
    def times(x: pa.InOutArray, value: int) -> None:
        x[...] = nested(x) + value

    async with opened(on(0, add, "add")) as worker:
        late = on(0, times)
        handle = await worker.register(late)
        x = ints(1)
        await handle(x, 2)
        assert x.tolist() == [7] * N


async def test_a_kernel_keeps_its_own_state() -> None:
    """Of a program whose plan is another: a function crosses once."""
    seen: list[int] = []

    @pa.kernel
    def count(x: pa.InOutArray, value: int) -> None:
        seen.append(value)
        x[...] = len(seen)

    one, two = on(0, count, "one"), on(0, count, "two")
    async with opened(one, two) as worker:
        x, y = ints(), ints(n=3)
        await worker.run(one, x, 0)
        await worker.run(two, y, 0)
        await worker.run(one, x, 0)
    assert seen == []
    assert (x[0], y[0]) == (3, 2)


async def test_exceptions_with_their_types() -> None:
    program = on(0, failing)
    async with opened(program) as worker:
        own = await failure(worker, program, ints(), 0)
        assert type(own) is OwnError
        assert own.number == 7
        assert "in failing" in own.__notes__[0]
        chained = await failure(worker, program, ints(), 3)
        assert type(chained) is ValueError
        assert "the first" in chained.__notes__[0]
        assert type(await failure(worker, program, ints(), 4)) is SystemExit
        assert type(await failure(worker, program, ints(), 5)) is KeyboardInterrupt
        x = ints(1)
        await worker.run(program, x, 6)
        assert x.tolist() == [2] * N


@pytest.mark.parametrize(("kind", "name", "text"), [(1, "LockedError", "a text"), (2, "PickyError", "onetwo")])
async def test_exceptions_that_cannot_cross(kind: int, name: str, text: str) -> None:
    program = on(0, failing)
    async with opened(program) as worker:
        error = await failure(worker, program, ints(), kind)
    assert type(error) is KernelErrorStandIn
    assert name in str(error)
    assert text in str(error)
    assert "stand-in" in str(error)


async def test_a_kernel_that_cannot_cross() -> None:
    lock = threading.Lock()

    @pa.kernel
    def locked(x: pa.InOutArray, value: int) -> None:
        with lock:
            x += value

    program, good = on(0, locked), on(0, add, "add")
    async with opened(program, good) as worker:
        error = await failure(worker, program, ints(), 1)
        assert isinstance(error, TypeError)
        assert "'locked'" in str(error)
        await worker.run(good, ints(), 1)


async def test_an_in_array_is_read_only() -> None:
    @pa.kernel
    def write(x: pa.InArray) -> None:
        x[...] = 1

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In()]) -> None:
        orch.submit(write, x, device=0)

    async with opened(program) as worker:
        assert isinstance(await failure(worker, program, ints()), ValueError)
        assert isinstance(await failure(worker, program, await worker.alloc_tensor((N,), I64)), ValueError)


@pytest.mark.parametrize("threads", [1, 2])
async def test_threads_of_blas(threads: int) -> None:
    @pa.kernel
    def ask(x: pa.InOutArray, value: int) -> None:
        import os

        x[...] = int(os.environ["OPENBLAS_NUM_THREADS"])

    program = on(0, ask)
    async with opened(program, backend=ProcessBackend(blas_threads=threads)) as worker:
        x = ints()
        await worker.run(program, x, 0)
    assert x.tolist() == [threads] * N


@pytest.mark.parametrize("threads", [0, -1, True, "1"])
def test_a_number_of_threads_that_is_none(threads: Any) -> None:
    with pytest.raises(ValueError, match="blas_threads"):
        ProcessBackend(blas_threads=threads)


async def test_scalars_of_any_size() -> None:
    @pa.kernel
    def show(x: pa.InOutArray, big: int, ratio: float, flag: bool) -> None:
        x[0], x[1], x[2] = big >> 70, ratio == float("inf"), flag

    @pa.program()
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut()], big: int, ratio: float, flag: bool) -> None:
        orch.submit(show, x, big, ratio, flag, device=0)

    async with opened(program) as worker:
        x = ints()
        await worker.run(program, x, 5 << 70, float("inf"), True)
    assert x[:3].tolist() == [5, 1, 1]


async def test_more_plans_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("process_ledger", "known_calls"):
        monkeypatch.setattr(f"pypto_actors.backends.{module}.MOST", 3)
    program = affine_on(0)
    async with opened(program) as worker:
        tensors = [await worker.alloc_tensor((n,), I64, init=ints(1, n)) for n in range(1, 9)]
        for _ in range(3):
            await asyncio.gather(*[worker.submit_nowait(program, tensor, 2, 1) for tensor in tensors])
        for tensor in tensors:
            assert set((await worker.read(tensor)).tolist()) == {15}


def test_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the constructor, before anything starts."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match=r"pypto_actors\[process\]"):
        opened(on(0, add))


async def test_a_kernel_that_cannot_cross_is_named() -> None:
    lock = threading.Lock()

    @pa.kernel
    def locked(x: pa.InOutArray, value: int) -> None:
        with lock:
            x += value

    async with opened(on(0, locked)) as worker:
        with pytest.raises(pa.KernelError, match=r"kernel 'locked' .* could not be called on device 0: TypeError") as caught:
            await worker.run(worker.registry[0], ints(), 1)
        assert (caught.value.kernel, caught.value.device) == ("locked", 0)
