"""Hazards: what must wait for what, from the bytes that each touches (RAW, WAR, WAW). Pure and synchronous.

Each range of bytes has a queue of groups in the order of acceptance: one writer, or readers that may go together. Who is in the front
group may go. Who is behind may go too where everything before it *stands* on the one device that it needs itself, since a device
does what it was handed in order (a chain of decode steps hides the way to the device like this).

A range is split where accesses overlap in part; it is forgotten when nobody uses it, so that the cost follows what is live.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from pypto_actors.values import HOST, Access, Fixed


class Owner(Protocol):
    """Who claims bytes; `lifecycle.Record` is one."""

    waits: int
    claims: list[Claim] | None
    bundle: Bundle | None
    sole: int
    stands: int


class Claim(Struct, eq=False, gc=False):
    """The wish of one owner to read or write one range. `open`: it does not wait here."""

    owner: Owner
    space: int
    start: int
    stop: int
    write: bool
    open: bool = True
    lane: Lane | None = None
    group: Group | None = None


class Bundle(Struct, eq=False, gc=False):
    """The claims of one owner on whole spaces that nobody else claims; a space leaves it, as a claim, when somebody else comes."""

    owner: Owner
    fixed: Fixed
    whole: bool = True


class Group(Struct, eq=False):
    """One writer, or readers in a row. `opened`: it has come to the front."""

    write: bool
    claims: dict[Claim, None]  # a dict, since its order is that of acceptance
    opened: bool = False
    next: Group | None = None


class Lane:
    """The queue of one range of bytes in which nobody's access ends or begins inside."""

    __slots__ = ("first", "last", "newest", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.first: Group | None = None
        self.last: Group | None = None
        self.newest: Claim | None = None

    def join(self, claim: Claim) -> None:
        """Queue `claim` up behind all others; its owner waits unless the claim is open at once."""
        claim.lane = self
        self.newest = claim
        last = self.last
        if last is None:
            claim.group = self.first = self.last = Group(claim.write, {claim: None}, True)
            return
        if last.write or claim.write:
            last.next = self.last = claim.group = Group(claim.write, {claim: None})
            if not self._follows(claim.owner.sole):
                claim.open = False
                claim.owner.waits += 1
            return
        last.claims[claim] = None
        claim.group = last
        if not last.opened and not self._follows(claim.owner.sole):
            claim.open = False
            claim.owner.waits += 1

    def _follows(self, device: int) -> bool:
        """Does everything before the last group stand on `device`?"""
        group = self.first
        assert group is not None
        if device < 0 or next(iter(group.claims)).owner.stands != device:
            return False
        while group is not self.last:
            assert group is not None
            if not _all_stand(group, device):
                return False
            group = group.next
        return True

    def upgrade(self, claim: Claim) -> None:
        """Make a reader that has just joined a writer."""
        group = claim.group
        assert group is not None
        claim.write = True
        if len(group.claims) == 1:
            group.write = True
            return
        del group.claims[claim]
        if not claim.open:
            claim.owner.waits -= 1
            claim.open = True
        self.join(claim)

    def drop(self, claim: Claim, freed: list[Owner]) -> None:
        """Take a claim out, whether it has ended or never began; who can go now is appended to `freed`."""
        group = claim.group
        assert group is not None
        if self.newest is claim:
            self.newest = None
        del group.claims[claim]
        if group.claims:
            if self.first is not self.last:
                self._advance(freed)
            return
        if self.first is not group:
            self._unlink(group, freed)
            self._advance(freed)
            return
        self.first = front = group.next
        if front is None:
            self.last = None
            return
        if not front.opened:
            front.opened = True
            for other in front.claims:
                if not other.open:
                    _open(other, freed)
        if claim.owner.stands < 0:  # else all that may follow to its device is open already
            self._advance(freed)

    def _unlink(self, group: Group, freed: list[Owner]) -> None:
        """Take an empty group out of the middle or the end; readers that it stood between are neighbours now."""
        before = self.first
        assert before is not None
        while before.next is not group:
            assert before.next is not None
            before = before.next
        after = before.next = group.next
        if after is None:
            self.last = before
        elif not after.write and not before.write:
            for claim in after.claims:
                before.claims[claim] = None
                claim.group = before
                if before.opened and not claim.open:
                    _open(claim, freed)
            before.next = after.next
            if after is self.last:
                self.last = before

    def _advance(self, freed: list[Owner]) -> None:
        """Open whatever may follow those at the front to the device where they all stand."""
        group = self.first
        if group is None or group.next is None:
            return
        device = next(iter(group.claims)).owner.stands
        while group.next is not None and device >= 0 and _all_stand(group, device):
            group = group.next
            _open_for(group, device, freed)

    def stand(self, claim: Claim, device: int, freed: list[Owner]) -> None:
        """The owner of `claim` was handed to `device`, where all before it stands: who is next may follow there."""
        group = claim.group
        assert group is not None
        if group.next is not None and _all_stand(group, device):
            _open_for(group.next, device, freed)

    def split(self, at: int) -> Lane:
        """Cut the range in two; everybody in it claims both halves from now on."""
        other = Lane(at, self.stop)
        self.stop = at
        group = self.first
        while group is not None:
            twin = Group(group.write, {}, group.opened)
            for claim in group.claims:
                owner = claim.owner
                half = Claim(owner, claim.space, at, other.stop, claim.write, claim.open, other, twin)
                claim.stop = at
                if not half.open:
                    owner.waits += 1
                assert owner.claims is not None
                owner.claims.append(half)
                twin.claims[half] = None
                if claim is self.newest:
                    other.newest = half
            if other.last is None:
                other.first = twin
            else:
                other.last.next = twin
            other.last = twin
            group = group.next
        return other


def _all_stand(group: Group, device: int) -> bool:
    for claim in group.claims:  # noqa: SIM110 (a generator costs more than most groups)
        if claim.owner.stands != device:
            return False
    return True


def _open_for(group: Group, device: int, freed: list[Owner]) -> None:
    for claim in group.claims:
        if not claim.open and claim.owner.sole == device:
            _open(claim, freed)


def _open(claim: Claim, freed: list[Owner]) -> None:
    claim.open = True
    owner = claim.owner
    owner.waits -= 1
    if owner.waits == 0:
        freed.append(owner)


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
