"""What a trace consists of: frozen events with ids. `trace=` gets each one as it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec import Struct

from pypto_actors.lifecycle import RunState
from pypto_actors.messages import AnyMessage

COORDINATOR = "coordinator"
HOST_ACTOR = "host"


class Event(Struct, frozen=True, gc=False, eq=False):
    """Base of all events. `at` is loop time, seconds; `run` the number of the dispatch or operation, 0 where there is none."""

    at: float
    run: int


class Started(Event, frozen=True, gc=False, eq=False):
    """A worker has started; `settings` are its coordinator's."""

    settings: Any


class Received(Event, frozen=True, gc=False, eq=False):
    """A message has entered a mailbox. `actor`: `"coordinator"`, `"host"`, or the rank of a device."""

    actor: str | int
    message: AnyMessage


class Changed(Event, frozen=True, gc=False, eq=False):
    """A dispatch or operation has moved through the life-cycle table."""

    before: RunState
    after: RunState


class Routed(Event, frozen=True, gc=False, eq=False):
    """The coordinator has taken all messages that had come; now it hands over whatever may go."""


TraceHook: TypeAlias = Callable[[Event], None]
