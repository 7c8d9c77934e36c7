"""The floors that ratios are taken against: the hop of a loop, and the round trip to a bare thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Self


async def hop(count: int) -> float:
    """Seconds to create a future, resolve it by `call_soon` and await it."""
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    return (time.perf_counter() - start) / count


class BareThread:
    """A thread and nothing else: calls come by a `SimpleQueue`, each answer is a future resolved by `call_soon_threadsafe`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Callable[[], object], asyncio.Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="bare", daemon=True)

    def _serve(self) -> None:
        get, answer = self._queue.get, self._loop.call_soon_threadsafe
        while (item := get()) is not None:
            function, future = item
            function()
            answer(future.set_result, None)

    @property
    def native_id(self) -> int:
        """The system's number of the thread."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join()

    def submit(self, function: Callable[[], object]) -> asyncio.Future[None]:
        """Have the thread call `function`; the future is done when it has."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((function, future))
        return future

    async def round_trip(self, count: int) -> float:
        """Seconds there and back, with nothing to do there."""
        start = time.perf_counter()
        for _ in range(count):
            await self.submit(nothing)
        return (time.perf_counter() - start) / count


def nothing() -> None:
    """The kernel that does nothing, for the bare thread."""
