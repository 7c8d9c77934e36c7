"""`backend="inline"`: kernels run on the event loop. For tests, tiny kernels and virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from pypto_actors.backends.local import Clock, LocalExecutor, execute, execute_from, failed, stepping
from pypto_actors.backends.memory import Interconnect
from pypto_actors.backends.rendezvous import Deserted
from pypto_actors.executor import Answer, Desk, Executor, clock_of
from pypto_actors.messages import Dispatch, Failed, Piece
from pypto_actors.plan import Part, Sync


class InlineExecutor(LocalExecutor):
    """Kernels and copies run where they are asked for. A part that waits for other devices is kept, and what comes after it as well."""

    __slots__ = ("_kept", "_waiting")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, clock: Clock) -> None:
        super().__init__(rank, interconnect, desk, clock)
        # the part that waits for others, and how it goes on: its steps, or the values for all that comes after its only meeting
        self._kept: tuple[Dispatch, Generator[Sync, None, Answer] | list[Any]] | None = None
        self._waiting: deque[Dispatch] | None = None  # behind it

    def dispatch(self, message: Dispatch) -> None:
        if self._kept is not None:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(message)
            return
        part = message.plan.parts[message.part]
        try:
            values = (self._views or self.views).values(part, message.args, message.scratch, message.plan, message.fixed)
        except Exception as error:
            self.unable(message, error)
            return
        if part.plain:
            answer = execute(message, part, values, self._rank, self._clock)
            if self.dead or type(answer) is Failed:
                self._answer(answer)
            else:  # most often: one call less
                self._desk.post(answer)
        elif part.gang is not None:
            self._join(message, part, values, part.gang)
        else:
            self._go_on(message, stepping(message, part, values, self._rank, self._clock, self._post))

    def _post(self, answer: Answer) -> None:
        if not self.dead:  # a kernel can kill its own device
            self._desk.post(answer)

    def _answer(self, answer: Answer) -> None:
        if not self.dead:
            self._desk.post(answer)
        if type(answer) is Failed and isinstance(answer.error, KeyboardInterrupt):
            raise answer.error  # the user's, who must be heard; the dispatch has its outcome already

    def _join(self, message: Dispatch, part: Part, values: list[Any], sync: Sync) -> None:
        """A member of a gang: wait until all have come, then run."""
        try:
            if self._interconnect.rendezvous.come((message.run, part.wave), sync.number, sync.members, self._resume):
                self._run_member(message, values)
            else:
                self._kept = (message, values)
        except Deserted as error:
            self._desert(message, error)

    def _run_member(self, message: Dispatch, values: list[Any]) -> None:
        answer = execute_from(message, message.plan.parts[message.part], values, self._rank, self._clock, 1)
        self._answer(self.over(message, answer))

    def _desert(self, message: Dispatch, error: Deserted) -> None:
        now = self._clock()
        self._answer(self.over(message, Failed(message.run, message.part, self._rank, 0, error, now, now, True)))

    def _go_on(self, message: Dispatch, steps: Generator[Sync, None, Answer]) -> None:
        """Run a part until it ends, or has to wait."""
        part = message.plan.parts[message.part]
        key = (message.run, part.wave)
        rendezvous = self._interconnect.rendezvous
        try:
            sync = next(steps)
            while True:
                try:
                    if self.dead:
                        raise Deserted
                    if not rendezvous.come(key, sync.number, sync.members, self._resume):
                        self._kept = (message, steps)
                        return
                except Deserted as error:
                    sync = steps.throw(error)
                else:
                    sync = next(steps)
        except StopIteration as end:
            self._answer(self.over(message, end.value))

    def _resume(self, met: bool) -> None:
        """All have come, or somebody will not. Another device is at work: this one's turn comes next."""
        self._desk.later(lambda: self._continue(met))

    def _continue(self, met: bool) -> None:
        if self._kept is None:  # it has died meanwhile
            return
        message, steps = self._kept
        self._kept = None
        if isinstance(steps, list):
            if met:
                self._run_member(message, steps)
            else:
                self._desert(message, Deserted())
        elif met:
            self._go_on(message, steps)
        else:
            try:
                steps.throw(Deserted())
            except StopIteration as end:
                self._answer(self.over(message, end.value))
        while self._kept is None and self._waiting:
            self.dispatch(self._waiting.popleft())

    def kill(self, reason: str) -> None:
        if self.dead:
            return
        in_hand = [self._kept[0]] if self._kept is not None else []
        in_hand += self._waiting or ()
        self._kept = self._waiting = None
        super().kill(reason)
        for message in in_hand:
            self.over(message, failed(message, self._rank, reason, self._clock()))

    def copy(self, message: Piece) -> None:
        self._desk.post(self.copied(message))


class InlineBackend:
    """Makes inline executors."""

    name = "inline"
    virtual_time = True
    callbacks_in_threads = False

    def __init__(self) -> None:
        self._interconnect = Interconnect()

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        self._desk, self._clock = desk, clock_of(loop)
        return tuple(InlineExecutor(rank, self._interconnect, desk, self._clock) for rank in ranks)

    async def restart(self, rank: int) -> Executor:
        executor = InlineExecutor(rank, self._interconnect, self._desk, self._clock)
        self._interconnect.revive(rank)
        return executor

    async def stop(self) -> None:
        return
