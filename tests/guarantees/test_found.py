"""What the storms of `tests/storms` found, each as the smallest case that shows it. Breaks that these catch: deadlines of a chain of
dependents that pass together, a claim given up without a look at the devices that it kept."""

from __future__ import annotations

import asyncio
from typing import Annotated

import pytest

import pypto_actors as pa
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import I64, Busy, Hold, Vec, add_kernel, adder, worker, zeros


def test_deadlines_of_dependents_that_pass_together() -> None:
    """Guarantees 4 and 8: the first expires, and with it the second, which is late as well, fails; once."""

    async def main() -> None:
        hold, add = Hold(), adder()
        async with worker(hold.program, add, backend="inline") as w:
            x = zeros()
            w.submit_nowait(hold.program, x, 1)
            await hold.at.wait()
            first = w.submit_nowait(add, x, 1, deadline=1.0)
            second = w.submit_nowait(add, zeros(), 1, deadline=1.0, after=[first])
            await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 5)
            assert isinstance(first.exception(), pa.DeadlineExceededError)
            assert isinstance(second.exception(), (pa.DependencyFailedError, pa.DeadlineExceededError))
            hold.open()
            await w.run(add, x, 1)  # the worker goes on

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def test_a_claim_that_ends_lets_its_other_devices_go_on() -> None:
    """Guarantee 1: what a dispatch on two devices kept waiting goes once that is handed over, although it fails on the first."""
    busy = Busy(0)

    @pa.kernel
    def explode(x: pa.InOutArray) -> None:
        raise ZeroDivisionError

    @pa.program
    def two(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]) -> None:
        orch.submit(explode, x, device=0)
        orch.submit(add_kernel, x, 1, device=1)

    add = adder(1)
    async with worker(busy.program, two, add, devices=2, backend="thread", in_flight=1) as w:
        held = [w.submit_nowait(busy.program, zeros()) for _ in range(2)]
        both = w.submit_nowait(two, zeros())
        behind = w.submit_nowait(add, zeros(), 1)
        await busy.at.wait()
        busy.open()
        with pytest.raises(pa.KernelError):
            await both
        try:
            await behind.wait(5)
        finally:
            behind.cancel()
        await asyncio.gather(*held)
