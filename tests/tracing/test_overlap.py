"""Overlap is proved from a trace. Two kernels that wait for each other can only end if they run at once; the same check on a run where
one comes after the other must fail, or it would prove nothing."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.backends.inline import InlineExecutor
from pypto_actors.backends.memory import Interconnect
from pypto_actors.executor import Desk, Executor
from pypto_actors.messages import Dispatch
from pypto_actors.testing import VirtualTimeLoop
from pypto_actors.tracing import Span, Timeline, concurrent, overlap
from tests.tracing.perfetto import open_file
from tests.tracing.support import LIMIT, Vec, adder, worker, zeros


def proves_overlap(timeline: Timeline, first: int, second: int) -> bool:
    """The check: did the kernels of two dispatches run at the same time, on different devices?"""
    ones, others = timeline.of(first), timeline.of(second)
    pairs = concurrent([*ones, *others])
    assert bool(pairs) is (overlap(ones, others) > 0.0)
    return bool(pairs)


def file_proves_overlap(path: Path, first: int, second: int) -> bool:
    """The same of the file that was saved: do the slices of two dispatches on the lanes of two devices overlap?"""
    slices = [slice_ for slice_ in open_file(path).slices if slice_.cat == "kernel"]
    ones, others = ([slice_ for slice_ in slices if slice_.args["run"] == run] for run in (first, second))
    return any(one.lane != other.lane and one.start < other.finish and other.start < one.finish for one in ones for other in others)


def on(device: int, kernel: pa.Kernel) -> pa.Program:
    @pa.program(name=f"on {device}")
    def program(orch: pa.Orchestrator, x: Vec) -> None:
        orch.submit(kernel, x, device=device)

    return program


async def two_dispatches(path: Path, *, dependent: bool) -> tuple[Timeline, int, int]:
    """On a thread each. Independent, their kernels wait for each other; dependent, they cannot."""
    together = threading.Barrier(2)

    @pa.kernel
    def meet(x: pa.InOutArray) -> None:
        if not dependent:
            together.wait(LIMIT)
        x += 1

    programs = on(0, meet), on(1, meet)
    with tracing.record(path) as trace:
        async with worker(*programs, devices=2, trace=trace) as w:
            first = w.submit_nowait(programs[0], zeros())
            second = w.submit_nowait(programs[1], zeros(), after=[first] if dependent else ())
            await asyncio.gather(first, second)
    return trace.timeline(), first.run_id, second.run_id


async def test_independent_dispatches_on_two_devices_overlap(tmp_path: Path) -> None:
    timeline, first, second = await two_dispatches(tmp_path / "run.json", dependent=False)
    assert proves_overlap(timeline, first, second)
    assert file_proves_overlap(tmp_path / "run.json", first, second)


async def test_the_serial_control_fails_the_same_check(tmp_path: Path) -> None:
    timeline, first, second = await two_dispatches(tmp_path / "run.json", dependent=True)
    assert {span.device for run in (first, second) for span in timeline.of(run)} == {0, 1}
    assert not proves_overlap(timeline, first, second)
    assert not file_proves_overlap(tmp_path / "run.json", first, second)


async def test_dispatches_that_share_an_array_do_not_overlap() -> None:
    """The other serial control: nobody says `after`, the bytes do."""
    programs, x = [adder(device, f"add {device}") for device in range(2)], zeros()
    trace = tracing.Recorder()
    async with worker(*programs, devices=2, trace=trace) as w:
        handles = [w.submit_nowait(programs[number % 2], x) for number in range(20)]
        await asyncio.gather(*handles)
    timeline = trace.timeline()
    assert len(timeline.kernels) == 20
    assert concurrent(timeline.kernels) == []
    assert not any(proves_overlap(timeline, one.run_id, other.run_id) for one, other in itertools.pairwise(handles))


# In virtual time, where times are exact: devices that take a second for each part.


class OneSecondExecutor(InlineExecutor):
    """Does its parts one after another; each takes a second of virtual time."""

    __slots__ = ("_loop", "_now", "_queue")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = 0.0
        self._queue: list[Dispatch] = []
        super().__init__(rank, interconnect, desk, loop.time)

    def dispatch(self, message: Dispatch) -> None:
        self._queue.append(message)
        if len(self._queue) == 1:
            self._begin()

    def _begin(self) -> None:
        started = self._loop.time()
        self._loop.call_later(1.0, self._end, started)

    def _end(self, started: float) -> None:
        ended = self._loop.time()
        times = iter((started, ended))
        self._clock = lambda: next(times)
        super().dispatch(self._queue.pop(0))
        if self._queue:
            self._begin()
        self._desk.turn()


class OneSecondBackend:
    name = "one second"
    virtual_time = True
    callbacks_in_threads = False

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        interconnect = Interconnect()
        return tuple(OneSecondExecutor(rank, interconnect, desk, loop) for rank in ranks)

    async def restart(self, rank: int) -> Executor:
        raise NotImplementedError

    async def stop(self) -> None:
        return


def one_second_each(*, dependent: bool) -> tuple[Timeline, int, int]:
    trace = tracing.Recorder()
    programs = adder(0, "zero"), adder(1, "one")

    async def main() -> list[int]:
        async with worker(*programs, devices=2, backend=OneSecondBackend(), trace=trace) as w:
            first = w.submit_nowait(programs[0], zeros())
            second = w.submit_nowait(programs[1], zeros(), after=[first] if dependent else ())
            await asyncio.gather(first, second)
            return [first.run_id, second.run_id]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        first, second = runner.run(main())
    return trace.timeline(), first, second


def test_in_virtual_time_they_overlap_for_exactly_as_long_as_they_take() -> None:
    timeline, first, second = one_second_each(dependent=False)
    assert proves_overlap(timeline, first, second)
    assert overlap(timeline.of(first), timeline.of(second)) == 1.0


def test_in_virtual_time_the_serial_control_does_not_overlap_at_all() -> None:
    timeline, first, second = one_second_each(dependent=True)
    assert not proves_overlap(timeline, first, second)
    assert timeline.of(second)[0].start == timeline.of(first)[0].finish  # back to back, which is not overlap


# The functions themselves, against a plain model.


def span(device: int, start: float, finish: float) -> Span:
    return Span("kernel", device, 1, 0, "k", start, finish, start)


spans = st.lists(st.builds(lambda d, a, n: span(d, a, a + n), st.integers(0, 2), st.integers(0, 12), st.integers(0, 5)), max_size=8)


@given(spans, spans)
def test_overlap_is_the_time_in_which_both_are_covered(first: list[Span], second: list[Span]) -> None:
    covered = [{tick for one in side for tick in range(int(one.start), int(one.finish))} for side in (first, second)]
    assert overlap(first, second) == overlap(second, first) == len(covered[0] & covered[1])


@given(spans)
def test_concurrent_gives_each_pair_once(some: list[Span]) -> None:
    def at_once(one: Span, other: Span) -> bool:
        return one.device != other.device and min(one.finish, other.finish) > max(one.start, other.start)

    expected = [{id(one), id(other)} for one, other in itertools.combinations(some, 2) if at_once(one, other)]
    found = [{id(one), id(other)} for one, other in concurrent(some)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert all(one.start <= other.start for one, other in concurrent(some))
