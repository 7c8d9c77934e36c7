"""Where devices go on together after a meeting: what each needs of the others' memory, and of the host's, is asked for and taken by all
before any of them goes on and changes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pypto_actors.executor import Desk

Fetched: TypeAlias = dict[Any, Any]  # refs of what has been asked for, so that what several need is asked for once
# Ask for what is needed, and tell once when all of it that is on the host has been taken, now or later; gives how to go on.
Ask: TypeAlias = Callable[[Fetched, Callable[[], None]], Callable[[], None]]


class Crossing:
    """Of all devices of a backend."""

    def __init__(self, loop: asyncio.AbstractEventLoop, desk: Desk) -> None:
        self._loop = loop
        self._desk = desk
        self._waiting: list[Ask] = []

    def add(self, ask: Ask) -> None:
        """One is ready; all that are ready by the end of this callback of the loop go on together."""
        if not self._waiting:
            self._loop.call_soon(self._cross)
        self._waiting.append(ask)

    def _cross(self) -> None:
        waiting, self._waiting = self._waiting, []
        if _together(waiting):
            self._desk.turn()

    def alone(self, ask: Ask) -> None:
        """One that has met nobody goes on, in a turn if it can."""
        _together([ask])


def _together(waiting: Sequence[Ask]) -> bool:
    """All ask, and go on when all have taken what they need: now, or in a later turn."""
    fetched: Fetched = {}
    missing = len(waiting) + 1
    go_on: list[Callable[[], None]] = []

    def taken() -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            for each in go_on:
                each()

    go_on += [ask(fetched, taken) for ask in waiting]
    taken()
    return missing == 0
