"""The thread that does a device's large copies where its kernels run elsewhere, so that neither they nor the loop wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pypto_actors.backends.thread import WorkThread


class CopyEngine:
    """Of one device. The thread begins with the first copy. `turn`: lets the actors work, after what came back."""

    __slots__ = ("_jobs", "_loop", "_name", "_thread", "_turn", "over")

    def __init__(self, rank: int, loop: asyncio.AbstractEventLoop, turn: Callable[[], None]) -> None:
        self._name = f"pypto-copies-{rank}"
        self._loop = loop
        self._turn = turn
        self._thread: WorkThread | None = None
        self._jobs = 0
        self.over = 0  # pieces of work that have ended and were heard of

    @property
    def given(self) -> int:
        """Pieces of work so far."""
        return self.over + self._jobs

    @property
    def busy(self) -> bool:
        """Is there work whose end the loop has not heard of?"""
        return self._jobs > 0

    def do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have work done in the thread, in order, and go on, on the loop, with what it gave or raised."""

        def done(result: Any) -> None:
            self._jobs -= 1
            self.over += 1
            then(result)
            self._turn()

        def run() -> None:
            result: Any
            try:
                result = work()
            except Exception as error:
                result = error
            self._loop.call_soon_threadsafe(done, result)

        self._jobs += 1
        if self._thread is None:
            try:
                self._thread = WorkThread(self._name)
            except RuntimeError as error:  # there are no more threads to be had
                self._loop.call_soon(done, error)
                return
        self._thread.put(run)

    def end(self) -> None:
        """No more work; the thread ends after what it has."""
        if self._thread is not None:
            self._thread.end()

    def join(self) -> None:
        """Let the thread end, and wait for that; it is idle."""
        if self._thread is not None:
            self._thread.end()
            self._thread.join()
            self._thread = None
