"""Which calls a device that lives elsewhere knows already, by the very object that comes again and again, and when it must forget them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from msgspec import Struct

from pypto_actors.plan import Plan, Slot
from pypto_actors.values import Fixed

MOST = 4096  # calls (and, in the ledgers, parts and functions) are kept; then all are forgotten
Recurring: TypeAlias = tuple[Any, ...] | Fixed  # the arguments of a call, or what a bound program has fixed of them


class Known(Struct, eq=False, gc=False):
    """A call that the device knows by its number. `rest`: the slots whose values come with each call, and their positions."""

    of: Recurring
    plan: Plan  # of one part
    number: int
    rest: tuple[tuple[int, Slot], ...] = ()


class KnownCalls:
    """Of one device. What must be forgotten is given back as numbers, for the device to be told."""

    def __init__(self) -> None:
        self._calls: dict[int, Known] = {}  # by the identity of what they are known by, which they keep alive
        self._users: dict[int, list[int]] = {}  # allocation -> the identities of the calls that name it

    def find(self, of: Recurring | None, plan: Plan) -> Known | None:
        known = self._calls.get(id(of))
        return known if known is not None and known.of is of and known.plan is plan else None

    def keep(self, known: Known, allocations: Iterable[int]) -> list[int]:
        """Keep a call that names these allocations; gives what had to go for it."""
        identity = id(known.of)
        gone: list[int] = []
        if len(self._calls) >= MOST:
            gone = [other.number for other in self._calls.values()]
            self.clear()
        elif identity in self._calls:  # with another plan
            gone = [self._calls[identity].number]
        self._calls[identity] = known
        for allocation in allocations:
            self._users.setdefault(allocation, []).append(identity)
        return gone

    def released(self, allocations: Iterable[int]) -> list[int]:
        """Memory has gone; gives the calls that have gone with it."""
        gone = []
        for allocation in allocations:
            for identity in self._users.pop(allocation, ()):
                known = self._calls.pop(identity, None)
                if known is not None:
                    gone.append(known.number)
        return gone

    def clear(self) -> None:
        """The device has forgotten all."""
        self._calls.clear()
        self._users.clear()
