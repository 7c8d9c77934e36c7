"""Arguments of the backend, start and end: Ray that was there is left, Ray of our own is ended; deaths while bytes are on their way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.backends import RayBackend, ray_executor, ray_memory
from tests.process.support import N, Pipe, add, has_ended, ints, on, outcome, stuck_kernel, threads
from tests.ray.support import needs_ray, opened, shares_ray

ROOT = Path(__file__).parents[2]
I64 = np.int64


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"address": ""}, ValueError, "address is a string"),
        ({"address": "ray://there:10001"}, ValueError, "Ray Client"),
        ({"placement": "anywhere"}, ValueError, "unknown placement"),
        ({"cpus": -1}, ValueError, "cpus is a number"),
        ({"resources": {"CPU": 1}}, ValueError, "custom ones"),
        ({"resources": {"npu": 0}}, ValueError, "above 0"),
        ({"resources": [1]}, TypeError, "mapping"),
        ({"blas_threads": 0}, ValueError, "blas_threads"),
        ({"runtime_env": "x"}, TypeError, "runtime_env is a mapping"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RayBackend(**options)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the constructor, before anything starts."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pypto_actors\[ray\]"):
        opened(on(0, add))


def script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


OWN = """
import asyncio, sys
from typing import Annotated
import numpy as np
import pypto_actors as pa
import threading

@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:  # of __main__
    x += value

@pa.program
def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut()], value: int) -> None:
    orch.submit(add, x, value, device=0)

def opened():
    return pa.DistributedWorker([program], backend=pa.backends.RayBackend("local", init_options={"num_cpus": 1}))

async def main():
    import ray
    x = np.zeros(3)
    async with opened() as one, opened() as two:
        await one.run(program, x, 1)
        await one.aclose()
        assert ray.is_initialized()  # the other needs it
        await two.run(program, x, 2)
    assert not ray.is_initialized()
    entering = asyncio.create_task(opened().__aenter__())
    while not any(thread.name == "pypto-ray-start" for thread in threading.enumerate()):
        await asyncio.sleep(0)  # it has not come to Ray yet
    entering.cancel()
    try:
        await entering
    except asyncio.CancelledError:
        pass
    assert not ray.is_initialized()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pypto")]
    print(*x)

