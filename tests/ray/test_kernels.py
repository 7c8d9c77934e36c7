"""Kernels cross by value, whatever they are made of; what they raise and print comes back."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.backends import RayBackend
from pypto_actors.backends.wire import KernelErrorStandIn
from tests.process import support
from tests.process.support import N, add, affine_on, ints, on
from tests.process.test_kernels import LockedError, OwnError, PickyError, failing, with_helpers
from tests.ray.support import opened, shares_ray

pytestmark = shares_ray
I64 = np.int64


async def failure(worker: pa.DistributedWorker, program: pa.Program, *args: Any) -> BaseException:
    with pytest.raises(pa.KernelError) as caught:
        await worker.run(program, *args)
    assert caught.value.__cause__ is not None
    assert caught.value.kernel == "failing"
    assert caught.value.device == 0
    return caught.value.__cause__


async def test_functions_errors_and_state() -> None:
    """Of test files, closures and late programs; a kernel keeps its own state over programs and plans."""
    state = {"factor": 5}
    seen: list[int] = []

    def nested(x: Any) -> Any:
        return x * state["factor"]

    @pa.kernel
    def times(x: pa.InOutArray, value: int) -> None:
        x[...] = nested(x) + value

    @pa.kernel
    def count(x: pa.InOutArray, value: int) -> None:
        seen.append(value)
        x[...] = len(seen)

    @pa.kernel
    def wide(x: pa.InOutArray, value: int) -> None:
        x[...] = len(pa.__all__)

    @pa.kernel
    def locked(x: pa.InOutArray, value: int) -> None:
        with lock:
            x += value

    lock = threading.Lock()
    helpers, fails, package = on(0, with_helpers, "helpers"), on(0, failing, "failing"), on(0, wide, "wide")
    one, two, cannot = on(0, count, "one"), on(0, count, "two"), on(0, locked, "locked")
    async with opened(helpers, fails, package, one, two, cannot) as worker:
        x = ints(2)
        await worker.run(helpers, x, 10)
        assert x.tolist() == [16 + len(support.Vec)] * N

        late = await worker.register(on(0, times, "times"))
        x = ints(1)
        await late(x, 2)
        assert x.tolist() == [7] * N

        x, y = ints(), ints(n=3)
        for program, array in ((one, x), (two, y), (one, x)):
            await worker.run(program, array, 0)
        assert (seen, x[0], y[0]) == ([], 3, 2)

        await worker.run(package, x, 0)
        assert x[0] == len(pa.__all__)

        own = await failure(worker, fails, ints(), 0)
        assert type(own) is OwnError
        assert (str(own), own.number) == ("('mine', 7)", 7)
        assert any("failing" in note for note in own.__notes__)
        for kind, hint in ((1, LockedError), (2, PickyError)):
            stand_in = await failure(worker, fails, ints(), kind)
            assert isinstance(stand_in, KernelErrorStandIn)
            assert hint.__name__ in str(stand_in)
        chained = await failure(worker, fails, ints(), 3)
        assert isinstance(chained, ValueError)
        assert isinstance(await failure(worker, fails, ints(), 4), SystemExit)
        assert isinstance(await failure(worker, fails, ints(), 5), KeyboardInterrupt)

        with pytest.raises(pa.KernelError, match="cannot cross") as caught:
            await worker.run(cannot, ints(), 1)
        assert isinstance(caught.value.__cause__, TypeError)
        await worker.run(fails, x, 9)


async def test_known_calls_come_and_go() -> None:
    """Bound and unbound calls on tensors that are freed and made anew; many programs at once on two devices; scalars of each kind."""

    @pa.kernel
    def scale(x: pa.InOutArray, a: float, b: bool, c: int) -> None:
        x[...] = x * a + (c if b else 0)

    @pa.program()
    def scaled(orch: pa.Orchestrator, x: support.InOutVec, a: float, b: bool, c: int) -> None:
        orch.submit(scale, x, a, b, c, device=0)

    programs = [affine_on(0), affine_on(1)]

    @pa.program()
    def once(orch: pa.Orchestrator, x: support.InOutVec) -> None:
        orch.submit(add, x, 1, device=0)

    async with opened(*programs, once, scaled, devices=2, in_flight=4) as worker:
        for _ in range(5):
            x = await worker.alloc_tensor((N,), I64)
            bound = worker.bind(once, x=x)
            await asyncio.gather(*[bound.submit_nowait() for _ in range(20)], *[worker.submit_nowait(once, x) for _ in range(5)])
            assert (await worker.read(x)).tolist() == [25] * N
            await worker.free_tensor(x)
        host = ints(3)
        await worker.run(scaled, host, 2.0, True, 1 << 40)
        assert host.tolist() == [6 + (1 << 40)] * N
        tensors = [await worker.alloc_tensor((N,), I64, device=rank) for rank in range(2)]
        handles = [worker.submit_nowait(programs[rank], tensors[rank], 3, step) for step in range(30) for rank in range(2)]
        want = 0
        for step in range(30):
            want = (want * 3 + step) % 1_000_003
        times = [await handle for handle in handles]
        assert all(each.queued_at <= each.started_at <= each.finished_at for each in times)
        for tensor in tensors:
            assert (await worker.read(tensor)).tolist() == [want] * N


async def test_threads_of_blas_and_what_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    @pa.kernel
    def tell(x: pa.InOutArray, value: int) -> None:
        x[0] = int(os.environ["OPENBLAS_NUM_THREADS"])
        x[1] = os.getpid()
        print("printed by a kernel", flush=True)

    program = on(0, tell)
    backend = RayBackend(blas_threads=3)
    async with opened(program, backend=backend) as worker:
        x = ints()
        await worker.run(program, x, 0)
        assert x[:2].tolist() == [3, backend.pids[0]]
        text = ""
        async with asyncio.timeout(20):
            while "printed by a kernel" not in text:  # by way of Ray's log
                await asyncio.sleep(0.05)
                text += "".join(capfd.readouterr())
        assert "device 0" in text
