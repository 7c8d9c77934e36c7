"""From events to a timeline: reads the events of one worker in order, and keeps only what is open and what is to be told."""

from __future__ import annotations

from copy import copy
from typing import Any

from msgspec import Struct

from pypto_actors.events import COORDINATOR, HOST_ACTOR, Changed, Event, Received, Started
from pypto_actors.lifecycle import RunState
from pypto_actors.messages import (
    Allocate,
    Call,
    Cancel,
    Commit,
    Completed,
    Copy,
    Died,
    Dispatch,
    Failed,
    Free,
    Pause,
    Reached,
    Read,
    Release,
    Restarted,
    Resume,
    Submit,
    Transfer,
    Write,
)
from pypto_actors.plan import Plan
from pypto_actors.tracing.holdings import Holdings
from pypto_actors.tracing.labels import Label, amount, clean, copy_name, error_text, label_of
from pypto_actors.tracing.timeline import HOST, Load, Mark, Memory, Passage, Span, Step, Timeline, Wait
from pypto_actors.tracing.work import Work

QUEUED, RUNNING, DONE = RunState.QUEUED, RunState.RUNNING, RunState.DONE


class _Run(Struct):
    """A dispatch or an operation that has not ended."""

    run: int
    name: str
    accepted: float
    operation: bool = False
    stage: str | None = None
    priority: int = 0
    ends: int = 0  # how many others had ended when it was accepted
    waits: bool = True

    def wait(self, until: float, outcome: str) -> Wait:
        return Wait(self.run, self.name, self.accepted, until, outcome, self.operation, self.stage, self.priority)