asyncio.run(main())
"""


@pytest.mark.ray
@pytest.mark.skipif(needs_ray[1].args[0], reason=needs_ray[1].kwargs["reason"])
def test_ray_of_our_own_ends_with_its_last_worker_and_says_nothing() -> None:
    done = script(OWN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3.0 3.0 3.0\n"
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------- with Ray


class TestWithRay:
    pytestmark = shares_ray

    async def test_ray_that_was_there_is_left(self) -> None:
        import ray

        async with opened(on(0, add)):
            assert {name for name in threads() if "ray" in name} == set()
        assert ray.is_initialized()
        with pytest.raises(RuntimeError, match="initialised already"):
            async with opened(on(0, add), backend=RayBackend("127.0.0.1:1")):
                raise AssertionError
        async with opened(on(0, add), backend=RayBackend(ray.get_runtime_context().gcs_address)) as worker:
            await worker.run(worker.registry[0], ints(), 1)

    async def test_all_copies_in_threads_and_large_arrays_beside_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if every array were large, also in parts that meet and in collectives of host arrays."""
        from pypto_actors.backends import ray_caller

        for module in (ray_caller, ray_memory):
            monkeypatch.setattr(module, "INLINE", 0)
            monkeypatch.setattr(module, "LARGE_COPY", -1)

        def halves(x: Any) -> None:
            x //= 2

        @pa.program()
        def program(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut((2, 4, 3), I64)], value: int) -> None:
            orch.submit_group(add, [(x[rank], value) for rank in range(2)], devices=[0, 1])
            refs = [x[rank] for rank in range(2)]
            orch.allreduce(refs)
            orch.submit(add, x[0], 100, device=0)
            orch.all_to_all(refs)
            chunks = orch.reduce_scatter(refs)
            orch.submit_sub(halves, x[0])
            orch.copy(x[1][:2], chunks[0])
            orch.allgather(refs)

        results = []
        for backend in ("thread", "ray"):
            x = np.arange(24, dtype=I64).reshape(2, 4, 3)
            strided = np.zeros((2, 4, 6), I64)[..., ::2]
            async with opened(program, devices=2, backend=backend, in_flight=3) as worker:
                stacked = await worker.alloc_stacked_tensor(x)
                await asyncio.gather(*[worker.submit_nowait(program, each, 1) for each in (x, strided, stacked, x, strided)])
                results.append((x.tolist(), strided.tolist(), (await worker.read(stacked)).tolist()))
        assert results[0] == results[1]

    @pytest.mark.parametrize("after", [0, 5])
    async def test_killed_while_bytes_are_on_their_way(self, after: int) -> None:
        """In, out, across; with callbacks that look at them. Each call ends, and the other device goes on."""

        def looks(x: Any) -> None:
            x += 1

        @pa.program()
        def seen(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(None, I64)]) -> None:
            orch.submit_sub(looks, x)
            orch.submit(add, x, 1, device=0)

        @pa.program()
        def across(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(None, I64)]) -> None:
            there = orch.empty((1 << 18,), I64, device=1)
            orch.copy(there, x)
            orch.submit(add, there, 1, device=1)
            orch.copy(x, there)

        backend = RayBackend()
        adder, other = on(0, add, "add"), on(1, add, "add")
        async with opened(adder, other, seen, across, devices=2, backend=backend) as worker:
            n = 1 << 18
            tensors = [await worker.alloc_tensor((n,), I64) for _ in range(4)]
            kept = await worker.alloc_tensor((n,), I64, device=1)
            calls = [
                worker.copy_to(tensors[0], np.ones(n, I64)),
                worker.copy_from(np.ones(n, I64), tensors[1]),
                worker.transfer(kept, tensors[2]),
                outcome(worker.submit_nowait(adder, np.ones(n, I64), 1)),
                outcome(worker.submit_nowait(seen, tensors[3])),
                outcome(worker.submit_nowait(across, np.ones(n, I64))),
                worker.alloc_tensor((n,), I64),
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            for _ in range(after):
                await asyncio.sleep(0.001)
            os.kill(backend.pids[0], signal.SIGKILL)
            async with asyncio.timeout(30):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for each in outcomes:  # what a callback looks at may be what finds the death
                error = each.__cause__ if isinstance(each, pa.KernelError) else each
                assert not isinstance(each, Exception) or isinstance(error, pa.DeviceFailedError | pa.StaleTensorError), each
            x = ints(n=n)
            async with asyncio.timeout(30):
                await worker.run(other, x, 1)
                await worker.run(across, x)
            assert set(x.tolist()) == {2}
            assert worker.committed_device_memory(1) == kept.nbytes

    async def test_a_member_that_dies_while_others_wait_for_it(self, tmp_path: Path) -> None:
        pipe = Pipe(tmp_path)
        backend = RayBackend()
        stuck = stuck_kernel(pipe.path)

        @pa.program()
        def program(orch: pa.Orchestrator) -> None:
            refs = [orch.empty((N,), I64, device=rank) for rank in range(2)]
            orch.submit(stuck, refs[1], 0, device=1)
            orch.allreduce(refs)

        other = on(0, add)
        async with opened(program, other, devices=2, backend=backend) as worker:
            handle = worker.submit_nowait(program)
            waiting = worker.submit_nowait(other, ints(), 1)
            await pipe.heard()
            copied = await worker.alloc_tensor((N,), I64, init=ints(4), device=1)  # beside the kernel, which never ends
            assert (await worker.read(copied)).tolist() == [4] * N
            os.kill(backend.pids[1], signal.SIGKILL)
            assert isinstance(await outcome(handle), pa.DeviceFailedError)
            assert isinstance(await outcome(waiting), pa.RunResult)
            assert [worker.committed_device_memory(rank) for rank in range(2)] == [0, 0]
        pipe.close()

    async def test_a_kernel_that_does_not_end_after_an_abort(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from pypto_actors.backends import ray as backend

        monkeypatch.setattr(backend, "GRACE", 0.2)
        pipe = Pipe(tmp_path)
        stuck = on(0, stuck_kernel(pipe.path))
        async with opened(stuck) as worker:
            running = worker.submit_nowait(stuck, ints(), 0)
            await pipe.heard()
            async with asyncio.timeout(20):
                await worker.aclose("abort")
            error = await outcome(running)
            assert isinstance(error, pa.DeviceFailedError)
            assert "of an abort" in str(error)
        pipe.close()

    async def test_a_fault_of_our_own_leaves_nobody_waiting(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        program = on(0, add)
        async with opened(program) as worker:
            with monkeypatch.context() as patch:
                patch.setattr(ray_executor.RayExecutor, "_single_done", None)
                error = await outcome(worker.submit_nowait(program, ints(), 1))
            assert isinstance(error, pa.DeviceFailedError)
            assert "please report it" in str(error)
            await worker.run(program, ints(), 1)
        assert "could not be taken" in caplog.text

    async def test_actors_are_gone_when_the_worker_is(self) -> None:
        backend = RayBackend()
        async with opened(on(0, add), devices=2, backend=backend):
            pids = backend.pids
        assert all(has_ended(pid) for pid in pids)
        assert threads() == set()
