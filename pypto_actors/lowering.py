"""Lowering: from a recording to a plan. Finds what must wait for what among the steps, and groups them into parts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from pypto_actors.plan import Footprint, Part, Plan, PlanFamily, ReadyStep, Slot, Source, Step
from pypto_actors.recording import RawStep, Recording, Touch, resolve

Event = tuple[int, int]  # (part, number of its steps that are done)


def family_of(recording: Recording) -> PlanFamily:
    """The plans of a recording, one for each rank where its floating steps may begin."""
    floating = any(isinstance(step.place, tuple) for step in recording.steps)
    floating = floating or any(isinstance(scratch.place, tuple) for scratch in recording.scratch)

    def lower_at(rank: int, serial: bool) -> Plan:
        return lower(recording, rank, serial)

    return PlanFamily(lower_at, floating, _footprints(recording), None if floating else lower_at(0, False))


def _footprints(recording: Recording) -> tuple[Footprint, ...]:
    """What is touched of each argument; touching ranges with the same use are named once."""
    found: dict[tuple[int, int, int], Footprint] = {}
    for step in recording.steps:
        for touch in step.touches:
            if touch.source is Source.ARGUMENT:
                key = (touch.index, touch.start, touch.stop)
                known = found.get(key)
                if known is None or (touch.write and not known.write):
                    found[key] = Footprint(touch.index, touch.path, touch.start, touch.stop, touch.write)
    covered = [
        one
        for one in found.values()
        if not any(
            other is not one
            and other.argument == one.argument
            and other.start <= one.start
            and one.stop <= other.stop
            and (other.write or not one.write)
            for other in found.values()
        )
    ]
    return tuple(covered)


class _Hazards:
    """Who used which bytes last, among the steps of one recording."""

    def __init__(self) -> None:
        self._used: dict[tuple[Source, int], list[tuple[int, Touch]]] = {}

    def enter(self, number: int, touches: Sequence[Touch]) -> set[int]:
        """The earlier steps that step `number` must come after."""
        before: set[int] = set()
        for touch in touches:
            used = self._used.setdefault((touch.source, touch.index), [])
            kept = []
            for other, known in used:
                overlaps = known.start < touch.stop and touch.start < known.stop
                if overlaps and other != number and (known.write or touch.write):
                    before.add(other)
                if not (touch.write and touch.start <= known.start and known.stop <= touch.stop):
                    kept.append((other, known))
            kept.append((number, touch))
            self._used[touch.source, touch.index] = kept
        return before


class _PartBuilder:
    """A part while it grows. `knows` maps each part to how many of its steps are done before this one starts."""

    def __init__(self, index: int, device: int, awaited: set[Event], knows: dict[int, int]) -> None:
        self.index = index
        self.device = device
        self.awaited = awaited
        self.knows = knows
        self.steps: list[RawStep] = []
        self.marks: set[int] = set()

    def may_take(self, before: set[Event]) -> bool:
        return all(part == self.index or self.knows.get(part, 0) >= done for part, done in before)


def lower(recording: Recording, rank: int, serial: bool) -> Plan:
    """The plan for a dispatch that begins at `rank`; `serial`: every step waits for the one before it."""
    world_size = recording.world_size
    parts: list[_PartBuilder] = []
    of_device: dict[int, list[_PartBuilder]] = {}
    placed: list[Event] = []  # of each step, the event that it is done
    hazards = _Hazards()
    for number, step in enumerate(recording.steps):
        before = ({number - 1} if number else set()) if serial else hazards.enter(number, step.touches)
        events = {placed[other] for other in before}
        device = -1 if step.place is None else resolve(step.place, rank, world_size)
        part = None
        if device >= 0:
            part = next((known for known in of_device.get(device, ()) if known.may_take(events)), None)
        if part is None:
            part = _new_part(parts, device, events)
            if device >= 0:
                of_device.setdefault(device, []).append(part)
        part.steps.append(step)
        placed.append((part.index, len(part.steps)))
    return _finish(recording, rank, parts)


def _new_part(parts: list[_PartBuilder], device: int, events: set[Event]) -> _PartBuilder:
    knows: dict[int, int] = {}
    latest: dict[int, int] = {}
    for part, done in events:
        latest[part] = max(done, latest.get(part, 0))
    for part, done in latest.items():
        knows[part] = max(done, knows.get(part, 0))
        for other, known in parts[part].knows.items():
            knows[other] = max(known, knows.get(other, 0))
    implied = {
        part for part, done in latest.items() if any(parts[other].knows.get(part, 0) >= done for other in latest if other != part)
    }
    awaited = {(part, done) for part, done in latest.items() if part not in implied}
    built = _PartBuilder(len(parts), device, awaited, knows)
    parts.append(built)
    for part, done in awaited:
        parts[part].marks.add(done)
    return built


def _finish(recording: Recording, rank: int, builders: list[_PartBuilder]) -> Plan:
    scratch = tuple(raw.at(rank, recording.world_size) for raw in recording.scratch)
    wakes: dict[Event, list[int]] = {}
    for builder in builders:
        for event in sorted(builder.awaited):
            wakes.setdefault(event, []).append(builder.index)
    parts = []
    returns = 0
    for builder in builders:
        events = tuple(sorted(builder.marks | {len(builder.steps)}))
        slots, steps = _table(builder.steps)
        callback = builder.steps[0].callback
        parts.append(
            Part(
                builder.index,
                builder.device,
                slots,
                steps,
                len(builder.awaited),
                events,
                tuple(tuple(wakes.get((builder.index, done), ())) for done in events),
                callback,
                returns if callback is not None else -1,
                tuple(_ready(step) for step in steps),
                _direct(slots),
            )
        )
        returns += callback is not None
    devices = {part.device for part in parts if part.device >= 0} | {one.device for one in scratch}
    scratch_bytes: dict[int, int] = {}
    for one in scratch:
        scratch_bytes[one.device] = scratch_bytes.get(one.device, 0) + one.nbytes
    return Plan(
        recording.program,
        tuple(parts),
        tuple(sorted(devices)),
        parts[0].device if len(parts) == 1 and len(devices) == 1 else -1,
        tuple(part.index for part in parts if part.needs == 0),
        scratch,
        scratch_bytes,
        returns,
    )


def _ready(step: Step) -> ReadyStep:
    slots = step.slots
    if not slots:
        return step.function or np.copyto, _nothing
    if len(slots) == 1:
        only = slots[0]
        return step.function or np.copyto, itemgetter(slice(only, only + 1))
    return step.function or np.copyto, itemgetter(*slots)


def _nothing(_: Sequence[Any]) -> tuple[()]:
    return ()


def _direct(slots: Sequence[Slot]) -> tuple[tuple[int, bool], ...] | None:
    if all(slot.source is Source.ARGUMENT and not slot.path for slot in slots):
        return tuple((slot.index, slot.writable) for slot in slots)
    return None


def _table(raw: Sequence[RawStep]) -> tuple[tuple[Slot, ...], tuple[Step, ...]]:
    """The slots that the steps use, each once, and the steps that point into them."""
    slots: list[Slot] = []
    index: dict[object, int] = {}
    steps = []
    for step in raw:
        positions = []
        for slot in step.slots:
            key = (slot.source, slot.index, slot.path, slot.writable)
            at = index.get(key) if slot.source is not Source.CONSTANT else None
            if at is None:
                at = index[key] = len(slots)
                slots.append(slot)
            positions.append(at)
        steps.append(Step(step.name, step.function, tuple(positions)))
    return tuple(slots), tuple(steps)
