"""A `trace=` hook that raises: it is called no more, and nothing that was accepted is lost by it.

Breaks that this catches: an exception that leaves a message untold, an answer unheard, or a call that raises although it was accepted.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from pypto_actors.events import Event
from tests.guarantees.support import LIMIT, Hold, adder, worker, zeros


class Raising:
    """Raises at one event."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.seen = 0
        self._at = at
        self._error = error

    def __call__(self, event: Event) -> None:
        self.seen += 1
        if self.seen == self._at:
            raise self._error


@pytest.mark.parametrize("backend", ["inline", "thread"])
@pytest.mark.parametrize("at", range(2, 40))
async def test_a_hook_that_raises_costs_nobody_an_outcome(backend: str, at: int, caplog: pytest.LogCaptureFixture) -> None:
    hook, program, hold = Raising(at, KeyError("once") if at % 2 else asyncio.CancelledError()), adder(), Hold()
    with caplog.at_level(logging.ERROR, "pypto_actors"):
        async with asyncio.timeout(LIMIT), worker(program, hold.program, backend=backend, trace=hook) as w:
            held = w.submit_nowait(hold.program, zeros(), 1)
            t = await w.alloc_tensor((4,), "int64", init=zeros(1))
            for _ in range(3):
                await w.run(program, t, 1)
            late = w.submit_nowait(program, t, 1)
            hold.open()
            await held
            await late
            assert (await w.read(t)).tolist() == [5] * 4
            await w.free_tensor(t)
            statistics = w.statistics()
            assert (statistics.accepted, statistics.done) == (5, 5)
    assert hook.seen == at
    assert [record.getMessage().partition(" raised at ")[0] for record in caplog.records] == [f"the trace hook {hook!r}"]


async def test_a_hook_that_raises_at_the_start_lets_it_fail() -> None:
    with pytest.raises(KeyError, match="once"):
        async with worker(adder(), trace=Raising(1, KeyError("once"))):
            pytest.fail("it was entered")


@pytest.mark.parametrize("at", range(2, 6))
def test_the_end_of_the_process_is_not_held_up(at: int) -> None:
    async def main() -> None:
        program = adder()
        async with worker(program, backend="inline", trace=Raising(at, SystemExit(3))) as w:
            await w.run(program, zeros(), 1)
            await asyncio.Event().wait()

    with pytest.raises(SystemExit):
        asyncio.run(main())
