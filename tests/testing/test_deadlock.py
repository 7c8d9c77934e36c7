"""What a deadlock says, and that everything can be cleaned up after it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Generator
from functools import partial
from typing import Any

import anyio
import pytest

from pypto_actors.errors import PyptoActorsError
from pypto_actors.testing.deadlock import DeadlockError
from pypto_actors.testing.seeded import SeededLoop
from pypto_actors.testing.virtual_time import NanosecondLoop, VirtualTimeLoop

Factory = type[VirtualTimeLoop] | partial[SeededLoop]
both = pytest.mark.parametrize("factory", [VirtualTimeLoop, partial(SeededLoop, 1, virtual_time=True)], ids=["virtual", "seeded"])


class Handle:
    """Awaitable as a handle of a run is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def __repr__(self) -> str:
        return "<Handle run 7, queued>"

    def __await__(self) -> Generator[Any, None, None]:
        return (yield from self._future)


class Unprintable(asyncio.Event):
    def __repr__(self) -> str:
        raise ValueError("no")


async def waits_for(event: asyncio.Event) -> None:
    await event.wait()


async def generates(event: asyncio.Event) -> AsyncIterator[int]:
    await event.wait()
    yield 1


async def iterates(event: asyncio.Event) -> None:
    async for _ in generates(event):
        pass


async def awaits(handle: Handle) -> None:
    await handle


async def awaits_by_wrapper(handle: Handle) -> None:
    class Outer:
        def __await__(self) -> Generator[Any, None, None]:
            return awaits(handle).__await__()

    await Outer()


def deadlock(factory: Factory) -> DeadlockError:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handle = Handle(loop)
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for(asyncio.Event()), name="on-event")
            group.create_task(iterates(asyncio.Event()), name="on-generator")
            held = group.create_task(awaits(handle), name="on-handle")
            group.create_task(awaits_by_wrapper(handle), name="on-wrapper")
            group.create_task(asyncio.wait_for(held, None), name="on-task")
            group.create_task(waits_for(Unprintable()), name="on-unprintable")
            await asyncio.sleep(1.5)

    with pytest.raises(DeadlockError) as caught, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    return caught.value


@both
def test_it_says_who_waits_for_what_and_where(factory: Factory) -> None:
    error = deadlock(factory)
    assert isinstance(error, PyptoActorsError)
    by_name = {waiting.task: waiting for waiting in error.waiting}
    assert len(by_name) == 7  # the six, and the main task in the exit of its group
    text = str(error)
    assert "at 1.5 s" in text
    assert "deadlock. Nothing is ready and no timer is set; 7 task(s) wait for ever:" in text

    event = by_name["on-event"]
    assert "<asyncio.locks.Event object" in event.awaits
    assert "unset, waiters:1" in event.awaits
    assert "test_deadlock.py:" in event.stack[0]
    assert event.stack[0].endswith(" in waits_for")
    assert event.stack[-1].endswith(" in Event.wait")

    assert [place.rsplit(" ", 1)[1] for place in by_name["on-generator"].stack] == [
        "iterates",
        "generates",
        "Event.wait",
    ]
    assert [place.rsplit(" ", 1)[1] for place in by_name["on-handle"].stack] == ["awaits", "Handle.__await__"]
    assert by_name["on-handle"].awaits.startswith("<Handle run 7, queued> by <Future pending")
    assert by_name["on-wrapper"].awaits.startswith("<Handle run 7, queued> by <Future pending")
    assert [place.rsplit(" ", 1)[1] for place in by_name["on-wrapper"].stack][1:] == ["awaits", "Handle.__await__"]
    assert "name='on-handle'" in by_name["on-task"].awaits
    assert "Unprintable whose repr raised ValueError" in by_name["on-unprintable"].awaits
    for waiting in error.waiting:
        assert str(waiting).splitlines()[0] in text


def test_names_are_in_natural_order_and_long_lists_are_cut() -> None:
    async def main() -> None:
        event = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for i in range(99):
                group.create_task(waits_for(event), name=f"waiter-{i}")

    with pytest.raises(DeadlockError) as caught, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    names = [waiting.task for waiting in caught.value.waiting if waiting.task.startswith("waiter")]
    assert names == [f"waiter-{i}" for i in range(99)]
    assert "… and 60 more tasks (see .waiting)" in str(caught.value)


@both
def test_cleanup_runs_after_a_deadlock(factory: Factory) -> None:
    done: list[str] = []

    async def child(event: asyncio.Event) -> None:
        try:
            await event.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
                done.append(f"child at {asyncio.get_running_loop().time()}")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child, asyncio.Event())

    with pytest.raises(DeadlockError) as caught:
        anyio.run(main, backend_options={"loop_factory": factory})
    assert done == ["child at 2.0"]
    assert caught.value.__context__ is None


@both
def test_who_still_waits_when_cancelled_is_reported_and_the_loop_closes(factory: Factory, caplog: pytest.LogCaptureFixture) -> None:
    loops: list[NanosecondLoop] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, NanosecondLoop)
        loops.append(loop)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    with (
        caplog.at_level(logging.CRITICAL + 1, "asyncio"),  # "Task was destroyed but it is pending", rightly
        pytest.raises(DeadlockError) as caught,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        runner.run(main())
    assert isinstance(caught.value.__context__, DeadlockError)
    assert loops[0].is_closed()


def test_run_forever_with_nothing_to_do() -> None:
    loop = VirtualTimeLoop()
    try:
        with pytest.raises(DeadlockError, match="no task is left"):
            loop.run_forever()
    finally:
        loop.close()
