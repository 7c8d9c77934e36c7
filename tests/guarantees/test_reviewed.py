"""What a review against the contract found, clause by clause.

Breaks that this catches: keys of a policy that crash the coordinator; a scalar whose attribute is taken; calls that look at their
arguments too late; a callback in a thread that cannot submit, or that waits for itself; windows that change hands or form; dispatches
that are sent to a device which is lost; a part that nobody delivers.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
import pypto_actors.testing as testing

LIMIT = 10.0
Vec = Annotated[pa.TensorRef, pa.InOut((4,), np.int64)]
BOTH = pytest.mark.parametrize("backend", ["inline", "thread"])


@pa.kernel
def increment(x: pa.InOutArray) -> None:
    x += 1


@pa.program
def anywhere(orch: pa.Orchestrator, x: Vec) -> None:
    orch.submit(increment, x)


def ones() -> np.ndarray[Any, Any]:
    return np.ones(4, np.int64)


def opened(program: pa.Program, backend: str = "inline", devices: int = 1, **options: Any) -> pa.DistributedWorker:
    return pa.DistributedWorker(program, config=pa.DistributedConfig(range(devices)), backend=backend, **options)


@pytest.mark.parametrize("kind", ["mixed", "array"])
async def test_a_policy_whose_keys_cannot_be_compared(kind: str) -> None:
    """Clause: policy. It fails those dispatches, with its name, and nobody else."""

    class Odd:
        def key(self, item: pa.Item) -> Any:
            return (item.deadline, item.arrival) if kind == "mixed" else np.array([1, 2])

        def choose(self, view: pa.View) -> int:
            return 0

    async with opened(anywhere, policy=Odd()) as worker:
        await worker.pause("keep")
        late = asyncio.get_running_loop().time() + 1000
        handles = [worker.submit_nowait(anywhere, ones(), deadline=late if number % 2 else None) for number in range(6)]
        await worker.resume()
        outcomes = await asyncio.wait_for(asyncio.gather(*handles, return_exceptions=True), LIMIT)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert failed
        assert len(failed) < 6
        assert not any(isinstance(error, pa.InternalError) for error in failed), failed
        assert all("Odd" in str(error) and "key" in str(error) for error in failed), failed
        await worker.run(anywhere, ones())


@pytest.mark.parametrize(
    "use", [lambda n: n.numerator, lambda n: n.bit_length(), lambda n: n @ 1, lambda n: np.asarray(n), lambda n: [0, 1][n]]
)
async def test_a_scalar_whose_value_is_used_says_declare_it_static(use: Callable[[Any], Any]) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, n: int) -> None:
        use(n)

    async with opened(program) as worker:
        with pytest.raises(pa.ProgramError, match="declare it Static"):
            await worker.run(program, ones(), 1)


async def test_a_scalar_as_the_root_of_a_broadcast() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, n: int) -> None:
        orch.broadcast(orch.window("w", (2,), "i8"), n)

    async with opened(program, devices=2) as worker:
        with pytest.raises(pa.ProgramError, match="declare it Static"):
            await worker.run(program, 1)


async def test_faults_of_calls_are_found_before_anything_happens() -> None:
    async with opened(anywhere, devices=2) as worker:
        for device, kind in ((2, pa.ArgumentValueError), (-1, pa.ArgumentValueError), ("0", pa.ArgumentTypeError)):
            with pytest.raises(kind):
                worker.committed_device_memory(device)  # type: ignore[arg-type]
        with pytest.raises(pa.ArgumentTypeError, match="devices takes a sequence of ranks"):
            await worker.alloc_stacked_tensor(ones(), devices=1)  # type: ignore[arg-type]
        for timeout in ("x", -1, float("nan"), True):
            with pytest.raises(ValueError, match="timeout is a number of seconds"):
                await worker.aclose(timeout=timeout)  # type: ignore[arg-type]
        await worker.run(anywhere, ones())  # it is open


@BOTH
@pytest.mark.parametrize("bound", [False, True])
async def test_a_plain_callback_may_submit(backend: str, bound: bool) -> None:
    handles: list[pa.DistributedRunHandle] = []
    x = ones()

    def callback(y: Any) -> int:
        handles.append(call(x))
        return 7

    @pa.program
    def outer(orch: pa.Orchestrator, y: Vec) -> None:
        orch.submit_sub(callback, y)

    worker = pa.DistributedWorker([outer, anywhere], backend=backend)
    async with worker:
        prepared = worker.bind(anywhere)

        def call(x: Any) -> pa.DistributedRunHandle:
            return prepared.submit_nowait(x) if bound else worker.submit_nowait(anywhere, x)

        result = await asyncio.wait_for(worker.run(outer, ones()), LIMIT)
        assert result.returned == (7,)
        await asyncio.wait_for(handles[0], LIMIT)
        assert x.tolist() == [2] * 4


async def test_a_callback_that_leaves_the_worker() -> None:
    async def callback(x: Any) -> None:
        await worker.__aexit__(None, None, None)

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(callback, x)

    worker = opened(program)
    async with worker:
        with pytest.raises(pa.KernelError) as caught:
            await asyncio.wait_for(worker.run(program, ones()), LIMIT)
        assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_barrier_of_nobody() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(increment, x, device=0)
        orch.barrier([])

    async with opened(program, devices=2) as worker:
        x = ones()
        await worker.run(program, x)
        assert x.tolist() == [2] * 4


@pa.kernel
def count(window: pa.InOutArray, x: pa.OutArray) -> None:
    window += 1
    x[...] = window


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Collections inside look at what is made inside only."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def test_a_window_is_its_programs_own_although_that_has_gone() -> None:
    with frozen_heap():
        async with opened(anywhere, persistent=True, reset_persistent_windows=False) as worker:
            for _ in range(12):

                @pa.program
                def program(orch: pa.Orchestrator, x: Vec) -> None:
                    orch.submit(count, orch.window("w", (4,), np.int64)[0], x)

                handle = await worker.register(program)
                x = ones()
                await handle(x) if callable(handle) else await worker.run(program, x)
                await handle.unregister()
                del program, handle
                gc.collect()
                assert x.tolist() == [1] * 4


async def test_a_persistent_window_keeps_its_form_over_recordings() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, wide: Annotated[bool, pa.Static()]) -> None:
        orch.submit(count, orch.window("w", (4,), np.int32 if wide else np.int64)[0], x)

    async with opened(program, persistent=True) as worker:
        await worker.run(program, ones(), False)
        with pytest.raises(pa.ProgramError, match="since another recording of program"):
            await worker.run(program, ones(), True)
    async with opened(program) as worker:
        await worker.run(program, ones(), False)
        await worker.run(program, ones(), True)


@BOTH
async def test_nothing_is_placed_on_a_device_that_is_lost(backend: str) -> None:
    async with opened(anywhere, backend, devices=2, max_restarts=0) as worker:
        testing.kill_device(worker, 0)
        x = ones()
        for _ in range(3):
            result = await asyncio.wait_for(worker.run(anywhere, x), LIMIT)
            assert result.devices == (1,)
        with pytest.raises(pa.DeviceFailedError):
            await worker.run(anywhere, x, device=0)


@BOTH
async def test_a_part_that_the_end_of_another_sets_free_is_delivered(backend: str) -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        for device in (0, 1, 0, 1):
            orch.submit(increment, x, device=device)

    async with opened(program, backend, devices=2) as worker:
        x = ones()
        for _ in range(20):
            await asyncio.wait_for(worker.run(program, x), LIMIT)
        assert x.tolist() == [81] * 4


async def test_callbacks_that_are_no_mapping() -> None:
    with pytest.raises(TypeError, match="callbacks must be a mapping of names to functions"):
        pa.DistributedWorker(anywhere, callbacks=[print])  # type: ignore[arg-type]


async def test_a_known_program_with_another_configuration() -> None:
    async with opened(anywhere) as worker:
        with pytest.raises(pa.ProgramMismatchError):
            await worker.register(anywhere.compile(pa.DistributedConfig([0, 1])))


EVERY = pytest.mark.parametrize("backend", ["inline", "thread", "process"])


@EVERY
async def test_an_array_that_becomes_read_only_while_it_is_written(backend: str) -> None:
    """Clause: one outcome. Where the results cannot come back the dispatch fails, and the worker goes on."""
    async with opened(anywhere, backend) as worker:
        x = ones()
        handle = worker.submit_nowait(anywhere, x)
        x.flags.writeable = False
        with pytest.raises(pa.KernelError, match="read-only"):
            await handle.wait(LIMIT)
        y = ones()
        await asyncio.wait_for(worker.run(anywhere, y), LIMIT)
        assert y.tolist() == [2] * 4


@EVERY
async def test_our_own_errors_raised_by_users_are_errors_of_the_kernel_or_callback(backend: str) -> None:
    """Clause: a kernel or callback that raises is a `KernelError`, whatever it raises."""

    @pa.kernel
    def bad(x: pa.InOutArray) -> None:
        error = pa.ArgumentValueError("mine")
        error.add_note("a note")
        raise error

    def callback(x: Any) -> None:
        raise pa.QueueFullError("mine", queued=1, limit=1)

    @pa.program
    def in_kernel(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(bad, x)

    @pa.program
    def in_callback(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit_sub(callback, x)

    async with pa.DistributedWorker([in_kernel, in_callback], backend=backend) as worker:
        for program, kind in ((in_kernel, pa.ArgumentValueError), (in_callback, pa.QueueFullError)):
            with pytest.raises(pa.KernelError) as caught:
                await asyncio.wait_for(worker.run(program, ones()), LIMIT)
            assert isinstance(caught.value.__cause__, kind)


@EVERY
async def test_an_int_that_a_kernel_takes_as_a_float(backend: str) -> None:
    @pa.kernel
    def digits(x: pa.OutArray, value: float) -> None:
        x[...] = len(value.hex())

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, value: int) -> None:
        orch.submit(digits, x, value)

    async with opened(program, backend) as worker:
        x = ones()
        await asyncio.wait_for(worker.run(program, x, 3), LIMIT)
        assert x.tolist() == [len((3.0).hex())] * 4


async def test_a_stale_shard_is_named() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, w: Annotated[pa.TensorRef, pa.In((2, 4), np.int64)]) -> None:
        orch.submit(increment, x)

    async with opened(program, devices=2) as worker:
        stacked = await worker.alloc_stacked_tensor(np.zeros((2, 4), np.int64))
        await worker.free_tensor(stacked)
        with pytest.raises(pa.StaleTensorError, match=r"parameter 'w' \(shard 0\) of program 'program'"):
            await worker.run(program, ones(), stacked)


async def test_a_tensor_that_is_not_where_a_collective_needs_it() -> None:
    @pa.program
    def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((2, 4), np.int64)]) -> None:
        orch.allreduce([x[0], x[1]])

    async with opened(program, devices=2) as worker:
        tensor = await worker.alloc_tensor((2, 4), np.int64)
        with pytest.raises(pa.PlacementError, match="refs of different devices"):
            await worker.run(program, tensor)
        await worker.run(program, await worker.alloc_stacked_tensor(np.zeros((2, 4), np.int64)))


def test_a_seeded_loop_with_threads_calls_nothing_in_vain() -> None:
    said: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        async with opened(anywhere, "thread") as worker:
            await asyncio.gather(*[worker.run(anywhere, ones()) for _ in range(50)])

    for seed in range(5):
        with asyncio.Runner(loop_factory=lambda seed=seed: testing.SeededLoop(seed)) as runner:  # type: ignore[misc]
            runner.run(main())
    assert said == []


ERRORS: dict[str, pa.PyptoActorsError] = {
    "out of memory": pa.DeviceOutOfMemoryError("text", asked=3, free=2, capacity=2),
    "queue full": pa.QueueFullError("text", queued=1, limit=1),
    "kernel": pa.KernelError("text", program="p", kernel="k", device=1),
    "plain": pa.WorkerClosedError("text"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_cross_processes_whole(name: str) -> None:
    error = ERRORS[name]
    error.add_note("a note")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))


@pytest.mark.parametrize("call", ["run", "submit", "drain", "read"])
def test_calls_from_another_loop(call: str) -> None:
    """Clause: a worker belongs to the loop that entered it. Nothing is accepted."""
    first = asyncio.new_event_loop()
    try:
        worker = opened(anywhere)
        first.run_until_complete(worker.__aenter__())
        tensor = first.run_until_complete(worker.alloc_tensor(4, np.int64))
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "run": lambda: worker.run(anywhere, ones()),
            "submit": lambda: worker.submit(anywhere, ones()),
            "drain": worker.drain,
            "read": lambda: worker.read(tensor),
        }

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="a call from another loop than that which entered the worker"):
                await calls[call]()

        asyncio.run(elsewhere())
        assert worker.statistics().accepted == 0
        first.run_until_complete(worker.aclose())
    finally:
        first.close()


async def test_a_fixed_array_that_may_not_be_written_is_found_by_bind() -> None:
    array = ones()
    array.flags.writeable = False
    async with opened(anywhere) as worker:
        with pytest.raises(pa.ArgumentValueError, match=r"parameter 'x' .* is written, got a read-only array"):
            worker.bind(anywhere, x=array)


@pytest.mark.parametrize("call", ["key", "choose"])
async def test_a_policy_that_raises_what_is_no_exception(call: str) -> None:
    """A `CancelledError` too is its fault, and hangs nobody."""

    class Odd(pa.PhaseFair, frozen=True):
        def key(self, item: pa.Item, /) -> Any:
            if call == "key":
                raise asyncio.CancelledError
            return super().key(item)

        def choose(self, view: pa.View, /) -> int:
            raise asyncio.CancelledError

    def staged(stage: str) -> pa.Program:
        @pa.program(name=stage, stage=stage)
        def program(orch: pa.Orchestrator, x: Vec) -> None:
            orch.submit(increment, x)

        return program

    programs = [staged("prefill"), staged("decode")]
    async with asyncio.timeout(LIMIT), pa.DistributedWorker(programs, backend="inline", policy=Odd()) as worker:
        await worker.pause()
        handles = [worker.submit_nowait(program, ones()) for program in programs]
        await worker.resume()
        outcomes = await asyncio.gather(*handles, return_exceptions=True)
        assert isinstance(outcomes[0], pa.PyptoActorsError)
        assert isinstance(outcomes[0].__cause__, asyncio.CancelledError)
        assert call == "choose" or isinstance(outcomes[1], pa.PyptoActorsError)


async def test_small_things_that_are_asked_wrongly() -> None:
    worker = opened(anywhere, max_queued=np.int64(3), in_flight=np.int32(1), startup_timeout=np.float32(5))
    early: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: worker.free_tensor(None),  # type: ignore[arg-type]
        worker.drain,
        lambda: worker.__aexit__(None, None, None),
    ]
    for call in early:
        with pytest.raises(RuntimeError, match="the worker was not entered"):
            await call()
    async with worker:
        tensor = await worker.alloc_tensor(4, np.int64)
        handle = worker.submit_nowait(anywhere, tensor)
        for odd in ("x", float("nan"), True):
            with pytest.raises(pa.ArgumentTypeError, match="timeout is a number of seconds, or None"):
                await handle.wait(odd)  # type: ignore[arg-type]
        await handle.wait(np.float64(5))
        for rank in ("0", None, 1.0, True):
            with pytest.raises(pa.ArgumentTypeError, match="device must be a rank"):
                testing.kill_device(worker, rank)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"is a handle, and no array; read it first: await worker.read"):
            np.asarray(tensor)
        for odd in (0.0, False):
            for submit in (worker.submit, worker.run):
                with pytest.raises(pa.ArgumentTypeError, match="priority must be an int"):
                    await submit(anywhere, tensor, priority=odd)  # type: ignore[arg-type]
            with pytest.raises(pa.ArgumentTypeError, match="priority must be an int"):
                worker.submit_nowait(anywhere, tensor, priority=odd)  # type: ignore[arg-type]
    with pytest.raises(pa.ArgumentTypeError, match="what is freed must be a DeviceTensor"):
        await worker.free_tensor(None)  # type: ignore[arg-type]
    await worker.free_tensor(tensor)
