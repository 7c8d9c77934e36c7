"""The deadlines of queued dispatches, on one heap. Pure."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from pypto_actors.lifecycle import Record, RunState

NEVER = float("inf")


class Deadlines:
    """Which deadline comes next. Those of records that were handed over stay until they come to the top, or are too many."""

    __slots__ = ("_records", "heap")

    def __init__(self, records: dict[int, Record]) -> None:
        self._records = records
        self.heap: list[tuple[float, int]] = []

    def add(self, record: Record, deadline: float, timed: int) -> None:
        """`timed`: how many queued records have a deadline."""
        if len(self.heap) > 2 * timed + 64:  # most of them are over
            self.heap[:] = [entry for entry in self.heap if self._counts(entry[1])]
            heapify(self.heap)
        heappush(self.heap, (deadline, record.id))

    def next(self) -> float:
        """The next deadline of what is still queued, loop seconds."""
        heap = self.heap
        while heap and not self._counts(heap[0][1]):
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def passed(self, now: float) -> list[Record]:
        """Whose deadline has passed, while queued."""
        late = []
        while self.next() <= now and self.heap:
            late.append(self._records[heappop(self.heap)[1]])
        return late

    def _counts(self, run: int) -> bool:
        record = self._records.get(run)
        return record is not None and record.state is RunState.QUEUED
