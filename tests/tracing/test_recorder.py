"""The recorder: what it keeps, what it refuses, how it writes; and that tracing changes nothing and replays."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import stat
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors import tracing
from pypto_actors.events import Changed, Event, Received, Routed, Started
from pypto_actors.testing import replay
from pypto_actors.tracing.files import write
from pypto_actors.tracing.recorder import FORGET_EACH
from tests.tracing.perfetto import open_file
from tests.tracing.support import adder, gang, shown, virtually, worker, zeros


def some_runs(trace: Any, count: int = 3, **options: Any) -> None:
    async def main() -> None:
        program = adder()
        async with worker(program, backend="inline", trace=trace, **options) as w:
            for _ in range(count):
                await w.run(program, zeros())

    virtually(main)


def test_a_recording_is_all_events_and_replays() -> None:
    recorder = tracing.Recorder()
    plain: list[Event] = []

    def both(event: Event) -> None:
        recorder(event)
        plain.append(event)

    some_runs(both)
    assert recorder.events == plain
    assert isinstance(plain[0], Started)
    assert replay(recorder.events) > 0
    before = len(recorder.events)
    recorder.timeline()
    assert len(recorder.events) == before
    assert replay(recorder.events) > 0  # reading it has changed nothing
    assert recorder.timeline() == tracing.timeline(plain)
    assert repr(recorder) == f"<Recorder of 1 workers: {before} events>"


def test_record_saves_and_plots_when_the_block_ends(tmp_path: Path) -> None:
    with tracing.record(tmp_path / "run.json", plot=tmp_path / "run.png", name="mine") as trace:
        some_runs(trace)
        assert list(tmp_path.iterdir()) == []
    assert {slice_.process for slice_ in open_file(tmp_path / "run.json").slices} == {"mine"}
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.png"]


def test_an_exception_keeps_its_trace(tmp_path: Path) -> None:
    def fail() -> None:
        with tracing.record(tmp_path / "run.json") as trace:
            some_runs(trace)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(open_file(tmp_path / "run.json").on("device 0")) == 3


def test_an_exception_is_the_news_also_where_its_trace_cannot_be_saved(tmp_path: Path) -> None:
    target = tmp_path / "here" / "run.json"
    target.parent.mkdir()

    def fail() -> None:
        with tracing.record(target):
            target.parent.rmdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert "its trace was not saved" in caught.value.__notes__[0]


def test_workers_one_after_another_are_processes_of_their_own() -> None:
    recorder = tracing.Recorder(name="w")
    for _ in range(3):
        some_runs(recorder)
    assert [timeline.name for timeline in recorder.timelines()] == ["w", "w 2", "w 3"]
    seen = shown(*recorder.timelines())
    assert {slice_.process for slice_ in seen.slices} == {"w", "w 2", "w 3"}
    assert len(seen.on("device 0")) == 9
    with pytest.raises(ValueError, match=r"3 workers"):
        _ = recorder.events
    with pytest.raises(ValueError, match=r"3 workers"):
        recorder.timeline()


async def test_workers_at_once_need_hooks_of_their_own() -> None:
    recorder, program = tracing.Recorder(), adder()
    async with worker(program, trace=recorder.worker("one")) as one, worker(program, trace=recorder.worker("two")) as two:
        await asyncio.gather(one.run(program, zeros()), two.run(program, zeros()))
    timelines = recorder.timelines()
    assert [timeline.name for timeline in timelines] == ["one", "two"]
    assert all(len(timeline.kernels) == 1 for timeline in timelines)
    shown(*timelines)

    mixed = tracing.Recorder()
    async with worker(program, trace=mixed) as one:
        await one.run(program, zeros())
        with pytest.raises(ValueError, match=r"recorder.worker\(name\)"):
            async with worker(program, trace=mixed):
                pytest.fail("it was entered")
        await one.run(program, zeros())
    assert len(mixed.timeline().kernels) == 2


async def test_a_worker_that_fails_to_start_leaves_the_recorder_usable() -> None:
    class Broken:
        name = "broken"
        virtual_time = False

        async def start(self, *_: Any) -> Any:
            raise OSError("no such card")

        async def stop(self) -> None:
            return

    recorder, program, broken = tracing.Recorder(), adder(), Broken()
    with pytest.raises(OSError, match="no such card"):
        async with worker(program, backend=broken, trace=recorder):
            pytest.fail("it was entered")
    async with worker(program, trace=recorder) as w:
        await w.run(program, zeros())
    assert [len(timeline.kernels) for timeline in recorder.timelines()] == [0, 1]
    shown(*recorder.timelines())


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "many"])
def test_a_limit_is_a_number_of_events(limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be an int"):
        tracing.Recorder(limit=limit)


@pytest.mark.parametrize("limit", [1, 3, None])
def test_a_bounded_recorder_takes_one_worker_after_another(limit: int | None) -> None:
    recorder = tracing.Recorder(limit=limit)

    async def main() -> None:
        program = adder()
        async with worker(program, backend="inline", devices=5, trace=recorder) as w:
            for device in range(5):
                await w.alloc_tensor((4,), "int64", device=device)  # given back behind the end

    for _ in range(3):
        virtually(main)
    assert len(recorder.timelines()) == 3
    assert all(shown(timeline) for timeline in recorder.timelines())


def test_a_bounded_recording_keeps_the_newest_and_lets_go_of_the_rest() -> None:
    recorder = tracing.Recorder(limit=50)
    arrays: list[weakref.ref[Any]] = []

    async def main() -> None:
        program = adder()
        async with worker(program, backend="inline", trace=recorder) as w:
            tensor = await w.alloc_tensor((4,), "int64")
            for _ in range(500):
                x = zeros().view()
                arrays.append(weakref.ref(x))
                await w.run(program, x)
                assert len(recorder.events) <= 50
            del x
            middle = recorder.timeline()
            assert middle.memory[-1].nbytes == 32  # allocated long ago
            assert middle.load[-1].queued == middle.load[-1].running == 0
            await w.free_tensor(tensor)

    virtually(main)
    (track,) = recorder._tracks
    told = [value for value in vars(track._before).values() if isinstance(value, list)]
    assert max(map(len, told)) <= FORGET_EACH  # of what is not kept, little is known
    gc.collect()
    assert sum(array() is not None for array in arrays) < 50
    timeline = recorder.timeline()
    assert 0 < len(timeline.kernels) < 50
    seen = shown(timeline)
    assert seen.counters["device 0 memory", "bytes"][-1][1] == 0


def test_tracing_is_only_keeping_events() -> None:
    """No reading, no writing and no growing of anything else while it runs."""
    recorder = tracing.Recorder()
    some_runs(recorder, 1)
    (track,) = recorder._tracks
    known = {name: len(value) for name, value in vars(track._before).items() if isinstance(value, (list, dict))}
    some_events = list(track.events)
    for event in some_events:
        if not isinstance(event, Started):
            recorder(event)
    assert len(track.events) == 2 * len(some_events) - 1
    assert known == {name: len(value) for name, value in vars(track._before).items() if isinstance(value, (list, dict))}


async def test_a_recording_may_be_saved_while_workers_run_and_goes_on(tmp_path: Path) -> None:
    recorder, program = tracing.Recorder(limit=40), adder()
    async with worker(program, trace=recorder) as w:
        for _ in range(10):
            await w.run(program, zeros())
            recorder.save(tmp_path / "run.json")
            open_file(tmp_path / "run.json")


def test_ten_thousand_events_are_one_sound_trace(tmp_path: Path) -> None:
    async def main() -> None:
        both = gang(4), adder(1)
        async with worker(*both, devices=4, backend="inline", trace=recorder, max_queued=4096) as w:
            x = await w.alloc_stacked_tensor(np.zeros((4, 4), np.int64))
            calls = [w.submit_nowait(both[0], x) if number % 3 else w.submit_nowait(both[1], zeros()) for number in range(1200)]
            await asyncio.gather(*calls)

    recorder = tracing.Recorder()
    virtually(main)
    assert len(recorder.events) >= 10_000
    recorder.save(tmp_path / "run.json")
    recorder.plot(tmp_path / "run.png")
    seen = open_file(tmp_path / "run.json")
    assert sum(slice_.cat.startswith("kernel") for slice_ in seen.slices) == 800 * 4 + 400
    assert all(len(seen.way(slice_)) == 4 for slice_ in seen.on("device 1")[:50])
    kinds = {type(event) for event in recorder.events}
    assert kinds == {Started, Received, Changed, Routed}


def test_the_file_is_in_the_order_of_time(tmp_path: Path) -> None:
    """Names first. Perfetto sorts by itself, other readers do not."""
    recorder = tracing.Recorder()
    some_runs(recorder, 20)
    recorder.save(tmp_path / "run.json")
    events = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["traceEvents"]
    times = [event.get("ts", -1.0) for event in events]
    assert times == sorted(times)
    assert [event["ph"] for event in events[: times.count(-1.0)]] == ["M"] * times.count(-1.0)


# Files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run.json"
    target.write_bytes(b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(tracing.TraceFileError, match="No space left on device"):
        write(target, b"new", "trace")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    monkeypatch.undo()
    write(target, b"new", "trace")
    assert target.read_bytes() == b"new"


def test_a_new_file_has_the_usual_permissions_and_a_link_is_followed(tmp_path: Path) -> None:
    usual, target, link = tmp_path / "usual", tmp_path / "run.json", tmp_path / "link.json"
    usual.write_bytes(b"")
    write(target, b"one", "trace")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    link.symlink_to(target)
    write(link, b"two", "trace")
    assert link.is_symlink()
    assert target.read_bytes() == b"two"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe, b"data", "trace")
    reader.join(20)
    assert got == [b"data"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "it is a directory"),
        ("nowhere/run.json", "there is no directory"),
        ("\0", "null (byte|character)"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_a_precise_error(path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = tracing.Recorder()
    for attempt in (recorder.save, recorder.plot):
        with pytest.raises(tracing.TraceFileError, match=reason) as caught:
            attempt(path)
        assert isinstance(caught.value, pa.PyptoActorsError)
        assert isinstance(caught.value, OSError)
        assert repr(str(Path(path))) in str(caught.value)
    with pytest.raises(tracing.TraceFileError, match=reason), tracing.record(path):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == []


def test_one_file_for_trace_and_plot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run.json")
    for plot in ("run.json", "link"):
        with (
            pytest.raises(tracing.TraceFileError, match="would both be written to"),
            tracing.record(tmp_path / "run.json", plot=tmp_path / plot),
        ):
            pytest.fail("it began")
    assert not (tmp_path / "run.json").exists()


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(tracing.TraceFileError, match="the trace cannot be written"):
        tracing.check(loop)
