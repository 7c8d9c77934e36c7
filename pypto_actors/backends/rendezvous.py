"""Where devices of one dispatch meet: nobody goes on before all have come, and nobody waits for one that will not come."""

from __future__ import annotations

import threading
from collections.abc import Callable

Key = tuple[int, int]  # (run, wave)
GoOn = Callable[[bool], None]


class Deserted(Exception):
    """A member of the meeting failed or died, so it will never be complete."""


class _Wave:
    __slots__ = ("deserted", "left", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, list[GoOn]] = {}  # meeting -> who has come and waits
        self.left = 0  # parts that have ended
        self.deserted = False

    def desert(self) -> list[GoOn]:
        """Nobody is to wait here any more; gives those who do."""
        self.deserted = True
        others = [one for waiting in self.waiting.values() for one in waiting]
        self.waiting.clear()
        return others


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
            wave = self._waves.get(key)
            if wave is None:
                wave = self._waves[key] = _Wave()
            elif wave.deserted:
                raise Deserted
            others = wave.waiting.get(meeting)
            if others is None:
                others = wave.waiting[meeting] = []
            if len(others) + 1 < members:
                others.append(go_on)
                return False
            del wave.waiting[meeting]
        for other in others:
            other(True)
        return True

    def leave(self, key: Key, parts: int, failed: bool) -> None:
        """One of the `parts` of the wave has ended; failed, it deserts the others."""
        others: list[GoOn] = []
        with self._lock:
            wave = self._waves.get(key)
            if wave is None:
                wave = self._waves[key] = _Wave()
            wave.left += 1
            if failed:
                others = wave.desert()
            if wave.left == parts:
                del self._waves[key]
        for other in others:
            other(False)

    def desert(self, key: Key) -> None:
        """One of the wave's devices has died and comes to no further meeting. What it still runs leaves when it ends."""
        with self._lock:
            others = self._waves.setdefault(key, _Wave()).desert()
        for other in others:
            other(False)
