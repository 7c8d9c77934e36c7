"""Guarantee 8, `after=`. Breaks that these catch: a dependent that starts before its dependency has ended or after it failed, an ended
dependency that is not looked at, a cause that is lost, a failure that spreads to those who only share bytes."""

from __future__ import annotations

import asyncio

import pytest

import pypto_actors as pa
from tests.guarantees.support import Busy, Hold, adder, failing, turns, worker, zeros


async def test_a_dependent_waits_although_it_shares_nothing() -> None:
    hold, add = Hold(), adder()
    async with worker(hold.program, add, backend="inline") as w:
        first = w.submit_nowait(hold.program, zeros(), 1)
        x = zeros()
        second = w.submit_nowait(add, x, 1, after=[first, first])
        third = w.submit_nowait(add, x, 1, after=second)  # type: ignore[arg-type]
        await hold.at.wait()
        await turns()
        assert not second.done()
        assert x.tolist() == [0] * 4
        hold.open()
        await third
        assert x.tolist() == [2] * 4


async def test_a_dependent_is_never_handed_over_ahead() -> None:
    """A chain on one device may go ahead of its bytes, not ahead of its dependency, which may fail."""
    busy, add = Busy(), adder()
    async with worker(busy.program, add, backend="thread", in_flight=4) as w:
        x = zeros()
        first = w.submit_nowait(busy.program, x)
        await busy.at.wait()
        second = w.submit_nowait(add, x, 1, after=[first])
        await turns()
        assert second.state is pa.RunState.QUEUED
        busy.open()
        await second


@pytest.mark.parametrize("how", ["fails", "expires", "is cancelled", "failed before"])
async def test_dependents_of_what_did_not_succeed_fail_all_the_way_down(how: str) -> None:
    hold, add, fail = Hold(), adder(), failing(ZeroDivisionError("why"))
    async with worker(hold.program, add, fail, backend="inline") as w:
        x, y = zeros(), zeros()
        held = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        if how == "expires":
            first = w.submit_nowait(add, x, 1, deadline=asyncio.get_running_loop().time() - 1)
        elif how == "is cancelled":
            first = w.submit_nowait(add, x, 1)
        else:
            first = w.submit_nowait(fail, x if how == "fails" else zeros())
        if how == "failed before":
            assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], pa.KernelError)
        second = w.submit_nowait(add, y, 10, after=[held, first])
        third = w.submit_nowait(add, y, 100, after=[second])
        rest = w.submit_nowait(add, x, 1000)  # shares bytes, depends on nobody
        if how == "is cancelled":
            assert first.cancel()
        hold.open()
        outcomes = await asyncio.gather(first, second, third, return_exceptions=True)
        await rest
        assert isinstance(outcomes[1], pa.DependencyFailedError)
        assert isinstance(outcomes[2], pa.DependencyFailedError)
        assert type(outcomes[1].__cause__) is type(outcomes[0])
        assert isinstance(outcomes[2].__cause__, pa.DependencyFailedError)
        assert y.tolist() == [0] * 4
        numbers = w.statistics()
        assert numbers.failed == (4 if how in ("fails", "failed before") else 2) - (how in ("fails", "failed before"))
    assert x[0] >= 1001


async def test_dependencies_are_handles_of_this_worker() -> None:
    add, other = adder(), adder()
    async with worker(add, backend="inline") as w, worker(other, backend="inline") as stranger:
        theirs = stranger.submit_nowait(other, zeros(), 1)
        with pytest.raises(pa.ArgumentValueError, match="another worker"):
            w.submit_nowait(add, zeros(), 1, after=[theirs])
        for wrong in (5, ["handle"], None):
            with pytest.raises(pa.ArgumentTypeError):
                w.submit_nowait(add, zeros(), 1, after=wrong)  # type: ignore[arg-type]
        assert w.statistics().accepted == 0
