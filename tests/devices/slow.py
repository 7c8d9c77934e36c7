"""Devices that take their (virtual) time, so that gangs wait for their members, and that can die at any moment meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from pypto_actors.backends.inline import InlineExecutor
from pypto_actors.backends.memory import Interconnect
from pypto_actors.executor import Desk, Executor
from pypto_actors.messages import Dispatch, Failed, Piece

TIMES = (0.0, 0.001, 0.002, 0.005)


class SlowExecutor(InlineExecutor):
    """Does one dispatch after another, each a little later; copies beside them. `_pick` says which is next: the first."""

    __slots__ = ("_chance", "_loop", "_timer", "_work")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        super().__init__(rank, interconnect, desk, loop.time)
        self._loop = loop
        self._chance = chance
        self._work: deque[Dispatch] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def dispatch(self, message: Dispatch) -> None:
        self._work.append(message)
        self._arm()

    def copy(self, message: Piece) -> None:
        self._loop.call_later(self._chance.choice(TIMES), self._copy, message)

    def kill(self, reason: str) -> None:
        work, self._work = self._work, deque()
        for message in work:
            now = self._clock()
            self.over(message, Failed(message.run, message.part, self._rank, -1, RuntimeError(reason), now, now))
        if self._timer is not None:
            self._timer.cancel()
        super().kill(reason)

    def _arm(self) -> None:
        if self._work and self._timer is None and self._kept is None:  # it may be waiting for others
            self._timer = self._loop.call_later(self._chance.choice(TIMES), self._next)

    def _pick(self) -> Dispatch:
        return self._work.popleft()

    def _next(self) -> None:
        self._timer = None
        if self._work:
            super().dispatch(self._pick())
            self._arm()
            self._desk.turn()

    def _resume(self, met: bool) -> None:
        self._loop.call_soon(self._resumed, met)

    def _resumed(self, met: bool) -> None:
        self._continue(met)
        self._arm()
        self._desk.turn()

    def _copy(self, message: Piece) -> None:
        if not self.dead:
            super().copy(message)
            self._desk.turn()


class LooseExecutor(SlowExecutor):
    """A device that begins what it was handed in an order of its own: what the one global order forbids."""

    __slots__ = ()

    def _pick(self) -> Dispatch:
        picked = self._chance.randrange(len(self._work))
        message = self._work[picked]
        del self._work[picked]
        return message


class SlowBackend:
    virtual_time = True
    callbacks_in_threads = False

    def __init__(self, seed: int, kind: type[SlowExecutor] = SlowExecutor, restart_time: float = 0.0) -> None:
        self.name = kind.__name__
        self._seed = seed
        self._kind = kind
        self._restart_time = restart_time

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        self._interconnect, self._desk, self._loop = Interconnect(), desk, loop
        return tuple([self._make(rank) for rank in ranks])

    async def restart(self, rank: int) -> Executor:
        await asyncio.sleep(self._restart_time)
        self._interconnect.revive(rank)
        return self._make(rank)

    def _make(self, rank: int) -> Executor:
        return self._kind(rank, self._interconnect, self._desk, self._loop, random.Random(self._seed * 31 + rank))

    def desert_all(self) -> None:
        """Give up all meetings, so that what hangs ends."""
        for key in list(self._interconnect.rendezvous._waves):
            self._interconnect.rendezvous.desert(key)

    async def stop(self) -> None:
        return
