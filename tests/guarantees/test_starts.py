"""Guarantee 11, the start. Breaks that these catch: an error of the start that is replaced, a start that is given up and leaves tasks,
a worker that cannot be closed after its start failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

import pypto_actors as pa
from pypto_actors.executor import Desk, Executor
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import adder, worker, zeros


class Failing:
    """A backend that does not start: it raises, or takes for ever."""

    name = "failing"
    virtual_time = True
    callbacks_in_threads = False

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(1000)
        return ()

    async def stop(self) -> None:
        return


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def _refused(w: pa.DistributedWorker, add: pa.Program) -> None:
    """Nothing is left behind, and the worker is of no use any more."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await w.aclose()
    await w.aclose("abort")
    with pytest.raises(pa.WorkerClosedError):
        await w.run(add, zeros(), 1)


def test_a_timeout_error_of_the_backend_is_the_original() -> None:
    async def main() -> None:
        error, add = TimeoutError("mine"), adder()
        w = worker(add, backend=Failing(error))
        with pytest.raises(TimeoutError) as caught:
            await w.__aenter__()
        assert caught.value is error
        await _refused(w, add)

    run(main)


@pytest.mark.parametrize("error", [RuntimeError("no device"), OSError(5, "io"), asyncio.CancelledError()], ids=repr)
def test_any_error_of_the_backend_is_the_original(error: BaseException) -> None:
    async def main() -> None:
        add = adder()
        w = worker(add, backend=Failing(error))
        with pytest.raises(type(error)) as caught:
            await w.__aenter__()
        assert caught.value is error
        await _refused(w, add)

    run(main)


def test_a_start_that_hangs_is_given_up() -> None:
    async def main() -> None:
        add = adder()
        w = worker(add, backend=Failing(None), startup_timeout=5)
        with pytest.raises(TimeoutError, match="5"):
            await w.__aenter__()
        assert asyncio.get_running_loop().time() == 5.0
        await _refused(w, add)

    run(main)


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        add = adder()
        w = worker(add, backend=Failing(None))
        task = asyncio.create_task(w.__aenter__())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _refused(w, add)

    run(main)
