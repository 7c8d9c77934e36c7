"""Seeing what a worker does: a Chrome trace, which https://ui.perfetto.dev opens, and a PNG timeline.

    from pypto_actors import tracing

    with tracing.record("run.json", plot="run.png") as trace:
        async with pa.DistributedWorker(programs, trace=trace) as worker:
            ...

What stands in the trace, by lane:

- *coordinator*: each message, when it entered or left the coordinator's mailbox. These slices are marks: their length means nothing.
- *device i*: each part of a dispatch, as the device measured it; the members of a gang are of the category `gang` and joined by
  arrows. *device i copies*: its copy engine. *host*: host callbacks.
- *queued: …*: from acceptance until handed over. *waiting: copy*: a copy that must wait for what it conflicts with.
- arrows: submit → dispatch → what ran → completion.
- counters: memory of each device, dispatches queued and running.

Times are those of the loop's clock. `timeline(events)` gives the same as plain values, with `overlap` and `concurrent` to ask who
ran at the same time; it takes whatever `trace=events.append` has collected.
"""

from pypto_actors.tracing.command_line import add_options, command_line
from pypto_actors.tracing.files import TraceFileError
from pypto_actors.tracing.overlap import concurrent, overlap
from pypto_actors.tracing.recorder import Recorder, check, record, timeline
from pypto_actors.tracing.timeline import HOST, Load, Mark, Memory, Passage, Span, Timeline, Wait

__all__ = [
    "HOST",
    "Load",
    "Mark",
    "Memory",
    "Passage",
    "Recorder",
    "Span",
    "Timeline",
    "TraceFileError",
    "Wait",
    "add_options",
    "check",
    "command_line",
    "concurrent",
    "overlap",
    "record",
    "timeline",
]
