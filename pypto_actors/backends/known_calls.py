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
        self._users: dict[int, set[int]] = {}  # allocation -> the identities of the calls that name it
        self._names: dict[int, tuple[int, ...]] = {}  # and the other way round

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
            gone = [self._forget(identity)]
        self._calls[identity] = known
        names = self._names[identity] = tuple(set(allocations))
        for allocation in names:
            self._users.setdefault(allocation, set()).add(identity)
        return gone

    def _forget(self, identity: int) -> int:
        for allocation in self._names.pop(identity):
            users = self._users[allocation]
            users.discard(identity)
            if not users:
                del self._users[allocation]
        return self._calls.pop(identity).number

    def released(self, allocations: Iterable[int]) -> list[int]:
        """Memory has gone; gives the calls that have gone with it."""
        return [self._forget(identity) for allocation in allocations for identity in list(self._users.get(allocation, ()))]

    def clear(self) -> None:
        """The device has forgotten all."""
        self._calls.clear()
        self._users.clear()
        self._names.clear()
