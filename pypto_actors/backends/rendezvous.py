"""Where devices of one dispatch meet: nobody goes on before all have come, and nobody waits for one that will not come."""

from __future__ import annotations

import threading
from collections.abc import Callable

Key = tuple[int, int]  # (run, wave)
GoOn = Callable[[bool], None]


class Deserted(Exception):
    """A member of the meeting failed or died, so it will never be complete."""


class _Wave:
    __slots__ = ("came", "deserted", "left", "waiting")

    def __init__(self) -> None:
        self.came: dict[int, int] = {}  # meeting -> how many have come
        self.waiting: dict[int, list[GoOn]] = {}
        self.left = 0  # parts that have ended
        self.deserted = False


class Rendezvous:
    """The meetings of all dispatches that are under way on one backend. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waves: dict[Key, _Wave] = {}

    def come(self, key: Key, meeting: int, members: int, go_on: GoOn) -> bool:
        """One has come. True: all are there, and those who waited were told to go on.

        False: `go_on` is called later, with whether all have come.

        Raises:
            Deserted: somebody will not come.
        """
        with self._lock:
            wave = self._waves.setdefault(key, _Wave())
            if wave.deserted:
                raise Deserted
            wave.came[meeting] = wave.came.get(meeting, 0) + 1
            if wave.came[meeting] < members:
                wave.waiting.setdefault(meeting, []).append(go_on)
                return False
            others = wave.waiting.pop(meeting, [])
            del wave.came[meeting]
        for other in others:
            other(True)
        return True

    def leave(self, key: Key, parts: int, failed: bool) -> None:
        """One of the `parts` of the wave has ended; failed, it deserts the others."""
        others: list[GoOn] = []
        with self._lock:
            wave = self._waves.setdefault(key, _Wave())
            wave.left += 1
            if failed and not wave.deserted:
                wave.deserted = True
                others = [one for waiting in wave.waiting.values() for one in waiting]
                wave.waiting.clear()
            if wave.left == parts:
                del self._waves[key]
        for other in others:
            other(False)
