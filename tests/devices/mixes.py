"""Seeded mixes of gangs and singles over overlapping sets of devices, with priorities, deadlines, cancellations and failures.

The programs are steered by bit masks of devices, and keep their data in windows, so that a few programs make many shapes. Every kernel that
begins writes itself down: a gang has begun on all of its members, or on none.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

import pypto_actors as pa
import pypto_actors.testing as testing
from pypto_actors.events import Event
from pypto_actors.executor import Backend
from pypto_actors.messages import Dispatch
from pypto_actors.queues import DOWN

Mask = Annotated[int, pa.Static()]
Shared = Annotated[pa.TensorRef, pa.InOut((4,), np.int64)]
EXPECTED = (
    pa.KernelError,
    pa.DeviceFailedError,
    pa.DeadlineExceededError,
    pa.RunCancelledError,
    pa.DependencyFailedError,
    pa.WorkerClosedError,
)
BAD = 100_000  # tags from here on make a member fail
_began: Counter[tuple[int, int]] = Counter()  # (tag, gang of its program) -> members that have begun


class MemberError(Exception):
    """A member of a gang fails, as it was told."""


@pa.kernel
def member(x: pa.InOutArray, tag: int, gang: int, fails: bool) -> None:
    _began[tag, gang] += 1
    x += 1
    if fails and tag >= BAD:
        raise MemberError(tag)


@pa.kernel
def touch(x: pa.InOutArray) -> None:
    x += 1


async def between(*arrays: Any) -> None:
    await asyncio.sleep(0.001)


def ranks_of(mask: int, world: int) -> list[int]:
    """The devices of a mask, never none."""
    return [rank for rank in range(world) if mask >> rank & 1] or [mask % world]


def group(orch: pa.Orchestrator, refs: pa.WindowRef, ranks: Sequence[int], tag: int, gang: int, fails: bool = True) -> None:
    orch.submit_group(member, [(refs[rank], tag, gang, fails and rank == ranks[-1]) for rank in ranks], devices=ranks)


@pa.program
def single(orch: pa.Orchestrator, mask: Mask, other: Mask, tag: int) -> None:
    """One step on one device."""
    ranks = ranks_of(mask, orch.world_size)[:1]
    group(orch, orch.window("w", (4,), np.int64, devices=ranks), ranks, tag, 0)


@pa.program(stage="prefill")
def gang(orch: pa.Orchestrator, mask: Mask, other: Mask, tag: int) -> None:
    """One gang, its members in an order of their own."""
    ranks = ranks_of(mask, orch.world_size)
    random.Random(other).shuffle(ranks)
    group(orch, orch.window("w", (4,), np.int64, devices=ranks), ranks, tag, 0)


@pa.program(stage="decode")
def reduced(orch: pa.Orchestrator, mask: Mask, other: Mask, tag: int) -> None:
    """Steps, a collective over some, a gang over others."""
    window = orch.window("w", (4,), np.int64)
    for rank in ranks_of(other, orch.world_size):
        orch.submit(touch, window[rank], device=rank)
    orch.allreduce([window[rank] for rank in ranks_of(mask, orch.world_size)])
    group(orch, window, ranks_of(other, orch.world_size), tag, 0)


@pa.program
def twice(orch: pa.Orchestrator, mask: Mask, other: Mask, tag: int) -> None:
    """Two gangs with a callback between them: the second is sent while others are under way."""
    window = orch.window("w", (4,), np.int64)
    first, second = ranks_of(mask, orch.world_size), ranks_of(other, orch.world_size)
    group(orch, window, first, tag, 0)
    orch.submit_sub(between, *window)
    group(orch, window, second, tag, 1, False)
    orch.barrier()


@pa.program(stage="decode")
def crossing(orch: pa.Orchestrator, mask: Mask, other: Mask, tag: int) -> None:
    """Independent gangs of two, and copies around the ring: what one device waits for comes from all the others."""
    world = orch.world_size
    window = orch.window("w", (4,), np.int64)
    for number, rank in enumerate(ranks_of(mask, world)):
        group(orch, window, sorted({rank, (rank + 1) % world}), tag, number, number == 0)
        orch.copy(window[(rank + 1) % world], window[rank])


@pa.program
def sharing(orch: pa.Orchestrator, x: Shared, mask: Mask, other: Mask, tag: int) -> None:
    """A gang one of whose members uses what other dispatches use too."""
    ranks = ranks_of(mask, orch.world_size)
    window = orch.window("w", (4,), np.int64, devices=ranks)
    orch.submit(touch, x, device=ranks[-1])
    group(orch, window, ranks, tag, 0)
    orch.submit(touch, x, device=ranks[0])


PLAIN = (single, single, gang, gang, reduced, twice, crossing)
PROGRAMS = (single, gang, reduced, twice, crossing, sharing)


class Mix:
    """One worker and its clients."""

    def __init__(self, seed: int, backend: str | Backend, deaths: int = 0) -> None:
        self.chance = chance = random.Random(seed)
        self.world = chance.randrange(2, 6)
        self.events: list[Event] = []
        self.handles: list[pa.DistributedRunHandle] = []
        self.told: list[BaseException] = []
        self.tags = 0
        self.deaths = deaths
        self.shared = np.zeros(4, np.int64)
        self.worker = pa.DistributedWorker(
            PROGRAMS,
            config=pa.DistributedConfig(range(self.world), memory_bytes=chance.choice((64, 96, 1 << 20))),
            backend=backend,
            policy=chance.choice([None, pa.PriorityOrder(), pa.Arrival(), pa.PhaseFair(1, 1)]),
            max_queued=chance.choice((2, 8, 64)),
            in_flight=chance.choice((1, 2, 4)),
            max_restarts=chance.choice((0, 1, 3)) if deaths else 3,
            trace=self.events.append,
        )

    def call(self) -> tuple[pa.Program, tuple[Any, ...]]:
        chance = self.chance
        self.tags += 1
        tag = self.tags + (BAD if chance.random() < 0.1 else 0)
        masks = chance.randrange(1, 1 << self.world), chance.randrange(1, 1 << self.world)
        if chance.random() < 0.15:
            return sharing, (self.shared, *masks, tag)
        return chance.choice(PLAIN), (*masks, tag)

    def options(self) -> dict[str, Any]:
        chance = self.chance
        options: dict[str, Any] = {"priority": chance.choice((0, 0, 1, 5))}
        if chance.random() < 0.15:
            options["deadline"] = asyncio.get_running_loop().time() + chance.choice((-1.0, 0.0, 0.002, 0.01))
        if self.handles and chance.random() < 0.1:
            options["after"] = [chance.choice(self.handles)]
        return options

    async def client(self) -> None:
        chance = self.chance
        for _ in range(chance.randrange(2, 8)):
            program, args = self.call()
            try:
                match chance.randrange(4):
                    case 0:
                        await self.worker.run(program, *args, **self.options())
                    case 1:
                        self.handles.append(await self.worker.submit(program, *args, **self.options()))
                    case 2:
                        self.handles.append(self.worker.submit_nowait(program, *args, **self.options()))
                    case 3:
                        handle = await self.worker.submit(program, *args, **self.options())
                        await asyncio.sleep(chance.choice((0.0, 0.001, 0.004)))
                        if handle.cancel():
                            assert handle.state.value == "cancelled"
                        self.handles.append(handle)
            except pa.QueueFullError:
                await asyncio.sleep(0.001)
            except EXPECTED as error:
                self.told.append(error)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0.0, 0.001, 0.003)))

    async def play(self) -> None:
        """Everything ends, and nothing is held."""
        _began.clear()
        async with self.worker:
            tasks = [asyncio.create_task(self.client(), name=f"client {number}") for number in range(self.chance.randrange(2, 6))]
            for _ in range(self.deaths):
                await asyncio.sleep(self.chance.choice((0.0, 0.001, 0.003)))
                testing.kill_device(self.worker, self.chance.randrange(self.world))
            if self.chance.random() < 0.4:
                await asyncio.sleep(self.chance.choice((0.0, 0.002, 0.008)))
                self.chance.choice(tasks).cancel()
            if self.chance.random() < 0.2:
                await asyncio.sleep(self.chance.choice((0.0, 0.002, 0.008)))
                await self.worker.aclose(self.chance.choice(("drain", "abort")))
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if ended is not None and not isinstance(ended, (asyncio.CancelledError, pa.WorkerClosedError)):
                    raise ended
        self.check()

    def check(self) -> None:
        for handle in self.handles:
            assert handle.done(), handle
            error = handle.exception() if handle.state.value != "cancelled" else None
            assert error is None or isinstance(error, EXPECTED), error
        system: Any = self.worker._system
        numbers, coordinator = self.worker.statistics(), system.coordinator
        assert system.crashed is None
        assert numbers.queued == numbers.running == 0
        assert not coordinator.records
        assert not len(coordinator.hazards)
        assert all(device.memory_used == 0 for device in numbers.devices)
        for queue in coordinator.queues:
            assert queue.work == len(queue.order) == len(queue.claims) == 0, queue
            assert queue.outstanding == (DOWN if coordinator.health[queue.rank].down else 0), queue
        for device in system.devices:
            assert not device.executor._interconnect.buffers, "device memory is left"
            assert not device.executor._interconnect.rendezvous._waves, "a meeting is left"

    def check_gangs(self) -> None:
        """A gang has begun on all its members or on none."""
        sizes: dict[tuple[int, int], int] = {}
        for event in self.events:
            message = getattr(event, "message", None)
            if isinstance(message, Dispatch):
                tag = message.args[-1]
                part = message.plan.parts[message.part]
                for step in part.steps:
                    if step.name == "member":
                        _, _, number, _ = (part.slots[slot].value for slot in step.slots)
                        sizes[tag, number] = sizes.get((tag, number), 0) + 1
        for (tag, number), begun in _began.items():
            assert begun == sizes[tag, number], f"gang {number} of {tag} began on {begun} of {sizes[tag, number]} devices"

    def replay(self) -> None:
        testing.replay(self.events)
