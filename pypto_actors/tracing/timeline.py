"""What a trace says when it is read: spans, waits, messages, marks and counters of one worker. Plain values; times in seconds."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

HOST = -1  # the lane of host callbacks, where a device's rank would stand

Kind: TypeAlias = Literal["kernel", "copy", "callback", "down"]
Outcome: TypeAlias = Literal["done", "failed", "died", "unfinished"]
Step: TypeAlias = Literal["submit", "dispatch", "answer", "other"]


class Span(Struct, frozen=True):
    """Something that took time on a device or on the host: a part of a dispatch, a piece of a copy, a callback, or a device being down.

    Attributes:
        kind: `"kernel"`, `"copy"`, `"callback"` or `"down"`.
        device: the rank; `HOST` for a callback.
        run: the number of the dispatch or operation, as `RunResult.run_id` has it; `part`: which part or piece of it.
        name: for people. `program`, `stage`: of the dispatch; empty and None otherwise.
        start, finish: as the device measured them. Where it never answered (`"died"`, `"unfinished"`) both are derived: it does what it
            is handed in order, so this began when the one before ended, and lasted until the death or the end of the trace.
        dispatched: when it was put into the device's mailbox.
        steps: the kernels of the part, in order, repeated ones as `name ×3`.
        gang: the ranks that start together, this one among them; empty where it meets nobody. `wave`: which of the dispatch's gangs.
        nbytes: what a copy moves.
        outcome: how it ended; `detail`: the error, where there is one.
    """

    kind: Kind
    device: int
    run: int
    part: int
    name: str
    start: float
    finish: float
    dispatched: float
    program: str = ""
    stage: str | None = None
    steps: tuple[str, ...] = ()
    gang: tuple[int, ...] = ()
    wave: int = 0
    nbytes: int = 0
    outcome: Outcome = "done"
    detail: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.finish - self.start


class Wait(Struct, frozen=True):
    """From acceptance until it was handed over, or ended without: `outcome` is the state that it went to, or `"unfinished"`."""

    run: int
    name: str
    start: float
    finish: float
    outcome: str
    operation: bool = False  # a copy, an allocation or a free, which waits only for what it conflicts with; not a dispatch
    stage: str | None = None
    priority: int = 0


class Passage(Struct, frozen=True):
    """A message as it entered a mailbox of, or was sent by, the coordinator; `span` is what it answers (a position in `Timeline.spans`)."""

    at: float
    name: str
    step: Step = "other"
    run: int = 0
    part: int = 0
    device: int = HOST
    span: int = -1


class Mark(Struct, frozen=True):
    """Something that happened at once: a failure, a cancellation, a death. `device` None: it concerns the worker."""

    at: float
    name: str
    device: int | None = None
    run: int = 0
    detail: str = ""


class Memory(Struct, frozen=True):
    """Bytes that a device holds from `at` on."""

    at: float
    device: int
    nbytes: int


class Load(Struct, frozen=True):
    """Dispatches from `at` on: accepted and not handed over, and handed over and not ended."""

    at: float
    queued: int
    running: int


class Timeline(Struct, frozen=True):
    """One worker, from its start to the last event of its trace. All times are those of the loop's clock.

    Memory is derived from what devices are told to hold and to release, so an allocation counts from when it is sent, not from when
    the coordinator reserves it. A device that dies holds nothing.
    """

    name: str
    start: float
    finish: float
    devices: int
    spans: tuple[Span, ...]
    waits: tuple[Wait, ...]
    passages: tuple[Passage, ...]
    marks: tuple[Mark, ...]
    memory: tuple[Memory, ...]
    load: tuple[Load, ...]

    def of(self, run: int) -> tuple[Span, ...]:
        """The spans of one dispatch or operation."""
        return tuple(span for span in self.spans if span.run == run)

    @property
    def kernels(self) -> tuple[Span, ...]:
        """The spans in which devices computed."""
        return tuple(span for span in self.spans if span.kind == "kernel")
