"""What a caller of `run` awaits: a future that wakes its task at the end of the turn, not one turn of the loop later.

`asyncio.Future` schedules whoever awaits it; the loop then asks the system for input once more before the task goes on. A turn of the
actors is a callback of the loop, in which no task is running, so its end may let the tasks go on itself. Awaiting follows the protocol
that asyncio has for objects that are like futures (`asyncio.isfuture`): `_asyncio_future_blocking`, `add_done_callback`, `result`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

Callback = Callable[[Any], object]


class Waiter:
    """Awaited by one task. `wakeups` gets it when it is resolved; who empties that list calls `wake`."""

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_done", "_loop", "_message", "_wakeups")

    def __init__(self, loop: asyncio.AbstractEventLoop, wakeups: list[Waiter]) -> None:
        self._asyncio_future_blocking = False
        self._callback: Callback | None = None
        self._context: contextvars.Context | None = None
        self._cancelled = False
        self._message: object = None  # by which cancel scopes know their own cancellation
        self._done = False
        self._loop = loop
        self._wakeups = wakeups

    def __await__(self) -> Generator[Any, None, None]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        self.result()

    __iter__ = __await__

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def set_result(self, result: None, /) -> None:
        """What it waits for has ended."""
        self._done = True
        if self._callback is not None:
            self._wakeups.append(self)

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError() if self._message is None else asyncio.CancelledError(self._message)
        if not self._done:
            raise asyncio.InvalidStateError("what is waited for has not ended")

    def cancel(self, msg: object = None) -> bool:
        """Called by `Task.cancel`: the task goes on in a turn of its own."""
        if self._done:
            return False
        self._done = self._cancelled = True
        self._message = msg
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
        return True

    def add_done_callback(self, callback: Callback, *, context: contextvars.Context | None = None) -> None:
        if self._done:
            self._loop.call_soon(callback, self, context=context)
            return
        if self._callback is not None:
            raise asyncio.InvalidStateError("a waiter is awaited by one task")
        self._callback = callback
        self._context = context

    def remove_done_callback(self, callback: Callback) -> int:
        if self._callback is None or self._callback != callback:
            return 0
        self._callback = None
        return 1

    def wake(self) -> None:
        """Let the task go on, here and now; no other may be running."""
        callback = self._callback
        if callback is None:
            return
        if self._context is None:
            callback(self)
        else:
            self._context.run(callback, self)

    def __repr__(self) -> str:
        return f"<Waiter for a dispatch, {'cancelled' if self._cancelled else 'ended' if self._done else 'pending'}>"
