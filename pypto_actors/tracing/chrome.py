"""The Chrome trace event format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Source: "Trace Event Format", Google, 2016. A worker is a process, a lane is a thread. Times are microseconds from the first event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from pypto_actors.tracing.labels import amount
from pypto_actors.tracing.layout import Layout, Slice, origin_of
from pypto_actors.tracing.timeline import HOST, Span, Timeline

Args: TypeAlias = dict[str, Any]


class _Event(Struct, tag_field="ph", frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    pid: int
    tid: int


class Metadata(_Event, tag="M", frozen=True):
    """Names and orders processes and threads."""

    args: Args


class Complete(_Event, tag="X", frozen=True):
    """A slice: `dur` µs from `ts`."""

    cat: str
    ts: float
    dur: float
    args: Args = {}
    cname: str | None = None  # a colour, of those that chrome://tracing knows


class Instant(_Event, tag="i", frozen=True, omit_defaults=False):
    """Something that happened at once: `s` says whether it concerns a thread (`t`) or the process (`p`)."""

    cat: str
    ts: float
    s: str
    args: Args = {}


class AsyncBegin(_Event, tag="b", frozen=True):
    """A span that may overlap others; ended by `AsyncEnd` of the same `cat`, `name` and `id`."""

    cat: str
    id: int
    ts: float
    args: Args = {}


class AsyncEnd(_Event, tag="e", frozen=True):
    """Ends it."""

    cat: str
    id: int
    ts: float
    args: Args = {}


class FlowStart(_Event, tag="s", frozen=True):
    """An arrow begins in the slice that is open here. All of one arrow have the same `cat`, `name` and `id`."""

    cat: str
    id: int
    ts: float


class FlowStep(_Event, tag="t", frozen=True):
    """An arrow goes to the slice that is open here, and on from it."""

    cat: str
    id: int
    ts: float


class FlowEnd(_Event, tag="f", frozen=True, omit_defaults=False):
    """An arrow ends in the slice that is open here."""

    cat: str
    id: int
    ts: float
    bp: str = "e"  # bind to the enclosing slice


class Counter(_Event, tag="C", frozen=True):
    """Values from `ts` on."""

    ts: float
    args: dict[str, int]


TraceEvent: TypeAlias = Metadata | Complete | Instant | AsyncBegin | AsyncEnd | FlowStart | FlowStep | FlowEnd | Counter


class ChromeTrace(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The whole file."""

    trace_events: list[TraceEvent]
    display_time_unit: str = "ms"
    other_data: Args = {}


def chrome_trace(timelines: Sequence[Timeline]) -> ChromeTrace:
    """All workers in one trace, on one clock."""
    origin, ids = origin_of(timelines), count(1)
    names: list[TraceEvent] = []
    events: list[Any] = []
    for timeline in timelines:
        process = _Process(timeline, origin, ids)
        names += process.names
        events += process.events
    # what happens at one time stays in its order: slices, then the arrows that are bound to them, then the rest
    events.sort(key=lambda event: event.ts)
    return ChromeTrace(names + events, other_data={"clock": "seconds of the loop's clock", "origin": origin})


def encode(trace: ChromeTrace) -> bytes:
    return msgspec.json.encode(trace)


