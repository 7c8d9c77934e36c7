"""`backend="inline"`: kernels run on the event loop. For tests, tiny kernels and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pypto_actors.backends.local import LocalExecutor, execute
from pypto_actors.backends.memory import Interconnect
from pypto_actors.executor import Desk, Executor, clock_of
from pypto_actors.messages import Dispatch, Failed, Piece


class InlineExecutor(LocalExecutor):
    """Kernels and copies run where they are asked for."""

    __slots__ = ()

    def dispatch(self, message: Dispatch) -> None:
        part = message.plan.parts[message.part]
        try:
            values = (self._views or self.views).values(part, message.args, message.scratch, message.plan)
        except Exception as error:
            self.unable(message, error)
            return
        answer = execute(message, part, values, self._rank, self._clock, self._desk.post)
        self._desk.post(answer)
        if type(answer) is Failed and isinstance(answer.error, KeyboardInterrupt):
            raise answer.error  # the user's, who must be heard; the dispatch has its outcome already

    def copy(self, message: Piece) -> None:
        self._desk.post(self.copied(message))


class InlineBackend:
    """Makes inline executors."""

    name = "inline"
    virtual_time = True
    callbacks_in_threads = False

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        interconnect = Interconnect()
        return tuple(InlineExecutor(rank, interconnect, desk, clock_of(loop)) for rank in ranks)

    async def stop(self) -> None:
        return
