"""The life-cycle table: every way that is in it, and an `InternalError` naming event and state for every one that is not.

Breaks that this catches: a way more or less in the table (a running dispatch that can be cancelled, a second end), a waiter woken twice.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pypto_actors.errors import InternalError
from pypto_actors.lifecycle import Failure, Record, RunEvent, RunState

WAYS = {
    ("queued", "hand over"): "running",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("queued", "expire"): "expired",
    ("running", "complete"): "done",
    ("running", "fail"): "failed",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(RunState, RunEvent)))
def test_every_pair(state: RunState, event: RunEvent) -> None:
    name = event.name.lower().replace("_", " ")
    after = WAYS.get((state.value, name))
    if after is not None:
        assert state.after(event) is RunState(after)
    else:
        with pytest.raises(InternalError, match=rf"{state.value}.*{name}"):
            state.after(event)


@given(st.lists(st.sampled_from(RunEvent), max_size=8))
def test_a_record_ends_once(events: list[RunEvent]) -> None:
    state, ends = RunState.QUEUED, 0
    for event in events:
        try:
            state = state.after(event)
        except InternalError:
            continue
        ends += state not in (RunState.QUEUED, RunState.RUNNING)
    record = Record(1, state=state)
    assert ends <= 1
    assert record.ended == (ends == 1)


def test_each_waiter_gets_an_exception_of_its_own_with_the_cause_chained() -> None:
    cause = ValueError("why")
    failure = Failure(InternalError, "text", {}, cause)
    first, second = failure.make(), failure.make()
    assert first is not second
    assert first.__cause__ is cause
    assert second.__cause__ is cause
    assert str(first) == "text"


@given(st.lists(st.sampled_from(["enlist", "delist", "cancel"]), max_size=12))
def test_waiters_are_woken_once_and_only_who_still_waits(moves: list[str]) -> None:
    loop = asyncio.new_event_loop()
    try:
        record = Record(1)
        waiting: list[asyncio.Future[None]] = []
        gone: list[asyncio.Future[None]] = []
        for move in moves:
            if move == "enlist":
                future = loop.create_future()
                record.enlist(future)
                waiting.append(future)
            elif waiting:
                future = waiting.pop(0)
                gone.append(future)
                if move == "cancel":
                    future.cancel()
                else:
                    record.delist(future)
        record.wake()
        record.wake()
        assert all(future.done() and not future.cancelled() for future in waiting)
        assert all(not future.done() or future.cancelled() for future in gone)
    finally:
        loop.close()