class Story:
    """One worker's events, read one by one; `timeline()` tells what they came to, also in the middle."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start: float | None = None
        self._last = 0.0
        self._devices = 0
        self._runs: dict[int, _Run] = {}
        self._work = Work()
        self._holdings = Holdings()
        self._queued = self._running = 0
        self._ends = 0  # of dispatches and operations, and of times that a device was down
        self._paused = False
        self._labels: dict[tuple[Plan, int], Label] = {}
        self.forget()

    def forget(self) -> None:
        """Drop what is over: it is told, or not to be told."""
        self._spans: list[Span] = []
        self._waits: list[Wait] = []
        self._passages: list[Passage] = []
        self._marks: list[Mark] = []
        self._memory: list[Memory] = []
        self._load: list[Load] = []

    def fork(self) -> Story:
        """Another one that has read the same events, with what is over forgotten, and goes on by itself."""
        other = copy(self)
        other._runs = {run: copy(known) for run, known in self._runs.items()}
        other._work, other._holdings = self._work.copy(), self._holdings.copy()
        other.forget()
        if self._start is not None:
            other._start = self._last
            other._memory = [Memory(self._last, device, nbytes) for device, nbytes in self._holdings.totals()]
            other._count(self._last)
        return other

    # ------------------------------------------------------------------------------------------ reading

    def take(self, event: Event) -> None:
        """Read the next event."""
        at = event.at
        if self._start is None:
            self._start = at
        self._last = max(self._last, at)
        if type(event) is Received:
            if event.actor == COORDINATOR:
                self._heard(at, event.message)
            else:
                self._given(at, HOST if event.actor == HOST_ACTOR else int(event.actor), event.message)
        elif type(event) is Changed:
            self._changed(at, event)
        elif type(event) is Started:
            self._devices = len(event.settings.capacities)
            self._count(at)

    def _heard(self, at: float, message: Any) -> None:
        """A message has come to the coordinator."""
        match message:
            case Submit():
                name = clean(message.program.name)
                self._runs[message.run] = _Run(message.run, name, at, False, message.stage, message.priority)
                self._queued += 1
                self._count(at)
                self._pass(at, f"Submit {name}", "submit", message.run)
            case Completed() | Failed():
                self._answered(at, message)
            case Allocate() | Free():
                self._operation(at, message.run, type(message).__name__, sum(tensor.nbytes for tensor in message.tensors))
            case Copy():
                self._operation(at, message.run, "Copy", sum(copy_name(piece)[1] for piece in message.pieces))
            case Reached() | Cancel():
                self._pass(at, f"{type(message).__name__} {self._name(message.run)}", run=message.run)
            case Died():
                self._died(at, message)
            case Restarted():
                self._ends += 1
                self._spans.append(self._work.restarted(message.device, at))
                self._marks.append(Mark(at, "restarted", message.device))
                self._pass(at, f"Restarted {message.device}", device=message.device)
            case Pause():
                self._paused = True
                self._marks.append(Mark(at, "paused", detail=f"mode {message.mode!r}"))
                self._pass(at, "Pause")
            case Resume():
                if self._paused:  # every worker is also resumed when it closes
                    self._marks.append(Mark(at, "resumed"))
                self._paused = False
                self._pass(at, "Resume")
            case _:
                self._pass(at, type(message).__name__)

    def _given(self, at: float, device: int, message: Any) -> None:
        """The coordinator has put a message into the mailbox of a device, or of the host."""
        match message:
            case Dispatch() | Call():
                label = self._label(message.plan, message.part)
                known = self._runs.get(message.run)
                self._work.give(device, message, at, label, known.stage if known is not None else None)
                self._pass(at, f"{type(message).__name__} {label.name}", "dispatch", message.run, message.part, device)
            case Write() | Read() | Transfer():
                self._work.give(device, message, at, None)
                self._go(at, message.run, RUNNING)
                self._pass(at, f"Dispatch {copy_name(message)[0]}", "dispatch", message.run, message.part, device)
            case Commit():
                self._go(at, message.run, RUNNING)
                self._memory.append(Memory(at, device, self._holdings.commit(device, message.items)))
            case Release():
                self._memory.append(Memory(at, device, self._holdings.release(device, message.allocations)))

    def _changed(self, at: float, event: Changed) -> None:
        """A dispatch or an operation has moved through the table of states."""
        known = self._runs.get(event.run)
        if known is None:
            return
        self._go(at, event.run, event.after)
        if not known.operation:
            self._queued -= event.before is QUEUED
            self._running += (event.after is RUNNING) - (event.before is RUNNING)
            self._count(at)
        if event.after.final:
            if event.after is not DONE:
                self._marks.append(Mark(at, f"{known.name} {event.after.value}", run=event.run))
            del self._runs[event.run]
            self._work.ended(event.run)
            self._ends += 1

    def _go(self, at: float, run: int, state: RunState) -> None:
        """It waits no longer."""
        known = self._runs.get(run)
        if known is not None and known.waits:
            known.waits = False
            if not known.operation or self._ends > known.ends:  # an operation waits for nothing else
                self._waits.append(known.wait(at, state.value))

    def _answered(self, at: float, message: Completed | Failed) -> None:
        span = self._work.answer(message)
        name = f"{type(message).__name__} {self._name(message.run) if span is None else span.name}"
        if span is None:
            self._pass(at, name, run=message.run, device=message.device)
        else:
            self._spans.append(span)
            self._pass(at, name, "answer", message.run, message.part, message.device, len(self._spans) - 1)
        if isinstance(message, Failed) and not message.deserted:
            self._marks.append(Mark(message.finished, "failed", message.device, message.run, error_text(message.error)))

    def _died(self, at: float, message: Died) -> None:
        device, reason = message.device, clean(message.reason)
        self._spans += self._work.died(device, at, reason)
        self._marks.append(Mark(at, "died", device, detail=reason))
        self._pass(at, f"Died {device}", device=device)
        if self._holdings.lose(device):
            self._memory.append(Memory(at, device, 0))

    # ------------------------------------------------------------------------------------------ telling

    def timeline(self) -> Timeline:
        """What has been read, and not been forgotten. What is open lasts until the last event, as `"unfinished"`."""
        end = self._last
        open_waits = [known.wait(end, "unfinished") for known in self._runs.values() if known.waits]
        return Timeline(
            self.name,
            end if self._start is None else self._start,
            end,
            self._devices,
            (*self._spans, *self._work.open(end)),
            (*self._waits, *open_waits),
            tuple(self._passages),
            tuple(self._marks),
            tuple(self._memory),
            tuple(self._load),
        )

    def _operation(self, at: float, run: int, name: str, nbytes: int) -> None:
        self._runs[run] = _Run(run, name.lower(), at, True, ends=self._ends)
        self._pass(at, f"{name} {amount(nbytes)}", "submit", run)

    def _pass(self, at: float, name: str, step: Step = "other", run: int = 0, part: int = 0, device: int = HOST, span: int = -1) -> None:
        self._passages.append(Passage(at, name, step, run, part, device, span))

    def _count(self, at: float) -> None:
        self._load.append(Load(at, self._queued, self._running))

    def _name(self, run: int) -> str:
        known = self._runs.get(run)
        return f"dispatch {run}" if known is None else known.name

    def _label(self, plan: Plan, part: int) -> Label:
        label = self._labels.get((plan, part))
        if label is None:
            label = self._labels[plan, part] = label_of(plan, part)
        return label
