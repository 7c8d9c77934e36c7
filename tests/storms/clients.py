"""The clients: each does a few random things, and takes every outcome that the contract knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np

import pypto_actors as pa
from tests.storms.programs import I64, noted
from tests.storms.world import Call, N, World


@contextlib.asynccontextmanager
async def outcome(world: World, call: Call | None = None, number: int = 0) -> AsyncIterator[None]:
    """Takes the errors of the contract; a cancellation goes on, after a look at what it left behind."""
    try:
        yield
    except asyncio.CancelledError as error:
        if call is not None:
            call.error = error
            if call.how == "run":
                assert not world.is_live(number), "run was cancelled, and its dispatch lives"
        raise
    except (pa.PyptoActorsError, TimeoutError) as error:
        if call is not None:
            call.error = error
        if isinstance(error, pa.PyptoActorsError):
            world.tell(error)


async def dispatch(world: World) -> None:
    program, how = world.program(), world.chance.choice(("run", "run", "submit", "submit", "submit_nowait"))
    args, options = world.arguments(program), world.options()
    call = world.begin(how, args[-1])
    async with outcome(world, call, args[-1]):
        if world.chance.random() < 0.2:
            bound = world.worker.bind(program, b=args[-1])
            if how == "run":
                call.result = await bound(*args[:-1], **options)
            elif how == "submit":
                call.handle = await bound.submit(*args[:-1], **options)
            else:
                call.handle = bound.submit_nowait(*args[:-1], **options)
        elif how == "run":
            call.result = await world.worker.run(program, *args, **options)
        elif how == "submit":
            call.handle = await world.worker.submit(program, *args, **options)
        else:
            call.handle = world.worker.submit_nowait(program, *args, **options)
    if call.handle is not None:
        world.handles.append(call.handle)


async def burst(world: World) -> None:
    for _ in range(world.chance.randrange(2, 7)):
        program = world.program()
        args = world.arguments(program)
        call = world.begin("submit_nowait", args[-1])
        async with outcome(world, call):
            call.handle = world.worker.submit_nowait(program, *args, **world.options())
            world.handles.append(call.handle)


async def wait(world: World) -> None:
    if world.handles:
        handle = world.chance.choice(world.handles)
        async with outcome(world):
            result = await (handle if world.chance.random() < 0.6 else handle.wait(world.chance.choice((0.0, 0.001, 0.01))))
            assert result.run_id == handle.run_id


async def take_back(world: World) -> None:
    if world.handles:
        handle = world.chance.choice(world.handles)
        world.answers.append((handle, handle.cancel()))


async def allocate(world: World) -> None:
    init = world.chance.choice((None, np.arange(N, dtype=I64) * 7, world.hosts[0][0]))
    async with outcome(world):
        if world.chance.random() < 0.2:
            stacked = await world.worker.alloc_stacked_tensor(np.ones((world.devices, N), I64))
            world.tensors.extend(stacked.shards)
        else:
            tensor = await world.worker.alloc_tensor((N,), I64, init=init, device=world.chance.randrange(world.devices))
            world.tensors.append(tensor)


async def free(world: World) -> None:
    if len(world.tensors) > 1:
        tensor = world.tensors.pop(world.chance.randrange(len(world.tensors)))
        async with outcome(world):
            await world.worker.free_tensor(tensor)


async def copy(world: World) -> None:
    tensor, other = world.tensor(), world.tensor()
    if tensor is None or other is None:
        return
    what = world.chance.randrange(4)
    async with outcome(world):
        if what == 0:
            await world.worker.copy_to(tensor, world.chance.choice(world.hosts)[0])
        elif what == 1:
            await world.worker.copy_from(world.chance.choice(world.hosts)[0], tensor)
        elif what == 2:
            await world.worker.read(tensor)
        else:
            await world.worker.transfer(tensor, other)


async def whole(world: World) -> None:
    """Drain, pause, resume, register and unregister."""
    worker, what = world.worker, world.chance.randrange(5)
    async with outcome(world):
        if what == 0:
            await worker.drain()
        elif what == 1:
            await worker.pause(world.chance.choice(("wait", "keep", "abort")))
            await asyncio.sleep(world.chance.choice((0.0, 0.002)))
            await worker.resume()
        elif what == 2:
            await worker.resume()
        elif what == 3:
            handle = await worker.register(noted)
            await handle.unregister()
        else:
            await worker.register(noted)


async def check_numbers(world: World) -> None:
    numbers = world.worker.statistics()
    ended = numbers.done + numbers.failed + numbers.cancelled + numbers.expired
    assert numbers.accepted == numbers.queued + numbers.running + ended
    assert all(0 <= device.memory_used <= device.memory_peak <= device.memory_capacity for device in numbers.devices)


async def rest(world: World) -> None:
    await asyncio.sleep(world.chance.choice((0.0, 0.0, 0.001, 0.003)))


ACTIONS = (
    [dispatch] * 8 + [burst] * 2 + [wait] * 3 + [take_back] * 2 + [allocate] * 2 + [free] + [copy] * 3 + [whole, check_numbers, rest, rest]
)


async def client(world: World) -> None:
    for _ in range(world.chance.randrange(3, 9)):
        await world.chance.choice(ACTIONS)(world)
