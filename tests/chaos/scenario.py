"""A worker under clients that do anything at any time, by a seed; and what must have come of it, by a plain serial model."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Annotated, Any

import numpy as np

import pypto_actors as pa
from pypto_actors.events import Event

I64 = np.int64
N = 6
PRIME = 1_000_003
Vec = ("n",)
EXPECTED = (pa.PyptoActorsError, asyncio.CancelledError, TimeoutError)


@pa.kernel
def affine(x: pa.InOutArray, times: int, plus: int) -> None:
    x[...] = (x * times + plus) % PRIME


@pa.kernel
def move(src: pa.InArray, dst: pa.OutArray) -> None:
    dst[...] = src


@pa.kernel
def explode(x: pa.InOutArray) -> None:
    x[...] = 7
    raise ZeroDivisionError("on purpose")


def programs_of(device: int, devices: int, naps: random.Random) -> list[pa.Program]:
    @pa.program(name=f"affine{device}", stage=("prefill", "decode", None)[device % 3])
    def scale(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], times: int, plus: int) -> None:
        orch.submit(affine, x, times, plus, device=device)

    @pa.program(name=f"copy{device}")
    def copy(orch: pa.Orchestrator, src: Annotated[pa.TensorRef, pa.In(Vec, I64)], dst: Annotated[pa.TensorRef, pa.Out(Vec, I64)]) -> None:
        orch.submit(move, src, dst, device=device)

    @pa.program(name=f"fail{device}")
    def fail(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit(explode, x, device=device)

    async def nap(x: pa.InOutArray) -> int:
        await asyncio.sleep(naps.choice((0, 0, 1, 5)))
        x += 1
        return 5

    @pa.program(name=f"nap{device}")
    def napping(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], times: int, plus: int) -> None:
        orch.submit(affine, x, times, plus, device=device)
        orch.submit_sub(nap, x)
        orch.submit(affine, x, times, plus, device=device)

    other = (device + 1) % devices

    @pa.program(name=f"relay{device}")
    def relay(
        orch: pa.Orchestrator, src: Annotated[pa.TensorRef, pa.In(Vec, I64)], dst: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]
    ) -> None:
        here, there = orch.empty((N,), I64, device=device), orch.empty((N,), I64, device=other)
        orch.submit(move, src, here, device=device)
        orch.submit(affine, here, 3, 1, device=device)
        orch.copy(there, here)
        orch.submit(affine, there, 5, 2, device=other)
        orch.copy(dst, there)

    return [scale, copy, fail, napping, relay]


class Scenario:
    """One seed: its worker, its arrays, its clients; afterwards its trace."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.devices = self.rng.choice((1, 1, 2, 3))
        naps = random.Random(seed)
        self.programs = [program for device in range(self.devices) for program in programs_of(device, self.devices, naps)]
        self.events: list[Event] = []
        base = np.arange(4 * N, dtype=I64)
        self.start = base.copy()
        self.base = base
        self.hosts = [base[0:N], base[3 : 3 + N], base[2 * N : 3 * N], base[4 * N - 1 : 3 * N - 1 : -1]]
        self.tensors: list[pa.DeviceTensor] = []
        self.finals: dict[pa.DeviceTensor, np.ndarray[Any, Any]] = {}
        self.handles: list[pa.DistributedRunHandle] = []
        self.worker = pa.DistributedWorker(
            self.programs,
            config=pa.DistributedConfig(range(self.devices), memory_bytes=self.rng.choice((600, 1 << 20))),
            backend="inline",
            max_queued=self.rng.choice((1, 3, 8, 64)),
            in_flight=self.rng.choice((1, 2, 5)),
            policy=self.rng.choice((None, pa.PhaseFair(1, 2), pa.PriorityOrder(), pa.Arrival())),
            trace=self.events.append,
        )

    async def run(self) -> None:
        """Open, let the clients loose, close in whatever way; every outcome is one that the contract names."""
        rng = self.rng
        async with self.worker as worker:
            self.tensors = [
                await worker.alloc_tensor((N,), I64, init=np.full(N, 100 + device, I64), device=device) for device in range(self.devices)
            ]
            clients = [asyncio.create_task(self._client(random.Random(rng.random()))) for _ in range(rng.randrange(1, 5))]
            ending = rng.random()
            if ending < 0.2:
                await self._turns(rng.randrange(60))
                await asyncio.gather(*(worker.aclose(rng.choice(("drain", "abort")), rng.choice((None, 0, 3))) for _ in range(2)))
            elif ending < 0.4:
                await self._turns(rng.randrange(60))
                for client in clients:
                    client.cancel()
            results = await asyncio.gather(*clients, return_exceptions=True)
            faults = [result for result in results if isinstance(result, BaseException) and not isinstance(result, EXPECTED)]
            assert not faults, faults
            if ending >= 0.2:
                await worker.resume()
                await worker.drain()
                for tensor in self.tensors:
                    self.finals[tensor] = await worker.read(tensor)
        assert all(handle.done() for handle in self.handles)
        for handle in self.handles:
            handle.exception()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def _client(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(1, 12)):
            action = rng.choice((self._dispatch, self._dispatch, self._dispatch, self._copy, self._private, self._whole, self._wait))
            task = asyncio.create_task(action(rng))
            try:
                if rng.random() < 0.2:
                    await self._turns(rng.randrange(8))
                    for _ in range(rng.choice((1, 1, 3))):
                        task.cancel()
                        await asyncio.sleep(0)
                await task
            except pa.WorkerClosedError:
                return
            except EXPECTED:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
            finally:
                task.cancel()
                await asyncio.wait([task])

    def _call(self, rng: random.Random) -> tuple[pa.Program, list[Any]]:
        device = rng.randrange(self.devices)
        kind = rng.choice((0, 0, 0, 1, 1, 2, 3, 4))
        program = self.programs[5 * device + kind]
        local: list[Any] = [*self.hosts, self.tensors[device]]
        target = rng.choice(local)
        if kind in (0, 3):
            return program, [target, rng.randrange(2, 9), rng.randrange(100)]
        if kind == 2:
            return program, [target]
        source = rng.choice([one for one in local if one is not target])
        return program, [source, target]

    async def _dispatch(self, rng: random.Random) -> None:
        worker = self.worker
        program, args = self._call(rng)
        deadline = None if rng.random() < 0.7 else asyncio.get_running_loop().time() + rng.choice((-1, 0, 1, 4))
        after = [rng.choice(self.handles)] if self.handles and rng.random() < 0.2 else ()
        options: dict[str, Any] = {"priority": rng.randrange(-2, 3), "deadline": deadline, "after": after}
        way = rng.randrange(4)
        if way == 0:
            await worker.run(program, *args, **options)
            return
        handle = worker.submit_nowait(program, *args, **options) if way == 1 else await worker.submit(program, *args, **options)
        self.handles.append(handle)
        if rng.random() < 0.3:
            await self._turns(rng.randrange(5))
            first = handle.cancel()
            assert handle.cancel() is first
        elif rng.random() < 0.5:
            await handle.wait(rng.choice((None, 0, 2)))

    async def _copy(self, rng: random.Random) -> None:
        tensor, host = rng.choice(self.tensors), rng.choice(self.hosts)
        way = rng.randrange(3)
        if way == 0:
            await self.worker.copy_to(tensor, host)
        elif way == 1:
            await self.worker.copy_from(host, tensor)
        else:
            await self.worker.transfer(rng.choice(self.tensors)[0:3], tensor[3:6])

    async def _private(self, rng: random.Random) -> None:
        worker, device = self.worker, rng.randrange(self.devices)
        tensor = await worker.alloc_tensor((N,), I64, init=rng.choice(self.hosts) if rng.random() < 0.5 else None, device=device)
        try:
            await worker.run(self.programs[5 * device], tensor, 3, 4)
            await worker.read(tensor)
        finally:
            await worker.free_tensor(tensor)

    async def _whole(self, rng: random.Random) -> None:
        way = rng.randrange(4)
        if way == 0:
            try:
                await self.worker.pause(rng.choice(("wait", "keep", "abort")))
                await asyncio.sleep(rng.choice((0, 2)))
            finally:  # nobody else would: what is paused for ever looks like a deadlock
                with contextlib.suppress(pa.WorkerClosedError):
                    await self.worker.resume()
        elif way == 1:
            await self.worker.drain()
        elif way == 2:
            handle = await self.worker.register(rng.choice(self.programs))
            await handle.unregister()
            await self.worker.register(handle.program)

    async def _wait(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.choice((0, 1, 3)))
