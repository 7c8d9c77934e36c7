"""Failures, cancellations, expiry, deaths and restarts, and traces that stop in the middle; counters that come back to zero."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.events import Event, Received
from pypto_actors.messages import Completed, Failed
from pypto_actors.testing import kill_device
from pypto_actors.tracing.holdings import Holdings
from tests.tracing.perfetto import Seen
from tests.tracing.support import Gate, Vec, add, adder, explode, failing, gang, scratching, shown, shown_of, virtually, worker, zeros


def instants(seen: Seen) -> list[tuple[str, str]]:
    return [(lane, name) for lane, name, _ in seen.instants]


def last(seen: Seen, counter: str, key: str) -> float:
    return seen.counters[counter, key][-1][1]


def peak(seen: Seen, counter: str, key: str) -> float:
    return max(value for _, value in seen.counters[counter, key])


def test_a_failure_is_marked_with_its_error() -> None:
    trace = tracing.Recorder()

    async def main() -> None:
        program = failing(1)
        async with worker(program, devices=2, backend="inline", trace=trace) as w:
            with pytest.raises(pa.KernelError):
                await w.run(program, zeros())

    virtually(main)
    (span,) = trace.timeline().kernels
    assert (span.outcome, span.detail) == ("failed", "ValueError: no such page")
    seen = shown(trace.timeline())
    (run,) = seen.on("device 1")
    assert run.args["error"] == "ValueError: no such page"
    assert seen.way(run)[-1].name == "Failed failing"
    assert instants(seen) == [("device 1", "failed"), ("coordinator", "failing failed")]


def test_an_error_whose_text_cannot_be_made_or_written_is_told_as_far_as_it_can_be() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    errors = [Unspeakable(), ValueError("\ud800" * 1000), ValueError()]

    @pa.kernel
    def fail(x: pa.InOutArray, which: int) -> None:
        raise errors[which]

    @pa.program
    def program(orch: pa.Orchestrator, x: Vec, which: int) -> None:
        orch.submit(fail, x, which, device=0)

    trace = tracing.Recorder()

    async def main() -> None:
        async with worker(program, backend="inline", trace=trace) as w:
            await asyncio.gather(*(w.run(program, zeros(), which) for which in range(3)), return_exceptions=True)

    virtually(main)
    first, second, third = (slice_.args["error"] for slice_ in shown(trace.timeline()).on("device 0"))
    assert first == "Unspeakable: (its text cannot be made)"
    assert second.startswith("ValueError: ???")
    assert len(second) == 300
    assert third == "ValueError"


def test_what_fails_of_another_and_what_is_cancelled_or_expires_never_ran() -> None:
    trace = tracing.Recorder()

    async def main() -> None:
        programs = failing(), adder(0, "after"), adder(0, "late"), adder(0, "unwanted")
        async with worker(*programs, backend="inline", trace=trace) as w:
            await w.pause("keep")
            bad = w.submit_nowait(programs[0], zeros())
            w.submit_nowait(programs[1], zeros(), after=[bad])
            w.submit_nowait(programs[2], zeros(), deadline=asyncio.get_running_loop().time() + 1)
            assert w.submit_nowait(programs[3], zeros()).cancel()
            await asyncio.sleep(2)
            await w.resume()
            await w.drain()
            bad.exception()

    virtually(main)
    timeline = trace.timeline()
    assert [span.program for span in timeline.kernels] == ["failing"]
    assert {wait.name: wait.outcome for wait in timeline.waits} == {
        "failing": "running",
        "after": "failed",
        "late": "expired",
        "unwanted": "cancelled",
    }
    (late,) = (wait for wait in timeline.waits if wait.name == "late")
    assert late.finish - late.start == pytest.approx(1.0)
    seen = shown(timeline)
    names = [name for _, name in instants(seen)]
    assert names == ["paused", "unwanted cancelled", "late expired", "resumed", "failed", "failing failed", "after failed"]
    assert last(seen, "dispatches", "queued") == last(seen, "dispatches", "running") == 0
    assert peak(seen, "dispatches", "queued") >= 3


async def test_memory_is_what_the_worker_says_at_every_moment_and_zero_when_it_is_left() -> None:
    trace = tracing.Recorder()

    def now() -> list[int]:
        held = {memory.device: memory.nbytes for memory in trace.timeline().memory}
        return [held.get(device, 0) for device in range(2)]

    def told(w: pa.DistributedWorker) -> list[int]:
        return [device.memory_used for device in w.statistics().devices]

    program = scratching(4096, 1)
    async with worker(program, devices=2, memory_bytes=1 << 20, trace=trace) as w:
        assert now() == told(w) == [0, 0]
        tensor = await w.alloc_tensor((100,), np.float64, device=0)
        assert now() == told(w) == [800, 0]
        stacked = await w.alloc_stacked_tensor(np.zeros((2, 8)))
        assert now() == told(w) == [864, 64]
        await w.free_tensor(tensor)
        assert now() == told(w) == [64, 64]
        with pytest.raises(pa.DeviceOutOfMemoryError):
            await w.alloc_tensor((1 << 20,), np.float64)
        assert now() == told(w) == [64, 64]
        await w.run(program, zeros())
        assert now() == told(w) == [64, 64]
        await w.free_tensor(stacked)
        await w.alloc_tensor((3,), np.int8, device=1)  # left to the worker's end
        peaks = [device.memory_peak for device in w.statistics().devices]
    seen = shown(trace.timeline())
    assert [peak(seen, f"device {device} memory", "bytes") for device in range(2)] == peaks
    assert [last(seen, f"device {device} memory", "bytes") for device in range(2)] == [0, 0]


def test_persistent_windows_stay_until_the_end() -> None:
    @pa.program
    def windowed(orch: pa.Orchestrator, x: Vec) -> None:
        window = orch.window("w", (16,), np.int64, devices=[0])
        orch.submit(add, window[0], 1, device=0)
        orch.submit(add, x, 1, device=0)

    trace = tracing.Recorder()
    seen: list[int] = []

    async def main() -> None:
        async with worker(windowed, backend="inline", persistent=True, trace=trace) as w:
            for _ in range(3):
                await w.run(windowed, zeros())
                seen.append(trace.timeline().memory[-1].nbytes)
                assert seen[-1] == w.committed_device_memory()

    virtually(main)
    assert seen == [128, 128, 128]
    assert last(shown(trace.timeline()), "device 0 memory", "bytes") == 0


async def test_a_device_that_dies_loses_what_it_did_and_held_and_is_down_until_its_restart() -> None:
    gate, trace = Gate(1), tracing.Recorder()
    program = adder(1, "again")
    async with worker(gate.program, program, devices=2, trace=trace) as w:
        await w.alloc_tensor((4,), "int64", device=1)
        held = w.submit_nowait(gate.program, zeros())
        await gate.at.wait()
        behind = w.submit_nowait(gate.program, zeros())
        await asyncio.sleep(0)
        assert behind.state is pa.RunState.RUNNING
        kill_device(w, 1)
        for handle in (held, behind):
            with pytest.raises(pa.DeviceFailedError):
                await handle
        await w.run(program, zeros())
        gate.open()
    timeline = trace.timeline()
    lost, again = sorted(timeline.kernels, key=lambda span: span.start)
    assert (lost.outcome, again.outcome) == ("died", "done")  # what stood behind the first had not begun
    (down,) = (span for span in timeline.spans if span.kind == "down")
    assert lost.finish == down.start < down.finish <= again.start
    seen = shown(timeline)
    assert [slice_.name for slice_ in seen.on("device 1")] == ["gate", "down", "again"]
    assert [name for _, name in instants(seen)][:1] == ["died"]
    assert ("device 1", "restarted") in instants(seen)
    assert [each.name for each in seen.way(seen.on("device 1")[0])] == ["Submit gate", "Dispatch gate", "gate"]  # it is never answered
    assert [value for _, value in seen.counters["device 1 memory", "bytes"]][:3] == [0, 32, 0]
    assert last(seen, "dispatches", "running") == 0
    assert_that_it_may_stop_anywhere(trace.events)


def test_a_device_that_is_lost_for_good_is_down_until_the_end() -> None:
    trace = tracing.Recorder()

    async def main() -> None:
        async with worker(adder(), devices=2, backend="inline", max_restarts=0, trace=trace) as w:
            await w.alloc_tensor((4,), "int64", device=1)
            kill_device(w, 1)
            await asyncio.sleep(1)

    virtually(main)
    timeline = trace.timeline()
    (down,) = (span for span in timeline.spans if span.kind == "down")
    assert down.finish == timeline.finish
    seen = shown(timeline)
    assert last(seen, "device 1 memory", "bytes") == 0


def test_a_gang_that_fails_shows_who_raised_and_who_only_stopped() -> None:
    @pa.program(name="torn")
    def torn(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(explode, x, device=0)
        orch.barrier()

    trace = tracing.Recorder()

    async def main() -> None:
        async with worker(torn, devices=3, backend="inline", trace=trace) as w:
            with pytest.raises(pa.KernelError):
                await w.run(torn, zeros())

    virtually(main)
    timeline = trace.timeline()
    assert {span.device: span.outcome for span in timeline.kernels} == {0: "failed", 1: "failed", 2: "failed"}
    assert [lane for lane, name in instants(shown(timeline)) if name == "failed"] == ["device 0"]


def test_memory_that_is_released_twice_or_was_never_held_counts_once() -> None:
    holdings = Holdings()
    assert holdings.commit(0, [(1, 10), (2, 20)]) == 30
    assert holdings.release(0, [1, 7]) == 20
    assert holdings.release(0, [1]) == 20
    assert holdings.lose(0)
    assert not holdings.lose(0)
    assert holdings.release(0, [2]) == 0


# A trace that stops in the middle: all that is open is shown until its end.


async def test_a_trace_of_what_still_runs() -> None:
    gate, trace = Gate(), tracing.Recorder()
    add_one = adder()
    async with worker(gate.program, add_one, in_flight=1, trace=trace) as w:
        held = [w.submit_nowait(gate.program, zeros())]
        await gate.at.wait()
        held += [w.submit_nowait(add_one, zeros()) for _ in range(5)]
        await asyncio.sleep(0)
        timeline = trace.timeline()
        gate.open()
        await asyncio.gather(*held)
    (running,) = timeline.kernels  # what it holds behind that has not begun
    assert (running.program, running.outcome, running.finish) == ("gate", "unfinished", timeline.finish)
    waits = [wait.outcome for wait in timeline.waits if wait.name == "add"]
    assert sorted(waits) == ["running", *["unfinished"] * 4]
    seen = shown(timeline)
    assert last(seen, "dispatches", "queued") == 4
    assert last(seen, "dispatches", "running") == 2
    assert [each.name for each in seen.way(seen.on("device 0")[0])] == ["Submit gate", "Dispatch gate", "gate"]
    assert len(trace.timeline().kernels) == 6


def everything() -> list[Event]:
    """A run with something of all: gangs, copies, callbacks, scratch, a failure, a death."""
    trace: list[Event] = []

    @pa.program(name="called")
    def called(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(add, x, 1, device=0)
        orch.submit_sub(lambda x: 7, x)
        orch.submit(add, x, 1, device=1)

    async def main() -> None:
        programs: Any = gang(3), called, failing(1), scratching(64, 2), adder(2)
        async with worker(*programs, devices=3, backend="inline", trace=trace.append) as w:
            stacked = await w.alloc_stacked_tensor(zeros(12).reshape(3, 4))
            calls = [w.submit_nowait(programs[0], stacked), *(w.submit_nowait(program, zeros()) for program in programs[1:])]
            await asyncio.gather(*calls, w.read(stacked), return_exceptions=True)
            kill_device(w, 2)
            await w.run(programs[4], zeros())

    virtually(main)
    return trace


def assert_that_it_may_stop_anywhere(events: Sequence[Event]) -> None:
    for length in range(len(events) + 1):
        timeline = tracing.timeline(events[:length])
        shown(timeline)
        done = [(span.run, span.part, span.device) for span in timeline.spans if span.kind != "down"]
        assert len(set(done)) == len(done)


def test_a_trace_may_stop_anywhere() -> None:
    assert_that_it_may_stop_anywhere(everything())


def test_a_trace_may_begin_anywhere() -> None:
    """Also one that `testing.replay` would refuse: what it does not know it leaves out."""
    events = everything()
    for start in range(len(events)):
        seen = shown_of(events[start:])
        assert seen.lanes[0] == "coordinator"


def test_every_answer_of_a_device_is_a_span() -> None:
    events = everything()
    answers = [
        event.message
        for event in events
        if isinstance(event, Received) and isinstance(event.message, (Completed, Failed)) and event.message.part >= 0
    ]
    spans = [span for span in tracing.timeline(events).spans if span.kind != "down"]
    assert {(span.run, span.part, span.device) for span in spans} == {(each.run, each.part, each.device) for each in answers}
    times = {(each.run, each.part, each.device): (each.started, each.finished) for each in answers}
    assert all(times[span.run, span.part, span.device] == (span.start, span.finish) for span in spans)
