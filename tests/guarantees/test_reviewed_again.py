"""What a further review against the contract found, clause by clause. Each test failed before its mend.

Breaks that this catches: the text of an error or a policy that is made in the coordinator and raises; memory of a device that leaves a
callback inside some other container; a free that overtakes who touches no byte; an allocation that a death leaves half done; handles
that keep what they came after; constants of callbacks that have no hash; subclasses of arrays that reach kernels; numbers no float holds.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import gc
import types
import weakref
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import testing

LIMIT = 5.0  # seconds after which what hangs has failed
ALL = pytest.mark.parametrize("backend", ["inline", "thread", "process"])
Vec = Annotated[pa.TensorRef, pa.InOut(("n",), np.int64)]


class Mute(Exception):
    """As a class with a fault of its own."""

    def __str__(self) -> str:
        raise IndexError("tuple index out of range")

    def __repr__(self) -> str:
        raise IndexError("tuple index out of range")


class Odd(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]

    def __bool__(self) -> bool:
        raise ValueError("neither")


@pa.kernel
def raise_or_add(x: pa.InOutArray, value: int) -> None:
    if value == -1:
        raise Mute("a")
    if value == -2:
        raise Odd("b")
    x += value


@pa.program
def on_one(orch: pa.Orchestrator, x: Vec, value: int) -> None:
    orch.submit(raise_or_add, x, value)


@pa.program
def on_two(orch: pa.Orchestrator, x: Vec, y: Vec, value: int) -> None:
    orch.submit_group(raise_or_add, [(x, value), (y, value)], devices=[0, 1])


def opened(*programs: pa.Program, backend: str = "inline", devices: int = 1, **options: Any) -> pa.DistributedWorker:
    memory = options.pop("memory_bytes", None)
    more = {} if memory is None else {"memory_bytes": memory}
    return pa.DistributedWorker(programs, config=pa.DistributedConfig(range(devices), **more), backend=backend, **options)


def ones(count: int = 4) -> np.ndarray[Any, Any]:
    return np.ones(count, np.int64)


@ALL
@pytest.mark.parametrize("value", [-1, -2])
async def test_an_error_whose_text_cannot_be_made_fails_its_own_dispatch(backend: str, value: int) -> None:
    async with opened(on_one, on_two, backend=backend, devices=2) as worker:
        bad, gang, last = (
            worker.submit_nowait(on_one, ones(), value),
            worker.submit_nowait(on_two, ones(), ones(), value),
            worker.submit_nowait(on_one, ones(), 1),
        )
        outcomes = await asyncio.gather(bad, gang, last, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [pa.KernelError, pa.KernelError, pa.RunResult]
        x = ones()
        await worker.run(on_one, x, 1)
        assert x.tolist() == [2] * 4
        assert worker.statistics().running == 0


async def test_an_error_of_a_callback_and_of_a_policy_whose_text_cannot_be_made() -> None:
    def raising(x: pa.InOutArray) -> None:
        raise Mute

    @pa.program
    def calling(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(raising, x)

    class Unruly:
        def key(self, item: pa.Item) -> Any:
            if item.priority:
                raise Mute
            return item.arrival

        def choose(self, view: pa.View) -> int:
            return 0

        def __repr__(self) -> str:
            raise Mute

    async with opened(calling, on_one, policy=Unruly()) as worker:
        with pytest.raises(pa.KernelError, match="Mute"):
            await worker.run(calling, ones())
        with pytest.raises(pa.PyptoActorsError, match="Unruly"):
            await worker.run(on_one, ones(), 1, priority=1)
        await worker.run(on_one, ones(), 1)


class Loud(np.ndarray[Any, Any]):
    """An array whose operators are its own."""

    def __imul__(self, other: Any) -> Any:  # type: ignore[misc]
        raise AssertionError


class Bag(list[Any]):
    """A list of one's own."""


@dataclasses.dataclass
class Page:
    array: Any
    name: str = "page"


