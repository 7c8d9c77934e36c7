"""Hazards: what must wait for what, from the bytes that each touches (RAW, WAR, WAW). Pure and synchronous.

Each range of bytes has a queue of groups in the order of acceptance: one writer, or readers that may go together. Who is in the front
group may go. Who is behind may go too where everything before it *stands* on the one device that it needs itself, since a device
does what it was handed in order (a chain of decode steps hides the way to the device like this).

A range is split where accesses overlap in part; it is forgotten when nobody uses it, so that the cost follows what is live.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from pypto_actors.values import HOST, Access


class Owner(Protocol):
    """Who claims bytes; `lifecycle.Record` is one."""

    waits: int
    claims: list[Claim] | None
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


class Group:
    """One writer, or readers in a row."""

    __slots__ = ("claims", "opened", "write")

    def __init__(self, claim: Claim) -> None:
        self.write = claim.write
        self.claims: dict[Claim, None] = {claim: None}  # a dict, since its order is that of acceptance
        self.opened = False
        claim.group = self


class Lane:
    """The queue of one range of bytes in which nobody's access ends or begins inside."""

    __slots__ = ("groups", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.groups: deque[Group] = deque()

    def join(self, claim: Claim) -> None:
        """Queue `claim` up behind all others; its owner waits unless the claim is open at once."""
        claim.lane = self
        groups = self.groups
        if groups and not groups[-1].write and not claim.write:
            group = groups[-1]
            group.claims[claim] = None
            claim.group = group
        else:
            group = Group(claim)
            groups.append(group)
        claim.open = self._may_go(group, claim.owner.sole)
        if not claim.open:
            claim.owner.waits += 1

    def _may_go(self, group: Group, device: int) -> bool:
        groups = self.groups
        if groups[0] is group:
            group.opened = True
            return True
        if device < 0:
            return False
        for index in range(len(groups) - 1, -1, -1):
            other = groups[index]
            if other is not group and not _all_stand(other, device):
                return False
        return True

    def mine(self, owner: Owner) -> Claim | None:
        """The claim of `owner`, who has just joined."""
        if self.groups:
            claim = next(reversed(self.groups[-1].claims))
            if claim.owner is owner:
                return claim
        return None

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
        self.join(claim)

    def drop(self, claim: Claim, freed: list[Owner]) -> None:
        """Take a claim out, whether it has ended or never began; who can go now is appended to `freed`."""
        group = claim.group
        assert group is not None
        del group.claims[claim]
        groups = self.groups
        if not group.claims:
            if groups[0] is group:
                groups.popleft()
            else:
                index = groups.index(group)
                del groups[index]
                if index < len(groups) and not groups[index].write and not groups[index - 1].write:
                    self._merge(index, freed)
        if groups:
            self.advance(freed)

    def _merge(self, index: int, freed: list[Owner]) -> None:
        """Readers that a writer stood between are neighbours now."""
        groups = self.groups
        later, earlier = groups[index], groups[index - 1]
        del groups[index]
        for claim in later.claims:
            earlier.claims[claim] = None
            claim.group = earlier
            if earlier.opened and not claim.open:
                _open(claim, freed)

    def advance(self, freed: list[Owner]) -> None:
        """Open whatever may go."""
        groups = self.groups
        front = groups[0]
        if not front.opened:
            front.opened = True
            for claim in front.claims:
                if not claim.open:
                    _open(claim, freed)
        if len(groups) == 1:
            return
        device = next(iter(front.claims)).owner.stands
        if device < 0:
            return
        before = front
        for group in groups:
            if group is not front:
                if not _all_stand(before, device):
                    return
                for claim in group.claims:
                    if not claim.open and claim.owner.sole == device:
                        _open(claim, freed)
                before = group

    def split(self, at: int) -> Lane:
        """Cut the range in two; everybody in it claims both halves from now on."""
        other = Lane(at, self.stop)
        self.stop = at
        for group in self.groups:
            twin: Group | None = None
            for claim in group.claims:
                owner = claim.owner
                half = Claim(owner, claim.space, at, other.stop, claim.write)
                claim.stop = at
                half.open = claim.open
                half.lane = other
                if not half.open:
                    owner.waits += 1
                assert owner.claims is not None
                owner.claims.append(half)
                if twin is None:
                    twin = Group(half)
                    twin.opened = group.opened
                else:
                    twin.claims[half] = None
                    half.group = twin
            assert twin is not None
            other.groups.append(twin)
        return other


def _all_stand(group: Group, device: int) -> bool:
    for claim in group.claims:
        if claim.owner.stands != device:
            return False
    return True


def _open(claim: Claim, freed: list[Owner]) -> None:
    claim.open = True
    owner = claim.owner
    owner.waits -= 1
    if owner.waits == 0:
        freed.append(owner)


class Ranges:
    """The lanes of one address space, sorted and apart from each other."""

    __slots__ = ("lanes", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.lanes: list[Lane] = []

    def over(self, start: int, stop: int) -> list[Lane]:
        """The lanes that cover `[start, stop)` exactly; makes and splits what is needed."""
        starts, lanes = self.starts, self.lanes
        index = bisect_right(starts, start) - 1
        if index >= 0 and lanes[index].start == start and lanes[index].stop == stop:
            return [lanes[index]]
        if index >= 0 and lanes[index].start < start < lanes[index].stop:
            self._insert(index + 1, lanes[index].split(start))
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
                self._insert(index + 1, lanes[index].split(stop))
            found.append(lanes[index])
            at = lanes[index].stop
            index += 1
        return found

    def _insert(self, index: int, lane: Lane) -> None:
        self.starts.insert(index, lane.start)
        self.lanes.insert(index, lane)

    def forget(self, lane: Lane) -> None:
        index = bisect_right(self.starts, lane.start) - 1
        del self.starts[index], self.lanes[index]


class Hazards:
    """The claims of everything accepted and not ended, over all address spaces."""

    def __init__(self) -> None:
        # A lone claim stands for itself; ranges are made for the second one.
        self._spaces: dict[int, Claim | Ranges] = {}

    def __len__(self) -> int:
        return len(self._spaces)

    def enter(self, owner: Owner, accesses: Iterable[Access]) -> None:
        """Claim the bytes; adds to `owner.waits` one for each range where it must wait. In the order of acceptance."""
        claims: list[Claim] = []
        owner.claims = claims
        spaces = self._spaces
        for space, start, stop, write in accesses:
            known = spaces.get(space)
            if known is None and space != HOST:
                spaces[space] = claim = Claim(owner, space, start, stop, write)
                claims.append(claim)
            elif start < stop:
                self._join(owner, claims, space, start, stop, write)

    def _join(self, owner: Owner, claims: list[Claim], space: int, start: int, stop: int, write: bool) -> None:
        known = self._spaces.get(space)
        if known is None:
            known = self._spaces[space] = Ranges()
        elif type(known) is Claim:
            lone, known = known, Ranges()
            self._spaces[space] = known
            if lone.start == lone.stop:  # an empty tensor: nothing to wait for
                assert lone.owner.claims is not None
                lone.owner.claims.remove(lone)
            else:
                known.over(lone.start, lone.stop)[0].join(lone)
        assert type(known) is Ranges
        for lane in known.over(start, stop):
            mine = lane.mine(owner)
            if mine is None:
                claim = Claim(owner, space, lane.start, lane.stop, write)
                claims.append(claim)
                lane.join(claim)
            elif write and not mine.write:
                lane.upgrade(mine)

    def stand(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` was handed to its only device; appends to `freed` who may follow it there."""
        owner.stands = owner.sole
        if owner.claims:
            for claim in owner.claims:
                lane = claim.lane
                if lane is not None and len(lane.groups) > 1:
                    lane.advance(freed)

    def leave(self, owner: Owner, freed: list[Owner]) -> None:
        """`owner` has ended, or never began; appends to `freed` who waits for nothing any more."""
        claims = owner.claims
        if not claims:
            return
        owner.claims = None
        spaces = self._spaces
        for claim in claims:
            lane = claim.lane
            if lane is None:
                del spaces[claim.space]
                continue
            lane.drop(claim, freed)
            if not lane.groups:
                ranges = spaces[claim.space]
                assert type(ranges) is Ranges
                ranges.forget(lane)
                if not ranges.lanes:
                    del spaces[claim.space]
