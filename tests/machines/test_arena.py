"""`Arena` and `Ledger` against a dict of sizes: what is refused changes nothing, what is given back is free again.

Breaks that this catches, each planted once in a copy: a peak that follows the last size, a refusal that keeps the bytes, a multi-device
reservation that leaves its first half behind, scratch that is never given back.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pypto_actors.arena import Arena
from pypto_actors.errors import InternalError
from pypto_actors.ledger import Ledger
from pypto_actors.plan import Plan, Scratch
from pypto_actors.values import DeviceTensor

CAPACITY = 100


class ArenaMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.arena = Arena(CAPACITY)
        self.sizes: dict[int, int] = {}
        self.peak = 0
        self.next = 0

    @rule(nbytes=st.integers(0, CAPACITY + 1))
    def reserve(self, nbytes: int) -> None:
        self.next += 1
        fits = sum(self.sizes.values()) + nbytes <= CAPACITY
        assert self.arena.reserve(self.next, nbytes) is fits
        if fits:
            self.sizes[self.next] = nbytes
            self.peak = max(self.peak, sum(self.sizes.values()))

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.sizes)))
        assert self.arena.release(number) == self.sizes.pop(number)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def reserve_twice(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.sizes)))
        with pytest.raises(InternalError, match=str(number)):
            self.arena.reserve(number, 0)

    @rule()
    def release_unknown(self) -> None:
        with pytest.raises(InternalError, match=str(self.next + 1)):
            self.arena.release(self.next + 1)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "arena"):
            assert self.arena.used == sum(self.sizes.values())
            assert self.arena.free == CAPACITY - self.arena.used
            assert self.arena.peak == self.peak
            assert all(number in self.arena for number in self.sizes)
            assert self.next + 1 not in self.arena


ArenaMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestArena = ArenaMachine.TestCase


def tensor(device: int, nbytes: int, number: int) -> DeviceTensor:
    return DeviceTensor.of(device, (nbytes,), np.dtype(np.uint8), number)


def plan_with(scratch: list[tuple[int, int]]) -> Plan:
    forms = tuple(Scratch(device, (nbytes,), np.dtype(np.uint8), nbytes) for device, nbytes in scratch)
    sums: dict[int, int] = {}
    for device, nbytes in scratch:
        sums[device] = sums.get(device, 0) + nbytes
    return Plan("p", (), tuple(sums), -1, (), forms, sums, 0)


PROGRAM = object()
pieces = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60)), min_size=1, max_size=4)


@given(pieces)
def test_several_tensors_are_reserved_together_or_not_at_all(asked: list[tuple[int, int]]) -> None:
    ledger = Ledger((CAPACITY, CAPACITY))
    tensors = [tensor(device, nbytes, number) for number, (device, nbytes) in enumerate(asked, 1)]
    sums = [sum(nbytes for device, nbytes in asked if device == rank) for rank in (0, 1)]
    failure = ledger.reserve(tensors)
    if max(sums) <= CAPACITY:
        assert failure is None
        assert [arena.used for arena in ledger.arenas] == sums
        ledger.release(tensors)
    else:
        assert failure is not None
        assert failure.fields["capacity"] == CAPACITY
        assert failure.fields["asked"] > failure.fields["free"]
    assert [arena.used for arena in ledger.arenas] == [0, 0]


@given(st.lists(pieces, min_size=1, max_size=5), pieces)
def test_scratch_is_taken_whole_and_given_back(held: list[list[tuple[int, int]]], wanted: list[tuple[int, int]]) -> None:
    ledger = Ledger((CAPACITY, CAPACITY))
    plans = [plan_with(one) for one in held]
    taken = [(plan, ledger.take_scratch(plan, PROGRAM)[0]) for plan in plans if ledger.scratch_fits(plan, PROGRAM)]
    plan = plan_with(wanted)
    used = [arena.used for arena in ledger.arenas]
    fits = all(used[device] + nbytes <= CAPACITY for device, nbytes in plan.scratch_bytes.items())
    assert ledger.scratch_fits(plan, PROGRAM) is fits
    never = ledger.scratch_never_fits(plan, PROGRAM)
    holders = {device for one, _ in taken for device in one.scratch_bytes}
    hopeless = any(used[device] + nbytes > CAPACITY and device not in holders for device, nbytes in plan.scratch_bytes.items())
    assert (never is not None) is hopeless
    for one, numbers in taken:
        ledger.give_scratch(one, numbers)
    assert [arena.used for arena in ledger.arenas] == [0, 0]
    assert (ledger.scratch_never_fits(plan, PROGRAM) is None) is ledger.scratch_fits(plan, PROGRAM)
