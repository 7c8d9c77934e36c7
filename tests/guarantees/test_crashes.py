"""Guarantee 7, "never silence, whatever crashes": a fault of the coordinator's own is an `InternalError` to everybody, and the
worker closes.

Breaks that this catches: a message that crashed the coordinator and is answered by nobody, who waits for room and is forgotten, a
close that waits for what will never end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import pypto_actors as pa
from pypto_actors.hazards import Hazards
from pypto_actors.ledger import Ledger
from pypto_actors.operations import Operations
from pypto_actors.router import Router
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import Hold, adder, turns, worker, zeros

PLACES = [(Hazards, "enter"), (Router, "route"), (Ledger, "reserve"), (Operations, "watch"), (Operations, "start")]
CALLS = ["run", "submit", "alloc_tensor", "read", "drain", "pause", "free_tensor"]


def crash(*_: object, **__: object) -> None:
    raise ZeroDivisionError("planted")


async def _outcome(awaited: Awaitable[Any]) -> BaseException | None:
    """The error that comes; a hang is a `DeadlockError` of the loop."""
    try:
        await awaited
    except Exception as error:
        return error
    return None


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
@pytest.mark.parametrize("call", CALLS)
def test_everybody_gets_an_answer(
    place: tuple[type, str], call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "pypto_actors")

    async def main() -> None:
        hold, add = Hold(), adder()
        x = zeros()
        w = await worker(hold.program, add, backend="inline", max_queued=8).__aenter__()
        tensor, other = await w.alloc_tensor((4,), "int64"), await w.alloc_tensor((4,), "int64")
        running = w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        queued = [asyncio.create_task(w.run(add, x, 1)) for _ in range(3)]
        draining = asyncio.create_task(w.drain())
        await turns(3)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "run": lambda: w.run(add, zeros(), 1),
            "submit": lambda: w.submit(add, zeros(), 1),
            "alloc_tensor": lambda: w.alloc_tensor((4,), "int64"),
            "read": lambda: w.read(other),
            "drain": w.drain,
            "pause": lambda: w.pause("keep"),
            "free_tensor": lambda: w.free_tensor(tensor),
        }
        with monkeypatch.context() as patch:
            patch.setattr(*place, crash)
            first = asyncio.create_task(_outcome(calls[call]()))
            await turns()
        crashed = w._system is not None and w._system.crashed is not None
        hold.open()
        error = await first
        if crashed:
            over = call == "free_tensor" and place == (Router, "route")  # what nobody uses is freed before anything is routed
            assert call == "submit" or over or isinstance(error, pa.InternalError)
            assert isinstance(await _outcome(running), pa.InternalError)
            for task in (*queued, draining):
                assert isinstance(await _outcome(task), pa.InternalError)
            for later in calls.values():
                assert isinstance(await _outcome(later()), (pa.PyptoActorsError, type(None)))
        await w.aclose()
        await asyncio.gather(*queued, draining, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_who_waits_for_room_gets_an_answer_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "pypto_actors")

    async def main() -> None:
        hold, add = Hold(), adder()
        x = zeros()
        w = await worker(hold.program, add, backend="inline", max_queued=1).__aenter__()
        w.submit_nowait(hold.program, x, 1)
        await hold.at.wait()
        w.submit_nowait(add, x, 1)
        waiting = asyncio.create_task(_outcome(w.submit(add, x, 1)))
        await turns()
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "reserve", crash)
            assert isinstance(await _outcome(w.alloc_tensor((4,), "int64")), pa.InternalError)
        assert isinstance(await waiting, pa.PyptoActorsError)
        assert isinstance(await _outcome(w.run(add, zeros(), 1)), pa.PyptoActorsError)  # not a wait for room that never comes
        hold.open()
        await w.aclose()

    run(main)
