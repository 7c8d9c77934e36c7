"""One range of bytes and who waits for it: claims, the groups in which they go, and the lane of those groups. Pure and synchronous."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from pypto_actors.values import Fixed


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

    def stands(self, device: int) -> bool:
        """Were all handed to `device`, and to no other?"""
        for claim in self.claims:  # noqa: SIM110 (a generator costs more than most groups)
            if claim.owner.stands != device:
                return False
        return True

    def stand(self, device: int, freed: list[Owner]) -> bool:
        """Some of the group were handed to `device`, where all before it stand: if all of it do, the next group may follow there."""
        for claim in self.claims:  # what `stands` does, for every dispatch of a chain
            if claim.owner.stands != device:
                return False
        assert self.next is not None
        for claim in self.next.claims:
            owner = claim.owner
            if owner.sole == device and not claim.open:  # what `_open` does
                claim.open = True
                owner.waits -= 1
                if owner.waits == 0:
                    freed.append(owner)
        return True


_NOBODY: Any = Claim(None, 0, 0, 0, False)  # type: ignore[arg-type]


class Lane:
    """The queue of one range of bytes in which nobody's access ends or begins inside."""

    __slots__ = ("first", "last", "newest", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.first: Group | None = None
        self.last: Group | None = None
        self.newest: Claim = _NOBODY  # the last that joined, if it is still here

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
            owner, first = claim.owner, self.first
            assert first is not None
            if next(iter(first.claims)).owner.stands < 0 or not self._follows(owner.sole):
                claim.open = False
                owner.waits += 1
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
            if not group.stands(device):
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

    def drop(self, claim: Claim, freed: list[Owner]) -> bool:
        """Take a claim out, whether it has ended or never began; who can go now is appended to `freed`. Is the lane empty?"""
        group = claim.group
        assert group is not None
        if self.newest is claim:
            self.newest = _NOBODY
        claims = group.claims
        del claims[claim]
        if claims:
            if self.first is not self.last:
                self._advance(freed)
            return False
        if self.first is not group:
            self._unlink(group, freed)
            self._advance(freed)
            return False
        self.first = front = group.next
        if front is None:
            self.last = None
            return True
        if not front.opened:
            front.opened = True
            for other in front.claims:
                if not other.open:
                    _open(other, freed)
        if claim.owner.stands < 0:  # else all that may follow to its device is open already
            self._advance(freed)
        return False

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
        while group.next is not None and device >= 0 and group.stand(device, freed):
            group = group.next

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


def _open(claim: Claim, freed: list[Owner]) -> None:
    claim.open = True
    owner = claim.owner
    owner.waits -= 1
    if owner.waits == 0:
        freed.append(owner)
