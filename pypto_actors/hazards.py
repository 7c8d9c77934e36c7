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
        # of the spaces of devices: a lone claim stands for itself, ranges are made for the second one
        self._spaces: dict[int, Claim | Bundle | Ranges] = {}
        self._host = Ranges(self)
        self.shared = 0  # lanes; where there are none, nobody stands in anybody's way

    def __len__(self) -> int:
        """How many address spaces are claimed."""
        return len(self._spaces) + bool(self._host.lanes)

    def enter(self, owner: Owner, accesses: Sequence[Access], fixed: Fixed | None = None) -> None:
        """Claim the bytes; adds to `owner.waits` one for each range where it must wait. In the order of acceptance.

        `fixed`: what the accesses begin with, to be claimed together where nobody else is there.
        """
        claims: list[Claim] = []
        owner.claims = claims
        spaces = self._spaces
        if fixed is not None and spaces.keys().isdisjoint(fixed.spaces):
            owner.bundle = bundle = Bundle(owner, fixed)
            spaces.update(dict.fromkeys(fixed.spaces, bundle))
            accesses = accesses[len(fixed.accesses) :]
        for space, start, stop, write in accesses:
            if space in spaces:
                if start < stop:
                    ranges = spaces[space]
                    if type(ranges) is not Ranges:
                        ranges = self._ranges(space)
                    lane: Any = ranges.lanes[0] if ranges.lanes else None
                    if (
                        lane is not None
                        and lane.start == start
                        and lane.stop == stop
                        and (lane.newest is None or lane.newest.owner is not owner)
                    ):
                        claim = Claim(owner, space, start, stop, write)  # the whole tensor again, as most often
                        claims.append(claim)
                        lane.join(claim)
                        continue
                    self._join(owner, claims, ranges, space, start, stop, write)
            elif space != HOST:
                spaces[space] = claim = Claim(owner, space, start, stop, write)
                claims.append(claim)
            elif start < stop:
                claim = Claim(owner, space, start, stop, write)
                if self._host.put(claim):
                    claims.append(claim)
                else:
                    self._join(owner, claims, self._host, space, start, stop, write)

    def _join(self, owner: Owner, claims: list[Claim], ranges: Ranges, space: int, start: int, stop: int, write: bool) -> None:
        for lane in ranges.over(start, stop):
            mine = lane.newest
            if mine is None or mine.owner is not owner:
                claim = Claim(owner, space, lane.start, lane.stop, write)
                claims.append(claim)
                lane.join(claim)
            elif write and not mine.write:
                lane.upgrade(mine)

    def _ranges(self, space: int) -> Ranges:
        """The ranges of a space that somebody claims; a lone claim gets some."""
        known = self._spaces[space]
        if type(known) is Ranges:
            return known
        ranges = self._spaces[space] = Ranges(self)
        if type(known) is Bundle:
            known.whole = False
            known = Claim(known.owner, *next(access for access in known.fixed.accesses if access[0] == space))
            assert known.owner.claims is not None
            known.owner.claims.append(known)
        assert type(known) is Claim
        if known.start < known.stop:
            ranges.over(known.start, known.stop)[0].join(known)
        else:  # an empty tensor: nothing to wait for
            assert known.owner.claims is not None
            known.owner.claims.remove(known)
        return ranges

    def stand(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` was handed to its only device; appends to `freed` who may follow it there."""
        owner.stands = device = owner.sole
        if owner.claims:
            for claim in owner.claims:
                lane = claim.lane
                if lane is not None and lane.last is not claim.group:
                    lane.stand(claim, device, freed)

    def leave(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` has ended, or never began; appends to `freed` who waits for nothing any more."""
        if owner.bundle is not None:
            self._unbundle(owner)
        spaces = self._spaces
        claims = owner.claims
        if not claims:
            return
        owner.claims = None
        for claim in claims:
            lane = claim.lane
            if lane is None:
                if space := claim.space:
                    del spaces[space]
                else:
                    self._host.forget(claim.start)
                continue
            lane.drop(claim, freed)
            if lane.first is None:
                self.shared -= 1
                space = claim.space
                ranges = self._host if space == HOST else spaces[space]
                assert type(ranges) is Ranges
                ranges.forget(lane.start)
                if not ranges.lanes and space != HOST:
                    del spaces[space]

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
