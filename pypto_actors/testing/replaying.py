"""Replay: a recorded trace fed into a fresh coordinator, whose decisions must be the recorded ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from pypto_actors.coordinator import Coordinator, Settings
from pypto_actors.errors import PyptoActorsError
from pypto_actors.events import COORDINATOR, HOST_ACTOR, Changed, Event, Received, Routed, Started
from pypto_actors.lifecycle import Record, RunState
from pypto_actors.messages import Allocate, Call, Copy, Drain, Free, Pause, Retire, Submit, ToDevice


class ReplayError(PyptoActorsError, AssertionError):
    """The fresh coordinator decided otherwise than the recorded one."""


class _Port:
    """Takes down what a coordinator does, instead of doing it."""

    def __init__(self) -> None:
        self.done: deque[tuple[Any, ...]] = deque()

    def send(self, device: int, message: ToDevice) -> None:
        self.done.append((device, _essence(message)))

    def call(self, message: Call) -> None:
        self.done.append((HOST_ACTOR, _essence(message)))

    def left(self) -> None:
        pass

    def failed(self, record: Record) -> None:
        pass

    def lost(self, device: int, allocations: Sequence[int]) -> None:
        pass

    def restart(self, device: int) -> None:
        pass

    def changed(self, record: Record, before: RunState) -> None:
        self.done.append(("changed", record.id, before, record.state))


def replay(events: Iterable[Event]) -> int:
    """Feed the events that `trace=` recorded into a fresh coordinator; gives the number of its decisions that were compared.

    The events must begin with the start of the worker. The worker's policy must be pure, as the contract of a policy demands.

    Raises:
        ReplayError: a decision differs; the text says which, and what was decided then and now.
        ValueError: the trace does not begin with the start of a worker, or records several.
    """
    recorded = list(events)
    if not recorded or not isinstance(recorded[0], Started):
        raise ValueError("a trace begins with events.Started; pass all events that trace= gave, from before the worker was entered")
    if sum(isinstance(event, Started) for event in recorded) > 1:
        raise ValueError("the trace records more than one worker; give each worker a list of its own")
    return _Replay(recorded[0].settings).run(recorded)


class _Replay:
    def __init__(self, settings: Settings) -> None:
        self._port = _Port()
        self._coordinator = Coordinator(settings, self._port)
        self._coordinator.trace()
        self._records: dict[int, Record] = {}
        self._inbox: deque[Received] = deque()

    def run(self, recorded: Sequence[Event]) -> int:
        compared = 0
        for number, event in enumerate(recorded):
            if isinstance(event, Received) and event.actor == COORDINATOR:
                self._inbox.append(event)
            elif isinstance(event, Routed):
                self._take_all()
                self._coordinator.route()
            elif isinstance(event, (Received, Changed)):
                self._compare(number, event)
                compared += 1
        self._take_all()
        if self._port.done:
            raise ReplayError(f"the trace ends, but the fresh coordinator also decided {self._port.done[0]!r}")
        return compared

    def _compare(self, number: int, event: Received | Changed) -> None:
        if isinstance(event, Received):
            want: tuple[Any, ...] = (event.actor, _essence(event.message))
        else:
            want = ("changed", event.run, event.before, event.after)
        while not self._port.done and self._inbox:  # the recorded coordinator took its mail one by one
            self._take()
        if not self._port.done:
            raise ReplayError(f"event {number}: {want!r} was decided then, nothing now")
        got = self._port.done.popleft()
        if got != want:
            raise ReplayError(f"event {number}: {want!r} was decided then, {got!r} now")

    def _take_all(self) -> None:
        while self._inbox:
            self._take()

    def _take(self) -> None:
        message = self._inbox.popleft().message
        record = None
        if isinstance(message, (Submit, Allocate, Copy, Free, Drain, Retire, Pause)):
            record = self._records[message.run] = Record(message.run, message=message)
            if isinstance(message, Submit):
                record.program = message.program
                record.after = tuple(self._records[run] for run in message.after)
        self._coordinator.receive(message, record)  # type: ignore[arg-type]


def _essence(message: Any) -> tuple[Any, ...]:
    """What makes two messages the same decision: everything but the arrays that they carry."""
    fields = []
    for name in message.__struct_fields__:
        value = getattr(message, name)
        fields.append(id(value) if name in ("args", "plan") else _plain(value))
    return (type(message).__name__, *fields)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, tuple, bool, type(None))) or hasattr(value, "__struct_fields__") else id(value)
