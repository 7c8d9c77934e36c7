"""A program is recorded once for each combination; what return style and symbolic dimensions make of the arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.programs.recorded import arrays, run, scale, weigh


class Counted:
    """A worker with a program that counts how often it is recorded."""

    def __init__(self) -> None:
        self.count = 0

        @pa.program
        def program(
            orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(("n",))], w: float, s: Annotated[float, pa.Static()]
        ) -> None:
            self.count += 1
            orch.submit(weigh, x, s, True)
            orch.submit(weigh, x, w, True)

        self.program = program
        self.worker = pa.DistributedWorker(program, backend="inline", config=pa.DistributedConfig(device_ids=[0, 1]))

    async def recorded(self, x: Any, w: Any = 1.0, s: Any = 1.0, **options: Any) -> int:
        """How many recordings this call made."""
        before = self.count
        await self.worker.run(self.program, x, w, s, **options)
        return self.count - before


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    one = Counted()
    async with one.worker:
        yield one


async def test_recorded_once_for_each_combination(counted: Counted) -> None:
    recorded, worker = counted.recorded, counted.worker
    x = np.ones(4)
    assert await recorded(x) == 1
    assert [await recorded(x), await recorded(np.zeros(4)), await recorded(np.zeros(8)[::2])] == [0, 0, 0]
    assert [await recorded(x, w=2.0), await recorded(x, w=3), await recorded(x, w=np.float32(2))] == [0, 0, 0]  # not static
    assert [await recorded(x, device=1), await recorded(x, priority=5)] == [0, 0]
    assert [await recorded(np.ones(5)), await recorded(np.ones(4, np.float32))] == [1, 1]
    assert [await recorded(x, s=2.0), await recorded(x, s=2.0), await recorded(x, s=2), await recorded(x, s=np.float64(2))] == [1, 0, 0, 0]
    first, second = await worker.alloc_tensor(4, float), await worker.alloc_tensor(4, float, device=1)
    assert [await recorded(first), await recorded(second), await recorded(first), await recorded(second)] == [1, 1, 0, 0]
    assert counted.count == 6


async def test_values_that_are_equal_and_not_the_same(counted: Counted) -> None:
    """0.0 and -0.0 are two static values; every nan is one."""
    for value, sign in ((0.0, 1), (-0.0, -1), (0.0, 1)):
        x = np.ones(1)
        await counted.worker.run(counted.program, x, 1.0, value)
        assert np.copysign(1, x[0]) == sign
    assert counted.count == 2
    assert [await counted.recorded(np.ones(1), s=float("nan")) for _ in range(2)] == [1, 0]


async def test_the_least_recently_used_of_256_recordings_leaves(counted: Counted) -> None:
    x = np.ones(1)
    for value in range(256):
        assert await counted.recorded(x, s=value) == 1
    assert [await counted.recorded(x, s=value) for value in range(256)] == [0] * 256
    assert await counted.recorded(x, s=0) == 0  # used again, so 1 is the oldest
    assert await counted.recorded(x, s=256) == 1
    assert [await counted.recorded(x, s=value) for value in (0, 2, 255, 256)] == [0, 0, 0, 0]
    assert await counted.recorded(x, s=1) == 1
    assert await counted.recorded(x, s=3) == 1  # which was the oldest then


async def test_a_recording_that_failed_is_not_kept() -> None:
    broken = [True]

    def body(orch: pa.Orchestrator, x: pa.TensorRef, out: pa.TensorRef) -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("not yet")
        orch.submit(scale, x, out)

    program = arrays(body)
    out = np.zeros(2)
    async with pa.DistributedWorker(program, backend="inline") as worker:
        with pytest.raises(pa.ProgramError, match="RuntimeError: not yet") as caught:
            await worker.run(program, np.ones(2), out)
        assert isinstance(caught.value.__cause__, RuntimeError)
        await worker.run(program, np.ones(2), out)
    assert out.tolist() == [2, 2]


async def test_each_worker_records_for_itself() -> None:
    counted = Counted()
    for devices in ([0], [0, 1]):
        async with pa.DistributedWorker(counted.program, backend="inline", config=pa.DistributedConfig(device_ids=devices)) as worker:
            for _ in range(2):
                await worker.run(counted.program, np.ones(4), 1.0, 1.0)
    assert counted.count == 2


@pa.program
def outer(
    orch: pa.Orchestrator,
    first: Annotated[pa.TensorRef, pa.Out(("n", 2), np.float32)],
    a: Annotated[pa.TensorRef, pa.In(("n", "m"), np.float32)],
    rest: Annotated[pa.TensorRef, pa.Out(("m",), np.int64)],
    b: Annotated[pa.TensorRef, pa.InOut(("m",))],
) -> None:
    orch.submit(fill, first, 1)
    orch.submit(fill, rest, 2)


@pa.kernel
def fill(out: pa.OutArray, value: int) -> None:
    out[0] = value


async def test_return_style_allocates_every_out() -> None:
    a, b = np.zeros((3, 4), np.float32), np.zeros(4)
    async with pa.DistributedWorker(outer, backend="inline") as worker:
        result = await worker.run(outer, a, b)
        again = await worker.run(outer, a, b)
        in_place = await worker.run(outer, np.zeros((3, 2), np.float32), a, np.zeros(4, np.int64), b)
    assert [(out.shape, out.dtype) for out in result.outputs] == [((3, 2), np.float32), ((4,), np.int64)]
    assert [out.tolist() for out in result.outputs] == [[[1, 1], [0, 0], [0, 0]], [2, 0, 0, 0]]
    assert not np.shares_memory(result.outputs[0], again.outputs[0])
    assert in_place.outputs == ()


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        (
            [(3, 4), (5,)],
            pa.ArgumentValueError,
            r"parameter 'b' of program 'outer' .* \(m,\), got \(5,\): dimension 'm' is 4 by parameter 'a'",
        ),
        ([(3,), (4,)], pa.ArgumentValueError, "parameter 'a' of program 'outer'"),
        ([(4, 2), (3, 4), (4,), (4,)], pa.ArgumentValueError, "parameter 'a' .* dimension 'n' is 4 by parameter 'first', not 3"),
        ([(3, 9), (3, 4), (4,), (4,)], pa.ArgumentValueError, "parameter 'first' .* dimension 1 is 9, not 2"),
        ([(3, 2), (3, 4), (4,)], pa.ArgumentTypeError, r"takes 4 arguments .* or without its Out parameters 2 \(a, b\), got 3"),
        ([], pa.ArgumentTypeError, "takes 4 arguments .* got 0"),
    ],
)
async def test_symbolic_dimensions_are_equal_everywhere(args: list[tuple[int, ...]], error: type[Exception], match: str) -> None:
    dtypes = [np.float32, np.float32, np.int64, np.float64] if len(args) > 2 else [np.float32, np.float64]
    with pytest.raises(error, match=match):
        await run(outer, *(np.zeros(shape, dtype) for shape, dtype in zip(args, dtypes, strict=False)))


async def test_symbolic_dimensions_are_bound_anew_by_each_dispatch() -> None:
    async with pa.DistributedWorker(outer, backend="inline") as worker:
        for n, m in ((3, 4), (1, 1), (5, 4), (3, 4)):
            result = await worker.run(outer, np.zeros((n, m), np.float32), np.zeros(m))
            assert [out.shape for out in result.outputs] == [(n, 2), (m,)]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (pa.Out(), "cannot be allocated without shape and dtype; pass it"),
        (pa.Out((3,)), "cannot be allocated without shape and dtype; pass it"),
        (pa.Out(("free",), np.float32), "no other argument says how large 'free' is; pass it"),
    ],
)
async def test_an_out_that_cannot_be_allocated(spec: pa.Out, match: str) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: pa.InArray, out: Annotated[pa.TensorRef, spec]) -> None:
        orch.submit(fill, out, 1)

    with pytest.raises(pa.ArgumentTypeError, match=match):
        await run(program, np.ones(3))
    out = np.zeros(3, np.float32)
    await run(program, np.ones(3), out)
    assert out[0] == 1
