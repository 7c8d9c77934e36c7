"""`SeededLoop`: it finds what asyncio's order hides, breaks no promise of asyncio, and repeats itself."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import pytest

from pypto_actors.testing.seeded import SeededLoop
from pypto_actors.testing.virtual_time import VirtualTimeLoop

T = TypeVar("T")


def run(seed: int, main: Callable[[], Coroutine[Any, Any, T]], virtual_time: bool = True) -> T:
    with asyncio.Runner(loop_factory=functools.partial(SeededLoop, seed, virtual_time=virtual_time)) as runner:
        return runner.run(main())


async def planted_race() -> bool:
    """The reader is one hop slower than the writer, so in asyncio's order it never comes first."""
    ready = False
    early = False

    async def write() -> None:
        nonlocal ready
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ready = True

    async def read() -> None:
        nonlocal early
        for _ in range(3):
            await asyncio.sleep(0)
        early = not ready

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        group.create_task(read())
    return early


def test_a_planted_race_is_found_which_the_plain_order_hides() -> None:
    assert not asyncio.run(planted_race())
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert not runner.run(planted_race())
    found = sum(run(seed, planted_race) for seed in range(100))
    assert 10 < found < 90


async def schedule() -> str:
    """A program that shows its schedule: hops, locks, timers, groups, and a scope that cancels a set of tasks."""
    events: list[str] = []
    lock = asyncio.Lock()

    async def worker(name: str) -> None:
        try:
            for hop in range(3):
                async with lock:
                    events.append(f"{name}{hop}")
                    await asyncio.sleep(0)
                await anyio.sleep(0.1)
            await anyio.sleep_forever()
        finally:
            events.append(f"{name}!")

    with anyio.move_on_after(1):
        async with anyio.create_task_group() as group:
            for name in "abcdefgh":
                group.start_soon(worker, name)
    return " ".join(events)


def test_same_seed_same_schedule_and_other_seeds_others() -> None:
    schedules = [run(seed, schedule) for seed in range(20)]
    junk = [object() for _ in range(1000)]  # other addresses for what comes
    assert [run(seed, schedule) for seed in range(20)] == schedules
    assert len(set(schedules)) == 20
    assert len({s.rsplit(" ", 8)[1:][0] for s in schedules}) > 1  # also the order of cancellation varies
    del junk


def test_sets_of_tasks_iterate_alike() -> None:
    kept: list[asyncio.Task[None]] = []  # so that each run has other addresses

    async def main() -> list[str]:
        tasks = {asyncio.create_task(asyncio.sleep(1), name=f"task-{i}") for i in range(16)}
        kept.extend(tasks)
        return [task.get_name() for task in tasks]

    assert run(1, main) == run(1, main) == run(2, main)


def test_same_schedule_in_other_processes_under_any_hash_seed() -> None:
    code = "from tests.testing.test_seeded import run, schedule; print(run(5, schedule))"
    printed = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        printed.add(done.stdout.strip())
    assert printed == {run(5, schedule)}


@pytest.mark.parametrize("seed", range(20))
def test_call_soon_stays_first_in_first_out(seed: int) -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        others = [asyncio.create_task(asyncio.sleep(0)) for _ in range(3)]
        for i in range(10):
            (loop.call_soon if i % 2 else loop.call_soon_threadsafe)(order.append, i)
        await asyncio.sleep(1)
        await asyncio.gather(*others)
        return order

    assert run(seed, main) == list(range(10))


@pytest.mark.parametrize("seed", range(20))
def test_one_future_calls_in_the_order_of_adding(seed: int) -> None:
    async def main() -> list[str]:
        order: list[str] = []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def awaiter(name: str) -> None:
            await future
            order.append(name)

        tasks = []

        def note(name: str, _: object) -> None:
            order.append(name)

        for i in range(3):
            future.add_done_callback(functools.partial(note, f"callback{i}"))
            for side in "ab":
                tasks.append(asyncio.create_task(awaiter(f"task{i}{side}")))
                await asyncio.sleep(1)  # until it awaits
        future.set_result(None)
        await asyncio.gather(*tasks)
        return order

    order = run(seed, main)
    layers = [order[0:1], sorted(order[1:3]), order[3:4], sorted(order[4:6]), order[6:7], sorted(order[7:9])]
    assert layers == [layer for i in range(3) for layer in ([f"callback{i}"], [f"task{i}a", f"task{i}b"])]


def test_tasks_of_one_future_are_free() -> None:
    async def main() -> str:
        order: list[str] = []
        event = asyncio.get_running_loop().create_future()

        async def awaiter(name: str) -> None:
            await event
            order.append(name)

        tasks = [asyncio.create_task(awaiter(name)) for name in "ab"]
        await asyncio.sleep(1)
        event.set_result(None)
        await asyncio.gather(*tasks)
        return "".join(order)

    assert {run(seed, main) for seed in range(20)} == {"ab", "ba"}


def test_timers_come_in_order_and_only_when_nothing_is_ready() -> None:
    async def main() -> list[float]:
        fired: list[float] = []
        loop = asyncio.get_running_loop()
        for ns in (3, 1, 2):
            loop.call_later(ns * 1e-9, lambda: fired.append(loop.time()))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not fired
        with anyio.move_on_after(0.5), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await anyio.sleep_forever()
        assert loop.time() == 0.25
        return fired

    for seed in range(10):
        assert run(seed, main) == [1e-9, 2e-9, 3e-9]


def test_stop_lets_run_what_was_ready() -> None:
    for seed in range(20):
        loop = SeededLoop(seed, virtual_time=True)
        ran: list[int] = []
        for i in range(5):
            loop.call_soon(ran.append, i)
            loop.call_soon(loop.stop)
        loop.call_soon(loop.call_soon, ran.append, 99)
        loop.run_forever()
        loop.close()
        assert ran == list(range(5))


def test_anyio_run_and_threads() -> None:
    async def main() -> str:
        return await anyio.to_thread.run_sync(lambda: threading.current_thread().name)

    for seed in range(3):
        assert "AnyIO" in anyio.run(main, backend_options={"loop_factory": lambda seed=seed: SeededLoop(seed, virtual_time=True)})


def test_real_time() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(0.001)
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        assert not getattr(loop, "virtual_time", True)
        return loop.time() - before >= 0.002

    assert run(3, main, virtual_time=False)
    assert sum(run(seed, planted_race, virtual_time=False) for seed in range(50)) > 5


def test_time_is_real_by_default() -> None:
    loop = SeededLoop(1)
    assert not loop.virtual_time
    loop.close()


def test_repr_tells_the_seed_and_decisions_count_choices() -> None:
    loop = SeededLoop(11, virtual_time=True)
    assert repr(loop) == "<SeededLoop idle at 0.0 s, timers: 0, seed 11>"
    loop.run_until_complete(asyncio.sleep(0))
    assert loop.decisions == 0
    loop.run_until_complete(planted_race())
    assert loop.decisions > 3
    loop.close()


def test_a_task_factory_of_the_program_is_respected() -> None:
    async def main() -> set[str]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
        order: list[str] = []

        async def note(name: str) -> None:
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(note(name))
        return {"".join(order)}

    assert set().union(*(run(seed, main) for seed in range(20))) == {"ab", "ba"}
