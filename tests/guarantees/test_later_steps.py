"""Guarantee 8, "its later steps do not run": also those that wait for nothing that failed. Break that this catches: a part that is sent
after another part of its dispatch has failed; an outcome before the parts that run have ended."""

from __future__ import annotations

import threading
from typing import Annotated

import pytest

import pypto_actors as pa
from tests.guarantees.support import I64, LIMIT, Vec, adder, turns, worker, zeros


async def test_no_further_part_is_sent_after_a_failure() -> None:
    gate, ran = threading.Event(), []

    @pa.kernel
    def explode(x: pa.InOutArray) -> None:
        raise ZeroDivisionError

    @pa.kernel
    def stop(y: pa.InOutArray) -> None:
        assert gate.wait(LIMIT)
        y += 1

    @pa.kernel
    def later(y: pa.InOutArray) -> None:
        ran.append("later")

    @pa.program
    def three(
        orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.InOut(Vec, I64)], y: Annotated[pa.TensorRef, pa.InOut(Vec, I64)]
    ) -> None:
        orch.submit(explode, x, device=0)
        orch.submit(stop, y, device=1)
        orch.submit(later, y, device=2)

    add = adder(device=0)
    async with worker(three, add, devices=3, backend="thread") as w:
        x, y = zeros(), zeros()
        handle = w.submit_nowait(three, x, y)
        await w.run(add, zeros(), 1)  # device 0 tells of one after the other: the failure has arrived before this
        await turns()
        assert not handle.done()  # `y` is still being written
        gate.set()
        with pytest.raises(pa.KernelError):
            await handle
        assert y.tolist() == [1] * 4
    assert ran == []
