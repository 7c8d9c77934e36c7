"""Timers in integer nanoseconds, in the order of their time and then of their setting; no loop needed."""

from __future__ import annotations

import asyncio
import heapq
import itertools

NANO = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """The nearest; exact for an `int`, and for any float while floats can tell nanoseconds apart (97 days)."""
    return seconds * NANO if isinstance(seconds, int) else round(seconds * 1e9)


class Timers:
    """A heap that forgets cancelled timers: at once at its head, and in bulk when more than half are cancelled."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._cancelled = 0

    def __len__(self) -> int:
        """Those that can still fire."""
        return len(self._heap) - self._cancelled

    def add(self, due: int, timer: asyncio.TimerHandle) -> None:
        timer._scheduled = True  # type: ignore[attr-defined]  # as asyncio marks those that `count_cancelled` must count
        heapq.heappush(self._heap, (due, next(self._order), timer))

    def count_cancelled(self, timer: asyncio.TimerHandle) -> None:
        if timer._scheduled:  # type: ignore[attr-defined]
            self._cancelled += 1

    def next_due(self) -> int | None:
        """When the next one fires; None if there is none."""
        heap = self._heap
        if self._cancelled > 100 and self._cancelled > len(heap) // 2:
            heap[:] = [entry for entry in heap if not entry[2]._cancelled]
            heapq.heapify(heap)
            self._cancelled = 0
        while heap and heap[0][2]._cancelled:
            heapq.heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def pop_due(self, now: int) -> asyncio.TimerHandle | None:
        """Take the next one if it is due at `now`."""
        due = self.next_due()
        if due is None or due > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        timer._scheduled = False  # type: ignore[attr-defined]
        return timer

    def clear(self) -> None:
        self._heap.clear()
        self._cancelled = 0
