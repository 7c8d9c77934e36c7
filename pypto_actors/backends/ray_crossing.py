"""Where devices go on together after a meeting: what each needs of the others' memory is asked for by all, before any of them goes on
and changes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from pypto_actors.executor import Desk

Fetched: TypeAlias = dict[Any, Any]  # refs of what has been asked for, so that what several need is asked for once
Ask: TypeAlias = Callable[[Fetched], Callable[[], None]]  # gives how to go on


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
        fetched: Fetched = {}
        for go_on in [ask(fetched) for ask in waiting]:
            go_on()
        self._desk.turn()
