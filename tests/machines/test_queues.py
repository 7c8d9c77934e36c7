"""The order in which a coordinator hands over, against plain models, over random sequences of dispatches and answers.

Breaks that this catches, each planted once in a copy: an overtaken count that never claims, equal priorities that change places, a
policy that is asked with the wrong candidates, more parts on a device than its slots, claims in the order of claiming, a line in which
two stages stand, that a pause does not stop, or that goes in the order of becoming ready.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_actors.lifecycle import RunState
from pypto_actors.messages import Cancel
from pypto_actors.policy import Arrival, PhaseFair, Policy, PriorityOrder
from pypto_actors.queues import MOST_OVERTAKEN
from tests.machines.desk import Desk, family

seeds = st.integers(0, 2**32)
STAGES = ("prefill", "decode", None)


class OneDevice:
    """The model of one device: who is next, by brute force."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: dict[int, tuple[int, str | None]] = {}
        self.overtaken: Counter[int] = Counter()
        self.prefills = self.decodes = 0

    def key(self, run: int) -> tuple[int, int]:
        return (0, run) if isinstance(self.policy, Arrival) else (-self.waiting[run][0], run)

    def next(self) -> int:
        forced = [run for run in self.waiting if self.overtaken[run] >= MOST_OVERTAKEN]
        if forced:
            return min(forced)
        heads = [min((run for run in self.waiting if self.waiting[run][1] == stage), key=self.key, default=0) for stage in STAGES]
        heads = [run for run in heads if run]
        stages = {self.waiting[run][1] for run in heads}
        if isinstance(self.policy, PhaseFair) and {"prefill", "decode"} <= stages:
            barred = "prefill" if self.prefills >= self.policy.max_prefills else "decode" if self.decodes >= self.policy.max_decodes else ""
            heads = [run for run in heads if self.waiting[run][1] != barred]
        return min(heads, key=self.key)

    def hand_over(self, run: int) -> None:
        _, stage = self.waiting.pop(run)
        self.overtaken.update(other for other in self.waiting if other < run)
        if stage == "prefill":
            self.prefills, self.decodes = self.prefills + 1, 0
        elif stage == "decode":
            self.prefills, self.decodes = 0, self.decodes + 1


@pytest.mark.parametrize("policy", [PriorityOrder(), Arrival(), PhaseFair(), PhaseFair(1, 1), PhaseFair(3, 2)], ids=repr)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, priorities=st.integers(1, 4), in_flight=st.integers(1, 3))
def test_one_device_hands_over_as_the_model_does(policy: Policy, seed: int, priorities: int, in_flight: int) -> None:
    chance = random.Random(seed)
    desk, model = Desk(1, policy, in_flight), OneDevice(policy)
    plans = family([0])
    for _ in range(150):
        move = chance.random()
        if move < 0.5:
            priority, stage = chance.randrange(priorities), chance.choice(STAGES)
            model.waiting[desk.submit(plans, priority=priority, stage=stage, at=float(desk.number))] = (priority, stage)
        elif move < 0.55 and model.waiting:
            run = chance.choice(list(model.waiting))
            desk.coordinator.receive(Cancel(run), None)
            del model.waiting[run]
            assert desk.records[run].state is RunState.CANCELLED
        elif desk.outstanding:
            desk.answer()
        room = desk.slots - len(desk.outstanding)
        expected = []
        while room and model.waiting:
            expected.append(model.next())
            model.hand_over(expected[-1])
            room -= 1
        assert desk.route() == expected
        assert all(count <= MOST_OVERTAKEN for count in model.overtaken.values())