Pair = collections.namedtuple("Pair", "array")
CONTAINERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda a: (a,), lambda r: r[0]),
    "namedtuple": (Pair, lambda r: r.array),
    "list of one's own": (lambda a: Bag([a]), lambda r: r[0]),
    "OrderedDict": (lambda a: collections.OrderedDict(a=a), lambda r: r["a"]),
    "deque": (lambda a: collections.deque([a]), lambda r: r[0]),
    "dataclass": (Page, lambda r: r.array),
    "namespace": (lambda a: types.SimpleNamespace(a=a), lambda r: r.a),
    "dataclass in a list": (lambda a: [Page(a)], lambda r: r[0].array),
    "array of objects": (lambda a: np.array([a, None], object), lambda r: r[0]),
    "memoryview": (memoryview, np.asarray),
    "subclass": (lambda a: a.view(Loud), np.asarray),
}


@ALL
@pytest.mark.parametrize("kind", CONTAINERS)
async def test_memory_of_a_device_leaves_a_callback_as_a_copy_in_any_container(backend: str, kind: str) -> None:
    pack, unpack = CONTAINERS[kind]

    @pa.program
    def say(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(pack, x)

    async with opened(say, backend=backend) as worker:
        tensor = await worker.alloc_tensor((4,), np.int64, init=ones())
        (value,) = (await worker.run(say, tensor)).returned
        await worker.copy_to(tensor, np.full(4, 7))
        assert np.asarray(unpack(value)).tolist() == [1] * 4
        if unpack(value).flags.writeable:
            unpack(value).fill(9)
        assert (await worker.read(tensor)).tolist() == [7] * 4


async def test_what_holds_no_memory_of_a_device_comes_back_itself() -> None:
    page, queue = Page(ones()), collections.deque([1])

    @pa.program
    def say(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(lambda x: page, x)
        orch.submit_sub(lambda x: queue, x)

    async with opened(say) as worker:
        tensor = await worker.alloc_tensor((4,), np.int64)
        returned = (await worker.run(say, tensor)).returned
        assert returned[0] is page
        assert returned[1] is queue


async def test_what_cannot_be_copied_is_refused() -> None:
    class Stubborn(Bag):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not me")

    @pa.program
    def say(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(lambda x: Stubborn([x]), x)

    async with opened(say) as worker:
        tensor = await worker.alloc_tensor((4,), np.int64)
        with pytest.raises(pa.KernelError, match=r"Stubborn, holds memory of a device and cannot be copied .*not me.*return a copy"):
            await worker.run(say, tensor)


@ALL
@pytest.mark.parametrize("kind", ["tensor", "view", "step"])
async def test_a_free_waits_for_those_that_touch_no_byte(backend: str, kind: str) -> None:
    @pa.program
    def nothing_of_it(orch: pa.Orchestrator, x: Vec, value: int) -> None:
        orch.submit(raise_or_add, x[1:1], value)

    async with opened(on_one, nothing_of_it, backend=backend, in_flight=1) as worker:
        tensor = await worker.alloc_tensor((0 if kind == "tensor" else 4,), np.int64)
        program, arg = (nothing_of_it, tensor) if kind == "step" else (on_one, tensor[1:1] if kind == "view" else tensor)
        handles = [worker.submit_nowait(program, arg, 1) for _ in range(5)]
        await worker.free_tensor(tensor)
        assert [type(outcome) for outcome in await asyncio.gather(*handles, return_exceptions=True)] == [pa.RunResult] * 5
        assert worker.committed_device_memory(0) == 0


async def test_an_empty_view_stands_in_nobodys_way() -> None:
    gate, at = asyncio.Event(), asyncio.Event()

    async def wait(x: pa.InOutArray) -> None:
        at.set()
        await gate.wait()

    @pa.program
    def holding(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(wait, x)

    async with opened(on_one, holding) as worker:
        tensor = await worker.alloc_tensor((4,), np.int64)
        held = worker.submit_nowait(holding, tensor)
        await at.wait()
        try:
            async with asyncio.timeout(LIMIT):
                await worker.run(on_one, tensor[2:2], 1)
            assert not held.done()
        finally:
            gate.set()
        await held


@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_an_allocation_that_waits_when_a_device_dies_leaves_nothing_on_the_others(backend: str) -> None:
    gate, at = asyncio.Event(), asyncio.Event()

    async def wait(x: pa.InOutArray) -> None:
        at.set()
        await gate.wait()

    @pa.program
    def holding(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((2, 100), np.int64)]) -> None:
        orch.submit_sub(wait, x)

    async with opened(holding, backend=backend, devices=2, memory_bytes=1000) as worker:
        host = np.zeros((2, 100), np.int64)
        held = worker.submit_nowait(holding, host)
        await at.wait()
        task = asyncio.create_task(worker.alloc_stacked_tensor(host))
        while worker.committed_device_memory(0) == 0:  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0)
        testing.kill_device(worker, 1)
        with pytest.raises(pa.DeviceFailedError):
            await task
        assert worker._tensors.alive == {}
        gate.set()
        await held
        assert [worker.committed_device_memory(device) for device in (0, 1)] == [0, 0]
        await worker.alloc_tensor((100,), np.int64, device=0)


@ALL
async def test_a_tensor_whose_device_died_before_its_caller_woke_is_stale(backend: str) -> None:
    async with opened(on_one, backend=backend) as worker:
        task = asyncio.create_task(worker.alloc_tensor((4,), np.int64))
        while worker._system is None or not worker.committed_device_memory(0) or worker._system.coordinator.records:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not task.done()  # the allocation has ended, and its caller has not been told
        testing.kill_device(worker, 0)
        worker.statistics()
        with pytest.raises(pa.StaleTensorError):
            worker.bind(on_one, x=await task)


async def test_a_handle_keeps_nothing_of_those_that_it_came_after() -> None:
    async with opened(on_one) as worker:
        array = ones()
        gone = weakref.ref(array)
        first = worker.submit_nowait(on_one, array, 1)
        second = worker.submit_nowait(on_one, ones(), 1, after=[first])
        await second
        del array, first
        for _ in range(3):
            await worker.run(on_one, ones(), 1)
        gc.collect()
        assert gone() is None


async def test_a_constant_of_a_callback_may_have_no_hash() -> None:
    given = [[1, 2], {"a": 3}, slice(1, 2), np.arange(3)]

    @pa.program
    def say(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(lambda *args: args[1:], x, *given)

    async with opened(say) as worker:
        (returned,) = (await worker.run(say, ones())).returned
        assert [type(value) for value in returned] == [list, dict, slice, np.ndarray]
        assert returned[0] == [1, 2]


async def test_a_callback_may_return_a_handle() -> None:
    inner = ones()

    def begin(x: pa.InOutArray) -> Any:
        return worker.submit_nowait(on_one, inner, 1)

    @pa.program
    def say(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(begin, x)

    async with opened(say, on_one) as worker:
        (handle,) = (await worker.run(say, ones())).returned
        await handle
        assert inner.tolist() == [2] * 4


@pa.kernel
def multiply(a: pa.InArray, b: pa.InOutArray) -> None:
    assert type(a) is type(b) is np.ndarray
    b *= a


@ALL
@pytest.mark.parametrize("sliced", [False, True])
async def test_a_kernel_sees_no_subclass_of_an_array(backend: str, sliced: bool) -> None:
    @pa.program
    def program(
        orch: pa.Orchestrator,
        a: Annotated[pa.TensorRef, pa.In(("m", 2), np.float64)],
        b: Annotated[pa.TensorRef, pa.InOut(("m", 2), np.float64)],
    ) -> None:
        orch.submit(multiply, *((a[0], b[0]) if sliced else (a, b)))

    a, b = np.full((2, 2), 2.0).view(Loud), np.array([[1.0, 2.0], [3.0, 4.0]]).view(Loud)
    async with opened(program, backend=backend) as worker:
        await worker.run(program, a, b)
    assert b.tolist() == ([[2, 4], [3, 4]] if sliced else [[2, 4], [6, 8]])


async def test_numbers_that_no_float_holds_and_dtypes_that_are_arrays_are_told() -> None:
    async with opened(on_one) as worker:
        with pytest.raises(pa.ArgumentValueError, match="deadline is too large"):
            worker.submit_nowait(on_one, ones(), 1, deadline=10**400)
        handle = worker.submit_nowait(on_one, ones(), 1)
        with pytest.raises(pa.ArgumentValueError, match="timeout is too large"):
            await handle.wait(10**400)
        await handle
        with pytest.raises(pa.ArgumentValueError, match=r"give int32, and its dimensions \(2,\)"):
            await worker.alloc_tensor(3, np.dtype((np.int32, (2,))))
