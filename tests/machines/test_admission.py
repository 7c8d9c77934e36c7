"""`Admission` against a counter and a list: room is counted and reserved in one step, who waits is let in first and in order.

Breaks that this catches, each planted once in a copy: letting in the newest first, losing the room of one who does not want it any more.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pypto_actors.errors import PyptoActorsError
from pypto_actors.mailbox import Admission


class Caller:
    """Who waits for room; `wants` says whether it still does."""

    def __init__(self, number: int, admitted: list[int]) -> None:
        self.number = number
        self.wants = True
        self._admitted = admitted

    def admit(self) -> bool:
        if self.wants:
            self._admitted.append(self.number)
        return self.wants

    def refuse(self, error: PyptoActorsError) -> None:
        raise AssertionError(error)


class AdmissionMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.admission = Admission(limit)
        self.queued = 0
        self.waiting: list[Caller] = []
        self.admitted: list[int] = []
        self.expected: list[int] = []
        self.next = 0

    @rule(nowait=st.booleans())
    def call(self, nowait: bool) -> None:
        self.next += 1
        room = self.queued < self.admission.limit and not self.waiting
        assert self.admission.take() is room
        if room:
            self.queued += 1
        elif not nowait:
            caller = Caller(self.next, self.admitted)
            self.waiting.append(caller)
            self.admission.waiting.append(caller)

    @precondition(lambda self: self.queued)
    @rule()
    def one_leaves(self) -> None:
        self.queued -= 1
        while self.waiting and self.queued < self.admission.limit:
            caller = self.waiting.pop(0)
            if caller.wants:
                self.queued += 1
                self.expected.append(caller.number)
        self.admission.give()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def one_gives_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).wants = False

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "admission"):
            assert self.admission.queued == self.queued <= self.admission.limit
            assert self.admitted == self.expected


AdmissionMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAdmission = AdmissionMachine.TestCase
