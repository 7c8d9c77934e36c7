"""`Recorder`: what `trace=` is given, and `record`, which saves it at the end."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from pypto_actors.events import Event, Received, Started
from pypto_actors.messages import End
from pypto_actors.tracing import chart
from pypto_actors.tracing.chrome import chrome_trace, encode
from pypto_actors.tracing.files import TraceFileError, check_path, write
from pypto_actors.tracing.story import Story
from pypto_actors.tracing.timeline import Timeline

StrPath: TypeAlias = str | os.PathLike[str]
FORGET_EACH = 1024  # events read from the far end of a bounded recording, until what they tell is dropped


class Recorder:
    """Records what workers do, for a Chrome trace and a plot: `DistributedWorker(…, trace=recorder)`.

    Recording only keeps the events; all work is done by `save` and `plot`, which may be called at any time, also while workers run.
    An event holds the message that it shows, and so the arrays that were passed: a long run needs a `limit`.

    Workers that come one after another become processes of their own in the trace; for several at once give each `recorder.worker(name)`.

    Args:
        limit: keep this many of the newest events of each worker; what came before is read and forgotten, so that counters and what was
            open then stay right. `None`: all of them.
        name: what the worker is called in the trace.
    """

    def __init__(self, *, limit: int | None = None, name: str = "worker") -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit must be an int of at least 1, or None for all events, got {limit!r}")
        self._limit = limit
        self._name = name
        self._tracks: list[_Track] = []
        self._now: _Track | None = None
        self._others: list[Recorder] = []

    def __call__(self, event: Event) -> None:
        """Keep an event. What `trace=` calls."""
        if type(event) is Started or self._now is None:
            self._begin()
        assert self._now is not None
        self._now.keep(event)

    def worker(self, name: str) -> Recorder:
        """What to give as `trace=` to one more worker, which runs beside others; it is saved and plotted with this one."""
        other = Recorder(limit=self._limit, name=name)
        self._others.append(other)
        return other

    def __repr__(self) -> str:
        tracks = list(self._all())
        return f"<Recorder of {len(tracks)} workers: {sum(len(track.events) for track in tracks)} events>"

    def _begin(self) -> None:
        now = self._now
        if now is not None and now.is_open():
            raise ValueError("two workers at once cannot be told apart; give each of them its own trace=recorder.worker(name)")
        name = self._name if not self._tracks else f"{self._name} {len(self._tracks) + 1}"
        self._now = _Track(name, self._limit)
        self._tracks.append(self._now)

    def _all(self) -> Iterator[_Track]:
        yield from self._tracks
        for other in self._others:
            yield from other._all()

    # ------------------------------------------------------------------------------------------ what was recorded

    @property
    def events(self) -> list[Event]:
        """The events of the only worker, as `testing.replay` takes them. Raises `ValueError` where there are several."""
        tracks = list(self._all())
        if len(tracks) > 1:
            raise ValueError(f"there are {len(tracks)} workers; ask what recorder.worker(name) gave for the events of one")
        return list(tracks[0].events) if tracks else []

    def timelines(self) -> list[Timeline]:
        """What the events say, one for each worker, in the order in which they started."""
        return sorted((track.timeline() for track in self._all()), key=lambda timeline: timeline.start)

    def timeline(self) -> Timeline:
        """What the events of the only worker say. Raises `ValueError` where there is none, or there are several."""
        timelines = self.timelines()
        if len(timelines) != 1:
            raise ValueError(f"{len(timelines)} workers were recorded, not one; see timelines()")
        return timelines[0]

    def save(self, path: StrPath) -> None:
        """Write a Chrome trace; open it at https://ui.perfetto.dev. Raises `TraceFileError`, and then leaves the old file alone."""
        check_path(path, "trace")
        write(path, encode(chrome_trace(self.timelines())), "trace")

    def plot(self, path: StrPath) -> None:
        """Write a PNG. Raises `TraceFileError`, or `ImportError` where matplotlib is missing."""
        chart.require()
        check_path(path, "plot")
        write(path, chart.png(self.timelines()), "plot")


class _Track:
    """The events of one worker."""

    def __init__(self, name: str, limit: int | None) -> None:
        self.name = name
        self.events: deque[Event] = deque()
        self._limit = limit
        self._before = Story(name)  # has read what is not kept
        self._forgotten = 0
        self._ended = False  # is the end of its worker among what is not kept?

    def keep(self, event: Event) -> None:
        events = self.events
        events.append(event)
        if self._limit is not None and len(events) > self._limit:
            oldest = events.popleft()
            self._before.take(oldest)
            self._ended = self._ended or _is_end(oldest)
            self._forgotten += 1
            if self._forgotten % FORGET_EACH == 0:
                self._before.forget()

    def is_open(self) -> bool:
        """Has its worker heard anything, and not yet the end? One that failed to start has heard nothing."""
        if self.events and type(self.events[-1]) is Started:
            return False
        return not (self._ended or any(map(_is_end, reversed(self.events))))

    def timeline(self) -> Timeline:
        story = self._before.fork()
        for event in list(self.events):
            story.take(event)
        return story.timeline()


def _is_end(event: Event) -> bool:
    return type(event) is Received and type(event.message) is End


def timeline(events: Iterable[Event], name: str = "worker") -> Timeline:
    """What the events of one worker say, as `trace=events.append` has collected them."""
    story = Story(name)
    for event in events:
        story.take(event)
    return story.timeline()


def check(trace: StrPath | None = None, plot: StrPath | None = None) -> None:
    """Can both be written? Raises `TraceFileError`, or `ImportError` where there is to be a plot and matplotlib is missing."""
    if trace is not None:
        check_path(trace, "trace")
    if plot is not None:
        check_path(plot, "plot")
        chart.require()
    if trace is not None and plot is not None and Path(trace).resolve() == Path(plot).resolve() != Path(os.devnull):
        raise TraceFileError(f"the trace and the plot would both be written to {os.fspath(plot)!r}; name a file for each")


@contextmanager
def record(
    trace: StrPath | None = None, *, plot: StrPath | None = None, limit: int | None = None, name: str = "worker"
) -> Iterator[Recorder]:
    """A `Recorder` that is saved to `trace` and plotted to `plot` (each where given) when the block ends, also by an exception.

        with tracing.record("run.json", plot="run.png") as trace:
            async with pa.DistributedWorker(programs, trace=trace) as worker:
                ...

    Raises:
        TraceFileError: one of the files cannot be written; as far as possible before anything runs.
        ImportError: `plot` is given and matplotlib is missing; before anything runs.
    """
    check(trace, plot)
    recorder = Recorder(limit=limit, name=name)
    try:
        yield recorder
    except BaseException as error:
        try:
            _write(recorder, trace, plot)
        except Exception as fault:  # what went wrong in the block is the news
            error.add_note(f"and its trace was not saved: {fault}")
        raise
    _write(recorder, trace, plot)


def _write(recorder: Recorder, trace: StrPath | None, plot: StrPath | None) -> None:
    if trace is not None:
        recorder.save(trace)
    if plot is not None:
        recorder.plot(plot)