@settings(max_examples=60, deadline=None)
@given(seed=seeds, in_flight=st.integers(1, 2))
def test_many_devices_stay_within_the_bounds_and_come_to_an_end(seed: int, in_flight: int) -> None:
    """Gangs in a random mix: nobody ready is overtaken more than 64 times, no slot is given twice, and nobody waits for ever."""
    chance = random.Random(seed)
    desk = Desk(4, PriorityOrder(), in_flight)
    plans = [family(devices) for devices in ([0], [1], [2], [3], [0, 1], [1, 2], [0, 3], [0, 1, 2, 3], [2, 3])]
    devices: dict[int, set[int]] = {}
    overtaken: Counter[int] = Counter()
    for turn in range(400):
        if turn < 300 and chance.random() < 0.6:
            for _ in range(chance.randrange(1, 4)):
                chosen = chance.choice(plans)
                run = desk.submit(chosen, priority=chance.choice((0, 0, 1, 5)), at=float(desk.number))
                devices[run] = set(chosen.at(0).devices)
        before = desk.ready()
        for run in desk.route():
            before.remove(run)
            for other in before:
                if other < run and devices[other] & devices[run]:
                    overtaken[other] += 1
        assert not overtaken or max(overtaken.values()) <= MOST_OVERTAKEN
        for device in range(4):
            assert desk.where.count(device) <= desk.slots
        if desk.outstanding:
            desk.answer(chance.randrange(len(desk.outstanding)))
    while desk.outstanding:
        desk.answer()
        desk.route()
    assert not desk.coordinator.records
    assert all(record.state is RunState.DONE for record in desk.records.values())
    assert all(queue.work == queue.outstanding == len(queue.order) == len(queue.claims) == 0 for queue in desk.coordinator.queues)


def test_a_gang_is_overtaken_at_most_64_times() -> None:
    """A gang of low priority in floods of higher ones, on devices that are never free at the same time."""
    desk = Desk(2, PriorityOrder(), 1)
    flood = [family([0]), family([1])]
    for device in (0, 1, 0, 1, 0, 1):
        desk.submit(flood[device], priority=9)
    desk.route()
    gang = desk.submit(family([0, 1]), priority=0)
    passed = 0
    for turn in range(400):
        desk.submit(flood[turn % 2], priority=9)
        desk.submit(flood[turn % 2], priority=9)
        handed = desk.route()
        if gang in handed:
            passed += handed.index(gang)
            break
        passed += len([run for run in handed if run > gang])
        desk.answer()
    assert gang in desk.handed
    assert 32 < passed <= MOST_OVERTAKEN


def test_a_gang_behind_another_one_is_overtaken_at_most_64_times() -> None:
    """It waits for the first gang on one device, which others may still pass there, and has been passed on its other device already."""
    desk = Desk(3, PriorityOrder(), 1)
    singles = [family([0]), family([1]), family([2])]
    for _ in range(2):
        desk.submit(singles[0])
    desk.route()
    desk.submit(family([0, 1]))
    second = desk.submit(family([1, 2]))
    desk.route()
    passed = 0
    for device in (2, 1):
        for _ in range(100):
            desk.submit(singles[device], priority=1, stage="decode")
        for _ in range(200):
            passed += len([run for run in desk.route() if run > second])
            for index in [number for number, at in enumerate(desk.where) if at == device]:
                desk.answer(index)
                break
    assert 32 < passed <= MOST_OVERTAKEN


def test_a_phase_fair_policy_checks_its_numbers() -> None:
    for wrong in ((0, 1), (1, 0), (True, 1), (1.5, 1)):
        with pytest.raises(ValueError, match="at least 1"):
            PhaseFair(*wrong)


@pytest.mark.parametrize(("last", "handed"), [(0, []), (3, [3])])
def test_a_line_stops_at_a_pause(last: int, handed: list[int]) -> None:
    desk = Desk(1, PriorityOrder(), 1)
    plans = family([0])
    runs = [desk.submit(plans) for _ in range(4)]
    assert desk.route() == runs[:2]
    desk.coordinator.router.pause(last)
    desk.answer()
    desk.answer()
    assert desk.route() == handed
    desk.coordinator.router.resume()
    assert desk.route() == runs[2 + len(handed) :][: 2 - len(handed)]


def test_who_was_freed_later_and_accepted_earlier_goes_first() -> None:
    desk = Desk(3, PriorityOrder(), 1)
    first, second = desk.submit(family([1]), ((1, 0, 8, True),)), desk.submit(family([2]), ((2, 0, 8, True),))
    early, late = desk.submit(family([0]), ((2, 0, 8, True),)), desk.submit(family([0]), ((1, 0, 8, True),))
    assert desk.route() == [first, second]
    assert [desk.answer(), desk.answer()] == [first, second]  # which frees `late` before `early`
    assert desk.route() == [early, late]
