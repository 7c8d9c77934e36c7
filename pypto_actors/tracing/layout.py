"""Where everything stands in a Chrome trace: whole nanoseconds, lanes in which nothing overlaps, and arrows that go forward.

Perfetto binds an arrow to the slice that is open on its lane, so every end of an arrow needs a slice of at least a nanosecond that
overlaps no other. Where the trace has several messages at one time (with a virtual clock all of a turn), they are put a nanosecond
apart, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from pypto_actors.tracing.timeline import HOST, Passage, Span, Timeline

LONGEST = 5_000  # ns that a message takes up at most on the coordinator's lane
CLOSE = 1_000  # ns by which a slice may be moved so that it does not overlap the one before

Key = tuple[int, int, int]  # (run, part, device)


class Slice(Struct, frozen=True):
    """A slice of a lane. `row`: several lanes where spans of one lane overlap."""

    start: int
    finish: int
    lane: str  # "coordinator", "host", "device" or "copies"
    device: int = HOST
    row: int = 0
    span: Span | None = None
    passage: Passage | None = None


class Layout:
    """One worker's slices and arrows. `origin`: the loop time that is nanosecond 0."""

    def __init__(self, timeline: Timeline, origin: float) -> None:
        self._origin = origin
        self._timeline = timeline
        self._ends: dict[tuple[str, int], int] = {}  # where the last slice of a lane ends
        self._submitted: dict[int, int] = {}
        self._dispatched: dict[Key, int] = {}
        self._answered: dict[Key, int] = {}
        self._starts: list[int] = []  # of each message
        placed = self._place()
        self.slices: list[Slice] = self._messages + list(_in_rows(placed))
        self.arrows: list[list[Slice]] = [*self._ways(), *self._gangs()]

    def at(self, time: float) -> int:
        """Loop time in nanoseconds from the origin."""
        return round((time - self._origin) * 1e9)

    # ------------------------------------------------------------------------------------------ slices

    def _place(self) -> list[Slice]:
        """Place the messages one after another, and each span when its answer comes: behind its dispatch, before its answer."""
        spans = self._timeline.spans
        placed: dict[int, Slice] = {}
        cursor = 0
        for number, passage in enumerate(self._timeline.passages):
            start = max(self.at(passage.at), cursor)
            key = (passage.run, passage.part, passage.device)
            if passage.span >= 0:
                placed[passage.span] = self._span(spans[passage.span])
                start = max(start, placed[passage.span].finish)
                self._answered[key] = number
            elif passage.step == "submit":
                self._submitted[passage.run] = number
            elif passage.step == "dispatch":
                self._dispatched[key] = number
            self._starts.append(start)
            cursor = start + 1
        self._messages = [
            Slice(start, max(start + 1, min(after, start + LONGEST)), "coordinator", passage=passage)
            for start, after, passage in zip(self._starts, [*self._starts, cursor + LONGEST][1:], self._timeline.passages, strict=True)
        ]
        rest = [index for index in range(len(spans)) if index not in placed]
        for index in sorted(rest, key=lambda index: spans[index].start):
            placed[index] = self._span(spans[index])
        return [placed[index] for index in range(len(spans))]

    def _span(self, span: Span) -> Slice:
        lane = "host" if span.kind == "callback" else "copies" if span.kind == "copy" else "device"
        start, finish = self.at(span.start), self.at(span.finish)
        sent = self._dispatched.get((span.run, span.part, span.device))
        if sent is not None:
            start = max(start, self._starts[sent] + 1)
        end = self._ends.get((lane, span.device), 0)
        if start < end <= start + CLOSE:
            start = end
        finish = max(finish, start + 1)
        self._ends[lane, span.device] = finish
        return Slice(start, finish, lane, span.device, span=span)

    # ------------------------------------------------------------------------------------------ arrows

    def _ways(self) -> Iterator[list[Slice]]:
        """The way of each part and piece: submit, dispatch, what was done, its answer."""
        done: dict[Key, Slice] = {}
        for slice_ in self.slices:
            span = slice_.span
            if span is not None and span.kind != "down":
                done[span.run, span.part, span.device] = slice_
        for key, number in self._dispatched.items():
            way = [self._messages[number]]
            if key[0] in self._submitted:
                way.insert(0, self._messages[self._submitted[key[0]]])
            if key in done:
                way.append(done[key])
            if key in self._answered:
                way.append(self._messages[self._answered[key]])
            yield way

    def _gangs(self) -> Iterator[list[Slice]]:
        """The members of each gang, in the order in which they began."""
        gangs: dict[tuple[int, int], list[Slice]] = {}
        for slice_ in self.slices:
            span = slice_.span
            if span is not None and span.gang:
                gangs.setdefault((span.run, span.wave), []).append(slice_)
        for members in gangs.values():
            yield sorted(members, key=lambda member: member.start)


def _in_rows(placed: Sequence[Slice]) -> Iterator[Slice]:
    """The slices of each lane, in as many rows as it takes that none overlaps another of its row."""
    ends: dict[tuple[str, int], list[int]] = {}
    for slice_ in sorted(placed, key=lambda each: (each.start, each.finish)):
        rows = ends.setdefault((slice_.lane, slice_.device), [])
        row = next((row for row, end in enumerate(rows) if end <= slice_.start), len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] = slice_.finish
        yield Slice(slice_.start, slice_.finish, slice_.lane, slice_.device, row, slice_.span)


def origin_of(timelines: Sequence[Timeline]) -> float:
    """The earliest time of all."""
    times = [timeline.start for timeline in timelines]
    for timeline in timelines:
        times += [span.start for span in timeline.spans]
        times += [wait.start for wait in timeline.waits]
    return min(times, default=0.0)
