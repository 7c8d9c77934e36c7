"""One client that makes every kind of call, cancelled, or closed under, at each of its awaits in turn: nothing is held afterwards.

Breaks that this catches, each planted once in a copy: a cancelled allocation that keeps its memory, a cancelled free that keeps it, a
`run` that leaves its dispatch behind, a waiter for room that stays in line, a close that is left half-way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.events import Event
from pypto_actors.messages import Submit
from pypto_actors.testing import SeededLoop, VirtualTimeLoop, replay
from tests.storms.oracle import Oracle
from tests.storms.programs import ALL, I64, affine, called, move, noted, relay
from tests.storms.scenario import check_nothing_is_held
from tests.storms.slow import SlowBackend

Act = Callable[["asyncio.Task[Any]"], object]


class Stepped:
    """Awaits `work`, and does `act` at its `step`-th suspension: as it suspends, or (`late`) when what it waits for has just come."""

    def __init__(self, work: Coroutine[Any, Any, None], step: int, act: Act, late: bool) -> None:
        self.work = work
        self.step = step
        self.act = act
        self.late = late
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, None]:
        task = asyncio.current_task()
        assert task is not None
        value: BaseException | None = None
        while True:
            try:
                waits = self.work.send(None) if value is None else self.work.throw(value)
            except StopIteration:
                return
            self.steps += 1
            if self.steps == self.step + 1:
                if self.late and waits is not None:
                    waits.add_done_callback(lambda _: self.act(task))
                else:
                    self.act(task)
            try:
                yield waits
                value = None
            except BaseException as error:
                value = error


class Knows:
    """What the client was given and did not free, and the dispatch that it is running."""

    def __init__(self) -> None:
        self.tensors: list[pa.DeviceTensor] = []
        self.running = 0


async def victim(w: pa.DistributedWorker, host: Any, knows: Knows) -> None:
    """Every call that waits, some of them for room, for memory, or for a kernel."""

    async def run(program: pa.Program, *args: Any) -> None:
        knows.running = args[-1]
        await w.run(program, *args)

    tensor = await w.alloc_tensor((4,), I64, init=np.full(4, 3, I64))
    knows.tensors.append(tensor)
    stacked = await w.alloc_stacked_tensor(np.ones((2, 4), I64))
    knows.tensors += stacked.shards
    await w.copy_to(tensor, host)
    await run(called, tensor, 11)
    knows.running = 0
    held = await w.submit(called, host, 16)
    filled = await w.alloc_tensor((4,), I64, init=host)  # waits for what is held
    knows.tensors.append(filled)
    await held
    knows.tensors.remove(filled)
    await w.free_tensor(filled)
    handles = [await w.submit(affine, tensor, 20 + number) for number in range(4)]
    await handles[0]
    await handles[3].wait(10)
    await run(relay, tensor, stacked[1], 30)
    knows.running = 0
    await w.bind(move, src=stacked[1])(host, 31)
    await w.read(stacked)
    await w.transfer(stacked[0], tensor)
    await w.copy_from(host, tensor)
    await w.drain()
    registered = await w.register(noted)
    await registered.unregister()
    await w.pause("wait")
    await w.resume()
    held = await w.submit(called, tensor, 40)
    knows.tensors.remove(tensor)
    await w.free_tensor(tensor)  # waits for what is held
    del knows.tensors[:]
    await w.free_tensor(stacked)


async def neighbour(w: pa.DistributedWorker, host: Any) -> None:
    """Another client, on arrays of its own."""
    for number in range(5):
        await w.run(affine if number % 2 else called, host, 100 + number)


def is_live(w: pa.DistributedWorker, number: int) -> bool:
    system: Any = w._system
    messages = [record.message for record in system.coordinator.records.values()] + [message for message, _ in system.mail]
    return any(isinstance(message, Submit) and message.args[-1] == number for message in messages)


async def play(step: int, act: Callable[[pa.DistributedWorker, asyncio.Task[Any], list[asyncio.Task[Any]]], object], late: bool) -> bool:
    """Is there such a step?"""
    events: list[Event] = []
    hosts = [np.arange(4, dtype=I64), np.arange(4, dtype=I64) * 5]
    first = [host.copy() for host in hosts]
    closers: list[asyncio.Task[Any]] = []
    config = pa.DistributedConfig([0, 1], memory_bytes=256)
    async with pa.DistributedWorker(ALL, config=config, backend=SlowBackend(step), max_queued=1, in_flight=1, trace=events.append) as w:
        knows = Knows()
        stepped = Stepped(victim(w, hosts[0], knows), step, lambda task: act(w, task, closers), late)

        async def drive() -> None:
            try:
                await stepped
            finally:
                assert not is_live(w, knows.running), "run was cancelled, and its dispatch lives"
                assert not any(waiting.future.done() for waiting in w._system.admission.waiting)  # type: ignore[union-attr]

        tasks = [asyncio.create_task(drive()), asyncio.create_task(neighbour(w, hosts[1]))]
        await asyncio.wait(tasks[:1])
        if not closers:
            await w.resume()  # its pause may have been cancelled
        for error in await asyncio.gather(*tasks, *closers, return_exceptions=True):
            assert error is None or isinstance(error, (asyncio.CancelledError, pa.WorkerClosedError)), error
        if not closers:
            assert tasks[1].exception() is None, "the neighbour had to suffer"
            await w.drain()
            for device in (0, 1):
                held = sum(tensor.nbytes for tensor in knows.tensors if tensor.device == device)
                assert w.committed_device_memory(device) == held, "memory that nobody knows of"
    oracle = Oracle(events, list(zip(hosts, first, strict=True)))
    check_nothing_is_held(w, oracle)
    oracle.check_hosts()
    replay(events)
    return stepped.steps > step


def cancel(_: pa.DistributedWorker, task: asyncio.Task[Any], __: list[asyncio.Task[Any]]) -> None:
    task.cancel()


def cancel_again_and_again(_: pa.DistributedWorker, task: asyncio.Task[Any], __: list[asyncio.Task[Any]]) -> None:
    for delay in (0.0, 0.0, 0.001, 0.002):
        asyncio.get_running_loop().call_later(delay, task.cancel)


def close(w: pa.DistributedWorker, _: asyncio.Task[Any], closers: list[asyncio.Task[Any]]) -> None:
    closers.append(asyncio.create_task(w.aclose("drain")))


def abort(w: pa.DistributedWorker, _: asyncio.Task[Any], closers: list[asyncio.Task[Any]]) -> None:
    closers.append(asyncio.create_task(w.aclose("abort")))


def crash_the_close(w: pa.DistributedWorker, _: asyncio.Task[Any], closers: list[asyncio.Task[Any]]) -> None:
    """Whoever closes is cancelled at once, and again."""
    closers.append(asyncio.create_task(w.aclose("drain", 0.002)))
    for delay in (0.0, 0.001):
        asyncio.get_running_loop().call_later(delay, closers[0].cancel)


@pytest.mark.parametrize("loop", [VirtualTimeLoop, lambda: SeededLoop(5, virtual_time=True)], ids=["virtual", "seeded"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("act", [cancel, cancel_again_and_again, close, abort, crash_the_close], ids=lambda act: act.__name__)
def test_every_await(loop: Callable[[], asyncio.AbstractEventLoop], late: bool, act: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pypto_actors")
    for step in range(200):
        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                if not runner.run(play(step, act, late)):
                    break
        except BaseException as error:
            error.add_note(f"at step {step}")
            raise
    assert step > 18, "the client does not wait as often as it should"
