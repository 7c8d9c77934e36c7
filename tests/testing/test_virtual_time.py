"""`VirtualTimeLoop`: the clock, and its users (asyncio, anyio, pytest-asyncio)."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from pypto_actors.testing.deadlock import DeadlockError
from pypto_actors.testing.virtual_time import VirtualTimeLoop

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_time_starts_at_zero_and_jumps() -> None:
    async def main() -> list[float]:
        times = [now()]
        await asyncio.sleep(0)
        times.append(now())
        await asyncio.sleep(86400 * 30)
        times.append(now())
        return times

    assert run(main) == [0.0, 0.0, 2592000.0]


def test_ten_tenths_are_one_second() -> None:
    async def main() -> float:
        for _ in range(10):
            await asyncio.sleep(0.1)
        return now()

    assert run(main) == 1.0


@pytest.mark.parametrize("start", [0, 1, 1_000_000])
def test_timers_one_nanosecond_apart_fire_in_order_and_apart(start: int) -> None:
    fired: list[tuple[int, int]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(start)

        def note(ns: int) -> None:
            fired.append((ns, round((loop.time() - start) * 1e9)))

        for ns in (5, 1, 3, 2, 4):
            loop.call_later(ns * 1e-9, note, ns)
            loop.call_at(start + ns * 1e-9, note, ns)
        await asyncio.sleep(1)

    run(main)
    assert fired == [(ns, ns) for ns in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)]


def test_timers_of_one_time_fire_in_the_order_of_their_setting() -> None:
    fired: list[int] = []

    async def main() -> None:
        for i in range(50):
            asyncio.get_running_loop().call_later(0.2 if i % 2 else 0.1 + 0.1, fired.append, i)
        await asyncio.sleep(1)

    run(main)
    assert fired == list(range(50))


def test_no_timer_fires_before_its_time_by_the_clock() -> None:
    # In floats 0.1 + 0.2 > 0.3. anyio compares such a deadline with the clock, and would set it again for ever.
    async def main() -> None:
        await asyncio.sleep(0.1)
        deadline = now() + 0.2
        with anyio.CancelScope(deadline=deadline) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert now() == pytest.approx(0.3, abs=1e-12)
        assert now() >= deadline
        await asyncio.sleep(0.7)
        assert now() == 1.0

    run(main)


def test_a_delay_below_a_nanosecond_still_passes_time() -> None:
    async def main() -> float:
        for _ in range(10):
            await asyncio.sleep(1e-10)
        return now()

    assert run(main) == 1e-8


def test_cancelled_timers_do_not_fire_nor_move_the_clock() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(i, pytest.fail, "fired") for i in range(1000)]
        for timer in timers:
            timer.cancel()
        await asyncio.sleep(0.5)
        return now()

    assert run(main) == 0.5


def test_asyncio_timeout_and_wait_for() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.Event().wait()
        assert now() == 2.5
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2.5)
        assert now() == 5.0

    run(main)


def test_anyio_run() -> None:
    async def main() -> float:
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 3)
                group.start_soon(anyio.sleep_forever)
        assert scope.cancelled_caught
        return anyio.current_time()

    assert anyio.run(main, backend_options={"loop_factory": VirtualTimeLoop}) == 5.0


def test_shielded_cleanup_of_a_cancelled_scope_passes_time() -> None:
    async def careful() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(7)

    async def main() -> float:
        with anyio.move_on_after(1):
            async with anyio.create_task_group() as group:
                group.start_soon(careful)
        return now()

    assert run(main) == 8.0


def test_spinning_while_a_timer_waits_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtualTimeLoop, "turns_per_instant", 1000)

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, lambda: None)
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match=r"1000 turns without the clock moving.*spins"):
        run(main)


def test_pytest_asyncio_hook(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import functools\n"
        "from pypto_actors.testing.seeded import SeededLoop\n"
        "from pypto_actors.testing.virtual_time import VirtualTimeLoop\n"
        "def pytest_asyncio_loop_factories(config, item):\n"
        "    return {'virtual': VirtualTimeLoop, 'seeded': functools.partial(SeededLoop, 7, virtual_time=True)}\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import asyncio, pytest\n"
        "@pytest.fixture\n"
        "async def clock():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    await asyncio.sleep(1000)\n"
        "    yield loop.time\n"
        "    await asyncio.sleep(1000)\n"
        "async def test_it(clock):\n"
        "    await asyncio.sleep(1000)\n"
        "    assert clock() == 2000\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_runner_runs_twice_and_time_goes_on() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(1))
        runner.run(asyncio.sleep(1.5))
        assert runner.get_loop().time() == 2.5
        assert repr(runner.get_loop()) == "<VirtualTimeLoop idle at 2.5 s, timers: 0>"


def test_debug_mode() -> None:
    async def main() -> float:
        await asyncio.sleep(3)
        return now()

    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=True) as runner:
        assert runner.run(main()) == 3.0


def test_closing_leaves_no_descriptor() -> None:
    async def main() -> None:
        await asyncio.sleep(1)

    run(main)
    before = len(os.listdir("/dev/fd"))
    for _ in range(50):
        run(main)
    assert len(os.listdir("/dev/fd")) == before


def test_infinite_timers_are_none() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(math.inf, pytest.fail).cancel()
        loop.call_at(math.inf, pytest.fail)
        await anyio.sleep(math.inf)

    with pytest.raises(DeadlockError, match="no timer is set"):
        run(main)
