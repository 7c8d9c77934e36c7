"""Hazards: what must wait for what, from the bytes that each touches (RAW, WAR, WAW). Pure and synchronous.

Each range of bytes has a queue of groups in the order of acceptance: one writer, or readers that may go together. Who is in the front
group may go. Who is behind may go too where everything before it *stands* on the one device that it needs itself, since a device
does what it was handed in order (a chain of decode steps hides the way to the device like this).

A range is split where accesses overlap in part; it is forgotten when nobody uses it, so that the cost follows what is live.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from pypto_actors.lanes import Bundle, Claim, Lane, Owner
from pypto_actors.values import HOST, Access, Fixed


class Ranges:
    """The lanes of one address space, sorted and apart from each other. A lone claim stands for itself until somebody touches its bytes."""

    __slots__ = ("_hazards", "lanes", "starts")

    def __init__(self, hazards: Hazards) -> None:
        self.starts: list[int] = []
        self.lanes: list[Lane | Claim] = []
        self._hazards = hazards

    def put(self, claim: Claim) -> bool:
        """Put a claim there if nobody touches its bytes."""
        starts, lanes, start = self.starts, self.lanes, claim.start
        index = bisect_right(starts, start)
        if (index and lanes[index - 1].stop > start) or (index < len(starts) and starts[index] < claim.stop):
            return False
        starts.insert(index, start)
        lanes.insert(index, claim)
        return True

    def over(self, start: int, stop: int) -> list[Lane]:
        """The lanes that cover `[start, stop)` exactly; makes and splits what is needed."""
        starts, lanes = self.starts, self.lanes
        index = bisect_right(starts, start) - 1
        if index >= 0 and lanes[index].start == start and lanes[index].stop == stop:
            return [self._lane(index)]
        if index >= 0 and lanes[index].start < start < lanes[index].stop:
            self._insert(index + 1, self._lane(index).split(start))
        if index < 0 or lanes[index].start < start:
            index += 1
        found: list[Lane] = []
        at = start
        while at < stop:
            if index == len(lanes) or lanes[index].start >= stop:
                self._insert(index, Lane(at, stop))
            elif lanes[index].start > at:
                self._insert(index, Lane(at, lanes[index].start))
            elif lanes[index].stop > stop:
                self._insert(index + 1, self._lane(index).split(stop))
            lane = self._lane(index)
            found.append(lane)
            at = lane.stop
            index += 1
        return found

    def _lane(self, index: int) -> Lane:
        """The lane there; a lone claim gets one."""
        lane = self.lanes[index]
        if type(lane) is Claim:
            lone, lane = lane, Lane(lane.start, lane.stop)
            self.lanes[index] = lane
            self._hazards.shared += 1
            lane.join(lone)
        assert type(lane) is Lane
        return lane

    def _insert(self, index: int, lane: Lane) -> None:
        self.starts.insert(index, lane.start)
        self.lanes.insert(index, lane)
        self._hazards.shared += 1

    def forget(self, start: int) -> None:
        """The lane that begins there has emptied, or its lone claim has ended."""
        index = bisect_left(self.starts, start)
        del self.starts[index], self.lanes[index]


class Hazards:
    """The claims of everything accepted and not ended, over all address spaces."""

    def __init__(self) -> None:
        # of the spaces of devices: a lone claim stands for itself, a lane is made for the second one on the same bytes, and ranges for
        # the first one on others
        self._spaces: dict[int, Claim | Bundle | Lane | Ranges] = {}
        self._host = Ranges(self)
        # who is alone has claimed nothing: where one dispatch is awaited before the next is made, there is nothing to keep
        self._alone: tuple[Owner, Sequence[Access], Fixed | None] | None = None
        self.shared = 0  # lanes; where there are none, nobody stands in anybody's way

    def __len__(self) -> int:
        """How many address spaces are claimed; one, if somebody is alone."""
        return len(self._spaces) + bool(self._host.lanes) + (self._alone is not None)

    def enter(self, owner: Owner, accesses: Sequence[Access], fixed: Fixed | None = None, alone: bool = True) -> None:
        """Claim the bytes; adds to `owner.waits` one for each range where it must wait. In the order of acceptance.

        `fixed`: further ones, to be claimed together where nobody else is there. `alone`: it may be left unclaimed.
        """
        if alone:
            before = self._alone
            if before is not None:
                self._alone = None
                self.enter(*before, False)
            elif not self._spaces and not self._host.lanes:
                self._alone = (owner, accesses, fixed)
                return
        claims: list[Claim] = []
        owner.claims = claims
        spaces = self._spaces
        if fixed is not None:
            if spaces.keys().isdisjoint(fixed.spaces):
                owner.bundle = bundle = Bundle(owner, fixed)
                spaces.update(dict.fromkeys(fixed.spaces, bundle))
            else:
                accesses = (*fixed.accesses, *accesses)
        for space, start, stop, write in accesses:
            known: Any = spaces.get(space)
            if known is None:
                claim = Claim(owner, space, start, stop, write)
                if space:
                    spaces[space] = claim
                    claims.append(claim)
                elif start < stop:
                    if self._host.put(claim):
                        claims.append(claim)
                    else:
                        self._join(owner, claims, self._host, space, start, stop, write)
            elif type(known) is Lane and known.start == start and known.stop == stop and known.newest.owner is not owner:
                claim = Claim(owner, space, start, stop, write)  # the whole tensor again, as most often
                claims.append(claim)
                known.join(claim)
            elif start < stop:
                self._join(owner, claims, self._many(space, start, stop), space, start, stop, write)

    def _join(self, owner: Owner, claims: list[Claim], known: Lane | Ranges, space: int, start: int, stop: int, write: bool) -> None:
        for lane in (known,) if isinstance(known, Lane) else known.over(start, stop):
            mine = lane.newest
            if mine.owner is not owner:
                claim = Claim(owner, space, lane.start, lane.stop, write)
                claims.append(claim)
                lane.join(claim)
            elif write and not mine.write:
                lane.upgrade(mine)

    def _many(self, space: int, start: int, stop: int) -> Lane | Ranges:
        """Where a further claim on a space that somebody claims is to join: a lane of the same bytes, or ranges."""
        known = self._spaces[space]
        if type(known) is Ranges:
            return known
        if type(known) is Bundle:
            known.whole = False
            known = Claim(known.owner, *next(access for access in known.fixed.accesses if access[0] == space))
            assert known.owner.claims is not None
            known.owner.claims.append(known)
        if type(known) is Claim:
            if known.start < known.stop:
                lone, known = known, Lane(known.start, known.stop)
                self.shared += 1
                known.join(lone)
            else:  # an empty tensor: nothing to wait for
                assert known.owner.claims is not None
                known.owner.claims.remove(known)
                ranges = self._spaces[space] = Ranges(self)
                return ranges
        assert type(known) is Lane
        if known.start == start and known.stop == stop:
            self._spaces[space] = known
            return known
        ranges = self._spaces[space] = Ranges(self)
        ranges.starts.append(known.start)
        ranges.lanes.append(known)
        return ranges

    def stand(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` was handed to its only device; appends to `freed` who may follow it there."""
        owner.stands = device = owner.sole
        if owner.claims:
            for claim in owner.claims:
                group = claim.group
                if group is not None and group.next is not None:
                    group.stand(device, freed)

    def leave(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` has ended, or never began; appends to `freed` who waits for nothing any more."""
        alone = self._alone
        if alone is not None and alone[0] is owner:
            self._alone = None
            return
        if owner.bundle is not None:
            self._unbundle(owner)
        claims = owner.claims
        if not claims:
            return
        owner.claims = None
        for claim in claims:
            lane = claim.lane
            if lane is None:
                if space := claim.space:
                    del self._spaces[space]
                else:
                    self._host.forget(claim.start)
            elif lane.drop(claim, freed):
                self._forget(claim.space, lane)

    def _forget(self, space: int, lane: Lane) -> None:
        """A lane has emptied."""
        self.shared -= 1
        known = self._host if space == HOST else self._spaces[space]
        if known is lane:
            del self._spaces[space]
            return
        assert type(known) is Ranges
        known.forget(lane.start)
        if not known.lanes and space != HOST:
            del self._spaces[space]

    def _unbundle(self, owner: Owner) -> None:
        """Give up what `owner` claims together."""
        bundle, owner.bundle = owner.bundle, None
        assert bundle is not None
        spaces = self._spaces
        if bundle.whole:
            for space in bundle.fixed.spaces:
                del spaces[space]
        else:
            for space in bundle.fixed.spaces:
                if spaces.get(space) is bundle:
                    del spaces[space]
