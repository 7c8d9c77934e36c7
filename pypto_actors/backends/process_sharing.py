"""Copy on write among the devices of a worker: a large copy from one device tensor to another is put off until one of both is written,
which for weights is never. So a model that is on several devices is in the host's memory, and in its caches, once.

Two tensors may share only what no kernel has written yet (what one has written, it is likely to write again), and whole. Who is about to
write one of them, a dispatch, a callback or a copy, has it moved to memory of its own first. The hazards see to it that nobody else has
anything to do with it then, but for dispatches before it on the same device, which may still read it in its former place: that place is
left when the dispatch that writes has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from msgspec import Struct

from pypto_actors.backends.copy_engine import CopyEngine
from pypto_actors.backends.shared_memory import Block, SharedInterconnect
from pypto_actors.messages import Piece, Transfer


class Move(Struct, eq=False):
    """Allocations on their way to memory of their own. `former`: where they were, for who moves them to leave."""

    former: Sequence[Block] = ()
    waiting: list[Callable[[], None]] = []


class Sharing:
    """Of all devices. `moved(allocations)` is called when they have got another place."""

    def __init__(self, interconnect: SharedInterconnect, moved: Callable[[Sequence[int]], None]) -> None:
        self._interconnect = interconnect
        self._moved = moved
        self._moving: dict[int, Move] = {}

    def share(self, piece: Piece) -> bool:
        """Put a copy off; `False`: it has to be made."""
        if type(piece) is not Transfer or not self._interconnect.can_share(piece.target, piece.source):
            return False
        if self._interconnect.share(piece.target.allocation, piece.source.allocation):
            self._moved([piece.target.allocation])
        return True

    def move(self, allocations: Iterable[int], engine: CopyEngine, keep: bool = False) -> Move | None:
        """They are about to be written: who shares is moved, by a thread. `None`: nobody has to be waited for.

        Where `keep` is on, the former places are the caller's to leave.
        """
        interconnect = self._interconnect
        if self._moving:
            for allocation in allocations:
                if allocation in self._moving:
                    return self._moving[allocation]
        sharers = [allocation for allocation in dict.fromkeys(allocations) if interconnect.shares(allocation)]
        if not sharers:
            return None
        former = interconnect.detach(sharers)
        self._moved(sharers)
        move = Move(former if keep else ())
        pairs = [(interconnect.buffers[allocation], block.array()) for allocation, block in zip(sharers, former, strict=True)]

        def fill() -> None:
            for own, shared in pairs:
                np.copyto(own, shared)

        def filled(result: object) -> None:
            if isinstance(result, Exception):  # there is no thread to be had
                fill()
            for allocation in sharers:
                del self._moving[allocation]
            if not keep:
                self.leave(former)
            for go_on in move.waiting:
                go_on()

        for allocation in sharers:
            self._moving[allocation] = move
        engine.do(fill, filled)
        return move

    def leave(self, former: Iterable[Block]) -> None:
        """Nobody reads them there any more."""
        for block in former:
            self._interconnect.leave(block)
