"""Plans against serial execution: whatever order a plan allows, the bytes are those of the steps one after another.

Breaks that this catches, each planted once in a copy: a hazard left out (RAW, WAR or WAW), an awaited event that is one step too early, a
step taken into a part that does not know what it needs, a step lost or doubled, a `serial` plan that is not.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_actors.lowering import family_of
from pypto_actors.plan import Plan, Source
from pypto_actors.steps import RawStep, Recording, Touch, steps_of

SIZE = 6
MASK = (1 << 61) - 1
Memory = dict[tuple[Source, int], list[int]]


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    world_size = draw(st.integers(1, 3))
    steps = []
    for number in range(draw(st.integers(1, 9))):
        touches = []
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, SIZE - 1))
            stop = draw(st.integers(start + 1, SIZE))
            source = draw(st.sampled_from((Source.ARGUMENT, Source.SCRATCH)))
            touches.append(Touch(source, draw(st.integers(0, 1)), (), start, stop, draw(st.booleans())))
        at, floating = draw(st.integers(-1, world_size - 1)), draw(st.booleans())
        place: int | tuple[int] | None = None if at == -1 else (at,) if floating else at
        steps.append(RawStep(str(number), None, (), tuple(touches), place, "callback" if place is None else None))
    return Recording("p", world_size, tuple(steps), ())


def execute(recording: Recording, number: int, memory: Memory) -> None:
    """Every byte that is written becomes a mix of all that is read: no two steps commute."""
    mix = number + 1
    for touch in list(steps_of(recording))[number].touches:
        for value in memory.setdefault((touch.source, touch.index), [1] * SIZE)[touch.start : touch.stop]:
            mix = (mix * 31 + value) & MASK
    for touch in list(steps_of(recording))[number].touches:
        if touch.write:
            for at in range(touch.start, touch.stop):
                memory[touch.source, touch.index][at] = (mix * 7 + at) & MASK


def run_plan(recording: Recording, plan: Plan, chance: random.Random) -> tuple[Memory, list[int]]:
    """Run the parts, one step of any part that may go at a time."""
    memory: Memory = {}
    order: list[int] = []
    pending = [part.needs for part in plan.parts]
    done = [0] * len(plan.parts)
    open_parts = list(plan.initial)
    while open_parts:
        index = chance.choice(open_parts)
        part = plan.parts[index]
        number = int(part.steps[done[index]].name)
        execute(recording, number, memory)
        order.append(number)
        done[index] += 1
        for event, woken in zip(part.events, part.wakes, strict=True):
            if event == done[index]:
                for other in woken:
                    pending[other] -= 1
                    if pending[other] == 0:
                        open_parts.append(other)
        if done[index] == len(part.steps):
            open_parts.remove(index)
    return memory, order


@settings(max_examples=250, deadline=None)
@given(recording=recordings(), seed=st.integers(0, 2**32), rank=st.integers(0, 2), serial=st.booleans())
def test_any_order_that_a_plan_allows_is_the_serial_one(recording: Recording, seed: int, rank: int, serial: bool) -> None:
    rank %= recording.world_size
    plan = family_of(recording).at(rank, serial)
    expected: Memory = {}
    for number in range(len(recording.steps)):
        execute(recording, number, expected)
    chance = random.Random(seed)
    for _ in range(3):
        memory, order = run_plan(recording, plan, chance)
        assert sorted(order) == list(range(len(recording.steps))), plan
        assert memory == expected, plan
        if serial:
            assert order == list(range(len(recording.steps)))
    for part in plan.parts:
        assert part.events[-1] == len(part.steps)
        for step in part.steps:
            place = list(steps_of(recording))[int(step.name)].place
            where = -1 if place is None else (rank + place[0]) % recording.world_size if isinstance(place, tuple) else place
            assert part.device == where


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_the_footprints_cover_what_the_steps_touch_and_no_more(recording: Recording) -> None:
    for write in (False, True):
        touched = {
            (touch.index, byte)
            for step in steps_of(recording)
            for touch in step.touches
            if touch.source is Source.ARGUMENT and (touch.write or not write)
            for byte in range(touch.start, touch.stop)
        }
        covered = {
            (one.argument, byte) for one in family_of(recording).footprints if one.write or not write for byte in range(one.start, one.stop)
        }
        assert touched == covered


@pytest.mark.parametrize("write", [True, False])
def test_steps_of_one_device_are_one_part_and_readers_on_two_overlap(write: bool) -> None:
    def touch(writes: bool) -> tuple[Touch, ...]:
        return (Touch(Source.ARGUMENT, 0, (), 0, 4, writes),)

    one = Recording("p", 2, tuple(RawStep(str(n), None, (), touch(True), 0) for n in range(5)), ())
    assert len(family_of(one).at(0).parts) == 1
    two = Recording("p", 2, tuple(RawStep(str(n), None, (), touch(write), n) for n in range(2)), ())
    assert len(family_of(two).at(0).initial) == (1 if write else 2)
