"""What devices and the host were given to do, and the spans that come of it: by their answers, or cut off where none came."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from pypto_actors.messages import Completed, Failed
from pypto_actors.tracing.labels import Label, clean, copy_name, error_text
from pypto_actors.tracing.timeline import HOST, Outcome, Span


class _Item(Struct, frozen=True):
    """A part of a dispatch, or a piece of a copy (`label` None), and when it was given."""

    message: Any
    at: float
    label: Label | None
    stage: str | None


class Work:
    """What was given and not answered, by device, in the order in which it was given."""

    def __init__(self) -> None:
        self._items: dict[int, dict[tuple[int, int], _Item]] = {}
        self._unanswered: dict[int, int] = {}  # run -> how many items
        self._free_at: dict[int, float] = {}  # device -> when it last ended a part
        self._down: dict[int, tuple[float, str]] = {}  # device -> since when, and why

    def copy(self) -> Work:
        other = Work()
        other._items = {device: dict(items) for device, items in self._items.items()}
        other._unanswered = dict(self._unanswered)
        other._free_at, other._down = dict(self._free_at), dict(self._down)
        return other

    def give(self, device: int, message: Any, at: float, label: Label | None, stage: str | None = None) -> None:
        """A message has been put into the mailbox of a device, or of the host."""
        self._items.setdefault(device, {})[message.run, message.part] = _Item(message, at, label, stage)
        self._unanswered[message.run] = self._unanswered.get(message.run, 0) + 1

    def answer(self, message: Completed | Failed) -> Span | None:
        """The span that an answer ends; None for memory that was made, or could not be."""
        device = message.device
        item = self._items.get(device, {}).pop((message.run, message.part), None)
        if item is None:
            return None
        self._unanswered[message.run] -= 1
        if item.label is not None:
            self._free_at[device] = message.finished
        if isinstance(message, Failed):
            return _span(device, item, message.started, message.finished, "failed", error_text(message.error))
        return _span(device, item, message.started, message.finished, "done")

    def ended(self, run: int) -> None:
        """A dispatch or operation has ended. What it still was to do has gone to a device that was dead already."""
        if self._unanswered.pop(run, 0):
            for items in self._items.values():
                for key in [key for key in items if key[0] == run]:
                    del items[key]

    def died(self, device: int, at: float, reason: str) -> list[Span]:
        """A device has died; gives what it was doing."""
        spans = list(self._cut_off(device, at, "died", reason))
        self._items.pop(device, None)
        self._free_at.pop(device, None)
        self._down.setdefault(device, (at, reason))
        return spans

    def restarted(self, device: int, at: float) -> Span:
        """A device is there again; gives the time for which it was not."""
        self._free_at[device] = at
        return _down(device, at, *self._down.pop(device, (at, "")))

    def open(self, end: float) -> list[Span]:
        """What is under way when the trace ends."""
        spans = [span for device in self._items for span in self._cut_off(device, end, "unfinished")]
        return spans + [_down(device, end, *since) for device, since in self._down.items()]

    def _cut_off(self, device: int, at: float, outcome: Outcome, detail: str = "") -> Iterator[Span]:
        """What a device is doing: its copies, and of its parts the first, since it does them in order. The host does all at once."""
        busy = False
        for item in self._items.get(device, {}).values():
            in_order = item.label is not None and device != HOST
            if in_order and busy:
                continue
            start = max(item.at, self._free_at.get(device, item.at)) if in_order else item.at
            busy = busy or in_order
            yield _span(device, item, min(start, at), at, outcome, detail)


def _down(device: int, until: float, since: float, reason: str) -> Span:
    return Span("down", device, 0, 0, "down", since, until, since, detail=reason)


def _span(device: int, item: _Item, start: float, finish: float, outcome: Outcome, detail: str = "") -> Span:
    message, label = item.message, item.label
    finish = max(start, finish)
    if label is None:
        name, nbytes = copy_name(message)
        return Span("copy", device, message.run, message.part, name, start, finish, item.at, nbytes=nbytes, outcome=outcome, detail=detail)
    return Span(
        "callback" if device == HOST else "kernel",
        device,
        message.run,
        message.part,
        label.name,
        start,
        finish,
        item.at,
        clean(message.plan.program),
        item.stage,
        label.steps,
        label.gang,
        label.wave,
        0,
        outcome,
        detail,
    )
