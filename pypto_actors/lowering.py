"""Lowering: from a recording to a plan. Finds what must wait for what among the steps, and groups them into parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from pypto_actors.collectives import copy
from pypto_actors.plan import Apart, Footprint, Part, Plan, PlanFamily, ReadyStep, Slot, Source, Step, Sync
from pypto_actors.steps import RawGang, RawStep, Recording, Touch, resolve, steps_of

Event = tuple[int, int]  # (part, number of its steps that are done)


def family_of(recording: Recording) -> PlanFamily:
    """The plans of a recording, one for each rank where its floating steps may begin."""
    floating = any(isinstance(step.place, tuple) for step in steps_of(recording))
    floating = floating or any(isinstance(scratch.place, tuple) for scratch in recording.scratch)

    def lower_at(rank: int, serial: bool) -> Plan:
        return lower(recording, rank, serial)

    return PlanFamily(lower_at, floating, _footprints(recording), None if floating else lower_at(0, False), _apart(recording))


def _footprints(recording: Recording) -> tuple[Footprint, ...]:
    """What is touched of each argument; touching ranges with the same use are named once."""
    found: dict[tuple[int, int, int], Footprint] = {}
    for step in steps_of(recording):
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


def _apart(recording: Recording) -> tuple[Apart, ...]:
    """The members of gangs, and the refs of collectives, that different arguments may make share bytes."""
    found = []
    for item in recording.steps:
        if isinstance(item, RawGang):
            members = [[touch for touch in member.touches if touch.source is Source.ARGUMENT] for member in item.members]
            if item.ends_together:  # each member works on all refs, and these must be apart
                members = [[touch] for touch in dict.fromkeys(touch for some in members for touch in some)]
            sets = tuple(tuple(Footprint(one.index, one.path, one.start, one.stop, one.write) for one in some) for some in members if some)
            if len(sets) > 1:
                found.append(Apart(item.members[0].name, sets))
    return tuple(found)


class _Hazards:
    """Who used which bytes last, among the steps of one recording."""

    def __init__(self) -> None:
        self._used: dict[tuple[Source, int], list[tuple[int, Touch]]] = {}

    def enter(self, number: int, touches: Sequence[Touch], apart: range) -> set[int]:
        """The earlier steps that step `number` must come after; those in `apart` are the members of its own gang."""
        before: set[int] = set()
        for touch in touches:
            used = self._used.setdefault((touch.source, touch.index), [])
            kept = []
            for other, known in used:
                overlaps = known.start < touch.stop and touch.start < known.stop
                if overlaps and other not in apart and (known.write or touch.write):
                    before.add(other)
                if not (touch.write and touch.start <= known.start and known.stop <= touch.stop):
                    kept.append((other, known))
            kept.append((number, touch))
            self._used[touch.source, touch.index] = kept
        return before


class _PartBuilder:
    """A part while it grows.

    `clock` maps each part to how many of its entries are done when this one's last entry begins or, where that is a meeting, when it ends.
    `clocks` has that of each entry: a meeting brings a new dictionary, it changes none.
    """

    def __init__(self, index: int, device: int, wave: _Wave) -> None:
        self.index = index
        self.device = device
        self.wave = wave
        self.clock = dict(wave.clock)
        self.clocks: list[Mapping[int, int]] = []
        self.entries: list[RawStep | Sync] = []
        self.marks: set[int] = set()

    def knows(self, event: Event) -> bool:
        part, done = event
        return part == self.index or self.clock.get(part, 0) >= done

    def add(self, entry: RawStep | Sync) -> Event:
        self.entries.append(entry)
        self.clocks.append(self.clock)
        return self.index, len(self.entries)


class _Wave:
    """Parts that await the same events, at most one a device."""

    def __init__(self, number: int, awaited: frozenset[Event], clock: dict[int, int]) -> None:
        self.number = number
        self.awaited = awaited
        self.clock = clock
        self.parts: dict[int, _PartBuilder] = {}

    def fits(self, devices: Sequence[int], events: set[Event]) -> bool:
        """Will all `events` have happened when parts on all of `devices` have met?"""
        met = [self.parts[device] for device in devices if device in self.parts]
        return all(any(part.knows(event) for part in met) or self.clock.get(event[0], 0) >= event[1] for event in events)


class _Lowering:
    """One recording on its way to a plan."""

    def __init__(self, recording: Recording, rank: int) -> None:
        self.recording = recording
        self.rank = rank
        self.parts: list[_PartBuilder] = []
        self.waves = [_Wave(0, frozenset(), {})]
        self.placed: list[Event] = []  # of each step, the event that it is done
        self.meetings = 0
        self.barriers = any(step.barrier for step in steps_of(recording))
        self.fences: dict[int, int] = {}  # device -> its last barrier
        self.since: dict[int, list[int]] = {}  # device -> its steps since then

    def run(self, serial: bool) -> Plan:
        hazards = _Hazards()
        last = 0  # the first step of the item before
        for item in self.recording.steps:
            members = item.members if isinstance(item, RawGang) else (item,)
            first = len(self.placed)
            apart = range(first, first + len(members))
            before: set[int] = set(range(last, first)) if serial else set()
            last = first
            for number, member in zip(apart, members, strict=True):
                if not serial:
                    before |= hazards.enter(number, member.touches, apart)
                    before |= self._fenced(number, member)
            events = {self.placed[other] for other in before}
            if isinstance(item, RawGang) and len(members) > 1:
                self._place_gang(item, events)
            else:
                self._place(members[0], events)
        return self._plan()

    def _fenced(self, number: int, step: RawStep) -> set[int]:
        """The steps that `step` must come after since one of the two is a barrier of their device."""
        device = self._device(step)
        if device < 0:
            return set()
        before = set(self.since.get(device, ())) if step.barrier else set()
        if device in self.fences:
            before.add(self.fences[device])
        if step.barrier:
            self.fences[device] = number
            self.since[device] = []
        elif self.barriers:
            self.since.setdefault(device, []).append(number)
        return before

    def _device(self, step: RawStep) -> int:
        return -1 if step.place is None else resolve(step.place, self.rank, self.recording.world_size)

    def _place(self, step: RawStep, events: set[Event]) -> None:
        device = self._device(step)
        if device >= 0:
            for wave in self.waves:
                part = wave.parts.get(device)
                if part is not None and all(part.knows(event) for event in events):
                    self.placed.append(part.add(step))
                    return
        self.placed.append(self._part(self._wave(events), device).add(step))

    def _place_gang(self, gang: RawGang, events: set[Event]) -> None:
        devices = [self._device(member) for member in gang.members]
        wave = next((known for known in self.waves if known.fits(devices, events)), None) or self._wave(events)
        parts = [self._part(wave, device) for device in devices]
        if len(parts) > 1:
            self._meet(parts)
        done = [part.add(member) for part, member in zip(parts, gang.members, strict=True)]
        if gang.ends_together and len(parts) > 1:
            done = self._meet(parts)
        self.placed += done

    def _meet(self, parts: Sequence[_PartBuilder]) -> list[Event]:
        """All parts wait for each other, and know from here on what each of them knew."""
        clock: dict[int, int] = {}
        for part in parts:
            for other, done in (*part.clock.items(), (part.index, len(part.entries))):
                clock[other] = max(done, clock.get(other, 0))
        sync = Sync(self.meetings, len(parts))
        self.meetings += 1
        for part in parts:
            part.clock = dict(clock)
        return [part.add(sync) for part in parts]

    def _wave(self, events: set[Event]) -> _Wave:
        """The wave that awaits `events`, without those that others among them imply."""
        latest: dict[int, int] = {}
        for index, done in events:
            latest[index] = max(done, latest.get(index, 0))
        clock = dict(latest)
        # what has happened when an event has: later entries of its part may know more
        then = {index: self.parts[index].clocks[done - 1] for index, done in latest.items()}
        for known_then in then.values():
            for other, known in known_then.items():
                clock[other] = max(known, clock.get(other, 0))
        awaited = frozenset(
            (index, done)
            for index, done in latest.items()
            if not any(then[other].get(index, 0) >= done for other in latest if other != index)
        )
        for wave in self.waves:
            if wave.awaited == awaited:
                return wave
        wave = _Wave(len(self.waves), awaited, clock)
        self.waves.append(wave)
        for index, done in awaited:
            self.parts[index].marks.add(done)
        return wave

    def _part(self, wave: _Wave, device: int) -> _PartBuilder:
        part = wave.parts.get(device) if device >= 0 else None
        if part is None:
            part = _PartBuilder(len(self.parts), device, wave)
            self.parts.append(part)
            if device >= 0:
                wave.parts[device] = part
        return part

    def _plan(self) -> Plan:
        recording = self.recording
        scratch = tuple(raw.at(self.rank, recording.world_size) for raw in recording.scratch)
        wakes: dict[Event, list[int]] = {}
        meeting: dict[int, int] = {}
        for builder in self.parts:
            for event in sorted(builder.wave.awaited):
                wakes.setdefault(event, []).append(builder.index)
            if any(isinstance(entry, Sync) for entry in builder.entries):
                meeting[builder.wave.number] = meeting.get(builder.wave.number, 0) + 1
        parts: list[Part] = []
        returns = 0
        for builder in self.parts:
            parts.append(_finish(builder, wakes, meeting.get(builder.wave.number, 0), returns))
            returns += parts[-1].callback is not None
        devices = {part.device for part in parts if part.device >= 0} | {one.device for one in scratch}
        scratch_bytes: dict[int, int] = {}
        for one in scratch:
            scratch_bytes[one.device] = scratch_bytes.get(one.device, 0) + one.nbytes
        sole = parts[0].device if len(parts) == 1 and len(devices) == 1 else -1
        return Plan(
            recording.program,
            tuple(parts),
            tuple(sorted(devices)),
            sole,
            tuple(part.index for part in parts if part.needs == 0),
            scratch,
            scratch_bytes,
            returns,
            any(one.window for one in scratch),
            sole >= 0 and not scratch,
        )


def lower(recording: Recording, rank: int, serial: bool) -> Plan:
    """The plan for a dispatch that begins at `rank`; `serial`: every step waits for the one before it."""
    return _Lowering(recording, rank).run(serial)


def _finish(builder: _PartBuilder, wakes: dict[Event, list[int]], meeting: int, returns: int) -> Part:
    events = tuple(sorted(builder.marks | {len(builder.entries)}))
    slots, steps = _table(builder.entries)
    first = builder.entries[0]
    callback = first.callback if isinstance(first, RawStep) else None
    meets = any(isinstance(entry, Sync) for entry in builder.entries)
    return Part(
        builder.index,
        builder.device,
        slots,
        steps,
        len(builder.wave.awaited),
        events,
        tuple(tuple(wakes.get((builder.index, done), ())) for done in events),
        callback,
        returns if callback is not None else -1,
        tuple(_ready(step) for step in steps),
        builder.wave.number,
        meeting if meets else 0,
        _direct(slots),
        _gang(steps) if len(events) == 1 else None,
        not meets and len(events) == 1,
    )


def _gang(steps: Sequence[Step]) -> Sync | None:
    first, *others = [step.function for step in steps]
    return first if isinstance(first, Sync) and not any(isinstance(other, Sync) for other in others) else None


def _ready(step: Step) -> ReadyStep:
    slots = step.slots
    if not slots:
        return step.function or copy, _nothing
    if len(slots) == 1:
        only = slots[0]
        return step.function or copy, itemgetter(slice(only, only + 1))
    return step.function or copy, itemgetter(*slots)


def _nothing(_: Sequence[Any]) -> tuple[()]:
    return ()


def _direct(slots: Sequence[Slot]) -> tuple[tuple[int, bool], ...] | None:
    if all(slot.source is Source.ARGUMENT and not slot.path and slot.value is None for slot in slots):
        return tuple((slot.index, slot.writable) for slot in slots)
    return None


def _table(raw: Sequence[RawStep | Sync]) -> tuple[tuple[Slot, ...], tuple[Step, ...]]:
    """The slots that the steps use, each once, and the steps that point into them."""
    slots: list[Slot] = []
    index: dict[object, int] = {}
    steps = []
    for step in raw:
        if isinstance(step, Sync):
            steps.append(Step("meeting", step, ()))
            continue
        positions = []
        for slot in step.slots:
            if slot.source is Source.CONSTANT:  # which a callback may take of any kind, also one that has no hash
                at = len(slots)
            else:
                at = index.setdefault((slot.source, slot.index, slot.path, slot.writable, slot.value), len(slots))
            if at == len(slots):
                slots.append(slot)
            positions.append(at)
        steps.append(Step(step.name, step.function, tuple(positions)))
    return tuple(slots), tuple(steps)
