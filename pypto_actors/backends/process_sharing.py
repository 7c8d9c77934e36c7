"""Copy on write among the devices of a worker: a large copy from one device tensor to another is put off until one of both is written,
which for weights is never. So a model that is on several devices is in the host's memory, and in its caches, once.

Two tensors may share only what no kernel and no callback has had to write yet (what one has written, it is likely to write again), and
whole. Who is about to write one of them, a dispatch, a callback or a copy, waits until it has been moved to memory of its own.

The hazards know bytes, and a move is of a whole allocation: others may read, meanwhile, what is not about to be written. So the new place
is filled first, and everybody reads in the former one until it is; who began to read there before may stay: the place is left when all
that was under way at that time has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from pypto_actors.backends.copy_engine import CopyEngine
from pypto_actors.backends.shared_memory import SharedInterconnect
from pypto_actors.backends.slabs import Block
from pypto_actors.messages import Piece, Transfer


class Reader(Protocol):
    """Who may have work under way that reads in a place."""

    def mark(self) -> tuple[int, int]:
        """What is under way now."""

    def past(self, mark: tuple[int, int]) -> bool:
        """Has all ended that was under way then?"""


class Move(Struct, eq=False):
    """Allocations on their way to memory of their own."""

    waiting: list[Callable[[], None]] = []


class Former(Struct, eq=False):
    """Places that allocations have left, and what may still read there."""

    blocks: Sequence[Block]
    readers: list[tuple[Reader, tuple[int, int]]]


class Sharing:
    """Of all devices. `readers()`: all that there are, also dead ones. `moved(allocations)` is called when those get another place."""

    def __init__(
        self, interconnect: SharedInterconnect, readers: Callable[[], Iterable[Reader]], moved: Callable[[Sequence[int]], None]
    ) -> None:
        self._interconnect = interconnect
        self._readers = readers
        self._moved = moved
        self._moving: dict[int, Move] = {}
        self.former: list[Former] = []

    def share(self, piece: Piece) -> bool:
        """Put a copy off; `False`: it has to be made."""
        if type(piece) is not Transfer or not self._interconnect.can_share(piece.target, piece.source):
            return False
        if self._interconnect.share(piece.target.allocation, piece.source.allocation):
            self._moved([piece.target.allocation])
        return True

    def move(self, allocations: Iterable[int], engine: CopyEngine) -> Move | None:
        """They are about to be written: those that share are moved, by a thread. `None`: nobody has to be waited for.

        Raises:
            MemoryError: nothing has changed.
        """
        if self._moving:
            for allocation in allocations:
                if allocation in self._moving:
                    return self._moving[allocation]
        interconnect = self._interconnect
        sharers = [allocation for allocation in dict.fromkeys(allocations) if interconnect.shares(allocation)]
        if not sharers:
            return None
        pairs = interconnect.begin_move(sharers)
        move = Move()

        def fill() -> None:
            for former, own in pairs:
                np.copyto(own.array(), former.array())

        def filled(result: object) -> None:
            if isinstance(result, Exception):  # there is no thread to be had
                fill()
            for allocation in sharers:
                del self._moving[allocation]
            self._moved(sharers)
            self.former.append(Former(interconnect.end_move(sharers, pairs), [(reader, reader.mark()) for reader in self._readers()]))
            self.settle()
            for go_on in move.waiting:
                go_on()

        for allocation in sharers:
            self._moving[allocation] = move
        engine.do(fill, filled)
        return move

    def settle(self) -> None:
        """Leave the places that nobody reads any more."""
        still = []
        for former in self.former:
            former.readers = [(reader, mark) for reader, mark in former.readers if not reader.past(mark)]
            if former.readers:
                still.append(former)
            else:
                for block in former.blocks:
                    self._interconnect.leave(block)
        self.former = still
