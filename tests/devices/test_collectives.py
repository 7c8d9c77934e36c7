"""Every collective against a numpy model: dtypes, operations, shapes, one to five devices, both backends, the same bits each time.

Breaks that this catches: another order of the reduction on a backend, a share that is left out at odd sizes, a pair that is exchanged
twice, a member that reads what another has written already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from tests.devices.support import I64, Array, add, both, empty, faulty, on_devices, program_of, worker

DTYPES = ["int8", "uint16", "int64", "float16", "float32", "float64", "complex64", "bool"]
OPERATIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum, "prod": np.multiply}
SHAPES = [(1,), (7,), (3, 5), (2, 1, 3), (0, 4), (), (100_003,)]
Model = Callable[[Array], Array]


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0 if dtype.startswith("u") else -50, 50, shape).astype(dtype)
    return (rng.standard_normal(shape) * 3).astype(dtype)


async def collect(
    backend: str, count: int, x: Array, steps: Callable[[pa.Orchestrator, list[pa.TensorRef]], object], shift: int = 0
) -> Array:
    program = on_devices([(index + shift) % count for index in range(count)], steps)
    got = x.copy()
    async with worker(program, devices=count, backend=backend) as w:
        await w.run(program, got)
        assert empty(w)
    return got


def reduced(x: Array, op: str) -> Array:
    """By rank from 0 upwards, as the package promises."""
    total: Array = x[0].copy()
    for other in x[1:]:
        with np.errstate(all="ignore"):
            total = np.asarray(OPERATIONS[op](total, other))
    return total


@both
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
async def test_allreduce(backend: str, count: int, op: str, dtype: str) -> None:
    x = values((count, 7, 3), dtype)
    got = await collect(backend, count, x, lambda orch, refs: orch.allreduce(refs, op))
    np.testing.assert_array_equal(got, np.broadcast_to(reduced(x, op), x.shape))


@both
@pytest.mark.parametrize("shape", SHAPES)
async def test_allreduce_of_any_shape(backend: str, shape: tuple[int, ...]) -> None:
    x = values((4, *shape), "float32")
    got = await collect(backend, 4, x, lambda orch, refs: orch.allreduce(refs))
    np.testing.assert_array_equal(got, np.broadcast_to(reduced(x, "sum"), x.shape))


async def test_floating_point_results_have_the_same_bits_in_each_run_and_on_each_backend() -> None:
    x = values((5, 100_003), "float32")
    x[:, ::7] *= 1e6
    first, *others = [await collect(backend, 5, x, lambda orch, refs: orch.allreduce(refs)) for backend in ("inline", *["thread"] * 4)]
    for other in others:
        assert first.tobytes() == other.tobytes()
    assert first[0].tobytes() == first[4].tobytes() == reduced(x, "sum").tobytes()


async def test_the_order_of_the_reduction_is_that_of_the_refs() -> None:
    x = np.array([[1e8], [1.0], [-1e8]], np.float32)
    got = await collect("inline", 3, x, lambda orch, refs: orch.allreduce([refs[0], refs[2], refs[1]]))
    assert got[0, 0] == 1.0
    got = await collect("inline", 3, x, lambda orch, refs: orch.allreduce(refs))
    assert got[0, 0] == 0.0


@both
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
async def test_reduce_scatter(backend: str, count: int, op: str) -> None:
    x = values((count, 2 * count, 3), "int64")

    def steps(orch: pa.Orchestrator, refs: list[pa.TensorRef]) -> None:
        for index, chunk in enumerate(orch.reduce_scatter(refs, op)):
            assert chunk.shape == (2, 3)
            orch.copy(refs[index][2 * index : 2 * index + 2], chunk)

    got = await collect(backend, count, x, steps, shift=1)
    for index in range(count):
        wanted = x[index].copy()
        wanted[2 * index : 2 * index + 2] = reduced(x, op)[2 * index : 2 * index + 2]
        np.testing.assert_array_equal(got[index], wanted)


@both
@pytest.mark.parametrize("dtype", ["bool", "int16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
async def test_broadcast(backend: str, count: int, dtype: str) -> None:
    x = values((count, 3, 5), dtype)
    for root in range(count):
        got = await collect(backend, count, x, lambda orch, refs, root=root: orch.broadcast(refs, root), shift=1)  # type: ignore[misc]
        np.testing.assert_array_equal(got, np.broadcast_to(x[root], x.shape))


@both
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
async def test_allgather(backend: str, count: int, chunk: int) -> None:
    x = values((count, count * chunk, 2), "float64")
    got = await collect(backend, count, x, lambda orch, refs: orch.allgather(refs), shift=1)
    wanted = np.concatenate([x[index, index * chunk : (index + 1) * chunk] for index in range(count)])
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, x.shape))


@both
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
async def test_all_to_all(backend: str, count: int, chunk: int) -> None:
    x = values((count, count * chunk, 2), "int32")
    got = await collect(backend, count, x, lambda orch, refs: orch.all_to_all(refs), shift=1)
    wanted = x.reshape(count, count, chunk, 2).swapaxes(0, 1).reshape(x.shape)
    np.testing.assert_array_equal(got, wanted)


@both
async def test_collectives_follow_each_other_and_steps(backend: str) -> None:
    """Each takes what the one before has left, on all devices."""

    def steps(orch: pa.Orchestrator, refs: list[pa.TensorRef]) -> None:
        orch.allreduce(refs)
        for rank, ref in enumerate(refs):
            orch.submit(add, ref, rank, device=rank)
        orch.all_to_all(refs)
        orch.allreduce(refs, "max")
        orch.broadcast(refs, 2)

    x = values((4, 8), "int64")
    got = await collect(backend, 4, x, steps)
    y = np.broadcast_to(x.sum(0), x.shape) + np.arange(4)[:, None]
    y = y.reshape(4, 4, 2).swapaxes(0, 1).reshape(4, 8).max(0)
    np.testing.assert_array_equal(got, np.broadcast_to(y, x.shape))


@both
async def test_collectives_over_stacked_tensors_and_over_slices(backend: str) -> None:
    def body(orch: pa.Orchestrator, x: Any) -> None:
        orch.allreduce([x[rank][1:3] for rank in range(3)])
        orch.allreduce([x[2][3:], x[0][3:]], "prod")

    program = program_of(body)
    start = np.arange(12, dtype=I64).reshape(3, 4)
    async with worker(program, backend=backend) as w:
        x = await w.alloc_stacked_tensor(start)
        await w.run(program, x)
        wanted = start.copy()
        wanted[:, 1:3] = start[:, 1:3].sum(0)
        wanted[[0, 2], 3] = 3 * 11
        np.testing.assert_array_equal(await w.read(x), wanted)


NAMES = ["allreduce", "reduce_scatter", "broadcast", "allgather", "all_to_all"]


@pytest.mark.parametrize("name", NAMES)
async def test_faults_of_every_collective(name: str) -> None:
    def call(orch: pa.Orchestrator, refs: Any) -> None:
        getattr(orch, name)(refs)

    await faulty(lambda orch, x: call(orch, []), f"{name} takes one or more refs, got none")
    await faulty(lambda orch, x: call(orch, [x, 3]), f"{name} takes tensor refs")
    await faulty(lambda orch, x: call(orch, [orch.empty((3,), "i8")]), "lives on no certain device")
    await faulty(lambda orch, x: call(orch, [orch.empty((3,), "i8", device=1) for _ in range(2)]), "different devices, got devices [1, 1]")
    await faulty(
        lambda orch, x: call(orch, [orch.empty((6,), "i8", device=0), orch.empty((6, 1), "i8", device=1)]), "refs of one shape and dtype"
    )
    await faulty(lambda orch, x: call(orch, [orch.empty((6,), "i8", device=0), orch.empty((6,), "f8", device=1)]), "of one shape and dtype")


@pytest.mark.parametrize("name", ["reduce_scatter", "allgather", "all_to_all"])
@pytest.mark.parametrize("shape", [(7,), (), (2, 3)])
async def test_a_leading_dimension_that_does_not_divide(name: str, shape: tuple[int, ...]) -> None:
    def body(orch: pa.Orchestrator, x: Any) -> None:
        getattr(orch, name)([orch.empty(shape, "f4", device=rank) for rank in range(3)])

    await faulty(body, f"{name} cuts the leading dimension into 3 chunks, got the shape {shape}")


@pytest.mark.parametrize("name", ["allreduce", "reduce_scatter"])
async def test_an_unknown_operation(name: str) -> None:
    def body(orch: pa.Orchestrator, x: Any) -> None:
        getattr(orch, name)([orch.empty((3,), "f4", device=rank) for rank in range(3)], "mean")

    await faulty(body, f"{name} knows the operations 'sum', 'max', 'min', 'prod', got 'mean'")


@pytest.mark.parametrize("root", [3, -1, True, 1.0, "0"])
async def test_a_root_that_is_none(root: Any) -> None:
    await faulty(
        lambda orch, x: orch.broadcast(orch.window("w", (2,), "f4"), root),
        f"the root of broadcast is the index of a ref, 0 … 2, got {root!r}",
    )


@pytest.mark.parametrize("name", NAMES)
async def test_an_in_parameter_is_not_written(name: str) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.In((3, 3), I64)]) -> None:
        getattr(orch, name)(list(x))

    async with worker(program, backend="inline") as w:
        x = await w.alloc_stacked_tensor(np.zeros((3, 3), I64))
        if name == "reduce_scatter":
            await w.run(program, x)  # it only reads its refs
        else:
            with pytest.raises(pa.ProgramError, match="is an In parameter of the program; declare it Out or InOut"):
                await w.run(program, x)


@both
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
async def test_collectives_over_slices_of_a_host_array(backend: str, layout: str) -> None:
    """Element i is the rank-i member, so that host memory needs no device of its own."""

    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, 6), I64)]) -> None:
        orch.allreduce([x[rank] for rank in range(3)])
        orch.allgather([x[rank] for rank in range(3)])
        orch.all_to_all([x[rank] for rank in range(3)])
        orch.broadcast([x[rank] for rank in range(3)], root=1)

    base = np.zeros((6, 12), I64)
    x = {"contiguous": np.zeros((3, 6), I64), "transposed": base[:, :3].T, "strided": base[::2, ::2]}[layout]
    x[...] = np.arange(18).reshape(3, 6)
    wanted = np.tile(np.arange(18).reshape(3, 6).sum(0), (3, 1))
    row = np.concatenate([wanted[other][2:4] for other in range(3)])  # what all_to_all leaves on rank 1
    async with worker(program, devices=3, backend=backend) as w:
        await w.run(program, x)
    np.testing.assert_array_equal(x, np.tile(row, (3, 1)))


async def test_more_members_than_devices() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((3, 6), I64)]) -> None:
        orch.allreduce(list(x))

    async with worker(program, devices=2, backend="inline") as w:
        with pytest.raises(pa.ProgramError, match="has 3 members, one a device, and there are 2 devices"):
            await w.run(program, np.zeros((3, 6), I64))
