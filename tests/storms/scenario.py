"""One scenario: a worker, a few clients, somebody who cancels them, and an end at a random moment. All of it follows from the seed."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence
from typing import Any

import pypto_actors as pa
import pypto_actors.testing as testing
from pypto_actors.events import Event
from pypto_actors.executor import Backend
from pypto_actors.lifecycle import RunState
from pypto_actors.messages import Submit
from tests.storms.clients import client
from tests.storms.oracle import Oracle
from tests.storms.programs import ALL, LATE
from tests.storms.slow import SlowBackend
from tests.storms.world import World


class CrashError(Exception):
    """The body of the worker fails."""


def open_worker(seed: int, chance: random.Random, events: list[Event]) -> pa.DistributedWorker:
    backends: list[str | Backend] = ["inline", SlowBackend(seed), SlowBackend(seed)]
    return pa.DistributedWorker(
        ALL,
        config=pa.DistributedConfig(device_ids=list(range(chance.randrange(1, 4))), memory_bytes=chance.choice((128, 192, 320, 1 << 20))),
        backend=chance.choice(backends),
        policy=chance.choice([None, pa.PriorityOrder(), pa.Arrival(), pa.PhaseFair(1, 1)]),
        max_queued=chance.choice((1, 2, 4, 16)),
        in_flight=chance.choice((1, 2, 3)),
        trace=events.append,
    )


async def cancel_some(world: World, tasks: Sequence[asyncio.Task[Any]]) -> None:
    for _ in range(world.chance.randrange(4)):
        await asyncio.sleep(world.chance.choice((0.0, 0.0, 0.001, 0.004)))
        task = world.chance.choice(tasks)
        for _ in range(world.chance.choice((1, 1, 2))):
            task.cancel()


async def end(world: World) -> None:
    """Close from inside, by one or several, or fail, or just leave."""
    how = world.chance.randrange(6)
    if how == 0:
        raise CrashError
    if how == 1:
        await world.worker.aclose(world.chance.choice(("drain", "abort")), world.chance.choice((None, 0.0, 0.002)))
    if how == 2:
        async with asyncio.TaskGroup() as group:
            for _ in range(world.chance.randrange(2, 4)):
                await asyncio.sleep(world.chance.choice((0.0, 0.001)))
                group.create_task(world.worker.aclose(world.chance.choice(("drain", "drain", "abort"))))


async def body(worker: pa.DistributedWorker, world: World, tasks: list[asyncio.Task[Any]]) -> None:
    chance = world.chance
    async with worker:
        for _ in range(chance.randrange(1, 4)):
            world.tensors.append(await worker.alloc_tensor((4,), "int64", device=chance.randrange(world.devices)))
        tasks += [asyncio.create_task(client(world), name=f"client {number}") for number in range(chance.randrange(2, 6))]
        tasks.append(asyncio.create_task(cancel_some(world, tasks[:]), name="who cancels"))
        await asyncio.sleep(chance.choice((0.0, 0.001, 0.004, 0.01, 0.05)))
        if chance.random() < 0.5:
            await asyncio.wait(tasks, timeout=0.1)
        await end(world)


async def scenario(seed: int) -> Oracle:
    chance = random.Random(seed)
    events: list[Event] = []
    worker = open_worker(seed, chance, events)
    world = World(worker, chance)
    tasks: list[asyncio.Task[Any]] = []
    main = asyncio.create_task(body(worker, world, tasks), name="body")
    if chance.random() < 0.15:
        asyncio.get_running_loop().call_later(chance.choice((0.0, 0.001, 0.005, 0.02)), main.cancel)
    ended = [*await asyncio.gather(main, return_exceptions=True), *await asyncio.gather(*tasks, return_exceptions=True)]
    for error in ended:
        if error is not None and not isinstance(error, (asyncio.CancelledError, CrashError)):
            raise error
    await worker.aclose()
    if worker._system is None:
        return Oracle(events, ())  # cancelled before it was entered
    oracle = Oracle(events, world.hosts)
    check_nothing_is_held(worker, oracle)
    check_outcomes(world, oracle)
    oracle.check_hosts()
    assert not LATE
    testing.replay(events)
    return oracle


def check_nothing_is_held(worker: pa.DistributedWorker, oracle: Oracle) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks are left: {others}"
    numbers = worker.statistics()
    ended = [oracle.outcomes[run] for run, message in oracle.operations.items() if isinstance(message, Submit)]
    assert numbers.queued == numbers.running == 0
    assert numbers.accepted == len(ended)
    assert numbers.done == ended.count(RunState.DONE)
    assert numbers.failed == ended.count(RunState.FAILED)
    assert numbers.cancelled == ended.count(RunState.CANCELLED)
    assert numbers.expired == ended.count(RunState.EXPIRED)
    assert all(device.memory_used == 0 for device in numbers.devices)
    system: Any = worker._system
    coordinator = system.coordinator
    assert system.crashed is None
    assert not coordinator.records
    assert not len(coordinator.hazards)
    assert not coordinator.operations.watches
    for queue in coordinator.queues:
        assert queue.work == queue.outstanding == len(queue.order) == len(queue.claims) == 0, queue
    assert not system.mail
    assert not system.admission.waiting
    assert system.admission.room == system.admission.limit
    for device in system.devices:
        assert not device.executor._interconnect.buffers, "device memory is left"


def check_outcomes(world: World, oracle: Oracle) -> None:
    for run, message in oracle.operations.items():
        if isinstance(message, Submit) and oracle.outcomes[run] is RunState.DONE:
            assert all(oracle.outcomes[other] is RunState.DONE for other in message.after), "it ran after what did not succeed"
    runs = {message.args[-1]: run for run, message in oracle.operations.items() if isinstance(message, Submit)}
    for number, call in world.calls.items():
        known = runs.get(number)
        outcome = oracle.outcomes[known] if known is not None else None
        if call.result is not None:
            assert outcome is RunState.DONE
            assert call.result.run_id == known
            expected = oracle.returned[call.result.run_id]
            assert all(want is None or want == got for want, got in zip(expected, call.result.returned, strict=True)), call.result
            assert call.result.queued_at <= call.result.started_at <= call.result.finished_at
        elif call.handle is not None:
            assert call.handle.run_id == known
            assert call.handle.state is outcome
            assert call.handle.done()
        elif call.error is None:
            assert outcome is not RunState.DONE or call.how == "run"  # its task never came back to the call
        elif call.how == "submit_nowait":
            assert known is None, f"{call} raised and was submitted"
        elif call.how == "submit":
            assert outcome in (None, RunState.CANCELLED), f"{call} raised and was submitted: {outcome}"
    for handle, answer in world.answers:
        assert answer is (handle.state is RunState.CANCELLED), handle
        assert handle.cancel() is (handle.state is RunState.CANCELLED)


def run(seed: int) -> Oracle:
    """The scenario of `seed`, on a loop of the same seed, in virtual time."""
    with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
        return runner.run(scenario(seed))