class _Process:
    """One worker's events. `ids` gives numbers that no other process has, for threads too: Perfetto knows threads by them alone."""

    def __init__(self, timeline: Timeline, origin: float, ids: count[int]) -> None:
        self._timeline = timeline
        self._layout = Layout(timeline, origin)
        self._ids = ids
        self._pid = next(ids)  # and the thread of the coordinator
        self._threads: dict[tuple[str, int, int], int] = {}
        self.names: list[TraceEvent] = list(self._name_lanes())
        self.events: list[TraceEvent] = [*self._slices(), *self._arrows(), *self._waits(), *self._marks(), *self._counters()]

    def _name_lanes(self) -> Iterator[TraceEvent]:
        """The coordinator, the host, then each device with its copy engine; further rows where a lane's spans overlap."""
        pid = self._pid
        yield Metadata("process_name", pid, pid, {"name": self._timeline.name})
        yield Metadata("process_sort_index", pid, pid, {"sort_index": pid})
        lanes = {(each.lane, each.device, each.row) for each in self._layout.slices}
        lanes |= {("device", rank, 0) for rank in range(self._timeline.devices)} | {("coordinator", HOST, 0)}
        order = {"coordinator": 0, "host": 1, "device": 2, "copies": 3}
        for index, key in enumerate(sorted(lanes, key=lambda lane: (lane[1], order[lane[0]], lane[2]))):
            lane, device, row = key
            tid = self._threads[key] = pid if lane == "coordinator" else next(self._ids)
            name = {"device": f"device {device}", "copies": f"device {device} copies"}.get(lane, lane)
            yield Metadata("thread_name", pid, tid, {"name": f"{name} ({row + 1})" if row else name})
            yield Metadata("thread_sort_index", pid, tid, {"sort_index": index})

    def _tid(self, slice_: Slice) -> int:
        return self._threads[slice_.lane, slice_.device, slice_.row]

    def _slices(self) -> Iterator[TraceEvent]:
        for each in self._layout.slices:
            tid, ts, dur = self._tid(each), each.start / 1e3, (each.finish - each.start) / 1e3
            if each.span is not None:
                kinds = f"{each.span.kind},gang" if each.span.gang else each.span.kind
                colour = {"failed": "terrible", "died": "terrible", "unfinished": "grey"}.get(each.span.outcome)
                yield Complete(each.span.name, self._pid, tid, kinds, ts, dur, _about(each.span), colour)
            elif each.passage is not None:
                passage = each.passage
                args: Args = {"run": passage.run} if passage.run else {}
                if passage.step in ("dispatch", "answer"):
                    args |= {"part": passage.part, "to" if passage.step == "dispatch" else "from": _place(passage.device)}
                yield Complete(passage.name, self._pid, tid, "message", ts, dur, args)

    def _arrows(self) -> Iterator[TraceEvent]:
        """Each at the start of its slice, which is open from there on."""
        for way in self._layout.arrows:
            if len(way) < 2:
                continue
            number, last = next(self._ids), len(way) - 1
            name = "gang" if all(each.span is not None for each in way) else "dispatch"
            for index, each in enumerate(way):
                kind = FlowStart if index == 0 else FlowEnd if index == last else FlowStep
                yield kind(name, self._pid, self._tid(each), "flow", number, each.start / 1e3)

    def _waits(self) -> Iterator[TraceEvent]:
        for wait in self._timeline.waits:
            number, name = next(self._ids), f"{'waiting' if wait.operation else 'queued'}: {wait.name}"
            args: Args = {"run": wait.run, "outcome": wait.outcome}
            if not wait.operation:
                args |= {"stage": wait.stage, "priority": wait.priority}
            start, finish = self._layout.at(wait.start), self._layout.at(wait.finish)
            yield AsyncBegin(name, self._pid, self._pid, "queue", number, start / 1e3, args)
            yield AsyncEnd(name, self._pid, self._pid, "queue", number, max(start, finish) / 1e3)

    def _marks(self) -> Iterator[TraceEvent]:
        for mark in self._timeline.marks:
            lane = "coordinator" if mark.device is None else "host" if mark.device == HOST else "device"
            tid = self._threads.get((lane, HOST if mark.device is None else mark.device, 0), self._pid)
            args: Args = {**({"run": mark.run} if mark.run else {}), **({"detail": mark.detail} if mark.detail else {})}
            yield Instant(mark.name, self._pid, tid, "mark", self._layout.at(mark.at) / 1e3, "t", args)

    def _counters(self) -> Iterator[TraceEvent]:
        timeline, pid = self._timeline, self._pid
        for load in timeline.load:
            yield Counter("dispatches", pid, pid, self._layout.at(load.at) / 1e3, {"queued": load.queued, "running": load.running})
        for device in sorted({memory.device for memory in timeline.memory}):
            yield Counter(f"device {device} memory", pid, pid, self._layout.at(timeline.start) / 1e3, {"bytes": 0})
        for memory in timeline.memory:
            yield Counter(f"device {memory.device} memory", pid, pid, self._layout.at(memory.at) / 1e3, {"bytes": memory.nbytes})


def _about(span: Span) -> Args:
    """What a click on a span shows."""
    if span.kind == "down":
        return {"reason": span.detail}
    args: Args = {"run": span.run, "part": span.part, "outcome": span.outcome}
    if span.kind == "copy":
        args["size"] = amount(span.nbytes)
    else:
        args |= {"program": span.program, "stage": span.stage, "steps": list(span.steps)}
    if span.gang:
        args |= {"gang": list(span.gang), "wave": span.wave}
    if span.detail:
        args["error"] = span.detail
    args["waited at the device, µs"] = round(1e6 * max(0.0, span.start - span.dispatched), 3)
    return args


def _place(device: int) -> str | int:
    return "host" if device == HOST else device
