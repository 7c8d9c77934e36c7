"""A backend whose devices take their virtual time: what `inline` does at once, it does a little later, so that queues fill up."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from pypto_actors.backends.inline import InlineExecutor
from pypto_actors.backends.memory import Interconnect
from pypto_actors.executor import Desk, Executor
from pypto_actors.messages import Dispatch, Piece


class SlowExecutor(InlineExecutor):
    """Dispatches one after another, copies beside them, as a device with a copy engine."""

    __slots__ = ("_chance", "_loop", "_work")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        super().__init__(rank, interconnect, desk, loop.time)
        self._loop = loop
        self._chance = chance
        self._work: deque[Dispatch] = deque()

    def dispatch(self, message: Dispatch) -> None:
        self._work.append(message)
        if len(self._work) == 1:
            self._later()

    def copy(self, message: Piece) -> None:
        self._loop.call_later(self._chance.choice((0.0, 0.001, 0.003)), self._copy, message)

    def _later(self) -> None:
        self._loop.call_later(self._chance.choice((0.0, 0.001, 0.002, 0.005)), self._next)

    def _next(self) -> None:
        super().dispatch(self._work[0])
        self._work.popleft()
        if self._work:
            self._later()
        self._desk.turn()

    def _copy(self, message: Piece) -> None:
        super().copy(message)
        self._desk.turn()


class SlowBackend:
    name = "slow"
    virtual_time = True
    callbacks_in_threads = False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        self._interconnect, self._desk, self._loop = Interconnect(), desk, loop
        return tuple([await self.restart(rank) for rank in ranks])

    async def restart(self, rank: int) -> Executor:
        return SlowExecutor(rank, self._interconnect, self._desk, self._loop, random.Random(self.seed * 31 + rank))

    async def stop(self) -> None:
        return
