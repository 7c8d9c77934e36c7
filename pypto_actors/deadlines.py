"""The deadlines of queued dispatches, on one heap. Pure."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from pypto_actors.lifecycle import Record, RunState

NEVER = float("inf")


class Deadlines:
    """Which deadline comes next. Those of records that were handed over stay until they come to the top, or are too many."""

    __slots__ = ("_heap", "_records")

    def __init__(self, records: dict[int, Record]) -> None:
        self._records = records
        self._heap: list[tuple[float, int]] = []

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, record: Record, deadline: float, timed: int) -> None:
        """`timed`: how many queued records have a deadline."""
        if len(self._heap) > 2 * timed + 64:  # most of them are over
            self._heap = [entry for entry in self._heap if self._counts(entry[1])]
            heapify(self._heap)
        heappush(self._heap, (deadline, record.id))

    def next(self) -> float:
        """The next deadline of what is still queued, loop seconds."""
        heap = self._heap
        while heap and not self._counts(heap[0][1]):
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def passed(self, now: float) -> list[Record]:
        """Whose deadline has passed, while queued."""
        late = []
        while self.next() <= now and self._heap:
            late.append(self._records[heappop(self._heap)[1]])
        return late

    def _counts(self, run: int) -> bool:
        record = self._records.get(run)
        return record is not None and record.state is RunState.QUEUED
