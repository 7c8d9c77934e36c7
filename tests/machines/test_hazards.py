"""`Hazards` against a plain list of accesses: after each event, exactly those may go whom nothing before them holds up.

Breaks that this catches, each planted once in a copy: readers that wait for readers, a writer that does not wait for readers, a chain
across two devices, a bundle that is given up as a whole when one of its spaces is shared, no merge of readers when a writer between them
leaves, a split that forgets who waits, ranges that are never forgotten, who was alone and is not claimed when a second one comes.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pypto_actors.hazards import Hazards
from pypto_actors.values import HOST, Access, Fixed

SIZE = 12  # bytes of each space
DEVICES = (7, 8, 9, 10)
SPACES = (HOST, *DEVICES)


class Party:
    """An owner as `Hazards` sees it, with what the model knows of it."""

    def __init__(self, number: int, accesses: list[Access], sole: int) -> None:
        self.number = number
        self.accesses = accesses
        self.sole = sole
        self.stands = -1
        self.waits = 0
        self.claims: Any = None
        self.bundle: Any = None
        self.started = False

    def __repr__(self) -> str:
        return f"<{self.number}: {self.accesses} sole={self.sole} stands={self.stands}>"

    def conflicts(self, other: Party) -> bool:
        return any(
            mine[0] == theirs[0] and max(mine[1], theirs[1]) < min(mine[2], theirs[2]) and (mine[3] or theirs[3])
            for mine in self.accesses
            for theirs in other.accesses
        )


def _access(drawn: tuple[int, int, int, bool]) -> Access:
    space, one, other, write = drawn
    return (space, min(one, other), max(one, other), write)


edge = st.integers(0, SIZE)  # equal ones make an empty range
access = st.one_of(
    st.tuples(st.sampled_from(SPACES), st.just(0), st.just(SIZE), st.booleans()),
    st.tuples(st.sampled_from(SPACES), edge, edge, st.booleans()).map(_access),
)


class HazardsMachine(RuleBasedStateMachine):
    """`live` stands in the order of acceptance."""

    @initialize()
    def start(self) -> None:
        self.hazards = Hazards()
        self.live: list[Party] = []
        self.free: set[int] = set()
        self.count = 0

    def goes(self, party: Party) -> bool:
        before = [other for other in self.live if other.number < party.number and other.conflicts(party)]
        return all(party.sole >= 0 and other.stands == party.sole for other in before)

    def expect_freed(self, freed: list[Any]) -> None:
        newly = {party.number for party in self.live if not party.started and self.goes(party)} - self.free
        assert sorted(party.number for party in freed) == sorted(newly), self.live
        self.free |= newly

    @rule(accesses=st.lists(access, max_size=3), sole=st.integers(-1, 1))
    def accept(self, accesses: list[Access], sole: int) -> None:
        self.enter(accesses, sole, None)

    @rule(fixed=st.lists(st.sampled_from(DEVICES), min_size=1, unique=True), rest=access, write=st.booleans(), sole=st.integers(-1, 1))
    def accept_of_a_bound_program(self, fixed: list[int], rest: Access, write: bool, sole: int) -> None:
        together = [(space, 2, SIZE, write and space == fixed[0]) for space in fixed]
        beside = [rest] if rest[0] == HOST else []
        self.enter(beside, sole, Fixed(tuple(together), tuple(fixed), frozenset()))

    def enter(self, accesses: list[Access], sole: int, fixed: Fixed | None) -> None:
        self.count += 1
        party = Party(self.count, [*(fixed.accesses if fixed is not None else ()), *accesses], sole)
        self.hazards.enter(party, accesses, fixed)
        self.live.append(party)
        assert (party.waits == 0) == self.goes(party), self.live
        if party.waits == 0:
            self.free.add(party.number)

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.free)))
        self.free.discard(number)
        party = next(one for one in self.live if one.number == number)
        party.started = True
        freed: list[Any] = []
        if party.sole >= 0:
            self.hazards.stand(party, freed)
            assert party.stands == party.sole
        self.expect_freed(freed)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end_or_cancel(self, data: st.DataObject) -> None:
        """Who runs ends, who waits or is ready is taken back: to the hazards it is the same."""
        party = data.draw(st.sampled_from(self.live))
        self.live.remove(party)
        self.free.discard(party.number)
        freed: list[Any] = []
        self.hazards.leave(party, freed)
        self.expect_freed(freed)

    @invariant()
    def waits_follow_the_model(self) -> None:
        for party in self.live:
            assert (party.waits == 0) == (party.started or self.goes(party)), (party, self.live)

    @invariant()
    def nothing_is_kept_of_the_ended(self) -> None:
        touched = {space for party in self.live for space, _, _, _ in party.accesses}
        assert len(self.hazards) <= max(len(touched), len(self.live) > 0)

    def teardown(self) -> None:
        for party in list(getattr(self, "live", ())):
            freed: list[Any] = []
            self.live.remove(party)
            self.free.discard(party.number)
            self.hazards.leave(party, freed)
            self.expect_freed(freed)
        if hasattr(self, "hazards"):
            assert len(self.hazards) == 0


HazardsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHazards = HazardsMachine.TestCase


def test_a_thousand_readers_cost_one_range() -> None:
    hazards = Hazards()
    readers = [Party(number, [(7, 0, SIZE, False)], 0) for number in range(1000)]
    for reader in readers:
        hazards.enter(reader, reader.accesses)
        assert reader.waits == 0
    writer = Party(1000, [(7, 0, SIZE, True)], -1)
    hazards.enter(writer, writer.accesses)
    assert len(hazards) == 1
    freed: list[Any] = []
    for reader in readers:
        assert not freed
        hazards.leave(reader, freed)
    assert freed == [writer]
    hazards.leave(writer, freed)
    assert len(hazards) == 0


def test_who_touches_nothing_may_end_while_another_is_alone() -> None:
    hazards, freed = Hazards(), list[Any]()
    nothing, writer, reader = Party(1, [], 0), Party(2, [(7, 0, SIZE, True)], 0), Party(3, [(7, 0, SIZE, False)], 1)
    hazards.enter(nothing, nothing.accesses)
    other = Party(4, [(8, 0, SIZE, True)], 0)
    hazards.enter(other, other.accesses)
    hazards.leave(other, freed)
    hazards.enter(writer, writer.accesses)
    hazards.leave(nothing, freed)
    hazards.enter(reader, reader.accesses)
    assert reader.waits == 1
    hazards.leave(writer, freed)
    assert freed == [reader]
