"""Mailboxes: where an actor's messages wait. The coordinator's counts what it may still accept, and keeps who waits for room."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from pypto_actors.errors import PyptoActorsError
from pypto_actors.lifecycle import Record
from pypto_actors.messages import ToCoordinator


class Counter:
    """Numbers what is accepted, in the order of acceptance."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


class Candidate(Protocol):
    """Who waits for room in a queue."""

    def admit(self) -> bool:
        """Room is there: put the message into the mailbox, or say that it is not wanted any more."""

    def refuse(self, error: PyptoActorsError) -> None:
        """There will never be room."""


class Admission:
    """Room in a bounded queue. Counting and reserving is one synchronous step; who waits is let in first, in order."""

    __slots__ = ("limit", "room", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.room = limit
        self.waiting: deque[Candidate] = deque()

    @property
    def queued(self) -> int:
        return self.limit - self.room

    def take(self) -> bool:
        """Reserve room, if there is some that nobody waits for."""
        if self.room > 0 and not self.waiting:
            self.room -= 1
            return True
        return False

    def give(self) -> None:
        """One has left the queue; who waits longest gets its room."""
        self.room += 1
        if self.waiting:
            self._let_in()

    def _let_in(self) -> None:
        while self.waiting and self.room > 0:
            self.room -= 1
            if not self.waiting.popleft().admit():
                self.room += 1


Envelope = tuple[ToCoordinator, Record | None]
